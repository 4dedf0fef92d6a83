//! Follows the messages of one direction as far as masking needs it: where heads and bodies are.
//!
//! It is no judge: what it cannot follow it masks. The fields themselves are found elsewhere, without
//! regard to what this makes of the borders.

use super::Class;
use super::fields::{continues, is_request_line, line_end, target};
use super::stream::Run;
use crate::model::Direction;

/// Bytes kept of a request that is not HTTP/1: enough to name its protocol.
const FOREIGN_BYTES: usize = 16;

/// The longest chunk-size line that is kept; extensions may hold anything.
const CHUNK_LINE: usize = 64;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    /// A message, after a border that is certain.
    Message,
    /// The next line of a head or of trailers.
    Head(Head),
    /// A body of known length.
    Body { left: u64, seen: usize },
    /// A chunk-size line.
    ChunkSize { seen: usize },
    /// Data of a chunk.
    Chunk { left: u64, seen: usize },
    /// The line end after a chunk.
    ChunkEnd { seen: usize },
    /// Trailers.
    Trailers,
    /// A body that ends with the connection, or something that is no HTTP/1.
    Opaque { seen: usize },
    /// Another protocol from the gateway: only its first bytes are kept.
    Foreign { seen: usize },
    /// Records of TLS.
    Tls,
    /// Anything at all: the middle of a value, maybe.
    Unknown,
}

/// What the fields of a head say about the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    length: u64,
    chunked: bool,
    has_length: bool,
    status: u16,
}

/// Follows one direction.
#[derive(Debug)]
pub(super) struct Walker {
    direction: Direction,
    body_bytes: usize,
    /// Whether it is the inside of TLS, which has no records of it.
    inside: bool,
    context: Context,
    /// Where the last run ended.
    end: Option<i64>,
}

impl Walker {
    pub(super) const fn new(direction: Direction, body_bytes: usize, inside: bool) -> Self {
        Self {
            direction,
            body_bytes,
            inside,
            context: Context::Unknown,
            end: None,
        }
    }

    /// Classifies the bytes of the next run of the stream.
    pub(super) fn walk(&mut self, run: &mut Run) {
        self.enter(run);
        let mut at = 0;
        while at < run.bytes.len() {
            let before = (at, self.context);
            at = self.step(&run.bytes, &mut run.classes, at);
            if (at, self.context) == before {
                // Cannot happen; a mistake here must not hang.
                self.context = Context::Unknown;
                fill(&mut run.classes, at, run.bytes.len(), Class::Unknown);
                break;
            }
        }
        let length = i64::try_from(run.bytes.len()).unwrap_or(i64::MAX);
        self.end = Some(run.start.saturating_add(length));
    }

    /// Forgets what is known of the stream.
    pub(super) const fn lose(&mut self) {
        self.context = Context::Unknown;
    }

    /// Moves over the gap before a run.
    fn enter(&mut self, run: &Run) {
        if run.first {
            self.context = Context::Message;
            return;
        }
        let gap = self.end.map_or(0, |end| run.start - end);
        let gap = u64::try_from(gap).unwrap_or_default();
        self.context = match self.context {
            Context::Body { left, seen } if gap < left => Context::Body {
                left: left - gap,
                seen: seen.saturating_add(usize::try_from(gap).unwrap_or(usize::MAX)),
            },
            Context::Body { left, .. } if gap == left => Context::Message,
            Context::Chunk { left, seen } if gap < left => Context::Chunk {
                left: left - gap,
                seen: seen.saturating_add(usize::try_from(gap).unwrap_or(usize::MAX)),
            },
            Context::Tls => Context::Tls,
            Context::Foreign { .. } => Context::Foreign {
                seen: FOREIGN_BYTES,
            },
            _ => Context::Unknown,
        };
    }

