//! Heads of responses that are longer than what is captured of a segment.

use std::net::{Shutdown, TcpListener};

use hopscope::model::{Direction, Signal};

use crate::forgotten::{Server, Speaker};
use crate::library::Bed;
use crate::pair::{ANSWER, Pair};
use crate::support::{Seen, Watch};

/// Payload bytes that are captured of a segment by default.
const SNAP: usize = 2048;
/// What is captured of it at most beyond that: the room for headers.
const ROOM: usize = 128;
/// Lengths of heads that end behind what is captured, some of them right behind it: headers take of the room.
const LENS: [usize; 10] = [
    2049, 2125, 2150, 2176, 2200, 3000, 4097, 8191, 16_000, 32_000,
];

/// A head of `len` bytes.
fn head(len: usize) -> Vec<u8> {
    let mut head = b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec();
    head.resize(len - 4, b'a');
    head.extend(b"\r\n\r\n");
    head
}

/// A response with a head and a body of as many bytes.
fn response(head_len: usize, body: usize) -> Vec<u8> {
    let mut response = head(head_len);
    response.resize(head_len + body, b'b');
    response
}

/// What of `sent` came up of each segment, in order: the bytes, and how many there were.
fn came_up(pair: &Pair, from: usize) -> Vec<(Vec<u8>, usize)> {
    let seen = pair.watch.seen.iter().skip(from);
    let segments = seen.filter_map(|(_, seen)| match seen {
        Seen::Segment {
            direction: Direction::FromUpstream,
            payload,
            wire_len,
            ..
        } if !payload.is_empty() => Some((payload.clone(), *wire_len as usize)),
        _ => None,
    });
    segments.collect()
}

/// Sends `parts` as an answer, a segment each, and gives back how much of each came up.
fn answer(pair: &mut Pair, parts: &[&[u8]]) -> Vec<usize> {
    pair.watch.settle();
    let from = pair.watch.seen.len();
    pair.ask();
    for part in parts {
        pair.answer(part);
    }
    pair.watch.settle();
    let up = came_up(pair, from);
    assert_eq!(up.len(), parts.len(), "{up:?}");
    for ((bytes, len), part) in up.iter().zip(parts) {
        assert_eq!(*len, part.len());
        assert!(part.starts_with(bytes));
    }
    up.iter().map(|(bytes, _)| bytes.len()).collect()
}

/// Ends the connection, which sends up what is held, and gives back how much of an answer of `len` bytes came up.
fn ended(pair: &mut Pair, from: usize, len: usize) -> usize {
    pair.upstream.shutdown(Shutdown::Write).unwrap();
    let captured = |seen: &Seen| match seen {
        Seen::Segment {
            payload, wire_len, ..
        } if *wire_len as usize == len => Some(payload.len()),
        _ => None,
    };
    let found = |watch: &Watch| {
        watch.seen[from..]
            .iter()
            .find_map(|(_, seen)| captured(seen))
    };
    pair.watch
        .until("the answer", |watch| found(watch).is_some());
    found(&pair.watch).unwrap()
}

/// A gateway and its upstream on a connection, and on new ones as they are asked for.
struct Pairs(Pair);

impl Pairs {
    fn start() -> Self {
        Self(Pair::start(|_| {}))
    }

    /// Checks a connection of its own, and one behind exchanges that were held.
    fn either(&mut self, check: impl Fn(&mut Pair)) {
        let pair = &mut self.0;
        for before in [0, 3] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            assert_eq!(pair.gateway.connect(listener.local_addr().unwrap()), "0");
            (pair.upstream, _) = listener.accept().unwrap();
            pair.upstream.set_nodelay(true).unwrap();
            pair.exchanges(before);
            check(pair);
        }
        pair.watch.assert_no_loss();
    }
}

#[test]
fn a_long_head_goes_up_whole() {
    let mut pairs = Pairs::start();
    for len in LENS {
        pairs.either(|pair| {
            let from = pair.watch.seen.len();
            pair.ask();
            pair.answer(response(len, 200));
            let up = ended(pair, from, len + 200);
            assert!(up >= len, "{up} of a head of {len}");
        });
    }
}

