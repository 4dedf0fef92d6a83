use std::process::Command;

use super::*;

/// The whole section.
fn write(capture: &Capture, id: CaptureId, salt: u64) -> Vec<u8> {
    super::write(capture, id).seal(salt).0
}
use crate::model::GatewayAnswer;
use crate::record::testing::{FROM, START, TO, at, capture, healthy, inside};

fn section() -> Vec<u8> {
    write(&capture(START), CaptureId::at(START), 1)
}

#[test]
fn the_index_comes_back() {
    let section = section();
    assert!(is_sealed(&section, 1));
    assert!(!is_sealed(&section, 2), "another file's salt");
    let info = read_info(&section).unwrap();
    assert_eq!((info.id, info.time), (CaptureId::at(START), START));
    assert_eq!(&*info.node, "gw1");
    assert_eq!(info.cause, Some(Cause::Http1StatusLineInvalid));
    assert_eq!(info.event_id.as_deref(), Some("17979cfe362a0000-7-1"));
    assert_eq!(info.upstream.to_string(), "10.0.0.2:8080");
    assert_eq!(info.exchange.method.as_deref(), Some("GET"));
    assert_eq!((info.packets, info.bytes), (4, section.len() as u64));
    let sample = write(&healthy(START), CaptureId::at(START), 1);
    assert_eq!(read_info(&sample).unwrap().cause, None);
    for capture in [capture(START), healthy(START)] {
        let (section, info) = super::write(&capture, CaptureId::at(START)).seal(1);
        assert_eq!(read_info(&section), Some(info));
    }
}

#[test]
fn the_verdict_tells_what_the_client_got() {
    let mut event = crate::record::testing::event();
    event.hidden_from_client = true;
    assert!(verdict_line(&event).ends_with("; the client saw no failure"));
    let answer = |status| GatewayAnswer {
        status,
        client: SocketAddr::from(([10, 0, 0, 9], 5000)).into(),
        time: START,
        method: None,
        path: None,
        host: None,
        request_id: None,
        latency_ms: 1.0,
        attempts: Vec::new(),
        candidates: Vec::new(),
        contested: false,
    };
    event.gateway_answer = Some(Box::new(answer(Some(502))));
    assert!(verdict_line(&event).ends_with("; client 10.0.0.9:5000 got 502"));
    event.gateway_answer = Some(Box::new(answer(None)));
    assert!(verdict_line(&event).ends_with("; client 10.0.0.9:5000 got no answer"));
}

#[test]
fn what_comes_behind_the_verdict_does_not_bear_it() {
    let mut late = capture(START);
    let event = late.event.as_mut().unwrap();
    event.evidence.clear();
    event.time = late.packets[2].at;
    assert_eq!(decisive_packet(&late), 2);
    let event = late.event.as_mut().unwrap();
    event.time = at(1000);
    assert_eq!(decisive_packet(&late), 3);
}

#[test]
fn the_event_is_in_the_header() {
    let section = section();
    let options = &section[SECTION_FIXED..header_len(&section) - 4];
    let json: serde_json::Value = serde_json::from_slice(custom_json(options).unwrap()).unwrap();
    assert_eq!(json["event"]["cause"], "http1.status_line_invalid");
    assert_eq!(json["event"]["gateway"]["pid"], 4242);
    assert_eq!(json["capture"]["path"], "/shop");
}

#[test]
fn an_event_too_large_for_an_option_is_left_out() {
    let mut large = capture(START);
    let event = large.event.as_mut().unwrap();
    event.evidence[0].text = "x".repeat(70_000);
    event.evidence[0].bytes = vec![b'y'; 3000];
    let section = write(&large, CaptureId::at(START), 1);
    assert!(is_sealed(&section, 1));
    assert!(read_info(&section).is_some());
    assert!(section.len() < 10_000);
}

