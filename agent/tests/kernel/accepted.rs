//! How the connections of a gateway's clients begin. Each test is the only gateway of its name: it runs in a
//! process of its own, so that what is counted is its own doing.

use std::fs::File;
use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use hopscope::live::LiveConfig;
use rustix::net::sockopt::set_tcp_cork;
use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::clients::{BAD, GOOD, Pair, REQUEST, answers, config};
use crate::forgotten::tables;
use crate::support::{Gateway, Seen, Watch};

/// Set where a test runs in its own process.
const ALONE: &str = "HOPSCOPE_TEST_ALONE";

/// Entries of the table of clients' connections, and bytes of each.
const CLIENTS: u64 = 32_768;
const CLIENT: usize = 1256;

/// What begins a TLS connection, as it were.
pub(crate) const HELLO: &[u8] = b"\x16\x03\x01\x00\x30 a ClientHello, so to speak";

/// Runs the test of the current thread in a process with a name of its own.
pub(crate) fn alone(test: impl FnOnce()) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    alone_as(&format!("al{}-{number}", std::process::id()), test);
}

/// The same with this name, which others may have as well.
pub(crate) fn alone_as(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let home = TempDir::new().unwrap();
    let program = home.path().join(name);
    symlink(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(program)
        .args(["--exact", thread::current().name().unwrap()])
        .arg("--nocapture")
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn opaque(watch: &Watch) -> u64 {
    watch.counter("kernel_clients_opaque")
}

/// Connects to a new listener that is told of connections with their first data only.
pub(crate) fn deferred(backlog: i32) -> TcpListener {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let seconds: libc::c_int = 5;
    let len = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap();
    // SAFETY: the socket is open, and the option is a number of that size.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            len,
        )
    };
    assert_eq!(set, 0);
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    bind(&socket, &any).unwrap();
    listen(&socket, backlog).unwrap();
    TcpListener::from(socket)
}

/// Where `TCP_DEFER_ACCEPT` is set, a client is connected before it is accepted.
pub(crate) fn connect(listener: &TcpListener) -> TcpStream {
    TcpStream::connect(listener.local_addr().unwrap()).unwrap()
}

pub(crate) fn accept(listener: &TcpListener, client: TcpStream) -> Pair {
    let (accepted, _) = listener.accept().unwrap();
    Pair { client, accepted }
}

/// Waits for the answers to `pair` and gives request and response of the only one.
pub(crate) fn only(watch: &mut Watch, pair: &Pair) -> (Vec<u8>, Option<Vec<u8>>) {
    let ends = pair.ends();
    watch.until("answer", |watch| !answers(watch, ends).is_empty());
    watch.settle();
    let found = answers(watch, ends);
    let [
        Seen::Answer {
            request, response, ..
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}")
    };
    (request.clone(), response.clone())
}

fn only_request(watch: &mut Watch, pair: &Pair) -> Vec<u8> {
    only(watch, pair).0
}

#[test]
fn a_service_on_the_same_port_elsewhere_counts_nothing() {
    alone(|| {
        // It listens before the watch begins, in a namespace where no gateway is: nobody knows it.
        let elsewhere = Gateway::start_isolated();
        let namespace = File::open(format!("/proc/{}/ns/net", elsewhere.pid())).unwrap();
        let mut elsewhere = elsewhere;
        assert_eq!(elsewhere.run("ip link set lo up"), "0");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let there = |work: &(dyn Fn() -> (TcpListener, Pair) + Sync)| {
            thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    let kind = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                    work()
                });
                worker.join().unwrap()
            })
        };
        let (other, mut older) = there(&|| {
            let other = TcpListener::bind(local).unwrap();
            let older = Pair::of(&other);
            (other, older)
        });
        let mut watch = Watch::start(&config());
        watch.until("listener", |watch| {
            watch.has(|seen| matches!(seen, Seen::Listening(at) if *at == local))
        });
        let (_other, mut later) = there(&|| {
            let other = other.try_clone().unwrap();
            let later = Pair::of(&other);
            (other, later)
        });
        for pair in [&mut older, &mut later] {
            for _ in 0..3 {
                pair.ask(HELLO);
                pair.answer(BAD);
            }
        }
        watch.settle();
        assert_eq!(opaque(&watch), 0);
        // The gateway's own clients are watched.
        let mut own = Pair::of(&listener);
        own.ask(REQUEST);
        own.answer(BAD);
        assert_eq!(only_request(&mut watch, &own), REQUEST);
        let all = |seen: &Seen| matches!(seen, Seen::Answer { .. });
        assert_eq!(watch.seen.iter().filter(|(_, seen)| all(seen)).count(), 1);
        assert_eq!(opaque(&watch), 0);
    });
}

#[test]
fn a_request_that_comes_before_its_socket_is_kept() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = deferred(16);
        let mut client = connect(&listener);
        client.write_all(REQUEST).unwrap();
        let mut pair = accept(&listener, client);
        pair.answer(BAD);
        assert_eq!(only_request(&mut watch, &pair), REQUEST);
    });
}

