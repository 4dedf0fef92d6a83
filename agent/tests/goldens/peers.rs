//! What only shows across several connections to one upstream, both sides of each look-alike pair.

use super::Golden;
use super::scenario::{GET, OK, Scenario, scenario};

const RST: u8 = 0x04;
const ACK: u8 = 0x10;

pub(crate) fn goldens() -> Vec<Golden> {
    [resets(), backlogs(), late(), ends(), drains()].concat()
}

/// A reset that answers a SYN, beside the target's own packets.
fn resets() -> Vec<Golden> {
    let beside = |ttl: u8| {
        scenario(|hop| {
            hop.upstream_ttl = 60;
            hop.pooled(1).close().ms(500);
            hop.upstream_ttl = ttl;
            hop.on(2).syn().refuse();
        })
    };
    vec![
        (
            "peers/refused_by_the_target",
            "The reset has come as far as the target's own packets.",
            beside(60),
        ),
        (
            "peers/rejected_by_a_nearer_filter",
            "The reset has come less far than the target's own packets: something before it answers.",
            beside(62),
        ),
        (
            "peers/rejected_by_another_system",
            "The reset begins with another time to live than the target's own packets.",
            beside(253),
        ),
        (
            "peers/refused_beside_the_target",
            "One hop nearer: a filter in the last router, or the host that forwards to a container.",
            beside(61),
        ),
    ]
}

/// One connect gets no answer for three SYNs; another, established meanwhile, took `syns`.
fn silent_beside(hop: &mut Scenario, syns: u64) {
    hop.on(1).syn();
    hop.on(2).syn();
    for _ in 1..syns {
        hop.ms(1000).syn();
    }
    hop.established().request().reply(OK).close();
    hop.on(1).ms(1000).syn().ms(2000).syn();
}

fn backlogs() -> Vec<Golden> {
    vec![
        (
            "peers/backlog_full_half_open",
            "The SYN-ACK comes again and again, no request byte is taken; another connection works.",
            scenario(|hop| {
                hop.pooled(1);
                hop.on(2).open().send(GET).ms(1000).syn_ack_again();
                hop.request_again();
                hop.on(1).request().reply(OK).close();
                hop.on(2).ms(2000).syn_ack_again().ms(500).gateway_fin();
            }),
        ),
        (
            "peers/backlog_full_half_open_alone",
            "The same, and nothing else is known of the upstream.",
            scenario(|hop| {
                hop.open().send(GET).ms(1000).syn_ack_again();
                hop.request_again().ms(2000).syn_ack_again();
                hop.ms(500).gateway_fin();
            }),
        ),
        (
            "peers/request_unacknowledged_beside_a_live_one",
            "No request byte is taken, but the SYN-ACK came once: the handshake is complete.",
            scenario(|hop| {
                hop.pooled(1);
                hop.on(2).open().send(GET).ms(300).request_again();
                hop.ms(600).request_again();
                hop.on(1).request().reply(OK).close();
                hop.on(2).ms(2000).gateway_fin();
            }),
        ),
        (
            "peers/syn_ack_again_and_slow",
            "The SYN-ACK comes again, the request is taken: the handshake's last packet was lost once.",
            scenario(|hop| {
                hop.pooled(1).close();
                hop.on(2).open().ms(1000).syn_ack_again().gateway_acks();
                hop.request().ms(3000).gateway_fin();
            }),
        ),
        (
            "peers/backlog_full_syns_dropped",
            "No answer to three SYNs, while another connect succeeds with its second SYN.",
            scenario(|hop| silent_beside(hop, 2)),
        ),
        (
            "peers/blackholed_beside_a_prompt_one",
            "No answer to three SYNs, while another connect succeeds at once.",
            scenario(|hop| silent_beside(hop, 1)),
        ),
        (
            "peers/blackholed_on_a_lossy_path",
            "The same as dropped SYNs, but request bytes are lost as well.",
            scenario(|hop| {
                hop.on(3).open().send(GET).ms(300).request_again();
                hop.upstream_acks().reply(OK).close();
                silent_beside(hop, 2);
            }),
        ),
    ]
}

