//! What a gateway's client got, as protobuf and back.

use std::net::SocketAddr;

use hopscope_proto::v1::hop_event as part;

use super::convert::{
    ConvertError, address, cause, required, timestamp_from_proto, timestamp_to_proto, u16_of,
    upstream_from_proto, upstream_to_proto,
};
use crate::model::{AttemptInfo, GatewayAnswer};

/// The protobuf form of an answer.
pub(super) fn to_proto(answer: &GatewayAnswer) -> part::GatewayAnswer {
    part::GatewayAnswer {
        status: answer.status.map(u32::from),
        client: Some(part::Client {
            address: answer.client.address.to_string(),
            port: answer.client.port.into(),
        }),
        time: Some(timestamp_to_proto(answer.time)),
        method: answer.method.clone(),
        path: answer.path.clone(),
        host: answer.host.clone(),
        request_id: answer.request_id.clone(),
        latency_ms: answer.latency_ms,
        attempts: answer
            .attempts
            .iter()
            .map(|attempt| part::Attempt {
                event: attempt.event.clone(),
                cause: attempt.cause.id().to_owned(),
                upstream: Some(upstream_to_proto(&attempt.upstream)),
            })
            .collect(),
        candidates: answer.candidates.clone(),
        contested: answer.contested,
    }
}

/// The answer in a protobuf message.
pub(super) fn from_proto(answer: part::GatewayAnswer) -> Result<GatewayAnswer, ConvertError> {
    let client = required(answer.client, "gateway_answer.client")?;
    let mut attempts = Vec::with_capacity(answer.attempts.len());
    for attempt in answer.attempts {
        let upstream = required(attempt.upstream, "gateway_answer.attempts.upstream")?;
        attempts.push(AttemptInfo {
            event: attempt.event,
            cause: cause(attempt.cause, "gateway_answer.attempts.cause")?,
            upstream: upstream_from_proto(upstream)?,
        });
    }
    Ok(GatewayAnswer {
        status: match answer.status {
            Some(status) => Some(u16_of(status, "gateway_answer.status")?),
            None => None,
        },
        client: SocketAddr::new(
            address(&client.address, "gateway_answer.client.address")?,
            u16_of(client.port, "gateway_answer.client.port")?,
        )
        .into(),
        time: timestamp_from_proto(
            required(answer.time, "gateway_answer.time")?,
            "gateway_answer.time",
        )?,
        method: answer.method,
        path: answer.path,
        host: answer.host,
        request_id: answer.request_id,
        latency_ms: answer.latency_ms,
        attempts,
        candidates: answer.candidates,
        contested: answer.contested,
    })
}
