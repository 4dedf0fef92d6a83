//! Whole lives of hops: lists of segments, signals and deadlines.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::Bytes;
use crate::engine::{Config, Engine, UpstreamTally};
use crate::limits::Limits;
use crate::model::{
    Actor, AnswerEnd, ClientAnswer, Departure, Direction, Errno, Exit, HopEvent, HopId, IcmpError,
    IcmpKind, Input, Process, Proof, Read, RecordHeads, ResetReason, Segment, Signal, SocketCall,
    Target, TcpFlags, TcpState, Timestamp, Turn,
};
use crate::stats::Stats;

/// So small that each cap is met.
pub(super) const LIMITS: Limits = Limits {
    hops: 4,
    reassembly_bytes: 256,
    reassembly_pieces: 4,
    head_bytes: 256,
    kept_bytes: 16 * 1024,
    pipelined: 3,
    upstreams: 2,
    lookups: 4,
    names: 4,
    events: 4096,
};

/// More than the table holds, so that some are evicted.
const HOPS: usize = 6;

const START: Timestamp = Timestamp::from_nanos(1_700_000_000_000_000_000);

const SENT: [&[u8]; 8] = [
    b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello",
    b"world",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01",
];

const RECEIVED: [&[u8]; 16] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil close",
    b"HTTP/1.1 200 OK\r\nContent-Le",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 5\r\n\r\nhello",
    b"\x15\x03\x03\0\x02\x02\x46",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
];

/// What clients ask, the first two of it also what gateways do.
const ASKED: [&[u8]; 4] = [
    b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
    b"GET /other HTTP/1.1\r\nHost: shop\r\nX-Request-ID: 7\r\n\r\n",
    b"",
];

const ANSWERED: [&[u8]; 4] = [
    b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    b"HTTP/1.1 503 No\r\n\r\n",
    b"HTTP/1.1 504 Late\r\n\r\n",
    b"HTTP/1.1 500",
];

/// Where the gateways listen.
const LISTENER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 1), 80);

const ERRNOS: [i32; 8] = [0, 1, 13, 99, 101, 104, 111, 113];

/// One side's sequence numbers.
#[derive(Clone, Copy)]
struct Side {
    next: u32,
    /// What the other side acknowledged.
    acked: u32,
}

#[derive(Clone, Copy)]
struct Ends {
    local: SocketAddr,
    upstream: SocketAddr,
    gateway_side: Side,
    upstream_side: Side,
}

/// When the engine began to track a hop, and when that was opened, each time.
#[derive(Default)]
struct Lives {
    tracked: Vec<Timestamp>,
    opened: Vec<Timestamp>,
}

struct World {
    engine: Engine,
    now: Timestamp,
    hops: [Ends; HOPS],
    lives: [Lives; HOPS],
    told: HashSet<(u64, usize, usize, u64)>,
    /// Answers so far, each to a client of its own.
    answers: u32,
    /// Those that no event told of.
    untold: HashSet<SocketAddr>,
    /// Attempts that an answer lists.
    listed: HashSet<String>,
    seen: Seen,
}

/// All that shows of what an engine made of its inputs.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    events: Vec<HopEvent>,
    stats: Stats,
    upstreams: BTreeMap<SocketAddr, UpstreamTally>,
    /// The next deadline, the sizes of the tables and the counters, after each input.
    steps: Vec<(Option<Timestamp>, [usize; 3], Stats)>,
}

