//! Addresses to listen on and to connect to, and how a gRPC server runs and stops.
//!
//! Agent and collector share it, so that a taken port and a stop look the same in both.

use core::net::SocketAddr;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;

use super::access::{Caller, is_loopback};
use super::incoming::{Connection, Guard, incoming};
use super::tls::{ClientTls, Protocol, ServerTls};

/// How long running calls may take to end once a server stops.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// A ping this often finds peers that vanished without a word, so that they do not hold a
/// subscription for ever.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A peer that does not answer a ping this long is gone.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls at once on one connection; no honest client needs more.
const STREAMS_PER_CONNECTION: u32 = 128;

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another socket has it.
    #[error(
        "cannot listen on {address}: the port is taken by another process; stop that one or choose \
         another address with {flag}"
    )]
    Taken {
        /// The address.
        address: SocketAddr,
        /// The flag that gives it.
        flag: &'static str,
    },
    /// Anything else, such as an address of another host or a privileged port.
    #[error("cannot listen on {address}: {source}; choose another address with {flag}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// The flag that gives it.
        flag: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a running server ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("gRPC server on {address} failed: {source}")]
    Transport {
        /// Where it listened.
        address: SocketAddr,
        /// What tonic said.
        source: tonic::transport::Error,
    },
    /// The descriptors compiled into this binary cannot be read.
    #[error("the reflection service cannot be built: {0}; build the binary again")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A bound address that no server uses yet.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    address: SocketAddr,
    guard: Guard,
}

impl Listener {
    /// Binds `address` for plain text; port 0 takes any free one. Whether that is wise is decided
    /// by [`check_listen`](super::check_listen); callers on an address other than loopback get no
    /// captures.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        Self::bind_for(address, "--listen").await
    }

    /// The same for an address that `flag` gives.
    pub async fn bind_for(address: SocketAddr, flag: &'static str) -> Result<Self, ListenError> {
        let bound = async {
            let inner = TcpListener::bind(address).await?;
            let address = inner.local_addr()?;
            let guard = Guard::Plain(if is_loopback(address) {
                Caller::Local
            } else {
                Caller::Anonymous
            });
            Ok(Self {
                inner,
                address,
                guard,
            })
        };
        bound
            .await
            .map_err(|source: io::Error| match source.kind() {
                io::ErrorKind::AddrInUse => ListenError::Taken { address, flag },
                _ => ListenError::Other {
                    address,
                    flag,
                    source,
                },
            })
    }

    /// Lets in only whoever has a certificate that `tls` takes.
    #[must_use]
    pub fn with_tls(mut self, tls: ServerTls) -> Self {
        self.guard = Guard::Tls(tls, Protocol::Http2);
        self
    }

    /// The same for a server of HTTP/1.
    #[must_use]
    pub fn with_tls_for_http1(mut self, tls: ServerTls) -> Self {
        self.guard = Guard::Tls(tls, Protocol::Http1);
        self
    }

    /// The address that was bound, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections that it accepts.
    pub(super) fn connections(self) -> ReceiverStream<io::Result<Connection>> {
        incoming(self.inner, self.guard)
    }

    /// Serves `router` until `stop` resolves, then gives running calls [`STOP_GRACE`] to end.
    pub(crate) async fn serve(
        self,
        router: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let incoming = incoming(self.inner, self.guard);
        let serving = router.serve_with_incoming_shutdown(incoming, async move {
            stop.await;
            // Nobody listens any more only where the server has ended by itself.
            let _ = stopping.send(());
        });
        tokio::select! {
            outcome = serving => outcome.map_err(|source| ServeError::Transport {
                address: self.address,
                source,
            }),
            () = overdue(stopped) => Ok(()),
        }
    }
}

async fn overdue(stopped: tokio::sync::oneshot::Receiver<()>) {
    if stopped.await.is_ok() {
        tokio::time::sleep(STOP_GRACE).await;
    } else {
        std::future::pending::<()>().await;
    }
}

/// A server with the limits and pings that both services use.
pub(crate) fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
}

/// The address of an agent or a collector, as `HOST:PORT`, `http://HOST:PORT` or
/// `https://HOST:PORT`, and how to prove who is there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    uri: String,
    tls: Option<ClientTls>,
}

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Not an address.
    #[error("bad address `{0}`: give HOST:PORT, http://HOST:PORT or https://HOST:PORT")]
    Bad(String),
    /// TLS with nobody to trust.
    #[error("bad address `{address}`: https needs the CA of the server's certificate; give {flag}")]
    NoCa {
        /// What was given.
        address: String,
        /// The flag that is missing.
        flag: &'static str,
    },
    /// Plain text where a CA was given.
    #[error("bad address `{address}`: http does without {flag}; write https or leave that out")]
    Plain {
        /// What was given.
        address: String,
        /// The flag that is too much.
        flag: &'static str,
    },
}

impl Endpoint {
    /// The address in `text`, reached through TLS where `tls` is there. `flag` is the one that gives
    /// the CA.
    pub fn parse(
        text: &str,
        tls: Option<ClientTls>,
        flag: &'static str,
    ) -> Result<Self, EndpointError> {
        let bad = || EndpointError::Bad(text.to_owned());
        let address = || text.to_owned();
        let authority = match (text.split_once("://"), &tls) {
            (Some(("http", rest)), None) | (Some(("https", rest)), Some(_)) => {
                rest.trim_end_matches('/')
            }
            (Some(("https", _)), None) => {
                let address = address();
                return Err(EndpointError::NoCa { address, flag });
            }
            (Some(("http", _)), Some(_)) => {
                let address = address();
                return Err(EndpointError::Plain { address, flag });
            }
            (Some(_), _) => return Err(bad()),
            (None, _) => text,
        };
        let authority: tonic::codegen::http::uri::Authority =
            authority.parse().map_err(|_| bad())?;
        if authority.host().is_empty() || authority.port_u16().is_none() {
            return Err(bad());
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self {
            uri: format!("{scheme}://{authority}"),
            tls,
        })
    }

    /// The address as an URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Whether it is reached through TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A channel that connects when it is first used, and again whenever it has to.
    pub fn channel(&self) -> Result<tonic::transport::Channel, EndpointError> {
        Ok(self.tonic()?.connect_lazy())
    }

    /// A tonic endpoint with the time-outs and pings that every client here uses.
    pub(crate) fn tonic(&self) -> Result<tonic::transport::Endpoint, EndpointError> {
        let bad = || EndpointError::Bad(self.uri.clone());
        let mut endpoint = tonic::transport::Endpoint::from_shared(self.uri.clone())
            .map_err(|_| bad())?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if let Some(tls) = &self.tls {
            // The files were checked; what is left to fail is the host's name.
            endpoint = endpoint.tls_config(tls.config()).map_err(|_| bad())?;
        }
        Ok(endpoint)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// An address that is reached in plain text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, None, "--tls-ca")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
