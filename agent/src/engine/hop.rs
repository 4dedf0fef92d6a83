//! One hop: puts what its segments and signals say together and asks the rules for a verdict.
//!
//! ```text
//!            SYN-ACK or ESTABLISHED                 FIN or RST of either side
//!  Connecting ───────────────────────▶ Established ───────────────────────────▶ Closed
//!      │ RST, ICMP error, or closed without                                        ▲
//!      └───────────────▶ connect failed (judged after a moment) ───────────────────┘
//! ```

mod judge;

use core::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::{Exchange, Exchanges};
use super::traffic::Finished;
use super::{Alive, Departures};
use crate::classify::{Ended, Verdict};
use crate::limits::Limits;
use crate::model::{
    Actor, Direction, Errno, HeldExchanges, IcmpError, Process, ResetReason, Segment, Signal,
    TcpFlags, TcpState, Timestamp, Turn,
};
use crate::stats::Stats;
use crate::tcp::{Close, Flow};

/// Kernel facts about a failed connect follow the packet at once; an ICMP error comes through a
/// socket of its own and may be a little later.
const CONNECT_SETTLE: Duration = Duration::from_millis(20);
const ICMP_SETTLE: Duration = Duration::from_millis(150);

/// An ICMP error does not end a connect whose process is inside the call, and another SYN follows.
/// Without a kernel the error is final unless that comes: the second SYN after one second (RFC 6298
/// section 2).
const ICMP_FINAL: Duration = Duration::from_millis(1200);

/// A closed hop is kept this long for late segments.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Linux gives up a connect after six retransmissions, 127 s (`tcp_syn_retries`).
const CONNECT_LIMIT: Duration = Duration::from_secs(130);

/// A SYN that is seen again sooner was captured twice, not sent twice: a kernel waits for a second
/// (RFC 6298 section 2), and no setting goes below its shortest timeout of 200 ms.
const SYN_AGAIN: Duration = Duration::from_millis(100);

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Established,
    /// The connect failed and was judged, or the connection is over on both sides.
    Over,
}

/// Why the engine should look at the hop again, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Judge the failed connect.
    Connect,
    /// Judge the oldest exchange on the broken rule that was found.
    Finding,
    /// Judge the oldest exchange on the upstream's earlier close.
    Closed,
    /// Judge the open exchanges on the end that was seen.
    End,
    /// Forget the hop.
    Forget,
}

/// A verdict with what the event needs of its exchange.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) at: Timestamp,
    pub(super) verdict: Verdict,
    pub(super) exchange: Option<Exchange>,
    pub(super) status: Option<u16>,
}

/// What an input led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) judged: Vec<Judged>,
    /// The exchanges that ended, those that stayed in the kernel left out.
    pub(super) finished: Vec<Finished>,
    /// The exchanges that stayed in the kernel.
    pub(super) held: Option<Box<HeldExchanges>>,
    /// The connection was just established.
    pub(super) established: bool,
    /// When the hop wants to be looked at.
    pub(super) deadline: Option<Timestamp>,
}

/// Everything that a hop's handling may look at beside the hop itself.
pub(super) struct Context<'a> {
    pub(super) limits: &'a Limits,
    pub(super) patience: Duration,
    pub(super) stats: &'a mut Stats,
    pub(super) alive: &'a Alive,
    /// When a gateway let go of clients that had left.
    pub(super) departures: &'a Departures,
}