impl World {
    fn new(engine: Engine) -> Self {
        let hop = |number: u16| {
            let side = |next| Side { next, acked: next };
            Ends {
                local: SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 40_000 + number)),
                upstream: SocketAddr::from((Ipv4Addr::new(10, 0, 0, 2), 8080 + number / 2)),
                gateway_side: side(u32::MAX - 20),
                upstream_side: side(5000),
            }
        };
        Self {
            engine,
            now: START,
            lives: Default::default(),
            hops: [hop(0), hop(1), hop(2), hop(3), hop(4), hop(5)],
            told: HashSet::new(),
            answers: 0,
            untold: HashSet::new(),
            listed: HashSet::new(),
            seen: Seen::default(),
        }
    }

    fn input(&mut self, hop: usize, input: Input<'_>) {
        let before = self.engine.stats().hops;
        self.now = self.now.after(Duration::from_micros(20));
        self.engine.handle(self.now, input);
        if self.engine.stats().hops > before {
            self.lives[hop].tracked.push(self.now);
        }
        self.check();
    }

    /// Everything that must hold at any time.
    fn check(&mut self) {
        assert!(self.engine.open_hops() <= LIMITS.hops, "hops above the cap");
        let [ends, places, deadlines] = self.engine.remembered();
        assert!(ends <= self.engine.open_hops(), "ends without a hop");
        assert!(places <= 2 * LIMITS.hops + 1, "places without a hop");
        assert!(deadlines < 2048, "deadlines without a hop");
        let (due, sizes) = (self.engine.poll_timeout(), self.engine.remembered());
        self.seen.steps.push((due, sizes, self.engine.stats()));
        while let Some(event) = self.engine.poll_event() {
            assert!(!event.evidence.is_empty(), "{event:?}");
            let open = event.proof == Proof::Underdetermined;
            assert_eq!(event.rivals.is_empty(), !open, "{event:?}");
            assert_eq!(event.splitter.is_none(), !open, "{event:?}");
            self.check_answer(&event);
            let mut id = event.id.split('-').skip(1);
            let mut number = || u64::from_str_radix(id.next()?, 16).ok();
            // A connect that failed without a hop has no number that could be met twice.
            // Nor has an answer without an attempt.
            let is_hop = !event.id.contains("-c") && !event.id.contains("-a");
            if let Some(hop) = number().filter(|_| is_hop) {
                let ordinal = number().unwrap_or_default();
                let lives = &self.lives[usize::try_from(hop).unwrap_or(0) % HOPS];
                // An event may be held until the hop has its next life.
                let life = lives.tracked.iter().filter(|at| **at <= event.time);
                let opened = lives.opened.iter().filter(|at| **at < event.time);
                let attempt = if ordinal == 0 { opened.count() } else { 0 };
                assert!(
                    self.told.insert((hop, life.count(), attempt, ordinal)),
                    "two events for one exchange: {event:?} after {:?}",
                    self.seen.events
                );
            }
            self.seen.events.push(event);
        }
    }

    /// Each answer is told of once at most, and each attempt is listed by one answer at most.
    fn check_answer(&mut self, event: &HopEvent) {
        let Some(answer) = &event.gateway_answer else {
            return;
        };
        assert!(!event.hidden_from_client, "hidden and told: {event:?}");
        let client = SocketAddr::new(answer.client.address, answer.client.port);
        assert!(self.untold.remove(&client), "told twice: {event:?}");
        for attempt in &answer.attempts {
            let is_new = self.listed.insert(attempt.event.clone());
            assert!(is_new, "{} is listed twice: {event:?}", attempt.event);
        }
        assert!(!answer.candidates.contains(&event.id), "{event:?}");
    }

    /// Everything that must hold at the end.
    fn check_counts(&self) {
        let stats = self.engine.stats();
        let counted = stats.answers_explained
            + stats.answers_ambiguous
            + stats.answers_unexplained
            + stats.answers_passed_on
            + stats.answers_without_status
            + stats.answers_dropped;
        assert_eq!(counted, u64::from(self.answers), "{stats:?}");
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn segment(
        &mut self,
        hop: usize,
        to: bool,
        flags: u8,
        seq: u32,
        payload: &[u8],
        more: u32,
        window: u16,
    ) {
        let ends = self.hops[hop];
        let (direction, other) = if to {
            (Direction::ToUpstream, ends.upstream_side)
        } else {
            (Direction::FromUpstream, ends.gateway_side)
        };
        let segment = Segment {
            direction,
            local: ends.local,
            upstream: ends.upstream,
            seq,
            ack: other.acked,
            flags: TcpFlags(flags),
            window,
            payload,
            wire_len: u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .saturating_add(more),
            ttl: if flags & 0x40 == 0 { 64 } else { 57 },
            ip_id: None,
            records: RecordHeads::NONE,
            packet: &[],
        };
        let id = HopId(hop as u64);
        self.input(hop, Input::Segment { hop: id, segment });
    }

    fn side(&mut self, hop: usize, to: bool) -> &mut Side {
        if to {
            &mut self.hops[hop].gateway_side
        } else {
            &mut self.hops[hop].upstream_side
        }
    }

    /// The next bytes of a side, and of its sequence space.
    fn send(&mut self, hop: usize, to: bool, flags: TcpFlags, payload: &[u8]) {
        self.send_with(hop, to, flags, payload, 500);
    }

    fn send_with(&mut self, hop: usize, to: bool, flags: TcpFlags, payload: &[u8], window: u16) {
        let controls = [TcpFlags::SYN, TcpFlags::FIN];
        let taken = controls
            .iter()
            .filter(|flag| flags.contains(**flag))
            .count()
            + payload.len();
        let side = self.side(hop, to);
        let seq = side.next;
        side.next = seq.wrapping_add(u32::try_from(taken).unwrap_or(0));
        self.segment(hop, to, flags.0, seq, payload, 0, window);
    }

    fn signal(&mut self, hop: usize, signal: Signal) {
        let id = HopId(hop as u64);
        self.input(hop, Input::Signal { hop: id, signal });
    }

    fn operation(&mut self, data: &mut Bytes<'_>) {
        let operation = data.u8();
        let hop = usize::from(operation >> 4) % HOPS;
        let ends = self.hops[hop];
        let ack = TcpFlags::ACK;
        match operation & 15 {
            0 => {
                // A SYN that is sent again has the same number.
                let seq = u32::MAX - 20;
                self.hops[hop].gateway_side.next = seq.wrapping_add(1);
                self.segment(hop, true, TcpFlags::SYN.0, seq, &[], 0, 500);
            }
            1 => {
                self.hops[hop].upstream_side.next = 5000;
                self.hops[hop].gateway_side.acked = ends.gateway_side.next;
                self.send(hop, false, TcpFlags::SYN.union(ack), &[]);
                self.hops[hop].upstream_side.acked = 5001;
            }
            2 => {
                let bytes = SENT[data.index(SENT.len())];
                self.send(hop, true, ack, bytes);
            }
            3 => {
                let bytes = RECEIVED[data.index(RECEIVED.len())];
                self.send(hop, false, ack, bytes);
            }
            4 | 5 => {
                let length = data.index(64);
                let bytes = data.slice(length);
                self.send(hop, operation & 15 == 4, ack, bytes);
            }
            6 => {
                let how = data.u8();
                let to = how & 1 == 0;
                let side = self.side(hop, !to);
                // All that was sent, or a part of it, or what was acknowledged before.
                side.acked = match how >> 1 & 3 {
                    0 | 1 => side.next,
                    2 => side.next.wrapping_sub(3),
                    _ => side.acked,
                };
                let window = if how & 8 == 0 { 500 } else { 0 };
                self.send_with(hop, to, ack, &[], window);
            }
            7 => {
                let to = data.u8() & 1 == 0;
                self.send(hop, to, TcpFlags::FIN.union(ack), &[]);
            }
            8 => {
                let how = data.u8();
                let flags = if how & 2 == 0 {
                    TcpFlags::RST
                } else {
                    TcpFlags::RST.union(ack)
                };
                self.send(hop, how & 1 == 0, flags, &[]);
            }
            9 => {
                let flags = data.u8();
                let how = data.u8();
                let to = how & 1 == 0;
                // Translated addresses: another upstream than the socket's own.
                let port = 9000 + u16::from(how >> 2);
                if how & 2 != 0 {
                    self.hops[hop].upstream.set_port(port);
                }
                let shift = i32::from(data.u16().cast_signed());
                let more = data.u16();
                let length = data.index(32);
                let bytes = data.slice(length);
                let seq = self.side(hop, to).next.wrapping_add_signed(shift);
                let window = if flags & 0x80 == 0 { 500 } else { 0 };
                self.segment(hop, to, flags, seq, bytes, u32::from(more), window);
                self.hops[hop].upstream = ends.upstream;
            }
            10 => {
                let state = |number: u8| {
                    TcpState::from_kernel(u32::from(number % 12) + 1).unwrap_or(TcpState::Close)
                };
                let (old, new) = (state(data.u8()), state(data.u8()));
                let errno = Errno(ERRNOS[data.index(ERRNOS.len())]);
                let rest = data.u8();
                let signal = Signal::State {
                    old,
                    new,
                    errno: (errno.0 != 0).then_some(errno),
                    bytes_acked: (rest & 1 == 0).then_some(u64::from(rest >> 2)),
                    rtt_us: (rest & 2 == 0).then_some(u32::from(rest)),
                    turn: turn(rest),
                };
                self.signal(hop, signal);
            }
            11 => self.other_signal(hop, data),
            12 => {
                let code = data.u8();
                let from_self = data.u8() & 1 != 0;
                self.input(
                    hop,
                    Input::Icmp {
                        error: IcmpError {
                            netns: 0,
                            from: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)),
                            from_self,
                            kind: IcmpKind::Unreachable,
                            code,
                            local: ends.local,
                            upstream: ends.upstream,
                        },
                        packet: &[],
                    },
                );
            }
            13 => {
                let how = data.u8();
                let millis = 1_u64 << (how & 0x1f).min(20);
                let until = self.now.after(Duration::from_millis(millis));
                if how & 0x20 == 0 {
                    while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= until) {
                        self.engine.handle_timeout(due);
                        self.check();
                        let next = self.engine.poll_timeout();
                        assert!(next.is_none_or(|next| next > due), "{due} is due again");
                    }
                }
                self.now = until;
            }
            14 => self.hopless(hop, data),
            _ => {
                // What nobody observed.
                let to = data.u8() & 1 == 0;
                let length = u32::from(data.u8());
                let side = self.side(hop, to);
                side.next = side.next.wrapping_add(length);
            }
        }
    }

    fn other_signal(&mut self, hop: usize, data: &mut Bytes<'_>) {
        let ends = self.hops[hop];
        let how = data.u8();
        let errno = Errno(ERRNOS[data.index(ERRNOS.len())]);
        let (local, upstream) = (ends.local, ends.upstream);
        let signal = match how & 7 {
            0 | 1 => Signal::Opened {
                process: process(how),
                local: (how & 8 != 0).then_some(local),
                upstream,
                turn: Turn::default(),
                turn_age: (how & 8 == 0).then(|| Duration::from_micros(how.into())),
                goroutine: None,
            },
            2 => Signal::Seeded {
                process: process(how),
                local,
                upstream,
            },
            3 => Signal::ConnectReturned { errno },
            4 => Signal::ResetReceived,
            5 => Signal::ResetSent {
                by: if how & 8 == 0 {
                    Actor::Upstream
                } else {
                    Actor::Gateway
                },
                reason: match how >> 4 & 3 {
                    0 => Some(ResetReason::AbortOnClose),
                    1 => Some(ResetReason::AbortOnLinger),
                    2 => Some(ResetReason::NoSocket),
                    _ => None,
                },
            },
            6 => Signal::Retransmitted {
                state: (how & 8 != 0).then_some(TcpState::SynSent),
            },
            _ => Signal::SocketError { errno },
        };
        let opened = matches!(signal, Signal::Opened { .. });
        self.signal(hop, signal);
        // What was held of the attempt before is told first.
        if opened {
            self.lives[hop].opened.push(self.now);
        }
    }

    fn hopless(&mut self, hop: usize, data: &mut Bytes<'_>) {
        let how = data.u8();
        let oldest = [(0, self.now.before(Duration::from_millis(how.into())))];
        let input = match how & 7 {
            0 => Input::Lost {
                records: u64::from(how >> 3),
            },
            1 => Input::ClientLeft {
                turn: turn(how),
                departure: match how % 3 {
                    0 => Departure::Waiting,
                    1 => Departure::Answered,
                    _ => Departure::Unknown,
                },
            },
            2 | 3 => Input::ConnectFailed {
                process: process(how),
                upstream: if how & 1 == 0 {
                    self.hops[hop].upstream.into()
                } else {
                    Target::Unix(Arc::from("/run/app.sock"))
                },
                errno: Errno(ERRNOS[data.index(ERRNOS.len())]),
                turn: (how & 8 != 0).then(|| turn(how)),
                goroutine: None,
            },
            4 => Input::Listening {
                process: process(how),
                local: LISTENER.into(),
                readable: how & 0x80 == 0,
            },
            5 => return self.answer(hop, how, data),
            6 => Input::SocketFailed {
                process: process(how),
                turn: turn(how),
                call: if how & 8 == 0 {
                    SocketCall::Socket
                } else {
                    SocketCall::Bind
                },
                errno: Errno::EADDRNOTAVAIL,
            },
            _ => Input::Waiting(if how & 8 == 0 { &oldest } else { &[] }),
        };
        self.input(hop, input);
    }

    /// A client gets an answer, or none.
    fn answer(&mut self, hop: usize, how: u8, data: &mut Bytes<'_>) {
        let request = ASKED[data.index(ASKED.len())];
        let response = ANSWERED[data.index(ANSWERED.len())];
        let (when, whom) = (data.u8(), data.u8());
        self.answers += 1;
        let [_, high, middle, low] = self.answers.to_be_bytes();
        let client = SocketAddr::from(([198, 51, high, middle], 1024 + u16::from(low)));
        self.untold.insert(client);
        let waited = Duration::from_micros(50 << (when & 15));
        let answer = ClientAnswer {
            process: process(how),
            turn: (whom & 1 == 0).then(|| turn(whom)),
            goroutine: (whom & 2 != 0).then_some(u64::from(whom >> 4)),
            listener: LISTENER.into(),
            client,
            on_behalf_of: None,
            waited,
            read: (when & 16 != 0).then(|| Read {
                waited: waited * u32::from(when >> 5) / 8,
                turn: turn(whom),
            }),
            ordinal: 1,
            request,
            end: if whom & 0x0c == 0x0c {
                AnswerEnd::Closed {
                    exit: (whom & 16 != 0).then_some(Exit { signal: 9 }),
                }
            } else {
                AnswerEnd::Response(response)
            },
        };
        self.input(hop, Input::Answer(answer));
    }
}

