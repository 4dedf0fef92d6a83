//! A plain HTTP/1.1 client that says exactly what came back: a whole response, a cut one, bytes that
//! are no response, or nothing.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::clock::Deadline;

/// Longer than every time-out of a gateway in the lab.
const PATIENCE: Duration = Duration::from_secs(15);

/// One request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
    /// Its body, sent with a Content-Length; none for an empty one.
    pub body: &'a str,
}

/// What a client saw of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A whole response with this status.
    Status(u16),
    /// A response that began with this status and ended early.
    Cut(u16),
    /// Bytes that are no HTTP/1.x response.
    Raw,
    /// Not one byte.
    Nothing,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Cut(status) => write!(f, "{status}, cut short"),
            Self::Raw => f.write_str("raw bytes"),
            Self::Nothing => f.write_str("no reply"),
        }
    }
}

/// A connection to a gateway, kept alive between requests.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
}

impl Session {
    /// Connects to a gateway.
    pub fn open(gateway: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&gateway, PATIENCE)
            .with_context(|| format!("could not connect to the gateway at {gateway}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// The same from an address and port of the client's own.
    pub fn open_from(client: SocketAddr, gateway: SocketAddr) -> Result<Self> {
        let family = match gateway {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = socket(family, SocketType::STREAM, None)?;
        bind(&socket, &client).with_context(|| format!("could not bind to {client}"))?;
        connect(&socket, &gateway)
            .with_context(|| format!("could not connect to the gateway at {gateway}"))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// The client's port.
    pub fn port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// Sends `request` without waiting for its answer.
    pub fn send(&mut self, request: &Request<'_>) -> Result<()> {
        let Request { method, path, body } = request;
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let text = format!("{method} {path} HTTP/1.1\r\nHost: lab.test\r\n{length}\r\n{body}");
        self.stream
            .write_all(text.as_bytes())
            .context("could not send a request to the gateway")
    }

    /// Goes away without a word, or with a reset.
    pub fn leave(self, reset: bool) -> Result<()> {
        if reset {
            set_socket_linger(&self.stream, Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// Asks for another protocol. Where it is granted, sends what looks like a request and waits until it
    /// comes back.
    pub fn upgrade(&mut self, path: &str) -> Result<Seen> {
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: lab.test\r\nConnection: Upgrade\r\nUpgrade: lab\r\n\r\n"
        );
        self.stream.write_all(text.as_bytes())?;
        let seen = self.receive()?;
        if seen == Seen::Status(101) {
            self.stream.write_all(text.as_bytes())?;
            self.stream.set_read_timeout(Some(PATIENCE))?;
            let mut back = vec![0; text.len()];
            self.stream
                .read_exact(&mut back)
                .context("the tunnel did not bring back what was sent")?;
            anyhow::ensure!(back == text.as_bytes(), "the tunnel changed what was sent");
        }
        Ok(seen)
    }

    /// Reads one answer.
    pub fn receive(&mut self) -> Result<Seen> {
        self.receive_up_to(usize::MAX)
    }

    /// Reads the answer but stops after `limit` bytes, as a client does that goes away.
    pub fn receive_up_to(&mut self, limit: usize) -> Result<Seen> {
        let deadline = Deadline::after(PATIENCE);
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while !is_whole(&bytes, false) && !is_foreign(&bytes) && bytes.len() < limit {
            let left = deadline.remaining();
            anyhow::ensure!(!left.is_zero(), "no end of the answer after {PATIENCE:?}");
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(seen(&bytes)),
                Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(cut(&bytes)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("could not read the gateway's answer"),
            }
        }
        Ok(seen(&bytes))
    }
}

/// Sends one request on a connection of its own and reads the answer.
pub fn request(gateway: SocketAddr, request: &Request<'_>) -> Result<Seen> {
    let mut session = Session::open(gateway)?;
    session.send(request)?;
    session.receive()
}

/// What `bytes` are, now that the gateway has closed.
fn seen(bytes: &[u8]) -> Seen {
    match status(bytes) {
        Some(status) if is_whole(bytes, true) => Seen::Status(status),
        _ => cut(bytes),
    }
}

fn cut(bytes: &[u8]) -> Seen {
    match status(bytes) {
        Some(status) => Seen::Cut(status),
        None if bytes.is_empty() => Seen::Nothing,
        None => Seen::Raw,
    }
}

fn status(bytes: &[u8]) -> Option<u16> {
    let line = bytes.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// Whether no further byte can make `bytes` a response. A gateway that passes such bytes on may keep
/// its connection open.
fn is_foreign(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").any(|(is, must)| is != must)
}

/// Whether `bytes` hold a whole response; one without a length is whole when the connection is closed.
fn is_whole(bytes: &[u8], closed: bool) -> bool {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return false;
    };
    if matches!(status(bytes), Some(101 | 204 | 304)) {
        return true;
    }
    let (head, body) = bytes.split_at(end + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    if field("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        body.ends_with(b"0\r\n\r\n") && chunks_end(body)
    } else if let Some(length) = field("content-length").and_then(|text| text.parse().ok()) {
        body.len() >= length
    } else {
        closed
    }
}

/// Whether a chunked body runs through to its last chunk.
fn chunks_end(mut body: &[u8]) -> bool {
    loop {
        let Some(end) = find(body, b"\r\n") else {
            return false;
        };
        let line = body.get(..end).unwrap_or_default();
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
        let Some(size) = std::str::from_utf8(digits)
            .ok()
            .and_then(|text| usize::from_str_radix(text, 16).ok())
        else {
            return false;
        };
        if size == 0 {
            return true;
        }
        let Some(rest) = body.get(end + 2 + size + 2..) else {
            return false;
        };
        body = rest;
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_cut_raw_or_nothing() {
        assert_eq!(
            seen(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            Seen::Status(200)
        );
        assert_eq!(
            seen(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok"),
            Seen::Cut(200)
        );
        assert_eq!(
            seen(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n"),
            Seen::Status(502)
        );
        assert_eq!(cut(b"HTTP/1.1 200 OK\r\n\r\nx"), Seen::Cut(200));
        assert_eq!(seen(b"SSH-2.0-x\r\n"), Seen::Raw);
        assert!(is_foreign(b"SSH") && is_foreign(b"HTTP/2") && !is_foreign(b"HTTP"));
        assert_eq!(seen(b""), Seen::Nothing);
    }

    #[test]
    fn a_chunked_answer_needs_its_last_chunk() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let with = |body: &[u8]| [head.as_slice(), body].concat();
        assert_eq!(seen(&with(b"2\r\nok\r\n0\r\n\r\n")), Seen::Status(200));
        assert_eq!(seen(&with(b"2\r\nok\r\n")), Seen::Cut(200));
        // Data that looks like the last chunk is not the end.
        assert_eq!(seen(&with(b"10\r\nxxxxxxxxxxx0\r\n\r\n")), Seen::Cut(200));
    }
}
