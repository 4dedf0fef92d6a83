//! Causes that only show across several hops to one upstream, and what looks like them.

use super::sim::{GET, OK, Sim, both};
use crate::limits::Limits;
use crate::model::{
    Actor, Cause, Direction, Errno, HopEvent, HopId, Input, Phase, Proof, RecordHeads, ResetReason,
    Segment, Signal, TcpFlags, TcpState,
};

const RST_ACK: TcpFlags = TcpFlags(0x14);

/// Causes and proofs in the order of their events.
#[track_caller]
fn told(sim: &mut Sim) -> Vec<(Cause, Proof)> {
    let events = sim.events();
    let told = |event: &HopEvent| (event.cause, event.proof);
    events.iter().map(told).collect()
}

/// Whether some evidence of an event says this.
fn says(event: &HopEvent, what: &str) -> bool {
    event.evidence.iter().any(|fact| fact.text.contains(what))
}

// A reset that answers a SYN: the target's own, or a filter's.

#[test]
fn a_reset_from_as_far_as_the_target_is_its_own() {
    both(|sim| {
        sim.ttl = 60;
        sim.open().request().reply(OK).close_gateway_first();
        sim.next_hop();
        let event = sim
            .syn()
            .refuse()
            .expect(Cause::TcpConnectRefused, Proof::Proven);
        assert!(says(&event, "ttl 60 on the target's own packets as well"));
    });
}

#[test]
fn a_reset_from_elsewhere_is_a_filters() {
    both(|sim| {
        sim.ttl = 60;
        sim.open().request().reply(OK).close_gateway_first();
        sim.next_hop();
        // Another port of the same host.
        sim.translated(9090);
        for (ttl, ports) in [(62, 9090), (253, 9091)] {
            sim.ttl = ttl;
            sim.translated(ports);
            sim.syn().refuse();
            let event = sim.expect(Cause::TcpConnectRejectedByFilter, Proof::Inferred);
            assert!(says(&event, &format!("ttl {ttl}")), "{event:#?}");
            assert!(says(&event, "ttl 60 on the target's own packets"));
            sim.next_hop();
            // The time passed by `expect` is more than what makes a comparison.
            sim.ttl = 60;
            sim.translated(8080);
            sim.open().request().reply(OK).close_gateway_first();
            sim.next_hop();
        }
    });
}

#[test]
fn a_reset_from_beside_the_target_may_be_that_of_its_host() {
    both(|sim| {
        sim.ttl = 60;
        sim.open().request().reply(OK).close_gateway_first();
        sim.next_hop();
        sim.ttl = 61;
        sim.syn().refuse();
        let event = sim.expect(Cause::TcpConnectRefused, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpConnectRejectedByFilter]);
    });
}

#[test]
fn a_reset_is_compared_with_what_is_known_alone() {
    // Nothing else of the host was seen, or only long ago.
    both(|sim| {
        sim.ttl = 200;
        sim.syn()
            .refuse()
            .expect(Cause::TcpConnectRefused, Proof::Proven);
    });
    both(|sim| {
        sim.ttl = 60;
        sim.open().request().reply(OK).close_gateway_first();
        sim.ms(120_000).next_hop();
        sim.ttl = 253;
        sim.syn()
            .refuse()
            .expect(Cause::TcpConnectRefused, Proof::Proven);
    });
    // Only the kernel told of the reset.
    let mut sim = Sim::live("nginx");
    sim.ttl = 60;
    sim.open().request().reply(OK).close_gateway_first();
    sim.next_hop();
    sim.syn().signal(Signal::ResetReceived);
    let refused = Some(Errno::ECONNREFUSED);
    sim.state(TcpState::SynSent, TcpState::Close, refused, 0);
    sim.expect(Cause::TcpConnectRefused, Proof::Proven);
    // The upstream's kernel is this one, and says that it sent it.
    let mut sim = Sim::live("nginx");
    sim.ttl = 60;
    sim.open().request().reply(OK).close_gateway_first();
    sim.next_hop();
    sim.ttl = 64;
    sim.syn().signal(Signal::ResetSent {
        by: Actor::Upstream,
        reason: Some(ResetReason::NoSocket),
    });
    sim.refuse().expect(Cause::TcpConnectRefused, Proof::Proven);
}

