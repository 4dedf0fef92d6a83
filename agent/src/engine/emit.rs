//! From verdict to event: everything that an event says beside its cause.

use core::net::SocketAddr;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::answers::{Attempt, Decided, Release, Told};
use super::exchange::Exchange;
use super::hop::{Hop, Judged};
use super::names::Known;
use super::{Engine, Slot};
use crate::classify::{InFlight, Verdict, unattempted};
use crate::http1::RequestHead;
use crate::model::{
    ClientAnswer, Completeness, ConnectionInfo, ExchangeInfo, GatewayInfo, HopEvent, HopId,
    LocalInfo, Process, Proof, Target, Timestamp, Turn, UpstreamInfo,
};
use crate::tcp::Ends;

/// Healthy exchanges that wait to be polled.
pub(super) const MAX_HEALTHY: usize = 64;

/// Hops that are looked at for answers without an attempt in one second: a few milliseconds of work.
const MOST_LOOKED_AT: usize = 1 << 20;

/// An exchange that went well.
#[derive(Clone, Debug)]
pub struct Healthy {
    /// Its hop.
    pub hop: HopId,
    /// When it was complete.
    pub time: Timestamp,
    /// The upstream's end.
    pub upstream: SocketAddr,
    /// Status of the response.
    pub status: Option<u16>,
    process: Option<Arc<Process>>,
    head: Option<RequestHead>,
}

impl Healthy {
    /// The gateway process, where a kernel told it.
    pub fn gateway(&self) -> Option<GatewayInfo> {
        self.process.as_deref().map(gateway_info)
    }

    /// Request method.
    pub fn method(&self) -> Option<String> {
        known(self.head.as_ref()?.method())
    }

    /// Request path without its query.
    pub fn path(&self) -> Option<String> {
        known(self.head.as_ref()?.path())
    }
}

impl Engine {
    pub(super) fn tell_healthy(
        &mut self,
        id: HopId,
        at: Timestamp,
        exchange: Exchange,
        status: Option<u16>,
    ) {
        let Some(Slot::Live(tracked)) = self.hops.get(&id) else {
            return;
        };
        if self.healthy.len() >= MAX_HEALTHY {
            self.healthy.pop_front();
        }
        self.healthy.push_back(Healthy {
            hop: id,
            time: at,
            upstream: tracked.hop.upstream,
            status,
            process: tracked.hop.process.clone(),
            head: exchange.head,
        });
    }

    pub(super) fn judged(&mut self, id: HopId, judged: Judged) {
        let Judged {
            at,
            verdict,
            exchange,
            status,
        } = judged;
        let Some(Slot::Live(tracked)) = self.hops.get(&id) else {
            return;
        };
        let hop = &tracked.hop;
        let told = hop.name.as_deref().or_else(|| self.names.name_of_hop(hop));
        let verdict = self
            .names
            .with_name(verdict, told, hop.upstream, hop.opened);
        let began = exchange
            .as_ref()
            .map_or(hop.opened, |exchange| exchange.began);
        let (opener, turn) = (hop.opener(), hop.closer());
        let goroutine = hop.goroutine;
        let ordinal = exchange.as_ref().map_or(0, |exchange| exchange.ordinal);
        let event_id = format!("{:x}-{:x}-{ordinal:x}", at.as_nanos(), id.0);
        let mut event = self.event(
            event_id,
            at,
            verdict,
            hop.upstream.into(),
            hop.process.as_ref(),
        );
        event.hop = Some(id);
        event.upstream.name = told.map(Known::text);
        event.local = hop.local.map(|local| LocalInfo {
            address: local.ip(),
            port: local.port(),
        });
        let source = event.evidence.first().map(|decisive| decisive.source);
        event.tls = source.and_then(|source| hop.tls_info(source));
        event.connection = ConnectionInfo {
            reused: exchange
                .as_ref()
                .is_some_and(|exchange| hop.reused(exchange)),
            age_ms: millis(at.since(hop.opened)),
            idle_ms: exchange
                .as_ref()
                .and_then(|exchange| exchange.idle)
                .map(millis),
            rtt_us: hop.rtt_us,
            syn_retransmits: hop.syn_retransmits,
            retransmits: hop.retransmits(),
        };
        event.completeness = Completeness {
            lost_segments: hop.touched_by_loss(self.stats.records_lost),
            truncated: hop.truncated(),
            mid_stream: hop.mid_stream,
        };
        if event.completeness.lost_segments > 0 && event.proof == Proof::Proven {
            // What was missed may have held another answer.
            event.proof = Proof::Inferred;
        }
        event.exchange = exchange.map(|exchange| {
            let head = exchange.head.unwrap_or_default();
            let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
            ExchangeInfo {
                method: known(head.method()),
                path: known(head.path()),
                host: owned(head.host()),
                request_id: owned(head.request_id()),
                traceparent: owned(head.traceparent()),
                status,
                ordinal: exchange.ordinal,
                first_byte_ms: exchange
                    .first_response
                    .map(|first| millis(first.since(exchange.last_request))),
                duration_ms: millis(at.since(exchange.began)),
                request_bytes: exchange.end_offset - exchange.offset,
                response_bytes: exchange.response_bytes,
            }
        });
        // Whoever asks first on a connection made it.
        let opener = opener.filter(|_| ordinal <= 1);
        let goroutine = goroutine.filter(|_| ordinal <= 1);
        let attempt = Attempt::new(event, began, turn).opened_by(opener);
        self.emit(attempt.run_by(goroutine));
    }

