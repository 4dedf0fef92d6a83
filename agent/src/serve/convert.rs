//! Events as protobuf and back.
//!
//! Decides what a message from a peer must hold to be an event: nothing is guessed, and the error
//! names the field. Protobuf has no "absent" for most strings and numbers, so empty and zero stand
//! for it.

use core::net::IpAddr;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_event as part;
use hopscope_proto::v1::hop_event::evidence::Source;
use thiserror::Error;

use crate::model::{
    Cause, Completeness, ConnectionInfo, Evidence, EvidenceSource, ExchangeInfo, FaultSide,
    GatewayInfo, HopEvent, LocalInfo, Phase, Proof, Timestamp, TlsInfo, UpstreamAddress,
    UpstreamInfo,
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What is wrong with a message from a peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// A field that every event has is absent.
    #[error("field `{field}` is missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// A cause id that this version does not know.
    #[error("field `{field}` names the unknown cause `{id}`: is the sender a newer version?")]
    UnknownCause {
        /// Path of the field.
        field: &'static str,
        /// What it held.
        id: String,
    },
    /// Not an IP address.
    #[error("field `{field}` is `{value}`, not an IP address")]
    BadAddress {
        /// Path of the field.
        field: &'static str,
        /// What it held.
        value: String,
    },
    /// An enumerator that this version does not know, or none.
    #[error("field `{field}` has the unknown value {value}: is the sender a newer version?")]
    BadEnum {
        /// Path of the field.
        field: &'static str,
        /// What it held.
        value: i32,
    },
    /// A number out of range.
    #[error("field `{field}` is {value}, more than 65535")]
    TooLarge {
        /// Path of the field.
        field: &'static str,
        /// What it held.
        value: u32,
    },
    /// A time before 1970, after 2554, or with bad nanoseconds.
    #[error("field `{field}` is not a time between 1970 and 2554")]
    BadTime {
        /// Path of the field.
        field: &'static str,
    },
}

/// The protobuf form of a span of time.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

/// The protobuf form of an event.
pub fn to_proto(event: &HopEvent) -> proto::HopEvent {
    proto::HopEvent {
        id: event.id.clone(),
        time: Some(timestamp_to_proto(event.time)),
        node: event.node.to_string(),
        cause: event.cause.id().to_owned(),
        proof: proof_to_proto(event.proof).into(),
        rivals: event
            .rivals
            .iter()
            .map(|rival| rival.id().to_owned())
            .collect(),
        splitter: event.splitter.clone().unwrap_or_default(),
        proxy_error: event.proxy_error.as_deref().unwrap_or_default().to_owned(),
        recommended_status: event.recommended_status.map_or(0, u32::from),
        fault_side: fault_side_to_proto(event.fault_side).into(),
        phase: phase_to_proto(event.phase).into(),
        upstream: Some(upstream_to_proto(&event.upstream)),
        local: event.local.map(|local| part::Local {
            address: local.address.to_string(),
            port: local.port.into(),
        }),
        gateway: event.gateway.as_ref().map(|gateway| part::Gateway {
            pid: gateway.pid,
            comm: gateway.comm.to_string(),
            netns: gateway.netns,
            cgroup: gateway.cgroup.to_string(),
            container_id: gateway
                .container_id
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
        }),
        exchange: event.exchange.as_ref().map(exchange_to_proto),
        connection: Some(part::Connection {
            reused: event.connection.reused,
            age_ms: event.connection.age_ms,
            idle_ms: event.connection.idle_ms,
            rtt_us: event.connection.rtt_us,
            syn_retransmits: event.connection.syn_retransmits,
            retransmits: event.connection.retransmits,
        }),
        tls: event.tls.as_ref().map(|tls| part::Tls {
            version: tls.version.clone(),
            cipher: tls.cipher.clone(),
            sni: tls.sni.clone(),
            alpn: tls.alpn.clone(),
            source: source_to_proto(tls.source).into(),
        }),
        evidence: event.evidence.iter().map(evidence_to_proto).collect(),
        rejected_by: event.rejected_by.clone(),
        tolerated_by: event.tolerated_by.clone(),
        capture_id: event.capture_id.clone().unwrap_or_default(),
        completeness: Some(part::Completeness {
            lost_segments: event.completeness.lost_segments,
            truncated: event.completeness.truncated,
            mid_stream: event.completeness.mid_stream,
        }),
        gateway_answer: event.gateway_answer.as_deref().map(super::answer::to_proto),
        hidden_from_client: event.hidden_from_client,
    }
}

