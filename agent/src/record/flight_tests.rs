use super::*;
use crate::model::IcmpKind;
use crate::record::testing::{FROM, HOP, TO, at, packet, segment};

const DATA: TcpFlags = TcpFlags::PSH.union(TcpFlags::ACK);

fn see(flight: &mut Flight, hop: HopId, millis: u64, to: bool, flags: TcpFlags, payload: &[u8]) {
    let direction = if to { TO } else { FROM };
    let bytes = packet(direction, 1, flags, payload);
    let segment = segment(&bytes, direction);
    flight.see(at(millis), &Input::Segment { hop, segment });
    assert_eq!(
        flight.bytes,
        flight.hops.values().map(|hop| hop.memory()).sum::<usize>()
    );
}

fn exchange(flight: &mut Flight, millis: u64, name: &str) {
    see(
        flight,
        HOP,
        millis,
        true,
        DATA,
        format!("GET /{name}").as_bytes(),
    );
    see(
        flight,
        HOP,
        millis + 1,
        false,
        DATA,
        format!("200 {name}").as_bytes(),
    );
}

fn payloads(flight: &Flight) -> Vec<String> {
    let packets = flight.packets(HOP);
    packets
        .iter()
        .map(|packet| String::from_utf8_lossy(&packet.bytes[40..]).into_owned())
        .collect()
}

#[test]
fn the_handshake_and_two_exchanges_are_kept() {
    let mut flight = Flight::new(RecordLimits::default());
    see(&mut flight, HOP, 0, true, TcpFlags::SYN, b"");
    see(
        &mut flight,
        HOP,
        1,
        false,
        TcpFlags::SYN.union(TcpFlags::ACK),
        b"",
    );
    for n in 0..5 {
        exchange(&mut flight, 10 * (n + 1), &n.to_string());
    }
    see(&mut flight, HOP, 70, false, TcpFlags::FIN, b"");
    let all = payloads(&flight);
    assert_eq!(all, ["", "", "GET /3", "200 3", "GET /4", "200 4", ""]);
    let packets = flight.packets(HOP);
    assert_eq!(packets[0].at, at(0));
    assert_eq!(packets[2].bytes, packet(TO, 1, DATA, b"GET /3"));
    assert_eq!(packets[2].wire_len, 46);
}

#[test]
fn a_pipelined_request_begins_no_exchange() {
    let mut flight = Flight::new(RecordLimits::default());
    for n in 0..3 {
        see(&mut flight, HOP, n, true, DATA, b"GET /");
    }
    see(&mut flight, HOP, 5, false, DATA, b"200");
    assert_eq!(payloads(&flight).len(), 4);
}

#[test]
fn a_long_exchange_keeps_its_beginning_and_its_end() {
    let limits = RecordLimits::default();
    let mut flight = Flight::new(limits);
    see(&mut flight, HOP, 0, true, DATA, b"GET /");
    for n in 0..1000u64 {
        see(&mut flight, HOP, n + 1, false, DATA, &[b'a'; 1448]);
    }
    see(&mut flight, HOP, 2000, false, TcpFlags::RST, b"");
    let packets = flight.packets(HOP);
    let bytes: usize = packets.iter().map(|packet| packet.bytes.len()).sum();
    assert!(bytes <= limits.hop_bytes);
    assert_eq!(packets[0].bytes.len(), 45);
    assert_eq!(packets[1].bytes.len(), 1488);
    let last = &packets[packets.len() - 2];
    assert_eq!(
        (last.bytes.len(), last.wire_len, last.at),
        (40, 1488, at(1000))
    );
    assert_eq!(packets.last().unwrap().at, at(2000));
    assert!(
        flight
            .counters()
            .contains(&("flight_packets_shortened", 992))
    );
}

#[test]
fn large_payload_is_snapped() {
    let mut flight = Flight::new(RecordLimits {
        packet_bytes: 10,
        ..RecordLimits::default()
    });
    see(&mut flight, HOP, 0, true, DATA, b"GET /longer than ten");
    let packets = flight.packets(HOP);
    assert_eq!((packets[0].bytes.len(), packets[0].wire_len), (50, 60));
}

#[test]
fn a_long_head_is_kept_whole_and_the_body_behind_it_is_not() {
    let mut head = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
    head.resize(9996, b'a');
    head.extend(b"\r\n\r\n");
    let body = [b'b'; 5000];
    let whole = [&head[..], &body].concat();
    // In one segment, and cut anywhere in its last lines.
    for cut in [0, 3000, 9996, 9997, 9998, 9999] {
        let mut flight = Flight::new(RecordLimits::default());
        see(&mut flight, HOP, 0, true, DATA, b"GET / HTTP/1.1\r\n\r\n");
        let (first, second) = whole.split_at(cut);
        for part in [first, second] {
            if !part.is_empty() {
                see(&mut flight, HOP, 1, false, DATA, part);
            }
        }
        let kept = payloads(&flight)[1..].concat();
        assert!(kept.as_bytes().starts_with(&head), "cut at {cut}");
        let most = head.len() + RecordLimits::default().packet_bytes;
        assert!(kept.len() <= most, "cut at {cut}");
        // The next exchanges take its place.
        for n in 0..3 {
            exchange(&mut flight, 10 * (n + 1), &n.to_string());
        }
        assert_eq!(flight.hops[&HOP].more, 0);
    }
}

