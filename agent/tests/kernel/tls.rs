//! Hops that carry TLS: whole handshakes, then the heads of segments, and healthy exchanges held back.

use std::io::Read as _;

use hopscope::model::{Direction, TcpFlags};

use crate::pair::Pair;
use crate::support::Seen;

const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const ALERT: u8 = 21;

/// A record of this type and length, as TLS 1.2 and later send it.
fn record(kind: u8, len: u16) -> Vec<u8> {
    let [high, low] = len.to_be_bytes();
    let mut record = vec![kind, 3, 3, high, low];
    record.resize(record.len() + usize::from(len), 0xaa);
    record
}

impl Pair {
    /// The gateway sends bytes, which the upstream takes.
    fn tell(&mut self, bytes: &[u8]) {
        self.send(bytes);
        self.upstream.read_exact(&mut vec![0; bytes.len()]).unwrap();
    }

    fn handshake(&mut self) {
        self.tell(&record(HANDSHAKE, 500));
        self.answer(record(HANDSHAKE, 1200));
        self.tell(&record(HANDSHAKE, 80));
        self.answer(record(HANDSHAKE, 40));
    }

    /// An exchange whose request is this long.
    fn exchange_of(&mut self, len: u16) {
        self.tell(&record(DATA, len));
        self.answer(record(DATA, 400));
    }

    /// Lengths on the wire of the segments with payload that came up, in order, and what was captured.
    fn up(&self, towards: Direction) -> Vec<(u32, usize)> {
        let segments = self.watch.seen.iter().filter_map(|(_, seen)| match seen {
            Seen::Segment {
                direction,
                payload,
                wire_len,
                ..
            } if *direction == towards && *wire_len > 0 => Some((*wire_len, payload.len())),
            _ => None,
        });
        segments.collect()
    }

    /// The same, of requests alone.
    fn requests_up(&self) -> Vec<u32> {
        let all = self.up(Direction::ToUpstream).into_iter();
        // Behind the handshake.
        all.skip(2).map(|(wire, _)| wire).collect()
    }

    /// Ends the connection and waits until that was seen.
    fn close(mut self) -> Self {
        self.upstream.shutdown(std::net::Shutdown::Write).unwrap();
        self.watch.until("FIN", |watch| {
            watch.has(|seen| {
                seen.is_segment(Direction::FromUpstream, TcpFlags::FIN.union(TcpFlags::ACK))
            })
        });
        self.watch.settle();
        self
    }
}

#[test]
fn a_handshake_is_seen_whole() {
    let mut pair = Pair::start(|_| {});
    pair.tell(&record(HANDSHAKE, 1800));
    pair.answer(record(HANDSHAKE, 12_000));
    pair.tell(&record(HANDSHAKE, 3000));
    let pair = pair.close();
    assert_eq!(pair.up(Direction::ToUpstream), [(1805, 1805), (3005, 3005)]);
    assert_eq!(pair.up(Direction::FromUpstream), [(12_005, 12_005)]);
    pair.watch.assert_no_loss();
}

#[test]
fn what_goes_up_of_a_handshake_has_an_end() {
    let mut pair = Pair::start(|_| {});
    pair.tell(&record(HANDSHAKE, 500));
    for _ in 0..70 {
        pair.answer(record(HANDSHAKE, 100));
    }
    let pair = pair.close();
    let segments = pair.up(Direction::FromUpstream);
    let whole = segments
        .iter()
        .filter(|(wire, seen)| *wire as usize == *seen);
    assert_eq!((segments.len(), whole.count()), (70, 63));
}

#[test]
fn healthy_exchanges_over_tls_stay_in_the_kernel() {
    let mut pair = Pair::start(|_| {});
    pair.handshake();
    // A ticket.
    pair.answer(record(DATA, 250));
    for len in 301..=310 {
        pair.tell(&record(DATA, len));
        pair.tell(&record(DATA, 20));
        pair.answer(record(DATA, 400));
        pair.answer(record(DATA, 4000));
    }
    pair.watch.settle();
    assert_eq!(pair.requests_up(), [306, 25], "{}", pair.watch.trace());
    let pair = pair.close();
    assert_eq!(pair.requests_up(), [306, 25, 315, 25]);
    let held = pair.held();
    assert_eq!((held.exchanges, held.classes), (8, [0; 3]));
    assert_eq!(held.request_bytes, (307..=314).sum::<u64>() + 8 * 25);
    assert_eq!(held.response_bytes, 8 * (405 + 4005));
    assert_eq!(held.first_byte.iter().sum::<u32>(), 8);
    // Headers of records, and little else.
    let data = |(wire, seen): &(u32, usize)| *wire > 300 && *seen > 5 && *seen < 100;
    assert!(
        pair.up(Direction::ToUpstream)[2..]
            .iter()
            .step_by(2)
            .all(data)
    );
    pair.watch.assert_no_loss();
}

