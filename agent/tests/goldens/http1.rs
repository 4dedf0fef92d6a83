//! Responses: broken, cut, late, and odd but healthy.

use super::Golden;
use super::scenario::{OK, Scenario, scenario};

/// A fresh connection whose upstream answers these bytes and closes.
fn answered(bytes: &[u8]) -> Scenario {
    scenario(|hop| {
        hop.open().request().reply(bytes).close();
    })
}

/// One whose upstream answers these bytes and resets.
fn reset(bytes: &[u8]) -> Scenario {
    scenario(|hop| {
        hop.open().request().reply(bytes).upstream_rst();
    })
}

/// One whose upstream answers these bytes and then nothing, until the gateway closes.
fn silent(bytes: &[u8], ms: u64) -> Scenario {
    scenario(|hop| {
        hop.open().request().reply(bytes).ms(ms).gateway_fin();
    })
}

const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
const NOT_GZIP: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 24\r\n\r\n<html>";
const GZIP: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 24\r\n\r\n\x1f\x8b\x08\0\0";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Le";

pub(crate) fn goldens() -> Vec<Golden> {
    [healthy(), broken(), cut(), too_large(), limits()].concat()
}

/// A head with more fields, and a longer one, than most gateways take, without its last line.
fn large_head() -> Vec<u8> {
    let mut head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: ".to_vec();
    head.extend([b'x'; 4200]);
    head.extend(b"\r\n");
    head.extend(b"A: a\r\n".repeat(300));
    head
}

fn too_large() -> Vec<Golden> {
    let head = large_head();
    let sent = |hop: &mut Scenario| {
        hop.open().request();
        for segment in head.chunks(1400) {
            hop.reply(segment);
        }
    };
    vec![
        (
            "http1/header_too_large",
            "The gateway stops reading a head of 302 fields and resets.",
            scenario(|hop| {
                sent(hop);
                hop.gateway_rst();
            }),
        ),
        (
            "http1/head_truncated_beyond_limits",
            "The upstream breaks such a head off itself.",
            scenario(|hop| {
                sent(hop);
                hop.close();
            }),
        ),
        (
            "http1/header_large_and_taken",
            "A gateway that takes such a head goes on with the next request.",
            scenario(|hop| {
                sent(hop);
                hop.reply(b"\r\nhello").request().reply(OK).close();
            }),
        ),
    ]
}

/// Three responses that flow until the gateway closes, each after this time.
fn flowing(lengths: [u64; 3]) -> Scenario {
    scenario(|hop| {
        for length in lengths {
            hop.open().request();
            hop.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
            for _ in 0..length / 100 {
                hop.ms(100).reply(b"some of it");
            }
            hop.gateway_fin().ms(100).next_hop();
        }
    })
}

