//! What watches the gateway, and what it saw and lost.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use hopscope_tests::agent::Agent;
use hopscope_tests::cleanup::Program;
use hopscope_tests::clock::{Deadline, wait_for};
use hopscope_tests::status;
use rustix::process::Signal;
use serde_json::Value;

use super::bed::Bed;
use super::usage;
use crate::exec::find_program;

/// Time that an observer gets to attach.
const START: Duration = Duration::from_secs(30);

/// Time that the agent gets for its last verdicts.
const VERDICTS: Duration = Duration::from_secs(3);

/// What the script prints once it is attached.
const ATTACHED: &str = "attached";

/// The tracepoints of the agent, told as lines about nginx.
const SCRIPT: &str = r#"
BEGIN { printf("attached\n"); }
tracepoint:sock:inet_sock_set_state /args->protocol == 6 && (comm == "nginx" || args->newstate == 2)/
{ printf("state %d %d %d %d\n", pid, args->dport, args->oldstate, args->newstate); }
tracepoint:tcp:tcp_receive_reset { printf("reset in %d %d\n", args->sport, args->dport); }
tracepoint:tcp:tcp_destroy_sock { @destroyed = count(); }
tracepoint:tcp:tcp_send_reset { printf("reset out %d %d\n", args->sport, args->dport); }
tracepoint:tcp:tcp_retransmit_skb { printf("again %d %d\n", args->sport, args->dport); }
tracepoint:sock:inet_sk_error_report { printf("error %d %d\n", args->dport, args->error); }
tracepoint:syscalls:sys_enter_connect /comm == "nginx"/ { @connects = count(); }
tracepoint:syscalls:sys_exit_connect /comm == "nginx" && args->ret < 0/ { printf("connect %d\n", args->ret); }
"#;

/// Who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// The agent.
    Hopscope,
    /// The agent with `--no-system-calls`: what it costs on a kernel with fentry, where its programs on system
    /// calls slow none but those that they are on.
    NoSystemCalls,
    /// The agent without the client side: what it costs to watch that is the difference.
    NoClientSide,
    /// `tcpdump -i any -s 256`, written to nowhere: no disk slows it down.
    Tcpdump,
    /// A script on the agent's tracepoints: no packets.
    Bpftrace,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hopscope => "hopscope",
            Self::NoSystemCalls => "no-system-calls",
            Self::NoClientSide => "no-client-side",
            Self::Tcpdump => "tcpdump",
            Self::Bpftrace => "bpftrace",
        }
    }

    /// Flags of the agent, where it is one.
    pub(super) const fn agent(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Hopscope => Some(&[]),
            Self::NoSystemCalls => Some(&["--no-system-calls"]),
            Self::NoClientSide => Some(&["--no-client-side"]),
            Self::Tcpdump | Self::Bpftrace => None,
        }
    }
}

/// What it saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) cpu_us: f64,
    pub(super) rss_mib: f64,
    pub(super) lost: u64,
    /// Failures, where it tells of failures.
    pub(super) failures: Option<u64>,
}

/// Why an observer cannot run here.
pub(super) fn obstacle(kind: Kind) -> Option<String> {
    if kind != Kind::Bpftrace {
        return None;
    }
    if find_program("bpftrace").is_none() {
        return Some("it is not installed (`apt-get install bpftrace`)".to_owned());
    }
    // It reads the tracepoints' formats; older releases misread newer kernels.
    let probe = Command::new("bpftrace")
        .args(["-e", &format!("{SCRIPT} interval:ms:1 {{ exit(); }}")])
        .stdin(Stdio::null())
        .output();
    match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().find(|line| line.contains("ERROR"));
            Some(format!(
                "it cannot run its script on this kernel: {}",
                first.unwrap_or("no reason given")
            ))
        }
        Err(error) => Some(error.to_string()),
    }
}

/// An observer at work.
pub(super) struct Watching {
    observer: Observer,
    /// Processor time that it took to start.
    start_us: f64,
}

enum Observer {
    Agent {
        agent: Agent,
        /// The gateway's namespace: others on this host may run gateways as well.
        namespace: u64,
    },
    Program {
        kind: Kind,
        process: Program,
        log: PathBuf,
    },
}

impl Watching {
    /// Starts an observer and waits until it is attached.
    pub(super) fn start(kind: Kind, bed: &Bed) -> Result<Self> {
        let observer = Observer::start(kind, bed)?;
        let start_us = usage::cpu_us(observer.pid())?;
        Ok(Self { observer, start_us })
    }

    /// What its kernel programs did so far.
    pub(super) fn programs(&self) -> Result<Vec<usage::Program>> {
        usage::programs(self.observer.pid())
    }

    /// Ends it and asks what it saw, of as many failures as there were.
    pub(super) fn finish(self, failures: u64) -> Result<Seen> {
        let cpu_us = usage::cpu_us(self.observer.pid())? - self.start_us;
        self.observer.finish(cpu_us, failures)
    }
}

