//! When a hop's facts are complete enough to ask the rules, and with which facts.
//!
//! The first side to close decides how an exchange ended; what follows on the wire only adds to it.

use std::time::Duration;

use super::{Context, Hop, Judged, Outcome, Phase, Wait};
use crate::classify::{
    Acked, Ended, ExchangeFacts, afterwards, closed_before_request, cut_off, exchange,
};
use crate::engine::exchange::{Completed, Done, Exchange};
use crate::engine::peers::Peer;
use crate::engine::traffic::Finished;
use crate::http1::{Finding, Protocol, Stage};
use crate::model::{Actor, Timestamp};
use crate::stats::Stats;
use crate::tcp::{Close, Flow};

/// A broken rule is told this long after its byte, should the exchange not end before.
const FINDING_SETTLE: Duration = Duration::from_millis(500);

/// The reset that answers a request on a closed connection is waited for this long.
const CLOSED_SETTLE: Duration = Duration::from_millis(100);

/// Facts about an end come this much later at most: they travel the same ring.
const END_SETTLE: Duration = Duration::from_millis(50);

/// Whoever is said to have reset a connection is heard of within two round trips if that is not so. A
/// round trip that was measured on a SYN-ACK that came late is not taken at its word.
const LONGEST_SETTLE: Duration = Duration::from_millis(500);

/// A reset later than this has nothing to do with the exchange before it.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// A gateway closes towards client and upstream in one turn of its loop: that takes microseconds, and
/// longer where the processor is taken away in between. A busy loop takes turn after turn without a
/// sleep to tell them apart.
const TOGETHER: Duration = Duration::from_millis(50);

