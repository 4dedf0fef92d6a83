//! The exchanges of one hop: which bytes belong to which request and response.

mod plain;
mod tls;
mod whole;

use std::collections::VecDeque;
use std::time::Duration;

use crate::http1::{
    Finding, Protocol, RequestEvent, RequestHead, RequestKind, RequestParser, ResponseEvent,
    ResponseParser, Stage, TlsPortText,
};
use crate::limits::Limits;
use crate::model::{HeldExchanges, Timestamp};
use crate::stats::Stats;
use crate::tcp::Chunk;

pub(super) use self::tls::Tls;

/// Bytes kept of an upstream that speaks first: enough to name its protocol.
const EARLY_BYTES: usize = 1024;

/// The status with which a server answers plaintext on a port for TLS.
const BAD_REQUEST: u16 = 400;

/// The most that one exchange takes, its five texts included.
pub(super) const EXCHANGE_BYTES: usize = 4096;

/// One request and its response, as far as they got.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Exchange {
    /// Place on the hop, from 1.
    pub(super) ordinal: u32,
    /// First request byte.
    pub(super) began: Timestamp,
    /// Stream offset of the first request byte.
    pub(super) offset: u64,
    /// Stream offset just past the last request byte seen.
    pub(super) end_offset: u64,
    /// Whether the request is complete.
    pub(super) complete: bool,
    pub(super) head: Option<RequestHead>,
    pub(super) last_request: Timestamp,
    /// Silence on the hop before it.
    pub(super) idle: Option<Duration>,
    /// Whether the upstream had closed before it began.
    pub(super) closed_before: bool,
    pub(super) first_response: Option<Timestamp>,
    pub(super) last_response: Option<Timestamp>,
    pub(super) response_bytes: u64,
    /// Whether the upstream sent what stands for the response before it had the request.
    pub(super) unasked: bool,
    /// What a 400 says, as far as it tells of a port for TLS.
    pub(super) tls_port: TlsPortText,
    /// Its event is out, or it was found not to need one.
    pub(super) judged: bool,
}

/// A response that is complete, with its exchange.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) exchange: Exchange,
    pub(super) status: Option<u16>,
    pub(super) findings: Vec<Finding>,
    pub(super) stage: Stage,
}

impl Completed {
    /// Whether nothing is wrong with it, and nothing that may follow changes that: no rule of
    /// [`crate::classify::exchange`] has a cause for it.
    pub(super) fn is_plain(&self) -> bool {
        let Self {
            exchange,
            status,
            findings,
            ..
        } = self;
        findings.is_empty()
            && exchange.complete
            && !exchange.unasked
            && !exchange.tls_port.found()
            && status.is_none_or(|status| status < 500)
            && exchange.head.as_ref().is_none_or(|head| !head.web_socket)
    }
}

/// The responses that a segment completed: hardly ever more than one, which needs no allocation.
#[derive(Debug, Default)]
pub(super) struct Done {
    first: Option<Completed>,
    more: VecDeque<Completed>,
}

impl Done {
    fn push(&mut self, completed: Completed) {
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(completed);
        } else {
            self.more.push_back(completed);
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Takes the earliest out.
    pub(super) fn pop(&mut self) -> Option<Completed> {
        self.first.take().or_else(|| self.more.pop_front())
    }
}

/// Follows requests and responses on one hop.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Exchanges {
    request: RequestParser,
    pub(super) response: ResponseParser,
    /// Exchanges whose response is not complete, the oldest first.
    pub(super) open: VecDeque<Exchange>,
    /// Whether the newest of `open` is still sending its request.
    sending: bool,
    /// What the gateway speaks, once a byte told.
    pub(super) protocol: Option<Protocol>,
    /// What is known of its TLS, where it speaks that.
    pub(super) tls: Option<Box<Tls>>,
    /// Whether a request was not followed: which one a later response belongs to is not known then.
    overflowed: bool,
    /// Exchanges begun.
    begun: u32,
    /// When the last exchange ended.
    pub(super) last_end: Option<Timestamp>,
    /// Request bytes handed over.
    sent: u64,
    /// What the upstream sent while no request was open. The gateway will take it for the response to
    /// the next.
    early: Vec<u8>,
    /// Whether the hop was joined mid-stream.
    pub(super) joined: bool,
    /// Whether bytes were missed that a request may have been among.
    pub(super) missed: bool,
    /// How much of the requests the upstream has acknowledged.
    pub(super) acked: u64,
    /// Whether the last response had a body of known length.
    sized: bool,
    /// The last complete exchange, while a reset can still make a failure of it.
    pub(super) last: Option<Box<(Timestamp, Completed)>>,
}

