//! The head of an answer, as far as it tells who made it.

/// The status in the status line (RFC 9112 section 4) that `bytes` begin with; none where they begin no
/// final response of HTTP/1.
pub(super) fn status_of(bytes: &[u8]) -> Option<u16> {
    let code = bytes
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(1..5))
        .and_then(|rest| rest.strip_prefix(b" "))
        .and_then(|code| str::from_utf8(code).ok())
        .filter(|code| code.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|code| code.parse().ok());
    code.filter(|code| (200..=599).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_whole_status_lines_only() {
        assert_eq!(status_of(b"HTTP/1.1 502 Bad Gateway\r\n"), Some(502));
        assert_eq!(status_of(b"HTTP/1.0 504"), Some(504));
        for none in [
            &b"HTTP/1.1 50"[..],
            b"HTTP/1.1 5x2 a",
            b"HTTP/1.1 100 Continue",
            b"HTTP/2 502",
            b"SSH-2.0",
            b"",
        ] {
            assert_eq!(status_of(none), None, "{none:?}");
        }
    }
}