impl Sim {
    /// A gateway that has its response closes.
    fn close_gateway_first(&mut self) -> &mut Self {
        self.gateway_fin().upstream_fin()
    }

    /// A connection with a complete exchange, open.
    fn pooled(&mut self, number: u64) -> &mut Self {
        self.on(number).open().request().reply(OK)
    }
}

// A full backlog: the SYN is dropped, or what completes the handshake.

#[test]
fn a_syn_ack_that_is_repeated_is_a_full_backlog() {
    both(|sim| {
        sim.pooled(1);
        sim.on(2).open().send(GET).ms(1000).syn_ack_again();
        sim.on(1).request().reply(OK);
        sim.on(2).ms(2000).syn_ack_again().ms(500).gateway_fin();
        let event = sim.expect(Cause::TcpConnectBacklogFull, Proof::Inferred);
        assert_eq!(event.phase, Phase::Connect);
        assert!(says(&event, "2 times more"), "{event:#?}");
    });
    // The listener gave up first: the next request segment finds no connection.
    both(|sim| {
        sim.pooled(1);
        sim.on(2).open().send(GET).ms(1000).syn_ack_again().ms(2000);
        sim.upstream_rst();
        sim.expect(Cause::TcpConnectBacklogFull, Proof::Inferred);
    });
}

#[test]
fn a_syn_ack_that_is_repeated_by_an_upstream_that_answers_nobody_leaves_rivals() {
    both(|sim| {
        sim.open().send(GET).ms(1000).syn_ack_again().ms(2000);
        sim.gateway_fin();
        let event = sim.expect(Cause::TcpConnectBacklogFull, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpRequestUnacknowledged]);
    });
    // A request of several segments may be too large for the path.
    both(|sim| {
        sim.pooled(1);
        let post = [
            &b"POST / HTTP/1.1\r\nContent-Length: 1400\r\n\r\n"[..],
            &[b'x'; 1400],
        ]
        .concat();
        sim.on(2).open().send(&post).ms(1000).syn_ack_again();
        sim.on(1).request().reply(OK);
        sim.on(2).ms(2000).gateway_fin();
        let event = sim.expect(Cause::TcpConnectBacklogFull, Proof::Underdetermined);
        assert!(event.rivals.contains(&Cause::TcpMtuBlackhole));
    });
}

