//! A simulated hop: segments with correct sequence numbers, and the kernel's signals if wanted.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Config, Engine};
use crate::limits::Limits;
use crate::model::{
    Actor, Cause, Direction, Errno, FIRST_BYTE_CLASSES, Goroutine, HeldExchanges, HopEvent, HopId,
    IcmpError, IcmpKind, Input, Process, Proof, RecordHeads, ResetReason, Segment, Signal,
    TcpFlags, TcpState, Timestamp, Turn,
};

pub(super) const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// The turn in which the gateway closes.
pub(super) const TURN: Turn = Turn {
    thread: 43,
    number: 7,
};

const START: u64 = 1_700_000_000_000_000_000;
const ACK: TcpFlags = TcpFlags::ACK;

/// Runs a scenario with kernel signals and from packets alone.
pub(super) fn both(mut run: impl FnMut(&mut Sim)) {
    for mut sim in [Sim::live("nginx"), Sim::packets()] {
        run(&mut sim);
    }
}

pub(super) struct Sim {
    pub(super) engine: Engine,
    now: Timestamp,
    hop: HopId,
    local: SocketAddr,
    upstream: SocketAddr,
    /// Next sequence numbers of gateway and upstream.
    gateway_seq: u32,
    upstream_seq: u32,
    /// What each side has acknowledged of the other.
    upstream_acked: u32,
    gateway_acked: u32,
    /// Name of the gateway process, if a kernel tells it.
    comm: Option<&'static str>,
    pub(super) window: u16,
    /// Time to live of the upstream's segments.
    pub(super) ttl: u8,
    /// Network namespace of the gateway process.
    pub(super) netns: u64,
    /// The turn in which it does what it does.
    pub(super) turn: Turn,
    /// How long that turn lasts as it connects, where that is known.
    pub(super) turn_age: Option<Duration>,
    /// The goroutine that connects next.
    pub(super) goroutine: Option<Goroutine>,
    /// Whether each segment is seen before and behind a router as well.
    pub(super) twice: bool,
    /// Headers of records in the next segment, as the kernel lays them out.
    heads: Vec<u8>,
    /// The direction that is seen, if the other is not.
    pub(super) only: Option<Direction>,
    events: Vec<HopEvent>,
    /// The clients that wait when that is asked next.
    pub(super) waiting: Vec<(u64, Timestamp)>,
    /// The hops that are not turned to: local port and sequence numbers.
    others: HashMap<u64, (u16, [u32; 4])>,
}

impl Sim {
    /// A hop seen by packets alone.
    pub(super) fn packets() -> Self {
        Self::with(None, Limits::default())
    }

    /// A hop of this gateway process, with the kernel's signals.
    pub(super) fn live(comm: &'static str) -> Self {
        Self::with(Some(comm), Limits::default())
    }

    pub(super) fn with(comm: Option<&'static str>, limits: Limits) -> Self {
        Self {
            engine: Engine::new(Config::default(), limits),
            now: Timestamp::from_nanos(START),
            hop: HopId(7),
            local: "10.0.0.1:40000".parse().unwrap(),
            upstream: "10.0.0.2:8080".parse().unwrap(),
            gateway_seq: u32::MAX - 20,
            upstream_seq: 5000,
            upstream_acked: u32::MAX - 20,
            gateway_acked: 5000,
            comm,
            window: 500,
            netns: 0,
            turn: TURN,
            turn_age: None,
            goroutine: None,
            twice: false,
            heads: Vec::new(),
            only: None,
            events: Vec::new(),
            waiting: Vec::new(),
            ttl: 64,
            others: HashMap::new(),
        }
    }

    /// Turns to another hop of the same engine.
    pub(super) fn next_hop(&mut self) {
        self.hop = HopId(self.hop.0 + 1);
        self.local.set_port(self.local.port() + 1);
    }

    /// Does something on another hop, and comes back to this one.
    pub(super) fn aside(&mut self, run: impl FnOnce(&mut Self)) -> &mut Self {
        let here = (self.hop.0, self.local.port());
        self.turn_to(here.0 + 1, here.1 + 1);
        run(self);
        self.turn_to(here.0, here.1)
    }