#[test]
fn a_long_head_inside_tls_goes_up_whole() {
    let bed = Bed::new();
    let mut server = Server::start(&bed);
    let (mut speaker, mut watch) = Speaker::start(&bed, &format!("hd{}", server.port));
    speaker.connect(&server);
    // A record has room for 16 KiB.
    for len in LENS.into_iter().filter(|len| *len < 16_000) {
        speaker.write();
        let from = watch.seen.len();
        speaker.read(&mut server, str::from_utf8(&response(len, 200)).unwrap());
        watch.settle();
        let up = read(&watch, from);
        assert!(up[0] >= len, "{up:?} of a head of {len}");
    }
    watch.assert_no_loss();
}

#[test]
fn a_head_that_ends_in_what_is_captured_changes_nothing() {
    for len in [64, 300, 500] {
        let mut pair = Pair::start(|_| {});
        let up = answer(&mut pair, &[&response(len, 20_000)]);
        assert!((SNAP..SNAP + ROOM).contains(&up[0]), "{up:?}");
        // Held, as ever.
        let from = pair.watch.seen.len();
        for _ in 0..3 {
            pair.ask();
            pair.answer(response(len, 20_000));
        }
        pair.watch.settle();
        assert_eq!(came_up(&pair, from), [], "a head of {len}");
        pair.ask();
        pair.watch.settle();
        assert_eq!(came_up(&pair, from), []);
    }
}

#[test]
fn a_head_is_followed_from_segment_to_segment() {
    let mut pairs = Pairs::start();
    let whole = response(9000, 9000);
    // The first segment fits, and what follows does not; wherever the last lines are cut.
    for first in [20, 1448] {
        for second in [8995, 8996, 8997, 8998, 8999] {
            pairs.either(|pair| {
                let (begin, rest) = whole.split_at(first);
                let (middle, rest) = rest.split_at(second - first);
                let up = answer(pair, &[begin, middle, rest, &whole[..4000]]);
                assert_eq!(up[..2], [first, second - first], "{first}, {second}");
                assert!(up[2] < 64 + SNAP + ROOM, "{up:?}");
            });
        }
    }
    // It ended in the first: a large body has nothing to do with it.
    pairs.either(|pair| {
        let whole = response(500, 10_000);
        let (begin, rest) = whole.split_at(1000);
        let up = answer(pair, &[begin, rest]);
        assert!((SNAP..SNAP + ROOM).contains(&up[1]), "{up:?}");
    });
}

#[test]
fn lines_may_end_without_a_carriage_return() {
    let mut pairs = Pairs::start();
    pairs.either(|pair| {
        let mut whole = response(5000, 9000);
        whole[4996..5000].copy_from_slice(b"aa\n\n");
        let up = answer(pair, &[&whole]);
        assert_eq!(up, [14_000]);
        // It ends in what is captured.
        whole[400..404].copy_from_slice(b"aa\n\n");
        let up = answer(pair, &[&whole[..1500], &whole[1500..]]);
        assert_eq!(up[0], 1500);
        assert!((SNAP..SNAP + ROOM).contains(&up[1]), "{up:?}");
    });
    pairs.either(|pair| {
        // No empty line: another byte is between.
        let mut whole = response(5000, 9000);
        whole[2000..2005].copy_from_slice(b"\r\nab\n");
        whole[2100..2106].copy_from_slice(b"\r\n\r\r\n\r");
        assert_eq!(answer(pair, &[&whole]), [14_000]);
    });
}

#[test]
fn a_byte_may_come_alone() {
    let mut pairs = Pairs::start();
    // The end is seen behind it: what follows is cut.
    for alone in [2996, 2997, 2998] {
        pairs.either(|pair| {
            let whole = response(3000, 12_000);
            let (begin, rest) = whole.split_at(alone);
            let (byte, rest) = rest.split_at(1);
            let up = answer(pair, &[begin, byte, rest]);
            assert_eq!(up[..2], [alone, 1]);
            assert!(up[2] < SNAP + ROOM, "{alone}: {up:?}");
        });
    }
}