#[test]
fn own_reader_finds_the_packets() {
    let mut short = capture(START);
    short.packets[3].bytes.truncate(60);
    let section = write(&short, CaptureId::at(START), 1);
    let mut reader = crate::source::Reader::open(&section[..]).unwrap();
    for sent in &short.packets {
        let read = reader.next_packet().unwrap().unwrap();
        assert_eq!(
            (read.at, read.data, read.wire_len),
            (sent.at, &sent.bytes[..], sent.wire_len)
        );
        assert_eq!(read.link, crate::input::frame::LinkType::RAW);
    }
    assert!(reader.next_packet().unwrap().is_none());
    assert_eq!((reader.cut(), reader.skipped()), (None, 0));
}

/// What tshark prints about a file; `None` where there is no tshark.
fn tshark(file: &std::path::Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("tshark")
        .arg("-r")
        .arg(file)
        .args(arguments)
        .output();
    let output = output.ok()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(
        !errors.contains("corrupt") && !errors.contains("damaged"),
        "{errors}"
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn wireshark_shows_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.pcapng");
    let mut short = capture(at(1000));
    short.packets[3].bytes.truncate(60);
    let second = write(&short, CaptureId::at(at(1000)), 1);
    std::fs::write(&path, [section(), second].concat()).unwrap();
    let fields = [
        "-T",
        "fields",
        "-e",
        "frame.time_epoch",
        "-e",
        "frame.cap_len",
        "-e",
        "frame.len",
    ];
    let fields = [&fields[..], &["-e", "frame.comment"]].concat();
    let Some(text) = tshark(&path, &fields) else {
        return;
    };
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 8, "{text}");
    assert!(
        lines[0].starts_with("1700000000.123456789\t40\t40"),
        "{text}"
    );
    let verdict = "http1.status_line_invalid (proven), upstream 10.0.0.2:8080: the status is no \
                   number at offset 9: HTTP/1.1 2x0 OK";
    assert!(lines[3].ends_with(verdict), "{text}");
    assert!(lines[7].starts_with("1700000000.126456789\t60\t"), "{text}");
    assert_eq!(text.matches("proven").count(), 2);
    let malformed = tshark(&path, &["-Y", "_ws.malformed"]).unwrap();
    assert_eq!(malformed, "");
    let Ok(output) = Command::new("capinfos").arg(&path).output() else {
        return;
    };
    let about = String::from_utf8_lossy(&output.stdout);
    assert!(about.contains("gateway nginx (pid 4242)"), "{about}");
    assert!(about.contains("container c0ffee"), "{about}");
}

#[test]
fn other_bytes_are_no_section() {
    let section = section();
    for length in 0..section.len() {
        assert!(!is_sealed(&section[..length], 1));
        let _ = read_info(&section[..length]);
    }
    assert_eq!(section_len(&section), Some(section.len()));
    let mut endless = section;
    endless[16..24].fill(0xff);
    assert_eq!(section_len(&endless), None);
}

#[test]
fn what_was_inside_tls_is_shown_as_http_and_marked() {
    let mut capture = capture(START);
    capture.packets.push(inside(
        at(5),
        TO,
        0,
        b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n",
    ));
    let response = b"HTTP/1.1 418 No\r\nContent-Length: 0\r\n\r\n";
    capture.packets.push(inside(at(6), FROM, 0, response));
    let section = write(&capture, CaptureId::at(START), 1);
    let mut reader = crate::source::Reader::open(&section[..]).unwrap();
    let mut links = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        links.push(packet.link.0);
    }
    assert_eq!(links, [101, 101, 101, 101, 252, 252]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture.pcapng");
    std::fs::write(&file, &section).unwrap();
    let fields = [
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "http.request.uri",
        "-e",
        "http.response.code",
        "-e",
        "tcp.srcport",
        "-e",
        "frame.comment",
    ];
    if let Some(text) = tshark(&file, &fields) {
        let inside: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("inside TLS\t"))
            .collect();
        assert_eq!(inside.len(), 2, "{text}");
        assert!(
            inside[0].contains("/inner") && inside[0].contains("SSL_write"),
            "{text}"
        );
        assert!(
            inside[1].contains("418") && inside[1].contains("SSL_read"),
            "{text}"
        );
        assert!(!text.contains("Malformed"), "{text}");
    }
}
