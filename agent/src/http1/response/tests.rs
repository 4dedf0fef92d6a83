//! Framing, findings, and the same result in any split.

use proptest::prelude::*;

use super::*;
use crate::http1::{Coding, HeadSize};

/// What happened, one word each, with the bytes taken before it.
fn run(parser: &mut ResponseParser, mut bytes: &[u8], out: &mut Vec<String>) {
    loop {
        let (taken, event) = parser.take(bytes, RequestKind::Plain);
        bytes = &bytes[taken..];
        match event {
            Some(ResponseEvent::End) => {
                let kinds: Vec<_> = parser
                    .findings()
                    .iter()
                    .map(|found| (found.kind, found.offset))
                    .collect();
                out.push(format!("end {:?} {kinds:?}", parser.status()));
                parser.reset();
            }
            Some(event) => out.push(format!("{event:?}")),
            None if bytes.is_empty() => return,
            None => assert!(taken > 0, "no progress"),
        }
    }
}

fn whole(bytes: &[u8]) -> (Vec<String>, ResponseParser) {
    let mut parser = ResponseParser::new(65_536);
    let mut out = Vec::new();
    run(&mut parser, bytes, &mut out);
    (out, parser)
}

fn first_finding(bytes: &[u8]) -> Finding {
    let mut parser = ResponseParser::new(65_536);
    let mut bytes = bytes;
    while parser.findings().is_empty() && !bytes.is_empty() {
        let (taken, _) = parser.take(bytes, RequestKind::Plain);
        bytes = &bytes[taken..];
    }
    parser.findings().into_iter().next().expect("a finding")
}

