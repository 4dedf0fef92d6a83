//! A gateway to watch and a place to collect what was seen of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hopscope::live::{LiveConfig, LiveSource};
use hopscope::model::{
    AnswerEnd, Departure, Direction, Errno, HopId, IcmpError, Input, Process, Read, Signal, Target,
    TcpFlags, Turn,
};
use hopscope::stats::ProbeStatus;
use tempfile::TempDir;

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

#[expect(clippy::disallowed_methods, reason = "tests have deadlines")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A process that no other test and nobody else on the host is called like: a shell, which opens
/// connections with nothing but a redirection.
pub(crate) struct Gateway {
    pub(crate) name: String,
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    home: TempDir,
}

impl Gateway {
    /// A gateway in the network namespace of the test.
    pub(crate) fn start() -> Self {
        Self::launch(|shell| Command::new(shell))
    }

    /// A gateway that is in a cgroup before it becomes the program of its name.
    pub(crate) fn start_in(cgroup: &Cgroup) -> Self {
        Self::launch(|shell| cgroup.command(shell))
    }

    /// The same by a name that was chosen before.
    pub(crate) fn start_as(name: &str, cgroup: &Cgroup) -> Self {
        Self::launch_as(name.to_owned(), |shell| cgroup.command(shell))
    }

    /// A gateway in a new network namespace, where not even the loopback device is up.
    pub(crate) fn start_isolated() -> Self {
        Self::launch(|shell| {
            let mut command = Command::new("unshare");
            command.arg("--net").arg(shell);
            command
        })
    }

    fn launch(start: impl FnOnce(&Path) -> Command) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::launch_as(format!("gw{}-{number}", std::process::id()), start)
    }

    fn launch_as(name: String, start: impl FnOnce(&Path) -> Command) -> Self {
        let home = TempDir::new().unwrap();
        let shell = home.path().join(&name);
        // A process is named as the link by which it was started.
        symlink("/bin/bash", &shell).unwrap();
        let mut child = start(&shell)
            .args(["--norc", "--noprofile"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut gateway = Self {
            name,
            child,
            commands,
            answers,
            home,
        };
        // The answer says that what started it has become the shell.
        gateway.run("true");
        gateway
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program that bears the name.
    pub(crate) fn program(&self) -> PathBuf {
        self.home.path().join(&self.name)
    }

    /// Runs one command and waits for its end; the exit status comes back.
    pub(crate) fn run(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}\necho $?").unwrap();
        self.answer()
    }

    /// The next line that the gateway printed.
    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Connects another isolated gateway to this one, which then has 10.77.0.1 and the other 10.77.0.2.
    pub(crate) fn link(&mut self, other: &mut Self) {
        let peer = other.pid();
        for command in [
            "ip link set lo up".to_owned(),
            format!("ip link add near type veth peer name far netns {peer}"),
            "ip addr add 10.77.0.1/24 dev near".to_owned(),
            "ip link set near up".to_owned(),
        ] {
            assert_eq!(self.run(&command), "0", "{command}");
        }
        for command in [
            "ip link set lo up",
            "ip addr add 10.77.0.2/24 dev far",
            "ip link set far up",
        ] {
            assert_eq!(other.run(command), "0", "{command}");
        }
    }

    /// Starts a command that is not waited for.
    pub(crate) fn launch_command(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    /// Connects file descriptor 3.
    pub(crate) fn connect(&mut self, to: SocketAddr) -> String {
        self.run(&format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port()))
    }

    pub(crate) fn config(&self) -> LiveConfig {
        LiveConfig {
            gateways: vec![self.name.clone()],
            ..LiveConfig::default()
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup of a test's own, right below the v2 root.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes it.
    pub(crate) fn create(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .unwrap();
        let path = Path::new(line.split(' ').nth(4).unwrap()).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A command that goes there before it becomes `program`.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.0.join("cgroup.procs"))
            .arg(program);
        command
    }

    /// Its name, which is its path below the root as well.
    pub(crate) fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }

    /// Moves a process there.
    pub(crate) fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty only once the member is gone, which may still be going.
        let start = now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < DEADLINE {
            std::thread::yield_now();
        }
    }
}

