//! Connects that fail, and what must not be taken for one.

use super::Golden;
use super::scenario::{GET, OK, scenario};

pub(crate) fn goldens() -> Vec<Golden> {
    vec![
        (
            "connect/refused",
            "Nothing listens on the port: the upstream's kernel answers the SYN with a reset.",
            scenario(|hop| {
                hop.syn().refuse();
            }),
        ),
        (
            "connect/refused_ipv6",
            "The same over IPv6.",
            scenario(|hop| {
                hop.ipv6 = true;
                hop.syn().refuse();
            }),
        ),
        (
            "connect/refused_once_of_two",
            "One connect is refused, the next succeeds: one failure.",
            scenario(|hop| {
                hop.syn().refuse().next_hop().ms(500);
                hop.open().request().reply(OK).close();
            }),
        ),
        (
            "connect/blackholed",
            "SYNs leave at 0, 1 and 3 s and nothing at all comes back.",
            scenario(|hop| {
                hop.syn().ms(1000).syn().ms(2000).syn();
            }),
        ),
        (
            "connect/blackholed_beside_a_live_one",
            "The same while another connection to that port works: perhaps a full accept queue.",
            scenario(|hop| {
                hop.open().request().reply(OK).close().next_hop();
                hop.syn().ms(1000).syn().ms(2000).syn();
            }),
        ),
        (
            "connect/one_syn_at_the_end",
            "The capture ends behind a single SYN: not yet a failure.",
            scenario(|hop| {
                hop.syn();
            }),
        ),
        (
            "connect/late_syn_ack",
            "The second SYN is answered: slow, and no failure.",
            scenario(|hop| {
                hop.syn().ms(1000).syn().established();
                hop.request().reply(OK).close();
            }),
        ),
        (
            "connect/no_neighbour",
            "The gateway's own host says that the upstream is unreachable: nobody answered its ARP.",
            scenario(|hop| {
                hop.syn().ms(3000).unreachable(1, 1);
            }),
        ),
        (
            "connect/host_unreachable",
            "A router says so.",
            scenario(|hop| {
                hop.syn().unreachable(254, 1);
            }),
        ),
        (
            "connect/rejected_by_filter",
            "A firewall says that it is prohibited.",
            scenario(|hop| {
                hop.syn().unreachable(254, 13);
            }),
        ),
        (
            "connect/rejected_as_port_unreachable",
            "\"Port unreachable\" for TCP comes from a packet filter, not from a closed port.",
            scenario(|hop| {
                hop.syn().unreachable(2, 3);
            }),
        ),
        (
            "connect/rejected_by_filter_ipv6",
            "ICMPv6 says that it is prohibited.",
            scenario(|hop| {
                hop.ipv6 = true;
                hop.syn().unreachable(254, 1);
            }),
        ),
        (
            "connect/unreachable_then_silence",
            "The first SYN draws an ICMP error, the second draws nothing: routers limit their rate.",
            scenario(|hop| {
                hop.syn().unreachable(254, 1).ms(1000).syn();
            }),
        ),
        (
            "connect/unreachable_then_established",
            "The first SYN draws an ICMP error, the second is answered: no failure.",
            scenario(|hop| {
                hop.syn().unreachable(254, 1).ms(1000).syn().established();
                hop.send(GET).upstream_acks().reply(OK).close();
            }),
        ),
    ]
}
