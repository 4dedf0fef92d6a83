//! Exchanges that are held back in the kernel, and everything that makes it send them up.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use hopscope::model::{Direction, Signal, TcpFlags, UpstreamPattern};

use crate::pair::{ANSWER, Pair};
use crate::support::Seen;

#[test]
fn healthy_exchanges_stay_in_the_kernel_until_the_end() {
    let mut pair = Pair::start(|_| {});
    pair.exchanges(20);
    pair.watch.settle();
    assert_eq!(pair.asked(), [1], "{}", pair.watch.trace());

    pair.upstream.shutdown(std::net::Shutdown::Write).unwrap();
    pair.until_asked(20);
    pair.watch.until("FIN", |watch| {
        watch.has(|seen| {
            seen.is_segment(Direction::FromUpstream, TcpFlags::FIN.union(TcpFlags::ACK))
        })
    });
    assert_eq!(pair.asked(), [1, 20]);
    assert_eq!(pair.payloads(Direction::FromUpstream), [ANSWER, ANSWER]);
    let held = pair.held();
    assert_eq!((held.exchanges, held.classes), (18, [18, 0, 0]));
    assert_eq!(held.response_bytes, 18 * ANSWER.len() as u64);
    // "GET /2" to "GET /9" are a byte shorter than "GET /10" to "GET /19".
    assert_eq!(held.request_bytes, 8 * 28 + 10 * 29);
    assert_eq!(held.first_byte.iter().sum::<u32>(), 18);
    // What was held comes ahead of what made the kernel send it up, and word of the rest ahead of both.
    let word = pair
        .watch
        .position("word", |seen| matches!(seen, Seen::Signal(Signal::Held(_))));
    let request = pair.watch.position(
        "request",
        |seen| matches!(seen, Seen::Segment { payload, .. } if payload.starts_with(b"GET /20 ")),
    );
    let fin = pair.watch.position("FIN", |seen| {
        seen.is_segment(Direction::FromUpstream, TcpFlags::FIN.union(TcpFlags::ACK))
    });
    assert!(word < request && request < fin);
    pair.watch.assert_no_loss();
}

#[test]
fn as_much_is_held_of_heads_as_was_asked_for() {
    for (heads, expected) in [((64, 100), (64, 100)), ((2048, 2048), (500, 700))] {
        let mut pair = Pair::start(|config| {
            (config.request_head, config.response_head) = heads;
        });
        pair.exchange();
        let mut request = format!("GET /2 HTTP/1.1\r\nCookie: {}", "c".repeat(500));
        request.truncate(496);
        request += "\r\n\r\n";
        pair.send(request.as_bytes());
        pair.upstream.read_exact(&mut [0; 500]).unwrap();
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: {}",
            "a".repeat(700)
        );
        answer.truncate(696);
        answer += "\r\n\r\n";
        pair.answer(&answer);
        pair.watch.settle();
        assert_eq!(pair.asked(), [1]);
        // What ends the connection sends up what is held.
        pair.upstream.shutdown(std::net::Shutdown::Write).unwrap();
        pair.until_asked(2);
        pair.watch.until("the answer", |watch| {
            let from = |seen: &Seen| matches!(seen, Seen::Segment { payload, .. } if payload.starts_with(b"HTTP/1.1 200 OK\r\nContent-Length: 0"));
            watch.has(from)
        });
        let last = |towards| pair.payloads(towards).pop().unwrap();
        let (to, from) = (last(Direction::ToUpstream), last(Direction::FromUpstream));
        assert_eq!((to.len(), from.len()), expected);
        assert!(request.starts_with(&to) && answer.starts_with(&from));
        pair.watch.assert_no_loss();
    }
}

#[test]
fn an_answer_that_may_matter_is_sent_up() {
    for answer in [
        "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2p1\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "short",
    ] {
        let mut pair = Pair::start(|_| {});
        pair.exchanges(4);
        pair.ask();
        pair.answer(answer);
        pair.until_asked(5);
        assert_eq!(pair.asked(), [1, 5], "{answer}");
        assert_eq!(pair.payloads(Direction::FromUpstream), [ANSWER, answer]);
        assert_eq!(pair.held().exchanges, 3);
    }
}

