//! One hop: puts what its segments and signals say together and asks the rules for a verdict.
//!
//! ```text
//!            SYN-ACK or ESTABLISHED                 FIN or RST of either side
//!  Connecting ───────────────────────▶ Established ───────────────────────────▶ Closed
//!      │ RST, ICMP error, or closed without                                        ▲
//!      └───────────────▶ connect failed (judged after a moment) ───────────────────┘
//! ```

use core::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::{Completed, Exchange, Exchanges};
use crate::classify::{
    Acked, ConnectFacts, Ended, ExchangeFacts, Verdict, closed_before_request, connect, exchange,
};
use crate::http1::{Finding, Protocol, Stage};
use crate::limits::Limits;
use crate::model::{
    Actor, Direction, Errno, IcmpError, Process, ResetReason, Segment, Signal, TcpFlags, TcpState,
    Timestamp,
};
use crate::stats::Stats;
use crate::tcp::{Close, Flow};

/// Kernel facts about a failed connect follow the packet at once; an ICMP error comes through a
/// socket of its own and may be a little later.
const CONNECT_SETTLE: Duration = Duration::from_millis(20);
const ICMP_SETTLE: Duration = Duration::from_millis(150);

/// Without a kernel, an ICMP error is final unless another SYN follows; the second SYN comes after
/// one second (RFC 6298 section 2).
const ICMP_FINAL: Duration = Duration::from_millis(1200);

/// A broken rule is told this long after its byte, should the exchange not end before.
const FINDING_SETTLE: Duration = Duration::from_millis(500);

/// The reset that answers a request on a closed connection is waited for this long.
const CLOSED_SETTLE: Duration = Duration::from_millis(100);

/// A closed hop is kept this long for late segments.
const LINGER: Duration = Duration::from_secs(2);

/// Linux gives up a connect after six retransmissions, 127 s (`tcp_syn_retries`).
const CONNECT_LIMIT: Duration = Duration::from_secs(130);

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
    /// When a connection to this upstream was last established.
    pub(super) upstream_alive: Option<Timestamp>,
}

