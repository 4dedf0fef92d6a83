use proptest::prelude::*;

use super::*;
use crate::model::TcpFlags;
use crate::record::testing::{FROM, TO, at, captured, event, exchange, inside};

const SECRET: &str = "s3cr3t";
/// In places that are no secret.
const MARK: &str = "m4rk3r";

fn redactor() -> Redactor {
    Redactor::new(RedactConfig {
        headers: BTreeSet::from(["X-Internal".to_owned()]),
        ..RedactConfig::default()
    })
}

/// One direction's bytes after redaction, in segments that end at `cuts`.
fn redacted(direction: Direction, bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut packets = vec![captured(at(0), direction, 99, TcpFlags::SYN, b"")];
    packets.extend(split(direction, bytes, cuts));
    redactor().redact(&mut packets, None);
    packets
        .iter()
        .flat_map(|packet| packet.bytes[40..].to_vec())
        .collect()
}

fn split(direction: Direction, bytes: &[u8], cuts: &[usize]) -> Vec<CapturedPacket> {
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut % bytes.len().max(1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut from = 0;
    let mut packets = Vec::new();
    for end in ends {
        let seq = 100 + u32::try_from(from).unwrap();
        packets.push(captured(
            at(1),
            direction,
            seq,
            TcpFlags::ACK,
            &bytes[from..end],
        ));
        from = end;
    }
    packets
}

fn holds(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

const REQUESTS: &[&str] = &[
    "GET /shop?token=s3cr3t HTTP/1.1\r\nHost: m4rk3r\r\nAuthorization: Bearer s3cr3t\r\n\r\n",
    "GET /m4rk3r HTTP/1.1\r\ncookie:s3cr3t; b=s3cr3t\r\nHost: a\r\n\r\n",
    "GET /m4rk3r HTTP/1.1\r\nCOOKIE : a=1;\r\n s3cr3t\r\n\ts3cr3t\r\nHost: m4rk3r\r\n\r\n",
    "GET /m4rk3r HTTP/1.1\nX-Api-Key: s3cr3t\nX_Auth_Token: s3cr3t\nHost: m4rk3r\n\n",
    "POST /a HTTP/1.1\r\nX-Internal: s3cr3t\r\nContent-Length: 5\r\n\r\nm4rk3r",
    "GET http://user:s3cr3t@h/m4rk3r?q=s3cr3t HTTP/1.1\r\nReferer: http://a/m4rk3r?x=s3cr3t\r\n\r\n",
    "POST /m4rk3r HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Foo-Token: s3cr3t\r\n\r\n",
    "GET /m4rk3r HTTP/1.1\r\nHost: a\r\n\r\nGET /b?s3cr3t HTTP/1.1\r\nProxy-Authorization: s3cr3t\r\n\r\n",
    "GET /m4rk3r?a b s3cr3t HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /m4rk3r?s3cr3t\r\n",
    "GET /m4rk3r HTTP/1.1\r\nX-Original-Cookie: s3cr3t\r\nX-Original-URI: /m4rk3r?s3cr3t\r\n\r\n",
];

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nSet-Cookie: a=s3cr3t; Path=/\r\nServer: m4rk3r\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 302 Found\r\nLocation: https://a/m4rk3r?code=s3cr3t\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nSet-Cookie: a=\ns3cr3t\r\nServer: m4rk3r\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nset-cookie2\t: s3cr3t\r\nServer: m4rk3r\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nHTTP/1.1 200 OK\r\nSet-Cookie: s3cr3t\r\n\r\nm4rk3r",
    "m4rk3r before\r\nSet-Cookie: s3cr3t\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nServer: m4rk3r\r\n\r\n0\r\nSet-Cookie: s3cr3t\r\n\r\n",
    "{\"m4rk3r\": 1, \"set-cookie\": \"s3cr3t\"}",
];

fn both() -> impl Iterator<Item = (Direction, &'static str)> {
    let requests = REQUESTS.iter().map(|text| (TO, *text));
    requests.chain(RESPONSES.iter().map(|text| (FROM, *text)))
}

#[test]
fn secrets_go_and_the_rest_stays() {
    for (direction, text) in both() {
        let out = redacted(direction, text.as_bytes(), &[]);
        assert_eq!(out.len(), text.len(), "{}", shown(&out));
        assert!(!holds(&out, SECRET), "{}", shown(&out));
        assert!(holds(&out, MARK), "{}", shown(&out));
        let same = out
            .iter()
            .zip(text.bytes())
            .all(|(new, old)| *new == old || *new == FILLER);
        assert!(same, "{}", shown(&out));
    }
}

#[test]
fn any_split_gives_the_same_bytes() {
    for (direction, text) in both() {
        let whole = redacted(direction, text.as_bytes(), &[]);
        for cut in 0..text.len() {
            let out = redacted(direction, text.as_bytes(), &[cut]);
            assert_eq!(shown(&out), shown(&whole));
        }
        let bytewise: Vec<_> = (0..text.len()).collect();
        assert_eq!(redacted(direction, text.as_bytes(), &bytewise), whole);
    }
}

#[test]
fn a_capture_that_begins_anywhere_tells_nothing() {
    for (direction, text) in both() {
        for from in 1..text.len() {
            let mut packets = split(direction, &text.as_bytes()[from..], &[]);
            redactor().redact(&mut packets, None);
            for packet in packets {
                let tail = &packet.bytes[40..];
                // The end of a secret may be what it begins with.
                for length in 2..=SECRET.len() {
                    let rest = &SECRET[SECRET.len() - length..];
                    assert!(!holds(tail, rest), "from {from}: {}", shown(tail));
                }
            }
        }
    }
}

#[test]
fn a_gap_anywhere_tells_nothing() {
    for (direction, text) in both() {
        for from in 1..text.len() {
            for gap in [1, 3, 9] {
                let mut packets = split(direction, text.as_bytes(), &[from, from + gap]);
                if from + gap >= text.len() {
                    continue;
                }
                packets.remove(1);
                packets.insert(0, captured(at(0), direction, 99, TcpFlags::SYN, b""));
                redactor().redact(&mut packets, None);
                let all: Vec<_> = packets
                    .iter()
                    .flat_map(|packet| packet.bytes[40..].to_vec())
                    .collect();
                assert!(
                    !holds(&all, "3cr3t") && !holds(&all, "s3cr3"),
                    "{from}: {}",
                    shown(&all)
                );
            }
        }
    }
}

#[test]
fn bodies_are_cut_and_chunks_keep_their_framing() {
    let long = "x".repeat(5000);
    let sized = format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{long}");
    let out = redacted(FROM, sized.as_bytes(), &[1000, 2000]);
    let head = sized.len() - 5000;
    assert_eq!(out.len(), head + 512);
    let close = format!("HTTP/1.1 200 OK\r\n\r\n{long}");
    assert_eq!(redacted(FROM, close.as_bytes(), &[]).len(), 19 + 512);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{long}\r\n5\r\nhello\r\nzz\r\n{long}"
    );
    let out = redacted(FROM, chunked.as_bytes(), &[]);
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.ends_with(&format!(
            "xx{}\r\n5\r\n*****\r\nzz\r\n",
            "*".repeat(5000 - 512)
        )),
        "{text}"
    );
}

