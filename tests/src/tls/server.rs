//! Upstreams that speak TLS over a library and then do one thing wrong. The library's records pass
//! through here on their way out, so that they can be held back, damaged or mixed with other bytes.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::crypto::ring::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::tls::Versions;
use crate::tls::pki::{Chain, Pki};
use crate::upstream::{
    End, HEALTHY, HEALTHY_CHUNKED, drain, finish, flood_head, read_some, request_length,
};

/// Bytes of one write of a large body: a record of the greatest length.
const BLOCK: usize = 16 * 1024;

/// Bytes of the last record that are not sent where the end is to come inside it.
const CUT_OFF: usize = 1000;

/// How long it waits for a gateway's farewell behind its own. One that keeps an idle connection sends none.
const FAREWELL: Duration = Duration::from_millis(150);

/// A TLS upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// What it shows.
    pub chain: Chain,
    /// Versions that it takes.
    pub versions: Versions,
    /// Whether it takes P-384 only, for which no gateway sends a key share at first: a
    /// HelloRetryRequest (RFC 8446 section 4.1.4).
    pub retries: bool,
    /// Application protocols that it takes; any where there is none.
    pub alpn: &'static [&'static str],
    /// Whether it wants a certificate of the gateway.
    pub asks: bool,
    /// Whether it hands out tickets behind a TLS 1.3 handshake (RFC 8446 section 4.6.1).
    pub tickets: bool,
    /// Bytes that it sends in front of its first flight.
    pub before: &'static [u8],
    /// What it does.
    pub then: Then,
}