#[test]
fn a_client_that_leaves_with_its_first_packet_is_gone() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = deferred(16);
        let mut client = connect(&listener);
        // Request and FIN are one segment.
        set_tcp_cork(&client, true).unwrap();
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut left = accept(&listener, client);
        let ends = left.ends();
        left.take(REQUEST);
        drop(left.accepted);
        let mut stays = connect(&listener);
        stays.write_all(REQUEST).unwrap();
        let mut cut = accept(&listener, stays);
        let due = cut.ends();
        cut.take(REQUEST);
        drop(cut.accepted);
        watch.until("close", |watch| !answers(watch, due).is_empty());
        watch.settle();
        assert!(answers(&watch, ends).is_empty(), "{}", watch.trace());
    });
}

#[test]
fn what_cannot_be_read_is_counted_once_a_connection() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut pair = Pair::of(&plain);
        for _ in 0..3 {
            pair.ask(HELLO);
            pair.answer(BAD);
        }
        watch.settle();
        assert_eq!(opaque(&watch), 1);
        // The last client finds no room among those that wait to be accepted: what it asks is dropped, and
        // repeated until there is.
        let deferred = deferred(3);
        let mut late = connect(&deferred);
        let early: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut client = connect(&deferred);
                client.write_all(HELLO).unwrap();
                client
            })
            .collect();
        late.write_all(HELLO).unwrap();
        let mut pairs: Vec<Pair> = early
            .into_iter()
            .map(|client| accept(&deferred, client))
            .collect();
        pairs.push(accept(&deferred, late));
        for pair in &mut pairs {
            for _ in 0..3 {
                pair.answer(BAD);
                pair.ask(HELLO);
            }
        }
        watch.settle();
        assert_eq!(opaque(&watch), 6);
        assert!(!watch.has(|seen| matches!(seen, Seen::Answer { .. })));
    });
}

#[test]
fn a_listener_that_cannot_be_read_is_told_once_there_is_room() {
    alone(|| {
        let mut watch = Watch::start(&LiveConfig {
            ring_bytes: 1,
            ..config()
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let told = |watch: &Watch| {
            let is_it = |seen: &Seen| matches!(seen, Seen::Unreadable(at) if *at == local);
            watch.seen.iter().filter(|(_, seen)| is_it(seen)).count()
        };
        // Until nothing more goes into the ring, however small.
        let mut known = Pair::of(&listener);
        for _ in 0..200 {
            known.ask(REQUEST);
            known.answer(BAD);
            let _ = TcpListener::bind("127.0.0.1:0").unwrap();
        }
        let unread = || {
            let mut pair = Pair::of(&listener);
            pair.ask(HELLO);
            pair.answer(b"\x16\x03\x03\x00\x30 a ServerHello, so to speak");
        };
        unread();
        watch.settle();
        assert!(watch.counter("kernel_ring_full") > 0);
        assert_eq!(told(&watch), 0, "{}", watch.trace());
        for _ in 0..2 {
            unread();
            watch.settle();
            assert_eq!(told(&watch), 1, "{}", watch.trace());
        }
    });
}

#[test]
fn a_client_without_room_makes_its_listener_unreadable() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let mut known = Pair::of(&listener);
        let peer = known.client.local_addr().unwrap().port();
        // The gateway's port and the client's, behind two addresses.
        let is_known = |client: &[u8; CLIENT]| {
            client[32..34] == local.port().to_ne_bytes() && client[34..36] == peer.to_ne_bytes()
        };
        let mut clients = tables::<u64, [u8; CLIENT]>("CLIENTS")
            .into_iter()
            .find(|table| table.iter().flatten().any(|(_, client)| is_known(&client)))
            .unwrap();
        // No socket has such a cookie.
        let full = (0..=CLIENTS).any(|n| clients.insert(u64::MAX - n, [0; CLIENT], 0).is_err());
        assert!(full);
        let unreadable = |seen: &Seen| matches!(seen, Seen::Unreadable(at) if *at == local);
        watch.settle();
        assert!(!watch.has(unreadable), "{}", watch.trace());
        let mut unseen = Pair::of(&listener);
        for pair in [&mut unseen, &mut known] {
            pair.ask(REQUEST);
            pair.answer(BAD);
        }
        assert_eq!(only_request(&mut watch, &known), REQUEST);
        assert!(watch.has(unreadable), "{}", watch.trace());
        assert!(answers(&watch, unseen.ends()).is_empty());
        assert_eq!(watch.counter("kernel_client_map_full"), 1);
    });
}

#[test]
fn a_method_may_be_long() {
    alone(|| {
        let mut watch = Watch::start(&config());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for method in ["VERSION-CONTROL", "UPDATEREDIRECTREF", "BASELINE-CONTROL"] {
            let request = format!("{method} /doc HTTP/1.1\r\nHost: h\r\n\r\n");
            let mut pair = Pair::of(&listener);
            pair.ask(request.as_bytes());
            pair.answer(GOOD);
            pair.ask(REQUEST);
            pair.answer(BAD);
            assert_eq!(only_request(&mut watch, &pair), REQUEST);
            let mut pair = Pair::of(&listener);
            pair.ask(request.as_bytes());
            pair.answer(BAD);
            assert_eq!(only_request(&mut watch, &pair), request.as_bytes());
        }
        assert_eq!(opaque(&watch), 0);
    });
}