#[test]
fn the_next_message_behind_a_long_body_is_kept() {
    let long = "x".repeat(2000);
    let two =
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n{long}HTTP/1.1 503 No\r\n\r\n");
    let out = redacted(FROM, two.as_bytes(), &[700, 900]);
    assert!(holds(&out, "HTTP/1.1 503 No"));
    // The end of the first segment and all of the second were beyond the cap.
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n".len();
    assert_eq!(out.len(), two.len() - (900 - head - 512));
}

#[test]
fn control_bytes_in_a_value_stay() {
    let text = b"HTTP/1.1 200 OK\r\nSet-Cookie: se\0cret\r\n\r\n";
    let out = redacted(FROM, text, &[]);
    assert!(
        holds(&out, "Set-Cookie:***\0****\r\n\r\n"),
        "{}",
        shown(&out)
    );
}

#[test]
fn other_protocols() {
    let fastcgi = b"\x01\x01\0\x01\0\x08\0\0\0\x01\0\0\0\0\0\0HTTP_COOKIEs3cr3t";
    let out = redacted(TO, fastcgi, &[]);
    assert!(out.starts_with(&fastcgi[..16]) && !holds(&out, SECRET));
    let answer = b"\x01\x06\0\x01\0\x50\0\0Set-Cookie: s3cr3t\r\nStatus: m4rk3r";
    let out = redacted(FROM, answer, &[]);
    assert!(holds(&out, MARK) && !holds(&out, SECRET));
    let hello = [&[22, 3, 1, 4, 0, 1][..], &[7; 900]].concat();
    assert_eq!(redacted(TO, &hello, &[]), hello);
}