#[test]
fn what_comes_again_over_tls_counts_once() {
    let mut pair = Pair::start(|_| {});
    pair.handshake();
    pair.exchange_of(301);
    pair.tell(&record(DATA, 302));
    pair.answer(record(DATA, 400));
    pair.answer_twice(record(DATA, 4000));
    pair.exchange_of(303);
    pair.exchange_of(304);
    let pair = pair.close();
    assert_eq!(pair.requests_up(), [306, 309]);
    let held = pair.held();
    assert_eq!((held.exchanges, held.classes), (2, [0; 3]));
    assert_eq!(held.request_bytes, 307 + 308);
    assert_eq!(held.response_bytes, 2 * 405 + 4005);
    pair.watch.assert_no_loss();
}

#[test]
fn what_may_matter_over_tls_is_sent_up() {
    for answer in [
        record(ALERT, 26),
        record(DATA, 19),
        record(HANDSHAKE, 100),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"no".to_vec(),
    ] {
        let mut pair = Pair::start(|_| {});
        pair.handshake();
        for len in 301..=304 {
            pair.exchange_of(len);
        }
        pair.tell(&record(DATA, 305));
        pair.answer(&answer);
        let len = u32::try_from(answer.len()).unwrap();
        pair.watch.until("the answer", |watch| {
            watch.has(|seen| matches!(seen, Seen::Segment { wire_len, .. } if *wire_len == len))
        });
        assert_eq!(pair.requests_up(), [306, 310], "{answer:?}");
        assert_eq!(pair.held().exchanges, 3);
    }
}

#[test]
fn every_record_of_a_long_response_is_told() {
    for handshakes in [[500, 80, 1200, 40], [500, 300, 6000, 300]] {
        let mut pair = Pair::start(|_| {});
        let [hello, finished, certificate, end] = handshakes;
        pair.tell(&record(HANDSHAKE, hello));
        pair.answer(record(HANDSHAKE, certificate));
        pair.tell(&record(HANDSHAKE, finished));
        pair.answer(record(HANDSHAKE, end));
        pair.tell(&record(DATA, 300));
        // More than a segment holds, in two writes that end inside of a record.
        let records: Vec<u8> = (0..6).flat_map(|n| record(DATA, 16_000 + n)).collect();
        for part in records.chunks(50_000) {
            pair.answer(part);
        }
        let pair = pair.close();
        let mut told = Vec::new();
        let mut at = 0;
        for (_, seen) in &pair.watch.seen {
            if let Seen::Segment {
                direction: Direction::FromUpstream,
                records,
                wire_len,
                payload,
                ..
            } = seen
            {
                let whole = payload.len() == *wire_len as usize;
                let begins = payload.starts_with(&[DATA, 3, 3]);
                let first = (begins && records.is_empty()).then_some(0);
                let marked = records.iter().map(|(place, _)| *place);
                let all = marked.chain(first).filter(|_| !whole);
                told.extend(all.map(|place| at + place));
                at += if whole { 0 } else { *wire_len };
            }
        }
        let lengths = (0..6).map(|n| 16_005 + n);
        let expected: Vec<u32> = lengths
            .scan(0, |at, len| Some(std::mem::replace(at, *at + len)))
            .collect();
        assert_eq!(told, expected, "{}", pair.watch.trace());
        pair.watch.assert_no_loss();
    }
}

/// What is known of what the upstream sent since `from`, zero where it is not.
fn known(pair: &Pair, from: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    for (_, seen) in &pair.watch.seen[from..] {
        let Seen::Segment {
            direction: Direction::FromUpstream,
            records,
            wire_len,
            payload,
            ..
        } = seen
        else {
            continue;
        };
        let mut segment = vec![0; *wire_len as usize];
        segment[..payload.len()].copy_from_slice(payload);
        for (place, head) in records {
            let room = &mut segment[*place as usize..];
            let len = room.len().min(head.len());
            room[..len].copy_from_slice(&head[..len]);
        }
        stream.extend(segment);
    }
    stream
}

