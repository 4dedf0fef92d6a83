//! Roles, port reuse and bounds, with one packet after the other.

use super::*;
use crate::source::table::GENERATION;

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.2:8080";

/// What reached the engine: the time, the hop, the direction and the payload.
type Seen = Vec<(u64, u64, Direction, Vec<u8>)>;

struct Table {
    hops: Hops,
    clock: u64,
}

impl Table {
    fn new(options: Options) -> Self {
        Self {
            hops: Hops::new(options),
            clock: 0,
        }
    }

    fn send(&mut self, src: &str, dst: &str, flags: u8, seq: u32, payload: &[u8]) -> Seen {
        self.clock += 1;
        let tcp = TcpPacket {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            seq,
            ack: 101,
            flags: TcpFlags(flags),
            window: 1000,
            payload,
            wire_len: u32::try_from(payload.len()).unwrap(),
            ttl: 64,
            ip_id: None,
        };
        let mut seen = Seen::new();
        let at = Timestamp::from_nanos(self.clock);
        let mut sink = |at: Timestamp, hop: HopId, segment: &Segment<'_>| {
            let payload = segment.payload.to_vec();
            seen.push((at.as_nanos(), hop.0, segment.direction, payload));
        };
        match self.hops.route(at, &tcp) {
            Route::Hop(hop, direction) => sink(at, hop, &tcp.segment(direction)),
            Route::Nowhere => {}
            Route::Open(open) => self.hops.settle(open, at, &tcp, &mut sink),
        }
        seen
    }

    fn finish(&mut self) -> Seen {
        let mut seen = Seen::new();
        self.hops.finish(&mut |at, hop, segment| {
            let payload = segment.payload.to_vec();
            seen.push((at.as_nanos(), hop.0, segment.direction, payload));
        });
        seen
    }
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 4;

#[test]
fn the_sender_of_the_syn_is_the_gateway() {
    let mut table = Table::new(Options::default());
    // Ports that say the opposite.
    let (client, server) = ("10.0.0.1:80", "10.0.0.2:50000");
    assert_eq!(
        table.send(client, server, SYN, 100, b""),
        [(1, 1, Direction::ToUpstream, vec![])]
    );
    assert_eq!(
        table.send(server, client, SYN_ACK, 500, b""),
        [(2, 1, Direction::FromUpstream, vec![])]
    );
    // A SYN sent again is the same hop, a payload that looks like a request changes nothing.
    assert_eq!(table.send(client, server, SYN, 100, b"")[0].1, 1);
    let seen = table.send(server, client, ACK, 501, b"GET / HTTP/1.1\r\n");
    assert_eq!((seen[0].1, seen[0].2), (1, Direction::FromUpstream));
}

#[test]
fn the_receiver_of_a_syn_ack_is_the_gateway() {
    let mut table = Table::new(Options::default());
    let (client, server) = ("10.0.0.1:80", "10.0.0.2:50000");
    let seen = table.send(server, client, SYN_ACK, 500, b"");
    assert_eq!((seen[0].1, seen[0].2), (1, Direction::FromUpstream));
    // The SYN that it answers was captured late: the same hop.
    assert_eq!(table.send(client, server, SYN, 100, b"")[0].1, 1);
    assert_eq!(table.hops.counters().guessed, 0);
}

#[test]
fn a_port_used_again_is_a_new_hop() {
    let mut table = Table::new(Options::default());
    table.send(CLIENT, SERVER, SYN, 100, b"");
    table.send(SERVER, CLIENT, RST, 0, b"");
    assert_eq!(table.send(CLIENT, SERVER, SYN, 900, b"")[0].1, 2);
    assert_eq!(table.send(SERVER, CLIENT, SYN_ACK, 7, b"")[0].1, 2);
    // The other way round: after the end the old upstream connects.
    table.send(CLIENT, SERVER, FIN_ACK, 901, b"");
    table.send(SERVER, CLIENT, FIN_ACK, 8, b"");
    let seen = table.send(SERVER, CLIENT, SYN, 77, b"");
    assert_eq!((seen[0].1, seen[0].2), (3, Direction::ToUpstream));
    assert_eq!(table.hops.tallies().len(), 2);
}

