//! What a gateway's client got: the observation that goes into the engine, and the part of an event
//! that tells it.

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Cause, Process, Timestamp, Turn, UpstreamInfo};

/// What a gateway's client saw for one request, where that was a failure: a status of 5xx, or a
/// connection that the gateway closed without any status. Its time is passed beside it: that of the
/// first byte of the answer, or of the close.
#[derive(Clone, Debug)]
pub struct ClientAnswer<'a> {
    /// The process that sent it, or the one that listens where that is not known.
    pub process: Arc<Process>,
    /// The turn that sent it, where the source knows it. Then `process` is the process of that thread.
    pub turn: Option<Turn>,
    /// The number of the goroutine that sent it, where the source knows it. Go's server has one for each client's
    /// connection (`net/http`, HTTP/1).
    pub goroutine: Option<u64>,
    /// The gateway's end of the client's connection.
    pub listener: SocketAddr,
    /// The client's end.
    pub client: SocketAddr,
    /// The end of the client whom a balancer, which is then at the other end, names by the PROXY protocol.
    pub on_behalf_of: Option<SocketAddr>,
    /// Time from the first byte of the request to the first of the answer, or to the close.
    pub waited: Duration,
    /// When the gateway read the request, where the source knows it.
    pub read: Option<Read>,
    /// Place of the request on its connection, from 1; counted from the first that was seen.
    pub ordinal: u32,
    /// The first bytes of the request as captured, in plain text; empty where they are not known.
    pub request: &'a [u8],
    /// How it ended.
    pub end: AnswerEnd<'a>,
}

/// That a gateway read the first bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Time from the first byte of the request until then.
    pub waited: Duration,
    /// The turn that read them.
    pub turn: Turn,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerEnd<'a> {
    /// With these first bytes of a response.
    Response(&'a [u8]),
    /// The gateway closed the connection without a byte of response; the client had not closed it.
    Closed {
        /// Set where the process that closed it was about to end.
        exit: Option<Exit>,
    },
}

/// How a process ended, in the words of wait(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The signal that ended it; zero where it ended of its own will.
    pub signal: u8,
}

/// A system call on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketCall {
    /// `socket()`.
    Socket,
    /// `accept()` or `accept4()`.
    Accept,
    /// `bind()`.
    Bind,
}

impl SocketCall {
    /// The name of the call.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Accept => "accept",
            Self::Bind => "bind",
        }
    }
}

/// What the gateway's client got for the request that failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GatewayAnswer {
    /// Status; none where the gateway closed the connection without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The client's end, as a balancer in front of the gateway names it by the PROXY protocol where one does.
    pub client: ClientInfo,
    /// When its first byte was sent, or the connection closed.
    pub time: Timestamp,
    /// Request method as the client sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Request path as the client sent it, without its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Host header of the client's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// X-Request-ID header of the client's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Milliseconds from the first byte of the request to the first of the answer.
    pub latency_ms: f64,
    /// The attempts on upstreams that failed for this request, in order; empty where the gateway
    /// answered without any.
    pub attempts: Vec<AttemptInfo>,
    /// Ids of other events that would explain it as well as the one that carries it; empty where the
    /// explanation is certain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// Whether the attempts may have been made for another client, whose request nothing tells from this one:
    /// then the gateway may have answered by itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub contested: bool,
}

impl GatewayAnswer {
    /// Whether something else than the attempts that are listed may be behind it.
    pub const fn is_ambiguous(&self) -> bool {
        self.contested || !self.candidates.is_empty()
    }
}

/// The client's end of its connection to the gateway, or to a balancer in front of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ClientInfo {
    /// IP address.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

impl From<SocketAddr> for ClientInfo {
    fn from(client: SocketAddr) -> Self {
        Self {
            address: client.ip(),
            port: client.port(),
        }
    }
}

/// One attempt of a gateway on an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttemptInfo {
    /// Id of its event.
    pub event: String,
    /// Why it failed.
    pub cause: Cause,
    /// The upstream that was tried.
    pub upstream: UpstreamInfo,
}
