//! Upstreams behind unix sockets: one that answers, and the ways in which one cannot be reached.

use std::fmt;
use std::io::{self, PipeWriter, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::upstream::HEALTHY;

/// Time that a gateway gets for its request.
const REQUEST: Duration = Duration::from_secs(2);

/// Where a gateway looks for its upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address and a port.
    Inet(SocketAddr),
    /// Path of a unix socket.
    Unix(PathBuf),
    /// A name that gave no address; empty where no upstream was chosen.
    Name(String),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Inet(address)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The upstream of an event: `{"address":"10.77.0.2","port":20000}`, or a unix path and port zero,
/// or a name. Where none was chosen, it is the unspecified address.
impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Ends {
            address: String,
            port: u16,
            #[serde(default)]
            name: String,
        }
        let Ends {
            address,
            port,
            name,
        } = Ends::deserialize(deserializer)?;
        match address.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None if address == "none" && name.is_empty() => {
                Ok(Self::Inet(([0, 0, 0, 0], 0).into()))
            }
            None if address == "none" => Ok(Self::Name(name)),
            None => address
                .parse()
                .map(|ip| Self::Inet(SocketAddr::new(ip, port)))
                .map_err(D::Error::custom),
        }
    }
}

/// What is at the path of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A server that answers every request and closes.
    Healthy,
    /// Nothing.
    Missing,
    /// What a server left behind that has ended.
    Stale,
    /// A server that accepts nobody, and whose backlog is full.
    Full,
}

/// A set of unix sockets. Dropping it stops their servers.
#[derive(Debug)]
pub struct Sockets {
    // Closing the pipe wakes the thread that accepts.
    wake: Option<PipeWriter>,
    acceptor: Option<JoinHandle<()>>,
    _full: Vec<OwnedFd>,
}

impl Sockets {
    /// Makes what is wanted at each path.
    pub fn start(wanted: &[(PathBuf, Socket)]) -> Result<Self> {
        let mut healthy = Vec::new();
        let mut full = Vec::new();
        for (path, socket) in wanted {
            let bound = || {
                UnixListener::bind(path)
                    .with_context(|| format!("could not listen on {}", path.display()))
            };
            match socket {
                Socket::Healthy => healthy.push(bound()?),
                Socket::Missing => {}
                Socket::Stale => drop(bound()?),
                Socket::Full => full.extend(fill(path)?),
            }
        }
        let (woken, wake) = io::pipe().context("could not make a pipe")?;
        let acceptor = thread::Builder::new()
            .name("lab-sockets".to_owned())
            .spawn(move || {
                while let Ok(Some(at)) = next(&healthy, &woken) {
                    if let Some(Ok((stream, _))) = healthy.get(at).map(UnixListener::accept) {
                        // A gateway that leaves is no matter of ours.
                        let _ = answer(stream);
                    }
                }
            })?;
        Ok(Self {
            wake: Some(wake),
            acceptor: Some(acceptor),
            _full: full,
        })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// A listener whose backlog of one is taken, with the client that takes it.
fn fill(path: &Path) -> Result<[OwnedFd; 2]> {
    let address = SocketAddrUnix::new(path)?;
    let make = || {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        socket_with(family, kind, SocketFlags::CLOEXEC, None)
    };
    let (listener, client) = (make()?, make()?);
    bind(&listener, &address)?;
    listen(&listener, 0)?;
    connect(&client, &address)?;
    Ok([listener, client])
}

/// Waits for a client. `None` at the end.
fn next(listeners: &[UnixListener], woken: &io::PipeReader) -> io::Result<Option<usize>> {
    let mut fds: Vec<PollFd<'_>> = listeners
        .iter()
        .map(|listener| PollFd::new(listener, PollFlags::IN))
        .collect();
    fds.push(PollFd::new(woken, PollFlags::IN));
    poll(&mut fds, None)?;
    Ok(fds
        .iter()
        .position(|fd| !fd.revents().is_empty())
        .filter(|at| *at < listeners.len()))
}

fn answer(mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST))?;
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let taken = stream.read(&mut piece)?;
        if taken == 0 {
            return Ok(());
        }
        request.extend_from_slice(&piece[..taken]);
    }
    stream.write_all(HEALTHY)
}
