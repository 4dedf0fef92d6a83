//! Which side of a connection is the gateway, where no SYN tells: by what the payload is.

use crate::model::Direction;

/// The direction that a payload must have gone if it begins a message of a known protocol.
pub(super) fn direction_of(payload: &[u8]) -> Option<Direction> {
    if is_request(payload) {
        Some(Direction::ToUpstream)
    } else if is_response(payload) {
        Some(Direction::FromUpstream)
    } else {
        None
    }
}

/// The longest method in use is shorter (`UPDATEREDIRECTREF`, RFC 4437).
const LONGEST_METHOD: usize = 24;

fn is_request(payload: &[u8]) -> bool {
    let client_hello = matches!(payload, [0x16, 3, _, _, _, 1, ..]);
    let fastcgi_begin = matches!(payload, [1, 1, _, _, 0, 8, _, _, 0, 1..=3, ..]);
    client_hello
        || fastcgi_begin
        || payload.starts_with(b"PROXY ")
        || payload.starts_with(b"\r\n\r\n\0\r\nQUIT\n")
        || is_request_line(payload)
}

/// A method, a space and a target in one of the forms of RFC 9112 section 3.2.
fn is_request_line(payload: &[u8]) -> bool {
    let method_len = payload
        .iter()
        .take(LONGEST_METHOD)
        .take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-')
        .count();
    let (method, rest) = payload.split_at(method_len);
    match rest {
        [b' ', b'/' | b'*', ..] => method_len >= 3,
        [b' ', target @ ..] if method == b"CONNECT" => target
            .first()
            .is_some_and(|byte| *byte == b'[' || byte.is_ascii_alphanumeric()),
        [b' ', target @ ..] => method_len >= 3 && target.starts_with(b"http"),
        _ => false,
    }
}

fn is_response(payload: &[u8]) -> bool {
    matches!(payload, [0x16, 3, _, _, _, 2, ..]) || payload.starts_with(b"HTTP/1.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_responses_are_told_apart() {
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1];
        let server_hello = [0x16, 3, 3, 0, 90, 2, 0, 0];
        let begin = [1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for request in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"OPTIONS * HTTP/1.1",
            b"M-SEARCH * HTTP/1.1",
            b"CONNECT a.example:443 HTTP/1.1",
            b"GET http://a.example/ HTTP/1.1",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            &hello,
            &begin,
        ] {
            assert_eq!(direction_of(request), Some(Direction::ToUpstream));
        }
        for response in [&b"HTTP/1.1 200 OK\r\n"[..], &server_hello] {
            assert_eq!(direction_of(response), Some(Direction::FromUpstream));
        }
        for neither in [
            &b""[..],
            b"G",
            b"EHLO mail.example",
            b"220 ready",
            b"SSH-2.0-OpenSSH",
            b"AB /",
            b"{\"GET\": 1}",
        ] {
            assert_eq!(direction_of(neither), None);
        }
    }
}
