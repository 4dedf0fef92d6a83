//! The metrics, as a scraper gets them.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use hopscope::engine::UpstreamTally;
use hopscope::model::Cause;
use hopscope::serve::{Hub, HubConfig, Listener, StatusReport, serve_metrics};
use hopscope::stats::ProbeStatus;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::pki::Authority;
use crate::support::{ANY_PORT, event};

/// A hub whose metrics are served.
struct Metrics {
    hub: Arc<Hub>,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Metrics {
    async fn start() -> Self {
        Self::serve(Listener::bind(ANY_PORT).await.unwrap())
    }

    fn serve(listener: Listener) -> Self {
        let hub = Hub::new(HubConfig {
            node: Arc::from("edge \"1\"\n"),
            ..HubConfig::default()
        });
        let address = listener.address();
        let server = tokio::spawn(serve_metrics(listener, Arc::clone(&hub)));
        Self {
            hub,
            address,
            server,
        }
    }

    /// Status line and headers, and the body, of the answer to a request.
    async fn ask(&self, request: &str) -> (String, String) {
        exchange(TcpStream::connect(self.address).await.unwrap(), request).await
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> (String, String) {
    let request = format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn report() -> StatusReport {
    let mut tally = UpstreamTally {
        exchanges: 12,
        failures: 3,
        ..UpstreamTally::default()
    };
    tally.causes.insert(Cause::TcpConnectRefused, 3);
    tally.traffic.statuses = [0, 9, 0, 2, 1];
    tally.traffic.response_bytes = 4_096;
    tally.traffic.first_byte[0] = 2;
    tally.traffic.first_byte[9] = 6;
    tally.traffic.first_byte[19] = 4;
    let probe = |name, attached| ProbeStatus {
        name,
        attached,
        reason: String::new(),
    };
    StatusReport {
        probes: vec![
            probe("state", true),
            probe("tls_library", true),
            probe("tls_library", false),
        ],
        counters: vec![
            (Cow::Borrowed("kernel_ring_full"), 5),
            (Cow::Borrowed("engine_answers_502"), 7),
            (Cow::Borrowed("engine_answers_explained"), 6),
            (Cow::Borrowed("engine_answers_ambiguous"), 1),
            (Cow::Borrowed("engine_answers_passed_on"), 2),
        ],
        upstreams: vec![("[2001:db8::1]:8080".parse().unwrap(), tally)],
    }
}

#[tokio::test]
async fn a_scrape_tells_everything() {
    let metrics = Metrics::start().await;
    metrics.hub.publish(event(1));
    metrics.hub.publish(event(2));
    metrics.hub.set_status(report());
    let (head, body) = metrics.ask("GET /metrics").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let cause = event(1).cause.id();
    let of_cause = format!("hopscope_failures_total{{cause=\"{cause}\"}} 2\n");
    for expected in [
        of_cause.as_str(),
        "node=\"edge \\\"1\\\"\\n\"",
        "# TYPE hopscope_gateway_made_5xx counter\n",
        "hopscope_gateway_made_5xx_total{status=\"502\"} 7\n",
        "hopscope_gateway_made_5xx_total{status=\"504\"} 0\n",
        "hopscope_gateway_made_5xx_judged_total{result=\"explained\"} 6\n",
        "hopscope_gateway_made_5xx_judged_total{result=\"ambiguous\"} 1\n",
        "hopscope_passed_on_5xx_total 2\n",
        "hopscope_upstream_exchanges_total{upstream=\"[2001:db8::1]:8080\"} 12\n",
        "hopscope_upstream_response_bytes_total{upstream=\"[2001:db8::1]:8080\"} 4096\n",
        "hopscope_upstream_responses_total{upstream=\"[2001:db8::1]:8080\",class=\"2xx\"} 9\n",
        "hopscope_upstream_failures_total{upstream=\"[2001:db8::1]:8080\",cause=\"tcp.connect_refused\"} 3\n",
        "hopscope_upstream_first_byte_seconds_bucket{le=\"0.001024\",upstream=\"[2001:db8::1]:8080\"} 8\n",
        "hopscope_upstream_first_byte_seconds_bucket{le=\"+Inf\",upstream=\"[2001:db8::1]:8080\"} 12\n",
        "hopscope_upstream_first_byte_seconds_count{upstream=\"[2001:db8::1]:8080\"} 12\n",
        "hopscope_probe_works{probe=\"state\"} 1\n",
        "hopscope_probe_works{probe=\"tls_library\"} 0\n",
        "hopscope_count{name=\"kernel_ring_full\"} 5\n",
    ] {
        assert!(body.contains(expected), "no {expected} in\n{body}");
    }
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn a_scraper_that_would_speak_http2_as_well_is_served_through_tls() {
    let authority = Authority::new("ca");
    let listener = Listener::bind(ANY_PORT).await.unwrap();
    let metrics = Metrics::serve(listener.with_tls_for_http1(authority.serve()));
    for offered in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let connector = authority.connector(&authority.client("scraper", None), offered);
        let stream = TcpStream::connect(metrics.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let (head, body) = exchange(stream, "GET /metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{offered:?}: {head}");
        assert!(body.ends_with("# EOF\n"));
    }
}

#[tokio::test]
async fn other_requests_are_told_where_the_metrics_are() {
    let metrics = Metrics::start().await;
    let (head, body) = metrics.ask("GET /").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(body.contains("/metrics"), "{body}");
    let (head, _) = metrics.ask("POST /metrics").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    assert!(head.contains("allow: GET, HEAD"), "{head}");
    let (head, body) = metrics.ask("HEAD /metrics").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty());
}

#[tokio::test]
async fn the_end_closes_a_connection_that_says_nothing() {
    let metrics = Metrics::start().await;
    let mut silent = TcpStream::connect(metrics.address).await.unwrap();
    // Answered, so that the silent one has been accepted before.
    metrics.ask("GET /metrics").await;
    metrics.server.abort();
    assert!(metrics.server.await.unwrap_err().is_cancelled());
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(metrics.address).await.is_err());
}
