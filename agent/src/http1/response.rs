//! Responses from the upstream: incremental, strict in what it notes, lenient in how it goes on, so
//! that a gateway that tolerates a fault is followed to the response's end.

#[cfg(test)]
mod tests;

use super::body::{Body, BodyStep};
use super::clean;
use super::coding::{Beginning, Coding};
use super::fields::Fields;
use super::oversize::Oversize;
use super::status_line::{self, StatusLine};
use super::{Finding, FindingKind};

/// Broken rules kept of one response; the first that its gateway rejects decides.
const MAX_FINDINGS: usize = 8;

/// Bytes of context kept on either side of an offending byte.
const CONTEXT_BYTES: usize = 32;

/// Room made for a head at once: most fit.
const ROOM_BYTES: usize = 512;

/// Bytes kept of what is not HTTP, to name the protocol.
const FOREIGN_BYTES: usize = 256;

/// Interim responses that Apache looks past.
const MANY_INTERIM: u32 = 10;

/// What the request was, as far as it frames the response (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestKind {
    /// Its response may have a body.
    #[default]
    Plain,
    /// HEAD: its response has none.
    Head,
    /// Asks for 100 (RFC 9110 section 10.1.1).
    Expect,
    /// Asks for 101 (RFC 9110 section 7.8).
    Upgrade,
    /// CONNECT: a success makes the connection a tunnel (RFC 9110 section 9.3.6).
    Connect,
}

/// Where in a response the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before its first byte.
    Idle,
    /// In the head.
    Head,
    /// Behind interim responses, before the final one.
    AfterInterim,
    /// In a body with a Content-Length.
    SizedBody,
    /// In a chunked body.
    ChunkedBody,
    /// In a body that ends with the connection.
    BodyUntilClose,
    /// Its framing is broken, so that its end cannot be known.
    Broken,
    /// A gap swallowed bytes that frame it, or its head is above the cap.
    Lost,
    /// After `101 Switching Protocols`.
    Tunnel,
    /// Complete.
    Done,
}

impl Stage {
    /// Whether the next byte is one of the body.
    pub const fn is_body(self) -> bool {
        matches!(
            self,
            Self::SizedBody | Self::ChunkedBody | Self::BodyUntilClose
        )
    }
}

/// What a response made of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseEvent {
    /// The first byte.
    Begin,
    /// The head of the final response is complete.
    Head,
    /// The response is complete.
    End,
}

/// What the head of a response of known length says, and how much of the response there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizedHead {
    /// Bytes of head and body.
    pub taken: u64,
    /// Bytes of the body that are still to come.
    pub missing: u64,
    /// Status code.
    pub status: u16,
    /// Whether the body is a stream of events.
    event_stream: bool,
}

impl SizedHead {
    /// Whether the response is complete.
    pub const fn is_whole(&self) -> bool {
        self.missing == 0
    }
}

#[derive(Debug)]
enum State {
    Idle,
    /// The first byte of a head is there; none was taken.
    Begun,
    Head(Box<Head>),
    /// A head above the cap: it is measured, and no longer kept.
    Oversize(Oversize),
    Body(Body),
    /// Not HTTP: only its first bytes are kept.
    Foreign(Vec<u8>),
    Broken,
    Lost,
    Tunnel,
    /// Complete, until it is reset.
    Done,
}

/// A head that is being collected.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    /// Where the line begins that is not complete yet.
    line_at: usize,
    /// The status line, once it was read.
    status_line: Option<StatusLine>,
    fields: Fields,
    /// Place and length of the longest complete line.
    longest: (usize, usize),
}

impl Head {
    /// The longest line, complete or not.
    fn longest(&self) -> &[u8] {
        let (at, len) = self.longest;
        let open = self.bytes.get(self.line_at..).unwrap_or_default();
        match self.bytes.get(at..at + len) {
            Some(line) if len >= open.len() => line,
            _ => open,
        }
    }

    fn measure(&self) -> Oversize {
        let open = self.bytes.len() - self.line_at;
        Oversize::new(self.bytes.len(), self.longest(), self.fields.count, open)
    }
}

/// Follows the responses of a hop.
#[derive(Debug)]
pub struct ResponseParser {
    state: State,
    /// Bytes of the response before the current head or body: where offsets are counted from.
    taken: u64,
    findings: Vec<Finding>,
    status: Option<u16>,
    interim: u32,
    event_stream: bool,
    /// The head's event is out, the response has no body and its end is not out.
    ended: bool,
    /// The last bytes of the body, for the context of a finding.
    recent: Vec<u8>,
    /// The first bytes of the body, where the head says how they should be.
    beginning: Beginning,
    max_head_bytes: usize,
}