/// One hop.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Hop {
    pub(super) process: Option<Arc<Process>>,
    pub(super) local: Option<SocketAddr>,
    pub(super) upstream: SocketAddr,
    pub(super) opened: Timestamp,
    pub(super) mid_stream: bool,
    /// Records that the source had lost when the hop was opened.
    pub(super) lost_before: u64,
    /// When anything was last heard of it.
    pub(super) last_seen: Timestamp,
    pub(super) rtt_us: Option<u32>,
    pub(super) syn_retransmits: u32,
    phase: Phase,
    /// Whether a kernel signal was ever seen: then the end of a connect is seen too.
    kernel: bool,
    to: Flow,
    from: Flow,
    exchanges: Exchanges,
    established: Option<Timestamp>,
    last_syn: Option<Timestamp>,
    connect: ConnectEnd,
    /// Why the upstream's kernel reset, where it is on this host.
    reset_reason: Option<ResetReason>,
    /// The side that closed first, and how.
    first_close: Option<(Actor, Close)>,
    /// What ended the exchanges, while it waits to be judged.
    ending: Option<(Ended, Timestamp)>,
    /// Whether such an end was judged: only the first counts.
    ended: bool,
    /// The turn that closed the gateway's socket.
    closer: Option<Turn>,
    /// Whether a close before any request byte was judged.
    unused_judged: bool,
    waits: Vec<(Timestamp, Wait)>,
}

/// What is known of how the connect ended.
#[derive(Debug, Default)]
struct ConnectEnd {
    at: Option<Timestamp>,
    reset_ttl: Option<u8>,
    icmp: Option<IcmpError>,
    errno: Option<Errno>,
    returned: Option<Errno>,
    over: bool,
}

impl Hop {
    pub(super) fn new(upstream: SocketAddr, at: Timestamp, limits: &Limits) -> Self {
        Self {
            process: None,
            local: None,
            upstream,
            opened: at,
            mid_stream: false,
            lost_before: 0,
            last_seen: at,
            rtt_us: None,
            syn_retransmits: 0,
            phase: Phase::Established,
            kernel: false,
            to: Flow::default(),
            from: Flow::default(),
            exchanges: Exchanges::new(limits),
            established: None,
            last_syn: None,
            connect: ConnectEnd::default(),
            reset_reason: None,
            first_close: None,
            ending: None,
            ended: false,
            closer: None,
            unused_judged: false,
            waits: Vec::new(),
        }
    }

    /// Marks a hop whose SYN is about to be sent.
    pub(super) fn connecting(&mut self) {
        self.phase = Phase::Connecting;
    }

    /// The upstream's address and the network namespace in which it is one; zero where that is unknown.
    pub(super) fn place(&self) -> (u64, SocketAddr) {
        let netns = self.process.as_ref().map_or(0, |process| process.netns);
        (netns, self.upstream)
    }

    /// Segments that were missed.
    pub(super) const fn lost(&self) -> u64 {
        self.to.lost() + self.from.lost()
    }

    /// Whether payload was captured short.
    pub(super) const fn truncated(&self) -> bool {
        self.from.truncated()
    }

    /// Request segments sent again.
    pub(super) const fn retransmits(&self) -> u32 {
        self.to.repeated()
    }

    /// Whether another exchange ran on the connection before this one, or may have.
    pub(super) const fn reused(&self, exchange: &Exchange) -> bool {
        exchange.ordinal > 1 || self.mid_stream
    }

    /// Whether nothing that may still come changes a verdict: both sides closed in order, and what they
    /// left open was judged.
    pub(super) fn is_over(&self) -> bool {
        let fin = |flow: &Flow| matches!(flow.closed(), Some((Close::Fin, _)));
        self.phase == Phase::Over
            && fin(&self.to)
            && fin(&self.from)
            && self.waits.iter().all(|(_, wait)| *wait == Wait::Forget)
            && self.exchanges.open.iter().all(|open| open.judged)
    }

    /// Memory for payload, heads and pipelined requests.
    pub(super) fn kept_bytes(&self) -> usize {
        self.to.kept_bytes() + self.from.kept_bytes() + self.exchanges.kept_bytes()
    }

