//! From verdict to event: everything that an event says beside its cause.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::hop::Judged;
use super::{Engine, Slot};
use crate::classify::Verdict;
use crate::model::{
    Completeness, ConnectionInfo, ExchangeInfo, GatewayInfo, HopEvent, HopId, LocalInfo, Process,
    Proof, Target, Timestamp, UpstreamInfo,
};

impl Engine {
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
        let ordinal = exchange.as_ref().map_or(0, |exchange| exchange.ordinal);
        let event_id = format!("{:x}-{:x}-{ordinal:x}", at.as_nanos(), id.0);
        let mut event = self.event(
            event_id,
            at,
            verdict,
            hop.upstream.into(),
            hop.process.as_ref(),
        );
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
            lost_segments: hop.lost() + (self.stats.records_lost - hop.lost_before),
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
            let known = |text| owned(text).filter(|text| !text.is_empty());
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
            gateway: process.map(|process| GatewayInfo {
                pid: process.pid,
                comm: Arc::clone(&process.comm),
                netns: process.netns,
                cgroup: Arc::clone(&process.cgroup),
                container_id: process.container_id.clone(),
            }),
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

/// Milliseconds with the microseconds as fraction.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