/// The protobuf form of an upstream's end.
pub(super) fn upstream_to_proto(upstream: &UpstreamInfo) -> part::Upstream {
    part::Upstream {
        address: upstream.address.to_string(),
        port: upstream.port.into(),
        name: upstream.name.clone().unwrap_or_default(),
    }
}

/// An upstream's end from its protobuf form.
pub(super) fn upstream_from_proto(upstream: part::Upstream) -> Result<UpstreamInfo, ConvertError> {
    Ok(UpstreamInfo {
        address: upstream_address(&upstream.address)?,
        port: u16_of(upstream.port, "upstream.port")?,
        name: filled(upstream.name),
    })
}

fn exchange_to_proto(exchange: &ExchangeInfo) -> part::Exchange {
    part::Exchange {
        method: exchange.method.clone(),
        path: exchange.path.clone(),
        host: exchange.host.clone(),
        request_id: exchange.request_id.clone(),
        traceparent: exchange.traceparent.clone(),
        status: exchange.status.map(u32::from),
        ordinal: exchange.ordinal,
        first_byte_ms: exchange.first_byte_ms,
        duration_ms: exchange.duration_ms,
        request_bytes: exchange.request_bytes,
        response_bytes: exchange.response_bytes,
    }
}

fn evidence_to_proto(evidence: &Evidence) -> part::Evidence {
    part::Evidence {
        source: source_to_proto(evidence.source).into(),
        what: evidence.what.clone().into_owned(),
        offset: evidence.offset,
        bytes: evidence.bytes.clone(),
        text: evidence.text.clone(),
    }
}

/// The protobuf form of a time.
pub fn timestamp_to_proto(time: Timestamp) -> prost_types::Timestamp {
    let seconds = time.as_nanos() / NANOS_PER_SECOND;
    let nanos = time.as_nanos() % NANOS_PER_SECOND;
    prost_types::Timestamp {
        // Both fit by the division; the fallbacks are never taken.
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos).unwrap_or(0),
    }
}

/// A time from its protobuf form; `field` is named in the error.
pub fn timestamp_from_proto(
    time: prost_types::Timestamp,
    field: &'static str,
) -> Result<Timestamp, ConvertError> {
    let nanos = || {
        let seconds = u64::try_from(time.seconds).ok()?;
        let nanos = u64::try_from(time.nanos).ok()?;
        if nanos >= NANOS_PER_SECOND {
            return None;
        }
        seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(nanos)
    };
    nanos()
        .map(Timestamp::from_nanos)
        .ok_or(ConvertError::BadTime { field })
}