    /// Turns to this hop, a new one or one that was turned to before.
    pub(super) fn on(&mut self, number: u64) -> &mut Self {
        let port = 41_000 + u16::try_from(number).unwrap();
        self.turn_to(number, port)
    }

    fn turn_to(&mut self, number: u64, port: u16) -> &mut Self {
        let here = [
            self.gateway_seq,
            self.upstream_seq,
            self.upstream_acked,
            self.gateway_acked,
        ];
        self.others.insert(self.hop.0, (self.local.port(), here));
        let fresh = (port, [u32::MAX - 20, 5000, u32::MAX - 20, 5000]);
        let (port, there) = self.others.remove(&number).unwrap_or(fresh);
        self.hop = HopId(number);
        self.local.set_port(port);
        [
            self.gateway_seq,
            self.upstream_seq,
            self.upstream_acked,
            self.gateway_acked,
        ] = there;
        self
    }

    /// Turns to the hop with the same ends in network namespace `netns`.
    pub(super) fn namespace(&mut self, netns: u64) -> &mut Self {
        self.hop = HopId(1000 + netns);
        self.netns = netns;
        self
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// The gateway's end of the hop.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Name of the gateway process.
    pub(super) fn comm(&self) -> Option<&'static str> {
        self.comm
    }

    /// Changes the port that segments and signals show from now on.
    pub(super) fn translated(&mut self, port: u16) {
        self.upstream.set_port(port);
    }