/// One of four threads, in its first turn.
fn turn(byte: u8) -> Turn {
    Turn {
        thread: u32::from(byte >> 6),
        number: 0,
    }
}

fn process(how: u8) -> Arc<Process> {
    let comm = match how >> 4 & 3 {
        0 => "nginx",
        1 => "haproxy",
        2 => "envoy",
        _ => "caddy",
    };
    Arc::new(Process {
        pid: 42,
        comm: Arc::from(comm),
        ..Process::default()
    })
}

fn run(data: &[u8], engine: Engine) -> Seen {
    let mut data = Bytes(data);
    let mut world = World::new(engine);
    while !data.is_empty() {
        world.operation(&mut data);
    }
    world.engine.finish(world.now);
    world.check();
    assert_eq!(world.engine.open_hops(), 0, "finish leaves hops");
    assert_eq!(world.engine.remembered()[0], 0, "finish leaves ends");
    world.engine.handle_timeout(Timestamp::MAX);
    world.check();
    world.check_counts();
    assert_eq!(world.engine.poll_timeout(), None, "finish leaves deadlines");
    world.seen.stats = world.engine.stats();
    world.seen.upstreams = world.engine.upstreams();
    world.seen
}

/// Lives of several hops: no panic, caps kept, one event an exchange at most, nothing left at the
/// end, and the same events and counters when it is done again, with every segment going the long way.
///
/// # Panics
///
/// Where one of these does not hold.
pub fn engine(data: &[u8]) {
    let engine = || Engine::new(Config::default(), LIMITS);
    let long = run(data, engine().by_the_long_way());
    let first = run(data, engine());
    assert_eq!(run(data, engine()), first, "the same inputs, other events");
    for (step, (short, long)) in first.steps.iter().zip(&long.steps).enumerate() {
        assert_eq!(short, long, "the short way differs first at step {step}");
    }
    assert_eq!(first, long, "the short way says something else");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// An operation on a hop and what it takes.
    fn operation(code: u8, hop: u8, takes: &[u8]) -> Vec<u8> {
        [&[hop << 4 | code], takes].concat()
    }

    /// Anything, most of it what connections consist of.
    fn step() -> impl Strategy<Value = Vec<u8>> {
        let hop = 0..HOPS as u8;
        let kind = prop_oneof![
            2 => (0_u8..2, vec(any::<u8>(), 0..1)),
            4 => (2_u8..4, vec(any::<u8>(), 1)),
            4 => (6_u8..8, vec(any::<u8>(), 1)),
            1 => (8_u8..9, vec(any::<u8>(), 1)),
            1 => (9_u8..10, vec(any::<u8>(), 7..12)),
            1 => (13_u8..14, vec(0_u8..8, 1)),
            3 => (14_u8..15, vec(any::<u8>(), 5)),
            1 => (15_u8..16, vec(any::<u8>(), 2)),
        ];
        (hop, kind).prop_map(|(hop, (code, takes))| operation(code, hop, &takes))
    }

    /// A short connection, and perhaps what its client gets behind it. Each of its steps is missed, seen twice, or in
    /// another place now and then.
    fn life() -> impl Strategy<Value = Vec<u8>> {
        const STEPS: usize = 13;
        let fate = prop_oneof![12 => Just(1), 1 => Just(0), 1 => Just(2)];
        let fates = vec(fate, STEPS);
        let turned = prop_oneof![3 => Just(None), 1 => (0..STEPS - 1).prop_map(Some)];
        let exchange = (0_u8..2, 0_u8..16, any::<u8>());
        // Which gateway it is; what was asked and answered, when, and by whom.
        let gateway = (0_u8..4).prop_map(|gateway| gateway << 4);
        let answer = (
            0_u8..4,
            0_u8..4,
            3_u8..12,
            prop_oneof![2 => Just(0), 1 => any::<u8>()],
        );
        (0..HOPS as u8, exchange, gateway, answer, fates, turned).prop_map(
            |(hop, (request, response, first), gateway, answer, fates, turned)| {
                let (asked, answered, when, whom) = answer;
                let mut steps: [_; STEPS] = [
                    operation(11, hop, &[gateway | 8, 0]),
                    operation(0, hop, &[]),
                    operation(1, hop, &[]),
                    operation(6, hop, &[0]),
                    operation(2, hop, &[request]),
                    operation(6, hop, &[1]),
                    operation(3, hop, &[response]),
                    operation(6, hop, &[0]),
                    operation(7, hop, &[first]),
                    operation(6, hop, &[first ^ 1]),
                    operation(7, hop, &[first ^ 1]),
                    operation(6, hop, &[first]),
                    operation(14, hop, &[gateway | 5, asked, answered, when, whom]),
                ];
                if let Some(at) = turned {
                    steps.swap(at, at + 1);
                }
                let seen = steps.iter().zip(fates);
                seen.flat_map(|(step, times)| step.repeat(times)).collect()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn the_short_ways_say_what_the_long_way_says(
            steps in vec(prop_oneof![life(), step()], 1..30),
        ) {
            engine(&steps.concat());
        }
    }
}
