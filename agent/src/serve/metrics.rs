//! `GET /metrics`: what the agent counts, as OpenMetrics text for Prometheus and its kin.
//!
//! Decides names and labels. Causes, statuses and counters are closed sets; upstreams are those that a
//! status call tells of, and no more.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use super::hub::{Hub, STATUS_PATIENCE, StatusReport};
use super::incoming::Connection;
use super::listen::Listener;
use crate::engine::UpstreamTally;
use crate::model::Cause;

/// Where the metrics are.
const PATH: &str = "/metrics";

/// Media type of the text (OpenMetrics 1.0, section "Text Format").
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections served at once. Those beyond wait in the kernel's queue.
const CONNECTIONS: usize = 16;

/// How long a scrape may take, from the connection to the last byte: who reads nothing keeps others out no
/// longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the metrics of `hub`. Ends only where the listener does; dropping it closes everything.
pub async fn serve_metrics(listener: Listener, hub: Arc<Hub>) {
    let mut incoming = listener.connections();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Some(next) = incoming.next().await else {
            break;
        };
        while connections.try_join_next().is_some() {}
        if let Ok(connection) = next {
            let hub = Arc::clone(&hub);
            connections.spawn(async move {
                serve_connection(connection, hub).await;
                drop(permit);
            });
        }
    }
}

async fn serve_connection(connection: Connection, hub: Arc<Hub>) {
    let service = service_fn(|request| answer(request, &hub));
    let served = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    // What a scraper does wrong is told to it, and it asks again.
    let _ = timeout(PATIENCE, served).await;
}

async fn answer(
    request: Request<Incoming>,
    hub: &Arc<Hub>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(if request.uri().path() != PATH {
        reply(
            StatusCode::NOT_FOUND,
            (CONTENT_TYPE, "text/plain"),
            "the metrics are at /metrics\n".to_owned(),
        )
    } else if ![Method::GET, Method::HEAD].contains(request.method()) {
        reply(
            StatusCode::METHOD_NOT_ALLOWED,
            (ALLOW, "GET, HEAD"),
            String::new(),
        )
    } else {
        let report = hub.fresh_status(STATUS_PATIENCE).await;
        match text(hub, report) {
            Ok(text) => reply(StatusCode::OK, (CONTENT_TYPE, MEDIA_TYPE), text),
            Err(fmt::Error) => reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                (CONTENT_TYPE, "text/plain"),
                "the metrics cannot be written\n".to_owned(),
            ),
        }
    })
}

fn reply(
    status: StatusCode,
    (name, value): (HeaderName, &'static str),
    body: String,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(name, hyper::header::HeaderValue::from_static(value));
    response
}

/// Everything in the format's text.
fn text(hub: &Hub, report: StatusReport) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("hopscope");
    registry.register_collector(Box::new(Scrape {
        node: Arc::clone(&hub.config().node),
        kernel: hub.config().kernel.clone(),
        failures: hub.failures(),
        report,
    }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What one scrape tells.
#[derive(Debug)]
struct Scrape {
    node: Arc<str>,
    kernel: String,
    failures: Vec<(Cause, u64)>,
    report: StatusReport,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.agent(&mut encoder)?;
        self.causes(&mut encoder)?;
        self.answers(&mut encoder)?;
        self.upstreams(&mut encoder)?;
        self.probes(&mut encoder)?;
        self.counts(&mut encoder)
    }
}

impl Scrape {
    fn agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut info = encoder.encode_descriptor("agent", "The agent.", None, MetricType::Info)?;
        info.encode_info(&[
            ("version", env!("CARGO_PKG_VERSION")),
            ("node", &self.node),
            ("kernel", &self.kernel),
        ])
    }

    fn causes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        const HELP: &str = "Failures by cause, those without an upstream included.";
        let mut metric = encoder.encode_descriptor("failures", HELP, None, MetricType::Counter)?;
        for (cause, count) in &self.failures {
            counter(&mut metric, &[("cause", cause.id())], *count)?;
        }
        Ok(())
    }

    fn answers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        const MADE: &str = "Answers of 5xx that gateways made themselves, by status.";
        const EXPLAINED: &str = "Those answers by how far they are explained.";
        const PASSED_ON: &str = "Answers of 5xx that gateways passed on from an upstream.";
        let count = |name: &str| {
            let name = format!("engine_answers_{name}");
            let found = self
                .report
                .counters
                .iter()
                .find(|(known, _)| *known == name);
            found.map_or(0, |(_, value)| *value)
        };
        let mut metric =
            encoder.encode_descriptor("gateway_made_5xx", MADE, None, MetricType::Counter)?;
        for status in ["500", "502", "503", "504", "other"] {
            counter(&mut metric, &[("status", status)], count(status))?;
        }
        let mut metric = encoder.encode_descriptor(
            "gateway_made_5xx_judged",
            EXPLAINED,
            None,
            MetricType::Counter,
        )?;
        for result in ["explained", "ambiguous", "unexplained"] {
            counter(&mut metric, &[("result", result)], count(result))?;
        }
        let metric =
            encoder.encode_descriptor("passed_on_5xx", PASSED_ON, None, MetricType::Counter)?;
        ConstCounter::new(count("passed_on")).encode(metric)
    }

    fn upstreams(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let upstreams: Vec<_> = self.report.upstreams.iter().map(Upstream::of).collect();
        for (name, help, unit, value) in OF_UPSTREAMS {
            let mut metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for Upstream { address, tally } in &upstreams {
                counter(&mut metric, &[("upstream", address.as_str())], value(tally))?;
            }
        }
        responses(&upstreams, encoder)?;
        first_bytes(&upstreams, encoder)?;
        let mut metric = encoder.encode_descriptor(
            "upstream_failures",
            "Failures by upstream and cause, those without an exchange included.",
            None,
            MetricType::Counter,
        )?;
        for Upstream { address, tally } in &upstreams {
            for (cause, count) in &tally.causes {
                let labels = [("upstream", address.as_str()), ("cause", cause.id())];
                counter(&mut metric, &labels, *count)?;
            }
        }
        Ok(())
    }

    fn probes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        const HELP: &str = "One for each source of facts that works, zero where it does not.";
        let mut metric = encoder.encode_descriptor("probe_works", HELP, None, MetricType::Gauge)?;
        // Some have a row for each file or process: a name works where all of its rows do.
        let mut rows: Vec<(&str, bool)> = Vec::new();
        for probe in &self.report.probes {
            match rows.iter_mut().find(|(name, _)| *name == probe.name) {
                Some((_, works)) => *works &= probe.attached,
                None => rows.push((probe.name, probe.attached)),
            }
        }
        for (name, works) in rows {
            gauge(&mut metric, &[("probe", name)], u64::from(works))?;
        }
        Ok(())
    }

    fn counts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        const HELP: &str = "Everything that the agent counts, losses above all, by name.";
        let mut metric = encoder.encode_descriptor("count", HELP, None, MetricType::Gauge)?;
        for (name, value) in &self.report.counters {
            gauge(&mut metric, &[("name", &**name)], *value)?;
        }
        Ok(())
    }
}

