//! Requests to the upstream, as far as they name an exchange and tell where it begins and ends.
//!
//! A gateway wrote them, so nothing here judges them. What is no HTTP/1 request is left alone.

use std::borrow::Cow;

use super::{Body, BodyStep, RequestKind, scan};

/// Longest request head that is kept to be parsed. Gateways cap what they pass on far below.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Longest name or path that an event carries.
const MAX_TEXT_BYTES: usize = 512;

/// What a gateway speaks to its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.x.
    Http1,
    /// TLS, whatever is inside.
    Tls,
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.4).
    Http2,
    /// Anything else, FastCGI for one.
    Other,
}

/// What is known of a request from its head. Its texts are kept as they came, in one allocation: few
/// are ever looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// One behind the other, each cut to [`MAX_TEXT_BYTES`].
    texts: Vec<u8>,
    /// Where each [`Text`] begins and ends, if there is one.
    places: [Option<(u16, u16)>; TEXTS],
    /// What the request asks of the response's framing.
    pub kind: RequestKind,
    /// Whether an upgrade to a web socket is asked for, for which there is no other answer.
    pub web_socket: bool,
}

impl RequestHead {
    /// Method.
    pub fn method(&self) -> Option<Cow<'_, str>> {
        self.text(Text::Method)
    }

    /// Path without its query.
    pub fn path(&self) -> Option<Cow<'_, str>> {
        self.text(Text::Path)
    }

    /// Host.
    pub fn host(&self) -> Option<Cow<'_, str>> {
        self.text(Text::Host)
    }

    /// X-Request-ID.
    pub fn request_id(&self) -> Option<Cow<'_, str>> {
        self.text(Text::RequestId)
    }

    /// W3C trace context.
    pub fn traceparent(&self) -> Option<Cow<'_, str>> {
        self.text(Text::Traceparent)
    }

    /// What the first bytes of a request say, however many there are of its head: the lines that are
    /// complete count. `None` where not even the request line is, or it is none of HTTP/1.
    pub fn of_start(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..MAX_HEAD_BYTES).unwrap_or(bytes);
        let mut spare = Vec::new();
        if let Some((_, facts)) = Facts::read(bytes) {
            return Some(facts.keep(&mut spare).0);
        }
        let end = memchr::memrchr(b'\n', bytes)? + 1;
        let mut whole = bytes.get(..end)?.to_vec();
        whole.extend_from_slice(b"\r\n");
        Some(Facts::read(&whole)?.1.keep(&mut spare).0)
    }

    fn text(&self, text: Text) -> Option<Cow<'_, str>> {
        let (from, to) = (*self.places.get(text as usize)?)?;
        let bytes = self.texts.get(usize::from(from)..usize::from(to))?;
        Some(String::from_utf8_lossy(bytes))
    }
}

/// The texts that are kept of a head.
#[derive(Clone, Copy)]
enum Text {
    Method,
    Path,
    Host,
    RequestId,
    Traceparent,
}

const TEXTS: usize = Text::Traceparent as usize + 1;

/// What a head says, while it is read.
struct Facts<'a> {
    texts: [Option<&'a [u8]>; TEXTS],
    upgrade: bool,
    web_socket: bool,
    expect: bool,
    body: Option<Body>,
}

impl<'a> Facts<'a> {
    /// Reads the complete head that `bytes` begin with: its length and what it says. `None` where none
    /// is complete and where the first line is no request line of HTTP/1.
    fn read(bytes: &'a [u8]) -> Option<(usize, Self)> {
        let mut rest = bytes;
        let mut facts = Self::request_line(line(&mut rest)?)?;
        loop {
            match line(&mut rest)? {
                [] => return Some((bytes.len() - rest.len(), facts)),
                line => facts.field(line),
            }
        }
    }

    fn request_line(line: &'a [u8]) -> Option<Self> {
        let (request, version) = line.split_last_chunk::<9>()?;
        let method_len = scan::find(request, |block| scan::byte(block, b' '))?;
        let (method, target) = request.split_at_checked(method_len)?;
        let target = target.get(1..).filter(|target| !target.is_empty())?;
        let plain = matches!(version, b" HTTP/1.1" | b" HTTP/1.0");
        if !plain || method.is_empty() || !is_method(method) {
            return None;
        }
        let path_len = scan::find(target, |block| {
            scan::control_or_space(block) | scan::byte(block, b'?') | scan::byte(block, b'#')
        });
        let (path, query) = target.split_at_checked(path_len.unwrap_or(target.len()))?;
        if scan::find(query, scan::control_or_space).is_some() {
            return None;
        }
        Some(Self {
            texts: [Some(method), Some(path), None, None, None],
            upgrade: false,
            web_socket: false,
            expect: false,
            body: None,
        })
    }