#[test]
fn acknowledgements_after_the_end_are_left_out() {
    let mut table = Table::new(Options::default());
    table.send(CLIENT, SERVER, SYN, 100, b"");
    table.send(SERVER, CLIENT, FIN_ACK, 7, b"");
    assert_eq!(table.send(CLIENT, SERVER, ACK, 101, b"").len(), 1);
    assert_eq!(table.send(CLIENT, SERVER, FIN_ACK, 101, b"").len(), 1);
    assert_eq!(table.send(SERVER, CLIENT, ACK, 8, b""), []);
    // Captured out of order, this may still matter.
    assert_eq!(table.send(SERVER, CLIENT, ACK, 5, b"xy").len(), 1);
    assert_eq!(table.send(SERVER, CLIENT, RST, 8, b"").len(), 1);
}

#[test]
fn payload_tells_where_no_syn_does() {
    for (request, expected) in [
        (true, Direction::ToUpstream),
        (false, Direction::FromUpstream),
    ] {
        let mut table = Table::new(Options::default());
        let (a, b) = ("10.0.0.1:40000", "10.0.0.2:41000");
        assert_eq!(table.send(b, a, ACK, 1, b"body"), []);
        assert_eq!(table.send(a, b, ACK, 1, b""), []);
        let payload: &[u8] = if request {
            b"GET / HTTP/1.1"
        } else {
            b"HTTP/1.1 200 OK"
        };
        let seen = table.send(a, b, ACK, 1, payload);
        let first = (1, 1, expected.reverse(), b"body".to_vec());
        let second = (2, 1, expected, vec![]);
        assert_eq!(seen, [first, second, (3, 1, expected, payload.to_vec())]);
        assert_eq!(table.hops.counters().guessed, 0);
        assert_eq!(table.finish(), []);
    }
}

#[test]
fn a_wrong_guess_is_corrected_once() {
    let mut table = Table::new(Options::default());
    let (gateway, upstream) = ("10.0.0.1:8000", "10.0.0.2:50000");
    let seen = table.send(upstream, gateway, ACK, 1, b"body");
    assert_eq!((seen[0].1, seen[0].2), (1, Direction::ToUpstream));
    let seen = table.send(gateway, upstream, ACK, 1, b"GET / HTTP/1.1\r\n");
    assert_eq!((seen[0].1, seen[0].2), (2, Direction::ToUpstream));
    let seen = table.send(upstream, gateway, ACK, 5, b"POST / HTTP/1.1\r\n");
    assert_eq!((seen[0].1, seen[0].2), (2, Direction::FromUpstream));
    let counters = table.hops.counters();
    assert_eq!(
        (counters.hops, counters.guessed, counters.corrected),
        (2, 1, 1)
    );
}

#[test]
fn an_upstream_seen_before_is_known_again() {
    let mut table = Table::new(Options::default());
    table.send("10.0.0.1:40000", "10.0.0.2:45000", SYN, 1, b"");
    let seen = table.send("10.0.0.2:45000", "10.0.0.1:40001", ACK, 1, b"body");
    assert_eq!((seen[0].1, seen[0].2), (2, Direction::FromUpstream));
}

