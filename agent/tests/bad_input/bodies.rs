//! Requests and responses without end or measure, fed to the engine segment by segment.

use std::time::Duration;

use hopscope::model::Cause;

use crate::feed::{Feed, GET, OK};
use crate::measure::assert_linear;
use crate::scaled;

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A response of so many bytes, one in each segment.
fn byte_by_byte(body: usize) {
    let mut feed = Feed::open();
    feed.up(GET);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n");
    for byte in head.bytes() {
        feed.down(&[byte]);
    }
    for _ in 0..body {
        feed.down(b"x");
    }
    // The next exchange is followed: the end was found.
    feed.up(GET).down(OK);
    assert_eq!(feed.causes(), []);
    assert_eq!(feed.stats().exchanges, 2);
}

#[test]
fn a_byte_a_segment() {
    byte_by_byte(64 * 1024);
    assert_linear(1024 * 1024 / 4, byte_by_byte);
}

#[test]
fn a_head_of_one_byte_a_segment() {
    for text in [&b"x"[..], b"X: y\r\n"] {
        assert_linear(15_000, |bytes| {
            for _ in 0..4 {
                let mut feed = Feed::open();
                feed.up(GET).down(b"HTTP/1.1 200 OK\r\n");
                for byte in text.iter().cycle().take(bytes) {
                    feed.down(&[*byte]);
                }
                feed.upstream_fin();
                assert_eq!(feed.causes(), [Cause::Http1HeadTruncated]);
            }
        });
    }
}

#[test]
fn a_request_head_of_one_byte_a_segment() {
    assert_linear(15_000, |bytes| {
        for _ in 0..4 {
            let mut feed = Feed::open();
            feed.up(b"GET / HTTP/1.1\r\n");
            for byte in b"X: y\r\n".iter().cycle().take(bytes) {
                feed.up(&[*byte]);
            }
            assert_eq!(feed.causes(), []);
        }
    });
}

#[test]
fn a_response_header_of_ten_megabytes() {
    assert_linear(10_000_000 / 4, |bytes| {
        let mut feed = Feed::open();
        feed.up(GET).down(b"HTTP/1.1 200 OK\r\nX: ");
        feed.down_repeated(b"abc", bytes)
            .sleep(Duration::from_secs(1));
        // A gateway whose limit is at its default gives up on it.
        feed.gateway_fin();
        assert_eq!(feed.causes(), [Cause::Http1HeaderTooLarge]);
    });
}

#[test]
fn ten_megabytes_of_response_headers() {
    assert_linear(10_000_000 / 4, |bytes| {
        let mut feed = Feed::open();
        feed.up(GET).down(b"HTTP/1.1 200 OK\r\n");
        feed.down_repeated(b"X: a\r\n", bytes)
            .sleep(Duration::from_secs(1));
        feed.gateway_fin();
        assert_eq!(feed.causes(), [Cause::Http1HeaderTooLarge]);
    });
}

#[test]
fn a_request_header_of_ten_megabytes() {
    for text in [&b"abc"[..], b"X: a\r\n"] {
        assert_linear(10_000_000 / 4, |bytes| {
            let mut feed = Feed::open();
            feed.up(b"GET / HTTP/1.1\r\nX: ").up_repeated(text, bytes);
            feed.up(b"\r\n\r\n").down(OK);
            assert_eq!(feed.causes(), []);
            assert_eq!(feed.stats().exchanges, 1);
        });
    }
}

#[test]
fn a_body_of_very_many_chunks() {
    let chunk = b"1\r\nx\r\n";
    assert_linear(scaled(20_000_000, 4) / 4, |chunks| {
        let mut feed = Feed::open();
        feed.up(GET).down(CHUNKED);
        feed.down_repeated(chunk, chunks * chunk.len());
        feed.down(b"0\r\n\r\n").up(GET).down(OK);
        assert_eq!(feed.causes(), []);
        assert_eq!(feed.stats().exchanges, 2);
    });
}

#[test]
fn a_body_of_chunks_each_with_a_fault() {
    // An extension, a bare LF, and data that no line end follows: noted once, or ends the framing.
    for chunk in [
        &b"1;a=b\r\nx\r\n"[..],
        b"1\nx\n",
        b"1\r\nxy\r\n",
        b"1 \r\nx\r\n",
    ] {
        assert_linear(scaled(2_000_000, 4) / 4, |chunks| {
            let mut feed = Feed::open();
            feed.up(GET).down(CHUNKED);
            feed.down_repeated(chunk, chunks * chunk.len());
            feed.upstream_fin();
            assert_eq!(feed.causes().len(), 1);
        });
    }
}

#[test]
fn sizes_at_and_above_the_largest_number() {
    let ends = |response: &str| {
        let mut feed = Feed::open();
        feed.up(GET)
            .down(response.as_bytes())
            .down(b"abc")
            .upstream_fin();
        feed.causes()
    };
    let length = |size| {
        ends(&format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"
        ))
    };
    let chunk = |size| {
        let head = std::str::from_utf8(CHUNKED).unwrap();
        ends(&format!("{head}{size}\r\n"))
    };
    assert_eq!(length("18446744073709551615"), [Cause::Http1BodyTruncated]);
    assert_eq!(
        length("18446744073709551616"),
        [Cause::Http1ContentLengthInvalid]
    );
    assert_eq!(
        length(&"9".repeat(10_000)),
        [Cause::Http1ContentLengthInvalid]
    );
    assert_eq!(chunk("ffffffffffffffff"), [Cause::Http1LastChunkMissing]);
    assert_eq!(chunk("10000000000000000"), [Cause::Http1ChunkSyntax]);
    assert_eq!(chunk(&"f".repeat(10_000)), [Cause::Http1ChunkSyntax]);
}

#[test]
fn interim_responses_without_end() {
    assert_linear(2_000_000 / 4, |bytes| {
        let mut feed = Feed::open();
        feed.up(GET);
        feed.down_repeated(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n", bytes);
        feed.upstream_fin();
        assert_eq!(feed.causes().len(), 1);
    });
}