    /// An event with everything that the verdict itself says.
    pub(super) fn event(
        &self,
        id: String,
        at: Timestamp,
        verdict: Verdict,
        upstream: Target,
        process: Option<&Arc<Process>>,
    ) -> HopEvent {
        let info = verdict.cause.info();
        HopEvent {
            id,
            time: at,
            node: Arc::clone(&self.config.node),
            hop: None,
            cause: verdict.cause,
            proof: verdict.proof,
            rivals: verdict.rivals,
            splitter: verdict.splitter.map(str::to_owned),
            proxy_error: info.proxy_error.map(Into::into),
            recommended_status: info.recommended_status,
            fault_side: info.fault_side,
            phase: verdict.phase,
            upstream: UpstreamInfo::from(upstream),
            local: None,
            gateway: process.map(|process| gateway_info(process)),
            exchange: None,
            connection: ConnectionInfo::default(),
            tls: None,
            evidence: verdict.evidence,
            rejected_by: verdict.rejected_by,
            tolerated_by: verdict.tolerated_by,
            capture_id: None,
            completeness: Completeness::default(),
            gateway_answer: None,
            hidden_from_client: false,
        }
    }

    /// Publishes the event of a failed attempt, once it is known what the client got for it.
    pub(super) fn emit(&mut self, attempt: Attempt) {
        let event = &attempt.event;
        self.stats.events += 1;
        // Exchanges over unix sockets are not seen, so that a tally of them would count failures alone.
        if let Some(upstream) = event.upstream.socket_addr() {
            let netns = event.gateway.as_ref().map_or(0, |gateway| gateway.netns);
            self.peers
                .failed((netns, upstream), event.time, event.cause);
        }
        let netns = event.gateway.as_ref().map(|gateway| gateway.netns);
        if netns.is_some_and(|netns| self.answers.watches(netns)) {
            self.answers.attempt(self.now, attempt);
            self.tell_answers();
        } else {
            self.publish(*attempt.event);
        }
    }

    fn publish(&mut self, event: HopEvent) {
        if self.events.len() >= self.limits.events {
            self.stats.events_dropped += 1;
            return;
        }
        self.events.push_back(event);
    }
}

impl Engine {
    /// Takes what a client of a gateway got.
    pub(super) fn answered(&mut self, at: Timestamp, answer: &ClientAnswer<'_>) {
        let ends = Ends::new(answer.client, answer.listener);
        let netns = answer.process.netns;
        let asked = self
            .hop_of((netns, ends))
            .or_else(|| self.hop_of((0, ends)));
        let own =
            match asked.and_then(|id| self.hops.get(&id)) {
                Some(Slot::Live(tracked)) => tracked.hop.process.as_ref().is_some_and(|asking| {
                    asking.netns == netns && asking.comm == answer.process.comm
                }),
                Some(Slot::Over) | None => false,
            };
        if self.answers.answer(at, answer, own) && self.is_worth_a_look() {
            let in_flight = self.in_flight(at, answer);
            self.answers.note_in_flight(in_flight);
        }
        self.tell_answers();
    }

    /// Whether another look at every hop is within what may be spent on that.
    fn is_worth_a_look(&mut self) -> bool {
        if self.now.since(self.unattempted.0) >= Duration::from_secs(1) {
            self.unattempted = (self.now, 0);
        }
        self.unattempted.1 += self.hops.len() + 1;
        self.unattempted.1 <= MOST_LOOKED_AT
    }