/// The event in a protobuf message.
pub fn from_proto(event: proto::HopEvent) -> Result<HopEvent, ConvertError> {
    if event.id.is_empty() {
        return Err(ConvertError::Missing { field: "id" });
    }
    let upstream = required(event.upstream, "upstream")?;
    let connection = required(event.connection, "connection")?;
    let completeness = required(event.completeness, "completeness")?;
    let mut rivals = Vec::with_capacity(event.rivals.len());
    for rival in event.rivals {
        rivals.push(cause(rival, "rivals")?);
    }
    let mut evidence = Vec::with_capacity(event.evidence.len());
    for piece in event.evidence {
        evidence.push(evidence_from_proto(piece)?);
    }
    Ok(HopEvent {
        id: event.id,
        time: timestamp_from_proto(required(event.time, "time")?, "time")?,
        node: Arc::from(event.node),
        hop: None,
        cause: cause(event.cause, "cause")?,
        proof: proof_from_proto(event.proof)?,
        rivals,
        splitter: filled(event.splitter),
        proxy_error: filled(event.proxy_error).map(Cow::Owned),
        recommended_status: match event.recommended_status {
            0 => None,
            status => Some(u16_of(status, "recommended_status")?),
        },
        fault_side: fault_side_from_proto(event.fault_side)?,
        phase: phase_from_proto(event.phase)?,
        upstream: upstream_from_proto(upstream)?,
        local: match event.local {
            None => None,
            Some(local) => Some(LocalInfo {
                address: address(&local.address, "local.address")?,
                port: u16_of(local.port, "local.port")?,
            }),
        },
        gateway: event.gateway.map(|gateway| GatewayInfo {
            pid: gateway.pid,
            comm: Arc::from(gateway.comm),
            netns: gateway.netns,
            cgroup: Arc::from(gateway.cgroup),
            container_id: filled(gateway.container_id).map(Arc::from),
        }),
        exchange: event.exchange.map(exchange_from_proto).transpose()?,
        connection: ConnectionInfo {
            reused: connection.reused,
            age_ms: connection.age_ms,
            idle_ms: connection.idle_ms,
            rtt_us: connection.rtt_us,
            syn_retransmits: connection.syn_retransmits,
            retransmits: connection.retransmits,
        },
        tls: match event.tls {
            None => None,
            Some(tls) => Some(TlsInfo {
                version: tls.version,
                cipher: tls.cipher,
                sni: tls.sni,
                alpn: tls.alpn,
                source: source_from_proto(tls.source, "tls.source")?,
            }),
        },
        evidence,
        rejected_by: event.rejected_by,
        tolerated_by: event.tolerated_by,
        capture_id: filled(event.capture_id),
        completeness: Completeness {
            lost_segments: completeness.lost_segments,
            truncated: completeness.truncated,
            mid_stream: completeness.mid_stream,
        },
        gateway_answer: match event.gateway_answer {
            Some(answer) => Some(Box::new(super::answer::from_proto(answer)?)),
            None => None,
        },
        hidden_from_client: event.hidden_from_client,
    })
}

fn exchange_from_proto(exchange: part::Exchange) -> Result<ExchangeInfo, ConvertError> {
    Ok(ExchangeInfo {
        method: exchange.method,
        path: exchange.path,
        host: exchange.host,
        request_id: exchange.request_id,
        traceparent: exchange.traceparent,
        status: match exchange.status {
            Some(status) => Some(u16_of(status, "exchange.status")?),
            None => None,
        },
        ordinal: exchange.ordinal,
        first_byte_ms: exchange.first_byte_ms,
        duration_ms: exchange.duration_ms,
        request_bytes: exchange.request_bytes,
        response_bytes: exchange.response_bytes,
    })
}

fn evidence_from_proto(evidence: part::Evidence) -> Result<Evidence, ConvertError> {
    Ok(Evidence {
        source: source_from_proto(evidence.source, "evidence.source")?,
        what: Cow::Owned(evidence.what),
        offset: evidence.offset,
        bytes: evidence.bytes,
        text: evidence.text,
    })
}

const fn source_to_proto(source: EvidenceSource) -> Source {
    match source {
        EvidenceSource::Packet => Source::Packet,
        EvidenceSource::Kernel => Source::Kernel,
        EvidenceSource::TlsLibrary => Source::TlsLibrary,
        EvidenceSource::Timer => Source::Timer,
    }
}

fn source_from_proto(source: i32, field: &'static str) -> Result<EvidenceSource, ConvertError> {
    match Source::try_from(source) {
        Ok(Source::Packet) => Ok(EvidenceSource::Packet),
        Ok(Source::Kernel) => Ok(EvidenceSource::Kernel),
        Ok(Source::TlsLibrary) => Ok(EvidenceSource::TlsLibrary),
        Ok(Source::Timer) => Ok(EvidenceSource::Timer),
        Ok(Source::Unspecified) | Err(_) => Err(bad_enum(field, source)),
    }
}