    /// Takes what follows `at` as far as it is one thing, and returns where that ends.
    fn step(&mut self, bytes: &[u8], classes: &mut [Class], at: usize) -> usize {
        let rest = bytes.get(at..).unwrap_or_default();
        match self.context {
            Context::Message => self.message(rest, classes, at),
            Context::Head(head) => self.head_line(head, rest, at),
            Context::Body { left, seen } => {
                if seen == 0 && self.is_start(rest) {
                    // A response without a body, whatever its head says, as after HEAD.
                    self.context = Context::Message;
                    return at;
                }
                let taken = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.data(classes, at, taken, seen, Class::Body);
                let left = left - taken as u64;
                self.context = if left == 0 {
                    Context::Message
                } else {
                    let seen = seen.saturating_add(taken);
                    Context::Body { left, seen }
                };
                at + taken
            }
            Context::ChunkSize { seen } => self.chunk_size(rest, classes, at, seen),
            Context::Chunk { left, seen } => {
                let taken = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.data(classes, at, taken, seen, Class::Unknown);
                let left = left - taken as u64;
                let seen = seen.saturating_add(taken);
                self.context = if left == 0 {
                    Context::ChunkEnd { seen }
                } else {
                    Context::Chunk { left, seen }
                };
                at + taken
            }
            Context::ChunkEnd { seen } => {
                if rest == b"\r" {
                    return at + 1;
                }
                self.context = Context::ChunkSize { seen };
                match rest {
                    [b'\r', b'\n', ..] => at + 2,
                    [b'\n', ..] => at + 1,
                    _ => at,
                }
            }
            Context::Trailers => {
                let end = line_end(rest, 0);
                let line = rest.get(..end).unwrap_or(rest);
                if matches!(line, [] | [b'\r']) {
                    self.context = Context::Message;
                }
                at + (end + 1).min(rest.len())
            }
            Context::Opaque { seen } => {
                let end = (line_end(rest, 0) + 1).min(rest.len());
                if self.is_start(rest) {
                    self.context = Context::Message;
                    return at;
                }
                self.data(classes, at, end, seen, Class::Body);
                let seen = seen.saturating_add(end);
                self.context = Context::Opaque { seen };
                at + end
            }
            Context::Foreign { seen } => {
                let kept = FOREIGN_BYTES.saturating_sub(seen).min(rest.len());
                fill(classes, at + kept, at + rest.len(), Class::Unknown);
                self.context = Context::Foreign {
                    seen: seen.saturating_add(rest.len()),
                };
                at + rest.len()
            }
            Context::Tls => at + rest.len(),
            Context::Unknown => {
                if self.is_start(rest) {
                    self.context = Context::Message;
                    return at;
                }
                let mut end = (line_end(rest, 0) + 1).min(rest.len());
                // Lines that may go on with what was masked.
                while let Some(next) = rest.get(end..).filter(|next| !next.is_empty()) {
                    let line = next.get(..line_end(next, 0)).unwrap_or(next);
                    if !continues(line) {
                        break;
                    }
                    end = (end + line.len() + 1).min(rest.len());
                }
                fill(classes, at, at + end, Class::Unknown);
                // What follows may be a head, and is then found by its fields, or a body.
                self.context = Context::Opaque { seen: 0 };
                at + end
            }
        }
    }

    /// The beginning of a message.
    fn message(&mut self, rest: &[u8], classes: &mut [Class], at: usize) -> usize {
        if let [b'\r' | b'\n', ..] = rest {
            // Empty lines between messages.
            let empty = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
            return at + empty.count();
        }
        if !self.inside && matches!(rest, [20..=23, 3, 0..=4, ..]) {
            self.context = Context::Tls;
            return at;
        }
        let end = line_end(rest, 0);
        let line = rest.get(..end).unwrap_or(rest);
        match self.direction {
            Direction::ToUpstream if begins_request(line) => {
                if memchr::memmem::rfind(line, b" HTTP/").is_none() {
                    // Cut before its version, or it has none.
                    target(line, at, classes);
                }
                self.context = Context::Head(Head::default());
            }
            Direction::ToUpstream => {
                self.context = Context::Foreign { seen: 0 };
                return at;
            }
            Direction::FromUpstream if line.starts_with(b"HTTP/") => {
                let status = line.get(9..12).and_then(|digits| {
                    let digits = std::str::from_utf8(digits).ok()?;
                    digits.parse().ok()
                });
                self.context = Context::Head(Head {
                    status: status.unwrap_or_default(),
                    ..Head::default()
                });
            }
            Direction::FromUpstream => {
                // Not skipped over: the look for the start of a message would come back here.
                let end = (end + 1).min(rest.len());
                self.data(classes, at, end, 0, Class::Body);
                self.context = Context::Opaque { seen: end };
                return at + end;
            }
        }
        at + (end + 1).min(rest.len())
    }