    /// Takes a segment that only acknowledges, or whose bytes are inside a body of known length.
    /// Returns false for any other, which then belongs to [`Hop::segment`]; nothing that this one did
    /// before is wrong there.
    pub(super) fn pass(&mut self, at: Timestamp, segment: &Segment<'_>) -> bool {
        let TcpFlags(flags) = segment.flags;
        let plain = flags & !TcpFlags::PSH.0 == TcpFlags::ACK.0
            && self.phase == Phase::Established
            && self.exchanges.is_settled()
            && !self.to.is_closing()
            && !self.from.is_closing();
        if !plain {
            return false;
        }
        let passed = match segment.direction {
            Direction::ToUpstream => {
                segment.wire_len == 0
                    && self.from.pass_acknowledged(segment.ack)
                    && self.to.pass(segment)
            }
            Direction::FromUpstream if segment.wire_len == 0 => {
                self.to.pass_acknowledged(segment.ack) && self.from.pass(segment)
            }
            Direction::FromUpstream => {
                self.to.pass_acknowledged(segment.ack)
                    && self.exchanges.awaits_body(segment.wire_len)
                    && segment.payload.len() == segment.wire_len as usize
                    && self.from.pass(segment)
                    && self
                        .exchanges
                        .pass(at.max(self.last_seen), segment.wire_len)
            }
        };
        if passed {
            self.heard(at);
        }
        passed
    }

    /// Takes a segment.
    pub(super) fn segment(
        &mut self,
        at: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let mut out = Outcome::default();
        let at = self.heard(at);
        self.local.get_or_insert(segment.local);
        let mut done = Vec::new();
        if segment.flags.contains(TcpFlags::SYN) {
            self.syn(at, segment, &mut out);
        } else if self.phase == Phase::Connecting
            && segment.flags.contains(TcpFlags::RST)
            && segment.direction == Direction::FromUpstream
        {
            self.connect.reset_ttl = Some(segment.ttl);
            self.connect_ended(at, CONNECT_SETTLE);
            self.arm(&mut out);
            return out;
        } else if self.phase == Phase::Connecting && !segment.flags.contains(TcpFlags::RST) {
            // The SYN-ACK itself was missed.
            self.establish(at, &mut out);
        }
        let Self {
            to,
            from,
            exchanges,
            mid_stream,
            ..
        } = self;
        let mid_stream = *mid_stream;
        let acks = segment.flags.contains(TcpFlags::ACK);
        let upstream_closed = from.closed().is_some();
        match segment.direction {
            Direction::ToUpstream => {
                if acks {
                    from.acknowledged(segment.ack, |chunk| {
                        exchanges.received(at, chunk, cx.stats, &mut done);
                    });
                }
                let limits = cx.limits;
                to.segment(at, segment, limits, |chunk| {
                    exchanges.sent(at, chunk, upstream_closed, limits, cx.stats, &mut done);
                });
                exchanges.take_early(
                    at,
                    mid_stream,
                    to.lost() + from.lost() > 0,
                    cx.stats,
                    &mut done,
                );
            }
            Direction::FromUpstream => {
                if acks {
                    let limits = cx.limits;
                    to.acknowledged(segment.ack, |chunk| {
                        exchanges.sent(at, chunk, upstream_closed, limits, cx.stats, &mut done);
                    });
                }
                exchanges.acked = to.acked();
                from.segment(at, segment, cx.limits, |chunk| {
                    exchanges.received(at, chunk, cx.stats, &mut done);
                });
            }
        }
        self.after_bytes(at, done, cx, &mut out);
        self.after_close(at, cx, &mut out);
        self.arm(&mut out);
        out
    }

    /// Notes that something is heard of the hop. Records of several processors may be a little out of
    /// order: time does not run backwards.
    fn heard(&mut self, at: Timestamp) -> Timestamp {
        self.last_seen = self.last_seen.max(at);
        self.last_seen
    }

    /// SYN or SYN-ACK.
    fn syn(&mut self, at: Timestamp, segment: &Segment<'_>, out: &mut Outcome) {
        match segment.direction {
            Direction::ToUpstream if !segment.flags.contains(TcpFlags::ACK) => {
                if self.last_syn.is_some_and(|seen| at.since(seen) < SYN_AGAIN) {
                    return;
                }
                if self.last_syn.is_some() {
                    self.syn_retransmits += 1;
                    self.connect.at = None;
                    self.waits.retain(|(_, wait)| *wait != Wait::Connect);
                } else if !self.to.started() && self.phase != Phase::Over {
                    self.phase = Phase::Connecting;
                    self.mid_stream = false;
                }
                self.last_syn = Some(at);
                if !self.kernel {
                    // Without a kernel nothing tells when the gateway gives up.
                    let limit = match self.connect.icmp {
                        Some(_) => self.icmp_final(),
                        None => CONNECT_LIMIT,
                    };
                    self.waits.push((at.after(limit), Wait::Connect));
                }
            }
            Direction::FromUpstream if self.phase == Phase::Connecting => {
                if let Some(sent) = self.last_syn
                    && self.syn_retransmits == 0
                {
                    self.rtt_us = u32::try_from(at.since(sent).as_micros()).ok();
                }
                self.establish(at, out);
            }
            _ => {}
        }
    }

