//! The status line (RFC 9112 section 4), checked strictly and read leniently.

use super::{FindingKind, Foreign};

/// What a status line says, as far as a lenient reader gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StatusLine {
    /// Status code, capped at what fits.
    pub(super) status: Option<u16>,
    /// Whether the version is HTTP/1.0.
    pub(super) http10: bool,
    /// The first broken rule and the place of its byte in the line.
    pub(super) finding: Option<(FindingKind, usize)>,
}

/// Whether bytes may still turn out to begin with `HTTP/`, in any case.
pub(super) fn may_be_http(bytes: &[u8]) -> bool {
    const NAME: &[u8] = b"HTTP/";
    let len = bytes.len().min(NAME.len());
    match (bytes.get(..len), NAME.get(..len)) {
        (Some(start), Some(name)) => start.eq_ignore_ascii_case(name),
        _ => false,
    }
}

/// What bytes that do not begin with `HTTP/` are.
pub(super) fn foreign(bytes: &[u8]) -> FindingKind {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or(bytes);
    let mut words = line.split(|&byte| byte == b' ');
    let name = words.next().unwrap_or_default();
    let code = words.next().unwrap_or_default().trim_ascii_end();
    // `ICY 200 OK`: the shape of a status line under another protocol's name.
    let shaped = !name.is_empty()
        && name.iter().all(u8::is_ascii_alphabetic)
        && code.len() == 3
        && code.iter().all(u8::is_ascii_digit);
    if shaped {
        FindingKind::ForeignStatusLine
    } else {
        FindingKind::NotHttp(Foreign::detect(bytes))
    }
}

