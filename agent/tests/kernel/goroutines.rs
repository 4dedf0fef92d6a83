//! Which goroutine of a gateway written in Go connects, and which one answers: a real one, the Caddy that
//! `cargo xtask setup` installs.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use hopscope::live::LiveConfig;
use hopscope::model::{Goroutine, Signal};

use crate::library::Running;
use crate::support::{Seen, Watch};

/// A port where nobody listens.
fn unused() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A Caddy of this name that passes everything on to where nobody listens.
fn caddy(name: &str, directory: &Path, listen: SocketAddr, upstream: SocketAddr) -> Running {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/parts/caddy/bin/caddy");
    assert!(
        program.is_file(),
        "{} is not there: run `cargo xtask setup` as root",
        program.display()
    );
    let own = directory.join(name);
    symlink(program, &own).unwrap();
    let config = format!(
        r#"{{"admin": {{"disabled": true}}, "apps": {{"http": {{"servers": {{"one": {{
            "listen": ["{listen}"], "automatic_https": {{"disable": true}},
            "routes": [{{"handle": [{{"handler": "reverse_proxy",
                "upstreams": [{{"dial": "{upstream}"}}]}}]}}]}}}}}}}}}}"#
    );
    let mut child = Command::new(own)
        .args(["run", "--config", "-"])
        .env("HOME", directory)
        .env("XDG_DATA_HOME", directory)
        .env("XDG_CONFIG_HOME", directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(config.as_bytes()).unwrap();
    Running(child)
}

/// Asks once more on a kept connection.
fn ask(client: &mut TcpStream) {
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 502"), "{answer:?}");
}

#[test]
fn who_answers_a_client_had_the_connect_made() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("go{}", std::process::id());
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![name.clone()],
        ..LiveConfig::default()
    });
    let (listen, upstream) = (unused(), unused());
    let caddy = caddy(&name, directory.path(), listen, upstream);
    watch.until("listener", |watch| {
        watch.has(|seen| matches!(seen, Seen::Listening(at) if *at == listen))
    });
    // Two clients at once, who ask twice each.
    let mut clients = [(), ()].map(|()| TcpStream::connect(listen).unwrap());
    for _ in 0..2 {
        for client in &mut clients {
            ask(client);
        }
    }
    let connects = |watch: &Watch| -> Vec<Option<Goroutine>> {
        let all = watch.seen.iter();
        let opened = all.filter_map(|(_, seen)| match seen {
            Seen::Signal(Signal::Opened { goroutine, .. }) => Some(*goroutine),
            _ => None,
        });
        opened.collect()
    };
    let answers = |watch: &Watch| -> Vec<(SocketAddr, Option<u64>)> {
        let all = watch.seen.iter();
        let answers = all.filter_map(|(_, seen)| match seen {
            Seen::Answer {
                goroutine, ends, ..
            } => Some((ends.1, *goroutine)),
            _ => None,
        });
        answers.collect()
    };
    watch.until("answers", |watch| answers(watch).len() == 4);
    let (connects, answers) = (connects(&watch), answers(&watch));
    let connects: Vec<Goroutine> = connects.into_iter().map(Option::unwrap).collect();
    // In the order in which they asked: each answer is given by the one that had the connect made.
    let parents: Vec<_> = connects.iter().map(|by| Some(by.parent)).collect();
    let own: Vec<_> = answers.iter().map(|(_, goroutine)| *goroutine).collect();
    assert_eq!(parents, own, "{}", watch.trace());
    // A client's connection keeps its own; who connects is never the same.
    assert_eq!((answers[0], answers[1]), (answers[2], answers[3]));
    assert_ne!(answers[0].1, answers[1].1);
    let mut ids: Vec<u64> = connects.iter().map(|by| by.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| !own.contains(&Some(*id))));
    drop(caddy);
    watch.assert_no_loss();
}
