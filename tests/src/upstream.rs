//! Upstreams that fail on purpose, each in one exact way, on plain sockets: what goes on the wire is
//! what is written here and nothing a server library adds.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind, PipeWriter, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::shutdown;
use rustix::net::sockopt::set_socket_linger;
use rustls::ServerConfig;

use crate::socket::Target;
use crate::tls::hello;
use crate::tls::pki::Pki;
use crate::tls::server::Server;

/// Longest life of a connection: every time-out of a gateway in the lab is shorter.
const LIFE: Duration = Duration::from_secs(30);

/// How often a silent connection looks whether the lab is over.
const TICK: Duration = Duration::from_millis(100);

/// Longer than the 40 ms for which Linux may delay an acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(120);

/// Long enough for a request to leave the gateway, short beside the 200 ms after which Linux sends one
/// again that was lost.
const UNDER_WAY: Duration = Duration::from_millis(40);

/// Largest request head that an upstream reads.
const HEAD_LIMIT: usize = 64 * 1024;

/// A whole answer after which the connection may carry the next request.
pub const HEALTHY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

/// The same in chunks.
pub const HEALTHY_CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n2\r\nk\n\r\n0\r\n\r\n";

/// The answer to a request for another protocol.
const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lab\r\n\r\n";

/// What an upstream does with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers every request with these bytes and keeps the connection.
    Answer(&'static [u8]),
    /// Answers the first request of a connection, and every later one with these bytes.
    AnswerThen(&'static [u8]),
    /// Answers every request, in turn with a Content-Length and in chunks.
    Healthy,
    /// Accepts and closes without reading, at a moment when the request is under way.
    CloseOnAccept,
    /// Reads one request, sends these bytes (perhaps none), and ends like this.
    Reply(&'static [u8], End),
    /// Sends these bytes without waiting for a request, reads one request and closes.
    Banner(&'static [u8]),
    /// Answers one request and closes the connection after this time in the gateway's pool.
    CloseIdle(Duration),
    /// Stops listening once the first connection is accepted, answers it and closes it later.
    CloseListener(Duration),
    /// Accepts this late, then answers.
    AcceptLate(Duration),
    /// Announces a body of this many bytes and sends it as fast as the gateway reads.
    Flood(usize),
    /// Switches protocols and sends back what it is sent.
    Upgrade,
    /// Speaks TLS.
    Tls(Server),
    /// Reads one TLS record, the ClientHello, sends these bytes, and ends like this.
    Hello(&'static [u8], End),
    /// Asks for another ClientHello, sends these bytes in answer to it, and ends like this.
    HelloRetry(&'static [u8], End),
}

/// How a connection ends after the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a FIN.
    Fin,
    /// With a RST, once the request is acknowledged.
    Reset,
    /// Not at all: silence until the gateway gives up.
    Silence,
}

/// A set of listening upstreams. Dropping it stops them.
#[derive(Debug)]
pub struct Upstreams {
    // Closing the pipe wakes the thread that accepts.
    wake: Option<PipeWriter>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the threads of one set tell each other.
#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    /// Upstreams that have closed a connection.
    closed: Mutex<HashSet<SocketAddr>>,
    /// Requests that each has read, where it ends connections after one.
    asked: Mutex<HashMap<SocketAddr, usize>>,
}

struct Upstream {
    listener: TcpListener,
    address: SocketAddr,
    behaviour: Behaviour,
    tls: Option<Arc<ServerConfig>>,
}

impl Upstreams {
    /// Listens on each address, in the network namespace of the calling thread, and starts to serve.
    pub fn start(wanted: impl IntoIterator<Item = (SocketAddr, Behaviour)>) -> Result<Self> {
        Self::start_with(wanted, None)
    }

    /// The same with certificates for those that speak TLS.
    pub fn start_with(
        wanted: impl IntoIterator<Item = (SocketAddr, Behaviour)>,
        pki: Option<&Pki>,
    ) -> Result<Self> {
        let mut upstreams = Vec::new();
        for (address, behaviour) in wanted {
            let tls = match behaviour {
                Behaviour::Tls(server) => {
                    Some(server.config(pki.context("TLS upstreams need certificates")?)?)
                }
                _ => None,
            };
            let listener = TcpListener::bind(address)
                .with_context(|| format!("an upstream could not listen on {address}"))?;
            listener.set_nonblocking(true)?;
            upstreams.push(Upstream {
                listener,
                address,
                behaviour,
                tls,
            });
        }
        let (woken, wake) = io::pipe().context("could not make a pipe")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("lab-upstreams".to_owned())
            .spawn(move || accept_all(upstreams, &woken, &theirs))?;
        Ok(Self {
            wake: Some(wake),
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Whether the upstream at `target` has closed a connection; never told of a unix socket.
    pub fn has_closed(&self, target: &Target) -> bool {
        let Target::Inet(address) = target else {
            return false;
        };
        self.shared
            .closed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(address)
    }

    /// Requests that the upstream at `address` has read, where it ends each connection after one.
    pub fn asked(&self, address: SocketAddr) -> usize {
        let asked = self.shared.asked.lock();
        let asked = asked.unwrap_or_else(PoisonError::into_inner);
        asked.get(&address).copied().unwrap_or(0)
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.wake = None;
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Accepts on every listener until the other end of `woken` is closed.
fn accept_all(mut upstreams: Vec<Upstream>, woken: &io::PipeReader, shared: &Arc<Shared>) {
    while !shared.over.load(Ordering::Relaxed) {
        let mut ready: Vec<PollFd<'_>> = upstreams
            .iter()
            .map(|one| PollFd::new(&one.listener, PollFlags::IN))
            .collect();
        ready.push(PollFd::new(woken, PollFlags::IN));
        if poll(&mut ready, None).is_err() {
            continue;
        }
        let ready: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        let mut index = 0;
        upstreams.retain(|upstream| {
            let waiting = ready.get(index).copied().unwrap_or(false);
            index += 1;
            !waiting || upstream.accept(shared)
        });
    }
}

impl Upstream {
    /// Takes one connection; `false` where the listener is to be closed.
    fn accept(&self, shared: &Arc<Shared>) -> bool {
        if let Behaviour::AcceptLate(delay) = self.behaviour {
            // The wait is the behaviour. It holds up the other upstreams for a few milliseconds only.
            thread::sleep(delay);
        }
        let Ok((stream, _)) = self.listener.accept() else {
            return true;
        };
        let stays = !matches!(self.behaviour, Behaviour::CloseListener(_));
        if !stays && shutdown(&self.listener, rustix::net::Shutdown::Both).is_err() {
            return true;
        }
        let (behaviour, address, shared) = (self.behaviour, self.address, Arc::clone(shared));
        let tls = self.tls.clone();
        thread::spawn(move || {
            // An error is the gateway having gone away, or having been refused, which is its right.
            let asked = || {
                let all = shared.asked.lock();
                *all.unwrap_or_else(PoisonError::into_inner)
                    .entry(address)
                    .or_default() += 1;
            };
            let _ = serve(stream, behaviour, tls.as_ref(), &shared.over, asked);
            shared
                .closed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(address);
        });
        stays
    }
}

fn serve(
    mut stream: TcpStream,
    behaviour: Behaviour,
    tls: Option<&Arc<ServerConfig>>,
    over: &AtomicBool,
    asked: impl Fn(),
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    match behaviour {
        Behaviour::Answer(bytes) => {
            while read_request(&mut stream, over)? {
                stream.write_all(bytes)?;
            }
        }
        Behaviour::AnswerThen(bytes) => {
            let mut answer = HEALTHY;
            while read_request(&mut stream, over)? {
                stream.write_all(answer)?;
                answer = bytes;
            }
        }
        Behaviour::Healthy | Behaviour::AcceptLate(_) => {
            let mut answers = [HEALTHY, HEALTHY_CHUNKED].into_iter().cycle();
            while read_request(&mut stream, over)? {
                stream.write_all(answers.next().unwrap_or(HEALTHY))?;
            }
        }
        Behaviour::CloseOnAccept => thread::sleep(UNDER_WAY),
        Behaviour::Reply(bytes, end) => {
            if read_request(&mut stream, over)? {
                asked();
                stream.write_all(bytes)?;
                finish(stream, end, over)?;
            }
        }
        Behaviour::Banner(bytes) => {
            // nginx that is spoken to before it has sent its request says nothing at all.
            thread::sleep(UNDER_WAY);
            stream.write_all(bytes)?;
            read_request(&mut stream, over)?;
        }
        Behaviour::CloseIdle(delay) | Behaviour::CloseListener(delay) => {
            if read_request(&mut stream, over)? {
                stream.write_all(HEALTHY)?;
                thread::sleep(delay);
            }
            finish(stream, End::Fin, over)?;
        }
        Behaviour::Upgrade => {
            if read_request(&mut stream, over)? {
                stream.write_all(SWITCHING)?;
                let mut buffer = [0; 4096];
                loop {
                    let count = read_some(&mut stream, &mut buffer, over)?;
                    if count == 0 {
                        break;
                    }
                    stream.write_all(buffer.get(..count).unwrap_or_default())?;
                }
            }
        }
        Behaviour::Flood(length) => {
            if read_request(&mut stream, over)? {
                stream.write_all(&flood_head(length))?;
                let block = [b'x'; 16 * 1024];
                let mut left = length;
                while left > 0 {
                    let count = left.min(block.len());
                    stream.write_all(block.get(..count).unwrap_or_default())?;
                    left -= count;
                }
                drain(&mut stream, over)?;
            }
        }
        Behaviour::Tls(server) => {
            if let Some(config) = tls {
                server.serve(stream, config, over)?;
            }
        }
        Behaviour::Hello(bytes, end) => hello::answer(stream, bytes, end, over)?,
        Behaviour::HelloRetry(bytes, end) => hello::answer_retried(stream, bytes, end, over)?,
    }
    Ok(())
}

/// The head of an answer with a body of `length` bytes.
pub(crate) fn flood_head(length: usize) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

pub(crate) fn finish(mut stream: TcpStream, end: End, over: &AtomicBool) -> io::Result<()> {
    match end {
        End::Fin => {
            // Not by dropping it alone: a process that another test starts just now has a copy of it until it executes
            // its program. Where the gateway has reset it, there is nothing left to shut down.
            let _ = stream.shutdown(Shutdown::Both);
        }
        End::Reset => {
            thread::sleep(ACK_DELAY);
            set_socket_linger(&stream, Some(Duration::ZERO))?;
            drop(stream);
        }
        End::Silence => drain(&mut stream, over)?,
    }
    Ok(())
}

/// Reads one request with its body; `false` where the gateway closed instead of sending one.
fn read_request(stream: &mut TcpStream, over: &AtomicBool) -> io::Result<bool> {
    let mut bytes = Vec::new();
    loop {
        if let Some(length) = request_length(&bytes)
            && bytes.len() >= length
        {
            return Ok(true);
        }
        if bytes.len() > HEAD_LIMIT {
            return Err(io::Error::other(
                "the request is larger than any in the lab",
            ));
        }
        let mut buffer = [0; 4096];
        match read_some(stream, &mut buffer, over)? {
            0 => return Ok(false),
            count => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// Length of the request that `bytes` begin with, once its head is there.
pub(crate) fn request_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(bytes.get(..end)?).to_ascii_lowercase();
    let body = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    Some(
        end + body
            .and_then(|text| text.trim().parse::<usize>().ok())
            .unwrap_or(0),
    )
}

/// Reads and forgets until the gateway closes or the lab is over.
pub(crate) fn drain(stream: &mut TcpStream, over: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while read_some(stream, &mut buffer, over)? > 0 {}
    Ok(())
}

/// Reads what there is; 0 at the end of the connection or of the lab.
pub(crate) fn read_some(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    over: &AtomicBool,
) -> io::Result<usize> {
    stream.set_read_timeout(Some(TICK))?;
    let mut waited = Duration::ZERO;
    while waited < LIFE && !over.load(Ordering::Relaxed) {
        match stream.read(buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                waited += TICK;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::client::{Request, Seen, Session, request};
    use crate::clock::wait_for;

    const GET: Request<'_> = Request {
        method: "GET",
        path: "/",
        body: "",
    };

    /// Starts one upstream on loopback.
    fn start(behaviour: Behaviour) -> (Upstreams, SocketAddr) {
        // Port 0 would hide the number; bind once to learn a free one.
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        (Upstreams::start([(address, behaviour)]).unwrap(), address)
    }

    fn ask(behaviour: Behaviour) -> Seen {
        let (_upstreams, address) = start(behaviour);
        request(address, &GET).unwrap()
    }

    #[test]
    fn a_healthy_upstream_answers_again_and_again_on_one_connection() {
        let (_upstreams, address) = start(Behaviour::Healthy);
        let mut session = Session::open(address).unwrap();
        for _ in 0..4 {
            session
                .send(&Request {
                    method: "POST",
                    path: "/",
                    body: "some",
                })
                .unwrap();
            assert_eq!(session.receive().unwrap(), Seen::Status(200));
        }
    }

    #[test]
    fn each_ending_is_seen_as_what_it_is() {
        const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf";
        assert_eq!(ask(Behaviour::Reply(b"", End::Fin)), Seen::Nothing);
        assert_eq!(ask(Behaviour::Reply(b"", End::Reset)), Seen::Nothing);
        assert_eq!(ask(Behaviour::Reply(HALF, End::Fin)), Seen::Cut(200));
        assert_eq!(ask(Behaviour::Reply(HALF, End::Reset)), Seen::Cut(200));
        assert_eq!(ask(Behaviour::Banner(b"SSH-2.0-lab\r\n")), Seen::Raw);
    }

    #[test]
    fn a_reset_is_a_reset_and_a_fin_is_a_fin() {
        for (end, reset) in [(End::Fin, false), (End::Reset, true)] {
            let (_upstreams, address) = start(Behaviour::Reply(b"", end));
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let result = stream.read(&mut [0; 16]);
            let was_reset = matches!(&result, Err(e) if e.kind() == ErrorKind::ConnectionReset);
            assert_eq!(was_reset, reset, "{end:?} gave {result:?}");
        }
    }

    #[test]
    fn an_upstream_that_closes_on_accept_reads_nothing() {
        let (_upstreams, address) = start(Behaviour::CloseOnAccept);
        let mut stream = TcpStream::connect(address).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    }

    #[test]
    fn an_idle_connection_is_closed_after_its_answer() {
        let (_upstreams, address) = start(Behaviour::CloseIdle(Duration::from_millis(20)));
        let mut session = Session::open(address).unwrap();
        session.send(&GET).unwrap();
        assert_eq!(session.receive().unwrap(), Seen::Status(200));
        assert_eq!(session.receive().unwrap(), Seen::Nothing);
    }

    #[test]
    fn a_closed_listener_refuses_the_second_connection() {
        let (_upstreams, address) = start(Behaviour::CloseListener(Duration::ZERO));
        assert_eq!(request(address, &GET).unwrap(), Seen::Status(200));
        wait_for("the listener to be closed", LIFE, || {
            let error = TcpStream::connect(address).err();
            Ok(error.filter(|error| error.kind() == ErrorKind::ConnectionRefused))
        })
        .unwrap();
    }

    #[test]
    fn stopping_ends_silent_connections() {
        let (upstreams, address) = start(Behaviour::Reply(b"", End::Silence));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(upstreams);
        // A connection that was still waiting to be accepted is reset instead.
        let result = stream.read(&mut [0; 16]);
        let reset = matches!(&result, Err(error) if error.kind() == ErrorKind::ConnectionReset);
        assert!(reset || matches!(result, Ok(0)), "{result:?}");
    }
}