#[test]
fn heads_have_a_cap() {
    let limits = RecordLimits::default();
    let mut flight = Flight::new(limits);
    let mut part = b"HTTP/1.1 200 OK\r\n".to_vec();
    part.resize(30_000, b'a');
    for n in 0..20 {
        see(&mut flight, HOP, n, false, DATA, &part);
        let kept = &flight.hops[&HOP];
        assert!(kept.more <= limits.head_bytes);
        assert!(kept.bytes.len() <= limits.hop_bytes + limits.head_bytes);
    }
    // What they took is given back.
    for n in 20..23 {
        exchange(&mut flight, 10 * n, "short");
    }
    let kept = &flight.hops[&HOP];
    assert_eq!(kept.more, 0);
    assert!(kept.bytes.capacity() <= kept.bytes.len() + SPARE);
}

#[test]
fn the_total_is_kept_by_giving_up_the_most_silent() {
    let limits = RecordLimits {
        total_bytes: 256 * 1024,
        ..RecordLimits::default()
    };
    let mut flight = Flight::new(limits);
    for n in 0..1000 {
        see(&mut flight, HopId(n), n, true, DATA, &[b'x'; 900]);
        // One hop is never silent for long.
        see(&mut flight, HOP, n, true, DATA, b"y");
        assert!(flight.bytes <= limits.total_bytes);
        assert!(flight.eviction.len() <= 64 + 2 * flight.hops.len() + 1);
    }
    let held = flight.hops.len() as u64;
    assert!(held > 20);
    assert_eq!(flight.evicted + held, 1000);
    assert!(!flight.packets(HOP).is_empty());
    assert!(!flight.packets(HopId(999)).is_empty());
    assert!(flight.packets(HopId(0)).is_empty());
}

#[test]
fn a_hop_of_any_packets_stays_within_its_bytes() {
    let limits = RecordLimits {
        hop_bytes: 500,
        ..RecordLimits::default()
    };
    let mut flight = Flight::new(limits);
    for n in 0..2000u64 {
        let length = (n * 7919 % 600) as usize;
        see(&mut flight, HOP, n, n % 3 == 0, DATA, &vec![b'x'; length]);
        let kept = &flight.hops[&HOP];
        assert!(kept.bytes.len() <= 500);
        let lengths: usize = kept.kept.iter().map(|kept| kept.len as usize).sum();
        assert_eq!(lengths, kept.bytes.len());
    }
}

#[test]
fn closed_hops_are_forgotten_a_moment_later() {
    let mut flight = Flight::new(RecordLimits::default());
    exchange(&mut flight, 0, "a");
    see(&mut flight, HOP, 5, false, TcpFlags::FIN, b"");
    // A gateway may use for hours what its upstream has closed.
    let over = |_| true;
    flight.tick(at(10_000_000), over);
    see(&mut flight, HOP, 10_000_000, true, TcpFlags::FIN, b"");
    flight.tick(at(10_000_199), over);
    assert_eq!(flight.packets(HOP).len(), 4);
    flight.tick(at(10_000_200), over);
    assert_eq!((flight.packets(HOP).len(), flight.bytes), (0, 0));
}

#[test]
fn what_is_inside_tls_is_kept_beside_its_records() {
    let mut flight = Flight::new(RecordLimits::default());
    let text = Plaintext {
        direction: TO,
        offset: 5,
        payload: b"GET / HTTP/1.1\r\n",
        len: 400,
    };
    let input = Input::Plaintext { hop: HOP, text };
    // Of a hop that is not known, it is not known whose it is.
    flight.see(at(0), &input);
    assert!(flight.packets(HOP).is_empty());
    see(&mut flight, HOP, 1, true, DATA, b"\x17\x03\x03");
    flight.see(at(2), &input);
    let packets = flight.packets(HOP);
    assert_eq!(packets.len(), 2);
    let kept = &packets[1];
    let read = pdu::parse(&kept.bytes, kept.wire_len).unwrap();
    assert_eq!(
        (read.offset, read.payload, read.len),
        (5, text.payload, 400)
    );
    assert_eq!(read.src.to_string(), "10.0.0.1:40000");
    assert_eq!(read.dst.to_string(), "10.0.0.2:8080");
}

#[test]
fn closed_hops_that_may_be_judged_are_kept_longer() {
    let mut flight = Flight::new(RecordLimits::default());
    exchange(&mut flight, 0, "a");
    see(&mut flight, HOP, 10, false, TcpFlags::RST, b"");
    flight.tick(at(210), |_| false);
    see(&mut flight, HOP, 300, true, TcpFlags::RST, b"");
    flight.tick(at(2010), |_| false);
    assert_eq!(flight.packets(HOP).len(), 4);
    flight.tick(at(2300), |_| false);
    assert_eq!((flight.packets(HOP).len(), flight.bytes), (0, 0));
}

