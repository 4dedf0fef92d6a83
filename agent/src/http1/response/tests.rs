//! Framing, findings, and the same result in any split.

use proptest::prelude::*;

use super::*;
use crate::http1::HeadSize;

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
