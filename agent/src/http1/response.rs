//! Responses from the upstream: incremental, strict in what it notes, lenient in how it goes on, so
//! that a gateway that tolerates a fault is followed to the response's end.

use super::body::{Body, BodyStep};
use super::fields::Fields;
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

/// What the request was, as far as it frames the response (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestKind {
    /// Its response may have a body.
    #[default]
    Plain,
    /// HEAD: its response has none.
    Head,
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

#[derive(Debug)]
enum State {
    Idle,
    Head(Head),
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
    max_head_bytes: usize,
}

impl ResponseParser {
    /// A parser that keeps heads up to `max_head_bytes`.
    pub const fn new(max_head_bytes: usize) -> Self {
        Self {
            state: State::Idle,
            taken: 0,
            findings: Vec::new(),
            status: None,
            interim: 0,
            event_stream: false,
            ended: false,
            recent: Vec::new(),
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
            State::Head(_) => Stage::Head,
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
        if let State::Foreign(bytes) = &self.state {
            let finding = Finding {
                kind: status_line::foreign(bytes),
                offset: self.taken,
                excerpt: bytes.iter().copied().take(2 * CONTEXT_BYTES).collect(),
                header: None,
            };
            return self.findings.iter().cloned().chain([finding]).collect();
        }
        self.findings.clone()
    }

    /// Whether any rule is broken so far.
    pub const fn is_broken(&self) -> bool {
        !self.findings.is_empty() || matches!(self.state, State::Foreign(_))
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
                self.state = State::Head(Head::default());
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
            State::Head(_) => self.take_head(bytes, request),
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
        match &mut self.state {
            State::Idle if self.taken == 0 => {
                self.state = State::Lost;
                (bytes, Some(ResponseEvent::Begin))
            }
            State::Idle | State::Head(_) => {
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
        match self.state {
            State::Body(Body::Length(left)) => left > bytes,
            State::Body(Body::UntilClose) => true,
            _ => false,
        }
    }

    /// Moves past such bytes. Returns false, with nothing done, for any other.
    pub fn pass(&mut self, bytes: u64) -> bool {
        match &mut self.state {
            State::Body(Body::Length(left)) if *left > bytes => *left -= bytes,
            State::Body(Body::UntilClose) => {}
            _ => return false,
        }
        self.taken += bytes;
        true
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
        if head.bytes.len() > self.max_head_bytes {
            self.state = State::Lost;
            return (taken, None);
        }
        if line_len.is_none() {
            return (taken, None);
        }
        let event = self.end_line(request);
        (taken, event)
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
        if status == 101 {
            self.state = State::Tunnel;
            return Some(ResponseEvent::Head);
        }
        if (100..200).contains(&status) {
            // RFC 9110 section 15.2: any number of interim responses come before the final one.
            self.interim += 1;
            self.taken += head_len;
            return None;
        }
        let (body, broken) = head.fields.framing(status_line.http10);
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
        self.event_stream = head.fields.event_stream;
        self.taken += head_len;
        let bodyless = request == RequestKind::Head || matches!(status, 204 | 304);
        if bodyless || body == Body::Length(0) {
            self.ended = true;
        } else {
            self.state = State::Body(body);
        }
        Some(ResponseEvent::Head)
    }

    fn take_body(&mut self, bytes: &[u8]) -> (usize, Option<ResponseEvent>) {
        let State::Body(body) = &mut self.state else {
            return (0, None);
        };
        match body.take(bytes) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happened, one word each, with the bytes taken before it.
    fn run(parser: &mut ResponseParser, mut bytes: &[u8], out: &mut Vec<String>) {
        loop {
            let (taken, event) = parser.take(bytes, RequestKind::Plain);
            bytes = &bytes[taken..];
            match event {
                Some(ResponseEvent::End) => {
                    let kinds: Vec<_> = parser
                        .findings()
                        .iter()
                        .map(|found| (found.kind, found.offset))
                        .collect();
                    out.push(format!("end {:?} {kinds:?}", parser.status()));
                    parser.reset();
                }
                Some(event) => out.push(format!("{event:?}")),
                None if bytes.is_empty() => return,
                None => assert!(taken > 0, "no progress"),
            }
        }
    }

    fn whole(bytes: &[u8]) -> (Vec<String>, ResponseParser) {
        let mut parser = ResponseParser::new(65_536);
        let mut out = Vec::new();
        run(&mut parser, bytes, &mut out);
        (out, parser)
    }

    fn first_finding(bytes: &[u8]) -> Finding {
        let mut parser = ResponseParser::new(65_536);
        let mut bytes = bytes;
        while parser.findings().is_empty() && !bytes.is_empty() {
            let (taken, _) = parser.take(bytes, RequestKind::Plain);
            bytes = &bytes[taken..];
        }
        parser.findings().into_iter().next().expect("a finding")
    }

    #[test]
    fn framing_of_healthy_responses() {
        let (out, parser) =
            whole(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 204 No\r\n\r\n");
        assert_eq!(
            out,
            [
                "Begin",
                "Head",
                "end Some(200) []",
                "Begin",
                "Head",
                "end Some(204) []"
            ]
        );
        assert_eq!(parser.stage(), Stage::Idle);
        let (out, _) =
            whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(out, ["Begin", "Head", "end Some(200) []"]);
        let (out, parser) = whole(b"HTTP/1.0 200 OK\r\n\r\nuntil close");
        assert_eq!(out, ["Begin", "Head"]);
        assert_eq!(parser.stage(), Stage::BodyUntilClose);
    }

    #[test]
    fn interim_responses_come_before_the_final_one() {
        let (out, _) = whole(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(out, ["Begin", "Head", "end Some(200) []"]);
    }

    #[test]
    fn a_response_to_head_has_no_body() {
        let mut parser = ResponseParser::new(65_536);
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let mut at = 0;
        let mut events = Vec::new();
        loop {
            let (taken, event) = parser.take(&bytes[at..], RequestKind::Head);
            at += taken;
            match event {
                Some(event) => events.push(event),
                None if at == bytes.len() => break,
                None => {}
            }
        }
        assert_eq!(
            events,
            [
                ResponseEvent::Begin,
                ResponseEvent::Head,
                ResponseEvent::End
            ]
        );
    }

    #[test]
    fn a_finding_names_byte_offset_and_header() {
        let found = first_finding(b"HTTP/1.1 200 OK\r\nA: b\r\nX-Bad : c\r\n\r\n");
        assert_eq!(found.kind, FindingKind::SpaceBeforeColon);
        assert_eq!(found.offset, 28);
        assert_eq!(found.header.as_deref(), Some("X-Bad"));
        assert_eq!(found.excerpt, b"X-Bad : c");
        let found = first_finding(b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello");
        assert_eq!(
            (found.kind, found.offset),
            (FindingKind::ContentLengthSyntax, 33)
        );
        assert_eq!(found.excerpt, b"0x5");
        let found =
            first_finding(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!");
        assert_eq!((found.kind, found.offset), (FindingKind::ChunkDataEnd, 55));
        assert_eq!(found.excerpt, b"5\r\nhello!");
    }

    #[test]
    fn a_gap_in_a_sized_body_is_skipped_and_in_a_head_is_not() {
        let (_, mut parser) = whole(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
        assert_eq!(parser.skip(90), (90, None));
        assert_eq!(parser.skip(50), (7, Some(ResponseEvent::End)));
        let (_, mut parser) = whole(b"HTTP/1.1 200 OK\r\nContent-Le");
        assert_eq!(parser.skip(5), (5, None));
        assert_eq!(parser.stage(), Stage::Lost);
    }

    #[test]
    fn a_head_above_the_cap_is_lost_not_kept() {
        let mut parser = ResponseParser::new(100);
        let mut out = Vec::new();
        run(&mut parser, b"HTTP/1.1 200 OK\r\n", &mut out);
        run(&mut parser, &[b'x'; 200], &mut out);
        assert_eq!(parser.stage(), Stage::Lost);
        assert!(parser.partial_head().is_empty());
    }

    proptest! {
        /// The same bytes in any split give the same events and findings.
        #[test]
        fn split_invariance(
            line in prop::sample::select(&["HTTP/1.1 200 OK", "HTTP/1.1  2x", "http/1.1 200", "SSH-2.0-x", "\r\nHTTP/1.1 20"][..]),
            fields in prop::collection::vec(prop::sample::select(&[
                "Content-Length: 4", "Content-Length: 5", "Transfer-Encoding: chunked", "A: b", "A : b", " fold", "no colon", "X\0: a",
            ][..]), 0..4),
            body in prop::sample::select(&["hello", "4\r\nabcd\r\n0\r\n\r\n", "4;x=y\nabcd\r\n0\r\nT: t\r\n\r\n", "zz\r\n", " 4\r\nabcdXY"][..]),
            cuts in prop::collection::vec(0_usize..200, 0..12),
        ) {
            let mut head = vec![line];
            head.extend(fields);
            let bytes = format!("{}\r\n\r\n{body}", head.join("\r\n"));
            let bytes = bytes.as_bytes();
            let (want, want_parser) = whole(bytes);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut parser = ResponseParser::new(65_536);
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                run(&mut parser, &bytes[pair[0]..pair[1]], &mut out);
            }
            prop_assert_eq!(out, want);
            prop_assert_eq!(parser.findings(), want_parser.findings());
            prop_assert_eq!(parser.stage(), want_parser.stage());
        }

        /// Nothing from the wire panics.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), gap in 0_u64..50) {
            let (_, mut parser) = whole(&bytes);
            parser.skip(gap);
            run(&mut parser, &bytes, &mut Vec::new());
        }
    }
}
