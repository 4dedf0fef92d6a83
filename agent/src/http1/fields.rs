//! Field lines (RFC 9110 section 5, RFC 9112 section 5) and the framing they ask for (section 6.3).

use super::{Body, Coding, FindingKind};

/// Caps the framing fields that are kept: more of them say nothing new.
const MAX_FRAMING_VALUES: usize = 8;

/// What the fields of a response say about its framing, and the first broken rule of each line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    /// Field lines seen.
    pub(super) count: usize,
    content_length: Vec<Value>,
    transfer_encoding: Vec<Value>,
    /// Whether the media type is a stream of events that may be silent at will.
    pub(super) event_stream: bool,
    /// The content coding that was applied last, where its beginning is known.
    pub(super) content_coding: Option<Coding>,
}

/// A framing field's value and its offset in the head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    text: Vec<u8>,
    at: usize,
}

/// A broken rule, the place of its byte, and the name of the field.
pub(super) type Broken<'a> = (FindingKind, usize, Option<&'a [u8]>);

impl Fields {
    /// Reads one line without its LF and without the CR before that; `at` is its offset in the head.
    pub(super) fn line<'a>(&mut self, line: &'a [u8], at: usize) -> Option<Broken<'a>> {
        self.count += 1;
        if let Some(b' ' | b'\t') = line.first() {
            let first = self.count == 1;
            let kind = if first {
                FindingKind::FoldBeforeFirst
            } else {
                FindingKind::ObsoleteFold
            };
            return Some((kind, at, None));
        }
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            let status_line = line.starts_with(b"HTTP/1.");
            let kind = if status_line {
                FindingKind::SecondStatusLine
            } else {
                FindingKind::NoColon
            };
            return Some((kind, at, None));
        };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        let trimmed = name.trim_ascii_end();
        self.remember(trimmed, value, at + colon + 1);
        check_name(name, trimmed)
            .map(|(kind, bad)| (kind, at + bad, Some(trimmed)))
            .or_else(|| {
                check_value(value).map(|(kind, bad)| (kind, at + colon + 1 + bad, Some(name)))
            })
    }

    fn remember(&mut self, name: &[u8], value: &[u8], at: usize) {
        let indent = value.len() - value.trim_ascii_start().len();
        let kept = || Value {
            text: value.trim_ascii().to_vec(),
            at: at + indent,
        };
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.content_length.len() < MAX_FRAMING_VALUES {
                self.content_length.push(kept());
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.transfer_encoding.len() < MAX_FRAMING_VALUES {
                self.transfer_encoding.push(kept());
            }
        } else if name.eq_ignore_ascii_case(b"content-encoding") {
            self.content_coding = Coding::outermost(value);
        } else if name.eq_ignore_ascii_case(b"content-type") {
            let wanted = b"text/event-stream";
            self.event_stream = value
                .trim_ascii()
                .get(..wanted.len())
                .is_some_and(|kind| kind.eq_ignore_ascii_case(wanted));
        }
    }

    /// How the body of a response with these fields is framed, as a lenient reader takes it, and the
    /// first broken rule with its place and field name.
    pub(super) fn framing(
        &self,
        http10: bool,
    ) -> (Body, Option<(FindingKind, usize, &'static str)>) {
        const TE: &str = "Transfer-Encoding";
        let (length, broken_length) = self.length();
        let Some(first) = self.transfer_encoding.first() else {
            let broken = broken_length.map(|(kind, at)| (kind, at, "Content-Length"));
            return (length.map_or(Body::UntilClose, Body::Length), broken);
        };
        let codings: Vec<&[u8]> = self
            .transfer_encoding
            .iter()
            .flat_map(|value| value.text.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let framed = || length.map_or(Body::UntilClose, Body::Length);
        let (body, kind) = match codings.as_slice() {
            [[]] => (framed(), Some(FindingKind::CodingEmpty)),
            [one] if chunked(one) && http10 => (Body::chunked(), Some(FindingKind::CodingInHttp10)),
            [one] if chunked(one) => (
                Body::chunked(),
                self.content_length
                    .first()
                    .map(|_| FindingKind::LengthAndChunked),
            ),
            [one] if one.eq_ignore_ascii_case(b"identity") => {
                (framed(), Some(FindingKind::CodingUnsupported))
            }
            all if all.iter().all(chunked) => {
                let lines = self.transfer_encoding.len();
                let kind = if lines == all.len() {
                    FindingKind::CodingRepeated
                } else {
                    FindingKind::CodingListRepeated
                };
                (Body::chunked(), Some(kind))
            }
            [.., last] if chunked(last) => (Body::chunked(), Some(FindingKind::CodingUnsupported)),
            all if all.iter().any(|coding| {
                coding
                    .to_ascii_lowercase()
                    .windows(7)
                    .any(|part| part == b"chunked")
            }) =>
            {
                (Body::UntilClose, Some(FindingKind::CodingNotFinalChunked))
            }
            _ => (Body::UntilClose, Some(FindingKind::CodingUnsupported)),
        };
        (body, kind.map(|kind| (kind, first.at, TE)))
    }

    /// Whether there is a Transfer-Encoding.
    pub(super) const fn coded(&self) -> bool {
        !self.transfer_encoding.is_empty()
    }

    /// The Content-Length that a lenient reader takes, and what is wrong with it.
    fn length(&self) -> (Option<u64>, Option<(FindingKind, usize)>) {
        let mut lengths = Vec::new();
        for value in &self.content_length {
            for part in value.text.split(|&byte| byte == b',') {
                let part = part.trim_ascii();
                let digits = !part.is_empty() && part.iter().all(u8::is_ascii_digit);
                let number = str::from_utf8(part)
                    .ok()
                    .filter(|_| digits)
                    .and_then(|text| text.parse::<u64>().ok());
                match number {
                    Some(number) => lengths.push((number, value.at)),
                    None => return (None, Some((FindingKind::ContentLengthSyntax, value.at))),
                }
            }
        }
        let Some(&(first, at)) = lengths.first() else {
            return (None, None);
        };
        if let Some(&(_, other)) = lengths.iter().find(|(number, _)| *number != first) {
            return (None, Some((FindingKind::ContentLengthConflict, other)));
        }
        let kind = match (lengths.len(), self.content_length.len()) {
            (1, _) => None,
            (_, 1) => Some(FindingKind::ContentLengthList),
            _ => Some(FindingKind::ContentLengthRepeated),
        };
        (Some(first), kind.map(|kind| (kind, at)))
    }
}

/// RFC 9110 section 5.6.2: a field name is a token.
fn check_name(name: &[u8], trimmed: &[u8]) -> Option<(FindingKind, usize)> {
    if trimmed.is_empty() {
        return Some((FindingKind::EmptyName, 0));
    }
    for (at, &byte) in name.iter().enumerate() {
        let kind = match byte {
            0 => FindingKind::NameNul,
            b' ' if at >= trimmed.len() => FindingKind::SpaceBeforeColon,
            b'\t' if at >= trimmed.len() => FindingKind::TabBeforeColon,
            b' ' => FindingKind::SpaceInName,
            // A CR in the line that is not its end.
            b'\r' => FindingKind::BareCr,
            1..=0x1f | 0x7f => FindingKind::NameControl,
            0x80..=0xff => FindingKind::NameNonAscii,
            b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~' => continue,
            _ if byte.is_ascii_alphanumeric() => continue,
            _ => FindingKind::NameDelimiter,
        };
        return Some((kind, at));
    }
    None
}

/// RFC 9110 section 5.5: no control character but a tab.
fn check_value(value: &[u8]) -> Option<(FindingKind, usize)> {
    let bad = value
        .iter()
        .position(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f)?;
    let kind = match value.get(bad)? {
        0 => FindingKind::ValueNul,
        b'\r' if bad + 1 == value.len() => FindingKind::DoubleCr,
        b'\r' => FindingKind::BareCr,
        _ => FindingKind::ValueControl,
    };
    Some((kind, bad))
}
