//! Response heads that lie whole in one piece and break no rule: read where they are, in one pass.
//!
//! Nearly every head is one. What is not certain to be one is left to the careful readers, which keep,
//! check and name; of a head that is read here they would say the same. Splitting a stream turns this
//! reader off, so the tests that compare splits compare the two.

use super::Body;
use super::coding::Coding;
use super::scan;

/// A response head longer than this, or with more fields, may be above what some gateway takes
/// ([`super::GATEWAYS`]): that is for the careful reader to tell.
const MAX_RESPONSE_BYTES: usize = 4000;
const MAX_RESPONSE_FIELDS: usize = 60;

/// What a response head says.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseHead {
    /// Its length.
    pub(super) len: usize,
    pub(super) status: u16,
    pub(super) body: Body,
    /// Whether the media type is a stream of events.
    pub(super) event_stream: bool,
    /// The content coding that was applied last, where its beginning is known.
    pub(super) coding: Option<Coding>,
}

/// Reads the head of a final response at the start of `bytes`.
pub(super) fn response(bytes: &[u8]) -> Option<ResponseHead> {
    let bytes = bytes.get(..MAX_RESPONSE_BYTES).unwrap_or(bytes);
    let (line, rest) = bytes.split_first_chunk::<12>()?;
    let http10 = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', ..] => false,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', b' ', ..] => true,
        _ => return None,
    };
    let status = match line {
        [.., a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] => [a, b, c]
            .iter()
            .fold(0, |sum, digit| sum * 10 + u16::from(**digit - b'0')),
        _ => return None,
    };
    if !matches!(rest.first(), Some(b' ' | b'\r')) {
        return None;
    }
    let mut lines = Lines(rest);
    lines.line()?;
    let mut length = None;
    let mut chunked = false;
    let mut event_stream = false;
    let mut coding = None;
    for _ in 0..=MAX_RESPONSE_FIELDS {
        if lines.end() {
            let body = match (length, chunked) {
                (None, false) => Body::UntilClose,
                (Some(length), false) => Body::Length(length),
                (None, true) if !http10 => Body::chunked(),
                _ => return None,
            };
            if status == 204 && !matches!(body, Body::UntilClose | Body::Length(0)) {
                return None;
            }
            return Some(ResponseHead {
                len: bytes.len() - lines.0.len(),
                status,
                body,
                event_stream,
                coding,
            });
        }
        let (name, value) = lines.field()?;
        if is(name, b"content-type") {
            let wanted = b"text/event-stream";
            event_stream = trimmed(value)
                .first_chunk()
                .is_some_and(|kind| scan::is_name(kind, wanted));
        } else if is(name, b"content-length") {
            length = match length {
                None => Some(number(trimmed(value))?),
                Some(_) => return None,
            };
        } else if is(name, b"content-encoding") {
            coding = Coding::outermost(trimmed(value));
        } else if is(name, b"transfer-encoding") {
            if chunked || !is(trimmed(value), b"chunked") {
                return None;
            }
            chunked = true;
        }
    }
    None
}

/// The lines of a head that were not read yet.
struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    /// The bytes up to CRLF; `None` where another control character comes before.
    #[inline]
    fn line(&mut self) -> Option<&'a [u8]> {
        let (line, rest) = self.0.split_at_checked(control_at(self.0)?)?;
        self.0 = rest.strip_prefix(b"\r\n")?;
        Some(line)
    }

    /// Moves past the empty line that ends a head, where it is next.
    #[inline]
    fn end(&mut self) -> bool {
        let rest = self.0.strip_prefix(b"\r\n");
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// The name of a field and its value with the spaces around it.
    #[inline]
    fn field(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (name, rest) = self.0.split_at_checked(token_len(self.0))?;
        if name.is_empty() {
            return None;
        }
        self.0 = rest.strip_prefix(b":")?;
        Some((name, self.line()?))
    }
}

/// Whether `text` is this name, in letters of any case.
#[inline]
fn is<const N: usize>(text: &[u8], name: &[u8; N]) -> bool {
    <&[u8; N]>::try_from(text).is_ok_and(|text| scan::is_name(text, name))
}

/// A value of [`Lines::field`] without the spaces around it. Of white space only the space is no control
/// character.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' '] = value {
        value = rest;
    }
    value
}

/// A number of few enough digits to fit.
fn number(digits: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| number * 10 + u64::from(digit))
    })
}

/// Where the first control character is, a tab included.
#[inline]
fn control_at(bytes: &[u8]) -> Option<usize> {
    scan::find(bytes, scan::control)
}

/// The length of the token that `bytes` begin with. It is looked for among letters, digits and dashes
/// first, of which nearly all consist.
#[inline]
fn token_len(bytes: &[u8]) -> usize {
    let len = scan::find(bytes, scan::not_of_word).unwrap_or(bytes.len());
    let rest = bytes.get(len..).unwrap_or_default();
    let more = rest.iter().position(|byte| !is_token(*byte));
    len + more.unwrap_or(rest.len())
}