#[test]
fn the_next_head_is_followed_as_far_as_the_first() {
    let bed = Bed::new();
    let mut server = Server::start(&bed);
    let (mut speaker, mut watch) = Speaker::start(&bed, &format!("hn{}", server.port));
    speaker.connect(&server);
    let whole = response(7000, 200);
    // As many as leave no room for a segment more, if they were one head.
    for _ in 0..(64 << 10) / whole.len() {
        speaker.write();
        speaker.read(&mut server, str::from_utf8(&whole).unwrap());
    }
    speaker.write();
    watch.settle();
    let from = watch.seen.len();
    let (begin, rest) = whole.split_at(3000);
    for part in [begin, rest] {
        speaker.read(&mut server, str::from_utf8(part).unwrap());
    }
    watch.settle();
    assert_eq!(read(&watch, from), [3000, 4200]);
    watch.assert_no_loss();
}

/// How much of what the gateway read inside TLS came up, call by call.
fn read(watch: &Watch, from: usize) -> Vec<usize> {
    let texts = watch.seen[from..]
        .iter()
        .filter_map(|(_, seen)| match seen {
            Seen::Text {
                direction: Direction::FromUpstream,
                payload,
                ..
            } => Some(payload.len()),
            _ => None,
        });
    texts.collect()
}

#[test]
fn an_interim_response_is_not_the_end() {
    let mut pairs = Pairs::start();
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n",
    ] {
        pairs.either(|pair| {
            let mut whole = interim.as_bytes().to_vec();
            whole.extend(response(6000, 9000));
            let up = answer(pair, &[&whole]);
            assert!(up[0] >= 6000, "{up:?}");
        });
    }
    // The final head begins behind the interim one, and goes on in the next segment.
    pairs.either(|pair| {
        let mut whole = b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec();
        whole.extend(response(6000, 9000));
        let (begin, rest) = whole.split_at(3000);
        assert_eq!(answer(pair, &[begin, rest]), [3000, rest.len()]);
    });
    // A tunnel carries no heads.
    let mut tunnel = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    tunnel.resize(9000, b't');
    let up = answer(&mut Pair::start(|_| {}), &[&tunnel, &tunnel[1000..]]);
    assert!(
        up.iter().all(|up| (SNAP..SNAP + ROOM).contains(up)),
        "{up:?}"
    );
}

#[test]
fn a_head_without_an_end_is_followed_for_a_while() {
    let mut pairs = Pairs::start();
    let endless = vec![b'a'; 12_000];
    let begin = &head(2000)[..1990];
    pairs.either(|pair| {
        let parts: Vec<&[u8]> = std::iter::once(begin)
            .chain(std::iter::repeat_n(&endless[..], 7))
            .collect();
        let up = answer(pair, &parts);
        // 64 KiB are inside the sixth of them.
        assert_eq!(
            up[..7],
            [1990, 12_000, 12_000, 12_000, 12_000, 12_000, 12_000]
        );
        assert!(up[7] < SNAP + ROOM, "{up:?}");
    });
}

#[test]
fn the_next_exchange_is_held_again() {
    let mut pair = Pair::start(|_| {});
    pair.exchanges(3);
    answer(&mut pair, &[&response(5000, 5)]);
    assert_eq!(pair.asked(), [1, 4]);
    pair.exchanges(3);
    pair.ask();
    pair.answer("HTTP/1.1 500 No\r\n\r\n");
    pair.until_asked(8);
    assert_eq!(pair.asked(), [1, 4, 8]);
    let told = |seen: &Seen| matches!(seen, Seen::Signal(Signal::Held(_)));
    assert!(pair.watch.has(told));
    assert_eq!(pair.held().exchanges, 2 + 3);
    assert!(pair.payloads(Direction::FromUpstream)[0] == ANSWER);
}

#[test]
fn who_wants_less_of_a_segment_gets_less() {
    for before in [0, 3] {
        let mut pair = Pair::start(|config| config.snap_len = 1000);
        pair.exchanges(before);
        pair.watch.settle();
        let from = pair.watch.seen.len();
        pair.ask();
        pair.answer(response(5000, 5));
        let up = ended(&mut pair, from, 5005);
        assert!((1000..1000 + ROOM).contains(&up), "{up}");
    }
}
