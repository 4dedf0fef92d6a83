//! What clients of a gateway get. The gateway is this test's own process, since it has to listen.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hopscope::live::LiveConfig;
use hopscope::model::Departure;

use crate::accepted::alone;
use crate::support::{Seen, Watch};

pub(crate) const REQUEST: &[u8] = b"GET /shop?q=1 HTTP/1.1\r\nHost: h\r\nX-Request-ID: 7\r\n\r\n";
pub(crate) const BAD: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
pub(crate) const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

pub(crate) fn config() -> LiveConfig {
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    LiveConfig {
        gateways: vec![comm.trim_end().to_owned()],
        ..LiveConfig::default()
    }
}

/// Longer than what a gateway sent last counts as lately.
const LONG_AGO: Duration = Duration::from_millis(300);

/// A client's connection and the gateway's end of it.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) accepted: TcpStream,
}

impl Pair {
    pub(crate) fn of(listener: &TcpListener) -> Self {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        Self { client, accepted }
    }

    /// The client asks; the gateway takes it.
    pub(crate) fn ask(&mut self, request: &[u8]) {
        self.client.write_all(request).unwrap();
        self.take(request);
    }

    /// The gateway takes what the client sent.
    pub(crate) fn take(&mut self, request: &[u8]) {
        let mut taken = vec![0; request.len()];
        self.accepted.read_exact(&mut taken).unwrap();
        assert_eq!(taken, request);
    }

    /// The gateway answers; the client takes it.
    pub(crate) fn answer(&mut self, response: &[u8]) {
        self.accepted.write_all(response).unwrap();
        let mut taken = vec![0; response.len()];
        self.client.read_exact(&mut taken).unwrap();
    }

    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (
            self.accepted.local_addr().unwrap(),
            self.client.local_addr().unwrap(),
        )
    }
}

pub(crate) fn answers(watch: &Watch, of: (SocketAddr, SocketAddr)) -> Vec<&Seen> {
    watch
        .seen
        .iter()
        .map(|(_, seen)| seen)
        .filter(|seen| matches!(seen, Seen::Answer { ends, .. } if *ends == of))
        .collect()
}

#[test]
fn failures_come_up_with_their_request_and_nothing_else_does() {
    // One listens before the watch, one after it; one connection is open already.
    let early = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut open = Pair::of(&early);
    let mut watch = Watch::start(&config());
    let late = TcpListener::bind("127.0.0.1:0").unwrap();
    for listener in [&early, &late] {
        let local = listener.local_addr().unwrap();
        watch.until("listener", |watch| {
            let is_it = |seen: &Seen| matches!(seen, Seen::Listening(at) if *at == local);
            watch.seen.iter().any(|(_, seen)| is_it(seen))
        });
    }
    let mut first = Pair::of(&early);
    let mut second = Pair::of(&late);
    for pair in [&mut open, &mut first, &mut second] {
        pair.ask(REQUEST);
        pair.answer(GOOD);
        pair.ask(REQUEST);
        pair.answer(BAD);
        let ends = pair.ends();
        watch.until("answer", |watch| !answers(watch, ends).is_empty());
        let found = answers(&watch, ends);
        let [
            Seen::Answer {
                process,
                turn,
                read,
                goroutine,
                request,
                response,
                ordinal,
                ..
            },
        ] = found.as_slice()
        else {
            panic!("{found:?}")
        };
        assert_eq!(process.pid, std::process::id());
        assert_eq!(turn.map(|turn| turn.thread), Some(own_thread()));
        // Its turns are not counted.
        assert_eq!(*read, None);
        // Another language has none.
        assert_eq!(*goroutine, None);
        assert_eq!(
            (request.as_slice(), response.as_deref()),
            (REQUEST, Some(BAD))
        );
        assert_eq!(*ordinal, 2);
    }
}

#[test]
fn a_close_counts_as_an_answer_where_one_was_due() {
    let mut watch = Watch::start(&config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let idle = Pair::of(&listener);
    let mut answered = Pair::of(&listener);
    answered.ask(REQUEST);
    answered.answer(GOOD);
    let mut left = Pair::of(&listener);
    left.ask(REQUEST);
    left.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(left.accepted.read(&mut [0]).unwrap(), 0);
    let mut cut = Pair::of(&listener);
    cut.ask(REQUEST);
    let (silent, due) = ([idle.ends(), answered.ends(), left.ends()], cut.ends());
    drop((
        idle.accepted,
        answered.accepted,
        left.accepted,
        cut.accepted,
    ));
    watch.until("close", |watch| !answers(watch, due).is_empty());
    watch.settle();
    let found = answers(&watch, due);
    assert!(
        matches!(found.as_slice(), [Seen::Answer { response: None, request, .. }] if request == REQUEST),
        "{found:?}"
    );
    for ends in silent {
        assert!(answers(&watch, ends).is_empty(), "{}", watch.trace());
    }
}

#[test]
fn what_cannot_be_read_is_counted() {
    let mut watch = Watch::start(&config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let opaque = |watch: &Watch| {
        let counters = watch.source.counters();
        let found = counters
            .iter()
            .find(|(name, _)| *name == "kernel_clients_opaque");
        found.map_or(0, |(_, value)| *value)
    };
    let before = opaque(&watch);
    let mut pair = Pair::of(&listener);
    pair.ask(b"\x16\x03\x01\x00\x30 a ClientHello, as it were");
    pair.answer(BAD);
    watch.settle();
    assert!(opaque(&watch) > before);
    assert!(answers(&watch, pair.ends()).is_empty());
}

pub(crate) fn own_thread() -> u32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn a_client_that_leaves_had_something_to_wait_for_or_not() {
    alone(departures);
}

fn departures() {
    let mut watch = Watch::start(&config());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut departure = |ask: &dyn Fn(&mut Pair)| {
        let mut pair = Pair::of(&listener);
        ask(&mut pair);
        // Time has to pass for the kernel: nothing is waited for.
        std::thread::sleep(LONG_AGO);
        watch.seen.clear();
        drop(pair.client);
        assert_eq!(pair.accepted.read(&mut [0]).unwrap(), 0);
        drop(pair.accepted);
        let departures = |watch: &Watch| {
            let all = watch.seen.iter();
            all.filter_map(|(_, seen)| match seen {
                // Other tests run beside this one.
                Seen::ClientLeft { thread, departure } if *thread == own_thread() => {
                    Some(*departure)
                }
                _ => None,
            })
            .collect::<Vec<_>>()
        };
        watch.until("departure", |watch| !departures(watch).is_empty());
        departures(&watch)
    };
    let waits = departure(&|pair| pair.ask(REQUEST));
    assert_eq!(waits, [Departure::Waiting]);
    let asks_again = departure(&|pair| {
        pair.ask(REQUEST);
        pair.answer(GOOD);
        pair.ask(REQUEST);
    });
    assert_eq!(asks_again, [Departure::Waiting]);
    let has_its_answer = departure(&|pair| {
        pair.ask(REQUEST);
        pair.answer(GOOD);
    });
    assert_eq!(has_its_answer, [Departure::Answered]);
    let never_asked = departure(&|_| {});
    assert_eq!(never_asked, [Departure::Answered]);
    let hello = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc".as_slice(),
        &[7; 100],
    ]
    .concat();
    let cannot_be_read = departure(&|pair| pair.ask(&hello));
    assert_eq!(cannot_be_read, [Departure::Unknown]);
}