#[test]
fn the_rest_of_an_exchange_follows_what_was_held_of_it() {
    let mut pair = Pair::start(|_| {});
    pair.exchanges(3);
    pair.ask();
    for part in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "h",
        "ello",
    ] {
        pair.answer(part);
    }
    pair.until_asked(4);
    assert_eq!(
        pair.text(Direction::FromUpstream),
        format!("{ANSWER}HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhellohello")
    );
    // The next ones are held again.
    pair.exchanges(3);
    pair.watch.settle();
    assert_eq!(pair.asked(), [1, 4]);
    pair.ask();
    pair.answer("HTTP/1.1 500 No\r\n\r\n");
    pair.until_asked(8);
    assert_eq!(pair.held().exchanges, 2 + 3);
    pair.watch.assert_no_loss();
}

#[test]
fn a_reset_sends_up_the_request_that_drew_it() {
    let mut pair = Pair::start(|_| {});
    pair.exchanges(3);
    pair.send(b"GET /last HTTP/1.1\r\n\r\n");
    // Closed with the request unread.
    assert_eq!(pair.upstream.peek(&mut [0; 1]).unwrap(), 1);
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    pair.upstream = TcpStream::connect(address).unwrap();
    pair.watch.until("reset", |watch| {
        watch.has(|seen| matches!(seen, Seen::Signal(Signal::ResetReceived)))
    });
    let request = pair.watch.position(
        "request",
        |seen| matches!(seen, Seen::Segment { payload, .. } if payload.starts_with(b"GET /last ")),
    );
    let reset = pair.watch.position(
        "reset",
        |seen| matches!(seen, Seen::Segment { flags, .. } if flags.contains(TcpFlags::RST)),
    );
    assert!(request < reset);
    assert_eq!(pair.held().exchanges, 2);
}

#[test]
fn one_in_so_many_is_sent_up() {
    let mut pair = Pair::start(|config| config.sample = 5);
    pair.exchanges(16);
    pair.until_asked(16);
    // The first is always seen; of those after it every fifth.
    assert_eq!(pair.asked(), [1, 6, 11, 16]);
    assert_eq!(pair.held().exchanges, 3 * 4);
    assert_eq!(pair.payloads(Direction::FromUpstream).len(), 4);
}

#[test]
fn a_boosted_upstream_is_seen_in_full_for_a_while() {
    let mut pair = Pair::start(|_| {});
    let address = pair.upstream.local_addr().unwrap();
    let upstream: UpstreamPattern = format!("127.0.0.0/8:{}", address.port()).parse().unwrap();
    pair.exchanges(3);
    pair.watch
        .source
        .boost(&upstream, Duration::from_mins(1))
        .unwrap();
    pair.exchanges(2);
    pair.until_asked(5);
    assert_eq!(pair.asked(), [1, 4, 5]);
    pair.watch.source.boost(&upstream, Duration::ZERO).unwrap();
    pair.exchanges(2);
    pair.watch.settle();
    assert_eq!(pair.asked(), [1, 4, 5]);
}

#[test]
fn what_carries_no_http_is_seen_at_its_start_and_end() {
    let mut pair = Pair::start(|_| {});
    for _ in 0..40 {
        pair.send(b"\x00\x03\x01 more than twelve");
        pair.upstream.read_exact(&mut [0; 20]).unwrap();
    }
    drop(pair.upstream);
    pair.watch.until("FIN", |watch| {
        watch.has(|seen| {
            seen.is_segment(Direction::FromUpstream, TcpFlags::FIN.union(TcpFlags::ACK))
        })
    });
    pair.watch.settle();
    let segments =
        pair.watch.seen.iter().filter(
            |(_, seen)| matches!(seen, Seen::Segment { payload, .. } if !payload.is_empty()),
        );
    assert_eq!(segments.count(), 16);
    assert_eq!(pair.watch.counter("kernel_opaque_segments"), 24);
    assert!(
        !pair
            .watch
            .has(|seen| matches!(seen, Seen::Signal(Signal::Held(_))))
    );
}