/// What is told of each upstream as one number: name, help, unit and value.
type OfUpstream = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&UpstreamTally) -> u64,
);

const OF_UPSTREAMS: [OfUpstream; 4] = [
    (
        "upstream_connects",
        "Connections that were established.",
        None,
        |tally| tally.traffic.connects,
    ),
    (
        "upstream_exchanges",
        "Exchanges that ended.",
        None,
        |tally| tally.exchanges,
    ),
    (
        "upstream_request",
        "Bytes of requests.",
        Some(Unit::Bytes),
        |tally| tally.traffic.request_bytes,
    ),
    (
        "upstream_response",
        "Bytes of responses.",
        Some(Unit::Bytes),
        |tally| tally.traffic.response_bytes,
    ),
];

/// An upstream with its label.
struct Upstream<'a> {
    address: String,
    tally: &'a UpstreamTally,
}

impl<'a> Upstream<'a> {
    fn of((address, tally): &'a (SocketAddr, UpstreamTally)) -> Self {
        Self {
            address: address.to_string(),
            tally,
        }
    }
}

fn responses(upstreams: &[Upstream<'_>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    const HELP: &str = "Exchanges by the class of their final status.";
    const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
    let mut metric =
        encoder.encode_descriptor("upstream_responses", HELP, None, MetricType::Counter)?;
    for Upstream { address, tally } in upstreams {
        for (class, count) in CLASSES.iter().zip(tally.traffic.statuses) {
            let labels = [("upstream", address.as_str()), ("class", class)];
            counter(&mut metric, &labels, count)?;
        }
    }
    Ok(())
}

/// Times to the first response byte. Their sum is not known, since what stays in the kernel is told in
/// classes only.
fn first_bytes(upstreams: &[Upstream<'_>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    const HELP: &str = "Time from a request to the first byte of its response; the sum is unknown.";
    let unit = Unit::Seconds;
    let mut metric = encoder.encode_descriptor(
        "upstream_first_byte",
        HELP,
        Some(&unit),
        MetricType::Histogram,
    )?;
    for Upstream { address, tally } in upstreams {
        let classes = &tally.traffic.first_byte;
        let bound = |class: usize| {
            let micros = u32::try_from(class)
                .ok()
                .and_then(|n| 2_u32.checked_pow(n + 1));
            let last = class + 1 == classes.len();
            micros
                .filter(|_| !last)
                .map_or(f64::INFINITY, |micros| f64::from(micros) / 1e6)
        };
        let buckets: Vec<_> = classes
            .iter()
            .enumerate()
            .map(|(class, count)| (bound(class), *count))
            .collect();
        let labels = [("upstream", address.as_str())];
        metric
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(f64::NAN, classes.iter().sum(), &buckets, None)?;
    }
    Ok(())
}

fn counter(
    metric: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> fmt::Result {
    ConstCounter::new(value).encode(metric.encode_family(labels)?)
}

fn gauge(metric: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    ConstGauge::new(value).encode(metric.encode_family(labels)?)
}