    /// What waits for an upstream as this answer is given.
    fn in_flight(&self, at: Timestamp, answer: &ClientAnswer<'_>) -> InFlight {
        let request = RequestHead::of_start(answer.request).unwrap_or_default();
        let (wanted, requested) = (request.path(), at.before(answer.waited));
        let mut in_flight = InFlight::default();
        for slot in self.hops.values() {
            let Slot::Live(tracked) = slot else {
                continue;
            };
            let owner = tracked.hop.process.as_ref();
            let other = owner.is_none_or(|owner| owner.pid != answer.process.pid);
            if other || tracked.hop.closer().is_some() {
                continue;
            }
            in_flight.opaque += usize::from(tracked.hop.is_opaque());
            for (began, head) in tracked.hop.pending() {
                let path = head.and_then(RequestHead::path);
                let same = path.is_some() && path == wanted && began < requested;
                in_flight.requests += usize::from(began <= at);
                in_flight.same_path += usize::from(same);
            }
        }
        in_flight
    }

    /// Notes that a gateway let go of a hop.
    pub(super) fn note_release(&mut self, at: Timestamp, id: HopId, turn: Turn, sure: bool) {
        let slot = self.hops.get(&id);
        let hop = match slot {
            Some(Slot::Live(tracked)) => Some(&tracked.hop),
            Some(Slot::Over) | None => None,
        };
        let over = matches!(slot, Some(Slot::Over));
        let process = hop.and_then(|hop| hop.process.as_ref());
        let release = Release {
            at,
            hop: id,
            opened: hop.map(|hop| hop.opened),
            pid: process.map_or(0, |process| process.pid),
            turn,
            sure,
            served: over || hop.is_some_and(Hop::has_served),
            asked: hop.is_none_or(Hop::has_asked),
        };
        let comm = process.map(|process| Arc::clone(&process.comm));
        self.answers.released(release, comm.as_deref());
        self.tell_answers();
    }

    /// Publishes what is decided of events and answers.
    pub(super) fn tell_answers(&mut self) {
        while let Some(decided) = self.answers.poll() {
            match decided {
                Decided::Event(event) => self.publish(*event),
                Decided::Unattempted(told) => self.unattempted(*told),
            }
        }
    }

    /// Judges an answer that no failed attempt explains.
    fn unattempted(&mut self, told: Told) {
        let Told {
            at,
            requested,
            process,
            answer,
            mut facts,
            thread,
        } = told;
        if !self.is_worth_a_look() {
            self.answers.tally.count_unattempted(&answer, None);
            return;
        }
        for slot in self.hops.values() {
            if let Slot::Live(tracked) = slot
                && let Some(owner) = &tracked.hop.process
                && owner.pid == process.pid
                && tracked
                    .hop
                    .opener()
                    .zip(thread)
                    .is_none_or(|(opener, thread)| opener.thread == thread)
            {
                for (began, head) in tracked.hop.pending() {
                    let path = head.and_then(RequestHead::path);
                    let other = path.is_some() && path.as_deref() != answer.path.as_deref();
                    facts.unjudged += usize::from(began >= requested && began <= at && !other);
                }
            }
        }
        facts.unjudged += self.names.without_address(&process, requested, at);
        let verdict = unattempted(&facts);
        let proof = verdict.as_ref().map(|verdict| verdict.proof);
        self.answers.tally.count_unattempted(&answer, proof);
        let Some(verdict) = verdict else {
            return;
        };
        self.hopless += 1;
        let id = format!("{:x}-a{:x}", at.as_nanos(), self.hopless);
        let mut event = self.event(id, at, verdict, Target::None, Some(&process));
        event.gateway_answer = Some(Box::new(answer));
        self.stats.events += 1;
        self.publish(event);
    }
}

fn gateway_info(process: &Process) -> GatewayInfo {
    GatewayInfo {
        pid: process.pid,
        comm: Arc::clone(&process.comm),
        netns: process.netns,
        cgroup: Arc::clone(&process.cgroup),
        container_id: process.container_id.clone(),
    }
}

fn known(text: Option<Cow<'_, str>>) -> Option<String> {
    text.map(Cow::into_owned).filter(|text| !text.is_empty())
}

/// Milliseconds with the microseconds as fraction.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