fn late() -> Vec<Golden> {
    vec![
        (
            "peers/connect_late",
            "The SYN-ACK comes after 3 s and draws a reset without acknowledgement: no such socket.",
            scenario(|hop| {
                hop.syn().ms(1000).syn().ms(2000).syn_ack_reset(RST);
            }),
        ),
        (
            "peers/slow_check_that_resets",
            "The SYN-ACK comes after 3 s, and a check that waited for it resets its own connection.",
            scenario(|hop| {
                hop.syn().ms(1000).syn().ms(2000).syn_ack_reset(RST | ACK);
            }),
        ),
        (
            "peers/connect_abandoned",
            "The SYN-ACK comes after 50 ms for a socket that is gone: the gateway lost interest.",
            scenario(|hop| {
                hop.syn().ms(50).syn_ack_reset(RST);
            }),
        ),
    ]
}

fn ends() -> Vec<Golden> {
    /// Two requests are cut at once.
    fn cut(hop: &mut Scenario) {
        hop.pooled(3);
        hop.pooled(1).request();
        hop.pooled(2).request().ms(100).upstream_fin().gateway_fin();
        hop.on(1).upstream_rst();
        hop.on(3).close();
    }
    vec![
        (
            "peers/process_died",
            "Three connections are closed at once, two of them with a request; then SYNs are refused.",
            scenario(|hop| {
                cut(hop);
                hop.on(4).ms(300).syn().refuse();
            }),
        ),
        (
            "peers/cut_at_once_and_alive",
            "The same, but the next connect succeeds: each failed by itself.",
            scenario(|hop| {
                cut(hop);
                hop.pooled(4).close();
            }),
        ),
        (
            "peers/cut_alone_and_refused",
            "One connection is closed with a request, then a SYN is refused: two failures.",
            scenario(|hop| {
                hop.pooled(1).request().ms(100).close();
                hop.on(2).ms(300).syn().refuse();
            }),
        ),
        (
            "peers/idle_ones_closed_at_once_and_refused",
            "Idle connections are closed at once, then a SYN is refused: only that failed.",
            scenario(|hop| {
                hop.pooled(1);
                hop.pooled(2).ms(100).close();
                hop.on(1).close();
                hop.on(3).ms(300).syn().refuse();
            }),
        ),
    ]
}

fn drains() -> Vec<Golden> {
    vec![
        (
            "peers/draining",
            "A SYN is refused; an open connection gets its response and is closed in order.",
            scenario(|hop| {
                hop.pooled(3);
                hop.pooled(1).ms(2000).request();
                hop.on(2).syn().refuse();
                hop.on(1).ms(100).reply(OK).close();
                hop.on(3).ms(2000).close();
            }),
        ),
        (
            "peers/draining_seen_too_short",
            "The same, and the observation ends: a new connection may have been established.",
            scenario(|hop| {
                hop.pooled(1).ms(2000).request();
                hop.on(2).syn().refuse();
                hop.on(1).ms(100).reply(OK).close();
            }),
        ),
        (
            "peers/draining_or_refused",
            "A SYN is refused; an open connection goes on: perhaps another host of that address.",
            scenario(|hop| {
                hop.pooled(1).ms(2000).request();
                hop.on(2).syn().refuse();
                hop.on(1).ms(100).reply(OK).ms(100).request().reply(OK);
            }),
        ),
        (
            "peers/refused_and_restarted",
            "A SYN is refused, an open connection ends in order, the next connect succeeds.",
            scenario(|hop| {
                hop.pooled(1).ms(2000).request();
                hop.on(2).syn().refuse();
                hop.on(1).ms(100).reply(OK).close();
                hop.pooled(3).close();
            }),
        ),
        (
            "peers/refused_beside_an_idle_one",
            "A SYN is refused, and the open connection stays idle.",
            scenario(|hop| {
                hop.pooled(1).ms(2000);
                hop.on(2).syn().refuse();
            }),
        ),
        (
            "peers/draining_grace_over",
            "SYNs are refused, and five seconds later a request in flight is cut.",
            scenario(|hop| {
                hop.pooled(1).ms(2000).request();
                hop.on(2).syn().refuse().ms(5000);
                hop.on(1).upstream_rst();
            }),
        ),
        (
            "peers/cut_after_a_restart",
            "A SYN is refused, connects work again, and then a request in flight is cut.",
            scenario(|hop| {
                hop.pooled(1).ms(2000).request();
                hop.on(2).syn().refuse().ms(2000);
                hop.pooled(3).close();
                hop.on(1).ms(3000).upstream_rst();
            }),
        ),
    ]
}