    fn head_line(&mut self, mut head: Head, rest: &[u8], at: usize) -> usize {
        let end = line_end(rest, 0);
        let line = rest.get(..end).unwrap_or(rest);
        let whole = end < rest.len();
        if whole && matches!(line, [] | [b'\r']) {
            self.context = self.after_head(head);
            return at + end + 1;
        }
        if let Some(colon) = memchr::memchr(b':', line) {
            let (name, value) = line.split_at(colon);
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            let name = name.trim_ascii();
            if name.eq_ignore_ascii_case(b"content-length") {
                let value = std::str::from_utf8(value).ok();
                if let Some(length) = value.and_then(|value| value.parse().ok()) {
                    head.length = length;
                    head.has_length = true;
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                let lower = value.to_ascii_lowercase();
                head.chunked = lower.ends_with(b"chunked");
            }
        }
        self.context = Context::Head(head);
        at + (end + 1).min(rest.len())
    }

    fn after_head(&self, head: Head) -> Context {
        let response = self.direction == Direction::FromUpstream;
        match head.status {
            101 => Context::Opaque { seen: 0 },
            100..=199 | 204 | 304 => Context::Message,
            _ if head.chunked => Context::ChunkSize { seen: 0 },
            _ if head.has_length && head.length == 0 => Context::Message,
            _ if head.has_length => Context::Body {
                left: head.length,
                seen: 0,
            },
            _ if response => Context::Opaque { seen: 0 },
            _ => Context::Message,
        }
    }

    fn chunk_size(&mut self, rest: &[u8], classes: &mut [Class], at: usize, seen: usize) -> usize {
        if seen == 0 && self.is_start(rest) {
            self.context = Context::Message;
            return at;
        }
        let end = line_end(rest, 0);
        let line = rest.get(..end).unwrap_or(rest);
        let whole = end < rest.len();
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let size = std::str::from_utf8(line.get(..digits).unwrap_or_default());
        let size = size
            .ok()
            .and_then(|size| u64::from_str_radix(size, 16).ok());
        let next = line.get(digits);
        let clean = matches!(next, None | Some(b'\r' | b';' | b' ' | b'\t'));
        fill(classes, at + CHUNK_LINE.min(end), at + end, Class::Unknown);
        self.context = match size {
            Some(0) if clean && whole => Context::Trailers,
            Some(left) if clean && whole => Context::Chunk { left, seen },
            // Framing that breaks is what the capture is for: the line is kept, what follows is body.
            _ => Context::Opaque {
                seen: self.body_bytes,
            },
        };
        at + (end + 1).min(rest.len())
    }

    /// Keeps what the cap on a body leaves of `length` bytes at `at`.
    fn data(&self, classes: &mut [Class], at: usize, length: usize, seen: usize, beyond: Class) {
        let kept = self.body_bytes.saturating_sub(seen).min(length);
        fill(classes, at + kept, at + length, beyond);
    }

    /// Whether a whole start line of a message is here.
    fn is_start(&self, rest: &[u8]) -> bool {
        let end = line_end(rest, 0);
        let line = rest.get(..end).unwrap_or(rest);
        match self.direction {
            Direction::ToUpstream => end < rest.len() && is_request_line(line),
            Direction::FromUpstream => matches!(
                line,
                [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9', b' ', a, b, c, ..]
                    if [a, b, c].iter().all(|digit| digit.is_ascii_digit())
            ),
        }
    }
}

/// Whether a line that begins a message certainly begins a request: a method and a space.
fn begins_request(line: &[u8]) -> bool {
    let method = line
        .iter()
        .take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-')
        .count();
    (1..=24).contains(&method) && matches!(line.get(method), Some(b' ') | None)
}

fn fill(classes: &mut [Class], from: usize, to: usize, class: Class) {
    if let Some(range) = classes.get_mut(from..to) {
        range.fill(class);
    }
}
