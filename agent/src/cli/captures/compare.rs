//! Two responses side by side: status line, header fields, framing.
//!
//! Decides what counts as a difference: the order of fields and the case of their names do not, as
//! for a recipient (RFC 9110 section 5.3); each broken rule marks the byte that breaks it. Leaves
//! layout to [`super::sheet`].

use crate::http1::{Finding, Stage};

use super::exchange::{End, Exchange};

/// Bytes shown on either side of a marked one in a body.
const CONTEXT: usize = 24;

/// Bytes of a response's beginning that stand for a status line where it has none.
const NO_LINE: usize = 64;

/// One line of a response and the bytes in it that break a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Without its end.
    pub(super) bytes: Vec<u8>,
    pub(super) marks: Vec<Mark>,
}

/// A byte that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its place in the line; the line's length where the rule is broken by what is not there.
    pub(super) at: usize,
    /// Its place in the response.
    pub(super) offset: u64,
    /// The rule.
    pub(super) rule: &'static str,
}

/// A header field that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// As the first side that has it writes it; empty for a line without a name.
    pub(super) name: String,
    pub(super) failing: Vec<Line>,
    pub(super) healthy: Vec<Line>,
}

/// How a response was framed and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Framing {
    /// In words.
    pub(super) text: String,
    /// What broke it, if its bytes did.
    pub(super) broken: Vec<Line>,
}

/// Two responses side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) failing_status: Option<Line>,
    pub(super) healthy_status: Option<Line>,
    /// Fields that differ, in the order in which the failing side has them, then the healthy side.
    pub(super) fields: Vec<Field>,
    /// Fields that do not.
    pub(super) same_fields: usize,
    pub(super) failing_framing: Framing,
    pub(super) healthy_framing: Framing,
}

/// Puts a failing response beside a healthy one.
pub(super) fn compare(failing: &Exchange, healthy: &Exchange) -> Comparison {
    let (failing_parts, healthy_parts) = (Parts::new(failing), Parts::new(healthy));
    let mut comparison = Comparison {
        failing_status: failing_parts.status,
        healthy_status: healthy_parts.status,
        fields: Vec::new(),
        same_fields: 0,
        failing_framing: Framing {
            text: framing(failing),
            broken: failing_parts.broken,
        },
        healthy_framing: Framing {
            text: framing(healthy),
            broken: healthy_parts.broken,
        },
    };
    let mut healthy = group(healthy_parts.fields);
    for (name, lines) in group(failing_parts.fields) {
        let place = healthy
            .iter()
            .position(|(other, _)| other.eq_ignore_ascii_case(&name));
        let others = place.map(|place| healthy.remove(place).1);
        let others = others.unwrap_or_default();
        if same(&lines, &others) {
            comparison.same_fields += 1;
        } else {
            comparison.fields.push(Field {
                name,
                failing: lines,
                healthy: others,
            });
        }
    }
    let rest = healthy.into_iter().map(|(name, lines)| Field {
        name,
        failing: Vec::new(),
        healthy: lines,
    });
    comparison.fields.extend(rest);
    comparison
}

/// Whether two groups of field lines say the same, and neither breaks a rule.
fn same(failing: &[Line], healthy: &[Line]) -> bool {
    failing.len() == healthy.len()
        && failing.iter().zip(healthy).all(|(a, b)| {
            let unmarked = a.marks.is_empty() && b.marks.is_empty();
            let (a, b) = (value(&a.bytes), value(&b.bytes));
            unmarked && (a == b || is_masked(a) && is_masked(b))
        })
}

/// Whether a value was a secret, of which a capture keeps nothing but its length.
fn is_masked(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|byte| *byte == b'*')
}

/// The lines of a response by level.
#[derive(Debug, Default)]
struct Parts {
    status: Option<Line>,
    fields: Vec<Line>,
    /// Lines before the final head and places behind it that break a rule.
    broken: Vec<Line>,
}

