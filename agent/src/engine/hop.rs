//! One hop: puts what its segments and signals say together and asks the rules for a verdict.
//!
//! ```text
//!            SYN-ACK or ESTABLISHED                 FIN or RST of either side
//!  Connecting ───────────────────────▶ Established ───────────────────────────▶ Closed
//!      │ RST, ICMP error, or closed without                                        ▲
//!      └───────────────▶ connect failed (judged after a moment) ───────────────────┘
//! ```

mod across;
mod connecting;
mod judge;
mod pass;
mod plain;
mod tls;

use core::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use self::across::Held;
use self::connecting::ConnectEnd;
use super::deadlines::Deadlines;
use super::departures::Departures;
use super::exchange::{Done, Exchange, Exchanges};
use super::names::Known;
use super::peers::{Peers, Place};
use super::traffic::AllFinished;
use crate::classify::{Ended, Verdict};
use crate::http1::RequestHead;
use crate::limits::Limits;
use crate::model::{
    Actor, Direction, Errno, EvidenceSource, Goroutine, HeldExchanges, Process, ResetReason,
    Segment, Signal, TcpFlags, TcpState, Timestamp, Turn,
};
use crate::stats::Stats;
use crate::tcp::{Close, Flow};

/// A closed hop is kept this long for late segments.
pub(super) const LINGER: Duration = Duration::from_secs(2);

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
    /// Tell the verdicts that wait for word of the upstream.
    Held,
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

/// What an input led to: nothing but a deadline, mostly.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// When the hop wants to be looked at.
    pub(super) deadline: Option<Timestamp>,
    /// What there is to tell, boxed since that is seldom anything.
    pub(super) news: Option<Box<News>>,
}

impl Outcome {
    /// What there is to tell, to add to it.
    fn news(&mut self) -> &mut News {
        self.news.get_or_insert_default()
    }

    fn judge(&mut self, judged: Judged) {
        self.news().judged.push(judged);
    }

    fn judge_all(&mut self, judged: Vec<Judged>) {
        if !judged.is_empty() {
            self.news().judged.extend(judged);
        }
    }
}

/// What an input shows of exchanges and connects.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) judged: Vec<Judged>,
    /// An exchange was just completed.
    pub(super) completed: bool,
    /// Those of them that were healthy, where they are wanted.
    pub(super) healthy: Vec<(Timestamp, Exchange, Option<u16>)>,
    /// The exchanges that ended, those that stayed in the kernel left out.
    pub(super) finished: AllFinished,
    /// The exchanges that stayed in the kernel, and when the last of them ended.
    pub(super) unseen: Option<(Timestamp, Box<HeldExchanges>)>,
}

/// Everything that a hop's handling may look at beside the hop itself.
pub(super) struct Context<'a> {
    pub(super) limits: &'a Limits,
    pub(super) patience: Duration,
    /// Whether healthy exchanges are wanted.
    pub(super) tell_healthy: bool,
    pub(super) stats: &'a mut Stats,
    pub(super) peers: &'a mut Peers,
    /// When a gateway let go of clients that had left.
    pub(super) departures: &'a Departures,
    /// How long exchanges lasted that gateways ended although data flowed.
    pub(super) deadlines: &'a mut Deadlines,
}

/// One hop.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Hop {
    pub(super) process: Option<Arc<Process>>,
    pub(super) local: Option<SocketAddr>,
    pub(super) upstream: SocketAddr,
    /// By what name the gateway knew it when it connected.
    pub(super) name: Option<Box<Known>>,
    pub(super) opened: Timestamp,
    /// The turn that connected.
    opener: Option<Turn>,
    /// The goroutine that opened it.
    pub(super) goroutine: Option<Goroutine>,
    pub(super) mid_stream: bool,
    /// Records that the source had lost when the hop was opened, or when its last healthy exchange
    /// ended: what was lost before touches nothing that comes after.
    lost_before: u64,
    /// The same of segments that were missed.
    missed_before: u64,
    /// When anything was last heard of it.
    pub(super) last_seen: Timestamp,
    /// For how long nothing had been heard of it before the last request.
    quiet: Duration,
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
    /// Whether the SYN was answered and the gateway has not acknowledged that yet.
    half_open: bool,
    last_syn_ack: Option<Timestamp>,
    /// SYN-ACKs that were sent again although the gateway had acknowledged the first.
    pub(super) syn_acks_again: u32,
    /// Whether it counts as one of the upstream's open hops.
    pub(super) counted: bool,
    /// Verdicts that wait for word of the upstream.
    held: Option<Box<Held>>,
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
    /// Whether a failed connect, or a close before any request byte, was judged: what is seen behind it
    /// is no failure of its own.
    setup_judged: bool,
    waits: Vec<(Timestamp, Wait)>,
}

