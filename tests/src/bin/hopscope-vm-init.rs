//! The first process of the virtual machines of `cargo xtask test-vm`: loads every kernel program on
//! that machine's kernel, makes one refused connect, one reset and one malformed response over loopback,
//! and reads their causes from the agent. One line a result on the console, then power off.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hopscope_tests::agent::{Agent, Events, binary};
use hopscope_tests::clock::Deadline;
use hopscope_tests::command::run;
use hopscope_tests::socket::Target;
use hopscope_tests::upstream::{Behaviour, End, Upstreams};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// An emulated machine is slow, but not slower than this.
const PATIENCE: Duration = Duration::from_mins(1);

const REFUSED: u16 = 20_000;
const RESET: u16 = 20_001;
const MALFORMED: u16 = 20_002;
/// A machine with nothing but loopback knows no way there; the address is for documentation (RFC 5737).
const NO_ROUTE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 20_003));

/// Every kernel program, as `hopscope check` names them; `clients` are those that the segment programs jump to.
const PROGRAMS: [&str; 12] = [
    "state",
    "client_state",
    "clients",
    "reset_in",
    "destroyed",
    "reset_out",
    "retransmit",
    "error",
    "executed",
    "segment_egress",
    "segment_ingress",
    "dns_socket",
];

/// Those on system calls. These kernels take them on their own functions, where they slow nothing else.
const CALLS: [&str; 5] = [
    "connect_enter",
    "connect_exit",
    "socket_exit",
    "accept_exit",
    "bind_exit",
];

const BAD_HEADER: &[u8] = b"HTTP/1.1 200 OK\r\nX-Cache : miss\r\nContent-Length: 3\r\n\r\nok\n";

fn main() -> Result<()> {
    let result = smoke();
    match &result {
        Ok(()) => say("passed"),
        Err(error) => say(&format!("FAILED {error:#}")),
    }
    if rustix::process::getpid().is_init() {
        reboot(RebootCommand::PowerOff).context("could not power off")?;
    }
    result
}

fn smoke() -> Result<()> {
    prepare()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    say(&format!("kernel {}", release.trim()));

    let check = binary()
        .arg("check")
        .output()
        .context("could not run `hopscope check`")?;
    let report = String::from_utf8_lossy(&check.stdout);
    for line in report.lines() {
        say(&format!("check: {line}"));
    }
    let complaint = String::from_utf8_lossy(&check.stderr);
    ensure!(
        check.status.success(),
        "`hopscope check` ended with {}: {complaint}",
        check.status
    );
    for program in PROGRAMS.iter().chain(&CALLS) {
        let row = report.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(program)).then(|| words.collect::<Vec<_>>())
        });
        let row = row.with_context(|| format!("no row for the program {program}"))?;
        ensure!(
            row.first() == Some(&"yes"),
            "the program {program} does not attach"
        );
        ensure!(
            row.len() == 1 || !CALLS.contains(program),
            "the program {program} is not on the kernel's function"
        );
    }

    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let _upstreams = Upstreams::start([
        (at(RESET), Behaviour::Reply(b"", End::Reset)),
        (at(MALFORMED), Behaviour::Reply(BAD_HEADER, End::Fin)),
    ])?;
    // This process is the gateway here.
    let agent = Agent::start_with(&["--gateway", "init", "--tls-plaintext"])?;
    // Nobody speaks TLS here, but its programs have to load.
    let log = agent.log();
    ensure!(
        !["cannot be probed", "nothing inside TLS is read"]
            .iter()
            .any(|words| log.contains(words)),
        "the programs on TLS libraries do not load: {log}"
    );
    let events = agent.follow()?;
    subscribed(&events)?;
    for (to, cause) in [
        (at(REFUSED), "tcp.connect_refused"),
        (at(RESET), "tcp.reset_no_response"),
        (at(MALFORMED), "http1.header_syntax"),
        (NO_ROUTE, "tcp.connect_no_route"),
    ] {
        exchange(to);
        let deadline = Deadline::after(PATIENCE);
        let event = loop {
            let event = events.next(deadline)?;
            let event = event.with_context(|| format!("no event for {cause}:\n{}", agent.log()))?;
            if matches!(event.upstream, Target::Inet(address) if address == to) {
                break event;
            }
        };
        ensure!(event.cause == cause, "{} instead of {cause}", event.cause);
        say(&format!("event: {} ({})", event.cause, event.proof));
    }
    Ok(())
}

/// Waits until the stream of events runs: fails a connect to a port of its own until it is told.
fn subscribed(events: &Events) -> Result<()> {
    let deadline = Deadline::after(PATIENCE);
    while events
        .next(Deadline::after(Duration::from_millis(500)))?
        .is_none()
    {
        ensure!(!deadline.passed(), "the agent reports no event at all");
        exchange(SocketAddr::from((Ipv4Addr::LOCALHOST, REFUSED - 1)));
    }
    Ok(())
}

/// One request as a gateway would send it. That it fails is the point.
fn exchange(to: SocketAddr) {
    let Ok(mut stream) = TcpStream::connect(to) else {
        return;
    };
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: vm.test\r\nConnection: close\r\n\r\n");
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Mounts what the agent reads, and brings loopback up.
fn prepare() -> Result<()> {
    for (kind, target) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        if !Path::new(target).is_dir() {
            fs::create_dir_all(target).with_context(|| format!("could not make {target}"))?;
        }
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("could not mount {kind} on {target}"))?;
    }
    run("/busybox", &["ip", "link", "set", "lo", "up"]).map(drop)
}

/// Prints a line that the host can find between the kernel's own.
fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "vm: {line}");
}
