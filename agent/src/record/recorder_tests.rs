use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::engine::{self, Engine};
use crate::limits::Limits;
use crate::model::{
    Cause, Direction, Errno, IcmpError, IcmpKind, Signal, TcpFlags, TcpState, Turn,
};
use crate::record::testing::{FROM, HOP, START, TO, acknowledging, segment};
use crate::record::{CaptureFilter, RedactConfig, SamplerConfig, StoreLimits};

/// A hop between an engine and a recorder.
struct Line {
    engine: Engine,
    recorder: Recorder,
    store: Arc<Store>,
    sampler: Arc<Sampler>,
    now: Timestamp,
    /// Next sequence numbers of the gateway and of the upstream.
    next: [u32; 2],
    events: Vec<HopEvent>,
    _dir: TempDir,
}

impl Line {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), StoreLimits::default(), START).unwrap();
        let store = Arc::new(store);
        let sampler = Arc::new(Sampler::new(SamplerConfig::default()));
        let config = engine::Config {
            tell_healthy: true,
            ..engine::Config::default()
        };
        Self {
            engine: Engine::new(config, Limits::default()),
            recorder: Recorder::new(
                Redactor::new(RedactConfig::default()),
                RecordLimits::default(),
                Arc::clone(&store),
                Arc::clone(&sampler),
                Arc::from("gw1"),
            ),
            store,
            sampler,
            now: START,
            next: [100, 500],
            events: Vec::new(),
            _dir: dir,
        }
    }

    fn send(&mut self, direction: Direction, flags: TcpFlags, payload: &[u8]) {
        let own = usize::from(direction == FROM);
        let (seq, ack) = (self.next[own], self.next[1 - own]);
        let bytes = acknowledging(direction, seq, ack, flags, payload);
        let input = Input::Segment {
            hop: HOP,
            segment: segment(&bytes, direction),
        };
        self.now = self.now.after(Duration::from_micros(100));
        self.recorder.see(self.now, &input);
        self.engine.handle(self.now, input);
        let counts = flags.contains(TcpFlags::SYN) || flags.contains(TcpFlags::FIN);
        self.next[own] += payload.len() as u32 + u32::from(counts);
        self.keep();
    }

    fn keep(&mut self) {
        while let Some(mut event) = self.engine.poll_event() {
            self.recorder.keep(&mut event, self.now).unwrap();
            self.events.push(event);
        }
        while let Some(healthy) = self.engine.poll_healthy() {
            self.recorder.keep_healthy(&healthy, self.now).unwrap();
        }
    }

    fn open(&mut self) {
        self.send(TO, TcpFlags::SYN, b"");
        self.send(FROM, TcpFlags::SYN.union(TcpFlags::ACK), b"");
        self.send(TO, TcpFlags::ACK, b"");
    }

    fn data(&mut self, direction: Direction, payload: &[u8]) {
        for piece in payload.chunks(1448) {
            self.send(direction, TcpFlags::PSH.union(TcpFlags::ACK), piece);
        }
    }

    fn fin(&mut self, direction: Direction) {
        self.send(direction, TcpFlags::FIN.union(TcpFlags::ACK), b"");
    }

    fn exchange(&mut self) {
        self.data(TO, b"GET /a?q=1 HTTP/1.1\r\nHost: shop\r\n\r\n");
        self.data(FROM, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.engine.handle_timeout(self.now);
        self.keep();
    }
}

/// The causes that the capture of an event gives by itself.
fn from_capture(store: &Store, event: &HopEvent) -> Vec<Cause> {
    let id = event.capture_id.as_deref().unwrap().parse().unwrap();
    let section = store.read(id).unwrap();
    let mut engine = Engine::new(engine::Config::default(), Limits::default());
    let mut causes = Vec::new();
    let options = crate::source::Options::default();
    crate::source::analyze(&section[..], &options, &mut engine, &mut |event| {
        causes.push(event.cause);
    })
    .unwrap();
    causes
}

/// Runs a failure, and checks that its capture tells the same cause as the live packets did.
fn fails(cause: Cause, run: impl Fn(&mut Line)) {
    let mut line = Line::new();
    run(&mut line);
    line.wait(Duration::from_secs(3));
    let causes: Vec<_> = line.events.iter().map(|event| event.cause).collect();
    assert_eq!(causes, [cause]);
    assert_eq!(from_capture(&line.store, &line.events[0]), [cause]);
}

