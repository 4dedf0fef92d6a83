//! The event: one failed exchange or connect, its cause, and what proves it.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use std::borrow::Cow;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{Cause, FaultSide, GatewayAnswer, HopId, Proof, Target, Timestamp, UpstreamAddress};

/// One failed exchange or failed connect. Never two for one failure, never one for a healthy
/// exchange. Serialised, this is the JSON of every command's `--format jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HopEvent {
    /// Unique per node; the same inputs give the same id.
    pub id: String,
    /// When the failure was decided on the wire.
    pub time: Timestamp,
    /// Name of the node that saw it.
    pub node: Arc<str>,
    /// The hop it happened on, to find its packets; known only in the process that made the event.
    #[serde(skip)]
    pub hop: Option<HopId>,
    /// The one cause.
    pub cause: Cause,
    /// How firmly it stands.
    pub proof: Proof,
    /// For `underdetermined`: the causes that the facts do not exclude.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rivals: Vec<Cause>,
    /// For `underdetermined`: the one observation that would split the rivals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub splitter: Option<String>,
    /// RFC 9209 proxy error type, where one fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_error: Option<Cow<'static, str>>,
    /// Status that RFC 9209 recommends for it; none where the upstream's own is passed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_status: Option<u16>,
    /// The side to fix.
    pub fault_side: FaultSide,
    /// Where in the exchange it failed.
    pub phase: Phase,
    /// The upstream's end.
    pub upstream: UpstreamInfo,
    /// The gateway's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalInfo>,
    /// The gateway process, where a kernel told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayInfo>,
    /// The exchange, where a request was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<ExchangeInfo>,
    /// The connection it ran on.
    pub connection: ConnectionInfo,
    /// Its TLS, where the gateway speaks that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsInfo>,
    /// What proves the cause, the decisive piece first.
    pub evidence: Vec<Evidence>,
    /// Gateways that were measured to reject what the upstream sent, each with the status that its
    /// client gets: `HAProxy 2.6 (502)`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected_by: Vec<String>,
    /// Gateways that were measured to pass it on as if nothing was wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerated_by: Vec<String>,
    /// Id of the kept packets, where they were kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_id: Option<String>,
    /// Whether anything was lost that could have changed the verdict.
    pub completeness: Completeness,
    /// What the gateway's own client got for it, where that was seen. The last of several attempts
    /// carries it; an answer is carried by one event only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_answer: Option<Box<GatewayAnswer>>,
    /// Whether no client of the gateway was told of the failure: it was tried again with success, or
    /// what the client got looks like a good answer. Said only where the client side was watched.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hidden_from_client: bool,
}

/// Where in the life of an exchange a failure fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Looking up the upstream's name.
    Resolve,
    /// Choosing an upstream.
    Pick,
    /// Opening the TCP connection.
    Connect,
    /// TLS handshake.
    Tls,
    /// Sending the request.
    Request,
    /// Waiting for the response head, or inside it.
    ResponseHead,
    /// Inside the response body.
    ResponseBody,
    /// Between exchanges.
    Idle,
}

impl Phase {
    /// The name used in JSON and text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Pick => "pick",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Request => "request",
            Self::ResponseHead => "response_head",
            Self::ResponseBody => "response_body",
            Self::Idle => "idle",
        }
    }

    /// The phase for a name made by [`Phase::as_str`].
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Resolve,
            Self::Pick,
            Self::Connect,
            Self::Tls,
            Self::Request,
            Self::ResponseHead,
            Self::ResponseBody,
            Self::Idle,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == name)
    }
}

/// The upstream's end of a hop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UpstreamInfo {
    /// IP address or unix path; none where no upstream was chosen, or `name` gave no address.
    pub address: UpstreamAddress,
    /// TCP port, zero for a unix path or a name alone.
    pub port: u16,
    /// Name that resolved to it, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl UpstreamInfo {
    /// Address and port together, as `10.0.0.1:80`, `[::1]:80` or `unix:/run/app.sock`, or else the name.
    pub fn target(&self) -> Target {
        match &self.address {
            UpstreamAddress::Ip(address) => Target::Inet(SocketAddr::new(*address, self.port)),
            UpstreamAddress::Unix(path) => Target::Unix(Arc::clone(path)),
            UpstreamAddress::None => Target::None,
        }
    }

    /// Address and port of an upstream that has them.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.target() {
            Target::Inet(upstream) => Some(upstream),
            Target::Unix(_) | Target::None => None,
        }
    }

    /// Whether nothing but the name is known of it: that gave no address.
    pub fn is_only_name(&self) -> bool {
        self.address == UpstreamAddress::None && self.name.is_some()
    }
}