    /// Takes a field. Of those that are repeated the last counts.
    #[inline]
    fn field(&mut self, line: &'a [u8]) {
        // Most fields are of no interest, which their first letter tells.
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'h') => self.keep_value(Text::Host, value_of(line, b"host:")),
            Some(b'x') => self.keep_value(Text::RequestId, value_of(line, b"x-request-id:")),
            Some(b't') if value_of(line, b"transfer-encoding:").is_some() => {
                // RFC 9112 section 6.3: it overrides Content-Length.
                self.body = Some(Body::chunked());
            }
            Some(b't') => self.keep_value(Text::Traceparent, value_of(line, b"traceparent:")),
            Some(b'e') => self.expect |= value_of(line, b"expect:").is_some(),
            Some(b'u') => {
                if let Some(value) = value_of(line, b"upgrade:") {
                    self.upgrade = true;
                    self.web_socket = value.eq_ignore_ascii_case(b"websocket");
                }
            }
            Some(b'c') if self.body.is_none() => {
                if let Some(value) = value_of(line, b"content-length:") {
                    let length = str::from_utf8(value)
                        .ok()
                        .and_then(|value| value.parse().ok());
                    self.body = length.filter(|&length| length > 0).map(Body::Length);
                }
            }
            _ => {}
        }
    }

    fn keep_value(&mut self, text: Text, value: Option<&'a [u8]>) {
        if let Some(place) = self.texts.get_mut(text as usize) {
            *place = value.or(*place);
        }
    }

    /// What is kept of the head, in a buffer that is used again, and the body that follows.
    fn keep(self, spare: &mut Vec<u8>) -> (RequestHead, Option<Body>) {
        let kind = match self.texts.first() {
            Some(Some(b"HEAD")) => RequestKind::Head,
            Some(Some(b"CONNECT")) => RequestKind::Connect,
            _ if self.upgrade => RequestKind::Upgrade,
            _ if self.expect => RequestKind::Expect,
            _ => RequestKind::Plain,
        };
        let cut = self
            .texts
            .map(|text| text.map(|text| text.get(..MAX_TEXT_BYTES).unwrap_or(text)));
        let mut texts = std::mem::take(spare);
        texts.clear();
        texts.reserve_exact(cut.iter().flatten().map(|text| text.len()).sum());
        let places = cut.map(|text| {
            let from = u16::try_from(texts.len()).ok()?;
            texts.extend_from_slice(text?);
            Some((from, u16::try_from(texts.len()).ok()?))
        });
        let head = RequestHead {
            texts,
            places,
            kind,
            web_socket: self.web_socket,
        };
        (head, self.body)
    }
}

/// What a request made of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestEvent {
    /// The first byte of a request.
    Begin,
    /// Its head is complete.
    Head(RequestHead),
    /// It is complete.
    End,
    /// This is not HTTP/1; nothing more will be said of this direction.
    Opaque(Protocol),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Head(Vec<u8>),
    Body(Body),
    /// A gap swallowed bytes that frame the request.
    Lost,
    Opaque,
}

/// Follows the requests of a hop.
#[derive(Debug, Default)]
pub struct RequestParser {
    state: State,
    /// The head's last event is out, its end is not: a request without a body.
    ended: bool,
    /// The buffer of a head that nobody needs any more.
    spare: Vec<u8>,
}