fn proof_to_proto(proof: Proof) -> proto::Proof {
    match proof {
        Proof::Proven => proto::Proof::Proven,
        Proof::Inferred => proto::Proof::Inferred,
        Proof::Underdetermined => proto::Proof::Underdetermined,
    }
}

fn proof_from_proto(value: i32) -> Result<Proof, ConvertError> {
    Ok(match proto::Proof::try_from(value) {
        Ok(proto::Proof::Proven) => Proof::Proven,
        Ok(proto::Proof::Inferred) => Proof::Inferred,
        Ok(proto::Proof::Underdetermined) => Proof::Underdetermined,
        Ok(proto::Proof::Unspecified) | Err(_) => return Err(bad_enum("proof", value)),
    })
}

fn fault_side_to_proto(side: FaultSide) -> proto::FaultSide {
    match side {
        FaultSide::Upstream => proto::FaultSide::Upstream,
        FaultSide::Gateway => proto::FaultSide::Gateway,
        FaultSide::Network => proto::FaultSide::Network,
        FaultSide::Dns => proto::FaultSide::Dns,
        FaultSide::Both => proto::FaultSide::Both,
    }
}

fn fault_side_from_proto(value: i32) -> Result<FaultSide, ConvertError> {
    Ok(match proto::FaultSide::try_from(value) {
        Ok(proto::FaultSide::Upstream) => FaultSide::Upstream,
        Ok(proto::FaultSide::Gateway) => FaultSide::Gateway,
        Ok(proto::FaultSide::Network) => FaultSide::Network,
        Ok(proto::FaultSide::Dns) => FaultSide::Dns,
        Ok(proto::FaultSide::Both) => FaultSide::Both,
        Ok(proto::FaultSide::Unspecified) | Err(_) => return Err(bad_enum("fault_side", value)),
    })
}

fn phase_to_proto(phase: Phase) -> proto::Phase {
    match phase {
        Phase::Resolve => proto::Phase::Resolve,
        Phase::Pick => proto::Phase::Pick,
        Phase::Connect => proto::Phase::Connect,
        Phase::Tls => proto::Phase::Tls,
        Phase::Request => proto::Phase::Request,
        Phase::ResponseHead => proto::Phase::ResponseHead,
        Phase::ResponseBody => proto::Phase::ResponseBody,
        Phase::Idle => proto::Phase::Idle,
    }
}

fn phase_from_proto(value: i32) -> Result<Phase, ConvertError> {
    Ok(match proto::Phase::try_from(value) {
        Ok(proto::Phase::Resolve) => Phase::Resolve,
        Ok(proto::Phase::Pick) => Phase::Pick,
        Ok(proto::Phase::Connect) => Phase::Connect,
        Ok(proto::Phase::Tls) => Phase::Tls,
        Ok(proto::Phase::Request) => Phase::Request,
        Ok(proto::Phase::ResponseHead) => Phase::ResponseHead,
        Ok(proto::Phase::ResponseBody) => Phase::ResponseBody,
        Ok(proto::Phase::Idle) => Phase::Idle,
        Ok(proto::Phase::Unspecified) | Err(_) => return Err(bad_enum("phase", value)),
    })
}

pub(super) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing { field })
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

pub(super) fn cause(id: String, field: &'static str) -> Result<Cause, ConvertError> {
    Cause::from_id(&id).ok_or(ConvertError::UnknownCause { field, id })
}

pub(super) fn address(text: &str, field: &'static str) -> Result<IpAddr, ConvertError> {
    text.parse().map_err(|_| ConvertError::BadAddress {
        field,
        value: text.to_owned(),
    })
}

fn upstream_address(text: &str) -> Result<UpstreamAddress, ConvertError> {
    text.parse().map_err(|_| ConvertError::BadAddress {
        field: "upstream.address",
        value: text.to_owned(),
    })
}

pub(super) fn u16_of(value: u32, field: &'static str) -> Result<u16, ConvertError> {
    u16::try_from(value).map_err(|_| ConvertError::TooLarge { field, value })
}

fn bad_enum(field: &'static str, value: i32) -> ConvertError {
    ConvertError::BadEnum { field, value }
}