impl Parts {
    fn new(exchange: &Exchange) -> Self {
        let bytes = exchange.response.as_slice();
        let mut unplaced = exchange.findings.clone();
        // Broken lines before the final head.
        let mut before = Vec::new();
        // Without a final head, everything that looks like lines is taken for one.
        let known = exchange.head.map(|head| head.to);
        let head_end = known.unwrap_or(bytes.len());
        let foreign = known.is_none() && !bytes.trim_ascii_start().starts_with(b"HTTP");
        let mut status: Option<Line> = None;
        let mut fields = Vec::new();
        let mut at = 0;
        while !foreign && at < head_end {
            let raw = line_at(bytes, at, head_end);
            let next = at + raw.len();
            let text = raw.get(..line_end(raw)).unwrap_or_default();
            let line = Line {
                marks: marks(&mut unplaced, at, next),
                bytes: text.to_vec(),
            };
            at = next;
            let Some(first) = &status else {
                if !text.is_empty() {
                    status = Some(line);
                } else if !line.marks.is_empty() {
                    let bytes = raw.to_vec();
                    before.push(Line { bytes, ..line });
                }
                continue;
            };
            if !text.is_empty() {
                fields.push(line);
            } else if known.is_some_and(|to| at < to) || is_interim(&first.bytes) {
                // An interim response makes room for the next.
                fields.clear();
                before.extend(status.take().filter(|line| !line.marks.is_empty()));
            } else {
                break;
            }
        }
        if status.is_none() && !bytes.is_empty() {
            let shown = bytes.get(..NO_LINE).unwrap_or(bytes);
            status = Some(Line {
                marks: marks(&mut unplaced, 0, shown.len()),
                bytes: shown.to_vec(),
            });
        }
        let body = known.unwrap_or_default();
        let behind = unplaced.iter().map(|finding| around(bytes, body, finding));
        Self {
            status,
            fields,
            broken: before.into_iter().chain(behind).collect(),
        }
    }
}

/// The line that begins at `at`, with its end.
fn line_at(bytes: &[u8], at: usize, end: usize) -> &[u8] {
    let rest = bytes.get(at..end).unwrap_or_default();
    let len = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
    rest.get(..len).unwrap_or_default()
}

/// Length of a line without its end.
fn line_end(line: &[u8]) -> usize {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line).len()
}

fn is_interim(status_line: &[u8]) -> bool {
    let mut words = status_line.split(|byte| *byte == b' ');
    let code = words.nth(1).unwrap_or_default();
    matches!(code, [b'1', _, _]) && code != b"101"
}

/// Takes the findings in the line from `at` to `next`.
fn marks(unplaced: &mut Vec<Finding>, at: usize, next: usize) -> Vec<Mark> {
    let inside = |finding: &Finding| (at as u64..next as u64).contains(&finding.offset);
    let taken = unplaced.extract_if(.., |finding| inside(finding));
    taken
        .map(|finding| Mark {
            at: usize::try_from(finding.offset)
                .unwrap_or_default()
                .saturating_sub(at),
            offset: finding.offset,
            rule: finding.kind.text(),
        })
        .collect()
}

/// The bytes around a finding in the body, or those kept with it where these were not captured.
fn around(bytes: &[u8], body: usize, finding: &Finding) -> Line {
    let at = usize::try_from(finding.offset).unwrap_or(usize::MAX);
    let from = at.saturating_sub(CONTEXT).max(body.min(at));
    let to = at.saturating_add(CONTEXT).min(bytes.len());
    let (shown, place) = match bytes.get(from..to) {
        Some(shown) if at < bytes.len() => (shown, at - from),
        _ => (
            finding.excerpt.as_slice(),
            finding.excerpt.len().saturating_sub(1),
        ),
    };
    Line {
        bytes: shown.to_vec(),
        marks: vec![Mark {
            at: place,
            offset: finding.offset,
            rule: finding.kind.text(),
        }],
    }
}

/// Field lines by name, in the order of each name's first line.
fn group(lines: Vec<Line>) -> Vec<(String, Vec<Line>)> {
    let mut groups: Vec<(String, Vec<Line>)> = Vec::new();
    for line in lines {
        let name = name(&line.bytes);
        let known = groups
            .iter_mut()
            .find(|(known, _)| known.eq_ignore_ascii_case(&name));
        match known {
            Some((_, lines)) => lines.push(line),
            None => groups.push((name, vec![line])),
        }
    }
    groups
}

fn name(line: &[u8]) -> String {
    let colon = memchr::memchr(b':', line).unwrap_or_default();
    let name = line.get(..colon).unwrap_or_default();
    String::from_utf8_lossy(name.trim_ascii_end()).into_owned()
}