/// One hop.
#[derive(Debug)]
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
            unused_judged: false,
            waits: Vec::new(),
        }
    }

    /// Marks a hop whose SYN is about to be sent.
    pub(super) fn connecting(&mut self) {
        self.phase = Phase::Connecting;
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

    /// Takes a segment.
    pub(super) fn segment(
        &mut self,
        at: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let mut out = Outcome::default();
        self.last_seen = at;
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
            ..
        } = self;
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
                    exchanges.sent(at, chunk, upstream_closed, limits, cx.stats);
                });
                exchanges.take_early(at, cx.stats, &mut done);
            }
            Direction::FromUpstream => {
                if acks {
                    let limits = cx.limits;
                    to.acknowledged(segment.ack, |chunk| {
                        exchanges.sent(at, chunk, upstream_closed, limits, cx.stats);
                    });
                }
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

    /// SYN or SYN-ACK.
    fn syn(&mut self, at: Timestamp, segment: &Segment<'_>, out: &mut Outcome) {
        match segment.direction {
            Direction::ToUpstream if !segment.flags.contains(TcpFlags::ACK) => {
                if self.last_syn.is_some() {
                    self.syn_retransmits += 1;
                    self.connect.icmp = None;
                    self.waits.retain(|(_, wait)| *wait != Wait::Connect);
                } else if !self.to.started() {
                    self.phase = Phase::Connecting;
                    self.mid_stream = false;
                }
                self.last_syn = Some(at);
                if !self.kernel {
                    // Without a kernel nothing tells when the gateway gives up.
                    self.waits.push((at.after(CONNECT_LIMIT), Wait::Connect));
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
        self.last_seen = at;
        self.kernel = true;
        match signal {
            Signal::Opened { process, .. } => {
                self.process = Some(process);
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
            } => {
                self.rtt_us = rtt_us.filter(|&rtt| rtt > 0).or(self.rtt_us);
                self.state(at, old, new, errno, bytes_acked, cx, &mut out);
            }
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
                self.reset_reason = reason.or(self.reset_reason.take());
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
            (_, TcpState::Established) => {
                if self.phase == Phase::Connecting {
                    self.establish(at, out);
                }
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
                self.connect_ended(at, ICMP_FINAL);
            }
        }
        self.arm(&mut out);
        out
    }

    /// Notes the end of a failed connect, to be judged after `settle`.
    fn connect_ended(&mut self, at: Timestamp, settle: Duration) {
        self.connect.at.get_or_insert(at);
        self.waits.retain(|(_, wait)| *wait != Wait::Connect);
        self.waits.push((at.after(settle), Wait::Connect));
    }

    fn judge_connect(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        if self.phase != Phase::Connecting {
            return;
        }
        let end = self.connect.at.or(self.last_syn).unwrap_or(at);
        let elapsed = self.connect.at.unwrap_or(at).since(self.opened);
        let alive = cx
            .upstream_alive
            .is_some_and(|alive| alive.after(Duration::from_secs(10)) >= self.opened);
        let facts = ConnectFacts {
            elapsed,
            syn_retransmits: self.syn_retransmits,
            reset_ttl: self.connect.reset_ttl,
            icmp: self.connect.icmp,
            errno: self.connect.errno,
            returned: self.connect.returned,
            upstream_alive: alive,
            over: self.connect.over,
            patience: cx.patience,
        };
        match connect(&facts) {
            Some(verdict) => {
                out.judged.push(Judged {
                    at: end,
                    verdict,
                    exchange: None,
                    status: None,
                });
            }
            None if facts.errno.is_some() => cx.stats.connect_unmapped += 1,
            None => cx.stats.connect_abandoned += 1,
        }
        self.over(at);
    }

    /// The connection is over; late segments may still come.
    fn over(&mut self, at: Timestamp) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.waits.push((at.after(LINGER), Wait::Forget));
        }
    }

    /// Judges complete responses, and watches a broken one.
    fn after_bytes(
        &mut self,
        at: Timestamp,
        done: Vec<Completed>,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        for completed in done {
            cx.stats.exchanges += 1;
            if completed.exchange.judged {
                continue;
            }
            let facts = ExchangeFacts {
                status: completed.status,
                findings: &completed.findings,
                stage: completed.stage,
                ..self.facts(
                    at,
                    Ended::Complete,
                    &completed.exchange,
                    &completed.findings,
                    cx,
                )
            };
            if let Some(verdict) = exchange(&facts) {
                let status = completed.status;
                out.judged.push(Judged {
                    at,
                    verdict,
                    exchange: Some(completed.exchange),
                    status,
                });
            } else if !completed.findings.is_empty() {
                cx.stats.tolerated += 1;
            }
        }
        let unjudged = self
            .exchanges
            .open
            .front()
            .is_some_and(|exchange| !exchange.judged);
        if unjudged && self.exchanges.response.is_broken() && !self.waiting(Wait::Finding) {
            self.waits.push((at.after(FINDING_SETTLE), Wait::Finding));
        }
        // A request on a connection that the upstream has closed already gets no response.
        let doomed = self
            .exchanges
            .open
            .front()
            .is_some_and(|exchange| exchange.closed_before);
        if doomed && unjudged && !self.waiting(Wait::Closed) {
            self.waits.push((at.after(CLOSED_SETTLE), Wait::Closed));
        }
    }

    /// Judges what a close leaves open.
    fn after_close(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        if let Some((close, _)) = self.from.closed() {
            self.upstream_closed(at, close, cx, out);
        }
        if self.to.closed().is_some() {
            self.gateway_closed(at, cx, out);
        }
        let reset = |flow: &Flow| matches!(flow.closed(), Some((Close::Rst, _)));
        let both = self.to.closed().is_some() && self.from.closed().is_some();
        if both || reset(&self.to) || reset(&self.from) {
            self.over(at);
        }
    }

    fn upstream_closed(
        &mut self,
        at: Timestamp,
        close: Close,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let first = self.first_close.get_or_insert((Actor::Upstream, close)).0 == Actor::Upstream;
        if close == Close::Fin {
            let mut done = Vec::new();
            self.exchanges.upstream_fin(at, &mut done);
            self.after_bytes(at, done, cx, out);
        }
        if !first {
            return;
        }
        let ended = match close {
            Close::Fin => Ended::UpstreamFin,
            Close::Rst => Ended::UpstreamRst,
        };
        // A request that only began after the FIN is judged with the reset that it draws, or after a
        // moment.
        let wait = close == Close::Fin
            && self
                .exchanges
                .open
                .front()
                .is_some_and(|exchange| exchange.closed_before);
        if !wait {
            self.judge_open(at, ended, cx, out);
        }
        if close == Close::Rst {
            self.judge_unused(close, at, cx, out);
        }
    }

    /// The gateway sent FIN or RST, or its socket closed.
    fn gateway_closed(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        let (closer, close) = *self.first_close.get_or_insert((Actor::Gateway, Close::Fin));
        if closer == Actor::Gateway {
            self.judge_open(at, Ended::Gateway, cx, out);
            return;
        }
        let ended = if close == Close::Rst {
            Ended::UpstreamRst
        } else {
            Ended::UpstreamFin
        };
        self.judge_open(at, ended, cx, out);
        self.judge_unused(close, at, cx, out);
    }

    /// A fresh connection that the upstream closed before a single request byte.
    fn judge_unused(
        &mut self,
        close: Close,
        at: Timestamp,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let unused = self.to.offset() == 0 && self.from.offset() == 0 && !self.mid_stream;
        let Some(established) = self.established.filter(|_| unused && !self.unused_judged) else {
            return;
        };
        self.unused_judged = true;
        let closed = self.from.closed().map_or(at, |(_, closed)| closed);
        let since = closed.since(established);
        match closed_before_request(close == Close::Rst, since, self.from.ttl()) {
            Some(verdict) => {
                out.judged.push(Judged {
                    at: closed,
                    verdict,
                    exchange: None,
                    status: None,
                });
            }
            None => cx.stats.connect_abandoned += 1,
        }
    }

    /// Judges every open exchange on the same end.
    fn judge_open(&mut self, at: Timestamp, ended: Ended, cx: &mut Context<'_>, out: &mut Outcome) {
        if self.exchanges.protocol != Some(Protocol::Http1) {
            return;
        }
        let findings = self.exchanges.response.findings();
        let mut later = false;
        let mut index = 0;
        while let Some(open) = self.exchanges.open.get(index) {
            if !open.judged {
                // Only the oldest exchange's response has begun.
                let facts = if later {
                    ExchangeFacts {
                        stage: Stage::Idle,
                        findings: &[],
                        partial_head: &[],
                        status: None,
                        ..self.facts(at, ended, open, &[], cx)
                    }
                } else {
                    self.facts(at, ended, open, &findings, cx)
                };
                let verdict = exchange(&facts);
                let (stage, status) = (facts.stage, facts.status);
                self.count_unjudged(verdict.as_ref(), ended, stage, cx);
                if ended != Ended::Settled || verdict.is_some() {
                    if let Some(open) = self.exchanges.open.get_mut(index) {
                        open.judged = true;
                    }
                }
                if let (Some(verdict), Some(open)) = (verdict, self.exchanges.open.get(index)) {
                    let exchange = Some(open.snapshot());
                    out.judged.push(Judged {
                        at,
                        verdict,
                        exchange,
                        status,
                    });
                }
            }
            if ended == Ended::Settled {
                break;
            }
            later = true;
            index += 1;
        }
    }

    fn count_unjudged(
        &self,
        verdict: Option<&Verdict>,
        ended: Ended,
        stage: Stage,
        cx: &mut Context<'_>,
    ) {
        if verdict.is_some() || ended == Ended::Settled {
            return;
        }
        match (ended, stage) {
            (_, Stage::Lost) => cx.stats.unjudged_gap += 1,
            (Ended::Gateway, stage) if stage != Stage::Tunnel => {
                cx.stats.unjudged_gateway_closed += 1
            }
            _ => {}
        }
    }

    fn facts<'a>(
        &'a self,
        at: Timestamp,
        ended: Ended,
        open: &Exchange,
        findings: &'a [Finding],
        cx: &Context<'_>,
    ) -> ExchangeFacts<'a> {
        let acked = self.to.acked();
        let response = &self.exchanges.response;
        ExchangeFacts {
            ended,
            fresh: !self.reused(open),
            idle: open.idle,
            request_complete: open.complete,
            closed_before: open.closed_before,
            acked: if acked <= open.offset {
                Acked::Nothing
            } else if acked < open.end_offset {
                Acked::Part
            } else {
                Acked::All
            },
            request_bytes: open.end_offset - open.offset,
            stage: response.stage(),
            status: response.status(),
            missing: response.missing(),
            response_bytes: open.response_bytes,
            event_stream: response.event_stream(),
            findings,
            partial_head: response.partial_head(),
            comm: self.process.as_ref().map(|process| &*process.comm),
            silence: at.since(open.last_response.unwrap_or(open.last_request)),
            since_established: self.established.map(|established| at.since(established)),
            reset_reason: self.reset_reason.as_ref(),
            gateway_window_closed: self.to.window_closed(),
            upstream_window_closed: self.from.window_closed(),
            retransmits: self.to.repeated(),
            patience: cx.patience,
            ttl: self.from.ttl(),
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
        } else if self.waiting(Wait::Closed) {
            self.judge_open(at, Ended::UpstreamFin, cx, &mut out);
        } else {
            self.judge_open(at, Ended::Settled, cx, &mut out);
        }
        out
    }
}

impl Exchange {
    /// What an event needs of an exchange that stays open.
    fn snapshot(&self) -> Self {
        Self {
            head: self.head.clone(),
            ..*self
        }
    }
}