    fn establish(&mut self, at: Timestamp, out: &mut Outcome) {
        self.phase = Phase::Established;
        self.established.get_or_insert(at);
        self.waits.retain(|(_, wait)| *wait != Wait::Connect);
        out.established = true;
    }

    /// Takes a kernel fact.
    pub(super) fn signal(
        &mut self,
        at: Timestamp,
        signal: Signal,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let mut out = Outcome::default();
        let at = self.heard(at);
        self.kernel = true;
        match signal {
            Signal::Opened { process, .. } => {
                self.process = Some(process);
                if self.phase == Phase::Over && self.established.is_none() {
                    self.connect_again(at);
                }
                // The SYN tells the local end: most ports are bound after SYN_SENT.
                if !self.to.started() {
                    self.phase = Phase::Connecting;
                    self.mid_stream = false;
                }
            }
            Signal::Seeded { process, local, .. } => {
                self.process = Some(process);
                self.local = Some(local);
            }
            Signal::State {
                old,
                new,
                errno,
                bytes_acked,
                rtt_us,
                turn,
            } => {
                self.closer = self.closer.or_else(|| {
                    matches!(new, TcpState::FinWait1 | TcpState::Close).then_some(turn)
                });
                self.rtt_us = rtt_us.filter(|&rtt| rtt > 0).or(self.rtt_us);
                self.state(at, old, new, errno, bytes_acked, cx, &mut out);
            }
            Signal::Held(held) => self.resume(at, held, cx, &mut out),
            Signal::ConnectReturned { errno } => self.connect.returned = Some(errno),
            Signal::ResetReceived => {
                if self.phase == Phase::Connecting {
                    self.connect.reset_ttl.get_or_insert(0);
                }
            }
            Signal::ResetSent {
                by: Actor::Upstream,
                reason,
            } => {
                self.reset_reason = reason.or_else(|| self.reset_reason.take());
            }
            Signal::SocketError { errno } => {
                if self.phase == Phase::Connecting {
                    self.connect.errno = Some(errno);
                }
            }
            // Both are seen as segments too; the kernel's word only matters where those are missing.
            Signal::ResetSent {
                by: Actor::Gateway, ..
            }
            | Signal::Retransmitted { .. } => {}
        }
        self.arm(&mut out);
        out
    }