#[test]
fn what_waits_is_bounded_and_let_go_in_order() {
    let mut table = Table::new(Options::default());
    let (a, b) = ("10.0.0.1:41000", "10.0.0.2:40000");
    for _ in 0..MAX_HELD_SEGMENTS {
        assert_eq!(table.send(a, b, ACK, 1, b"x"), []);
    }
    let seen = table.send(a, b, ACK, 1, b"x");
    assert_eq!(seen.len(), MAX_HELD_SEGMENTS + 1);
    assert!(seen.iter().all(|seen| seen.2 == Direction::ToUpstream));

    let big = vec![0; MAX_HELD_BYTES + 1];
    assert_eq!(
        table
            .send("10.0.0.1:41001", "10.0.0.2:40002", ACK, 1, &big)
            .len(),
        1
    );

    for port in 0..MAX_WAITING {
        let a = format!("10.0.1.1:{}", 33_000 + port);
        assert_eq!(table.send(&a, "10.0.1.2:60000", ACK, 1, b"x"), []);
    }
    assert_eq!(
        table
            .send("10.0.1.1:32900", "10.0.1.2:60000", ACK, 1, b"x")
            .len(),
        1
    );
    let rest = table.finish();
    assert_eq!(rest.len(), MAX_WAITING);
    assert!(rest.is_sorted_by_key(|seen| (seen.0, seen.1)));
}

#[test]
fn a_syn_after_leftovers_is_a_hop_of_its_own() {
    let mut table = Table::new(Options::default());
    let (a, b) = ("10.0.0.1:40000", "10.0.0.2:41000");
    assert_eq!(table.send(b, a, FIN_ACK, 1, b""), []);
    let hops: Vec<_> = table
        .send(a, b, SYN, 9, b"")
        .iter()
        .map(|seen| seen.1)
        .collect();
    assert_eq!(hops, [1, 2]);
}

#[test]
fn options_narrow_and_tell_the_gateway() {
    let only_gateway = Options {
        gateways: vec!["10.0.0.1".parse().unwrap()],
        upstreams: vec![],
    };
    let mut table = Table::new(only_gateway);
    // The client's connection to the gateway is no hop to an upstream.
    assert_eq!(table.send("10.9.9.9:50000", "10.0.0.1:80", SYN, 1, b""), []);
    assert_eq!(table.send(CLIENT, SERVER, SYN, 1, b"").len(), 1);
    let seen = table.send("10.0.0.2:45000", "10.0.0.1:44000", ACK, 1, b"x");
    assert_eq!((seen[0].1, seen[0].2), (2, Direction::FromUpstream));
    assert_eq!(table.hops.counters().filtered, 1);

    let only_upstream = Options {
        gateways: vec![],
        upstreams: vec!["10.0.0.0/24:8080".parse().unwrap()],
    };
    let mut table = Table::new(only_upstream);
    assert_eq!(table.send(CLIENT, "10.0.0.2:8081", SYN, 1, b""), []);
    assert_eq!(table.send(CLIENT, SERVER, SYN, 1, b"").len(), 1);
    assert_eq!(table.hops.counters().hops, 1);
}

#[test]
fn quotes_count_only_from_the_gateway() {
    let mut table = Table::new(Options::default());
    table.send(CLIENT, SERVER, SYN, 1, b"");
    let (client, server) = (CLIENT.parse().unwrap(), SERVER.parse().unwrap());
    assert!(table.hops.is_from_gateway(client, server));
    assert!(!table.hops.is_from_gateway(server, client));
    let unknown = "10.3.3.3:55555".parse().unwrap();
    assert!(table.hops.is_from_gateway(unknown, server));
    assert!(!table.hops.is_from_gateway(server, unknown));
}

#[test]
fn the_table_is_bounded() {
    let mut table = Table::new(Options::default());
    for number in 0..5 * GENERATION {
        let client = SocketAddr::from(([10, 1, 0, 1], u16::try_from(number % 60_000).unwrap()));
        let server = SocketAddr::from(([10, 2, 0, 1 + u8::try_from(number / 60_000).unwrap()], 80));
        table.send(&client.to_string(), &server.to_string(), SYN, 1, b"");
        // This one is in use all the time.
        table.send(CLIENT, SERVER, if number == 0 { SYN } else { ACK }, 1, b"");
    }
    assert!(table.hops.connections.iter().count() <= 2 * GENERATION);
    assert!(table.hops.counters().evicted >= 2 * GENERATION as u64);
    assert_eq!(table.send(SERVER, CLIENT, SYN_ACK, 1, b"")[0].1, 2);
}