    pub(super) fn sleep(&mut self, time: Duration) -> &mut Self {
        let until = self.now.after(time);
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= until) {
            self.engine.handle_timeout(due);
            if self.engine.asks_who_waits() {
                let oldest = std::mem::take(&mut self.waiting);
                self.engine.handle(due, Input::Waiting(&oldest));
            }
        }
        self.now = until;
        self.drain();
        self
    }

    pub(super) fn ms(&mut self, ms: u64) -> &mut Self {
        self.sleep(Duration::from_millis(ms))
    }

    fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
    }

    pub(super) fn input(&mut self, input: Input<'_>) {
        self.now = self.now.after(Duration::from_micros(20));
        self.engine.handle(self.now, input);
        self.drain();
    }

    pub(super) fn signal(&mut self, signal: Signal) -> &mut Self {
        if self.comm.is_some() {
            self.input(Input::Signal {
                hop: self.hop,
                signal,
            });
        }
        self
    }

    pub(super) fn state(
        &mut self,
        old: TcpState,
        new: TcpState,
        errno: Option<Errno>,
        bytes_acked: u64,
    ) -> &mut Self {
        self.signal(Signal::State {
            old,
            new,
            errno,
            bytes_acked: Some(bytes_acked),
            rtt_us: None,
            turn: self.turn,
        })
    }

    fn process(&self) -> Arc<Process> {
        Arc::new(Process {
            pid: 42,
            comm: Arc::from(self.comm.unwrap_or("")),
            netns: self.netns,
            ..Process::default()
        })
    }

    pub(super) fn segment(
        &mut self,
        direction: Direction,
        flags: TcpFlags,
        seq: u32,
        payload: &[u8],
        wire_len: u32,
    ) {
        let ack = match direction {
            Direction::ToUpstream => self.gateway_acked,
            Direction::FromUpstream => self.upstream_acked,
        };
        let payload = (payload, wire_len);
        self.acking(direction, flags, seq, ack, payload);
    }

    /// An empty segment that acknowledges something else than what its sender got.
    pub(super) fn segment_acking(
        &mut self,
        direction: Direction,
        flags: TcpFlags,
        seq: u32,
        ack: u32,
    ) {
        self.acking(direction, flags, seq, ack, (&[], 0));
    }

    fn acking(
        &mut self,
        direction: Direction,
        flags: TcpFlags,
        seq: u32,
        ack: u32,
        (payload, wire_len): (&[u8], u32),
    ) {
        if self.only.is_some_and(|only| only != direction) {
            return;
        }
        let heads = std::mem::take(&mut self.heads);
        let segment = Segment {
            direction,
            local: self.local,
            upstream: self.upstream,
            seq,
            ack,
            flags,
            window: self.window,
            payload,
            wire_len,
            ttl: match direction {
                Direction::ToUpstream => 64,
                Direction::FromUpstream => self.ttl,
            },
            ip_id: None,
            records: RecordHeads::new(&heads),
            packet: &[],
        };
        self.input(Input::Segment {
            hop: self.hop,
            segment,
        });
        if self.twice {
            let ttl = segment.ttl - 1;
            self.input(Input::Segment {
                hop: self.hop,
                segment: Segment { ttl, ..segment },
            });
        }
    }

    pub(super) fn syn(&mut self) -> &mut Self {
        let (process, upstream) = (self.process(), self.upstream);
        self.signal(Signal::Opened {
            process,
            local: None,
            upstream,
            turn: self.turn,
            turn_age: self.turn_age,
            goroutine: self.goroutine,
        });
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, TcpFlags::SYN, seq, &[], 0);
        self
    }

    pub(super) fn syn_again(&mut self) -> &mut Self {
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, TcpFlags::SYN, seq, &[], 0);
        self
    }

    pub(super) fn open(&mut self) -> &mut Self {
        self.syn().established()
    }

    /// The rest of a handshake whose SYN was sent.
    pub(super) fn established(&mut self) -> &mut Self {
        self.gateway_seq = self.gateway_seq.wrapping_add(1);
        self.upstream_acked = self.gateway_seq;
        let seq = self.upstream_seq;
        self.segment(
            Direction::FromUpstream,
            TcpFlags::SYN.union(ACK),
            seq,
            &[],
            0,
        );
        self.upstream_seq += 1;
        self.gateway_acked = self.upstream_seq;
        self.state(TcpState::SynSent, TcpState::Established, None, 1);
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, ACK, seq, &[], 0);
        self
    }

    /// The upstream sends its SYN-ACK once more.
    pub(super) fn syn_ack_again(&mut self) -> &mut Self {
        let (flags, seq) = (TcpFlags::SYN.union(ACK), self.upstream_seq.wrapping_sub(1));
        self.segment(Direction::FromUpstream, flags, seq, &[], 0);
        self
    }

    /// The SYN-ACK comes, and the gateway answers it with a reset.
    pub(super) fn syn_ack_reset(&mut self, flags: TcpFlags) -> &mut Self {
        self.upstream_acked = self.gateway_seq.wrapping_add(1);
        let (syn_ack, seq) = (TcpFlags::SYN.union(ACK), self.upstream_seq);
        self.segment(Direction::FromUpstream, syn_ack, seq, &[], 0);
        let seq = self.upstream_acked;
        self.segment(Direction::ToUpstream, flags, seq, &[], 0);
        self
    }

    /// The gateway gives up a connect.
    pub(super) fn give_up(&mut self) -> &mut Self {
        self.state(TcpState::SynSent, TcpState::Close, None, 0)
    }

    /// Tells of a connection that was already open.
    pub(super) fn seeded(&mut self) -> &mut Self {
        let (process, local, upstream) = (self.process(), self.local, self.upstream);
        self.signal(Signal::Seeded {
            process,
            local,
            upstream,
        })
    }

    /// The gateway sends; nothing acknowledges it yet.
    pub(super) fn send(&mut self, bytes: &[u8]) -> &mut Self {
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, ACK, seq, bytes, bytes.len() as u32);
        self.gateway_seq = seq.wrapping_add(bytes.len() as u32);
        self
    }

    /// The gateway sends the request once more.
    pub(super) fn request_again(&mut self) -> &mut Self {
        let len = GET.len() as u32;
        let seq = self.gateway_seq.wrapping_sub(len);
        self.segment(Direction::ToUpstream, ACK, seq, GET, len);
        self
    }

    /// Of what the gateway sends, only `kept` bytes are captured.
    pub(super) fn send_short(&mut self, bytes: &[u8], kept: usize) -> &mut Self {
        let (seq, len) = (self.gateway_seq, bytes.len() as u32);
        self.segment(Direction::ToUpstream, ACK, seq, &bytes[..kept], len);
        self.gateway_seq = seq.wrapping_add(len);
        self
    }

    /// The gateway sends these bytes, its last, once more.
    pub(super) fn again(&mut self, bytes: &[u8]) -> &mut Self {
        let len = bytes.len() as u32;
        let seq = self.gateway_seq.wrapping_sub(len);
        self.segment(Direction::ToUpstream, ACK, seq, bytes, len);
        self
    }

    /// The upstream's kernel acknowledges everything sent.
    pub(super) fn ack(&mut self) -> &mut Self {
        self.upstream_acked = self.gateway_seq;
        let seq = self.upstream_seq;
        self.segment(Direction::FromUpstream, ACK, seq, &[], 0);
        self
    }

    /// The upstream's kernel acknowledges all but the last bytes sent.
    pub(super) fn ack_but(&mut self, bytes: u32) -> &mut Self {
        self.upstream_acked = self.gateway_seq.wrapping_sub(bytes);
        let seq = self.upstream_seq;
        self.segment(Direction::FromUpstream, ACK, seq, &[], 0);
        self
    }

    pub(super) fn request(&mut self) -> &mut Self {
        self.send(GET).ack()
    }

    /// The upstream sends, and the gateway acknowledges.
    pub(super) fn reply(&mut self, bytes: &[u8]) -> &mut Self {
        self.reply_short(bytes, bytes.len())
    }

    /// Of what the upstream sends, only `kept` bytes are captured.
    pub(super) fn reply_short(&mut self, bytes: &[u8], kept: usize) -> &mut Self {
        let seq = self.upstream_seq;
        self.segment(
            Direction::FromUpstream,
            ACK,
            seq,
            &bytes[..kept],
            bytes.len() as u32,
        );
        self.reply_unseen(bytes.len() as u32)
    }

    /// The same, with the headers of the TLS records at these places.
    pub(super) fn reply_marked(
        &mut self,
        bytes: &[u8],
        kept: usize,
        places: &[usize],
    ) -> &mut Self {
        for place in places {
            let mut head = [0; RecordHeads::BYTES];
            head[..4].copy_from_slice(&u32::try_from(*place).unwrap().to_ne_bytes());
            for (head, byte) in head[4..9].iter_mut().zip(&bytes[*place..]) {
                *head = *byte;
            }
            self.heads.extend(head);
        }
        self.reply_short(bytes, kept)
    }

    /// The upstream sends what the observer misses; the gateway acknowledges it.
    pub(super) fn reply_unseen(&mut self, len: u32) -> &mut Self {
        self.upstream_seq = self.upstream_seq.wrapping_add(len);
        self.gateway_acked = self.upstream_seq;
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, ACK, seq, &[], 0);
        self
    }

    /// So many healthy exchanges stay in the kernel; then nothing happens for `idle`, and word of them
    /// comes ahead of the next request.
    pub(super) fn held(&mut self, exchanges: u32, idle: Duration) -> &mut Self {
        let (request, response) = (GET.len() as u32, OK.len() as u32);
        self.gateway_seq = self.gateway_seq.wrapping_add(exchanges * request);
        self.upstream_seq = self.upstream_seq.wrapping_add(exchanges * response);
        self.upstream_acked = self.gateway_seq;
        self.gateway_acked = self.upstream_seq;
        let mut first_byte = [0; FIRST_BYTE_CLASSES];
        first_byte[7] = exchanges;
        let held = HeldExchanges {
            exchanges,
            classes: [exchanges - 1, 0, 1],
            request_bytes: u64::from(exchanges * request),
            response_bytes: u64::from(exchanges * response),
            first_byte,
        };
        // The word comes with the next request, and bears the time of the end.
        let ended = self.now;
        self.sleep(idle);
        self.engine.handle(
            ended,
            Input::Signal {
                hop: self.hop,
                signal: Signal::Held(Box::new(held)),
            },
        );
        self.drain();
        self
    }

    pub(super) fn upstream_fin(&mut self) -> &mut Self {
        let seq = self.upstream_seq;
        self.segment(
            Direction::FromUpstream,
            TcpFlags::FIN.union(ACK),
            seq,
            &[],
            0,
        );
        self.upstream_seq += 1;
        self.state(TcpState::Established, TcpState::CloseWait, None, 100)
    }

    /// A reset in answer to data: no acknowledgement.
    pub(super) fn upstream_rst(&mut self) -> &mut Self {
        let seq = self.upstream_seq;
        self.segment(Direction::FromUpstream, TcpFlags::RST, seq, &[], 0);
        self.signal(Signal::ResetReceived);
        self.state(
            TcpState::Established,
            TcpState::Close,
            Some(Errno::ECONNRESET),
            100,
        )
    }

    pub(super) fn reason(&mut self, reason: ResetReason) -> &mut Self {
        self.signal(Signal::ResetSent {
            by: Actor::Upstream,
            reason: Some(reason),
        })
    }

    pub(super) fn gateway_fin(&mut self) -> &mut Self {
        self.state(TcpState::Established, TcpState::FinWait1, None, 100);
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, TcpFlags::FIN.union(ACK), seq, &[], 0);
        self.gateway_seq = seq.wrapping_add(1);
        self
    }

    pub(super) fn gateway_rst(&mut self) -> &mut Self {
        self.state(TcpState::Established, TcpState::Close, None, 100);
        let seq = self.gateway_seq;
        self.segment(Direction::ToUpstream, TcpFlags::RST.union(ACK), seq, &[], 0);
        self
    }

    /// The sequence number of the next byte of a side.
    pub(super) const fn next_seq(&self, direction: Direction) -> u32 {
        match direction {
            Direction::ToUpstream => self.gateway_seq,
            Direction::FromUpstream => self.upstream_seq,
        }
    }

    /// The upstream's next sequence number moves on, and nothing acknowledges that.
    pub(super) const fn skip_upstream(&mut self, bytes: u32) {
        self.upstream_seq = self.upstream_seq.wrapping_add(bytes);
    }

    /// A side sent so many bytes, however they were seen; the other acknowledges them.
    pub(super) fn sent(&mut self, direction: Direction, bytes: u32) {
        match direction {
            Direction::ToUpstream => {
                self.gateway_seq = self.gateway_seq.wrapping_add(bytes);
                self.ack();
            }
            Direction::FromUpstream => {
                self.reply_unseen(bytes);
            }
        }
    }

    /// The refusal of a SYN, with the kernel's view of it.
    pub(super) fn refuse(&mut self) -> &mut Self {
        self.upstream_acked = self.gateway_seq.wrapping_add(1);
        self.segment(Direction::FromUpstream, TcpFlags::RST.union(ACK), 0, &[], 0);
        self.signal(Signal::ResetReceived);
        self.state(
            TcpState::SynSent,
            TcpState::Close,
            Some(Errno::ECONNREFUSED),
            0,
        )
    }

    pub(super) fn icmp(&mut self, from: [u8; 4], from_self: bool, code: u8) -> &mut Self {
        let from = IpAddr::V4(Ipv4Addr::from(from));
        let (local, upstream) = (self.local, self.upstream);
        let error = IcmpError {
            netns: self.netns,
            from,
            from_self,
            kind: IcmpKind::Unreachable,
            code,
            local,
            upstream,
        };
        self.input(Input::Icmp { error, packet: &[] });
        self
    }

    /// Everything that was decided once all deadlines have passed.
    #[track_caller]
    pub(super) fn events(&mut self) -> Vec<HopEvent> {
        self.ms(300_000);
        std::mem::take(&mut self.events)
    }

    #[track_caller]
    pub(super) fn expect(&mut self, cause: Cause, proof: Proof) -> HopEvent {
        let mut events = self.events();
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.cause, event.proof))
            .collect();
        assert_eq!(told, [(cause, proof)], "{events:#?}");
        let event = events.remove(0);
        assert_eq!(event.upstream.socket_addr(), Some(self.upstream));
        assert!(!event.evidence.is_empty());
        assert_eq!(
            event.rivals.is_empty(),
            event.proof != Proof::Underdetermined
        );
        if let Some(comm) = self.comm {
            let gateway = event
                .gateway
                .as_ref()
                .expect("a live event names its gateway");
            assert_eq!((gateway.pid, &*gateway.comm), (42, comm));
        }
        event
    }

    #[track_caller]
    pub(super) fn expect_none(&mut self) {
        assert_eq!(self.events(), []);
    }
}