#[test]
fn copies_that_differ_are_not_trusted() {
    let mut packets = vec![
        captured(at(0), TO, 99, TcpFlags::SYN, b""),
        captured(
            at(1),
            TO,
            100,
            TcpFlags::ACK,
            b"GET / HTTP/1.1\r\nX-Whatever-1: s3cr3t\r\n",
        ),
        captured(
            at(2),
            TO,
            100,
            TcpFlags::ACK,
            b"GET / HTTP/1.1\r\nAuthorization: s3cr3t\r\n",
        ),
        captured(at(3), TO, 138, TcpFlags::ACK, b"s3cr3t\r\n\r\n"),
    ];
    redactor().redact(&mut packets, None);
    for packet in packets {
        assert!(!holds(&packet.bytes, SECRET));
    }
}

#[test]
fn queries_can_be_kept() {
    let keeping = Redactor::new(RedactConfig {
        keep_query: true,
        ..RedactConfig::default()
    });
    let mut packets = exchange(
        b"GET /?m4rk3r HTTP/1.1\r\nCookie: s3cr3t\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    );
    keeping.redact(&mut packets, None);
    assert!(holds(&packets[2].bytes, MARK) && !holds(&packets[2].bytes, SECRET));
}

#[test]
fn packets_that_are_no_segments_are_left_out() {
    let mut packets = exchange(b"GET / HTTP/1.1\r\n\r\n", b"x");
    packets[0].bytes = b"Cookie: s3cr3t".to_vec();
    redactor().redact(&mut packets, None);
    assert_eq!(packets.len(), 3);
}

#[test]
fn events_lose_the_same_secrets() {
    let response = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=s3cr3\0t\r\n\r\n";
    let mut packets = exchange(b"GET /a HTTP/1.1\r\n\r\n", response);
    let mut event = event();
    event.exchange.as_mut().unwrap().path = Some("/a?s3cr3t".to_owned());
    // An excerpt from the middle of the value.
    event.evidence[0].bytes = b"3cr3\0t".to_vec();
    event.evidence[0].text =
        "forbidden byte at offset 35 in header Set-Cookie: 3cr3\\x00t".to_owned();
    redactor().redact(&mut packets, Some(&mut event));
    assert_eq!(event.exchange.unwrap().path.as_deref(), Some("/a"));
    assert_eq!(event.evidence[0].bytes, b"****\0*");
    assert!(event.evidence[0].text.ends_with("Set-Cookie: ****\\x00*"));
}

#[test]
fn events_lose_them_without_packets_too() {
    let mut event = event();
    event.evidence[0].bytes = b"abc\0def".to_vec();
    event.evidence[0].text = "forbidden byte in header set-cookie: abc\\x00def".to_owned();
    redactor().redact(&mut Vec::new(), Some(&mut event));
    assert_eq!(event.evidence[0].bytes, b"***\0***");
    let mut plain = crate::record::testing::event();
    let before = plain.clone();
    redactor().redact(&mut Vec::new(), Some(&mut plain));
    assert_eq!(plain, before);
}

proptest! {
    /// Any order, any copies, any overlaps: no secret comes out.
    #[test]
    fn no_order_of_segments_tells(
        which in 0..REQUESTS.len() + RESPONSES.len(),
        cuts in proptest::collection::vec(0usize..400, 0..8),
        again in proptest::collection::vec((0usize..400, 0usize..60), 0..4),
        seed: u64,
    ) {
        let (direction, text) = both().nth(which).unwrap();
        let bytes = text.as_bytes();
        let mut packets = split(direction, bytes, &cuts);
        for (from, length) in again {
            let from = from % bytes.len();
            let to = bytes.len().min(from + length);
            let seq = 100 + u32::try_from(from).unwrap();
            packets.push(captured(at(2), direction, seq, TcpFlags::ACK, &bytes[from..to]));
        }
        packets.push(captured(at(0), direction, 99, TcpFlags::SYN, b""));
        let mut state = seed;
        for index in (1..packets.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            packets.swap(index, (state >> 33) as usize % (index + 1));
        }
        let wire: Vec<_> = packets.iter().map(|packet| packet.wire_len).collect();
        redactor().redact(&mut packets, None);
        let whole = redacted(direction, bytes, &[]);
        for (packet, wire) in packets.iter().zip(wire) {
            prop_assert_eq!(packet.wire_len, wire);
            let payload = &packet.bytes[40..];
            prop_assert!(!holds(payload, SECRET));
            let seq = u32::from_be_bytes(packet.bytes[24..28].try_into().unwrap());
            let from = seq.saturating_sub(100) as usize;
            prop_assert_eq!(payload, &whole[from..from + payload.len()]);
        }
    }

    /// Any bytes at all neither panic nor grow.
    #[test]
    fn any_bytes_do(bytes in proptest::collection::vec(any::<u8>(), 0..300), seq: u32, to: bool) {
        let direction = if to { TO } else { FROM };
        let mut packets = vec![captured(at(0), direction, seq, TcpFlags::ACK, &bytes)];
        redactor().redact(&mut packets, None);
        prop_assert!(packets[0].bytes.len() <= 40 + bytes.len());
    }
}

#[test]
fn secrets_inside_tls_are_masked_and_its_records_are_not() {
    const RECORD: &[u8] = b"\x17\x03\x03\x00\x20 a record, which is no HTTP/1 at all";
    const RESPONSE: &[u8] =
        b"HTTP/1.1 200 OK\r\nSet-Cookie: s3cr3t\r\nX-Mark: m4rk3r\r\nContent-Length: 2\r\n\r\nok";
    let request = REQUESTS[0].as_bytes();
    let (first, rest) = request.split_at(20);
    let mut packets = exchange(RECORD, RECORD);
    packets.push(inside(at(4), TO, 20, rest));
    packets.push(inside(at(4), TO, 0, first));
    packets.push(inside(at(5), FROM, 0, RESPONSE));
    let mut event = event();
    event.evidence[0].bytes = RESPONSE.to_vec();
    redactor().redact(&mut packets, Some(&mut event));
    assert_eq!(packets.len(), 7);
    for packet in &packets {
        assert!(!holds(&packet.bytes, SECRET), "{}", shown(&packet.bytes));
        assert_eq!(packet.bytes.len(), packet.wire_len as usize);
    }
    assert!(!holds(&event.evidence[0].bytes, SECRET));
    assert!(packets.iter().any(|packet| packet.bytes.ends_with(b"ok")));
    assert!(packets[2].bytes.ends_with(RECORD));
}

#[test]
fn what_looks_like_a_record_inside_tls_is_a_body() {
    let response = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\x16\x03\x01"[..],
        &[b'x'; 600],
        SECRET.as_bytes(),
    ]
    .concat();
    let mut packets = vec![inside(at(4), FROM, 0, &response)];
    redactor().redact(&mut packets, None);
    let [packet] = &packets[..] else {
        panic!("{packets:?}")
    };
    assert!(!holds(&packet.bytes, SECRET), "{}", shown(&packet.bytes));
}