/// What a TLS upstream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Answers every request, in turn with a Content-Length and in chunks.
    Answer,
    /// Sends its first flight and ends like this.
    Break(End),
    /// Reads one request, sends these bytes in records, and ends like this.
    Reply(&'static [u8], Close),
    /// Answers one request and closes like this after a time in the gateway's pool.
    CloseIdle(Duration, Close),
    /// Announces a body of this many bytes and sends it as fast as the gateway reads.
    Flood(usize),
    /// Announces a body, sends a part of it in records of the greatest length, many at a time, and ends
    /// without an alert.
    Cut {
        /// By the Content-Length.
        promised: usize,
        /// Bytes in records.
        sent: usize,
        /// Whether the last record lacks its end.
        inside: bool,
        /// What follows.
        end: End,
    },
    /// Answers the first request; sends these bytes in answer to the second and ends like this.
    AnswerThen(&'static [u8], Close),
    /// Answers the first request; damages one bit of the answer to the second.
    Corrupt,
    /// Answers the first request; answers the second with these bytes, outside of any record.
    Inject(&'static [u8]),
}

/// How a TLS connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// With a `close_notify` alert (RFC 8446 section 6.1) and a FIN.
    Notify,
    /// Without an alert.
    Without(End),
}

impl Server {
    /// Answers every request over TLS 1.2 and 1.3 with a good certificate.
    pub const HEALTHY: Self = Self {
        chain: Chain::Good,
        versions: Versions::Both,
        retries: false,
        alpn: &[],
        asks: false,
        tickets: true,
        before: b"",
        then: Then::Answer,
    };

    /// Whether its connections carry more than one request.
    pub const fn keeps(&self) -> bool {
        matches!(
            self.then,
            Then::Answer
                | Then::AnswerThen(..)
                | Then::CloseIdle(..)
                | Then::Corrupt
                | Then::Inject(_)
        )
    }

    /// What the library needs to know.
    pub(crate) fn config(&self, pki: &Pki) -> Result<Arc<ServerConfig>> {
        let mut provider = default_provider();
        if self.retries {
            provider.kx_groups = vec![kx_group::SECP384R1];
        }
        let provider = Arc::new(provider);
        let versions = match self.versions {
            Versions::Both => vec![&TLS12, &TLS13],
            Versions::Only12 => vec![&TLS12],
            Versions::Only13 => vec![&TLS13],
            Versions::Only11 => anyhow::bail!("the library speaks no TLS 1.1"),
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)?;
        let builder = if self.asks {
            let mut roots = RootCertStore::empty();
            for root in CertificateDer::pem_file_iter(pki.roots())? {
                roots.add(root?)?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut chain = Vec::new();
        for file in [pki.leaf(self.chain), pki.above(self.chain)] {
            for certificate in CertificateDer::pem_file_iter(file)? {
                chain.push(certificate?);
            }
        }
        let key = PrivateKeyDer::from_pem_file(pki.key(self.chain))?;
        let mut config = builder
            .with_single_cert(chain, key)
            .with_context(|| format!("the library refuses {:?}", self.chain))?;
        if !self.tickets {
            config.send_tls13_tickets = 0;
        }
        config.alpn_protocols = self
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Ok(Arc::new(config))
    }

    pub(crate) fn serve(
        &self,
        stream: TcpStream,
        config: &Arc<ServerConfig>,
        over: &AtomicBool,
    ) -> io::Result<()> {
        let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        tls.set_buffer_limit(None);
        let mut talk = Talk {
            stream,
            tls,
            over,
            request: Vec::new(),
        };
        while !talk.tls.wants_write() {
            if !talk.take()? {
                return Ok(());
            }
        }
        talk.stream.write_all(self.before)?;
        talk.flush()?;
        if let Then::Break(end) = self.then {
            return finish(talk.stream, end, over);
        }
        while talk.tls.is_handshaking() {
            if !talk.take()? {
                return Ok(());
            }
            talk.flush()?;
        }
        match self.then {
            Then::Break(_) => {}
            Then::Answer => {
                let mut answers = [HEALTHY, HEALTHY_CHUNKED].into_iter().cycle();
                while talk.read_request()? {
                    talk.say(answers.next().unwrap_or(HEALTHY))?;
                }
            }
            Then::Reply(bytes, close) => {
                if talk.read_request()? {
                    talk.say(bytes)?;
                    talk.close(close)?;
                }
            }
            Then::CloseIdle(delay, close) => {
                if talk.read_request()? {
                    talk.say(HEALTHY)?;
                    // The wait is the behaviour.
                    thread::sleep(delay);
                    talk.close(close)?;
                }
            }
            Then::Flood(length) => {
                if talk.read_request()? {
                    talk.say(&flood_head(length))?;
                    let block = [b'x'; BLOCK];
                    let mut left = length;
                    while left > 0 {
                        let count = left.min(block.len());
                        talk.say(block.get(..count).unwrap_or_default())?;
                        left -= count;
                    }
                    drain(&mut talk.stream, over)?;
                }
            }
            Then::Cut {
                promised,
                sent,
                inside,
                end,
            } => {
                if talk.read_request()? {
                    talk.tls.writer().write_all(&flood_head(promised))?;
                    talk.tls.writer().write_all(&vec![b'x'; sent])?;
                    let mut records = Vec::new();
                    while talk.tls.wants_write() {
                        talk.tls.write_tls(&mut records)?;
                    }
                    if inside {
                        records.truncate(records.len() - CUT_OFF);
                    }
                    talk.stream.write_all(&records)?;
                    finish(talk.stream, end, over)?;
                }
            }
            Then::AnswerThen(bytes, close) => {
                if talk.answer_one()? && talk.read_request()? {
                    talk.say(bytes)?;
                    talk.close(close)?;
                }
            }
            Then::Corrupt => {
                if talk.answer_one()? && talk.read_request()? {
                    talk.tls.writer().write_all(HEALTHY)?;
                    let mut records = Vec::new();
                    talk.tls.write_tls(&mut records)?;
                    if let Some(last) = records.last_mut() {
                        *last ^= 1;
                    }
                    talk.stream.write_all(&records)?;
                    drain(&mut talk.stream, over)?;
                }
            }
            Then::Inject(bytes) => {
                if talk.answer_one()? && talk.read_request()? {
                    talk.stream.write_all(bytes)?;
                    drain(&mut talk.stream, over)?;
                }
            }
        }
        Ok(())
    }
}

/// One connection.
struct Talk<'a> {
    stream: TcpStream,
    tls: ServerConnection,
    over: &'a AtomicBool,
    /// What came of a request.
    request: Vec<u8>,
}

impl Talk<'_> {
    /// Reads what there is; `false` at the end of the connection. An error of TLS is an error once the
    /// alert about it was sent.
    fn take(&mut self) -> io::Result<bool> {
        let mut buffer = [0; BLOCK];
        let count = read_some(&mut self.stream, &mut buffer, self.over)?;
        let mut bytes = buffer.get(..count).unwrap_or_default();
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes)?;
            let result = self.tls.process_new_packets();
            let state = match result {
                Ok(state) => state,
                Err(error) => {
                    self.flush()?;
                    return Err(io::Error::other(error));
                }
            };
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            io::Read::read_exact(&mut self.tls.reader(), &mut plain)?;
            self.request.extend(plain);
        }
        Ok(count > 0)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(bytes)?;
        self.flush()
    }

    /// Reads one request with its body; `false` where the gateway closed instead of sending one.
    fn read_request(&mut self) -> io::Result<bool> {
        loop {
            if let Some(length) = request_length(&self.request)
                && self.request.len() >= length
            {
                self.request.drain(..length);
                return Ok(true);
            }
            if !self.take()? {
                return Ok(false);
            }
            self.flush()?;
        }
    }

    fn answer_one(&mut self) -> io::Result<bool> {
        let asked = self.read_request()?;
        if asked {
            self.say(HEALTHY)?;
        }
        Ok(asked)
    }

    fn close(mut self, close: Close) -> io::Result<()> {
        let end = match close {
            Close::Notify => {
                self.tls.send_close_notify();
                self.flush()?;
                // The farewell of a gateway that closes at once must not find the socket closed, which would reset the
                // connection.
                self.stream.shutdown(Shutdown::Write)?;
                self.stream.set_read_timeout(Some(FAREWELL))?;
                while self.stream.read(&mut [0; 256]).is_ok_and(|read| read > 0) {}
                End::Fin
            }
            Close::Without(end) => end,
        };
        finish(self.stream, end, self.over)
    }
}