/// Reads a line that begins with `HTTP/`, without its line end.
pub(super) fn parse(line: &[u8]) -> StatusLine {
    let mut read = StatusLine::default();
    let mut note = |kind, at| {
        read.finding.get_or_insert((kind, at));
    };
    if !line.starts_with(b"HTTP/") {
        note(FindingKind::ProtocolName, 0);
        return read;
    }
    let at_byte = |at: usize| line.get(at).copied();
    match (at_byte(5), at_byte(6), at_byte(7), at_byte(8)) {
        (Some(major), Some(b'.'), Some(minor), None | Some(b' ' | b'\t'))
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            if major != b'1' {
                note(FindingKind::VersionUnsupported, 5);
            }
        }
        _ => {
            note(FindingKind::VersionSyntax, 5);
            return read;
        }
    }
    let http10 = line.starts_with(b"HTTP/1.0");
    let separator = "HTTP/1.1".len();
    let mut at = separator;
    while let Some(byte @ (b' ' | b'\t')) = at_byte(at) {
        if byte == b'\t' {
            note(FindingKind::TabInStatusLine, at);
        } else if at > separator {
            note(FindingKind::SpacesInStatusLine, at);
        }
        at += 1;
    }
    let code_at = at;
    let rest = line.get(code_at..).unwrap_or_default();
    let code = rest
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .next()
        .unwrap_or_default();
    let digits = code.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = code
        .get(..digits.min(3))
        .and_then(|digits| str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse::<u16>().ok());
    if code.is_empty() || (digits < code.len() && digits != 3) {
        note(FindingKind::StatusCodeSyntax, code_at + digits);
    } else if digits < code.len() {
        note(FindingKind::StatusCodeSuffix, code_at + digits);
    } else if digits < 3 {
        note(FindingKind::StatusCodeShort, code_at);
    } else if digits > 3 {
        note(FindingKind::StatusCodeLong, code_at + 3);
    } else if number.is_some_and(|number| number < 100) {
        note(FindingKind::StatusCodeBelow100, code_at);
    } else if number.is_some_and(|number| number > 599) {
        note(FindingKind::StatusCodeAbove599, code_at);
    }
    let reason_at = code_at + code.len();
    let reason = line.get(reason_at..).unwrap_or_default();
    let control = |byte: &u8| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f;
    if let Some(bad) = reason.iter().position(control) {
        let nul = reason.get(bad) == Some(&0);
        let kind = if nul {
            FindingKind::ReasonNul
        } else {
            FindingKind::ReasonControl
        };
        note(kind, reason_at + bad);
    }
    read.status = number;
    read.http10 = http10;
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &[u8], status: Option<u16>, finding: Option<(FindingKind, usize)>) {
        let read = parse(line);
        assert_eq!(
            (read.status, read.finding),
            (status, finding),
            "{}",
            line.escape_ascii()
        );
    }

    #[test]
    fn valid_lines() {
        check(b"HTTP/1.1 200 OK", Some(200), None);
        check(b"HTTP/1.1 200 ", Some(200), None);
        check(b"HTTP/1.1 200", Some(200), None);
        check(b"HTTP/1.2 200 OK", Some(200), None);
        check("HTTP/1.1 200 caf\u{e9}".as_bytes(), Some(200), None);
        assert!(parse(b"HTTP/1.0 200 OK").http10);
    }

    #[test]
    fn each_rule_names_its_byte() {
        check(
            b"http/1.1 200 OK",
            None,
            Some((FindingKind::ProtocolName, 0)),
        );
        check(b"HTTP/2 200", None, Some((FindingKind::VersionSyntax, 5)));
        check(
            b"HTTP/2.0 200 OK",
            Some(200),
            Some((FindingKind::VersionUnsupported, 5)),
        );
        check(
            b"HTTP/1.1\t200 OK",
            Some(200),
            Some((FindingKind::TabInStatusLine, 8)),
        );
        check(
            b"HTTP/1.1  200 OK",
            Some(200),
            Some((FindingKind::SpacesInStatusLine, 9)),
        );
        check(
            b"HTTP/1.1 20 OK",
            Some(20),
            Some((FindingKind::StatusCodeShort, 9)),
        );
        check(
            b"HTTP/1.1 2000 OK",
            Some(200),
            Some((FindingKind::StatusCodeLong, 12)),
        );
        check(
            b"HTTP/1.1 2xx OK",
            Some(2),
            Some((FindingKind::StatusCodeSyntax, 10)),
        );
        check(
            b"HTTP/1.1 403.1 No",
            Some(403),
            Some((FindingKind::StatusCodeSuffix, 12)),
        );
        check(
            b"HTTP/1.1 099 X",
            Some(99),
            Some((FindingKind::StatusCodeBelow100, 9)),
        );
        check(
            b"HTTP/1.1 999 X",
            Some(999),
            Some((FindingKind::StatusCodeAbove599, 9)),
        );
        check(
            b"HTTP/1.1 200 O\x01",
            Some(200),
            Some((FindingKind::ReasonControl, 14)),
        );
        check(
            b"HTTP/1.1 200 O\0",
            Some(200),
            Some((FindingKind::ReasonNul, 14)),
        );
        check(b"HTTP/1.1", None, Some((FindingKind::StatusCodeSyntax, 8)));
    }

    #[test]
    fn what_is_not_http_is_named() {
        assert_eq!(foreign(b"ICY 200 OK\r\n"), FindingKind::ForeignStatusLine);
        let named = |bytes: &[u8]| match foreign(bytes) {
            FindingKind::NotHttp(foreign) => foreign,
            other => panic!("{other:?}"),
        };
        assert_eq!(named(b"SSH-2.0-OpenSSH_9.2\r\n"), Foreign::Ssh);
        assert_eq!(named(b"220 mail ESMTP\r\n"), Foreign::Greeting);
        assert_eq!(named(b"\x15\x03\x03\0\x02\x02\x46"), Foreign::TlsAlert(70));
        assert_eq!(named(b"\0\0\x12\x04\0\0\0\0\0"), Foreign::Http2);
        assert_eq!(named(b"<html>\n"), Foreign::Text);
        assert_eq!(named(b"hi"), Foreign::Fragment);
        assert_eq!(named(b"\x01\x02\x03"), Foreign::Binary);
    }
}