#[test]
fn a_repeated_syn_ack_alone_is_no_full_backlog() {
    // The acknowledgement of the handshake was lost, the request was not.
    both(|sim| {
        sim.pooled(1);
        sim.on(2).open().ms(1000).syn_ack_again().request().ms(3000);
        sim.gateway_fin();
        sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
    });
    // A copy of the first.
    both(|sim| {
        sim.pooled(1);
        sim.on(2).open().syn_ack_again().send(GET).ms(500);
        sim.request_again().ms(2000).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
    // A gateway that leaves at once.
    both(|sim| {
        sim.pooled(1);
        sim.on(2).open().ms(1000).syn_ack_again().send(GET).ms(50);
        sim.gateway_fin().expect_none();
    });
}

/// One connect gets no answer for three SYNs; another, established meanwhile, took so many SYNs.
fn silent_beside(sim: &mut Sim, syns: u32) {
    sim.on(1).syn();
    sim.on(2).syn();
    for _ in 1..syns {
        sim.ms(1000).syn_again();
    }
    sim.established().request().reply(OK);
    sim.on(1).ms(1000).syn_again().ms(2000).syn_again();
    sim.ms(1000).give_up();
}

#[test]
fn syns_that_are_dropped_now_and_then_are_a_full_backlog() {
    both(|sim| {
        silent_beside(sim, 2);
        let event = sim.expect(Cause::TcpConnectBacklogFull, Proof::Inferred);
        assert!(says(&event, "no answer of any kind"));
    });
}

#[test]
fn silence_beside_connects_without_trouble_leaves_rivals() {
    both(|sim| {
        silent_beside(sim, 1);
        let event = sim.expect(Cause::TcpConnectBlackholed, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpConnectBacklogFull]);
    });
    // A path that loses request bytes as well loses SYNs by itself.
    both(|sim| {
        sim.on(3).open().send(GET).ms(300).request_again();
        sim.ack().reply(OK);
        silent_beside(sim, 2);
        sim.on(1)
            .expect(Cause::TcpConnectBlackholed, Proof::Underdetermined);
    });
    // Nothing else works.
    both(|sim| {
        sim.on(1).syn().ms(1000).syn_again().ms(2000).syn_again();
        sim.give_up()
            .expect(Cause::TcpConnectBlackholed, Proof::Inferred);
    });
}

// A connect that is answered when the gateway has given up.

#[test]
fn a_syn_ack_for_a_socket_that_is_gone_is_late() {
    let mut sim = Sim::packets();
    sim.syn().ms(3000).syn_ack_reset(TcpFlags::RST);
    let event = sim.expect(Cause::TcpConnectLate, Proof::Proven);
    assert_eq!(event.phase, Phase::Connect);
    assert_eq!(event.recommended_status, Some(504));
    let mut sim = Sim::packets();
    sim.syn().ms(1000).syn_again().ms(2000);
    sim.syn_ack_reset(TcpFlags::RST);
    let event = sim.expect(Cause::TcpConnectLate, Proof::Proven);
    assert_eq!(event.connection.syn_retransmits, 1);
}

#[test]
fn the_kernel_tells_of_a_late_syn_ack() {
    let reset = |reason| Signal::ResetSent {
        by: Actor::Gateway,
        reason,
    };
    let no_socket = reset(Some(ResetReason::NoSocket));
    // Older kernels give no reason.
    for signal in [no_socket.clone(), reset(None)] {
        let mut sim = Sim::live("nginx");
        sim.syn().ms(3000).give_up().ms(500).signal(signal);
        let event = sim.expect(Cause::TcpConnectLate, Proof::Proven);
        assert!(says(&event, "3.50 s"), "{event:#?}");
    }
    // Or its segment is seen.
    let mut sim = Sim::live("nginx");
    sim.syn().ms(3000).give_up().ms(500);
    sim.syn_ack_reset(TcpFlags::RST);
    sim.expect(Cause::TcpConnectLate, Proof::Proven);
    // Later than that, the connect was told as unanswered: one event all the same.
    let mut sim = Sim::live("nginx");
    sim.syn()
        .ms(3000)
        .give_up()
        .ms(1500)
        .signal(no_socket.clone());
    sim.expect(Cause::TcpConnectBlackholed, Proof::Inferred);
    // A gateway that gives up at once lost its client.
    let mut sim = Sim::live("nginx");
    sim.syn().ms(50).give_up().signal(no_socket);
    sim.expect_none();
    assert_eq!(sim.engine.stats().connect_abandoned, 1);
}

#[test]
fn a_probe_that_resets_its_connection_is_not_late() {
    // A check that only wants to see whether the port is open: its kernel knows the socket.
    both(|sim| {
        sim.syn().ms(3000).established().gateway_rst().expect_none();
    });
    let mut sim = Sim::packets();
    sim.syn().ms(3000).syn_ack_reset(RST_ACK).expect_none();
    // A port scan: short.
    let mut sim = Sim::packets();
    sim.syn().ms(1).syn_ack_reset(TcpFlags::RST).expect_none();
    // A connection that was established, and whose gateway host forgot it.
    let mut sim = Sim::packets();
    sim.syn().ms(3000).established().ms(1);
    let seq = sim.next_seq(Direction::ToUpstream);
    sim.segment(Direction::ToUpstream, TcpFlags::RST, seq, &[], 0);
    sim.expect_none();
}

// A process that ended: several connections at once, and then nobody listens.

#[test]
fn connections_cut_at_once_and_a_refused_syn_are_a_process_that_died() {
    both(|sim| {
        for hop in 1..=3 {
            sim.pooled(hop);
        }
        sim.on(1).request();
        sim.on(2).request();
        sim.ms(100);
        sim.on(1).upstream_fin();
        sim.on(2).ms(2).upstream_rst();
        sim.on(3).upstream_fin();
        sim.on(4).ms(200).syn().refuse();
        let events = sim.events();
        let told: Vec<_> = events.iter().map(|event| event.cause).collect();
        assert_eq!(
            told,
            [
                Cause::TcpConnectRefused,
                Cause::UpstreamProcessDied,
                Cause::UpstreamProcessDied
            ],
            "{events:#?}"
        );
        assert!(says(&events[0], "closed 3 connections in one instant"));
        assert!(says(
            &events[1],
            "closed 3 connections in one instant and refused a SYN"
        ));
        assert!(says(&events[1], "acknowledged the request"));
        assert_eq!(events[1].proof, Proof::Inferred);
        assert_eq!(
            events[1].exchange.as_ref().unwrap().path.as_deref(),
            Some("/a")
        );
    });
}

#[test]
fn a_request_that_a_process_left_unread_when_it_died_is_its_victim() {
    let mut sim = Sim::live("nginx");
    for hop in 1..=3 {
        sim.pooled(hop);
    }
    sim.on(1).ms(100).request().ms(1).upstream_rst();
    sim.reason(ResetReason::AbortOnClose);
    sim.on(2).upstream_fin();
    sim.on(3).upstream_fin();
    sim.on(4).ms(200).syn().refuse();
    let told: Vec<_> = told(&mut sim).into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(told, [Cause::TcpConnectRefused, Cause::UpstreamProcessDied]);
}

#[test]
fn one_connection_cut_alone_is_its_own_failure() {
    both(|sim| {
        sim.pooled(1);
        sim.pooled(2).request().ms(100).upstream_fin();
        sim.on(3).ms(200).syn().refuse();
        let told = told(sim);
        assert!(
            told.contains(&(Cause::TcpClosedNoResponse, Proof::Inferred)),
            "{told:?}"
        );
        assert!(
            !told
                .iter()
                .any(|(cause, _)| *cause == Cause::UpstreamProcessDied)
        );
    });
}

#[test]
fn connections_cut_at_once_beside_new_ones_are_their_own_failures() {
    both(|sim| {
        sim.pooled(1).request();
        sim.pooled(2).request().ms(100).upstream_fin();
        sim.on(1).upstream_fin();
        sim.pooled(3).close_gateway_first();
        let cut = (Cause::TcpClosedNoResponse, Proof::Inferred);
        assert_eq!(told(sim), [cut, cut]);
    });
    // It takes connections again and refuses them later: another story.
    both(|sim| {
        sim.pooled(1).request();
        sim.pooled(2).request().ms(100).upstream_fin();
        sim.on(1).upstream_fin();
        sim.pooled(3).close_gateway_first();
        sim.on(4).ms(200).syn().refuse();
        let told = told(sim);
        assert_eq!(told[0], (Cause::TcpConnectRefused, Proof::Proven));
        assert_eq!(told[1].0, Cause::TcpClosedNoResponse);
    });
    // Idle connections that are closed together are healthy, and a refused SYN is just that.
    both(|sim| {
        sim.pooled(1);
        sim.pooled(2).ms(100).upstream_fin();
        sim.on(1).upstream_fin();
        sim.on(3).ms(200).syn().refuse();
        sim.expect(Cause::TcpConnectRefused, Proof::Proven);
    });
}

#[test]
fn a_cut_with_nothing_else_open_is_told_at_once() {
    let mut sim = Sim::packets();
    sim.open().request().ms(30).upstream_fin();
    assert_eq!(sim.engine.upstreams().values().next().unwrap().failures, 1);
}

#[test]
fn what_waits_is_told_when_its_hop_must_go() {
    let limits = Limits {
        hops: 2,
        ..Limits::default()
    };
    let mut sim = Sim::with(None, limits);
    sim.pooled(1);
    sim.pooled(2).request().ms(100).upstream_fin();
    sim.on(1).ack();
    sim.on(3).syn();
    sim.on(4).syn();
    let tally = sim.engine.upstreams();
    assert_eq!(tally.values().next().unwrap().failures, 1);
    sim.engine.finish(sim.now());
    assert_eq!(
        told(&mut sim),
        [(Cause::TcpClosedNoResponse, Proof::Inferred)]
    );
    // The end of the observation tells it as well.
    let mut sim = Sim::packets();
    sim.pooled(1);
    sim.pooled(2).request().ms(100).upstream_fin();
    sim.on(1);
    sim.engine.finish(sim.now());
    assert_eq!(
        told(&mut sim),
        [(Cause::TcpClosedNoResponse, Proof::Inferred)]
    );
}

#[test]
fn an_upstream_that_closes_behind_each_response_may_die_all_the_same() {
    both(|sim| {
        sim.on(5).open().request();
        sim.pooled(1).request();
        sim.pooled(2).request().ms(100);
        // What it does all the time, and a connect in between.
        sim.on(5).reply(OK).upstream_fin().gateway_fin();
        sim.on(6).ms(5).open();
        sim.on(1).ms(5).upstream_fin();
        sim.on(2).upstream_fin();
        sim.on(4).ms(200).syn().refuse();
        let events = sim.events();
        let died = |event: &&HopEvent| event.cause == Cause::UpstreamProcessDied;
        assert_eq!(events.iter().filter(died).count(), 2, "{events:#?}");
        let died = events.iter().find(died).unwrap();
        assert!(says(died, "closed 2 connections in one instant"));
    });
    // Closed behind its response is not closed together with one that is cut.
    both(|sim| {
        sim.on(5).open().request();
        sim.pooled(1).request().ms(100);
        sim.on(5).reply(OK).upstream_fin().gateway_fin();
        sim.on(1).upstream_fin();
        sim.on(4).ms(200).syn().refuse();
        let told = told(sim);
        assert!(
            told.contains(&(Cause::TcpClosedNoResponse, Proof::Inferred)),
            "{told:?}"
        );
    });
}

#[test]
fn verdicts_that_wait_are_on_the_books() {
    let mut sim = Sim::packets();
    sim.pooled(1);
    sim.pooled(2).request();
    let before = sim.engine.kept_bytes;
    sim.ms(100).upstream_fin();
    assert!(sim.engine.kept_bytes >= before + 4096);
    sim.ms(100);
    assert!(sim.engine.kept_bytes <= before);
    assert_eq!(
        told(&mut sim),
        [(Cause::TcpClosedNoResponse, Proof::Inferred)]
    );
}

// A planned stop: the listener is gone, the open connections go on.

#[test]
fn refused_beside_connections_that_end_in_order_is_draining() {
    both(|sim| {
        sim.pooled(1).ms(2000).request();
        sim.on(2).syn().refuse();
        sim.on(1).ms(100).reply(OK).upstream_fin().gateway_fin();
        sim.on(2);
        let event = sim.expect(Cause::UpstreamDraining, Proof::Inferred);
        assert_eq!(event.phase, Phase::Connect);
        assert!(says(&event, "answered the SYN"), "{event:#?}");
    });
}

#[test]
fn refused_beside_connections_that_go_on_leaves_rivals() {
    both(|sim| {
        sim.pooled(1).ms(2000).request();
        sim.on(2).syn().refuse();
        sim.on(1).ms(100).reply(OK).ms(100).request().reply(OK);
        sim.on(2);
        let event = sim.expect(Cause::UpstreamDraining, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpConnectRefused]);
    });
}