impl Hop {
    #[inline(never)]
    pub(super) fn new(upstream: SocketAddr, at: Timestamp, limits: &Limits) -> Self {
        Self {
            process: None,
            local: None,
            upstream,
            name: None,
            opened: at,
            opener: None,
            goroutine: None,
            mid_stream: false,
            lost_before: 0,
            missed_before: 0,
            last_seen: at,
            quiet: Duration::ZERO,
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
            half_open: false,
            last_syn_ack: None,
            syn_acks_again: 0,
            counted: false,
            held: None,
            reset_reason: None,
            first_close: None,
            ending: None,
            ended: false,
            closer: None,
            setup_judged: false,
            waits: Vec::new(),
        }
    }

    /// Takes the allocations over that a hop which is over leaves behind.
    pub(super) fn reuse(&mut self, old: &mut Self) {
        old.waits.clear();
        self.waits = std::mem::take(&mut old.waits);
        self.exchanges.reuse(&mut old.exchanges);
    }

    /// Marks a hop whose SYN is about to be sent.
    pub(super) fn connecting(&mut self) {
        self.phase = Phase::Connecting;
    }

    /// The upstream's address and the network namespace in which it is one; zero where that is unknown.
    pub(super) fn place(&self) -> Place {
        let netns = self.process.as_ref().map_or(0, |process| process.netns);
        (netns, self.upstream)
    }

    /// The turn that connected, where that was seen.
    pub(super) const fn opener(&self) -> Option<Turn> {
        self.opener
    }

    /// The turn that closed the gateway's socket, where one did.
    pub(super) const fn closer(&self) -> Option<Turn> {
        self.closer
    }

    /// Whether it carries something in which nothing can be read.
    pub(super) const fn is_opaque(&self) -> bool {
        self.exchanges.is_opaque()
    }

    /// When each request began that waits for its response, and what its head says.
    pub(super) fn pending(&self) -> impl Iterator<Item = (Timestamp, Option<&RequestHead>)> {
        let open = self.exchanges.open.iter().filter(|open| !open.judged);
        open.map(|open| (open.began, open.head.as_ref()))
    }

    /// Whether anything was asked on it, as far as can be read.
    pub(super) const fn has_asked(&self) -> bool {
        self.exchanges.has_begun() || self.is_opaque() || self.mid_stream
    }

    /// Whether every request on it had a whole response, and there was one.
    pub(super) fn has_served(&self) -> bool {
        self.exchanges.has_begun() && self.pending().next().is_none()
    }

    /// Segments that were missed.
    pub(super) const fn lost(&self) -> u64 {
        self.to.lost() + self.from.lost()
    }

    /// Notes that nothing that was lost so far touches what comes; `records_lost` were by the source.
    pub(super) const fn forget_losses(&mut self, records_lost: u64) {
        self.lost_before = records_lost;
        self.missed_before = self.lost();
    }

    /// What was lost and may touch what is under way, of the `records_lost` by the source and of its
    /// own segments.
    pub(super) const fn touched_by_loss(&self, records_lost: u64) -> u64 {
        self.lost().saturating_sub(self.missed_before)
            + records_lost.saturating_sub(self.lost_before)
    }

    /// Whether payload was captured short.
    pub(super) const fn truncated(&self) -> bool {
        self.from.truncated()
    }

    /// Request segments sent again.
    pub(super) const fn retransmits(&self) -> u32 {
        self.to.repeated()
    }

    /// Time to live of the upstream's last segment.
    pub(super) const fn ttl(&self) -> u8 {
        self.from.ttl()
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
        let held = self.held.as_ref().map_or(0, |held| held.kept_bytes());
        self.to.kept_bytes() + self.from.kept_bytes() + self.exchanges.kept_bytes() + held
    }

