//! Broken, cut and late responses.

use super::sim::{GET, OK, Sim, TURN};
use crate::model::{Cause, Departure, HopEvent, Input, Proof};

/// The event of a fresh hop whose upstream answers these bytes and then closes.
#[track_caller]
fn answered(comm: Option<&'static str>, bytes: &[u8], cause: Cause) -> HopEvent {
    let mut sim = comm.map_or_else(Sim::packets, Sim::live);
    sim.open()
        .request()
        .reply(bytes)
        .upstream_fin()
        .gateway_fin();
    sim.expect(cause, Proof::Proven)
}

#[track_caller]
fn tolerated(comm: &'static str, bytes: &[u8]) {
    let mut sim = Sim::live(comm);
    sim.open()
        .request()
        .reply(bytes)
        .upstream_fin()
        .gateway_fin()
        .expect_none();
}

#[test]
fn own_error() {
    for bytes in [
        &b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"[..],
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 502 No\r\n\r\nuntil close",
    ] {
        let event = answered(Some("nginx"), bytes, Cause::UpstreamOwnError);
        assert!(event.exchange.unwrap().status.unwrap() >= 500);
        assert_eq!(event.recommended_status, None);
    }
}

#[test]
fn healthy_responses_give_nothing() {
    for bytes in [
        OK,
        b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 200\r\nContent-Length: 0005\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nuntil close",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: t\r\n\r\n",
        b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    ] {
        for comm in ["nginx", "haproxy", "something"] {
            tolerated(comm, bytes);
        }
    }
}

#[test]
fn not_http() {
    let event = answered(None, b"SSH-2.0-OpenSSH_9.2\r\n", Cause::Http1NotHttp);
    assert!(
        event.evidence[0].text.contains("SSH"),
        "{:?}",
        event.evidence
    );
    answered(None, b"<html>no head</html>", Cause::Http1NotHttp);
    answered(
        None,
        b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        Cause::Http1NotHttp,
    );
    answered(
        None,
        b"\x15\x03\x03\0\x02\x02\x46",
        Cause::TlsPlaintextToTlsPort,
    );
}

#[test]
fn a_banner_that_comes_before_the_request_is_its_answer() {
    let mut sim = Sim::live("haproxy");
    sim.open()
        .reply(b"220 mail ESMTP\r\n")
        .request()
        .gateway_fin();
    let event = sim.expect(Cause::Http1NotHttp, Proof::Proven);
    assert!(
        event.evidence[0].text.contains("SMTP"),
        "{:?}",
        event.evidence
    );
}

#[test]
fn the_rest_of_a_response_is_no_answer_to_the_next_request() {
    let mut sim = Sim::live("nginx");
    sim.seeded();
    sim.reply(b"the rest of a body").request().reply(OK);
    sim.upstream_fin().gateway_fin().expect_none();
    assert_eq!(sim.engine.stats().exchanges, 1);
}

#[test]
fn status_line_invalid() {
    for line in [
        "HTTP/1.1 2xx OK",
        "HTTP/2 200",
        "http/1.1 200 OK",
        "ICY 200 OK",
        "HTTP/1.1 20 OK",
    ] {
        let bytes = format!("{line}\r\nContent-Length: 5\r\n\r\nhello");
        answered(
            Some("nginx"),
            bytes.as_bytes(),
            Cause::Http1StatusLineInvalid,
        );
    }
}

#[test]
fn header_syntax_by_what_the_gateway_rejects() {
    let event = answered(
        Some("nginx"),
        b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 5\r\n\r\nhello",
        Cause::Http1HeaderSyntax,
    );
    assert_eq!(event.evidence[0].offset, Some(20));
    assert!(event.evidence[0].text.contains("X-A"));
    let no_colon = b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 5\r\n\r\nhello";
    tolerated("nginx", no_colon);
    answered(Some("haproxy"), no_colon, Cause::Http1HeaderSyntax);
    answered(None, no_colon, Cause::Http1HeaderSyntax);
}

#[test]
fn content_length_invalid() {
    for value in ["+5", "-5", "0x5", "", "abc", "99999999999999999999999"] {
        let bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nhello");
        answered(
            Some("haproxy"),
            bytes.as_bytes(),
            Cause::Http1ContentLengthInvalid,
        );
    }
}

#[test]
fn chunk_syntax() {
    for body in [
        "ZZ\r\nhello",
        "5\r\nhelloXX",
        "-5\r\nhello",
        "\r\nhello",
        "ffffffffffffffffff\r\n",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        answered(Some("nginx"), bytes.as_bytes(), Cause::Http1ChunkSyntax);
    }
}