#[test]
fn framing_of_healthy_responses() {
    let (out, parser) =
        whole(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 204 No\r\n\r\n");
    assert_eq!(
        out,
        [
            "Begin",
            "Head",
            "end Some(200) []",
            "Begin",
            "Head",
            "end Some(204) []"
        ]
    );
    assert_eq!(parser.stage(), Stage::Idle);
    let (out, _) =
        whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(out, ["Begin", "Head", "end Some(200) []"]);
    let (out, parser) = whole(b"HTTP/1.0 200 OK\r\n\r\nuntil close");
    assert_eq!(out, ["Begin", "Head"]);
    assert_eq!(parser.stage(), Stage::BodyUntilClose);
}

#[test]
fn interim_responses_come_before_the_final_one() {
    let (out, _) = whole(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(
        out,
        [
            "Begin",
            "Head",
            "end Some(200) [(Interim, 0), (InterimHints, 25)]"
        ]
    );
}

#[test]
fn a_response_to_head_has_no_body() {
    let mut parser = ResponseParser::new(65_536);
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let mut at = 0;
    let mut events = Vec::new();
    loop {
        let (taken, event) = parser.take(&bytes[at..], RequestKind::Head);
        at += taken;
        match event {
            Some(event) => events.push(event),
            None if at == bytes.len() => break,
            None => {}
        }
    }
    assert_eq!(
        events,
        [
            ResponseEvent::Begin,
            ResponseEvent::Head,
            ResponseEvent::End
        ]
    );
}

#[test]
fn a_finding_names_byte_offset_and_header() {
    let found = first_finding(b"HTTP/1.1 200 OK\r\nA: b\r\nX-Bad : c\r\n\r\n");
    assert_eq!(found.kind, FindingKind::SpaceBeforeColon);
    assert_eq!(found.offset, 28);
    assert_eq!(found.header.as_deref(), Some("X-Bad"));
    assert_eq!(found.excerpt, b"X-Bad : c");
    let found = first_finding(b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello");
    assert_eq!(
        (found.kind, found.offset),
        (FindingKind::ContentLengthSyntax, 33)
    );
    assert_eq!(found.excerpt, b"0x5");
    let found = first_finding(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!");
    assert_eq!((found.kind, found.offset), (FindingKind::ChunkDataEnd, 55));
    assert_eq!(found.excerpt, b"5\r\nhello!");
}

#[test]
fn a_gap_in_a_sized_body_is_skipped_and_in_a_head_is_not() {
    let (_, mut parser) = whole(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
    assert_eq!(parser.skip(90), (90, None));
    assert_eq!(parser.skip(50), (7, Some(ResponseEvent::End)));
    let (_, mut parser) = whole(b"HTTP/1.1 200 OK\r\nContent-Le");
    assert_eq!(parser.skip(5), (5, None));
    assert_eq!(parser.stage(), Stage::Lost);
}

#[test]
fn a_head_above_the_cap_is_measured_not_kept() {
    let mut parser = ResponseParser::new(100);
    let mut out = Vec::new();
    run(&mut parser, b"HTTP/1.1 200 OK\r\nX-Big: ", &mut out);
    for _ in 0..50 {
        run(&mut parser, &[b'x'; 200], &mut out);
    }
    assert_eq!(parser.stage(), Stage::Head);
    assert!(parser.partial_head().is_empty());
    let found = parser.findings().pop().expect("a finding");
    let size = HeadSize {
        bytes: 10_024,
        line: 10_007,
        fields: 0,
    };
    assert_eq!(found.kind, FindingKind::HeadTooLarge(size));
    assert_eq!(found.header.as_deref(), Some("X-Big"));
    run(&mut parser, b"\r\nY: z\r\n\r\n", &mut out);
    assert_eq!(parser.stage(), Stage::Lost);
    let size = HeadSize {
        bytes: 10_034,
        fields: 2,
        ..size
    };
    let kinds: Vec<_> = parser.findings().iter().map(|found| found.kind).collect();
    assert_eq!(kinds, [FindingKind::HeadTooLarge(size)]);
}

proptest! {
    /// The same bytes in any split give the same events and findings.
    #[test]
    fn split_invariance(
        line in prop::sample::select(&["HTTP/1.1 200 OK", "HTTP/1.1  2x", "http/1.1 200", "SSH-2.0-x", "\r\nHTTP/1.1 20"][..]),
        fields in prop::collection::vec(prop::sample::select(&[
            "Content-Length: 4", "Content-Length: 5", "Transfer-Encoding: chunked", "A: b", "A : b", " fold", "no colon", "X\0: a",
        ][..]), 0..4),
        body in prop::sample::select(&["hello", "4\r\nabcd\r\n0\r\n\r\n", "4;x=y\nabcd\r\n0\r\nT: t\r\n\r\n", "zz\r\n", " 4\r\nabcdXY"][..]),
        cuts in prop::collection::vec(0_usize..200, 0..12),
    ) {
        let mut head = vec![line];
        head.extend(fields);
        let bytes = format!("{}\r\n\r\n{body}", head.join("\r\n"));
        let bytes = bytes.as_bytes();
        let (want, want_parser) = whole(bytes);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut parser = ResponseParser::new(65_536);
        let mut out = Vec::new();
        for pair in cuts.windows(2) {
            run(&mut parser, &bytes[pair[0]..pair[1]], &mut out);
        }
        prop_assert_eq!(out, want);
        prop_assert_eq!(parser.findings(), want_parser.findings());
        prop_assert_eq!(parser.stage(), want_parser.stage());
    }

    /// Nothing from the wire panics.
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), gap in 0_u64..50) {
        let (_, mut parser) = whole(&bytes);
        parser.skip(gap);
        run(&mut parser, &bytes, &mut Vec::new());
    }
}

/// The coding that the body is found not to have, with the offset and the first bytes.
fn coding(parser: &ResponseParser) -> Option<(Coding, u64, Vec<u8>)> {
    parser
        .findings()
        .into_iter()
        .find_map(|found| match found.kind {
            FindingKind::ContentCoding(coding) => Some((coding, found.offset, found.excerpt)),
            _ => None,
        })
}

#[test]
fn a_body_begins_as_its_content_coding_says() {
    let sized = |head: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {head}\r\nContent-Length: 100\r\n\r\n");
        (head.len() as u64, [head.as_bytes(), body].concat())
    };
    for (head, body, bad) in [
        (
            "200 OK\r\nContent-Encoding: gzip",
            &b"<html>"[..],
            Some(Coding::Gzip),
        ),
        (
            "200 OK\r\nContent-Encoding: zstd",
            b"<html>",
            Some(Coding::Zstd),
        ),
        (
            "200 OK\r\nContent-Encoding: gzip",
            b"\x1f\x8b\x08\0\0",
            None,
        ),
        ("200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b", None),
        ("200 OK\r\nContent-Encoding: gzip", b"", None),
        (
            "200 OK\r\nContent-Encoding: zstd",
            b"\x28\xb5\x2f\xfd",
            None,
        ),
        ("200 OK\r\nContent-Encoding: br", b"<html>", None),
        ("200 OK\r\nContent-Type: gzip", b"<html>", None),
        ("206 Part\r\nContent-Encoding: gzip", b"<html>", None),
        ("304 Same\r\nContent-Encoding: gzip", b"", None),
    ] {
        let (at, bytes) = sized(head, body);
        let (_, parser) = whole(&bytes);
        let found = bad.map(|coding| (coding, at, body[..4].to_vec()));
        assert_eq!(coding(&parser), found, "{head} {body:x?}");
        assert!(!parser.is_broken(), "{head}");
        // Behind the first bytes, bodies are passed over again.
        assert_eq!(parser.awaits_body(5), body.len() >= 4, "{head}");
    }
}

#[test]
fn a_content_coding_is_known_in_chunks_and_until_close() {
    let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n";
    let chunked = |body: &str| format!("{head}Transfer-Encoding: chunked\r\n\r\n{body}");
    let found = |text: &str| coding(&whole(text.as_bytes()).1).map(|(_, at, first)| (at, first));
    let at = chunked("").len() as u64 + 3;
    assert_eq!(
        found(&chunked("1\r\n<\r\n2\r\nht\r\n8\r\nml")),
        Some((at, b"<htm".to_vec()))
    );
    assert_eq!(found(&chunked("")), None);
    let plain = format!("{head}\r\n<h");
    assert_eq!(
        found(&plain),
        Some((plain.len() as u64 - 2, b"<h".to_vec()))
    );
    // Another transfer coding lies around it.
    let gzipped = format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n5\r\n<html");
    assert_eq!(found(&gzipped), None);
}

#[test]
fn a_gap_in_the_first_bytes_hides_the_content_coding() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n";
    let mut parser = ResponseParser::new(65_536);
    run(&mut parser, head, &mut Vec::new());
    assert!(!parser.pass(2), "the first bytes matter");
    parser.skip(2);
    run(&mut parser, b"html", &mut Vec::new());
    assert_eq!(coding(&parser), None);
    assert!(parser.pass(2));
}

proptest! {
    #[test]
    fn a_content_coding_is_judged_alike_in_any_split(
        zstd: bool,
        body in prop::collection::vec(prop::sample::select(vec![0x1f_u8, 0x8b, 8, 0x28, 0xb5, 0x50, b'<']), 0..6),
        framing in 0..3_usize,
        cuts in prop::collection::vec(1_usize..40, 0..8),
    ) {
        let name = if zstd { "zstd" } else { "gzip" };
        let (field, body) = match framing {
            0 => ("Content-Length: 9\r\n", body),
            1 => ("", body),
            _ => {
                let pieces = body.iter().map(|byte| [b"1\r\n", &[*byte][..], b"\r\n"].concat());
                ("Transfer-Encoding: chunked\r\n", pieces.collect::<Vec<_>>().concat())
            }
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\n{field}\r\n");
        let bytes = [head.as_bytes(), &body].concat();
        let (_, expected) = whole(&bytes);
        let mut parser = ResponseParser::new(65_536);
        let mut rest = &bytes[..];
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            run(&mut parser, piece, &mut Vec::new());
            rest = behind;
        }
        run(&mut parser, rest, &mut Vec::new());
        prop_assert_eq!(parser.findings(), expected.findings());
        prop_assert_eq!(parser.awaits_body(1), expected.awaits_body(1));
    }
}

#[test]
fn a_head_of_which_the_rest_was_not_captured_may_be_too_large_already() {
    let head = format!("HTTP/1.1 200 OK\r\nSet-Cookie: {}", "x".repeat(5000));
    for max_head_bytes in [64 * 1024, 1000] {
        let mut parser = ResponseParser::new(max_head_bytes);
        let mut rest = head.as_bytes();
        while !rest.is_empty() {
            let (taken, _) = parser.take(rest, RequestKind::Plain);
            rest = &rest[taken..];
        }
        parser.skip(1);
        assert_eq!(parser.stage(), Stage::Lost);
        let found = parser.take_findings();
        let fails = |comm| {
            found
                .iter()
                .any(|found| found.kind.fails_behind(Some(comm)))
        };
        assert!(fails("nginx") && !fails("haproxy"));
    }
}
