//! Very many connections, requests and segments, in the order that costs most.

use std::net::{Ipv4Addr, SocketAddr};

use hopscope::limits::Limits;
use hopscope::model::{Cause, Direction, TcpFlags};
use proptest::prelude::*;

use crate::feed::{Feed, GET, OK};
use crate::measure::assert_linear;
use crate::scaled;

/// The end of the nth client: ports and addresses differ.
fn client(number: usize) -> SocketAddr {
    let number = u32::try_from(number).unwrap();
    let port = u16::try_from(1024 + number % 60_000).unwrap();
    SocketAddr::from((Ipv4Addr::from_bits(0x0b00_0000 + number), port))
}

#[test]
fn very_many_syns() {
    let limits = Limits::default();
    assert_linear(scaled(1_000_000, 8) / 4, |syns| {
        let mut feed = Feed::new(limits);
        for number in 0..syns {
            feed.next_hop(client(number));
            feed.segment(Direction::ToUpstream, TcpFlags::SYN, 0, b"");
            assert!(feed.engine.open_hops() <= limits.hops);
        }
        let stats = feed.stats();
        assert_eq!(stats.hops, syns as u64);
        assert_eq!(stats.hops_evicted, syns.saturating_sub(limits.hops) as u64);
        // A SYN that was not sent again is no failure.
        assert_eq!(feed.causes(), []);
    });
}

#[test]
fn very_many_refused_connects_that_nobody_polls() {
    let limits = Limits {
        events: 1000,
        ..Limits::default()
    };
    let mut feed = Feed::new(limits);
    // In less time than a refused connect waits for what else may be told of it.
    let count = 2000;
    for number in 0..count {
        feed.next_hop(client(number));
        feed.segment(Direction::ToUpstream, TcpFlags::SYN, 0, b"");
        feed.segment(Direction::FromUpstream, TcpFlags::RST, 0, b"");
    }
    assert_eq!(feed.causes(), vec![Cause::TcpConnectRefused; limits.events]);
    let dropped = (count - limits.events) as u64;
    assert_eq!(feed.stats().events_dropped, dropped);
}

#[test]
fn very_many_pipelined_requests() {
    let pipelined = Limits::default().pipelined;
    assert_linear(100_000 / 4, |requests| {
        let mut feed = Feed::open();
        feed.up_repeated(GET, requests * GET.len());
        let dropped = feed.stats().pipelined_dropped;
        assert_eq!(dropped, (requests - pipelined) as u64);
        feed.down_repeated(OK, requests * OK.len());
        assert_eq!(feed.stats().exchanges, pipelined as u64);
        assert_eq!(feed.causes(), []);
    });
}

#[test]
fn requests_that_were_too_many_make_no_failure_of_the_next() {
    let mut feed = Feed::open();
    let requests = Limits::default().pipelined + 10;
    feed.up_repeated(GET, requests * GET.len());
    feed.down_repeated(OK, requests * OK.len());
    feed.up(GET).down(OK).up(GET).down(OK);
    assert_eq!(feed.causes(), []);
}

#[test]
fn very_many_segments_behind_a_hole() {
    // From the first on, from the last on, and each of them next to its place.
    let orders: [fn(u32, u32) -> u32; 3] = [
        |index, _| index,
        |index, count| count - 1 - index,
        |index, count| u32::try_from(u64::from(index) * 7919 % u64::from(count)).unwrap(),
    ];
    for order in orders {
        assert_linear(scaled(1_000_000, 4) / 4, |segments| {
            let mut feed = Feed::open();
            feed.up(GET);
            let segments = u32::try_from(segments).unwrap();
            for index in 0..segments {
                let seq = 100 + 20 * order(index, segments);
                feed.segment(Direction::FromUpstream, TcpFlags::ACK, seq, &[b'x'; 20]);
            }
            assert_eq!(feed.causes(), []);
        });
    }
}

#[test]
fn segments_that_are_each_swapped_with_the_next() {
    assert_linear(400_000 / 4, |segments| {
        let mut feed = Feed::open();
        feed.up(GET);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {:08}\r\n\r\n",
            20 * segments
        );
        feed.down(head.as_bytes());
        let begin = 1 + u32::try_from(head.len()).unwrap();
        for index in 0..u32::try_from(segments).unwrap() {
            let seq = begin + 20 * (index ^ 1);
            feed.segment(Direction::FromUpstream, TcpFlags::ACK, seq, &[b'x'; 20]);
        }
        assert_eq!(feed.causes(), []);
        assert_eq!(feed.stats().exchanges, 1);
    });
}

#[test]
fn the_copy_of_a_byte_that_came_first_counts() {
    let mut feed = Feed::open();
    feed.up(GET).down(b"HTTP/1.1 200 OK\r\n");
    // The same place again with another status, alone and with what follows.
    feed.segment(
        Direction::FromUpstream,
        TcpFlags::ACK,
        1,
        b"HTTP/1.1 500 No\r\n",
    );
    feed.segment(
        Direction::FromUpstream,
        TcpFlags::ACK,
        1,
        b"HTTP/1.1 500 No\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert_eq!(feed.causes(), []);
    assert_eq!(feed.stats().exchanges, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Segments that overlap and contradict each other: an event for each request at most, and the
    /// same ones each time.
    #[test]
    fn overlaps_that_contradict(
        segments in prop::collection::vec((0_u32..120, 1_usize..60, 0_usize..3, any::<bool>()), 1..60),
    ) {
        let texts = [
            OK.repeat(5),
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".repeat(3),
            b"\r\n\r\n\0\xff: ;".repeat(20),
        ];
        let run = || {
            let mut feed = Feed::open();
            feed.up(GET);
            for &(at, length, text, up) in &segments {
                let bytes = &texts[text][at as usize..][..length];
                let direction = if up { Direction::ToUpstream } else { Direction::FromUpstream };
                let behind = if up { u32::try_from(GET.len()).unwrap() } else { 0 };
                feed.segment(direction, TcpFlags::ACK, 1 + behind + at, bytes);
            }
            feed.upstream_fin();
            feed.causes()
        };
        let causes = run();
        prop_assert_eq!(&causes, &run());
        let up = segments.iter().filter(|(.., up)| *up).count();
        prop_assert!(causes.len() <= 1 + up, "{:?}", causes);
    }
}
