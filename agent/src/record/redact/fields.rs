//! Finds credential fields, URLs and request lines in bytes, wherever they are.
//!
//! This needs no context: what looks like such a field is masked, in a head, in a trailer, behind a
//! binary header or in a body. A missed message border cannot make it miss one.

use super::{Class, Redactor};
use crate::model::Direction;

/// The longest name that is looked at.
const LONGEST_NAME: usize = 64;

/// Masks secrets in bytes without a gap.
pub(super) fn mask_fields(
    redactor: &Redactor,
    direction: Direction,
    bytes: &[u8],
    classes: &mut [Class],
) {
    let mut done = 0;
    for colon in memchr::memchr_iter(b':', bytes) {
        let name = name_before(bytes.get(..colon).unwrap_or_default());
        if redactor.is_credential(name) {
            // Inside a value that is masked already its end does not move: work stays linear.
            if colon >= done {
                done = value_end(bytes, colon + 1);
            }
            secret(classes, colon + 1, done);
        } else if redactor.is_url(name) {
            let end = line_end(bytes, colon + 1);
            let value = bytes.get(colon + 1..end).unwrap_or_default();
            if let Some(query) = memchr::memchr(b'?', value) {
                secret(classes, colon + 2 + query, end);
            }
            mask_user(value, colon + 1, classes);
        }
    }
    if direction == Direction::ToUpstream && !redactor.config.keep_query {
        let mut at = 0;
        while at < bytes.len() {
            let end = line_end(bytes, at);
            mask_target(bytes, at, end, classes);
            at = end + 1;
        }
    }
}

/// The field name that ends here, before spaces and maybe a quote as in JSON.
fn name_before(bytes: &[u8]) -> &[u8] {
    let from = bytes.len().saturating_sub(2 * LONGEST_NAME);
    let tail = bytes.get(from..).unwrap_or_default().trim_ascii_end();
    let tail = tail.strip_suffix(b"\"").unwrap_or(tail);
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let length = tail.iter().rev().take_while(|byte| is_name(byte)).count();
    tail.get(tail.len() - length..).unwrap_or_default()
}

/// Where the value of a field ends: with its line and those that continue it. A line that is neither a
/// field, nor empty, nor the start of a message counts as such, as a bare line end may be inside a value.
fn value_end(bytes: &[u8], from: usize) -> usize {
    let mut end = line_end(bytes, from);
    while let Some(next) = bytes.get(end + 1..).filter(|next| !next.is_empty()) {
        let line = next.get(..line_end(next, 0)).unwrap_or(next);
        if !continues(line) {
            break;
        }
        end += 1 + line.len();
    }
    end.min(bytes.len())
}

/// Whether a line is no beginning of anything, so that it may belong to the value before it.
pub(super) fn continues(line: &[u8]) -> bool {
    match line {
        [] | [b'\r'] => false,
        [b' ' | b'\t', ..] => true,
        _ if line.starts_with(b"HTTP/1.") => false,
        _ => {
            let is_token =
                |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
            let name = line.iter().take_while(|byte| is_token(byte)).count();
            let rest = line.get(name..).unwrap_or_default();
            let field = name > 0 && rest.trim_ascii_start().starts_with(b":");
            !field && !is_request_line(line)
        }
    }
}

/// Whether a line is certain to be a request line: a method, a target of the usual forms, a version.
pub(super) fn is_request_line(line: &[u8]) -> bool {
    let method = line
        .iter()
        .take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-')
        .count();
    let (method, rest) = line.split_at(method);
    let target = match rest {
        [b' ', b'/' | b'*', ..] => true,
        [b' ', target @ ..] => method == b"CONNECT" || target.starts_with(b"http"),
        _ => false,
    };
    target && (3..=24).contains(&method.len()) && memchr::memmem::rfind(rest, b" HTTP/1.").is_some()
}

/// Masks the query and the user of the target in a request line that ends with its version.
fn mask_target(bytes: &[u8], at: usize, end: usize, classes: &mut [Class]) {
    let line = bytes.get(at..end).unwrap_or_default();
    if let Some(version) = memchr::memmem::rfind(line, b" HTTP/") {
        target(line.get(..version).unwrap_or_default(), at, classes);
    }
}

/// Masks the query and the user of a target; `line` is everything before its version.
pub(super) fn target(line: &[u8], at: usize, classes: &mut [Class]) {
    if let Some(query) = memchr::memchr(b'?', line) {
        secret(classes, at + query + 1, at + line.len());
    }
    mask_user(line, at, classes);
}

/// Masks `user:password` of a URL with an authority.
fn mask_user(url: &[u8], at: usize, classes: &mut [Class]) {
    let Some(start) = memchr::memmem::find(url, b"://").map(|scheme| scheme + 3) else {
        return;
    };
    let rest = url.get(start..).unwrap_or_default();
    let authority = rest.iter().take_while(|byte| !b"/?# ".contains(byte));
    let authority = rest.get(..authority.count()).unwrap_or_default();
    if at + start + authority.len() == classes.len() {
        // Cut off: an `@` may have followed.
        secret(classes, at + start, classes.len());
    } else if let Some(user) = memchr::memrchr(b'@', authority) {
        secret(classes, at + start, at + start + user);
    }
}

/// The end of the line that has `from`: its line feed, or the end of the bytes.
pub(super) fn line_end(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    memchr::memchr(b'\n', rest).map_or(bytes.len(), |at| from + at)
}

fn secret(classes: &mut [Class], from: usize, to: usize) {
    if let Some(range) = classes.get_mut(from..to) {
        range.fill(Class::Secret);
    }
}
