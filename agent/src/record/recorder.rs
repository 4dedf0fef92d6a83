//! Joins the parts: sees every input, and turns an event into a capture.

use core::net::SocketAddr;
use std::sync::Arc;

use super::capture::{Capture, CaptureId, CapturedPacket, ExchangeLine};
use super::flight::{Flight, RecordLimits};
use super::redact::Redactor;
use super::sampler::Sampler;
use super::store::{Store, StoreError};
use crate::engine::Healthy;
use crate::model::{HopEvent, HopId, Input, Timestamp, UpstreamPattern};

/// Keeps the packets of failed exchanges, and of some healthy ones.
///
/// [`Recorder::see`] comes before the engine's `handle` for the same input, [`Recorder::keep`] and
/// [`Recorder::keep_healthy`] before the next input. Without a store it only takes secrets out of
/// events.
#[derive(Debug)]
pub struct Recorder {
    redactor: Redactor,
    kept: Option<Keeping>,
    node: Arc<str>,
    counters: Counters,
}

#[derive(Debug)]
struct Keeping {
    flight: Flight,
    store: Arc<Store>,
    sampler: Arc<Sampler>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    without_packets: u64,
    failed: u64,
}

impl Recorder {
    /// A recorder that only takes secrets out of events.
    pub fn without_store(redactor: Redactor) -> Self {
        Self {
            redactor,
            kept: None,
            node: Arc::from(""),
            counters: Counters::default(),
        }
    }

    /// A recorder that keeps captures in `store`.
    pub fn new(
        redactor: Redactor,
        limits: RecordLimits,
        store: Arc<Store>,
        sampler: Arc<Sampler>,
        node: Arc<str>,
    ) -> Self {
        Self {
            redactor,
            kept: Some(Keeping {
                flight: Flight::new(limits),
                store,
                sampler,
            }),
            node,
            counters: Counters::default(),
        }
    }

    /// Takes what the engine is about to be told.
    pub fn see(&mut self, at: Timestamp, input: &Input<'_>) {
        if let Some(Keeping { flight, .. }) = &mut self.kept {
            flight.see(at, input);
        }
    }

    /// Lets time pass. To be called about once a second.
    pub fn tick(&mut self, now: Timestamp, is_over: impl Fn(HopId) -> bool) {
        if let Some(Keeping { flight, store, .. }) = &mut self.kept {
            flight.tick(now, is_over);
            store.tick(now);
        }
    }

    /// Holds the packets of an event that waits for what the gateway's client gets: by the time that it goes
    /// out, others may have taken their place.
    pub fn hold(&mut self, event: &HopEvent) {
        if let Some((Keeping { flight, .. }, hop)) = self.kept.as_mut().zip(event.hop) {
            flight.hold(&event.id, hop);
        }
    }

    /// Takes secrets out of an event, keeps the packets of its hop, and notes in it under which name. To be
    /// called before it is published: then no crash costs the packets of an event that somebody has seen.
    /// An error says why they are not kept; the event is fit to be published all the same.
    pub fn keep(&mut self, event: &mut HopEvent, now: Timestamp) -> Result<(), StoreError> {
        let hop = event.hop.zip(event.upstream.socket_addr());
        let Some((Keeping { flight, .. }, (hop, upstream))) = self.kept.as_mut().zip(hop) else {
            self.counters.without_packets += u64::from(self.kept.is_some());
            self.redactor.redact(&mut Vec::new(), Some(event));
            return Ok(());
        };
        let mut packets = flight.release(&event.id, hop);
        let errors = errors(flight, event, upstream, &packets);
        self.redactor.redact(&mut packets, Some(event));
        if !errors.is_empty() {
            packets.extend(errors);
            packets.sort_by_key(|packet| packet.at);
        }
        if packets.is_empty() {
            self.counters.without_packets += 1;
            return Ok(());
        }
        let line = event.exchange.as_ref();
        let mut capture = Capture {
            time: event.time,
            node: Arc::clone(&event.node),
            upstream,
            gateway: event.gateway.clone(),
            exchange: ExchangeLine {
                method: line.and_then(|line| line.method.clone()),
                path: line.and_then(|line| line.path.clone()),
                status: line.and_then(|line| line.status),
            },
            event: Some(event.clone()),
            packets,
        };
        let id = self.append(&mut capture, now)?;
        event.capture_id = id.map(|id| id.to_string());
        Ok(())
    }

    /// Counts healthy exchanges whose packets nobody can keep.
    pub fn skip_healthy(&mut self, upstream: SocketAddr, count: u64) {
        if let Some(Keeping { sampler, .. }) = &self.kept {
            sampler.skip(upstream, count);
        }
    }

    /// Boosts that were asked for since the last call, and until when.
    pub fn new_boosts(&mut self) -> Vec<(UpstreamPattern, Timestamp)> {
        let kept = self.kept.as_ref();
        kept.map_or_else(Vec::new, |kept| kept.sampler.new_boosts())
    }

    /// Keeps the packets of a healthy exchange, if it is one of those that are wanted to compare with.
    pub fn keep_healthy(&mut self, healthy: &Healthy, now: Timestamp) -> Result<(), StoreError> {
        let Some(Keeping {
            flight, sampler, ..
        }) = &self.kept
        else {
            return Ok(());
        };
        if !sampler.wants(healthy.upstream, now) {
            return Ok(());
        }
        let mut packets = flight.packets(healthy.hop);
        self.redactor.redact(&mut packets, None);
        if packets.is_empty() {
            return Ok(());
        }
        let mut capture = Capture {
            time: healthy.time,
            node: Arc::clone(&self.node),
            upstream: healthy.upstream,
            gateway: healthy.gateway(),
            exchange: ExchangeLine {
                method: healthy.method(),
                path: healthy.path(),
                status: healthy.status,
            },
            event: None,
            packets,
        };
        self.append(&mut capture, now)?;
        Ok(())
    }

    fn append(
        &mut self,
        capture: &mut Capture,
        now: Timestamp,
    ) -> Result<Option<CaptureId>, StoreError> {
        let Some(Keeping { store, .. }) = &self.kept else {
            return Ok(None);
        };
        match store.append(capture, now) {
            Ok(id) => Ok(Some(id)),
            Err(error) => {
                self.counters.failed += 1;
                Err(error)
            }
        }
    }

    /// What the recorder, its buffers and its store did.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Some(Keeping {
            flight,
            store,
            sampler,
        }) = &self.kept
        else {
            return Vec::new();
        };
        let mut counters = flight.counters();
        counters.extend(store.counters());
        counters.extend(sampler.counters());
        counters.push((
            "recorder_events_without_packets",
            self.counters.without_packets,
        ));
        counters.push(("recorder_captures_failed", self.counters.failed));
        counters
    }
}

/// The ICMP errors about the hop of an event. They hold no payload, and so no secrets.
fn errors(
    flight: &Flight,
    event: &HopEvent,
    upstream: SocketAddr,
    packets: &[CapturedPacket],
) -> Vec<CapturedPacket> {
    let Some((local, first)) = event.local.zip(packets.first()) else {
        return Vec::new();
    };
    let netns = event.gateway.as_ref().map_or(0, |gateway| gateway.netns);
    let local = SocketAddr::new(local.address, local.port);
    flight.errors(first.at, netns, local, upstream).collect()
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