impl Hop {
    /// Judges complete responses, and watches a broken one.
    pub(super) fn after_bytes(
        &mut self,
        at: Timestamp,
        done: &mut Done,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        while let Some(completed) = done.pop() {
            cx.stats.unjudged_gap += u64::from(completed.stage == Stage::Lost);
            if completed.exchange.judged {
                continue;
            }
            let finished = Finished::of(&completed.exchange, completed.status);
            let news = out.news();
            news.finished.push(finished);
            news.completed |= completed.stage != Stage::Lost;
            let plain = completed.is_plain();
            if plain && !cfg!(debug_assertions) {
                self.let_pass(at, completed, cx, out);
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
            let verdict = exchange(&facts);
            debug_assert!(!plain || verdict.is_none(), "a plain exchange has a cause");
            let limit = completed.findings.iter().any(|found| found.kind.is_limit());
            if verdict.is_none() && (limit || !completed.exchange.complete) {
                self.exchanges.last = Some(Box::new((at, completed)));
            } else if let Some(verdict) = verdict {
                let status = completed.status;
                out.judge(Judged {
                    at,
                    verdict,
                    exchange: Some(completed.exchange),
                    status,
                });
            } else {
                cx.stats.tolerated += u64::from(!completed.findings.is_empty());
                self.let_pass(at, completed, cx, out);
            }
        }
        let Some(front) = self.exchanges.open.front() else {
            return;
        };
        let unjudged = !front.judged;
        // A request on a connection that the upstream has closed already gets no response.
        let doomed = front.closed_before;
        if unjudged && self.exchanges.response.is_broken() && !self.waiting(Wait::Finding) {
            self.waits.push((at.after(FINDING_SETTLE), Wait::Finding));
        }
        if doomed && unjudged && !self.waiting(Wait::Closed) {
            self.waits.push((at.after(CLOSED_SETTLE), Wait::Closed));
        }
    }

    /// An exchange that did not fail.
    fn let_pass(
        &mut self,
        at: Timestamp,
        completed: Completed,
        cx: &Context<'_>,
        out: &mut Outcome,
    ) {
        if completed.stage != Stage::Lost {
            self.forget_losses(cx.stats.records_lost);
        }
        let told = completed.findings.is_empty()
            && completed.stage != Stage::Lost
            && !self.exchanges.is_hidden();
        if cx.tell_healthy && told {
            let healthy = (at, completed.exchange, completed.status);
            out.news().healthy.push(healthy);
        } else {
            self.exchanges.forget(completed.exchange);
        }
    }

    /// Judges what a close leaves open.
    pub(super) fn after_close(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        if !self.to.is_closing() && !self.from.is_closing() {
            return;
        }
        if let Some((close, _)) = self.from.closed() {
            self.upstream_closed(at, close, cx, out);
        }
        if self.to.closed().is_some() {
            self.gateway_closed(at, cx, out);
        }
        self.judge_last(at, cx, out);
        let reset = |flow: &Flow| matches!(flow.closed(), Some((Close::Rst, _)));
        let both = self.to.closed().is_some() && self.from.closed().is_some();
        if both || reset(&self.to) || reset(&self.from) {
            self.over(at);
        }
    }

    /// Judges the last complete exchange on a reset that came after it.
    fn judge_last(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        let reset = |flow: &Flow| matches!(flow.closed(), Some((Close::Rst, _)));
        let upstream_first = matches!(self.first_close, None | Some((Actor::Upstream, _)));
        let rst = if reset(&self.to) {
            Actor::Gateway
        } else if reset(&self.from) && upstream_first {
            Actor::Upstream
        } else {
            return;
        };
        let Some((ended, last)) = self.exchanges.last.take().map(|last| *last) else {
            return;
        };
        if at.since(ended) > AFTERWARDS {
            return;
        }
        let facts = ExchangeFacts {
            status: last.status,
            stage: last.stage,
            ..self.facts(at, Ended::Complete, &last.exchange, &last.findings, cx)
        };
        if let Some(verdict) = afterwards(&facts, rst) {
            out.judge(Judged {
                at,
                verdict,
                status: last.status,
                exchange: Some(last.exchange),
            });
        }
    }

    pub(super) fn upstream_closed(
        &mut self,
        at: Timestamp,
        close: Close,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let first = self.first_close.get_or_insert((Actor::Upstream, close)).0 == Actor::Upstream;
        if self.exchanges.is_unread() {
            // The gateway is about to read the rest, or to close.
            return;
        }
        let mut completed = false;
        if close == Close::Fin {
            let mut done = Done::default();
            self.exchanges.upstream_fin(at, &mut done);
            completed = !done.is_empty();
            self.after_bytes(at, &mut done, cx, out);
        }
        if first {
            let how = self.how_closed(at, close, completed);
            self.leave(at, Some(how), cx);
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
            self.end(at, ended, cx, out);
        }
        // A gateway that has sent its FIN closed first, even where that FIN is not in order.
        if close == Close::Rst && !self.to.is_closing() {
            self.judge_unused(close, at, cx, out);
        }
    }

    /// The gateway sent FIN or RST, or its socket closed.
    pub(super) fn gateway_closed(
        &mut self,
        at: Timestamp,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let (closer, close) = *self.first_close.get_or_insert((Actor::Gateway, Close::Fin));
        self.leave(at, None, cx);
        if closer == Actor::Gateway {
            self.end(at, Ended::Gateway, cx, out);
            return;
        }
        let ended = if close == Close::Rst {
            Ended::UpstreamRst
        } else {
            Ended::UpstreamFin
        };
        self.end(at, ended, cx, out);
        self.judge_unused(close, at, cx, out);
    }

    /// Takes note of what ended the exchanges. Some facts about an end come after it: whether whoever is
    /// said to have reset goes on, and live, why the upstream's kernel reset and whether the gateway let
    /// go of its client in the same moment.
    fn end(&mut self, at: Timestamp, ended: Ended, cx: &mut Context<'_>, out: &mut Outcome) {
        let tls = self.speaks_tls();
        if ended == Ended::UpstreamFin && !tls {
            self.judge_open(at, ended, cx, out);
        } else if !self.kernel && ended == Ended::Gateway && !tls {
            if self.ending.is_none() && !std::mem::replace(&mut self.ended, true) {
                self.judge_open(at, ended, cx, out);
            }
        } else if self.ending.is_none()
            && !self.ended
            && (tls || self.exchanges.open.iter().any(|open| !open.judged))
        {
            let mut settle = END_SETTLE;
            if ended == Ended::UpstreamRst {
                let round_trip = Duration::from_micros(self.rtt_us.unwrap_or(0).into());
                settle = settle.max((2 * round_trip).min(LONGEST_SETTLE));
            }
            self.ending = Some((ended, at));
            self.waits.push((at.after(settle), Wait::End));
        }
    }

    /// The gateway's kernel did not take a reset of the upstream, so it did not end anything.
    pub(super) fn survive(&mut self) {
        self.from.forget_reset();
        self.first_close = None;
        self.ending = None;
        self.ended = false;
        self.waits
            .retain(|(_, wait)| !matches!(wait, Wait::End | Wait::Forget));
        if self.phase == Phase::Over {
            self.phase = Phase::Established;
        }
    }

    /// Judges the end that was noted.
    pub(super) fn judge_end(&mut self, cx: &mut Context<'_>, out: &mut Outcome) {
        let Some((ended, at)) = self.ending.take() else {
            return;
        };
        self.ended = true;
        let ended = self.ended_by_leave(ended, at);
        self.judge_cut_record(at, ended, cx, out);
        self.end_of_tls(at, cx, out);
        // No gateway passes on a part of a head.
        let begun = self.exchanges.response.status().is_some()
            && self.exchanges.response.stage() != Stage::Head;
        let left = self.closer.and_then(|turn| cx.departures.left(turn, begun));
        let together = left.is_some_and(|left| left.since(at).max(at.since(left)) <= TOGETHER);
        if ended == Ended::Gateway && together && !self.exchanges.response.is_malformed() {
            // A refusal that was seen is one, whoever left.
            if self.judge_tls(at, ended, true, cx, out) {
                return;
            }
            let mut status = self.exchanges.response.status();
            for open in &mut self.exchanges.open {
                let status = status.take();
                if !std::mem::replace(&mut open.judged, true) {
                    cx.stats.client_left += 1;
                    out.news().finished.push(Finished::of(open, status));
                }
            }
            return;
        }
        if self.judge_tls(at, ended, false, cx, out) {
            return;
        }
        // What is broken stays that, whatever follows.
        let unread = self.exchanges.is_text_unread() && !self.exchanges.response.is_broken();
        if unread || ended == Ended::UpstreamFin && !self.from.has_fin() {
            self.leave_unjudged(cx, out);
        } else {
            self.judge_open(at, ended, cx, out);
        }
    }

    /// A fresh connection that the upstream closed before a single request byte.
    pub(super) fn judge_unused(
        &mut self,
        close: Close,
        at: Timestamp,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let sent = self.to.offset() > 0 || self.to.kept_bytes() > 0;
        let unused = !sent && self.from.offset() == 0 && !self.mid_stream;
        let Some(established) = self.established.filter(|_| unused && !self.setup_judged) else {
            return;
        };
        self.setup_judged = true;
        let closed = self.from.closed().map_or(at, |(_, closed)| closed);
        let since = closed.since(established);
        let reset = self.from.reset().filter(|_| close == Close::Rst);
        match closed_before_request(close == Close::Rst, since, self.from.ttl(), reset) {
            Some(verdict) => {
                out.judge(Judged {
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
    pub(super) fn judge_open(
        &mut self,
        at: Timestamp,
        ended: Ended,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let readable = matches!(
            self.exchanges.protocol,
            Some(Protocol::Http1 | Protocol::Tls)
        );
        if !readable || self.exchanges.open.is_empty() {
            return;
        }
        let findings = self.exchanges.response.findings();
        let mut later = false;
        let mut index = 0;
        while let Some(open) = self.exchanges.open.get(index) {
            if !open.judged {
                // Only the oldest exchange's response has begun.
                let mut facts = if later {
                    ExchangeFacts {
                        stage: Stage::Idle,
                        findings: &[],
                        partial_head: &[],
                        status: None,
                        unasked: false,
                        ..self.facts(at, ended, open, &[], cx)
                    }
                } else {
                    self.facts(at, ended, open, &findings, cx)
                };
                if let Some(process) = &self.process
                    && cut_off(&facts)
                {
                    facts.ended_alike = cx.deadlines.note(&process.comm, facts.lasted);
                }
                let verdict = self.half_open(&facts, cx).or_else(|| exchange(&facts));
                let verdict = self.through_tls(ended, open, verdict);
                let (stage, status) = (facts.stage, facts.status);
                if verdict.is_none() {
                    count_unjudged(ended, stage, cx.stats);
                }
                // After the gateway's FIN its upstream may still answer.
                let open_end = matches!(ended, Ended::Settled | Ended::Gateway);
                if (!open_end || verdict.is_some())
                    && let Some(open) = self.exchanges.open.get_mut(index)
                {
                    open.judged = true;
                    out.news().finished.push(Finished::of(open, status));
                }
                if let (Some(verdict), Some(open)) = (verdict, self.exchanges.open.get(index)) {
                    let exchange = Some(open.snapshot());
                    let judged = Judged {
                        at,
                        verdict,
                        exchange,
                        status,
                    };
                    self.tell(judged, cx, out);
                }
            }
            if ended == Ended::Settled {
                break;
            }
            later = true;
            index += 1;
        }
    }

    /// Whether another connection to the upstream was established since then.
    fn is_alive(&self, since: Timestamp, cx: &Context<'_>) -> bool {
        let peer = cx.peers.get(&self.place());
        peer.and_then(Peer::established)
            .is_some_and(|established| established >= since)
    }

    pub(super) fn facts<'a>(
        &'a self,
        at: Timestamp,
        ended: Ended,
        open: &Exchange,
        findings: &'a [Finding],
        cx: &Context<'_>,
    ) -> ExchangeFacts<'a> {
        let acked = self.to.acked();
        let response = &self.exchanges.response;
        let mut last = open.last_response.unwrap_or(open.last_request);
        if ended == Ended::Gateway {
            // Before that, the upstream was not free to send.
            last = last.max(self.to.reopened());
        }
        ExchangeFacts {
            ended,
            fresh: !self.reused(open),
            idle: open.idle,
            quiet: self.quiet,
            request_complete: open.complete,
            request_missed: self.exchanges.missed,
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
            lasted: at.since(open.began),
            ended_alike: 0,
            silence: at.since(last),
            since_established: self.established.map(|established| at.since(established)),
            reset_reason: self.reset_reason.as_ref(),
            gateway_window_closed: self.to.window_closed(),
            upstream_window_closed: self.from.window_closed(),
            upstream_windows: self.from.windows(),
            stuck: self.to.stuck(),
            passes_some: self.to.passes_some(),
            passed_full_size: self.to.passed_full_size(),
            hole: self.from.hole(),
            upstream_alive: self.is_alive(open.began, cx),
            patience: cx.patience,
            reset: self.from.reset(),
            reset_ttl_known: self.from.reset().is_some_and(|reset| {
                cx.peers.target_ttl(self.place(), at, reset.ttl) == Some(reset.ttl)
            }),
            // What was missed may have held its request.
            unasked: open.unasked && self.lost() == 0,
            tls_port: open.tls_port.found(),
            web_socket: open.head.as_ref().is_some_and(|head| head.web_socket),
        }
    }
}

impl Exchange {
    /// What an event needs of an exchange that stays open.
    pub(super) fn snapshot(&self) -> Self {
        Self {
            head: self.head.clone(),
            ..*self
        }
    }
}

/// Counts an exchange that ended without a verdict although it did not end well.
const fn count_unjudged(ended: Ended, stage: Stage, stats: &mut Stats) {
    match (ended, stage) {
        (Ended::Settled, _) | (_, Stage::Tunnel) => {}
        (_, Stage::Lost) => stats.unjudged_gap += 1,
        (Ended::Gateway, _) => stats.unjudged_gateway_closed += 1,
        _ => {}
    }
}