impl Exchanges {
    /// Whether a request was seen.
    pub(super) const fn has_begun(&self) -> bool {
        self.begun > 0
    }

    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            request: RequestParser::default(),
            response: ResponseParser::new(limits.head_bytes),
            open: VecDeque::new(),
            sending: false,
            protocol: None,
            tls: None,
            overflowed: false,
            begun: 0,
            last_end: None,
            sent: 0,
            early: Vec::new(),
            joined: false,
            missed: false,
            acked: 0,
            sized: true,
            last: None,
        }
    }

    /// Takes the allocations of a hop that is over, unless it had more of them than most.
    pub(super) fn reuse(&mut self, old: &mut Self) {
        if old.open.capacity() <= 1 {
            old.open.clear();
            self.open = std::mem::take(&mut old.open);
        }
        self.request.reuse(&mut old.request);
    }

    /// Whether nothing of what the hop carries can be read.
    pub(super) const fn is_opaque(&self) -> bool {
        matches!(self.protocol, Some(protocol) if !matches!(protocol, Protocol::Http1))
    }

    /// Requests begun.
    pub(super) const fn begun(&self) -> u32 {
        self.begun
    }

    /// Takes bytes of the gateway.
    pub(super) fn sent(
        &mut self,
        at: Timestamp,
        chunk: Chunk<'_>,
        upstream_closed: bool,
        limits: &Limits,
        stats: &mut Stats,
        done: &mut Done,
    ) {
        if self.tls.is_some() {
            self.tls_sent(at, chunk, upstream_closed, done);
        } else {
            self.http_sent(at, chunk, upstream_closed, limits, stats, done);
        }
    }

    /// The same of bytes that may be HTTP/1, be they inside TLS or not.
    fn http_sent(
        &mut self,
        at: Timestamp,
        chunk: Chunk<'_>,
        upstream_closed: bool,
        limits: &Limits,
        stats: &mut Stats,
        done: &mut Done,
    ) {
        if self.response.stage() == Stage::Tunnel {
            // What a tunnel carries is no request, whatever it looks like.
            return;
        }
        match chunk {
            Chunk::Data(mut bytes) => {
                if self.open.is_empty() {
                    // What a gap hid is over with its exchange.
                    self.request.resume();
                }
                loop {
                    let (taken, event) = self.request.take(bytes);
                    bytes = bytes.get(taken..).unwrap_or_default();
                    let started = matches!(event, Some(RequestEvent::Begin));
                    self.count_sent(at, taken as u64, !started);
                    match event {
                        Some(event) => {
                            if started {
                                self.unfollowed(at, done);
                            }
                            let opaque = matches!(event, RequestEvent::Opaque(_));
                            self.on_request(at, event, upstream_closed, limits, stats);
                            if opaque {
                                let taken = self.request.take_opaque();
                                if self.protocol == Some(Protocol::Tls) && self.tls.is_none() {
                                    self.begin_tls(at, &taken);
                                    let rest = Chunk::Data(bytes);
                                    self.tls_sent(at, rest, upstream_closed, done);
                                }
                                return;
                            }
                            // Before the bytes behind it: segments may be cut anywhere.
                            self.take_early(at, stats, done);
                        }
                        None if bytes.is_empty() => return,
                        None => {}
                    }
                }
            }
            Chunk::Gap(bytes) => {
                self.count_sent(at, bytes, true);
                if self.request.skip(bytes) {
                    self.on_request(at, RequestEvent::End, upstream_closed, limits, stats);
                }
                self.missed |= self.request.is_lost();
            }
        }
    }

    /// Counts bytes for the request that is being sent. `ours` is false for empty lines before it.
    fn count_sent(&mut self, at: Timestamp, bytes: u64, ours: bool) {
        let inside = self.tls.is_some();
        if !inside {
            self.sent += bytes;
        }
        if self.sending
            && ours
            && bytes > 0
            && let Some(exchange) = self.open.back_mut()
        {
            let least = if inside {
                exchange.end_offset + bytes
            } else {
                0
            };
            exchange.end_offset = self.sent.max(least);
            exchange.last_request = at;
        }
    }

    /// A gateway sends its next request once it has the whole response. One that could not be followed
    /// to its end is over by then, or every later response would count for the wrong request.
    fn unfollowed(&mut self, at: Timestamp, done: &mut Done) {
        let stage = self.response.stage();
        if matches!(stage, Stage::Lost | Stage::Broken) {
            self.complete(at, stage, done);
        }
    }

    fn on_request(
        &mut self,
        at: Timestamp,
        event: RequestEvent,
        upstream_closed: bool,
        limits: &Limits,
        stats: &mut Stats,
    ) {
        match event {
            RequestEvent::Begin => {
                let offset = self.seen().map_or(self.sent, |seen| seen.mark);
                self.overflowed |= self.open.len() >= limits.pipelined;
                if self.overflowed {
                    stats.pipelined_dropped += 1;
                    return;
                }
                self.sending = true;
                self.begin(at, offset, upstream_closed);
            }
            RequestEvent::Head(head) => {
                self.protocol = Some(Protocol::Http1);
                if let Some(exchange) = self.open.back_mut().filter(|_| self.sending) {
                    exchange.head = Some(head);
                }
            }
            RequestEvent::End => {
                if let Some(exchange) = self.open.back_mut().filter(|_| self.sending) {
                    exchange.complete = true;
                } else if let Some((_, last)) = self.last.as_deref_mut() {
                    last.exchange.complete = true;
                }
                self.sending = false;
            }
            RequestEvent::Opaque(protocol) => {
                self.protocol = Some(protocol);
                match protocol {
                    Protocol::Tls => stats.hops_tls += 1,
                    _ => stats.hops_opaque += 1,
                }
                self.open.clear();
                self.begun = 0;
                self.sending = false;
            }
        }
    }

    /// A request begins at this place of the gateway's stream.
    fn begin(&mut self, at: Timestamp, offset: u64, upstream_closed: bool) {
        self.begun += 1;
        self.last = None;
        // Most hops never have two: room for one is enough until they do.
        if self.open.capacity() == 0 {
            self.open.reserve_exact(1);
        }
        self.open.push_back(Exchange {
            ordinal: self.begun,
            began: at,
            offset,
            end_offset: offset,
            complete: false,
            head: None,
            last_request: at,
            idle: self.last_end.map(|end| at.since(end)),
            closed_before: upstream_closed,
            first_response: None,
            last_response: None,
            response_bytes: 0,
            unasked: false,
            tls_port: TlsPortText::default(),
            judged: false,
        });
    }

    /// Takes bytes of the upstream. Responses that are complete go to `done`.
    pub(super) fn received(
        &mut self,
        at: Timestamp,
        chunk: Chunk<'_>,
        stats: &mut Stats,
        done: &mut Done,
    ) {
        if self.tls.is_some() {
            self.tls_received(at, chunk);
        } else {
            self.http_received(at, chunk, stats, done);
        }
    }

    /// The same of bytes that may be HTTP/1, be they inside TLS or not.
    fn http_received(
        &mut self,
        at: Timestamp,
        chunk: Chunk<'_>,
        stats: &mut Stats,
        done: &mut Done,
    ) {
        if self
            .protocol
            .is_some_and(|protocol| protocol != Protocol::Http1)
        {
            return;
        }
        let (mut bytes, mut gap) = match chunk {
            Chunk::Data(bytes) => (bytes, 0),
            Chunk::Gap(gap) => (&[][..], gap),
        };
        loop {
            let Some(exchange) = self.open.front_mut() else {
                if self.overflowed {
                    return;
                }
                let room = EARLY_BYTES.saturating_sub(self.early.len());
                self.early.extend(bytes.iter().take(room));
                if self.begun > 0 && (!bytes.is_empty() || gap > 0) {
                    stats.unsolicited += 1;
                }
                return;
            };
            let stage = self.response.stage();
            let seen = gap == 0;
            let (taken, event) = if gap > 0 {
                self.response.skip(gap)
            } else {
                let (taken, event) = self.response.take(bytes, kind(exchange));
                if stage.is_body() && self.response.status() == Some(BAD_REQUEST) {
                    exchange.tls_port.take(bytes.get(..taken).unwrap_or(bytes));
                }
                (taken as u64, event)
            };
            if gap > 0 {
                gap -= taken;
            } else {
                let taken = usize::try_from(taken).unwrap_or(usize::MAX);
                bytes = bytes.get(taken..).unwrap_or_default();
            }
            if taken > 0 {
                exchange.response_bytes += taken;
                exchange.last_response = Some(at);
            }
            match event {
                Some(ResponseEvent::Begin) => {
                    exchange.first_response = Some(at);
                    // Nobody answers a request before its first byte has come.
                    exchange.unasked |=
                        exchange.ordinal > 1 && seen && self.acked <= exchange.offset;
                }
                Some(ResponseEvent::End) => self.complete(at, stage, done),
                None if bytes.is_empty() && gap == 0 => return,
                Some(ResponseEvent::Head) | None => {}
            }
        }
    }

    /// Whether more than one exchange began.
    pub(super) const fn is_reused(&self) -> bool {
        self.begun > 1
    }

    /// Lets go of an exchange that needs no event.
    pub(super) fn forget(&mut self, exchange: Exchange) {
        if let Some(head) = exchange.head {
            self.request.recycle(head);
        }
    }

    /// Whether so many bytes of the upstream are certain to be inside a body.
    pub(super) fn awaits_body(&self, bytes: u32) -> bool {
        !self.open.is_empty()
            && self.tls.is_none()
            && self.response.status() != Some(BAD_REQUEST)
            && self.response.awaits_body(u64::from(bytes))
    }

    /// Moves past bytes of the upstream that are certain to be inside the body of the response that is
    /// coming. Returns false, with nothing done, where they are not.
    pub(super) fn pass(&mut self, at: Timestamp, bytes: u32) -> bool {
        let Some(exchange) = self.open.front_mut() else {
            return false;
        };
        let passed = self.response.pass(u64::from(bytes));
        if passed {
            exchange.response_bytes += u64::from(bytes);
            exchange.last_response = Some(at);
        }
        passed
    }

    /// Whether nothing is kept that the next segment may change the meaning of, whatever it is.
    pub(super) fn is_settled(&self) -> bool {
        // The upstream may still answer a request that came behind its close: each segment is waited for.
        let doomed = || self.open.front().is_some_and(|open| open.closed_before);
        self.early.is_empty() && !self.response.is_broken() && !doomed()
    }

    /// Memory for incomplete heads, for what an upstream said first, and for pipelined requests.
    pub(super) fn kept_bytes(&self) -> usize {
        self.request.kept_bytes()
            + self.response.kept_bytes()
            + self.early.capacity()
            + self.tls_kept_bytes()
            + self.open.len().saturating_sub(1) * EXCHANGE_BYTES
    }

    /// Hands what the upstream sent before the first request to the response parser, once there is a
    /// request that it seems to answer.
    fn take_early(&mut self, at: Timestamp, stats: &mut Stats, done: &mut Done) {
        if self.early.is_empty() || self.protocol != Some(Protocol::Http1) {
            return;
        }
        if let Some(exchange) = self.open.front_mut() {
            let early = std::mem::take(&mut self.early);
            // The rest of a response that was under way when the hop was joined.
            let joined = self.joined && exchange.ordinal == 1;
            // A farewell, such as a 408 with the close: the close is what matters.
            let farewell = exchange.closed_before && exchange.ordinal > 1;
            // Where segments were missed, it may answer a request that was among them.
            let missed = self.missed && exchange.ordinal > 1;
            if joined || farewell || missed {
                return;
            }
            exchange.unasked = exchange.ordinal > 1;
            self.http_received(at, Chunk::Data(&early), stats, done);
        }
    }

    /// The upstream's FIN completes a body that only the close delimits.
    pub(super) fn upstream_fin(&mut self, at: Timestamp, done: &mut Done) {
        if self.response.stage() == Stage::BodyUntilClose {
            self.complete(at, Stage::BodyUntilClose, done);
        }
    }

    /// Goes on behind healthy exchanges that passed unseen. A gateway sends a request once it has the
    /// whole response before it, so that whatever is open here was over before they began.
    pub(super) fn resume(&mut self, at: Timestamp, held: &HeldExchanges, done: &mut Done) {
        if self.response.stage() == Stage::Tunnel || self.seen().is_some() {
            return;
        }
        self.tls_resume(done);
        while !self.open.is_empty() {
            let stage = match self.response.stage() {
                Stage::Broken => Stage::Broken,
                _ => Stage::Lost,
            };
            self.complete(at, stage, done);
        }
        if self.tls.is_none() {
            self.request = RequestParser::default();
        }
        self.response.reset();
        self.sending = false;
        self.early.clear();
        self.last = None;
        self.overflowed = false;
        self.begun += held.exchanges;
        self.last_end = Some(at);
    }

    fn complete(&mut self, at: Timestamp, stage: Stage, done: &mut Done) {
        self.sized = stage == Stage::SizedBody;
        if let Some(exchange) = self.open.pop_front() {
            if self.open.is_empty() {
                // The rest of a request that was answered early belongs to no open exchange.
                self.sending = false;
            }
            let (status, findings) = (self.response.status(), self.response.take_findings());
            done.push(Completed {
                exchange,
                status,
                findings,
                stage,
            });
        }
        self.last_end = Some(at);
        self.response.reset();
    }
}

fn kind(exchange: &Exchange) -> RequestKind {
    let head = exchange.head.as_ref();
    head.map_or(RequestKind::Plain, |head| head.kind)
}
