//! The command `hopscope analyze` as a person runs it: what it prints, where, and how it ends.

#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// An Ethernet frame with a segment between a gateway and the upstream 10.0.0.2:8080.
fn frame(port: u16, from_upstream: bool, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut ends = [(10u32 << 24 | 1, port), (10u32 << 24 | 2, 8080)];
    if from_upstream {
        ends.reverse();
    }
    let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0]].concat();
    frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    for (address, _) in ends {
        frame.extend(address.to_be_bytes());
    }
    for (_, port) in ends {
        frame.extend(port.to_be_bytes());
    }
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, flags, 4, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

/// A pcap file whose packets are a millisecond apart, from second `begin` on.
fn capture(begin: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
    for (index, frame) in (0u32..).zip(frames) {
        let length = u32::try_from(frame.len()).unwrap();
        for field in [begin, index * 1000, length, length] {
            file.extend(field.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// A connect that is refused.
fn refused(port: u16) -> Vec<Vec<u8>> {
    vec![
        frame(port, false, 0x02, 100, 0, b""),
        frame(port, true, 0x14, 0, 101, b""),
    ]
}

/// An exchange without a fault.
fn healthy(port: u16) -> Vec<Vec<u8>> {
    let request = b"GET /ok HTTP/1.1\r\nHost: a\r\n\r\n";
    let response = b"HTTP/1.1 204 No Content\r\n\r\n";
    let sent = 101 + u32::try_from(request.len()).unwrap();
    vec![
        frame(port, false, 0x02, 100, 0, b""),
        frame(port, true, 0x12, 500, 101, b""),
        frame(port, false, 0x18, 101, 501, request),
        frame(port, true, 0x18, 501, sent, response),
    ]
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn analyze(arguments: &[&str], files: &[&Path], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hopscope"))
        .arg("analyze")
        .args(arguments)
        .args(files)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_refused_connect_is_found_in_text_and_in_json() {
    let directory = tempfile::tempdir().unwrap();
    let file = [healthy(40_000), refused(40_001)].concat();
    let file = write(directory.path(), "a.pcap", &capture(1_700_000_000, &file));

    let output = analyze(&[], &[&file], b"");
    let shown = text(&output.stdout);
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), ""),
        "{shown}"
    );
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].contains("a.pcap: 6 packets, "), "{shown}");
    assert!(lines[0].ends_with(", Ethernet"), "{shown}");
    assert_eq!(lines[1], "2 hops, 1 upstream, 1 exchange, 1 failure");
    assert!(lines[3].starts_with("UPSTREAM"), "{shown}");
    let row: Vec<_> = lines[4].split_whitespace().collect();
    let expected = [
        "10.0.0.2:8080",
        "2",
        "1",
        "1",
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20Z",
        "1",
        "tcp.connect_refused",
    ];
    assert_eq!(row, expected);
    assert_eq!(lines[6], "1 failure");
    assert!(lines[7].contains("tcp.connect_refused"), "{shown}");

    let output = analyze(&["--format", "jsonl", "--node", "edge-1"], &[&file], b"");
    let events: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["cause"], "tcp.connect_refused");
    assert_eq!(events[0]["node"], "edge-1");
    assert_eq!(events[0]["upstream"]["port"], 8080);
}

#[test]
fn options_leave_out_other_hops() {
    let file = capture(1_700_000_000, &refused(40_000));
    for (option, value, failures) in [
        ("--gateway", "10.0.0.1", 1),
        ("--gateway", "10.0.0.2", 0),
        ("--upstream", "10.0.0.0/8:8080", 1),
        ("--upstream", "10.0.0.0/8:80", 0),
        ("--upstream", ":8080", 1),
    ] {
        let output = analyze(&[option, value, "--format", "jsonl", "-"], &[], &file);
        assert_eq!(
            text(&output.stdout).lines().count(),
            failures,
            "{option} {value}"
        );
    }
    let output = analyze(&["--upstream", "ten", "-"], &[], &file);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("bad upstream `ten`"));
}

#[test]
fn parts_of_a_capture_are_read_in_the_order_of_their_packets() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = healthy(40_000);
    let rest = first.split_off(3);
    // Named so that the order of names is the wrong one.
    let later = write(directory.path(), "a.pcap", &capture(1_700_000_001, &rest));
    let earlier = write(directory.path(), "b.pcap", &capture(1_700_000_000, &first));
    let output = analyze(&[], &[&later, &earlier], b"");
    let shown = text(&output.stdout);
    assert!(shown.starts_with("2 files: 4 packets, "), "{shown}");
    assert!(
        shown.contains("\n1 hop, 1 upstream, 1 exchange, 0 failures\n"),
        "{shown}"
    );
    assert!(shown.ends_with("\nno failure found\n"), "{shown}");
}

#[test]
fn a_file_cut_off_is_analysed_with_a_warning() {
    let mut file = capture(1_700_000_000, &[refused(40_000), refused(40_001)].concat());
    file.truncate(file.len() - 3);
    let output = analyze(&["--format", "jsonl", "-"], &[], &file);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stderr),
        "hopscope: warning: standard input: file ends inside a record at offset 234, after 3 \
         packets; what comes before is analysed\n"
    );
    assert!(text(&output.stdout).contains("tcp.connect_refused"));
}

#[test]
fn what_is_no_capture_ends_with_one_line_and_code_2() {
    let directory = tempfile::tempdir().unwrap();
    let good = write(
        directory.path(),
        "good.pcap",
        &capture(1_700_000_000, &refused(40_000)),
    );
    let bad = write(directory.path(), "notes.txt", b"Dear diary");
    let output = analyze(&[], &[&good, &bad], b"");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""));
    assert_eq!(
        text(&output.stderr),
        format!(
            "hopscope: {}: not a pcap or pcapng capture: text, first bytes 44 65 61 72 20 64 69 61\n",
            bad.display()
        )
    );
    let missing = directory.path().join("missing.pcap");
    let output = analyze(&[], &[&missing], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("missing.pcap: cannot read: No such file"));
    assert_eq!(analyze(&[], &[], b"").status.code(), Some(2));
}
