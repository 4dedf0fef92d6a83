//! Requests to the upstream, as far as they name an exchange and tell where it begins and ends.
//!
//! A gateway wrote them, so nothing here judges them. What is no HTTP/1 request is left alone.

use core::mem::MaybeUninit;
use std::borrow::Cow;

use super::{Body, BodyStep, RequestKind, clean};

/// Longest request head that is kept to be parsed. Gateways cap what they pass on far below.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Fields that a request head may have before only its first line is read.
const MAX_FIELDS: usize = 200;

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
pub(super) struct Facts<'a> {
    texts: [Option<&'a [u8]>; TEXTS],
    upgrade: bool,
    web_socket: bool,
    expect: bool,
    body: Option<Body>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(method: &'a [u8], target: &'a [u8]) -> Self {
        let path = target.split(|byte| matches!(byte, b'?' | b'#')).next();
        Self {
            texts: [Some(method), Some(path.unwrap_or(target)), None, None, None],
            upgrade: false,
            web_socket: false,
            expect: false,
            body: None,
        }
    }

    /// Takes a field. Of those that are repeated the last counts.
    pub(super) fn field(&mut self, name: &[u8], value: &'a [u8]) {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.set(Text::Host, value),
            6 if name.eq_ignore_ascii_case(b"expect") => self.expect = true,
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade = true;
                self.web_socket = value.eq_ignore_ascii_case(b"websocket");
            }
            11 if name.eq_ignore_ascii_case(b"traceparent") => self.set(Text::Traceparent, value),
            12 if name.eq_ignore_ascii_case(b"x-request-id") => self.set(Text::RequestId, value),
            // RFC 9112 section 6.3: Transfer-Encoding overrides Content-Length.
            14 if name.eq_ignore_ascii_case(b"content-length") && self.body.is_none() => {
                let length = str::from_utf8(value)
                    .ok()
                    .and_then(|value| value.trim().parse().ok());
                self.body = length.filter(|&length| length > 0).map(Body::Length);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.body = Some(Body::chunked());
            }
            _ => {}
        }
    }

    fn set(&mut self, text: Text, value: &'a [u8]) {
        if let Some(place) = self.texts.get_mut(text as usize) {
            *place = Some(value);
        }
    }

    /// What is kept of the head, and the body that follows.
    fn keep(self) -> (RequestHead, Option<Body>) {
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
        let mut texts = Vec::with_capacity(cut.iter().flatten().map(|text| text.len()).sum());
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
                    && let Some((end, facts)) = clean::request(first, MAX_FIELDS)
                {
                    // Whole in one segment, as most are.
                    let (parsed, body) = facts.keep();
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
                    self.state = State::Opaque;
                    return (bytes.len(), Some(RequestEvent::Opaque(protocol)));
                }
                let Some(end) = head_end(head, known) else {
                    if head.len() >= MAX_HEAD_BYTES {
                        self.state = State::Lost;
                    }
                    return (bytes.len(), None);
                };
                let taken = end - known;
                let Some((parsed, body)) = head.get(..end).and_then(parse) else {
                    self.state = State::Opaque;
                    return (bytes.len(), Some(RequestEvent::Opaque(Protocol::Other)));
                };
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
        // RFC 9110 section 5.6.2: a method is a token. Real ones are letters, with a dash at most.
        _ => {
            let method = head.split(|&byte| byte == b' ').next().unwrap_or(head);
            let token = method
                .iter()
                .all(|byte| byte.is_ascii_alphabetic() || *byte == b'-');
            (!token || method.len() > 32).then_some(Protocol::Other)
        }
    }
}

/// Where the head that is being collected ends, looking again only at what is new.
fn head_end(head: &[u8], known: usize) -> Option<usize> {
    let from = known.saturating_sub(3);
    memchr::memchr_iter(b'\n', head.get(from..)?).find_map(|at| {
        let before = head.get(..from + at)?;
        (before.ends_with(b"\n\r") || before.ends_with(b"\n")).then_some(from + at + 1)
    })
}

/// Reads a complete head: what it says, and the body that follows.
fn parse(head: &[u8]) -> Option<(RequestHead, Option<Body>)> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(head, &mut fields);
    // With too many fields the request line is still good; the rest is left unknown.
    if !matches!(parsed, Ok(_) | Err(httparse::Error::TooManyHeaders)) {
        return None;
    }
    let mut facts = Facts::new(request.method?.as_bytes(), request.path?.as_bytes());
    for field in request.headers.iter() {
        facts.field(field.name.as_bytes(), field.value);
    }
    Some(facts.keep())
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