/// An [`Input`] without borrowed bytes.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    Segment {
        local: SocketAddr,
        direction: Direction,
        flags: TcpFlags,
        seq: u32,
        payload: Vec<u8>,
        wire_len: u32,
        /// Places of the TLS records whose headers were told, and what was told of those.
        records: Vec<(u32, Vec<u8>)>,
    },
    /// What was written or read inside TLS.
    Text {
        direction: Direction,
        offset: u64,
        payload: Vec<u8>,
        len: u32,
    },
    Signal(Signal),
    Answer {
        process: Process,
        turn: Option<Turn>,
        read: Option<Read>,
        goroutine: Option<u64>,
        /// The gateway's and the client's.
        ends: (SocketAddr, SocketAddr),
        on_behalf_of: Option<SocketAddr>,
        request: Vec<u8>,
        /// None where the connection was closed without one.
        response: Option<Vec<u8>>,
        ordinal: u32,
    },
    Listening(SocketAddr),
    /// Not every answer can be read there.
    Unreadable(SocketAddr),
    Other,
    ConnectFailed {
        process: Process,
        upstream: Target,
        errno: Errno,
    },
    Icmp(IcmpError),
    ClientLeft {
        thread: u32,
        departure: Departure,
    },
    Dns {
        process: Option<Process>,
        direction: Direction,
        on_behalf: bool,
        tcp: bool,
        payload: Vec<u8>,
    },
    Lost(u64),
}

impl Seen {
    /// Whether it is a segment with these control bits, pushes aside.
    pub(crate) fn is_segment(&self, towards: Direction, bits: TcpFlags) -> bool {
        matches!(self, Self::Segment { direction, flags, .. }
            if *direction == towards && flags.0 & !TcpFlags::PSH.0 == bits.0)
    }
}

/// A source and everything that came out of it.
pub(crate) struct Watch {
    pub(crate) source: LiveSource,
    pub(crate) seen: Vec<(Option<HopId>, Seen)>,
}

impl Watch {
    pub(crate) fn start(config: &LiveConfig) -> Self {
        let source = LiveSource::start(config).unwrap_or_else(|error| panic!("{error}"));
        assert_complete(&source.probes());
        Self {
            source,
            seen: Vec::new(),
        }
    }