impl RequestParser {
    /// Takes bytes. Returns how many were taken, and what happened behind the last of them; call
    /// again until all are taken and nothing happens.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, Option<RequestEvent>) {
        if std::mem::take(&mut self.ended) {
            self.state = State::Idle;
            return (0, Some(RequestEvent::End));
        }
        match &mut self.state {
            State::Opaque | State::Lost => (bytes.len(), None),
            State::Idle => match bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) {
                // RFC 9112 section 2.2: empty lines before a request are ignored.
                None => (bytes.len(), None),
                Some(at) => {
                    self.state = State::Head(Vec::new());
                    (at, Some(RequestEvent::Begin))
                }
            },
            State::Head(head) => {
                if head.is_empty()
                    && let Some(first) = bytes.get(..bytes.len().min(MAX_HEAD_BYTES))
                    && let Some((end, facts)) = Facts::read(first)
                {
                    // Whole in one segment, as most are.
                    let (parsed, body) = facts.keep(&mut self.spare);
                    match body {
                        Some(body) => self.state = State::Body(body),
                        None => self.ended = true,
                    }
                    return (end, Some(RequestEvent::Head(parsed)));
                }
                let known = head.len();
                let room = MAX_HEAD_BYTES.saturating_sub(known);
                head.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                if let Some(protocol) = foreign(head) {
                    let taken = head.len() - known;
                    self.spare = std::mem::take(head);
                    self.state = State::Opaque;
                    return (taken, Some(RequestEvent::Opaque(protocol)));
                }
                let Some(end) = head_end(head, known) else {
                    if head.len() >= MAX_HEAD_BYTES {
                        self.state = State::Lost;
                    }
                    return (bytes.len(), None);
                };
                let taken = end - known;
                let Some((_, facts)) = head.get(..end).and_then(Facts::read) else {
                    self.state = State::Opaque;
                    return (bytes.len(), Some(RequestEvent::Opaque(Protocol::Other)));
                };
                let (parsed, body) = facts.keep(&mut self.spare);
                match body {
                    Some(body) => self.state = State::Body(body),
                    None => self.ended = true,
                }
                (taken, Some(RequestEvent::Head(parsed)))
            }
            State::Body(body) => {
                let mut at = 0;
                loop {
                    let rest = bytes.get(at..).unwrap_or_default();
                    match body.take(rest) {
                        BodyStep::More => return (bytes.len(), None),
                        BodyStep::Broken {
                            at: broken,
                            kind,
                            ended: false,
                        } => {
                            if kind.ends_framing() {
                                self.state = State::Lost;
                                return (bytes.len(), None);
                            }
                            at += broken + 1;
                        }
                        BodyStep::Broken { at: last, .. } => {
                            self.state = State::Idle;
                            return (at + last + 1, Some(RequestEvent::End));
                        }
                        BodyStep::End(taken) => {
                            self.state = State::Idle;
                            return (at + taken, Some(RequestEvent::End));
                        }
                    }
                }
            }
        }
    }

    /// The head of a request that is nothing else: what [`Self::take`] makes of these bytes in several
    /// steps. `None`, with nothing done, where they are not certain to be one.
    pub fn whole(&mut self, bytes: &[u8]) -> Option<RequestHead> {
        let idle = matches!(self.state, State::Idle) && !self.ended;
        // Most methods with a P have a body.
        if !idle || bytes.len() > MAX_HEAD_BYTES || matches!(bytes, [b'P' | b'\r' | b'\n', ..]) {
            return None;
        }
        let (end, facts) = Facts::read(bytes)?;
        if end != bytes.len() || facts.body.is_some() {
            return None;
        }
        let (head, _) = facts.keep(&mut self.spare);
        Some(head)
    }

    /// Skips bytes that were not captured. Returns whether the request ended in them.
    pub fn skip(&mut self, bytes: u64) -> bool {
        match &mut self.state {
            State::Opaque | State::Lost => false,
            State::Idle | State::Head(_) => {
                self.state = State::Lost;
                false
            }
            State::Body(body) => match body.skip(bytes) {
                Ok(None) => false,
                Ok(Some(taken)) => {
                    self.state = if taken == bytes {
                        State::Idle
                    } else {
                        State::Lost
                    };
                    true
                }
                Err(_) => {
                    self.state = State::Lost;
                    false
                }
            },
        }
    }

    /// Takes out the first bytes of a direction that was just found to be no HTTP/1.
    pub fn take_opaque(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Takes a head that nobody needs any more: the next one may have its buffer.
    pub fn recycle(&mut self, head: RequestHead) {
        self.spare = head.texts;
    }

    /// Takes the buffer of a parser that nobody needs any more.
    pub fn reuse(&mut self, old: &mut Self) {
        self.spare = std::mem::take(&mut old.spare);
    }

    /// Bytes kept of an incomplete head.
    pub const fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Head(head) => head.capacity(),
            _ => 0,
        }
    }

    /// Whether a gap hides where the request in flight ends.
    pub const fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// Starts again with the next byte: the exchange that was lost is over.
    pub fn resume(&mut self) {
        if self.is_lost() {
            self.state = State::Idle;
        }
    }
}

/// The protocol of bytes that cannot begin an HTTP/1 request.
fn foreign(head: &[u8]) -> Option<Protocol> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
    match head {
        [0x16, 3, ..] => Some(Protocol::Tls),
        [0x16] => None,
        _ if head.starts_with(PREFACE) => Some(Protocol::Http2),
        _ => {
            let method = head.split(|&byte| byte == b' ').next().unwrap_or(head);
            (!is_method(method)).then_some(Protocol::Other)
        }
    }
}

