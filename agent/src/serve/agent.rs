//! The `hopscope.v1.HopAgent` service, with the standard health and reflection services beside it.
//!
//! Decides how the hub's answers and refusals look as gRPC statuses.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_server::{HopAgent, HopAgentServer};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::access::may_capture;
use super::captures::{CaptureCalls, CaptureStream};
use super::convert::{timestamp_from_proto, timestamp_to_proto, to_proto};
use super::filter::{Filter, FilterError};
use super::hub::{Hub, STATUS_PATIENCE, SubscribeError};
use super::listen::{Listener, ServeError, server};
use super::queue::{Ended, Subscription};
use crate::engine::UpstreamTally;

/// gRPC clients refuse messages above 4 MiB unless told otherwise; the rest is left for framing.
pub(super) const QUERY_BYTES: usize = 4 * 1024 * 1024 - 64 * 1024;

/// The service over one hub.
#[derive(Clone, Debug)]
pub struct AgentService {
    hub: Arc<Hub>,
    captures: CaptureCalls,
}

impl AgentService {
    /// A service that answers from `hub`, and from the captures that it has by now.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self {
            captures: CaptureCalls::new(hub.captures()),
            hub,
        }
    }
}

#[tonic::async_trait]
impl HopAgent for AgentService {
    type SubscribeStream = EventStream;
    type PullCaptureStream = CaptureStream;

    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filter = checked_filter(request.into_inner().filter)?;
        let subscription = self.hub.subscribe().map_err(|error| match error {
            SubscribeError::TooMany(_) => Status::resource_exhausted(error.to_string()),
            SubscribeError::Stopping => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(EventStream {
            subscription,
            filter,
        }))
    }

    async fn query(
        &self,
        request: Request<proto::QueryRequest>,
    ) -> Result<Response<proto::QueryResponse>, Status> {
        let request = request.into_inner();
        let filter = checked_filter(request.filter)?;
        let limit = match request.limit {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let held = self.hub.query(&filter, limit);
        // Tag and length of a repeated message take at most six bytes at this size.
        let newest = held.events.iter().rev().scan(0, |bytes, event| {
            *bytes += event.bytes() + 6;
            (*bytes <= QUERY_BYTES).then_some(event)
        });
        let fitting = newest.count();
        let left_out = held.events.len() - fitting;
        let omitted = held.omitted + left_out;
        // As messages they take several times their length: no more room than they need.
        let mut events = Vec::with_capacity(fitting);
        for event in held.events.iter().skip(left_out) {
            let event = event.message();
            events.push(event.map_err(|error| Status::internal(error.to_string()))?);
        }
        Ok(Response::new(proto::QueryResponse {
            events,
            omitted: u32::try_from(omitted).unwrap_or(u32::MAX),
        }))
    }

    async fn status(
        &self,
        _request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let report = self.hub.fresh_status(STATUS_PATIENCE).await;
        let config = self.hub.config();
        let probes = report.probes.into_iter().map(|probe| proto::Probe {
            name: probe.name.to_owned(),
            attached: probe.attached,
            reason: probe.reason,
        });
        let counters = report.counters.into_iter();
        let counters = counters.map(|(name, value)| proto::Counter {
            name: name.into_owned(),
            value,
        });
        let upstreams = report.upstreams.into_iter();
        Ok(Response::new(proto::StatusResponse {
            upstreams: upstreams.map(traffic_to_proto).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: config.node.to_string(),
            started: Some(timestamp_to_proto(config.started)),
            probes: probes.collect(),
            counters: counters.collect(),
            kernel: config.kernel.clone(),
        }))
    }

    async fn list_captures(
        &self,
        request: Request<proto::ListCapturesRequest>,
    ) -> Result<Response<proto::ListCapturesResponse>, Status> {
        may_capture(&request)?;
        self.captures.list(request.into_inner()).map(Response::new)
    }

    async fn pull_capture(
        &self,
        request: Request<proto::PullCaptureRequest>,
    ) -> Result<Response<Self::PullCaptureStream>, Status> {
        may_capture(&request)?;
        self.captures.pull(request.into_inner()).map(Response::new)
    }

    async fn boost_sampling(
        &self,
        request: Request<proto::BoostSamplingRequest>,
    ) -> Result<Response<proto::BoostSamplingResponse>, Status> {
        may_capture(&request)?;
        self.captures
            .boost(&request.into_inner())
            .map(Response::new)
    }
}

fn traffic_to_proto((upstream, tally): (SocketAddr, UpstreamTally)) -> proto::UpstreamTraffic {
    proto::UpstreamTraffic {
        address: upstream.ip().to_string(),
        port: upstream.port().into(),
        connects: tally.traffic.connects,
        exchanges: tally.exchanges,
        failures: tally.failures,
        statuses: tally.traffic.statuses.to_vec(),
        request_bytes: tally.traffic.request_bytes,
        response_bytes: tally.traffic.response_bytes,
        first_byte: tally.traffic.first_byte.to_vec(),
    }
}

pub(super) fn checked_filter(filter: Option<proto::EventFilter>) -> Result<Filter, Status> {
    let filter = filter.unwrap_or_default();
    let since = filter
        .since
        .map(|since| timestamp_from_proto(since, "filter.since"))
        .transpose()
        .map_err(|_| FilterError::Since);
    since
        .and_then(|since| Filter::parse(&filter.causes, &filter.upstreams, since))
        .map(|checked| checked.unexplained(filter.unexplained))
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// A subscription through its filter, as protobuf.
#[derive(Debug)]
pub struct EventStream {
    subscription: Subscription,
    filter: Filter,
}

impl Stream for EventStream {
    type Item = Result<proto::HopEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let next = std::task::ready!(Pin::new(&mut self.subscription).poll_next(cx));
            return Poll::Ready(match next {
                Some(Ok(event)) if self.filter.matches(&event) => Some(Ok(to_proto(&event))),
                Some(Ok(_)) => continue,
                Some(Err(Ended::TooSlow)) => Some(Err(Status::resource_exhausted(
                    "subscriber too slow: its queue was full, so events were missed; query the \
                     recent ones and subscribe again",
                ))),
                Some(Err(Ended::Stopping)) => {
                    Some(Err(Status::unavailable("the agent is stopping")))
                }
                None => None,
            });
        }
    }
}

/// Serves `hub` on `listener` until `stop` resolves.
pub async fn serve_agent(
    listener: Listener,
    hub: Arc<Hub>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<HopAgentServer<AgentService>>().await;
    let reflection = || reflection("hopscope.v1.HopAgent");
    let router = server()
        .add_service(HopAgentServer::new(AgentService::new(Arc::clone(&hub))))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let stop = async move {
        stop.await;
        health
            .set_not_serving::<HopAgentServer<AgentService>>()
            .await;
        // Subscriptions never end by themselves, and the server waits for them.
        hub.close();
    };
    listener.serve(router, stop).await
}

/// Reflection that lists what a server really offers, not every service in the .proto file.
pub(crate) fn reflection(service: &'static str) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(hopscope_proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(service)
        .with_service_name("grpc.health.v1.Health")
}
