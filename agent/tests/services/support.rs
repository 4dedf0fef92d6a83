//! Sample events and a served hub, shared by the tests of the services.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use hopscope::model::{
    AttemptInfo, Cause, ClientInfo, Completeness, ConnectionInfo, Evidence, EvidenceSource,
    ExchangeInfo, FaultSide, GatewayAnswer, GatewayInfo, HopEvent, LocalInfo, Phase, Proof, Target,
    Timestamp, TlsInfo, UpstreamInfo,
};
use hopscope::serve::{Hub, HubConfig, Listener, serve_agent};
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use tokio::sync::oneshot;
use tonic::transport::Channel;

/// No step of a test takes this long unless something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A small event; `number` makes its id, time and upstream port.
pub(crate) fn event(number: u16) -> HopEvent {
    let info = Cause::TcpConnectRefused.info();
    HopEvent {
        id: format!("event-{number}"),
        time: Timestamp::from_nanos(1_700_000_000_000_000_000 + u64::from(number) * 1_000_000_000),
        node: Arc::from("gw1"),
        hop: None,
        cause: Cause::TcpConnectRefused,
        proof: Proof::Proven,
        rivals: Vec::new(),
        splitter: None,
        proxy_error: info.proxy_error.map(Into::into),
        recommended_status: info.recommended_status,
        fault_side: info.fault_side,
        phase: Phase::Connect,
        upstream: UpstreamInfo {
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)).into(),
            port: 8000 + number,
            name: None,
        },
        local: None,
        gateway: None,
        exchange: None,
        connection: ConnectionInfo::default(),
        tls: None,
        evidence: vec![Evidence {
            source: EvidenceSource::Kernel,
            what: "connect_errno".into(),
            offset: None,
            bytes: Vec::new(),
            text: "connect() returned ECONNREFUSED (111)".to_owned(),
        }],
        rejected_by: Vec::new(),
        tolerated_by: Vec::new(),
        capture_id: None,
        completeness: Completeness::default(),
        gateway_answer: None,
        hidden_from_client: false,
    }
}

/// An event with every field filled.
pub(crate) fn full_event() -> HopEvent {
    HopEvent {
        rivals: vec![Cause::TcpResetNoResponse, Cause::PoolStaleReuse],
        proof: Proof::Underdetermined,
        splitter: Some("the upstream's own log".to_owned()),
        cause: Cause::TcpClosedNoResponse,
        proxy_error: Some("connection_terminated".into()),
        recommended_status: Some(502),
        fault_side: FaultSide::Both,
        phase: Phase::ResponseHead,
        upstream: UpstreamInfo {
            address: "2001:db8::7".parse().unwrap(),
            port: 8080,
            name: Some("shop.internal".to_owned()),
        },
        local: Some(LocalInfo {
            address: "2001:db8::1".parse().unwrap(),
            port: 41000,
        }),
        gateway: Some(GatewayInfo {
            pid: 412,
            comm: Arc::from("nginx"),
            netns: 4_026_531_840,
            cgroup: Arc::from("/system.slice/nginx.service"),
            container_id: Some(Arc::from("0123456789ab")),
        }),
        exchange: Some(ExchangeInfo {
            method: Some("GET".to_owned()),
            path: Some("/cart".to_owned()),
            host: Some("shop.example".to_owned()),
            request_id: Some("r-1".to_owned()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            status: Some(200),
            ordinal: 3,
            first_byte_ms: Some(1.5),
            duration_ms: 12.25,
            request_bytes: 321,
            response_bytes: 17,
        }),
        connection: ConnectionInfo {
            reused: true,
            age_ms: 2500.0,
            idle_ms: Some(1000.0),
            rtt_us: Some(150),
            syn_retransmits: 1,
            retransmits: 2,
        },
        tls: Some(TlsInfo {
            version: Some("TLS 1.3".to_owned()),
            cipher: Some("TLS_AES_128_GCM_SHA256".to_owned()),
            sni: Some("shop.internal".to_owned()),
            alpn: None,
            source: EvidenceSource::Packet,
        }),
        evidence: vec![Evidence {
            source: EvidenceSource::Packet,
            what: "fin_before_response".into(),
            offset: Some(17),
            bytes: b"HTTP/1.1 200 OK\r\n".to_vec(),
            text: "FIN in the middle of the head".to_owned(),
        }],
        rejected_by: vec!["HAProxy 2.6 (502)".to_owned()],
        tolerated_by: vec!["nginx 1.22".to_owned()],
        capture_id: Some("c-9".to_owned()),
        completeness: Completeness {
            lost_segments: 4,
            truncated: true,
            mid_stream: true,
        },
        gateway_answer: Some(Box::new(GatewayAnswer {
            status: Some(502),
            client: ClientInfo {
                address: "198.51.100.7".parse().unwrap(),
                port: 50_123,
            },
            time: Timestamp::from_nanos(1_700_000_000_000_000_000),
            method: Some("GET".to_owned()),
            path: Some("/shop/cart".to_owned()),
            host: Some("shop.example".to_owned()),
            request_id: Some("r-1".to_owned()),
            latency_ms: 3.25,
            attempts: vec![AttemptInfo {
                event: "e-1".to_owned(),
                cause: Cause::TcpConnectRefused,
                upstream: Target::None.into(),
            }],
            candidates: vec!["e-2".to_owned()],
            contested: true,
        })),
        hidden_from_client: true,
        ..event(0)
    }
}

/// Fails the test where `future` takes longer than [`DEADLINE`].
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let outcome = tokio::time::timeout(DEADLINE, future).await;
    outcome.unwrap_or_else(|_| panic!("{what}: nothing within {DEADLINE:?}"))
}

/// Waits until `condition` holds; it is looked at again and again, never slept upon.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let held = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, held).await;
}

/// The value of a counter of a hub.
pub(crate) fn counter(hub: &Hub, wanted: &str) -> u64 {
    let status = hub.status();
    let counter = status.counters.iter().find(|(name, _)| name == wanted);
    counter.unwrap_or_else(|| panic!("no counter {wanted}")).1
}

pub(crate) const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An address that nobody listens on, and that can be listened on later. Port 0 alone would not do:
/// any connection of another test may take the port as its own. Connections to 127.0.0.0/8 start
/// from 127.0.0.1, so nothing else comes near the other addresses.
pub(crate) fn unused_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let last = NEXT.fetch_add(1, Relaxed);
    let any_port = SocketAddr::from(([127, 75, 2, last], 0));
    std::net::TcpListener::bind(any_port)
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A hub that is served on loopback.
pub(crate) struct Agent {
    pub(crate) hub: Arc<Hub>,
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl Agent {
    pub(crate) async fn start(config: HubConfig) -> Self {
        Self::serve(Listener::bind(ANY_PORT).await.unwrap(), config)
    }

    /// A hub that is served on `listener`; the channel is one without TLS.
    pub(crate) fn serve(listener: Listener, config: HubConfig) -> Self {
        Self::serve_hub(listener, Hub::new(config))
    }

    pub(crate) fn serve_hub(listener: Listener, hub: Arc<Hub>) -> Self {
        let address = listener.address();
        let (stop, stopped) = oneshot::channel();
        let serving = serve_agent(listener, Arc::clone(&hub), async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(async { serving.await.unwrap() });
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        Self {
            hub,
            address,
            channel: endpoint.connect_lazy(),
            stop,
            server,
        }
    }

    pub(crate) fn client(&self) -> HopAgentClient<Channel> {
        HopAgentClient::new(self.channel.clone())
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        soon("the server's end", self.server).await.unwrap();
    }
}