impl Observer {
    fn start(kind: Kind, bed: &Bed) -> Result<Self> {
        if let Some(flags) = kind.agent() {
            let agent = Agent::start_with(flags)?;
            // It listens first; it answers once everything is attached.
            status::counters(&agent)?;
            return Ok(Self::Agent {
                agent,
                namespace: bed.namespace().inode()?,
            });
        }
        let log = bed.files().join(kind.name());
        let mut command = if kind == Kind::Tcpdump {
            let mut command = Command::new("tcpdump");
            // Without -Z it gives up root first, which not every host allows.
            command.args(["-i", "any", "-s", "256", "-Z", "root", "-w", "/dev/null"]);
            command
        } else {
            let mut command = Command::new("bpftrace");
            command.args(["-e", SCRIPT]);
            command
        };
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = bed.namespace().enter(|| {
            command
                .spawn()
                .with_context(|| format!("could not start {}: is it installed?", kind.name()))
        })?;
        let mut process = Program::new(child);
        wait_for("an observer to attach", START, || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = process.child().try_wait()? {
                bail!("{} ended with {status}: {}", kind.name(), said.trim());
            }
            Ok((said.contains("listening on") || said.contains(ATTACHED)).then_some(()))
        })?;
        Ok(Self::Program { kind, process, log })
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Agent { agent, .. } => agent.pid(),
            Self::Program { process, .. } => process.pid(),
        }
    }

    fn finish(self, cpu_us: f64, failures: u64) -> Result<Seen> {
        match self {
            Self::Agent { agent, namespace } => {
                let seen = settled(&agent, namespace, failures)?;
                let lost = status::counters(&agent)?
                    .iter()
                    .filter(|(name, _)| is_lost_record(name))
                    .map(|(_, value)| value)
                    .sum();
                let rss_mib = usage::peak_rss_mib(agent.pid())?;
                Ok(Seen {
                    cpu_us,
                    rss_mib,
                    lost,
                    failures: Some(seen),
                })
            }
            Self::Program {
                kind,
                mut process,
                log,
            } => {
                let rss_mib = usage::peak_rss_mib(process.pid())?;
                process.end(Signal::INT)?;
                let said = fs::read_to_string(&log).unwrap_or_default();
                Ok(Seen {
                    cpu_us,
                    rss_mib,
                    lost: lost(kind, &said),
                    failures: None,
                })
            }
        }
    }
}

/// Whether a counter of the agent is about records that never reached it.
fn is_lost_record(name: &str) -> bool {
    [
        "kernel_ring_full",
        "kernel_runs_missed",
        "kernel_hop_map_full",
        "kernel_load_failed",
        "live_malformed",
    ]
    .contains(&name)
}

/// What an observer says that it lost.
fn lost(kind: Kind, said: &str) -> u64 {
    let number = |line: &str| {
        line.split_whitespace()
            .find_map(|word| word.parse::<u64>().ok())
    };
    match kind {
        Kind::Tcpdump => said
            .lines()
            .filter(|line| line.contains("dropped by kernel"))
            .filter_map(number)
            .sum(),
        Kind::Bpftrace => said
            .lines()
            .filter(|line| line.starts_with("Lost "))
            .filter_map(number)
            .sum(),
        Kind::Hopscope | Kind::NoSystemCalls | Kind::NoClientSide => 0,
    }
}

/// Waits until the agent has told of `failures`, or has had its time.
fn settled(agent: &Agent, namespace: u64, failures: u64) -> Result<u64> {
    let deadline = Deadline::after(VERDICTS);
    loop {
        let seen = count(&agent.recent()?, namespace)?;
        if seen >= failures || deadline.passed() {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Failures of the bed's gateway among `events`, JSON lines, whose packets are kept.
fn count(events: &str, namespace: u64) -> Result<u64> {
    let mut all = 0;
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).context("an event is no JSON")?;
        let ours = event.pointer("/gateway/netns").and_then(Value::as_u64) == Some(namespace);
        let id = event.get("capture_id").and_then(Value::as_str);
        let captured = id.is_some_and(|id| !id.is_empty());
        all += u64::from(ours && captured);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_read_from_what_observers_say() {
        let said =
            "12 packets captured\n14 packets received by filter\n2 packets dropped by kernel\n";
        assert_eq!(lost(Kind::Tcpdump, said), 2);
        assert_eq!(lost(Kind::Bpftrace, "Lost 7 events\nLost 3 events\n"), 10);
        assert_eq!(lost(Kind::Bpftrace, "attached\n"), 0);
    }

    #[test]
    fn only_events_of_the_bed_with_a_capture_count() {
        let events = r#"{"cause":"x","gateway":{"netns":5}}
{"cause":"x","gateway":{"netns":6}}
{"cause":"x","gateway":{"netns":5},"capture_id":""}
{"cause":"x","gateway":{"netns":5},"capture_id":"c-1"}"#;
        assert_eq!(count(events, 5).unwrap(), 1);
        assert!(count("no json", 5).is_err());
    }
}