    /// Takes a segment.
    pub(super) fn segment(
        &mut self,
        at: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let mut out = Outcome::default();
        let quiet = at.since(self.last_seen);
        let at = self.heard(at);
        self.local.get_or_insert(segment.local);
        let mut done = Done::default();
        if segment.flags.contains(TcpFlags::SYN) {
            self.syn(at, segment, cx);
        } else if self.phase == Phase::Connecting
            && !self.connect.over
            && self.is_of_earlier(segment)
        {
            self.arm(&mut out);
            return out;
        } else if self.phase == Phase::Connecting
            && segment.flags.contains(TcpFlags::RST)
            && segment.direction == Direction::FromUpstream
        {
            self.refused(at, Some(segment.ttl), cx);
            self.arm(&mut out);
            return out;
        } else if self.phase == Phase::Connecting
            && self.connect.over
            && segment.flags.contains(TcpFlags::RST)
        {
            self.answered_late(at, EvidenceSource::Packet);
            self.arm(&mut out);
            return out;
        } else if self.phase == Phase::Connecting && !segment.flags.contains(TcpFlags::RST) {
            // The SYN-ACK itself was missed.
            let theirs = segment.direction == Direction::FromUpstream;
            self.establish(at, if theirs { segment.ttl } else { 0 }, cx);
        } else if self.half_open && segment.direction == Direction::ToUpstream {
            self.reset_syn_ack(at, segment, cx, &mut out);
        }
        let Self {
            to,
            from,
            exchanges,
            mid_stream,
            quiet: before,
            ..
        } = self;
        exchanges.joined = *mid_stream;
        let acks = segment.flags.contains(TcpFlags::ACK);
        let upstream_closed = from.closed().is_some();
        let mut survived = false;
        match segment.direction {
            Direction::ToUpstream => {
                survived = from.survived_reset(at, segment);
                let begun = exchanges.begun();
                exchanges.acked = to.acked();
                if acks {
                    from.acknowledged(segment.ack, |chunk| {
                        exchanges.received(at, chunk, cx.stats, &mut done);
                    });
                }
                exchanges.missed |= to.lost() + from.lost() > 0;
                let limits = cx.limits;
                to.segment(at, segment, limits, |chunk| {
                    exchanges.sent(at, chunk, upstream_closed, limits, cx.stats, &mut done);
                });
                let inside = segment.wire_len > 0 && exchanges.awaits_text();
                if exchanges.begun() != begun || inside {
                    *before = quiet;
                    from.watch_windows();
                }
            }
            Direction::FromUpstream => {
                if acks {
                    let limits = cx.limits;
                    let acked = to.acked();
                    if from.only_acknowledges(segment) {
                        to.acknowledged_again(segment.ack);
                    }
                    to.acknowledged(segment.ack, |chunk| {
                        exchanges.sent(at, chunk, upstream_closed, limits, cx.stats, &mut done);
                    });
                    let reset = segment.flags.contains(TcpFlags::RST);
                    if !reset && to.acked() > acked && from.is_past_reset(at) {
                        from.goes_on(at);
                    }
                }
                exchanges.acked = to.acked();
                from.segment(at, segment, cx.limits, |chunk| {
                    exchanges.received(at, chunk, cx.stats, &mut done);
                });
            }
        }
        if survived {
            self.survive();
        }
        self.after_bytes(at, &mut done, cx, &mut out);
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
            Signal::Opened {
                process,
                turn,
                goroutine,
                ..
            } => {
                self.process = Some(process);
                self.opener = Some(turn);
                self.goroutine = goroutine;
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
            Signal::Unwatched => {
                cx.stats.hops_mid_stream += u64::from(!self.mid_stream);
                self.mid_stream = true;
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
            Signal::Library(fact) => self.hear(fact),
            Signal::ConnectReturned { errno } => self.connect.returned = Some(errno),
            Signal::ResetReceived => {
                if self.phase == Phase::Connecting {
                    self.refused(at, None, cx);
                }
            }
            Signal::ResetSent {
                by: Actor::Upstream,
                reason,
            } => {
                self.connect.reset_own |= self.phase == Phase::Connecting;
                self.reset_reason = reason.or_else(|| self.reset_reason.take());
            }
            // What a socket sends that has given up its SYN is no reset: this one is for no socket, whether
            // the kernel gives reasons or not.
            Signal::ResetSent {
                by: Actor::Gateway,
                reason: None | Some(ResetReason::NoSocket),
            } if self.phase == Phase::Connecting && self.connect.over => {
                self.answered_late(at, EvidenceSource::Kernel);
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
        let mut done = Done::default();
        self.exchanges.resume(at, &held, &mut done);
        self.after_bytes(at, &mut done, cx, out);
        self.to.resume();
        self.from.resume();
        cx.stats.exchanges += u64::from(held.exchanges);
        cx.stats.exchanges_held += u64::from(held.exchanges);
        out.news().unseen = Some((at, held));
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
                self.establish(at, 0, cx);
            }
            // Only a socket that never left SYN_SENT failed to connect; one whose SYN was
            // acknowledged did not, whatever record of that was lost.
            (TcpState::SynSent, TcpState::Close) if bytes_acked.unwrap_or(0) == 0 => {
                self.gave_up(at, errno, cx.patience);
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
                Wait::Held => out.judge_all(self.release(at, false, cx.peers)),
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
        } else if !self.judge_tls(at, Ended::Settled, false, cx, &mut out) {
            self.judge_open(at, Ended::Settled, cx, &mut out);
        }
        out.judge_all(self.release(at, true, cx.peers));
        out
    }
}
