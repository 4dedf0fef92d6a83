//! From verdict to event: everything that an event says beside its cause.

use core::net::SocketAddr;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::Exchange;
use super::hop::Judged;
use super::names::Told;
use super::{Engine, Slot};
use crate::classify::Verdict;
use crate::http1::RequestHead;
use crate::model::{
    Completeness, ConnectionInfo, ExchangeInfo, GatewayInfo, HopEvent, HopId, LocalInfo, Process,
    Proof, Target, Timestamp, UpstreamInfo,
};

/// Healthy exchanges that wait to be polled.
pub(super) const MAX_HEALTHY: usize = 64;

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
        event.upstream.name = told.map(Told::text);
        event.local = hop.local.map(|local| LocalInfo {
            address: local.ip(),
            port: local.port(),
        });
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
        self.emit(event);
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
            evidence: verdict.evidence,
            rejected_by: verdict.rejected_by,
            tolerated_by: verdict.tolerated_by,
            capture_id: None,
            completeness: Completeness::default(),
        }
    }

    pub(super) fn emit(&mut self, event: HopEvent) {
        self.stats.events += 1;
        // Exchanges over unix sockets are not seen, so that a tally of them would count failures alone.
        if let Some(upstream) = event.upstream.socket_addr() {
            let netns = event.gateway.as_ref().map_or(0, |gateway| gateway.netns);
            self.peers
                .failed((netns, upstream), event.time, event.cause);
        }
        if self.events.len() >= self.limits.events {
            self.stats.events_dropped += 1;
            return;
        }
        self.events.push_back(event);
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
