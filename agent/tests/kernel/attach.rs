//! What is attached while a source lives, and that nothing is left of it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use aya::programs::loaded_programs;
use hopscope::live::{LiveConfig, LiveError, LiveSource, check, programs};
use hopscope::model::{Input, Signal};
use object::{Object as _, ObjectSection as _};

use crate::accepted::alone;
use crate::clients::{BAD, Pair, REQUEST, config};
use crate::support::{DEADLINE, Gateway, Seen, Watch, assert_complete, now, own_programs};

const PROGRAMS: [&str; 16] = [
    "state",
    "client_state",
    "reset_in",
    "destroyed",
    "reset_out",
    "retransmit",
    "error",
    "executed",
    "socket_exit",
    "accept_exit",
    "bind_exit",
    "connect_enter",
    "connect_exit",
    "segment_egress",
    "segment_ingress",
    "dns_socket",
];

/// The programs that do what others left out; the rows of those others tell of them.
const SECOND_PROGRAMS: usize = 7;

/// Programs that the segment programs jump to; the row `clients` tells of them.
const CLIENT_PROGRAMS: usize = 2;

/// The program that counts the turns of gateways that need it, attached once there is one.
const TURN_PROGRAMS: usize = 2;

/// The program on sockets to name servers that close; the row `dns_socket` tells of it.
const DNS_PROGRAMS: usize = 1;

/// Programs that go into TLS libraries.
const TLS_PROGRAMS: usize = 7;

#[test]
fn every_program_attaches() {
    let source = LiveSource::start(&LiveConfig::default()).unwrap();
    let probes = source.probes();
    for name in PROGRAMS.iter().chain(&["tls_programs"]) {
        let probe = probes.iter().find(|probe| probe.name == *name).unwrap();
        assert!(probe.attached, "{name}: {}", probe.reason);
    }
}

#[test]
fn system_calls_are_left_alone_where_nobody_wants_them() {
    let source = LiveSource::start(&LiveConfig {
        system_calls: false,
        ..LiveConfig::default()
    })
    .unwrap();
    for probe in source.probes() {
        let of_calls = probe.reason.starts_with("turned off");
        assert!(probe.attached || of_calls || probe.name == "reset_reason");
    }
    let connect = source.probes();
    let connect = connect.iter().find(|row| row.name == "connect_exit");
    assert!(!connect.unwrap().attached);
}