#[test]
fn captures_tell_the_same_cause() {
    let get = b"GET /a HTTP/1.1\r\nHost: shop\r\nCookie: secret\r\n\r\n";
    fails(Cause::Http1StatusLineInvalid, |line| {
        line.open();
        line.data(TO, get);
        line.data(FROM, b"HTTP/1.1 2x0 OK\r\nSet-Cookie: a\r\n\r\n");
    });
    fails(Cause::TcpConnectRefused, |line| {
        line.send(TO, TcpFlags::SYN, b"");
        line.send(FROM, TcpFlags::RST.union(TcpFlags::ACK), b"");
    });
    // The body is beyond the cap on bodies, its length is not.
    fails(Cause::Http1BodyTruncated, |line| {
        line.open();
        line.data(TO, get);
        line.data(FROM, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n");
        line.data(FROM, &[b'x'; 8000]);
        line.fin(FROM);
        line.fin(TO);
    });
    fails(Cause::Http1LastChunkMissing, |line| {
        line.open();
        line.data(TO, get);
        line.data(
            FROM,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        line.data(
            FROM,
            &[b"800\r\n", &[b'x'; 0x800][..], b"\r\n5\r\nab"].concat(),
        );
        line.fin(FROM);
        line.fin(TO);
    });
}

#[test]
fn a_reused_hop_is_seen_as_reused_in_its_capture() {
    let mut line = Line::new();
    line.open();
    for _ in 0..5 {
        line.exchange();
        line.now = line.now.after(Duration::from_secs(1));
    }
    line.data(TO, b"GET /b HTTP/1.1\r\nHost: shop\r\n\r\n");
    line.send(FROM, TcpFlags::RST.union(TcpFlags::ACK), b"");
    line.wait(Duration::from_secs(3));
    assert_eq!(line.events.len(), 1);
    let event = &line.events[0];
    assert!(event.connection.reused);
    assert_eq!(from_capture(&line.store, event), [event.cause]);
}

#[test]
fn the_first_healthy_exchange_is_kept_and_boosted_ones() {
    let mut line = Line::new();
    line.open();
    for _ in 0..5 {
        line.exchange();
    }
    let all = |line: &Line| line.store.list(&CaptureFilter::default());
    let first = all(&line);
    assert_eq!(first.len(), 1);
    assert_eq!(
        (first[0].cause, first[0].exchange.status),
        (None, Some(200))
    );
    assert_eq!(first[0].exchange.path.as_deref(), Some("/a"));
    let section = line.store.read(first[0].id).unwrap();
    assert!(memchr::memmem::find(&section, b"GET /a?*** HTTP/1.1").is_some());
    let until = line.now.after(Duration::from_mins(1));
    let upstream = ":8080".parse().unwrap();
    line.sampler.boost(upstream, 1, until, line.now).unwrap();
    for _ in 0..5 {
        line.exchange();
    }
    assert_eq!(all(&line).len(), 6);
    assert_eq!(line.events, []);
}

#[test]
fn icmp_errors_are_in_the_capture_of_their_hop() {
    let mut line = Line::new();
    line.send(TO, TcpFlags::SYN, b"");
    let error = IcmpError {
        netns: 0,
        from: [10, 0, 0, 254].into(),
        from_self: false,
        kind: IcmpKind::Unreachable,
        code: 1,
        local: SocketAddr::from(([10, 0, 0, 1], 40000)),
        upstream: SocketAddr::from(([10, 0, 0, 2], 8080)),
    };
    let mut packet = vec![
        0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 254, 10, 0, 0, 1,
    ];
    packet.extend([3, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend(
        acknowledging(TO, 100, 0, TcpFlags::SYN, b"")
            .get(..28)
            .unwrap(),
    );
    line.now = line.now.after(Duration::from_millis(1));
    let input = Input::Icmp {
        error,
        packet: &packet,
    };
    line.recorder.see(line.now, &input);
    line.engine.handle(line.now, input);
    let closed = Input::Signal {
        hop: HOP,
        signal: Signal::State {
            old: TcpState::SynSent,
            new: TcpState::Close,
            errno: Some(Errno::EHOSTUNREACH),
            bytes_acked: None,
            rtt_us: None,
            turn: Turn::default(),
        },
    };
    line.recorder.see(line.now, &closed);
    line.engine.handle(line.now, closed);
    line.wait(Duration::from_secs(3));
    let [event] = &line.events[..] else {
        panic!("{:?}", line.events)
    };
    let id = event.capture_id.as_deref().unwrap().parse().unwrap();
    let section = line.store.read(id).unwrap();
    assert!(memchr::memmem::find(&section, &packet).is_some());
    assert_eq!(from_capture(&line.store, event), [event.cause]);
}

#[test]
fn an_event_without_packets_has_no_capture() {
    let mut line = Line::new();
    let mut event = HopEvent {
        hop: None,
        ..crate::record::testing::event()
    };
    line.recorder.keep(&mut event, START).unwrap();
    event.hop = Some(HOP);
    line.recorder.keep(&mut event, START).unwrap();
    assert_eq!(event.capture_id, None);
    let counters = line.recorder.counters();
    assert!(counters.contains(&("recorder_events_without_packets", 2)));
}

#[test]
fn secrets_are_in_no_file() {
    let mut line = Line::new();
    line.open();
    line.data(
        TO,
        b"GET /m4rk3r?k=s3cr3t HTTP/1.1\r\nHost: m4rk3r\r\nAuthorization: Basic s3cr3t\r\n\r\n",
    );
    line.data(FROM, b"HTTP/1.1 200 OK\r\nX-Note: m4rk3r\r\nSet-Coo");
    line.data(FROM, b"kie: sid=s3cr3t\0s3cr3t\r\n\r\n");
    line.fin(FROM);
    line.fin(TO);
    line.wait(Duration::from_secs(3));
    assert_eq!(line.events.len(), 1);
    let json = serde_json::to_string(&line.events).unwrap();
    let debug = format!("{:?}", line.events);
    let mut files = Vec::new();
    for entry in line.store.dir().read_dir().unwrap() {
        files.extend(std::fs::read(entry.unwrap().path()).unwrap());
    }
    for output in [json.as_bytes(), debug.as_bytes(), &files] {
        assert!(memchr::memmem::find(output, b"s3cr3t").is_none());
        assert!(memchr::memmem::find(output, b"m4rk3r").is_some());
    }
    // Nor in base64, as JSON has bytes.
    let bytes: Vec<_> = line.events[0]
        .evidence
        .iter()
        .flat_map(|one| one.bytes.clone())
        .collect();
    assert!(memchr::memmem::find(&bytes, b"3cr3").is_none());
}