#[test]
fn refused_with_nothing_going_on_is_just_that() {
    // Nothing is open.
    both(|sim| {
        sim.pooled(1).upstream_fin().gateway_fin();
        sim.on(2)
            .ms(2000)
            .syn()
            .refuse()
            .expect(Cause::TcpConnectRefused, Proof::Proven);
    });
    // What is open is idle.
    both(|sim| {
        sim.pooled(1).ms(2000);
        sim.on(2).syn().refuse().ms(3000);
        sim.on(1).request().reply(OK);
        sim.on(2).expect(Cause::TcpConnectRefused, Proof::Proven);
    });
    // A restart: the next connect succeeds.
    both(|sim| {
        sim.pooled(1).ms(2000).request();
        sim.on(2).syn().refuse();
        sim.on(1).ms(100).reply(OK).upstream_fin().gateway_fin();
        sim.pooled(3);
        sim.on(2).expect(Cause::TcpConnectRefused, Proof::Proven);
    });
    // Of several hosts behind the address, another one had just taken a connection.
    both(|sim| {
        sim.pooled(1).ms(500).request();
        sim.on(2).syn().refuse();
        sim.on(1).ms(100).reply(OK);
        sim.on(2).expect(Cause::TcpConnectRefused, Proof::Proven);
    });
}