/// RFC 9110 section 5.6.2: a method is a token. Real ones are letters, with a dash at most.
fn is_method(bytes: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    bytes.len() <= 32 && bytes.iter().all(letter)
}

/// Where the head that is being collected ends, looking again only at what is new.
fn head_end(head: &[u8], known: usize) -> Option<usize> {
    let from = known.saturating_sub(3);
    memchr::memchr_iter(b'\n', head.get(from..)?).find_map(|at| {
        let before = head.get(..from + at)?;
        (before.ends_with(b"\n\r") || before.ends_with(b"\n")).then_some(from + at + 1)
    })
}

/// The next complete line, without its end.
#[inline]
fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = scan::find(bytes, |block| scan::byte(block, b'\n'))?;
    let (line, rest) = bytes.split_at_checked(len)?;
    *bytes = rest.get(1..)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// The value of the field with this name, which is in lower case and has its colon.
#[inline]
fn value_of<'a, const N: usize>(line: &'a [u8], name: &[u8; N]) -> Option<&'a [u8]> {
    let (start, value) = line.split_first_chunk::<N>()?;
    scan::is_name(start, name).then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(parser: &mut RequestParser, mut bytes: &[u8]) -> Vec<RequestEvent> {
        let mut events = Vec::new();
        loop {
            let (taken, event) = parser.take(bytes);
            bytes = &bytes[taken..];
            match event {
                Some(event) => events.push(event),
                None if bytes.is_empty() => return events,
                None => assert!(taken > 0, "no progress"),
            }
        }
    }

    fn names(events: &[RequestEvent]) -> Vec<String> {
        let name = |event: &RequestEvent| match event {
            RequestEvent::Begin => "begin".to_owned(),
            RequestEvent::Head(head) => {
                let text = |text: Option<Cow<'_, str>>| text.unwrap_or_default().into_owned();
                format!("{} {}", text(head.method()), text(head.path()))
            }
            RequestEvent::End => "end".to_owned(),
            RequestEvent::Opaque(protocol) => format!("{protocol:?}"),
        };
        events.iter().map(name).collect()
    }

    const PIPELINE: &[u8] = b"GET /a?secret=1 HTTP/1.1\r\nHost: h\r\nX-Request-ID: r1\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz\
        PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";

    #[test]
    fn pipelined_requests_in_any_split() {
        let want = [
            "begin", "GET /a", "end", "begin", "POST /b", "end", "begin", "PUT /c", "end",
        ];
        for step in 1..PIPELINE.len() {
            let mut parser = RequestParser::default();
            let mut events = Vec::new();
            for piece in PIPELINE.chunks(step) {
                events.extend(run(&mut parser, piece));
            }
            assert_eq!(names(&events), want, "in pieces of {step}");
        }
    }

    #[test]
    fn a_head_names_the_exchange_without_its_query() {
        let events = run(&mut RequestParser::default(), PIPELINE);
        let RequestEvent::Head(head) = &events[1] else {
            panic!("{events:?}")
        };
        assert_eq!(head.host().as_deref(), Some("h"));
        assert_eq!(head.request_id().as_deref(), Some("r1"));
        assert_eq!(head.path().as_deref(), Some("/a"));
    }

    #[test]
    fn other_protocols_are_left_alone() {
        let opaque = |bytes: &[u8]| names(&run(&mut RequestParser::default(), bytes));
        assert_eq!(opaque(&[0x16, 3, 1, 2, 0, 1]), ["begin", "Tls"]);
        assert_eq!(
            opaque(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ["begin", "Http2"]
        );
        assert_eq!(opaque(&[1, 1, 0, 1, 0, 8]), ["begin", "Other"]);
    }

    #[test]
    fn a_gap_in_a_sized_body_is_skipped() {
        let mut parser = RequestParser::default();
        run(
            &mut parser,
            b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\nabc",
        );
        assert!(!parser.skip(900));
        assert!(parser.skip(97));
        assert_eq!(
            names(&run(&mut parser, b"GET /n HTTP/1.1\r\n\r\n")),
            ["begin", "GET /n", "end"]
        );
    }

    #[test]
    fn a_gap_in_a_head_is_lost_until_resumed() {
        let mut parser = RequestParser::default();
        run(&mut parser, b"GET / HT");
        assert!(!parser.skip(10));
        assert!(parser.is_lost());
        assert_eq!(run(&mut parser, b"GET / HTTP/1.1\r\n\r\n"), []);
        parser.resume();
        assert_eq!(
            names(&run(&mut parser, b"GET / HTTP/1.1\r\n\r\n")),
            ["begin", "GET /", "end"]
        );
    }
}