/// Where it is and what it is called, as people read it: `10.0.0.1:80 (app.example)`.
impl fmt::Display for UpstreamInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target();
        match &self.name {
            Some(name) if self.is_only_name() => f.pad(name),
            Some(name) => f.pad(&format!("{target} ({name})")),
            None => fmt::Display::fmt(&target, f),
        }
    }
}

impl From<Target> for UpstreamInfo {
    fn from(target: Target) -> Self {
        let (address, port) = match target {
            Target::Inet(upstream) => (UpstreamAddress::Ip(upstream.ip()), upstream.port()),
            Target::Unix(path) => (UpstreamAddress::Unix(path), 0),
            Target::None => (UpstreamAddress::None, 0),
        };
        Self {
            address,
            port,
            name: None,
        }
    }
}

/// The gateway's end of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LocalInfo {
    /// IP address.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

/// The gateway process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayInfo {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    /// Process name.
    pub comm: Arc<str>,
    /// Inode of its network namespace.
    pub netns: u64,
    /// Path of its cgroup below the v2 root, empty where unknown.
    pub cgroup: Arc<str>,
    /// Container id read from the cgroup path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<Arc<str>>,
}

/// The exchange that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExchangeInfo {
    /// Request method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Request path without its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Host header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// X-Request-ID header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// W3C traceparent header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Status of the upstream's response, where it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Place of the exchange on its hop, from 1; counted from the first that was seen.
    pub ordinal: u32,
    /// Milliseconds from the last request byte to the first response byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// Milliseconds from the first request byte to the end of the exchange.
    pub duration_ms: f64,
    /// Request bytes seen.
    pub request_bytes: u64,
    /// Response bytes seen.
    pub response_bytes: u64,
}

/// The connection that an exchange ran on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ConnectionInfo {
    /// Whether an earlier exchange ran on it.
    pub reused: bool,
    /// Milliseconds since the SYN, or since the hop was joined.
    pub age_ms: f64,
    /// Milliseconds of silence before this request, for a reused connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<f64>,
    /// Smoothed round-trip time in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// SYNs sent again.
    pub syn_retransmits: u32,
    /// Other segments sent again by the gateway.
    pub retransmits: u32,
}

/// The TLS of a hop, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsInfo {
    /// Version chosen: `TLS 1.3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Cipher suite chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// Server name that the gateway asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Application protocol chosen; TLS 1.3 hides it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// Which source proved the cause.
    pub source: EvidenceSource,
}

/// One fact that supports a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Where the fact comes from.
    pub source: EvidenceSource,
    /// Short stable name of the fact, such as `syn_reset`.
    pub what: Cow<'static, str>,
    /// Offset of the decisive byte from the start of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The bytes themselves; base64 in JSON.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "base64_bytes")]
    pub bytes: Vec<u8>,
    /// The fact in words.
    pub text: String,
}

fn base64_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine as _;
    serializer.collect_str(&base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// Where a fact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceSource {
    /// A captured packet.
    Packet,
    /// A kernel tracepoint.
    Kernel,
    /// The TLS library.
    TlsLibrary,
    /// Time that passed.
    Timer,
}

impl EvidenceSource {
    /// The name used in JSON and text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Kernel => "kernel",
            Self::TlsLibrary => "tls_library",
            Self::Timer => "timer",
        }
    }

    /// The source for a name made by [`EvidenceSource::as_str`].
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Packet, Self::Kernel, Self::TlsLibrary, Self::Timer]
            .into_iter()
            .find(|source| source.as_str() == name)
    }
}

/// Whether anything was lost that could have changed the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Completeness {
    /// Segments of the hop that were not observed.
    pub lost_segments: u64,
    /// Whether payload that the verdict could depend on was captured short.
    pub truncated: bool,
    /// Whether the hop was already open when it was first seen.
    pub mid_stream: bool,
}