fn value(line: &[u8]) -> &[u8] {
    let after = memchr::memchr(b':', line).map_or(0, |colon| colon + 1);
    line.get(after..).unwrap_or_default().trim_ascii()
}

/// How a response was framed, how much of it came, and what ended it.
fn framing(exchange: &Exchange) -> String {
    let Some(stage) = exchange.stage.filter(|_| exchange.wire_bytes > 0) else {
        return ended("no response byte".to_owned(), exchange.end);
    };
    let Some(head) = exchange.head else {
        let bytes = exchange.wire_bytes;
        let what = match stage {
            Stage::Broken => format!("{bytes} bytes without the end of a head"),
            Stage::Lost => format!("{bytes} bytes, the head not captured whole"),
            _ => format!("{bytes} bytes of an incomplete head"),
        };
        return ended(what, exchange.end);
    };
    let body = exchange
        .wire_bytes
        .saturating_sub(head.to as u64)
        .saturating_sub(exchange.surplus);
    let framed = match head.framing {
        Stage::SizedBody => "Content-Length",
        Stage::ChunkedBody => "chunked",
        Stage::BodyUntilClose => "body until the connection ends",
        Stage::Tunnel => "tunnel",
        _ => "no body",
    };
    let came = match (stage, exchange.missing) {
        (Stage::Done, _) if body > 0 => format!("{framed}: complete with {body} bytes"),
        (Stage::Done, _) => format!("{framed}: complete"),
        (Stage::Broken, _) => format!("{framed}: broken, {body} bytes came"),
        (Stage::Lost, _) => format!("{framed}: {body} bytes, not captured whole"),
        (_, Some(missing)) => {
            format!("{framed}: {body} bytes came, {missing} more were promised")
        }
        (Stage::ChunkedBody, _) => format!("{framed}: {body} bytes came, the last chunk did not"),
        _ => format!("{framed}: {body} bytes"),
    };
    let surplus = match exchange.surplus {
        0 => String::new(),
        surplus => format!(", {surplus} bytes behind its end"),
    };
    ended(came + &surplus, exchange.end)
}

fn ended(what: String, end: Option<End>) -> String {
    let end = match end {
        None => return what,
        Some(End::UpstreamClosed) => "the upstream closed",
        Some(End::UpstreamReset) => "the upstream reset the connection",
        Some(End::GatewayClosed) => "the gateway closed",
        Some(End::GatewayReset) => "the gateway reset the connection",
    };
    format!("{what}, then {end}")
}

#[cfg(test)]
mod tests {
    use super::super::exchange::of_bytes;
    use super::*;

