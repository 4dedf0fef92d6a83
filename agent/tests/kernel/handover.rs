//! A function that writes inside TLS hands over to another one, or does without it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use hopscope::live::LiveConfig;
use hopscope::model::Direction;
use tempfile::TempDir;

use crate::library::{Running, hop_to};
use crate::support::{Seen, Watch};

const HELLO: usize = 64;
const REQUEST: &[u8] = b"GET /static HTTP/1.1\r\nHost: a\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// What is told of the text of the program of `handover.c`, each piece with its offset.
fn told(name: &str, flags: &[&str]) -> Vec<(Direction, u64, Vec<u8>)> {
    let home = TempDir::new().unwrap();
    let program = home.path().join(name);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/handover.c");
    let compiled = Command::new("cc")
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .args(flags)
        .arg(source)
        .status()
        .unwrap();
    assert!(compiled.success());
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    let child = Command::new(&program)
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .spawn();
    let mut program = Running(child.unwrap());
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![name.to_owned()],
        tls_plaintext: true,
        ..LiveConfig::default()
    });
    watch.until("the program's functions", |watch| {
        let rows = watch.source.probes();
        rows.iter()
            .any(|row| row.name == "tls_library" && row.attached && row.reason.contains(name))
    });
    program.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let (mut stream, _) = upstream.accept().unwrap();
    let mut said = [0; HELLO + REQUEST.len()];
    stream.read_exact(&mut said).unwrap();
    stream.write_all(ANSWER).unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
    watch.settle();
    let hop = hop_to(&watch, 0, port);
    let texts = watch.seen.iter().filter_map(|(own, seen)| match seen {
        Seen::Text {
            direction,
            offset,
            payload,
            ..
        } if *own == Some(hop) => Some((*direction, *offset, payload.clone())),
        _ => None,
    });
    texts.collect()
}

#[test]
fn what_is_written_is_told_once_whoever_hands_over() {
    let (first, second) = REQUEST.split_at(20);
    let expected = vec![
        (Direction::ToUpstream, 0, first.to_vec()),
        (Direction::ToUpstream, 20, second.to_vec()),
        (Direction::FromUpstream, 0, ANSWER.to_vec()),
    ];
    let id = std::process::id();
    assert_eq!(told(&format!("ho{id}jump"), &[]), expected);
    assert_eq!(told(&format!("ho{id}alone"), &["-DALONE"]), expected);
}
