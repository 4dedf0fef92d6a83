//! A name server for the lab: what it does with a query is written in the name that is asked for.
//!
//! It serves port 53 over UDP and TCP, so it needs a network namespace of its own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// Where it serves.
const PORT: u16 = 53;

/// How often it looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// The address of every name that has one.
const UPSTREAM: [u8; 4] = [127, 0, 0, 2];

/// Length of the header of a message (RFC 1035 section 4.1.1).
const HEADER: usize = 12;

/// What the first label of a name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The upstream's address, and none of IPv6.
    Address,
    /// No such name.
    NxDomain,
    /// The name without an address.
    NoData,
    /// The server failed, with an extended error.
    ServFail,
    /// The server will not answer.
    Refused,
    /// None at all.
    Silence,
    /// Under another id.
    WrongId,
    /// The server could not read the query.
    FormErr,
    /// Does not fit into a datagram; over TCP it does.
    Truncated,
    /// Does not fit, and TCP is of no use either.
    TruncatedForGood,
}

impl Answer {
    fn to(label: &[u8]) -> Self {
        match label {
            b"nxdomain" => Self::NxDomain,
            b"nodata" => Self::NoData,
            b"servfail" => Self::ServFail,
            b"refused" => Self::Refused,
            b"silence" => Self::Silence,
            b"wrongid" => Self::WrongId,
            b"formerr" => Self::FormErr,
            b"truncated" => Self::Truncated,
            b"endless" => Self::TruncatedForGood,
            _ => Self::Address,
        }
    }
}

/// A running name server. Dropping it ends it.
#[derive(Debug)]
pub struct Resolver {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Starts it inside `namespace` on loopback.
    pub fn start(namespace: &Netns) -> Result<Self> {
        Self::start_at(namespace, Ipv4Addr::LOCALHOST)
    }

    /// The same at this address.
    pub fn start_at(namespace: &Netns, address: Ipv4Addr) -> Result<Self> {
        let at = (address, PORT);
        let (datagrams, streams) = namespace.enter(|| {
            let datagrams = UdpSocket::bind(at).context("could not serve DNS over UDP")?;
            let streams = TcpListener::bind(at).context("could not serve DNS over TCP")?;
            datagrams.set_read_timeout(Some(LOOK))?;
            streams.set_nonblocking(true)?;
            Ok((datagrams, streams))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (one, other) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            thread::spawn(move || serve_datagrams(&datagrams, &one)),
            thread::spawn(move || serve_streams(&streams, &other)),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut query = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, client)) = socket.recv_from(&mut query) else {
            continue;
        };
        if let Some(reply) = query.get(..len).and_then(|query| answer(query, false)) {
            // A client that has gone needs no answer.
            let _ = socket.send_to(&reply, client);
        }
    }
}

fn serve_streams(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // It ends with its client.
            Ok((stream, _)) => drop(thread::spawn(move || serve_stream(stream))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(_) => return,
        }
    }
}

/// Answers one query after another until the client closes.
fn serve_stream(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        if let Some(reply) = answer(&query, true) {
            let length = u16::try_from(reply.len()).unwrap_or(0).to_be_bytes();
            stream.write_all(&[&length[..], &reply].concat())?;
        }
    }
}

/// The answer to a query, if it gets one.
fn answer(query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
    const IPV4: u16 = 1;
    let label_len = usize::from(*query.get(HEADER)?);
    let label = query.get(HEADER + 1..HEADER + 1 + label_len)?;
    let mut end = HEADER;
    while let Some(len) = query.get(end).filter(|len| **len > 0) {
        end += 1 + usize::from(*len);
    }
    let question = query.get(HEADER..end + 5)?;
    let kind = u16::from_be_bytes([
        *question.get(question.len() - 4)?,
        *question.get(question.len() - 3)?,
    ]);
    let what = Answer::to(label);
    let mut id = [*query.first()?, *query.get(1)?];
    let (mut flags, mut code) = (0x81, 0_u8);
    let mut addresses = 0;
    match what {
        Answer::Silence => return None,
        Answer::TruncatedForGood if over_tcp => return None,
        Answer::Truncated | Answer::TruncatedForGood if !over_tcp => flags |= 0x02,
        Answer::NxDomain => code = 3,
        Answer::ServFail => code = 2,
        Answer::Refused => code = 5,
        Answer::FormErr => code = 1,
        Answer::NoData => {}
        Answer::WrongId => {
            id[1] ^= 0x55;
            addresses = 1;
        }
        Answer::Address | Answer::Truncated | Answer::TruncatedForGood => {
            addresses = u8::from(kind == IPV4);
        }
    }
    let extended = u8::from(what == Answer::ServFail);
    let mut reply = id.to_vec();
    reply.extend([flags, 0x80 | code, 0, 1, 0, addresses, 0, 0, 0, extended]);
    reply.extend(question);
    if addresses == 1 {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(UPSTREAM);
    }
    if extended == 1 {
        // "No Reachable Authority" (RFC 8914).
        reply.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 22]);
    }
    Some(reply)
}