fn limits() -> Vec<Golden> {
    vec![
        (
            "http1/flow_ended_after_the_same_time",
            "A limit of the gateway for the whole exchange, or one of its client: packets cannot tell.",
            flowing([1000, 1000, 1000]),
        ),
        (
            "http1/flow_ended_at_any_time",
            "Clients that leave in the middle of their responses.",
            flowing([1000, 700, 1200]),
        ),
        (
            "http1/own_error_behind_a_failure",
            "The upstream closes one connection without an answer, and answers the gateway's next try with its own 503.",
            scenario(|hop| {
                hop.open().request().ms(30).close();
                hop.next_hop().open().request();
                hop.reply(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")
                    .close();
            }),
        ),
    ]
}

fn healthy() -> Vec<Golden> {
    vec![
        (
            "http1/own_error",
            "A complete and valid 503 is the upstream's own.",
            answered(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"),
        ),
        (
            "http1/own_error_cut",
            "A 500 whose body is cut short is a cut.",
            answered(b"HTTP/1.1 500 No\r\nContent-Length: 50\r\n\r\nhello"),
        ),
        (
            "http1/not_found",
            "A 404 is no failure of the hop.",
            answered(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
        ),
        (
            "http1/chunked_with_extension_and_trailer",
            "A chunk extension and a trailer are allowed.",
            answered(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: t\r\n\r\n",
            ),
        ),
        (
            "http1/until_close",
            "A body that only the FIN ends.",
            answered(b"HTTP/1.0 200 OK\r\n\r\nuntil close"),
        ),
        (
            "http1/not_modified_with_length",
            "304 has no body, whatever its Content-Length.",
            answered(b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n"),
        ),
    ]
}

fn broken() -> Vec<Golden> {
    vec![
        (
            "http1/not_http",
            "An SSH server answers.",
            answered(b"SSH-2.0-OpenSSH_9.2\r\n"),
        ),
        (
            "http1/greeting_before_the_request",
            "A mail server speaks first; the gateway will take it for the response.",
            scenario(|hop| {
                hop.open().reply(b"220 mail ESMTP\r\n").request().gateway_fin();
            }),
        ),
        (
            "http1/plaintext_to_tls_port",
            "A TLS alert answers the plaintext request.",
            answered(b"\x15\x03\x03\0\x02\x02\x46"),
        ),
        (
            "http1/status_line_invalid",
            "The status code is not a number.",
            answered(b"HTTP/1.1 2xx OK\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        (
            "http1/header_syntax",
            "A space before the colon.",
            answered(b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        (
            "http1/header_control_char",
            "A NUL in a field's value.",
            answered(b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        (
            "http1/content_length_invalid",
            "A sign in the length.",
            answered(b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
        ),
        (
            "http1/content_length_conflict",
            "Two lengths that differ.",
            answered(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        ),
        (
            "http1/length_and_chunked",
            "Both ways to end a body.",
            answered(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
        ),
        (
            "http1/transfer_encoding_unsupported",
            "A coding that gateways do not know.",
            answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: odd\r\n\r\nhello"),
        ),
        (
            "http1/chunk_syntax",
            "A chunk size that is no number.",
            answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello"),
        ),
        (
            "http1/excess_bytes",
            "More bytes than the Content-Length, in the same segment.",
            answered(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more"),
        ),
    ]
}

fn cut() -> Vec<Golden> {
    vec![
        (
            "http1/head_truncated",
            "FIN inside the head.",
            answered(HEAD),
        ),
        (
            "http1/head_truncated_behind_interim",
            "FIN between a 100 and the final response.",
            answered(b"HTTP/1.1 100 Continue\r\n\r\n"),
        ),
        ("http1/head_reset", "RST inside the head.", reset(HEAD)),
        (
            "http1/body_truncated",
            "FIN with 45 of 50 body bytes missing.",
            answered(SIZED),
        ),
        (
            "http1/body_reset",
            "RST with 45 of 50 body bytes missing.",
            reset(SIZED),
        ),
        (
            "http1/last_chunk_missing",
            "FIN before the last chunk.",
            answered(CHUNKED),
        ),
        (
            "http1/eof_body_reset",
            "RST where a FIN should end the body.",
            reset(b"HTTP/1.0 200 OK\r\n\r\nuntil"),
        ),
        (
            "http1/stalled_in_head",
            "The upstream stops inside the head, and the gateway gives up.",
            silent(HEAD, 2000),
        ),
        (
            "http1/stalled_in_body",
            "The upstream stops inside the body, and the gateway gives up.",
            silent(SIZED, 2000),
        ),
        (
            "http1/content_coding_bad",
            "A body that is said to be gzip is none, and the gateway closes inside it at once.",
            silent(NOT_GZIP, 20),
        ),
        (
            "http1/content_coding_tolerated",
            "The same, passed on to its end: gateways do not decode by default.",
            scenario(|hop| {
                hop.open().request().reply(NOT_GZIP).ms(20);
                hop.reply(b"<body>hello</body>").request().reply(OK).close();
            }),
        ),
        (
            "http1/content_coding_stalled",
            "The same, but the upstream stops, and the gateway's patience ends.",
            silent(NOT_GZIP, 2000),
        ),
        (
            "http1/gzip_left",
            "A gzip body that is one: the gateway has its own reason to close.",
            silent(GZIP, 20),
        ),
        (
            "http1/gzip_cut",
            "A gzip body that is cut short is a cut.",
            answered(GZIP),
        ),
        (
            "http1/gateway_leaves_inside_the_body",
            "The gateway closes while data flow: it has its own reason.",
            silent(SIZED, 20),
        ),
        (
            "http1/gateway_window_closed",
            "The gateway does not read: its own client is slow, or gone.",
            scenario(|hop| {
                hop.open().request();
                hop.gateway_window = 0;
                hop.reply(SIZED).ms(5000).gateway_rst();
            }),
        ),
        (
            "http1/event_stream",
            "A stream of events may be silent.",
            silent(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n",
                30_000,
            ),
        ),
        (
            "http1/failure_between_healthy_exchanges",
            "One failure among three exchanges of a connection, and its place is told.",
            scenario(|hop| {
                hop.open().request().reply(OK).request();
                hop.reply(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
                hop.request().reply(OK).close();
            }),
        ),
    ]
}