#[test]
fn a_header_that_two_segments_share_is_told() {
    // In handshakes, which go up whole, and behind them; the first segment is a small one or a large one.
    for (ahead, small) in [(false, 30), (true, 9000)] {
        for split in 1..=4 {
            let mut pair = Pair::start(|_| {});
            pair.tell(&record(HANDSHAKE, 500));
            if ahead {
                let both = [record(HANDSHAKE, 1200), record(HANDSHAKE, 900)].concat();
                let (first, second) = both.split_at(1205 + split);
                pair.answer(first);
                pair.answer(second);
            } else {
                pair.answer(record(HANDSHAKE, 1200));
            }
            pair.tell(&record(HANDSHAKE, 80));
            pair.answer(record(HANDSHAKE, 40));
            pair.tell(&record(DATA, 300));
            pair.watch.settle();
            let from = pair.watch.seen.len();
            let lengths = [small, 8000, 4000, 70];
            let records: Vec<u8> = lengths
                .into_iter()
                .flat_map(|len| record(DATA, len))
                .collect();
            let mut cut = usize::from(small) + 5 + split;
            let (first, rest) = records.split_at(cut);
            pair.answer(first);
            // And once more, behind two records.
            cut = 2 * 5 + 12_000 + split;
            let (second, third) = rest.split_at(cut - split);
            pair.answer(second);
            pair.answer(third);
            let pair = pair.close();
            let known = known(&pair, from);
            assert_eq!(known.len(), records.len());
            let mut at = 0;
            for len in lengths {
                let header = &record(DATA, len)[..5];
                assert_eq!(
                    &known[at..at + 5],
                    header,
                    "at {at}, split at {split}\n{}",
                    pair.watch.trace()
                );
                at += 5 + usize::from(len);
            }
            pair.watch.assert_no_loss();
        }
    }
}

#[test]
fn an_alert_of_the_gateway_sends_up_what_drew_it() {
    for alert in [record(ALERT, 2), record(DATA, 19)] {
        let mut pair = Pair::start(|_| {});
        pair.handshake();
        for len in 301..=304 {
            pair.exchange_of(len);
        }
        pair.answer(b"in the middle of a response");
        pair.tell(&alert);
        let len = u32::try_from(alert.len()).unwrap();
        pair.watch.until("the alert", |watch| {
            watch.has(|seen| matches!(seen, Seen::Segment { wire_len, .. } if *wire_len == len))
        });
        assert_eq!(pair.requests_up(), [306, 309, len]);
        let answers = pair.payloads(Direction::FromUpstream);
        assert_eq!(answers.last().unwrap(), "in the middle of a response");
        assert_eq!(pair.held().exchanges, 2);
    }
}

#[test]
fn a_late_answer_over_tls_is_sent_up() {
    let mut pair = Pair::start(|config| config.slow_first_byte_ms = 0);
    pair.handshake();
    for len in 301..=304 {
        pair.exchange_of(len);
    }
    let pair = pair.close();
    assert_eq!(pair.requests_up(), [306, 307, 308, 309]);
    assert_eq!(pair.held().exchanges, 0);
}

#[test]
fn more_segments_than_there_is_room_for_are_sent_up() {
    let mut pair = Pair::start(|_| {});
    pair.handshake();
    pair.exchange_of(301);
    pair.exchange_of(302);
    pair.tell(&record(DATA, 303));
    for len in 1..=40 {
        pair.answer(record(DATA, 1000 + len));
    }
    pair.exchange_of(304);
    pair.exchange_of(305);
    let pair = pair.close();
    assert_eq!(pair.requests_up(), [306, 308, 310]);
    assert_eq!(pair.held().exchanges, 2);
    let expected = (1..=40).map(|len| 1005 + len);
    let answers = pair.up(Direction::FromUpstream).into_iter().skip(3);
    let answers: Vec<u32> = answers.map(|(wire, _)| wire).take(40).collect();
    assert_eq!(answers, expected.collect::<Vec<_>>());
    pair.watch.assert_no_loss();
}

#[test]
fn a_connection_that_was_open_before_is_followed() {
    let mut pair = Pair::start(|_| {});
    // What a hop of which no handshake was seen begins with.
    for len in 301..=305 {
        pair.exchange_of(len);
    }
    let pair = pair.close();
    let up = pair.up(Direction::ToUpstream);
    let up: Vec<u32> = up.into_iter().map(|(wire, _)| wire).collect();
    assert_eq!(up, [306, 310]);
    assert_eq!(pair.held().exchanges, 3);
}