#[test]
fn clients_are_left_alone_where_nobody_wants_them() {
    const OFF: [&str; 6] = [
        "client_state",
        "clients",
        "socket_exit",
        "accept_exit",
        "bind_exit",
        "turns",
    ];
    alone(|| {
        let mut source = LiveSource::start(&LiveConfig {
            client_side: false,
            ..config()
        })
        .unwrap();
        for probe in source.probes() {
            let off = OFF.contains(&probe.name);
            assert!(
                probe.attached != off
                    || ["reset_reason", "tls_library", "goroutines"].contains(&probe.name),
                "{}: {}",
                probe.name,
                probe.reason
            );
            assert!(!off || probe.reason.starts_with("turned off"));
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut pair = Pair::of(&listener);
        pair.ask(REQUEST);
        pair.answer(BAD);
        // This side of it is a hop, which is seen as ever.
        let mut is_answered = false;
        let start = now();
        while !is_answered {
            assert!(start.elapsed() < DEADLINE);
            source
                .pump(Duration::from_millis(20), &mut |_, input| match input {
                    Input::Segment { segment, .. } => is_answered |= segment.payload == BAD,
                    Input::Answer(_) | Input::Listening { .. } => panic!("{input:?}"),
                    _ => {}
                })
                .unwrap();
        }
        assert!(source.waiting().is_empty());
    });
}

#[test]
fn every_program_attaches_with_its_log() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&LiveConfig {
        kernel_log: true,
        ..gateway.config()
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(gateway.connect(listener.local_addr().unwrap()), "0");
    watch.until("opened", |watch| {
        watch.has(|seen| matches!(seen, Seen::Signal(Signal::Opened { .. })))
    });
}

#[test]
fn a_check_finds_everything_here() {
    let rows = check();
    assert_complete(&rows);
    for name in PROGRAMS.iter().chain(&[
        "programs",
        "btf",
        "cgroup2",
        "tracefs",
        "privileges",
        "tls_programs",
    ]) {
        assert!(rows.iter().any(|row| row.name == *name), "no row {name}");
    }
}

#[test]
fn an_object_of_another_version_is_refused() {
    let mut object = programs().to_vec();
    let range = object::File::parse(programs())
        .unwrap()
        .section_by_name(hopscope_ebpf::ABI_SECTION)
        .and_then(|section| section.file_range())
        .unwrap();
    let at = usize::try_from(range.0).unwrap();
    object[at..at + 4].copy_from_slice(&99_u32.to_le_bytes());
    let error = LiveSource::start_with(&object, &LiveConfig::default()).unwrap_err();
    assert!(
        matches!(error, LiveError::AbiMismatch { found: 99 }),
        "{error}"
    );
    assert!(
        error.to_string().contains(&format!(
            "version 99, this binary speaks {};",
            hopscope_ebpf::ABI_VERSION
        )),
        "{error}"
    );
}

#[test]
fn what_is_no_object_is_refused() {
    let start = |object: &[u8]| LiveSource::start_with(object, &LiveConfig::default()).unwrap_err();
    assert!(matches!(start(&[]), LiveError::NoPrograms));
    assert!(matches!(start(b"not an object"), LiveError::BadObject(_)));
    assert!(matches!(
        start(&programs()[..programs().len() / 2]),
        LiveError::BadObject(_)
    ));
}

#[test]
fn names_that_cannot_match_are_refused() {
    let config = LiveConfig {
        gateways: vec!["sixteen-bytes-xx".into()],
        ..LiveConfig::default()
    };
    let error = LiveSource::start(&config).unwrap_err().to_string();
    assert!(error.contains("sixteen-bytes-xx"), "{error}");
    let config = LiveConfig {
        cgroups: vec!["/no/such/group".into()],
        ..LiveConfig::default()
    };
    let error = LiveSource::start(&config).unwrap_err().to_string();
    assert!(error.contains("no/such/group"), "{error}");
}

#[test]
fn a_waker_ends_a_wait() {
    let gateway = Gateway::start();
    let mut source = LiveSource::start(&gateway.config()).unwrap();
    let waker = source.waker();
    let start = now();
    let other = thread::spawn(move || waker.wake());
    // Housekeeping would end the wait as well, but later.
    source.pump(Duration::from_secs(1), &mut |_, _| {}).unwrap();
    assert!(start.elapsed() < Duration::from_millis(900));
    other.join().unwrap();
}

/// Whether none of the programs is in the kernel any more, now or soon: it frees them in the background.
fn gone(ids: &[u32]) -> bool {
    let start = now();
    while start.elapsed() < DEADLINE {
        if loaded_programs()
            .flatten()
            .all(|program| !ids.contains(&program.id()))
        {
            return true;
        }
        thread::yield_now();
    }
    false
}

/// Plays both parts: run again with this variable set, it holds a source until it is killed.
const HOLD: &str = "HOPSCOPE_TEST_HOLD";

#[test]
fn a_killed_process_leaves_nothing_attached() {
    if std::env::var_os(HOLD).is_some() {
        let source = LiveSource::start(&LiveConfig::default()).unwrap();
        println!("\nholding");
        loop {
            thread::park();
            drop(source.probes());
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "attach::a_killed_process_leaves_nothing_attached",
            "--nocapture",
        ])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "holding"));
    let ids = own_programs(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        ids.len(),
        PROGRAMS.len()
            + SECOND_PROGRAMS
            + CLIENT_PROGRAMS
            + TURN_PROGRAMS
            + DNS_PROGRAMS
            + TLS_PROGRAMS,
        "{ids:?}"
    );
    assert!(gone(&ids), "{ids:?} are still in the kernel");
}