#[test]
fn cut_short_by_fin_and_rst() {
    for (bytes, cause) in [
        (&b"HTTP/1.1 20"[..], Cause::Http1HeadTruncated),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Cause::Http1HeadTruncated),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
            Cause::Http1BodyTruncated,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Cause::Http1LastChunkMissing,
        ),
    ] {
        answered(Some("nginx"), bytes, cause);
        answered(None, bytes, cause);
        let mut sim = Sim::live("haproxy");
        sim.open()
            .request()
            .reply(bytes)
            .upstream_rst()
            .expect(cause, Proof::Proven);
    }
    let mut sim = Sim::packets();
    sim.open()
        .request()
        .reply(b"HTTP/1.0 200 OK\r\n\r\nuntil")
        .upstream_rst();
    sim.expect(Cause::Http1EofBodyReset, Proof::Proven);
}

#[test]
fn a_cut_5xx_is_a_cut() {
    answered(
        Some("nginx"),
        b"HTTP/1.1 500 No\r\nContent-Length: 50\r\n\r\nhello",
        Cause::Http1BodyTruncated,
    );
}

#[test]
fn stalls() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Le";
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(head).ms(2000).gateway_fin();
    sim.expect(Cause::UpstreamStalledInHead, Proof::Inferred);
    let body = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(body).ms(2000).gateway_fin();
    let event = sim.expect(Cause::UpstreamStalledInBody, Proof::Inferred);
    assert!(event.evidence[0].text.contains("45 body bytes missing"));
}