#[test]
fn a_clock_that_is_set_back_keeps_nothing_for_longer() {
    let mut flight = Flight::new(RecordLimits::default());
    for (hop, is_over) in [(HopId(1), true), (HopId(2), false)] {
        see(&mut flight, hop, 3_600_000, false, TcpFlags::RST, b"");
        flight.tick(at(3_600_300), |_| is_over);
    }
    see(&mut flight, HopId(3), 3_600_400, false, TcpFlags::RST, b"");
    see(&mut flight, HOP, 10, false, TcpFlags::RST, b"");
    flight.tick(at(20), |_| true);
    assert_eq!(flight.hops.keys().copied().collect::<Vec<_>>(), [HOP]);
    flight.tick(at(210), |_| true);
    assert_eq!((flight.hops.len(), flight.bytes), (0, 0));
}

#[test]
fn what_is_held_outlasts_other_exchanges() {
    let mut flight = Flight::new(RecordLimits::default());
    exchange(&mut flight, 0, "a");
    flight.hold("one", HOP);
    // Of the same exchange still.
    see(&mut flight, HOP, 5, true, TcpFlags::ACK, b"");
    flight.hold("two", HOP);
    let same = flight.release("one", HOP);
    assert_eq!(same.len(), 3);
    for n in 0..5 {
        exchange(&mut flight, 10 * (n + 1), "b");
    }
    let held = flight.release("two", HOP);
    assert_eq!(held, same);
    flight.hold("three", HOP);
    flight.close(at(100), HOP);
    flight.tick(at(1000), |_| true);
    assert_eq!(flight.packets(HOP), []);
    // A last segment of a hop that is forgotten.
    see(&mut flight, HOP, 1001, true, TcpFlags::FIN, b"");
    assert_eq!(flight.packets(HOP).len(), 1);
    assert_eq!(flight.release("three", HOP).len(), 4);
    assert_eq!(flight.release("three", HOP), flight.packets(HOP));
    flight.close(at(1002), HOP);
    flight.tick(at(2000), |_| true);
    assert_eq!(flight.release("three", HOP), []);
    assert_eq!((flight.bytes, flight.held_bytes), (0, 0));
}

#[test]
fn what_is_held_counts() {
    let limits = RecordLimits {
        total_bytes: 64 * 1024,
        ..RecordLimits::default()
    };
    let mut flight = Flight::new(limits);
    for n in 0..200 {
        let bytes = packet(TO, 1, DATA, &[b'x'; 900]);
        let segment = segment(&bytes, TO);
        let hop = HopId(n);
        flight.see(at(n), &Input::Segment { hop, segment });
        flight.hold(&n.to_string(), hop);
        assert!(flight.bytes + flight.held_bytes <= limits.total_bytes);
        let held = flight
            .held
            .values()
            .map(|held| held.memory())
            .sum::<usize>();
        assert!(held <= flight.held_bytes);
    }
    assert!(flight.held.len() > 5);
    assert!(flight.hops.len() > 5);
    assert_eq!(flight.release("199", HopId(199)).len(), 1);
}

#[test]
fn errors_are_kept_by_the_ends_that_they_quote() {
    let mut flight = Flight::new(RecordLimits::default());
    let error = IcmpError {
        netns: 5,
        from: [10, 0, 0, 254].into(),
        from_self: false,
        kind: IcmpKind::Unreachable,
        code: 1,
        local: SocketAddr::from(([10, 0, 0, 1], 40000)),
        upstream: SocketAddr::from(([10, 0, 0, 2], 8080)),
    };
    // The quoted payload was cut off.
    let mut packet = [0; 56];
    packet[0] = 0x45;
    packet[3] = 100;
    let input = Input::Icmp {
        error,
        packet: &packet,
    };
    flight.see(at(1), &input);
    let found = |flight: &Flight, since, netns, local| {
        let all = flight.errors(at(since), netns, local, error.upstream);
        all.map(|kept| (kept.bytes.len(), kept.wire_len)).collect()
    };
    let one: Vec<(usize, u32)> = found(&flight, 0, 5, error.local);
    assert_eq!(one, [(56, 100)]);
    assert_eq!(found(&flight, 1, 0, error.local), one);
    assert_eq!(found(&flight, 2, 5, error.local), []);
    assert_eq!(found(&flight, 0, 6, error.local), []);
    assert_eq!(found(&flight, 0, 5, error.upstream), []);
    for _ in 0..ERRORS {
        flight.see(at(1), &input);
    }
    assert_eq!((flight.errors.len(), flight.errors_evicted), (ERRORS, 1));
    flight.tick(at(60_000), |_| true);
    assert_eq!(flight.errors.len(), ERRORS);
    flight.tick(at(60_001), |_| true);
    assert_eq!(flight.errors.len(), 0);
}