    /// Pumps until `done` finds what it looks for.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = now();
        while !done(self) {
            assert!(start.elapsed() < DEADLINE, "no {what} in\n{}", self.trace());
            self.pump();
        }
    }

    /// Pumps until a time has passed up to which everything has been seen, as the source promises.
    pub(crate) fn settle(&mut self) {
        let mark = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_nanos();
        let mark = u64::try_from(mark).unwrap();
        let start = now();
        while self.pump() < mark {
            assert!(start.elapsed() < DEADLINE, "time stands still");
        }
    }

    fn pump(&mut self) -> u64 {
        let seen = &mut self.seen;
        let up_to = self
            .source
            .pump(Duration::from_millis(20), &mut |_, input| {
                seen.push(match input {
                    Input::Segment { hop, segment } => {
                        let payload = segment.payload.to_vec();
                        let (direction, flags) = (segment.direction, segment.flags);
                        let wire_len = segment.wire_len;
                        let records = segment.records.iter();
                        (
                            Some(hop),
                            Seen::Segment {
                                local: segment.local,
                                direction,
                                flags,
                                seq: segment.seq,
                                payload,
                                wire_len,
                                records: records
                                    .map(|(place, head)| (place, head.to_vec()))
                                    .collect(),
                            },
                        )
                    }
                    Input::Plaintext { hop, text } => (
                        Some(hop),
                        Seen::Text {
                            direction: text.direction,
                            offset: text.offset,
                            payload: text.payload.to_vec(),
                            len: text.len,
                        },
                    ),
                    Input::Signal { hop, signal } => (Some(hop), Seen::Signal(signal)),
                    Input::ConnectFailed {
                        process,
                        upstream,
                        errno,
                        turn: _,
                        goroutine: _,
                    } => {
                        let process = Process::clone(&process);
                        (
                            None,
                            Seen::ConnectFailed {
                                process,
                                upstream,
                                errno,
                            },
                        )
                    }
                    Input::Icmp { error, .. } => (None, Seen::Icmp(error)),
                    Input::Answer(answer) => (
                        None,
                        Seen::Answer {
                            process: Process::clone(&answer.process),
                            turn: answer.turn,
                            read: answer.read,
                            goroutine: answer.goroutine,
                            ends: (answer.listener, answer.client),
                            on_behalf_of: answer.on_behalf_of,
                            request: answer.request.to_vec(),
                            response: match answer.end {
                                AnswerEnd::Response(bytes) => Some(bytes.to_vec()),
                                AnswerEnd::Closed { .. } => None,
                            },
                            ordinal: answer.ordinal,
                        },
                    ),
                    Input::Listening {
                        local, readable, ..
                    } => (
                        None,
                        if readable {
                            Seen::Listening(local)
                        } else {
                            Seen::Unreadable(local)
                        },
                    ),
                    Input::Dns(message) => (
                        None,
                        Seen::Dns {
                            process: message.process.as_deref().cloned(),
                            direction: message.direction,
                            on_behalf: message.on_behalf,
                            tcp: message.tcp,
                            payload: message.payload.to_vec(),
                        },
                    ),
                    Input::Waiting(_) | Input::SocketFailed { .. } => (None, Seen::Other),
                    Input::ClientLeft { turn, departure } => (
                        None,
                        Seen::ClientLeft {
                            thread: turn.thread,
                            departure,
                        },
                    ),
                    Input::Lost { records } => (None, Seen::Lost(records)),
                });
            });
        up_to.unwrap().as_nanos()
    }

    /// What was seen, in order.
    pub(crate) fn trace(&self) -> String {
        let lines: Vec<String> = self
            .seen
            .iter()
            .map(|(hop, seen)| format!("{hop:?} {seen:?}"))
            .collect();
        lines.join("\n")
    }

    /// The hop that was opened first.
    pub(crate) fn hop(&self) -> HopId {
        self.seen
            .iter()
            .find_map(|(hop, seen)| matches!(seen, Seen::Signal(_)).then_some(*hop)?)
            .unwrap_or_else(|| panic!("no hop in\n{}", self.trace()))
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Seen) -> bool) -> bool {
        self.seen.iter().any(|(_, seen)| wanted(seen))
    }

    /// Where the first input of that kind stands in the order.
    pub(crate) fn position(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> usize {
        self.seen
            .iter()
            .position(|(_, seen)| wanted(seen))
            .unwrap_or_else(|| panic!("no {what} in\n{}", self.trace()))
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let all = self.source.counters();
        all.iter()
            .find(|(own, _)| *own == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .1
    }

    /// Nothing was lost and nothing was misread.
    pub(crate) fn assert_no_loss(&self) {
        for name in [
            "kernel_ring_full",
            "kernel_hop_map_full",
            "kernel_load_failed",
            "live_malformed",
            "live_not_tcp",
        ] {
            assert_eq!(self.counter(name), 0, "{name}");
        }
        assert!(!self.has(|seen| matches!(seen, Seen::Lost(_))));
    }
}

/// Every row is attached, save the one that only newer kernels have. What other programs of the host are
/// made of is no concern of a test.
pub(crate) fn assert_complete(rows: &[ProbeStatus]) {
    for row in rows {
        assert!(
            row.attached || ["reset_reason", "tls_library", "goroutines"].contains(&row.name),
            "{}: {}",
            row.name,
            row.reason
        );
    }
}

/// Ids of the programs that this process holds, as the kernel tells them.
pub(crate) fn own_programs(pid: u32) -> Vec<u32> {
    let directory = PathBuf::from(format!("/proc/{pid}/fdinfo"));
    let mut ids: Vec<u32> = fs::read_dir(directory)
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