#[test]
fn a_gateway_that_leaves_while_data_flows_has_its_own_reason() {
    let body = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello";
    let mut sim = Sim::live("nginx");
    sim.open()
        .request()
        .reply(body)
        .ms(20)
        .gateway_fin()
        .expect_none();
    // It does not read: its own client is slow, or gone.
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.window = 0;
    sim.reply(body).ms(5000).gateway_rst().expect_none();
    // A stream of events may be silent.
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.reply(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    sim.ms(30_000).gateway_fin().expect_none();
}

#[test]
fn a_bad_content_coding_needs_a_gateway_that_minds() {
    let body = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5000\r\n\r\n<html>";
    for reset in [false, true] {
        let mut sim = Sim::live("nginx");
        sim.open().request().reply(body).ms(20);
        if reset {
            sim.gateway_rst();
        } else {
            sim.gateway_fin();
        }
        let event = sim.expect(Cause::Http1ContentCodingBad, Proof::Inferred);
        assert!(event.rejected_by.is_empty() && event.tolerated_by.is_empty());
    }
    // Its client left, or its window was closed.
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(body).ms(20).gateway_fin();
    sim.input(Input::ClientLeft {
        turn: TURN,
        departure: Departure::Waiting,
    });
    sim.expect_none();
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.window = 0;
    sim.reply(body).ms(20).gateway_rst().expect_none();
    // It waits for the rest, and the finding alone is none of its business.
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(body).ms(1000);
    sim.expect_none();
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(body).ms(20).upstream_fin();
    sim.expect(Cause::Http1BodyTruncated, Proof::Proven);
}

#[test]
fn one_event_where_the_upstream_stays_open() {
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(b"SSH-2.0-OpenSSH_9.2\r\n");
    let event = sim.ms(600).expect(Cause::Http1NotHttp, Proof::Proven);
    assert_eq!(event.exchange.unwrap().ordinal, 1);
    sim.ms(5000).gateway_fin().upstream_rst().expect_none();
}

#[test]
fn a_failure_does_not_hide_the_next_exchange() {
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(OK).request();
    sim.reply(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        .request()
        .reply(OK);
    let event = sim.expect(Cause::UpstreamOwnError, Proof::Proven);
    assert_eq!(event.exchange.unwrap().ordinal, 2);
}

#[test]
fn a_response_to_head_needs_no_body() {
    let mut sim = Sim::packets();
    sim.open().send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").ack();
    sim.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        .upstream_fin()
        .expect_none();
}

#[test]
fn an_early_response_ends_its_exchange() {
    let mut sim = Sim::packets();
    sim.open()
        .send(b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\nabc")
        .ack();
    sim.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
        .upstream_fin()
        .gateway_fin()
        .expect_none();
}

#[test]
fn an_early_response_and_a_reset_while_the_request_is_sent() {
    const POST: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\nabc";
    for answer in [
        &b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 413 Too large\r\nConnection: close\r\n\r\nToo la",
    ] {
        for comm in [None, Some("nginx")] {
            let mut sim = comm.map_or_else(Sim::packets, Sim::live);
            sim.open().send(POST).ack().reply(answer).upstream_rst();
            let event = sim.expect(Cause::Http1EarlyResponse, Proof::Proven);
            assert_eq!(event.exchange.unwrap().status, Some(413));
        }
    }
    // The gateway had the answer and closed; the reset is for what it still sent.
    let mut sim = Sim::packets();
    sim.open().send(POST).ack();
    sim.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")
        .gateway_fin()
        .upstream_rst()
        .expect_none();
}

#[test]
fn upgrades() {
    let upgrade = b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let switched = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n\x01\x02\x03";
    let mut sim = Sim::live("nginx");
    sim.open().send(upgrade).ack().reply(switched);
    sim.upstream_fin().gateway_fin().expect_none();
    let mut sim = Sim::live("nginx");
    sim.open().send(upgrade).ack().reply(OK);
    sim.expect(Cause::Http1UpgradeFailed, Proof::Proven);
    // Being sent elsewhere is an answer.
    let mut sim = Sim::live("nginx");
    sim.open().send(upgrade).ack();
    sim.reply(b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n")
        .expect_none();
    // So is a plain response where a newer protocol was only offered.
    let mut sim = Sim::live("caddy");
    sim.open()
        .send(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n")
        .ack()
        .reply(OK)
        .expect_none();
    answered(Some("haproxy"), switched, Cause::Http1UpgradeFailed);
    tolerated("caddy", switched);
}

#[test]
fn interim_responses_by_what_the_gateway_takes() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n";
    tolerated("haproxy", bytes);
    tolerated("something", bytes);
    answered(Some("nginx"), bytes, Cause::Http1InterimMishandled);
    // It was asked for.
    let mut sim = Sim::live("nginx");
    sim.open()
        .send(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n")
        .ack()
        .reply(bytes)
        .expect_none();
    // Without a final response, that is what is missing.
    answered(
        Some("nginx"),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        Cause::Http1HeadTruncated,
    );
}

#[test]
fn a_large_head_is_a_cause_where_the_gateway_bears_it_out() {
    let head = format!("HTTP/1.1 200 OK\r\nSet-Cookie: {}\r\n", "x".repeat(5000));
    let whole = format!("{head}Content-Length: 5\r\n\r\nhello");
    // It stops reading inside the head.
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(head.as_bytes()).gateway_rst();
    let event = sim.expect(Cause::Http1HeaderTooLarge, Proof::Inferred);
    assert!(event.evidence[0].text.contains("Set-Cookie"));
    assert_eq!(event.rejected_by, ["nginx 1.22 (502)", "nginx 1.31 (502)"]);
    // It leaves what came unread.
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(whole.as_bytes()).gateway_rst();
    sim.expect(Cause::Http1HeaderTooLarge, Proof::Inferred);
    // Its limit was raised: the next exchange follows.
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(whole.as_bytes());
    sim.request().reply(OK).ms(10).gateway_rst().expect_none();
    // It is below the gateway's limit, so the gateway had another reason.
    let mut sim = Sim::live("haproxy");
    sim.open().request().reply(whole.as_bytes());
    sim.gateway_rst().expect_none();
    // The upstream closed first: it broke off.
    answered(Some("nginx"), head.as_bytes(), Cause::Http1HeadTruncated);
}

#[test]
fn a_client_that_leaves_during_a_response_with_a_large_head_is_no_refusal() {
    let head = format!("HTTP/1.1 200 OK\r\nSet-Cookie: {}\r\n", "x".repeat(5000));
    let whole = format!("{head}Content-Length: 500\r\n\r\nhello");
    // The same bytes, and the gateway lets go of a client in the turn in which it closes.
    for (reply, departure, refused) in [
        (&whole, Departure::Answered, false),
        (&whole, Departure::Waiting, false),
        // Of half a head no client has anything.
        (&head, Departure::Answered, true),
    ] {
        let mut sim = Sim::live("nginx");
        sim.open()
            .request()
            .reply(reply.as_bytes())
            .ms(10)
            .gateway_fin();
        sim.input(Input::ClientLeft {
            turn: TURN,
            departure,
        });
        if refused {
            sim.expect(Cause::Http1HeaderTooLarge, Proof::Inferred);
        } else {
            sim.expect_none();
            assert_eq!(sim.engine.stats().client_left, 1);
        }
    }
}

#[test]
fn bytes_that_belong_to_no_request_spoil_the_next_response() {
    // They wait on the connection when the next request is sent.
    let mut sim = Sim::packets();
    sim.open()
        .request()
        .reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloGARBAGE\r\n")
        .request()
        .reply(OK)
        .gateway_fin();
    let event = sim.expect(Cause::Http1ExcessBytes, Proof::Proven);
    assert_eq!(event.exchange.unwrap().ordinal, 2);
    // They cross it.
    let mut sim = Sim::packets();
    sim.open().request().reply(OK).send(GET).reply(OK);
    let event = sim.expect(Cause::Http1ExcessBytes, Proof::Proven);
    assert_eq!(event.exchange.unwrap().ordinal, 2);
    // The gateway saw them and closed.
    let mut sim = Sim::packets();
    sim.open().request();
    sim.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloGARBAGE")
        .gateway_fin()
        .expect_none();
}

#[test]
fn a_response_whose_request_was_missed_is_not_excess() {
    let mut sim = Sim::packets();
    sim.open().request().reply(OK);
    sim.reply_unseen(40).reply(OK).request().reply(OK);
    sim.expect_none();
}

#[test]
fn a_farewell_on_an_idle_connection_is_no_answer() {
    let mut sim = Sim::packets();
    sim.open().request().reply(OK).ms(5000);
    sim.reply(b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
        .upstream_fin()
        .send(GET)
        .upstream_rst();
    sim.expect(Cause::PoolStaleReuse, Proof::Proven);
}

#[test]
fn bodies_captured_short_are_skipped() {
    let mut body = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".to_vec();
    let head = body.len();
    body.resize(head + 100_000, b'x');
    let mut sim = Sim::packets();
    sim.open()
        .request()
        .reply_short(&body, head + 10)
        .request()
        .reply(OK)
        .expect_none();
    assert_eq!(sim.engine.stats().exchanges, 2);
}

#[test]
fn a_missed_piece_of_a_body_is_told_on_the_verdict() {
    let mut sim = Sim::packets();
    sim.open()
        .request()
        .reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    sim.reply_unseen(40).reply(b"ten bytes!").upstream_fin();
    let event = sim.expect(Cause::Http1BodyTruncated, Proof::Inferred);
    assert_eq!(event.completeness.lost_segments, 1);
    assert!(event.evidence[0].text.contains("50 body bytes"));
}

#[test]
fn a_missed_head_is_not_judged() {
    let mut sim = Sim::packets();
    sim.open()
        .request()
        .reply_unseen(300)
        .reply(b"the rest")
        .upstream_fin()
        .expect_none();
    assert_eq!(sim.engine.stats().unjudged_gap, 1);
    assert_eq!(sim.engine.stats().events, 0);
}

#[test]
fn other_protocols_are_left_alone() {
    for first in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        b"\x01\x01\0\x01\0\x08",
    ] {
        let mut sim = Sim::live("nginx");
        sim.open()
            .send(first)
            .ack()
            .ms(2000)
            .upstream_rst()
            .expect_none();
        assert_eq!(sim.engine.stats().hops_opaque, 1);
    }
}

#[test]
fn pipelined_requests_each_get_their_verdict() {
    let mut sim = Sim::packets();
    sim.open()
        .send(GET)
        .send(GET)
        .ack()
        .reply(OK)
        .upstream_fin();
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    assert_eq!(event.exchange.unwrap().ordinal, 2);
}

#[test]
fn text_through_a_tunnel_is_no_request() {
    let mut sim = Sim::live("nginx");
    sim.open()
        .send(b"GET /attach HTTP/1.1\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n")
        .ack();
    sim.reply(b"HTTP/1.1 101 Switching\r\nUpgrade: tcp\r\n\r\n");
    sim.send(b"GET me some output").ack().ms(3000);
    sim.upstream_fin().gateway_fin().expect_none();
}

#[test]
fn after_a_missed_head_the_next_exchange_is_judged() {
    let mut sim = Sim::packets();
    sim.open().request().reply_unseen(300).request();
    sim.reply(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
    let event = sim.expect(Cause::UpstreamOwnError, Proof::Inferred);
    assert_eq!(event.exchange.unwrap().ordinal, 2);
    assert_eq!(sim.engine.stats().unjudged_gap, 1);
}

#[test]
fn a_half_closed_gateway_still_gets_its_answer_judged() {
    for mut sim in [Sim::live("haproxy"), Sim::packets()] {
        sim.open().request().gateway_fin().ms(500);
        sim.reply(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
        sim.upstream_fin();
        sim.expect(Cause::UpstreamOwnError, Proof::Proven);
    }
}

/// A chunked response of which only the beginning was captured: where it ends cannot be known.
fn lost_framing() -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nbb8\r\n".to_vec();
    bytes.extend([b'z'; 3000]);
    bytes.extend(b"\r\n0\r\n\r\n");
    bytes
}

#[test]
fn a_response_that_could_not_be_followed_is_over_with_the_next_request() {
    let mut sim = Sim::live("haproxy");
    sim.open().request().reply_short(&lost_framing(), 1000);
    sim.request().reply(OK).ms(2000);
    sim.request().reply_short(&lost_framing(), 1000);
    sim.request().reply(OK).ms(2000).gateway_fin().expect_none();
    let stats = sim.engine.stats();
    assert_eq!((stats.exchanges, stats.unjudged_gap), (4, 2));

    sim = Sim::live("haproxy");
    sim.open().request().reply_short(&lost_framing(), 1000);
    sim.request().reply(OK).request().ms(2000).gateway_fin();
    let event = sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
    assert_eq!(event.exchange.unwrap().ordinal, 3);
}
