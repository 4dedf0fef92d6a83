//! Turns of an event loop that need not sleep, and which of them reads a request. The gateway is this test's own
//! process, under the name of one that has such a loop.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use hopscope::model::{Read, Signal, Turn};
use rustix::event::epoll;

use crate::accepted::alone_as;
use crate::clients::{BAD, GOOD, Pair, REQUEST, answers, config, own_thread};
use crate::support::{Seen, Watch};

/// What the clock of the kernel shows for sure.
const A_WHILE: Duration = Duration::from_millis(20);

struct Loop {
    watch: Watch,
    listener: TcpListener,
    epoll: OwnedFd,
    /// Refuses connections.
    nobody: SocketAddr,
}

impl Loop {
    /// A loop that did not turn yet.
    fn still() -> Self {
        let watch = Watch::start(&config());
        let rows = watch.source.probes();
        let turns = rows.iter().find(|row| row.name == "turns").unwrap();
        assert_eq!((turns.attached, &*turns.reason), (true, "of HAProxy"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let nobody = nobody.local_addr().unwrap();
        Self {
            watch,
            listener,
            epoll,
            nobody,
        }
    }

    /// A loop whose turns are counted.
    fn start() -> Self {
        let own = Self::still();
        own.turn();
        own
    }

    /// Asks for events, which ends a turn, and does not sleep for it.
    fn turn(&self) {
        let (epoll, mut event) = (
            self.epoll.as_raw_fd(),
            libc::epoll_event { events: 0, u64: 0 },
        );
        // SAFETY: the descriptor is open, and there is room for one event.
        let ready = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) };
        assert_eq!(ready, 0);
    }

    /// The same as musl does it.
    fn turn_with_signals(&self) {
        let (epoll, mut event) = (
            self.epoll.as_raw_fd(),
            libc::epoll_event { events: 0, u64: 0 },
        );
        // SAFETY: as above; no signal mask is given.
        let ready = unsafe { libc::epoll_pwait(epoll, &raw mut event, 1, 0, std::ptr::null()) };
        assert_eq!(ready, 0);
    }

    /// Tries an upstream that refuses.
    fn connect(&self) {
        TcpStream::connect(self.nobody).unwrap_err();
    }

    /// When the failed answer to the only request of this pair was read, and the turn that gave it.
    fn told(&mut self, pair: &Pair) -> (Option<Read>, Turn) {
        let ends = pair.ends();
        self.watch
            .until("answer", |watch| !answers(watch, ends).is_empty());
        match answers(&self.watch, ends).as_slice() {
            [Seen::Answer { read, turn, .. }] => (*read, turn.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// The turn of this thread that opened the last hop. Others are called like it.
    fn opener(&self) -> Option<Turn> {
        let own = own_thread();
        let seen = self.watch.seen.iter().rev();
        let mut openers = seen.filter_map(|(_, seen)| match seen {
            Seen::Signal(Signal::Opened { turn, .. }) => Some(*turn),
            _ => None,
        });
        openers.find(|turn| turn.thread == own)
    }
}

#[test]
fn a_request_is_told_with_the_turn_that_read_it() {
    alone_as("haproxy", || {
        let mut own = Loop::start();
        let mut pair = Pair::of(&own.listener);
        // Nobody waits for what was read of this any more.
        pair.ask(REQUEST);
        pair.answer(GOOD);
        own.turn();
        pair.client.write_all(REQUEST).unwrap();
        // Time has to pass for the kernel: nothing is waited for.
        std::thread::sleep(A_WHILE);
        own.turn();
        pair.take(&REQUEST[..10]);
        own.connect();
        // The rest of it comes later.
        own.turn();
        pair.take(&REQUEST[10..]);
        own.turn_with_signals();
        pair.answer(BAD);
        let (read, answered) = own.told(&pair);
        let read = read.unwrap();
        assert!(read.waited >= A_WHILE, "{read:?}");
        assert_eq!(read.turn.thread, own_thread());
        assert_eq!(own.opener(), Some(read.turn));
        // Two turns later, with no sleep in between.
        assert_eq!(answered.number, read.turn.number + 2);
    });
}

#[test]
fn what_may_have_been_read_before_turns_were_counted_is_not_told_as_read() {
    alone_as("haproxy", || {
        let mut own = Loop::still();
        let mut pair = Pair::of(&own.listener);
        let (first, rest) = REQUEST.split_at(10);
        pair.ask(first);
        own.turn();
        pair.ask(rest);
        pair.answer(BAD);
        assert_eq!(own.told(&pair).0, None);
        // Of what comes now it is known.
        let mut pair = Pair::of(&own.listener);
        pair.ask(REQUEST);
        pair.answer(BAD);
        assert!(own.told(&pair).0.is_some());
    });
}