/// RFC 9110 section 5.6.2.
const fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte.is_ascii() {
            table[byte as usize] = byte.is_ascii_alphanumeric()
                || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
            byte += 1;
        }
        table
    };
    TOKEN[byte as usize]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http1::{
        GATEWAYS, RequestEvent, RequestKind, RequestParser, ResponseEvent, ResponseParser,
    };

    #[test]
    fn its_limits_are_below_those_of_every_gateway() {
        for gateway in GATEWAYS {
            assert!((MAX_RESPONSE_BYTES as u64) < gateway.head.bytes.min(gateway.head.line));
            assert!((MAX_RESPONSE_FIELDS as u64) < gateway.head.fields);
        }
    }

    #[test]
    fn the_first_control_character_is_found_wherever_it_is() {
        for control in (0..0x20).chain([0x7f]) {
            for at in 0..20 {
                let mut bytes = *b" ~\xff\x80a plain line\xa0...";
                bytes[at] = control;
                assert_eq!(control_at(&bytes), Some(at), "{control:#x}");
                assert_eq!(control_at(&bytes[..at]), None);
            }
        }
    }

    #[test]
    fn ordinary_heads_are_read_here() {
        let head = b"HTTP/1.1 200 OK\r\nServer: a/1 (b)\r\nContent-Length: 12\r\n\r\nhello";
        let read = response(head).expect("a clean head");
        assert_eq!((read.len, read.status), (head.len() - 5, 200));
        assert_eq!(read.body, Body::Length(12));
    }

    #[test]
    fn a_token_ends_at_the_first_byte_that_is_none() {
        for end in 0..=u8::MAX {
            for at in 0..20 {
                let mut bytes = *b"X-Re_quest~Id-0aAzZ9";
                bytes[at] = end;
                let want = if is_token(end) { bytes.len() } else { at };
                assert_eq!(token_len(&bytes), want, "{end:#x} at {at}");
            }
        }
    }

    /// Parts of heads, from which most combinations are broken in some way.
    const PARTS: &[&str] = &[
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 204 No\r\n",
        "HTTP/1.1 304\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "http/1.1 200 OK\r\n",
        "GET /a?b HTTP/1.1\r\n",
        "HEAD http://h/ HTTP/1.0\r\n",
        "PRI * HTTP/2.0\r\n",
        "M-SEARCH * HTTP/1.1\r\n",
        "Content-Length: 5\r\n",
        "content-length:  007 \r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5, 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding: gzip, Chunked\r\n",
        "Content-Type: text/event-stream; x=y\r\n",
        "Content-Type:\r\n",
        "Host: h\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: WebSocket\r\n",
        "X-Request-ID: \t1 \r\n",
        "traceparent: 00-\u{e9}\r\n",
        " folded\r\n",
        "Bad Name: x\r\n",
        "Late : x\r\n",
        ": empty\r\n",
        "No colon\r\n",
        "A: \u{1}\r\n",
        "A: b\n",
        "A: b\rc\r\n",
        "\r\n",
        "\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "hello",
    ];

    fn parts() -> impl Strategy<Value = Vec<u8>> {
        let part = proptest::sample::select(PARTS);
        proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat().into_bytes())
    }

    /// Heads as they are, and what a few wrong bytes make of them.
    const HEADS: &[&str] = &[
        "HTTP/1.1 200 OK\r\nServer: a\r\nContent-Type: text/html\r\nContent-Length: 5\r\nX-Cache: HIT\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\nhello",
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        "GET /a?b=c HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: x\r\nX-Request-ID: 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT /a HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ];

    const BYTES: &[u8] = b"\0\t\n\r !\"(),0159:;=AZ_az\x7f\x80\xff";

    fn mutated() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![proptest::sample::select(BYTES), any::<u8>()];
        let edit = (any::<proptest::sample::Index>(), 0..4, byte);
        let edits = proptest::collection::vec(edit, 0..4);
        (proptest::sample::select(HEADS), edits).prop_map(|(head, edits)| {
            let mut bytes = head.as_bytes().to_vec();
            for (at, what, byte) in edits {
                let at = at.index(bytes.len());
                match what {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 if bytes.len() > 1 => _ = bytes.remove(at),
                    // A line, or a part of it, once more.
                    _ => {
                        let end = (at + usize::from(byte % 40)).min(bytes.len());
                        let again = bytes[at..end].to_vec();
                        bytes.splice(at..at, again);
                    }
                }
            }
            bytes
        })
    }

    /// What a parser makes of bytes that come in pieces of `step`.
    fn responses(bytes: &[u8], kind: RequestKind, step: usize) -> Vec<String> {
        let mut parser = ResponseParser::new(65_536);
        let mut out = Vec::new();
        let state = |parser: &ResponseParser| {
            let (stage, status, missing) = (parser.stage(), parser.status(), parser.missing());
            let (stream, findings) = (parser.event_stream(), parser.findings());
            format!("{stage:?} {status:?} {missing:?} {stream} {findings:?}")
        };
        for mut piece in bytes.chunks(step) {
            loop {
                let (taken, event) = parser.take(piece, kind);
                piece = &piece[taken..];
                match event {
                    None if piece.is_empty() => break,
                    None => {}
                    Some(event) => out.push(format!("{event:?} {}", state(&parser))),
                }
                if event == Some(ResponseEvent::End) {
                    parser.reset();
                }
            }
        }
        out.push(state(&parser));
        out
    }

    fn requests(bytes: &[u8], step: usize) -> Vec<RequestEvent> {
        let mut parser = RequestParser::default();
        let mut out = Vec::new();
        for mut piece in bytes.chunks(step) {
            loop {
                let (taken, event) = parser.take(piece);
                piece = &piece[taken..];
                match event {
                    None if piece.is_empty() => break,
                    None => {}
                    Some(event) => out.push(event),
                }
            }
        }
        out
    }

    proptest! {
        /// Heads byte by byte never come here.
        #[test]
        fn the_careful_readers_say_the_same(bytes in prop_oneof![parts(), mutated()], kind in 0_usize..5) {
            let kind = [
                RequestKind::Plain,
                RequestKind::Head,
                RequestKind::Expect,
                RequestKind::Upgrade,
                RequestKind::Connect,
            ][kind];
            let whole = bytes.len().max(1);
            prop_assert_eq!(responses(&bytes, kind, whole), responses(&bytes, kind, 1));
            prop_assert_eq!(requests(&bytes, whole), requests(&bytes, 1));
        }
    }
}
