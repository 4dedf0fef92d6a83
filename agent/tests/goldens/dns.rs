//! Names that give no address, names of upstreams, and what must not be taken for a failure.

use super::Golden;
use super::scenario::{From, OK, Scenario, scenario};

const A: u16 = 1;
const AAAA: u16 = 28;

/// Response codes.
const NOERROR: u8 = 0;
const FORMERR: u8 = 1;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

/// The gateway's port towards its resolver.
const PORT: u16 = 45_000;

pub(crate) fn goldens() -> Vec<Golden> {
    vec![
        (
            "dns/nxdomain",
            "The name does not exist: both families are asked, one resolution fails.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A)
                    .look_up(2, "app.example", AAAA);
                hop.resolved(1, "app.example", A, NXDOMAIN, &[]);
                hop.resolved(2, "app.example", AAAA, NXDOMAIN, &[]);
                hop.ms(2000).open().request().reply(OK).close();
            }),
        ),
        (
            "dns/nodata",
            "The name exists and has an address of neither family.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A)
                    .look_up(2, "app.example", AAAA);
                hop.resolved(1, "app.example", A, NOERROR, &[]);
                hop.resolved(2, "app.example", AAAA, NOERROR, &[]);
            }),
        ),
        (
            "dns/servfail",
            "The resolver could not get an answer and says why (RFC 8914).",
            scenario(|hop| {
                let why = b"\0\0\x29\x04\xd0\0\0\0\0\0\x0d\0\x0f\0\x09\0\x07expired";
                hop.look_up(1, "app.example", A);
                let mut bytes = reply(1, "app.example", A, SERVFAIL, &[]);
                bytes[11] = 1;
                bytes.extend(why);
                hop.datagram(From::Upstream, PORT, &bytes);
            }),
        ),
        (
            "dns/refused",
            "The resolver will not answer this client.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A);
                hop.resolved(1, "app.example", A, REFUSED, &[]);
            }),
        ),
        (
            "dns/timeout",
            "Three queries under one id and nothing comes back: one resolution.",
            scenario(|hop| {
                for _ in 0..3 {
                    hop.look_up(1, "app.example", A).ms(5000);
                }
                hop.open().request().reply(OK).close();
            }),
        ),
        (
            "dns/wrong_id",
            "The answer carries another id than the query, so that the gateway leaves it.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A);
                hop.resolved(9, "app.example", A, NOERROR, &[9]);
                hop.ms(5000).look_up(1, "app.example", A);
                hop.resolved(9, "app.example", A, NOERROR, &[9]);
            }),
        ),
        (
            "dns/formerr",
            "The resolver cannot read the query; its answer is a bare header.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A);
                let header = [0, 1, 0x81, 0x80 | FORMERR, 0, 0, 0, 0, 0, 0, 0, 0];
                hop.datagram(From::Upstream, PORT, &header);
                hop.ms(5000).look_up(1, "app.example", A);
                hop.datagram(From::Upstream, PORT, &header);
            }),
        ),
        (
            "dns/truncated_without_tcp",
            "The answer does not fit, and the resolver does not take TCP.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A).truncated(1);
                hop.resolver_segment(From::Gateway, 50_000, 0x02, 1, &[]);
                hop.resolver_segment(From::Upstream, 50_000, 0x14, 0, &[]);
                hop.ms(7000).open().request().reply(OK).close();
            }),
        ),
        (
            "dns/truncated_then_tcp",
            "The answer does not fit and is asked for over TCP: no failure. The hop has the name.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A).truncated(1);
                let port = 50_000;
                hop.resolver_segment(From::Gateway, port, 0x02, 1, &[]);
                hop.resolver_segment(From::Upstream, port, 0x12, 9, &[]);
                let query = prefixed(&query(1, "app.example", A));
                hop.resolver_segment(From::Gateway, port, 0x18, 2, &query);
                let reply = prefixed(&reply(1, "app.example", A, NOERROR, &[2]));
                let (first, rest) = reply.split_at(5);
                hop.resolver_segment(From::Upstream, port, 0x18, 10, first);
                hop.resolver_segment(From::Upstream, port, 0x18, 15, rest);
                hop.syn().refuse();
            }),
        ),
        (
            "dns/search_domains",
            "Two search domains have no such name, the name itself has: no failure.",
            scenario(|hop| {
                for (id, name) in [(1, "app.web.local"), (2, "app.local")] {
                    hop.look_up(id, name, A).look_up(id + 10, name, AAAA);
                    hop.resolved(id, name, A, NXDOMAIN, &[]);
                    hop.resolved(id + 10, name, AAAA, NXDOMAIN, &[]);
                }
                hop.look_up(3, "app", A)
                    .resolved(3, "app", A, NOERROR, &[2]);
                hop.open().request().reply(OK).close();
            }),
        ),
        (
            "dns/search_domains_fail",
            "A name that exists nowhere, tried with two search domains: one failure.",
            scenario(|hop| {
                for (id, name) in [(1, "app.web.local"), (2, "app.local"), (3, "app")] {
                    hop.look_up(id, name, A);
                    hop.resolved(id, name, A, NXDOMAIN, &[]);
                }
            }),
        ),
        (
            "dns/one_family",
            "No IPv6 address, but one of IPv4: no failure.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A)
                    .look_up(2, "app.example", AAAA);
                hop.resolved(2, "app.example", AAAA, NOERROR, &[]);
                hop.resolved(1, "app.example", A, NOERROR, &[2]);
                hop.open().request().reply(OK).close();
            }),
        ),
        (
            "dns/named_upstream",
            "A connect that is refused carries the name that the address was had from.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A);
                hop.resolved(1, "app.example", A, NOERROR, &[2, 3]);
                hop.syn().refuse();
            }),
        ),
        (
            "dns/stale_address",
            "The name moves to another host. The gateway goes on with the old address, which refuses.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A);
                hop.resolved(1, "app.example", A, NOERROR, &[2]);
                hop.open().request().reply(OK).close();
                hop.ms(120_000).look_up(2, "app.example", A);
                hop.resolved(2, "app.example", A, NOERROR, &[3]);
                hop.ms(60_000).next_hop().syn().refuse();
            }),
        ),
        (
            "dns/refused_after_a_move_within_the_ttl",
            "The same within the time for which the first answer holds: the gateway may not know yet.",
            scenario(|hop| {
                hop.look_up(1, "app.example", A);
                hop.resolved(1, "app.example", A, NOERROR, &[2]);
                hop.ms(5_000).look_up(2, "app.example", A);
                hop.resolved(2, "app.example", A, NOERROR, &[3]);
                hop.ms(5_000).syn().refuse();
            }),
        ),
        (
            "dns/captured_short",
            "The capture cut the answer off before its records: nobody knows, so nothing is told.",
            scenario(|hop| {
                hop.snap = 80;
                hop.look_up(1, "app.example", A);
                hop.resolved(1, "app.example", A, NOERROR, &[2]);
                hop.snap = usize::MAX;
                hop.ms(9000).joined().request().reply(OK).close();
            }),
        ),
    ]
}

impl Scenario {
    fn look_up(&mut self, id: u16, name: &str, kind: u16) -> &mut Self {
        self.datagram(From::Gateway, PORT, &query(id, name, kind))
    }

    /// An answer with the addresses of these hosts of the network.
    fn resolved(&mut self, id: u16, name: &str, kind: u16, code: u8, hosts: &[u8]) -> &mut Self {
        self.datagram(From::Upstream, PORT, &reply(id, name, kind, code, hosts))
    }

    fn truncated(&mut self, id: u16) -> &mut Self {
        let mut bytes = reply(id, "app.example", A, NOERROR, &[]);
        bytes[2] |= 0x02;
        self.datagram(From::Upstream, PORT, &bytes)
    }
}

fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

fn reply(id: u16, name: &str, kind: u16, code: u8, hosts: &[u8]) -> Vec<u8> {
    let mut bytes = query(id, name, kind);
    bytes[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    bytes[7] = u8::try_from(hosts.len()).unwrap();
    for host in hosts {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, *host]);
    }
    bytes
}

/// A message as TCP carries it.
fn prefixed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&length[..], message].concat()
}