impl ResponseParser {
    /// A parser that keeps heads up to `max_head_bytes`.
    pub fn new(max_head_bytes: usize) -> Self {
        Self {
            state: State::Idle,
            taken: 0,
            findings: Vec::new(),
            status: None,
            interim: 0,
            event_stream: false,
            ended: false,
            recent: Vec::new(),
            beginning: Beginning::default(),
            max_head_bytes,
        }
    }

    /// Forgets the response and waits for the next.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_head_bytes);
    }

    /// Where in the response the next byte is.
    pub const fn stage(&self) -> Stage {
        match &self.state {
            State::Idle if self.interim > 0 => Stage::AfterInterim,
            State::Idle => Stage::Idle,
            State::Begun | State::Head(_) | State::Oversize(_) => Stage::Head,
            State::Body(Body::Length(_)) => Stage::SizedBody,
            State::Body(Body::Chunked(_)) => Stage::ChunkedBody,
            State::Body(Body::UntilClose) => Stage::BodyUntilClose,
            State::Foreign(_) | State::Broken => Stage::Broken,
            State::Lost => Stage::Lost,
            State::Tunnel => Stage::Tunnel,
            State::Done => Stage::Done,
        }
    }

    /// Status code of the final response, or of the last interim one before it.
    pub const fn status(&self) -> Option<u16> {
        self.status
    }

    /// Whether the body is a stream of events, which may be silent at will.
    pub const fn event_stream(&self) -> bool {
        self.event_stream
    }

    /// Body bytes that the response promised and that have not come.
    pub const fn missing(&self) -> Option<u64> {
        match self.state {
            State::Body(Body::Length(left)) => Some(left),
            _ => None,
        }
    }

    /// The bytes of an incomplete head.
    pub fn partial_head(&self) -> &[u8] {
        match &self.state {
            State::Head(head) => &head.bytes,
            _ => &[],
        }
    }

    /// The broken rules, in the order of their bytes.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = self.findings.clone();
        match &self.state {
            State::Foreign(bytes) => findings.push(Finding {
                kind: status_line::foreign(bytes),
                offset: self.taken,
                excerpt: bytes.iter().copied().take(2 * CONTEXT_BYTES).collect(),
                header: None,
            }),
            State::Head(head) => findings.extend(head.measure().finding(self.taken)),
            State::Oversize(head) => findings.extend(head.finding(self.taken)),
            _ => {}
        }
        if let Some((coding, first, offset)) = self.beginning.mismatch() {
            findings.push(Finding {
                kind: FindingKind::ContentCoding(coding),
                offset,
                excerpt: first.to_vec(),
                header: None,
            });
        }
        findings
    }

    /// The same, for a response that is over: they are not kept.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        match self.state {
            State::Foreign(_) | State::Head(_) | State::Oversize(_) => self.findings(),
            _ if self.beginning.mismatch().is_some() => self.findings(),
            _ => std::mem::take(&mut self.findings),
        }
    }

    /// Whether any rule is broken so far that matters to a gateway as such. A body that is not in its
    /// content coding does not: gateways pass it on.
    pub const fn is_broken(&self) -> bool {
        !self.findings.is_empty() || matches!(self.state, State::Foreign(_))
    }

    /// Whether any is broken beside the sizes that gateways take, which their operators choose.
    pub fn is_malformed(&self) -> bool {
        let malformed = |finding: &Finding| !finding.kind.is_limit();
        self.findings.iter().any(malformed) || matches!(self.state, State::Foreign(_))
    }

    /// Takes bytes of the response to a request of this kind. Returns how many were taken, and what
    /// happened behind the last of them; call again until all are taken and nothing happens. After
    /// [`ResponseEvent::End`], [`Self::reset`] makes it ready for the next response.
    pub fn take(&mut self, bytes: &[u8], request: RequestKind) -> (usize, Option<ResponseEvent>) {
        if self.ended {
            self.ended = false;
            return (0, Some(self.end()));
        }
        if bytes.is_empty() {
            return (0, None);
        }
        match &mut self.state {
            State::Idle => {
                let first = self.taken == 0;
                self.state = State::Begun;
                if first {
                    (0, Some(ResponseEvent::Begin))
                } else {
                    self.take_head(bytes, request)
                }
            }
            State::Broken | State::Lost | State::Tunnel | State::Done => (bytes.len(), None),
            State::Foreign(kept) => {
                let room = FOREIGN_BYTES.saturating_sub(kept.len());
                kept.extend(bytes.iter().take(room));
                (bytes.len(), None)
            }
            State::Begun | State::Head(_) => self.take_head(bytes, request),
            State::Oversize(head) => {
                if head.take(bytes) {
                    let finding = head.finding(self.taken);
                    self.findings.extend(finding);
                    // How its body is framed was not kept.
                    self.state = State::Lost;
                }
                (bytes.len(), None)
            }
            State::Body(_) => self.take_body(bytes),
        }
    }

    /// Skips bytes that were not captured. Returns how many belong to this response, and whether it
    /// ended in them.
    pub fn skip(&mut self, bytes: u64) -> (u64, Option<ResponseEvent>) {
        if self.ended {
            self.ended = false;
            return (0, Some(self.end()));
        }
        self.beginning.miss();
        match &mut self.state {
            State::Idle if self.taken == 0 => {
                self.state = State::Lost;
                (bytes, Some(ResponseEvent::Begin))
            }
            State::Idle | State::Begun | State::Head(_) | State::Oversize(_) => {
                // It was too large before.
                let size = match &self.state {
                    State::Head(head) => Some(head.measure()),
                    State::Oversize(size) => Some(size.clone()),
                    _ => None,
                };
                let finding = size.and_then(|size| size.finding(self.taken));
                self.findings.extend(finding);
                self.state = State::Lost;
                (bytes, None)
            }
            State::Body(body) => match body.skip(bytes) {
                Ok(None) => {
                    self.taken += bytes;
                    self.recent.clear();
                    (bytes, None)
                }
                Ok(Some(taken)) => {
                    self.taken += taken;
                    (taken, Some(self.end()))
                }
                Err(_) => {
                    self.state = State::Lost;
                    (bytes, None)
                }
            },
            State::Foreign(_) | State::Broken | State::Lost | State::Tunnel | State::Done => {
                (bytes, None)
            }
        }
    }

    /// Whether so many bytes are certain to be inside a body whose length is known or whose end is the
    /// connection's.
    pub const fn awaits_body(&self, bytes: u64) -> bool {
        if !self.beginning.is_settled() {
            return false;
        }
        match self.state {
            State::Body(Body::Length(left)) => left > bytes,
            State::Body(Body::UntilClose) => true,
            _ => false,
        }
    }

    /// Moves past such bytes. Returns false, with nothing done, for any other.
    pub fn pass(&mut self, bytes: u64) -> bool {
        if !self.beginning.is_settled() {
            return false;
        }
        match &mut self.state {
            State::Body(Body::Length(left)) if *left > bytes => *left -= bytes,
            State::Body(Body::UntilClose) => {}
            _ => return false,
        }
        self.taken += bytes;
        true
    }

    /// Whether it waits for the first byte of a response.
    pub const fn is_fresh(&self) -> bool {
        matches!(self.state, State::Idle) && self.taken == 0 && self.interim == 0 && !self.ended
    }

    /// What the head says that `bytes` begin with, where that breaks no rule, the length of the body is
    /// known and nothing is behind it.
    pub fn sized(&self, bytes: &[u8], request: RequestKind) -> Option<SizedHead> {
        if !self.is_fresh() || matches!(request, RequestKind::Head | RequestKind::Connect) {
            return None;
        }
        let head = clean::response(bytes).filter(|head| head.len <= self.max_head_bytes)?;
        let Body::Length(length @ 1..) = head.body else {
            return None;
        };
        let missing = length.checked_sub((bytes.len() - head.len) as u64)?;
        let bodyless = matches!(head.status, 204 | 304);
        (!bodyless && head.coding.is_none()).then_some(SizedHead {
            taken: bytes.len() as u64,
            missing,
            status: head.status,
            event_stream: head.event_stream,
        })
    }

    /// Takes the bytes that begin with such a head, whose body is not complete.
    pub fn begin_sized(&mut self, head: &SizedHead) {
        self.status = Some(head.status);
        self.event_stream = head.event_stream;
        self.taken = head.taken;
        self.state = State::Body(Body::Length(head.missing));
    }

    /// Memory for an incomplete head, the fields that are kept of it included.
    pub const fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Head(head) => 2 * head.bytes.capacity(),
            _ => 0,
        }
    }

    fn note(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn take_head(&mut self, bytes: &[u8], request: RequestKind) -> (usize, Option<ResponseEvent>) {
        if matches!(self.state, State::Begun) {
            if let Some(taken) = self.take_clean_head(bytes, request) {
                return (taken, Some(ResponseEvent::Head));
            }
            self.state = State::Head(Box::default());
        }
        let State::Head(head) = &mut self.state else {
            return (0, None);
        };
        // Up to and including the next line end, so that lines are read one at a time.
        let line_len = memchr::memchr(b'\n', bytes).map(|at| at + 1);
        let taken = line_len.unwrap_or(bytes.len());
        if head.bytes.is_empty() {
            head.bytes.reserve(bytes.len().min(ROOM_BYTES));
        }
        head.bytes
            .extend_from_slice(bytes.get(..taken).unwrap_or(bytes));
        if head.status_line.is_none() && head.line_at == 0 {
            // A few empty lines are looked past; more of them never become a status line.
            let start = head
                .bytes
                .iter()
                .take(8)
                .position(|byte| !matches!(byte, b'\r' | b'\n'));
            let first = start
                .and_then(|at| head.bytes.get(at..))
                .unwrap_or_default();
            if !status_line::may_be_http(first) {
                let kept = std::mem::take(&mut head.bytes);
                self.state = State::Foreign(kept);
                return (taken, None);
            }
        }
        if line_len.is_none() {
            self.cap_head();
            return (taken, None);
        }
        let event = self.end_line(request);
        self.cap_head();
        (taken, event)
    }

    /// Takes a head that is whole and breaks no rule. Returns its length.
    fn take_clean_head(&mut self, bytes: &[u8], request: RequestKind) -> Option<usize> {
        if request == RequestKind::Connect {
            return None;
        }
        let head = clean::response(bytes).filter(|head| head.len <= self.max_head_bytes)?;
        self.status = Some(head.status);
        self.event_stream = head.event_stream;
        self.taken += head.len as u64;
        self.begin_body(head.status, head.body, head.coding, request);
        Some(head.len)
    }

    /// What follows the head of a final response, in this content coding.
    fn begin_body(
        &mut self,
        status: u16,
        body: Body,
        coding: Option<Coding>,
        request: RequestKind,
    ) {
        let bodyless = request == RequestKind::Head || matches!(status, 204 | 304);
        if bodyless || body == Body::Length(0) {
            self.state = State::Idle;
            self.ended = true;
        } else {
            // A part begins anywhere.
            self.beginning = Beginning::of(coding.filter(|_| status != 206));
            self.state = State::Body(body);
        }
    }

    /// Keeps no more of a head than the cap.
    fn cap_head(&mut self) {
        if let State::Head(head) = &self.state
            && head.bytes.len() > self.max_head_bytes
        {
            self.state = State::Oversize(head.measure());
        }
    }

    /// Reads the line that was just completed.
    fn end_line(&mut self, request: RequestKind) -> Option<ResponseEvent> {
        let State::Head(head) = &mut self.state else {
            return None;
        };
        let line_at = head.line_at;
        head.line_at = head.bytes.len();
        let line = head
            .bytes
            .get(line_at..head.bytes.len().saturating_sub(1))
            .unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > head.longest.1 {
            head.longest = (line_at, line.len());
        }
        let broken: Option<(FindingKind, usize, Option<String>)>;
        let mut complete = false;
        if head.status_line.is_none() {
            if line.is_empty() {
                broken = Some((FindingKind::LeadingEmptyLine, line_at, None));
            } else {
                let read = status_line::parse(line);
                broken = read.finding.map(|(kind, at)| (kind, line_at + at, None));
                head.status_line = Some(read);
                self.status = read.status;
            }
        } else if line.is_empty() {
            complete = true;
            broken = None;
        } else {
            let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            let found = head.fields.line(line, line_at);
            broken = found.map(|(kind, at, header)| (kind, at, header.map(name)));
        }
        if let Some((kind, at, header)) = broken {
            let excerpt = context(line, at.saturating_sub(line_at));
            let fatal = kind.ends_framing();
            self.note(Finding {
                kind,
                offset: self.taken + at as u64,
                excerpt,
                header,
            });
            if fatal {
                self.state = State::Broken;
                return None;
            }
        }
        if complete {
            self.end_head(request)
        } else {
            None
        }
    }

    /// The response is complete; its findings and status stay until [`Self::reset`].
    fn end(&mut self) -> ResponseEvent {
        self.state = State::Done;
        ResponseEvent::End
    }

    /// The empty line was read: what follows?
    fn end_head(&mut self, request: RequestKind) -> Option<ResponseEvent> {
        let State::Head(head) = std::mem::replace(&mut self.state, State::Idle) else {
            return None;
        };
        let status_line = head.status_line.unwrap_or_default();
        let head_len = head.bytes.len() as u64;
        let status = status_line.status.unwrap_or(0);
        if let Some(finding) = head.measure().finding(self.taken) {
            self.note(finding);
        }
        if status == 101 {
            if request != RequestKind::Upgrade {
                self.note_head(FindingKind::SwitchUnasked, &head);
            }
            self.state = State::Tunnel;
            return Some(ResponseEvent::Head);
        }
        if (100..200).contains(&status) {
            // RFC 9110 section 15.2: any number of interim responses come before the final one.
            self.interim += 1;
            self.note_interim(status, request, &head);
            self.taken += head_len;
            return None;
        }
        if request == RequestKind::Connect && (200..300).contains(&status) {
            self.state = State::Tunnel;
            return Some(ResponseEvent::Head);
        }
        let (body, broken) = head.fields.framing(status_line.http10);
        // Another transfer coding lies around the content.
        let otherwise_coded = broken.is_some();
        if let Some((kind, at, header)) = broken {
            let line = head.bytes.get(at..).unwrap_or_default();
            let line = line
                .split(|byte| matches!(byte, b'\r' | b'\n'))
                .next()
                .unwrap_or_default();
            let excerpt = context(line, 0);
            let header = Some(header.to_owned());
            self.note(Finding {
                kind,
                offset: self.taken + at as u64,
                excerpt,
                header,
            });
        }
        if status == 204 {
            if head.fields.coded() {
                self.note_head(FindingKind::NoContentCoding, &head);
            } else if matches!(body, Body::Length(1..)) {
                self.note_head(FindingKind::NoContentLength, &head);
            }
        }
        self.event_stream = head.fields.event_stream;
        self.taken += head_len;
        let coding = head.fields.content_coding.filter(|_| !otherwise_coded);
        self.begin_body(status, body, coding, request);
        Some(ResponseEvent::Head)
    }

    /// Notes what the status of a head makes wrong, once.
    fn note_head(&mut self, kind: FindingKind, head: &Head) {
        if self.findings.iter().any(|finding| finding.kind == kind) {
            return;
        }
        let line = head.bytes.split(|byte| matches!(byte, b'\r' | b'\n'));
        let line = line.into_iter().find(|line| !line.is_empty());
        self.note(Finding {
            kind,
            offset: self.taken,
            excerpt: context(line.unwrap_or_default(), 0),
            header: None,
        });
    }

    fn note_interim(&mut self, status: u16, request: RequestKind, head: &Head) {
        match status {
            100 if request == RequestKind::Expect => {}
            103 => self.note_head(FindingKind::InterimHints, head),
            _ => self.note_head(FindingKind::Interim, head),
        }
        if self.interim > MANY_INTERIM {
            self.note_head(FindingKind::InterimMany, head);
        }
        if head.fields.coded() || matches!(head.fields.framing(false).0, Body::Length(1..)) {
            self.note_head(FindingKind::InterimLength, head);
        }
    }

    fn take_body(&mut self, bytes: &[u8]) -> (usize, Option<ResponseEvent>) {
        let State::Body(body) = &mut self.state else {
            return (0, None);
        };
        let (taken, beginning) = (self.taken, &mut self.beginning);
        match body.take_data(bytes, |at, data| beginning.take(taken + at as u64, data)) {
            BodyStep::More => {
                self.taken += bytes.len() as u64;
                // Only a chunked body can be found broken later.
                if matches!(body, Body::Chunked(_)) {
                    remember(&mut self.recent, bytes);
                }
                (bytes.len(), None)
            }
            BodyStep::End(taken) => {
                self.taken += taken as u64;
                (taken, Some(self.end()))
            }
            BodyStep::Broken { at, kind, ended } => {
                let (before, _) = bytes.split_at_checked(at + 1).unwrap_or((bytes, &[]));
                remember(&mut self.recent, before);
                let finding = Finding {
                    kind,
                    offset: self.taken + at as u64,
                    excerpt: self.recent.clone(),
                    header: None,
                };
                self.note(finding);
                self.taken += before.len() as u64;
                if kind.ends_framing() {
                    self.state = State::Broken;
                }
                if ended {
                    self.ended = true;
                }
                (before.len(), None)
            }
        }
    }
}

/// The bytes around a place in a line.
fn context(line: &[u8], at: usize) -> Vec<u8> {
    let from = at.saturating_sub(CONTEXT_BYTES);
    let to = line.len().min(at + CONTEXT_BYTES);
    line.get(from..to).unwrap_or_default().to_vec()
}

/// Keeps the last bytes of what was seen.
fn remember(recent: &mut Vec<u8>, bytes: &[u8]) {
    let tail = bytes
        .get(bytes.len().saturating_sub(CONTEXT_BYTES)..)
        .unwrap_or(bytes);
    recent.extend_from_slice(tail);
    let excess = recent.len().saturating_sub(CONTEXT_BYTES);
    recent.drain(..excess);
}
