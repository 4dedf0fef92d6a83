//! Connections as a server accepts them, plain or through TLS, with who is at the other end.
//!
//! Decides what becomes of a connection whose handshake fails: it is logged with the reason, and
//! held open until the peer has read why. Handshakes run beside each other up to a cap and for a
//! limited time, so that peers that stall keep others out for seconds at most.

use core::net::SocketAddr;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream as _;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::server::Connected;
use tracing::warn;

use super::access::Caller;
use super::tls::{Current, HANDSHAKE_PATIENCE, Protocol, ServerTls};

/// Handshakes at once. Beyond it, connections wait in the kernel's queue.
const HANDSHAKES: usize = 128;

/// Connections between here and the server, which takes them at once.
const READY: usize = 16;

/// Wait after a failure of accept itself, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a refused peer gets to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Refused handshakes are logged this often at most; scanners must not fill the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a server listens with.
#[derive(Clone, Debug)]
pub(super) enum Guard {
    /// Plain text from callers of one kind.
    Plain(Caller),
    /// TLS with client certificates, and what is spoken inside.
    Tls(ServerTls, Protocol),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    caller: Caller,
    /// Of TLS: whom the server takes from now on.
    reloads: Option<WatchStream<Current>>,
}

impl Connection {
    /// Whether the peer is not taken any more, by files that were read since it was let in.
    fn is_shut_out(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some(reloads), Stream::Tls(stream)) = (&mut self.reloads, &self.stream) else {
            return false;
        };
        while let Poll::Ready(Some(current)) = Pin::new(&mut *reloads).poll_next(cx) {
            let chain = stream.get_ref().1.peer_certificates();
            if !current.takes(chain.unwrap_or_default(), UnixTime::now()) {
                return true;
            }
        }
        false
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// Accepts from `listener` until the stream is dropped.
pub(super) fn incoming(
    listener: TcpListener,
    guard: Guard,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, accepted) = mpsc::channel(READY);
    tokio::spawn(async move {
        // The listener goes with the loop, and so does the port.
        tokio::select! {
            () = accept(listener, guard, &ready) => {}
            () = ready.closed() => {}
        }
    });
    ReceiverStream::new(accepted)
}

async fn accept(listener: TcpListener, guard: Guard, ready: &mpsc::Sender<io::Result<Connection>>) {
    let mut handshakes = JoinSet::new();
    let mut refusals = Refusals::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES => accepted,
            Some(ended) = handshakes.join_next() => {
                if let Ok(Some(refusal)) = ended {
                    refusals.log(refusal);
                }
                continue;
            }
        };
        let Ok((stream, peer)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Latency only: a connection is as good without.
        let _ = stream.set_nodelay(true);
        match &guard {
            Guard::Plain(caller) => {
                let connection = Connection {
                    stream: Stream::Plain(stream),
                    caller: caller.clone(),
                    reloads: None,
                };
                if ready.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Guard::Tls(tls, protocol) => {
                // In this order, or a change between the two would be missed.
                let reloads = tls.reloads();
                let handshake =
                    handshake(TlsAcceptor::from(tls.config(*protocol)), stream, reloads);
                let ready = ready.clone();
                handshakes.spawn(async move {
                    match handshake.await {
                        Ok(connection) => {
                            // The server may be stopping.
                            let _ = ready.send(Ok(connection)).await;
                            None
                        }
                        Err(reason) => Some(Refusal { peer, reason }),
                    }
                });
            }
        }
    }
}

/// Does a handshake, or says why it failed.
async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    reloads: WatchStream<Current>,
) -> Result<Connection, String> {
    let accept = acceptor.accept(stream).into_fallible();
    let (error, mut stream) = match timeout(HANDSHAKE_PATIENCE, accept).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let caller = Caller::of(certificates.and_then(<[_]>::first));
            return Ok(Connection {
                stream: Stream::Tls(Box::new(stream)),
                caller,
                reloads: Some(reloads),
            });
        }
        Ok(Err(refused)) => refused,
        Err(_) => {
            let patience = HANDSHAKE_PATIENCE.as_secs();
            return Err(format!(
                "it did not finish the handshake within {patience} s"
            ));
        }
    };
    // Closed with unread bytes, the kernel would reset the connection, and the alert that says what
    // was wrong could be lost on the way.
    let farewell = async {
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    // What the peer does with it is its own affair.
    let _ = timeout(FAREWELL, farewell).await;
    Err(why(&error))
}

/// The reason of a failed handshake, for the log.
fn why(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    match tls {
        Some(rustls::Error::NoCertificatesPresented) => "it sent no certificate".to_owned(),
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "it speaks plain text".to_owned()
        }
        Some(error) => error.to_string(),
        None => error.to_string(),
    }
}

/// A handshake that failed.
#[derive(Debug)]
struct Refusal {
    peer: SocketAddr,
    reason: String,
}

/// Logs refusals, but not each.
#[derive(Debug, Default)]
struct Refusals {
    logged: Option<Instant>,
    silent: u64,
}

impl Refusals {
    fn log(&mut self, refusal: Refusal) {
        let Refusal { peer, reason } = refusal;
        let due = self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if !due {
            self.silent += 1;
            return;
        }
        warn!(%peer, not_logged = self.silent, "TLS connection refused: {reason}");
        self.logged = Some(Instant::now());
        self.silent = 0;
    }
}

/// One call on whichever stream it is.
macro_rules! on_stream {
    ($connection:expr, $stream:ident => $call:expr) => {
        match &mut $connection.get_mut().stream {
            Stream::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Stream::Tls($stream) => {
                let $stream = Pin::new($stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = self.get_mut();
        if connection.is_shut_out(cx) {
            // Nothing was read: the end of the stream.
            return Poll::Ready(Ok(()));
        }
        on_stream!(Pin::new(connection), stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_shutdown(cx))
    }
}
