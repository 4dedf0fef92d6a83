//! What real gateways write and read inside TLS, and a program with OpenSSL inside.

use std::io::Write as _;
use std::ops::Range;
use std::process::{Command, Stdio};

use hopscope::live::LiveConfig;
use hopscope::model::{Direction, HopId, Plaintext, Signal};

use crate::library::{Bed, Gateway, Kind, Running, hop_to};
use crate::support::{Seen, Watch};

/// What went each way of a hop meanwhile, put together; every piece must follow the one before.
fn inside(watch: &Watch, range: Range<usize>, wanted: HopId) -> [Vec<u8>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for (hop, seen) in &watch.seen[range] {
        let Seen::Text {
            direction,
            offset,
            payload,
            len,
        } = seen
        else {
            continue;
        };
        assert_eq!(*hop, Some(wanted), "of another hop\n{}", watch.trace());
        let stream = &mut streams[usize::from(*direction == Direction::FromUpstream)];
        // What goes out of a file is not seen.
        let unseen = if *direction == Direction::ToUpstream && *len == 0 {
            Plaintext::UNKNOWN
        } else {
            0
        };
        let expected = stream.len() as u64 + unseen;
        assert_eq!(*offset, expected, "a gap\n{}", watch.trace());
        stream.extend_from_slice(payload);
        // What was not captured.
        stream.resize(stream.len() + *len as usize - payload.len(), 0);
    }
    streams
}

/// Whether the upstream's end was read: the gateway asked for more, and there was none.
fn is_read_to_its_end(watch: &Watch, from: usize) -> bool {
    let mut reads = watch.seen[from..]
        .iter()
        .filter_map(|(_, seen)| match seen {
            Seen::Text {
                direction: Direction::FromUpstream,
                len,
                ..
            } => Some(*len),
            _ => None,
        });
    reads.next_back() == Some(0)
}

fn gateway(kind: Kind) {
    let mut bed = Bed::new();
    for version in ["TLSv1.2", "TLSv1.3"] {
        bed.serve("good", version, &[]);
    }
    let gateway = Gateway::start(kind, &bed);
    let mut watch = gateway.watch_with(true);
    for upstream in 0..bed.upstreams.len() {
        let from = watch.seen.len();
        assert_eq!(gateway.get(upstream), "200");
        watch.settle();
        let hop = hop_to(&watch, from, bed.upstreams[upstream].port);
        let [to, back] = inside(&watch, from..watch.seen.len(), hop);
        assert!(to.starts_with(b"GET /"), "{}", watch.trace());
        assert!(to.ends_with(b"\r\n\r\n"), "{}", watch.trace());
        assert!(
            back.starts_with(b"HTTP/1.0 200 ok\r\n"),
            "{}",
            watch.trace()
        );
        assert!(is_read_to_its_end(&watch, from), "{}", watch.trace());
    }
    watch.assert_no_loss();
}

#[test]
fn nginx_shows_both_directions() {
    gateway(Kind::Nginx);
}

#[test]
fn haproxy_shows_both_directions() {
    gateway(Kind::Haproxy);
}

#[test]
fn a_static_openssl_is_heard_and_may_shake_hands_in_a_write() {
    let mut bed = Bed::new();
    for _ in 0..2 {
        bed.serve("good", "TLSv1.3", &[]);
    }
    let ports = [bed.upstreams[0].port, bed.upstreams[1].port];
    for functions in ["plain", "ex"] {
        let name = format!("st{}{functions}", std::process::id());
        bed.compile("client.c", &name);
        let program = start(Command::new(bed.path(&name)), functions, ports);
        two_requests(&name, program, ports, &[], true);
    }
}

/// Starts the program of `client.c`, which waits then.
pub(super) fn start(mut command: Command, functions: &str, ports: [u16; 2]) -> Running {
    let child = command
        .arg(functions)
        .args(ports.map(|port| port.to_string()))
        .stdin(Stdio::piped())
        .spawn();
    Running(child.unwrap())
}

/// Has it make its requests, and looks at what is seen inside its connections, once its `libraries` are found;
/// `sends_files` where it ends with `SSL_sendfile`.
pub(super) fn two_requests(
    name: &str,
    mut program: Running,
    ports: [u16; 2],
    libraries: &[&str],
    sends_files: bool,
) {
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![name.to_owned()],
        tls_plaintext: true,
        ..LiveConfig::default()
    });
    watch.until("the program's OpenSSL", |watch| {
        let rows = watch.source.probes();
        let found = |library: &str| {
            rows.iter().any(|row| {
                row.name == "tls_library"
                    && row.attached
                    && row.reason.contains(name)
                    && row.reason.contains(library)
            })
        };
        found("") && libraries.iter().all(|library| found(library))
    });
    let from = watch.seen.len();
    program.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
    watch.settle();
    let opened = |from: usize| {
        let opens = |seen: &(_, Seen)| matches!(seen.1, Seen::Signal(Signal::Opened { .. }));
        from + watch.seen[from..].iter().position(opens).unwrap()
    };
    let first = opened(from);
    let second = opened(first + 1);
    let ranges = [first..second, second..watch.seen.len()];
    for (range, port) in ranges.into_iter().zip(ports) {
        let hop = hop_to(&watch, range.start, port);
        let [to, back] = inside(&watch, range, hop);
        assert_eq!(to, b"GET /static HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(
            back.starts_with(b"HTTP/1.0 200 ok\r\n"),
            "{}",
            watch.trace()
        );
    }
    assert!(is_read_to_its_end(&watch, from), "{}", watch.trace());
    // What goes out of a file is not seen, and that is told.
    let unseen = watch.seen[second..].iter().any(|(_, seen)| {
        matches!(
            seen,
            Seen::Text {
                direction: Direction::ToUpstream,
                len: 0,
                ..
            }
        )
    });
    assert_eq!(unseen, sends_files, "{}", watch.trace());
}
