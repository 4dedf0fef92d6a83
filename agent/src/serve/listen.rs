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
use tonic::transport::server::{Router, TcpIncoming};

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
         another address with --listen"
    )]
    Taken {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else, such as an address of another host or a privileged port.
    #[error("cannot listen on {address}: {source}; choose another address with --listen")]
    Other {
        /// The address.
        address: SocketAddr,
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
}

impl Listener {
    /// Binds `address`; port 0 takes any free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let bound = async {
            let inner = TcpListener::bind(address).await?;
            let address = inner.local_addr()?;
            Ok(Self { inner, address })
        };
        bound
            .await
            .map_err(|source: io::Error| match source.kind() {
                io::ErrorKind::AddrInUse => ListenError::Taken { address },
                _ => ListenError::Other { address, source },
            })
    }

    /// The address that was bound, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until `stop` resolves, then gives running calls [`STOP_GRACE`] to end.
    pub(crate) async fn serve(
        self,
        router: Router,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let incoming = TcpIncoming::from(self.inner).with_nodelay(Some(true));
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

/// The address of an agent or a collector, as `HOST:PORT` or `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Not an address.
    #[error("bad address `{0}`: give HOST:PORT or http://HOST:PORT")]
    Bad(String),
    /// A scheme other than http.
    #[error(
        "bad address `{0}`: only plain http is spoken; put a TLS tunnel between, and give its \
         http:// address"
    )]
    Scheme(String),
}

impl Endpoint {
    /// The address as an URI.
    pub fn uri(&self) -> &str {
        &self.0
    }

    /// A tonic endpoint with the time-outs and pings that every client here uses.
    pub(crate) fn tonic(&self) -> Result<tonic::transport::Endpoint, EndpointError> {
        let endpoint = tonic::transport::Endpoint::from_shared(self.0.clone())
            .map_err(|_| EndpointError::Bad(self.0.clone()))?;
        Ok(endpoint
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true))
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || EndpointError::Bad(text.to_owned());
        let authority = match text.split_once("://") {
            Some(("http", rest)) => rest.trim_end_matches('/'),
            Some(_) => return Err(EndpointError::Scheme(text.to_owned())),
            None => text,
        };
        let authority: tonic::codegen::http::uri::Authority =
            authority.parse().map_err(|_| bad())?;
        if authority.host().is_empty() || authority.port_u16().is_none() {
            return Err(bad());
        }
        Ok(Self(format!("http://{authority}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