    fn exchange(response: &[u8]) -> Exchange {
        of_bytes(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", response, None)
    }

    fn fields(failing: &[u8], healthy: &[u8]) -> (Vec<(String, usize, usize)>, usize) {
        let comparison = compare(&exchange(failing), &exchange(healthy));
        let fields = comparison.fields.iter();
        let fields = fields.map(|field| {
            let Field {
                name,
                failing,
                healthy,
            } = field;
            (name.clone(), failing.len(), healthy.len())
        });
        (fields.collect(), comparison.same_fields)
    }

    #[test]
    fn order_and_case_of_names_make_no_difference() {
        let one = b"HTTP/1.1 200 OK\r\nA: 1\r\nB:2\r\nContent-Length: 0\r\n\r\n";
        let other = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nb: 2 \r\na: 1\r\n\r\n";
        assert_eq!(fields(one, other), (Vec::new(), 3));
    }

    #[test]
    fn secrets_are_not_told_apart_by_their_lengths() {
        let one = b"HTTP/1.1 204 No Content\r\nSet-Cookie: ****\r\n\r\n";
        let other = b"HTTP/1.1 204 No Content\r\nSet-Cookie: *********\r\n\r\n";
        assert_eq!(fields(one, other), (Vec::new(), 1));
        let open = b"HTTP/1.1 204 No Content\r\nSet-Cookie: a\r\n\r\n";
        assert_eq!(fields(one, open).0.len(), 1);
    }

    #[test]
    fn fields_on_one_side_and_other_values_are_differences() {
        let one = b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nA: 3\r\nContent-Length: 0\r\n\r\n";
        let other = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: 1\r\nC: 4\r\n\r\n";
        let expected = [("A", 2, 1), ("B", 1, 0), ("C", 0, 1)];
        let expected = expected.map(|(name, a, b)| (name.to_owned(), a, b));
        assert_eq!(fields(one, other), (expected.into(), 1));
    }

    #[test]
    fn a_broken_field_differs_even_where_the_healthy_side_has_the_same() {
        let one = b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n";
        let comparison = compare(&exchange(one), &exchange(one));
        let [field] = comparison.fields.as_slice() else {
            panic!("{comparison:?}");
        };
        let mark = Mark {
            at: 4,
            offset: 21,
            rule: "NUL in a header value",
        };
        assert_eq!(field.failing[0].marks, [mark]);
        assert_eq!(comparison.same_fields, 1);
    }

    #[test]
    fn a_broken_body_is_shown_around_the_byte() {
        let one = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n";
        let framing = compare(&exchange(one), &exchange(one)).failing_framing;
        assert_eq!(framing.text, "chunked: broken, 14 bytes came");
        let [line] = framing.broken.as_slice() else {
            panic!("{framing:?}");
        };
        assert_eq!(line.bytes, b"5\r\nhello\r\nzz\r\n");
        assert_eq!(line.bytes[line.marks[0].at], b'z');
        assert_eq!(one[line.marks[0].offset as usize], b'z');
    }

    #[test]
    fn what_is_no_http_is_marked_at_its_first_byte() {
        let comparison = compare(
            &exchange(b"\x15\x03\x03\0\x02\x02\x28"),
            &exchange(b"-ERR no\r\n"),
        );
        for status in [comparison.failing_status, comparison.healthy_status] {
            let marks = status.unwrap().marks;
            assert_eq!((marks[0].at, marks[0].offset), (0, 0));
        }
        assert!(comparison.fields.is_empty());
        assert_eq!(
            comparison.failing_framing.text,
            "7 bytes without the end of a head"
        );
    }

    #[test]
    fn interim_responses_are_passed_over_but_not_what_is_wrong_with_them() {
        let one = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let comparison = compare(&exchange(one), &exchange(one));
        assert_eq!(comparison.failing_status.unwrap().bytes, b"HTTP/1.1 200 OK");
        assert_eq!((comparison.fields.len(), comparison.same_fields), (0, 1));
        let [line] = comparison.failing_framing.broken.as_slice() else {
            panic!("{:?}", comparison.failing_framing);
        };
        assert_eq!(line.bytes, b"HTTP/1.1 103 Early Hints");
    }

    #[test]
    fn every_way_to_end_has_its_words() {
        let cases: [(&[u8], Option<End>, &str); 10] = [
            (
                b"",
                Some(End::UpstreamReset),
                "no response byte, then the upstream reset the connection",
            ),
            (
                b"HTTP/1.1 20",
                Some(End::UpstreamClosed),
                "11 bytes of an incomplete head, then the upstream closed",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
                Some(End::UpstreamClosed),
                "Content-Length: 3 bytes came, 6 more were promised, then the upstream closed",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
                None,
                "Content-Length: complete with 3 bytes",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef",
                None,
                "Content-Length: complete with 3 bytes, 3 bytes behind its end",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                None,
                "no body: complete",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                None,
                "chunked: 8 bytes came, the last chunk did not",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                None,
                "chunked: complete with 5 bytes",
            ),
            (
                b"HTTP/1.1 200 OK\r\n\r\nabc",
                Some(End::GatewayReset),
                "body until the connection ends: 3 bytes, then the gateway reset the connection",
            ),
            (
                b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
                Some(End::GatewayClosed),
                "tunnel: 0 bytes, then the gateway closed",
            ),
        ];
        for (response, end, expected) in cases {
            let exchange = of_bytes(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", response, end);
            assert_eq!(framing(&exchange), expected);
        }
    }

    #[test]
    fn any_bytes_can_be_compared() {
        proptest::proptest!(|(one in r"(HTTP/1\.[01] [12]0[0-3] ?)?([a-z\x00:\r\n -]|\r\n){0,60}", split in 0_usize..60)| {
            let response = one.as_bytes();
            let half = &response[..split.min(response.len())];
            let comparison = compare(&exchange(response), &exchange(half));
            for line in comparison.failing_status.iter().chain(comparison.fields.iter().flat_map(|field| &field.failing)) {
                for mark in &line.marks {
                    proptest::prop_assert!(mark.at <= line.bytes.len() + 2);
                }
            }
        });
    }
}