#[test]
fn cut_long_after_the_listener_went_is_the_end_of_the_grace() {
    both(|sim| {
        sim.pooled(1).request().ms(500);
        sim.on(2).syn().refuse().ms(5000);
        sim.on(1).upstream_rst();
        let events = sim.events();
        let told: Vec<_> = events.iter().map(|event| event.cause).collect();
        assert_eq!(told, [Cause::TcpConnectRefused, Cause::UpstreamDraining]);
        assert_eq!(events[1].proof, Proof::Inferred);
        assert!(says(&events[1], "refused every SYN for 5.00 s"));
    });
}

#[test]
fn cut_after_a_refusal_that_is_over_is_its_own_failure() {
    // The process was started again.
    both(|sim| {
        sim.pooled(1).ms(500).request();
        sim.on(2).syn().refuse().ms(2000);
        sim.pooled(3).ms(3000);
        sim.on(1).upstream_fin();
        let told = told(sim);
        assert_eq!(told[1], (Cause::TcpClosedNoResponse, Proof::Inferred));
    });
    // The connection is younger than the refusal.
    both(|sim| {
        sim.on(2).syn().refuse().ms(2000);
        sim.pooled(3).request().ms(3000).upstream_fin();
        let told = told(sim);
        assert_eq!(told[1], (Cause::TcpClosedNoResponse, Proof::Inferred));
    });
    // A crash right behind the refusal is no grace.
    both(|sim| {
        sim.pooled(1).ms(2000).request();
        sim.on(2).syn().refuse().ms(300);
        sim.on(1).upstream_fin();
        let told = told(sim);
        assert!(
            told.contains(&(Cause::TcpClosedNoResponse, Proof::Inferred)),
            "{told:?}"
        );
    });
}