    /// Goes on behind healthy exchanges that passed unseen.
    fn resume(
        &mut self,
        at: Timestamp,
        held: Box<HeldExchanges>,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let mut done = Vec::new();
        self.exchanges.resume(at, &held, &mut done);
        self.after_bytes(at, done, cx, out);
        self.to.resume();
        self.from.resume();
        cx.stats.exchanges += u64::from(held.exchanges);
        cx.stats.exchanges_held += u64::from(held.exchanges);
        out.held = Some(held);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one signal")]
    fn state(
        &mut self,
        at: Timestamp,
        old: TcpState,
        new: TcpState,
        errno: Option<Errno>,
        bytes_acked: Option<u64>,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        match (old, new) {
            (_, TcpState::Established) if self.phase == Phase::Connecting => {
                self.establish(at, out);
            }
            // Only a socket that never left SYN_SENT failed to connect; one whose SYN was
            // acknowledged did not, whatever record of that was lost.
            (TcpState::SynSent, TcpState::Close) if bytes_acked.unwrap_or(0) == 0 => {
                self.connect.errno = errno.or(self.connect.errno);
                self.connect.over = true;
                let explained = self.connect.reset_ttl.is_some() || self.connect.icmp.is_some();
                let settle = if explained || self.connect.errno.is_none() {
                    CONNECT_SETTLE
                } else {
                    ICMP_SETTLE
                };
                self.connect_ended(at, settle);
            }
            (_, TcpState::Close) => {
                // A reset that was not seen as a segment.
                if errno == Some(Errno::ECONNRESET) && self.first_close.is_none() {
                    self.upstream_closed(at, Close::Rst, cx, out);
                } else {
                    self.gateway_closed(at, cx, out);
                }
                self.over(at);
            }
            (TcpState::Established, TcpState::FinWait1) => self.gateway_closed(at, cx, out),
            _ => {}
        }
    }

    /// Takes an ICMP error that quotes a segment of this hop.
    pub(super) fn icmp(&mut self, at: Timestamp, icmp: IcmpError) -> Outcome {
        let mut out = Outcome::default();
        // On an established connection it is a hint, not an end (RFC 5927 section 4.1).
        if self.phase == Phase::Connecting {
            self.connect.icmp = Some(icmp);
            if self.kernel {
                if self.connect.over {
                    self.connect_ended(at, CONNECT_SETTLE);
                }
            } else {
                self.connect_ended(at, self.icmp_final());
            }
        }
        self.arm(&mut out);
        out
    }

    /// How long another SYN may take after an ICMP error, each twice as long as the one before.
    fn icmp_final(&self) -> Duration {
        ICMP_FINAL * (1 << self.syn_retransmits.min(6))
    }

    /// Notes the end of a failed connect, to be judged after `settle`.
    fn connect_ended(&mut self, at: Timestamp, settle: Duration) {
        self.connect.at.get_or_insert(at);
        self.waits.retain(|(_, wait)| *wait != Wait::Connect);
        self.waits.push((at.after(settle), Wait::Connect));
    }

    /// The same socket is connected once more after a connect that failed.
    fn connect_again(&mut self, at: Timestamp) {
        (self.to, self.from) = (Flow::default(), Flow::default());
        self.connect = ConnectEnd::default();
        self.opened = at;
        self.last_syn = None;
        self.syn_retransmits = 0;
        self.waits.clear();
    }

    /// The connection is over; late segments may still come.
    fn over(&mut self, at: Timestamp) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.waits.push((at.after(LINGER), Wait::Forget));
        }
    }

    fn waiting(&self, for_what: Wait) -> bool {
        self.waits.iter().any(|(_, wait)| *wait == for_what)
    }

    fn arm(&self, out: &mut Outcome) {
        out.deadline = self.waits.iter().map(|(at, _)| *at).min();
    }

    /// Lets the deadlines up to `now` expire. Returns what follows, and whether the hop is forgotten.
    pub(super) fn timeout(&mut self, now: Timestamp, cx: &mut Context<'_>) -> (Outcome, bool) {
        let mut out = Outcome::default();
        let mut forget = false;
        while let Some(index) = self.waits.iter().position(|(at, _)| *at <= now) {
            let (at, wait) = self.waits.swap_remove(index);
            match wait {
                Wait::Connect => self.judge_connect(at, cx, &mut out),
                Wait::Finding => self.judge_open(at, Ended::Settled, cx, &mut out),
                Wait::Closed => self.judge_open(at, Ended::UpstreamFin, cx, &mut out),
                Wait::End => self.judge_end(cx, &mut out),
                Wait::Forget => forget = true,
            }
        }
        self.arm(&mut out);
        (out, forget)
    }

    /// The observation ends: judges what needs no further observation.
    pub(super) fn finish(&mut self, at: Timestamp, cx: &mut Context<'_>) -> Outcome {
        let mut out = Outcome::default();
        if self.phase == Phase::Connecting {
            self.connect.at.get_or_insert(at);
            self.judge_connect(at, cx, &mut out);
        } else if self.ending.is_some() {
            self.judge_end(cx, &mut out);
        } else if self.waiting(Wait::Closed) {
            self.judge_open(at, Ended::UpstreamFin, cx, &mut out);
        } else {
            self.judge_open(at, Ended::Settled, cx, &mut out);
        }
        out
    }
}