#[test]
fn a_socket_that_connects_again_tells_what_waited_first() {
    let mut sim = Sim::live("nginx");
    sim.pooled(1).ms(2000);
    sim.on(2).syn().refuse().ms(300);
    sim.syn().refuse();
    let events = sim.events();
    assert_eq!(events.len(), 2, "{events:#?}");
    assert!(
        events
            .iter()
            .all(|event| event.cause == Cause::TcpConnectRefused)
    );
    assert!(events[0].connection.age_ms < events[1].connection.age_ms + 1.0);
}

// Bounds.

#[test]
fn floods_leave_the_tables_bounded() {
    let limits = Limits {
        upstreams: 100,
        hops: 1000,
        ..Limits::default()
    };
    let mut sim = Sim::with(None, limits);
    for number in 0..200_000_u32 {
        // To one upstream from many ports, and to many upstreams, silent or refused.
        let local = (0x0a01_0000 + (number >> 10), (number & 0x3ff) as u16 + 1024);
        let many = number & 1 == 1;
        let host = if many {
            0x0b00_0000 + number
        } else {
            0x0b00_0000
        };
        let ends = |(host, port): (u32, u16)| (core::net::Ipv4Addr::from_bits(host), port).into();
        let mut segment = Segment {
            direction: Direction::ToUpstream,
            local: ends(local),
            upstream: ends((host, if many { number as u16 } else { 80 })),
            seq: 1,
            ack: 0,
            flags: TcpFlags::SYN,
            window: 500,
            payload: &[],
            wire_len: 0,
            ttl: 64,
            ip_id: None,
            records: RecordHeads::NONE,
            packet: &[],
        };
        let hop = HopId(1_000_000 + u64::from(number));
        sim.input(Input::Segment { hop, segment });
        segment.direction = Direction::FromUpstream;
        segment.flags = match number & 6 {
            0 => RST_ACK,
            2 => TcpFlags(0x12),
            _ => continue,
        };
        (segment.seq, segment.ack) = (1, 2);
        sim.input(Input::Segment { hop, segment });
    }
    let sizes = sim.engine.peers.sizes();
    assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
    assert!(sim.engine.open_hops() <= 1000);
    let [ends, places, deadlines] = sim.engine.remembered();
    assert!(ends <= 1000 && places <= 2001, "{ends} {places}");
    assert!(deadlines <= 4000, "{deadlines}");
    let stats = sim.engine.stats();
    assert_eq!(stats.hops, 200_000);
    assert!(stats.upstreams_dropped >= 99_900, "{stats:?}");
    assert!(stats.hops_evicted >= 199_000 - 50_000, "{stats:?}");
}

#[test]
fn another_network_namespace_is_another_upstream() {
    // Refused in one namespace, cut in another.
    let mut sim = Sim::live("nginx");
    sim.netns = 1;
    sim.pooled(1).request();
    sim.pooled(2).request();
    sim.netns = 2;
    sim.ms(100).on(1).upstream_fin();
    sim.on(2).upstream_fin();
    sim.on(3).syn().refuse();
    let told = told(&mut sim);
    assert!(
        !told
            .iter()
            .any(|(cause, _)| *cause == Cause::UpstreamProcessDied),
        "{told:?}"
    );
}
