//! The agent under test, run as its users run it: the release binary as a process of its own, events
//! read from what `hopscope events` and `hopscope analyze` print.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;

use crate::cleanup::{Directory, Program};
use crate::clock::{Deadline, wait_for};
use crate::socket::Target;

/// Names the binary under test; without it, the release build of this workspace.
pub const BINARY_VARIABLE: &str = "HOPSCOPE_BIN";

/// Starts a program that ends with its parent.
const SETPRIV: &str = "/usr/bin/setpriv";

/// Time that the agent gets to load its programs and listen.
const START: Duration = Duration::from_secs(30);

/// Events that may wait to be looked at.
const QUEUE: usize = 4096;

/// What the tests and the demo read of an event.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// The one cause.
    pub cause: String,
    /// How firmly it stands.
    pub proof: String,
    /// Causes that fit as well.
    #[serde(default)]
    pub rivals: Vec<String>,
    /// Whose fault it is.
    pub fault_side: String,
    /// The upstream's end.
    pub upstream: Target,
    /// The gateway process.
    pub gateway: Option<Process>,
    /// What proves the cause, the decisive piece first.
    pub evidence: Vec<Evidence>,
    /// Id of the kept packets.
    pub capture_id: Option<String>,
    /// Whether anything was lost.
    pub completeness: Completeness,
    /// What the gateway's client got.
    pub gateway_answer: Option<Answer>,
    /// Whether no client was told of it.
    #[serde(default)]
    pub hidden_from_client: bool,
}

/// What a gateway's client got.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// Status; none for a connection that was closed without one.
    pub status: Option<u16>,
    /// The client's end.
    pub client: ClientEnd,
    /// Path of the request.
    pub path: Option<String>,
    /// From the request to the answer.
    pub latency_ms: f64,
    /// The attempts that failed.
    pub attempts: Vec<Attempt>,
    /// Events that would explain it as well.
    #[serde(default)]
    pub candidates: Vec<String>,
    /// Whether its attempts may have been made for another client.
    #[serde(default)]
    pub contested: bool,
}

/// A client's end of its connection to a gateway.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ClientEnd {
    /// Its IP address.
    pub address: IpAddr,
    /// Its TCP port.
    pub port: u16,
}

/// One attempt on an upstream.
#[derive(Clone, Debug, Deserialize)]
pub struct Attempt {
    /// Id of its event.
    pub event: String,
    /// Why it failed.
    pub cause: String,
    /// The upstream that was tried.
    pub upstream: Target,
}

/// For messages of tests: the verdict and what it stands on.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cause, self.proof)?;
        if !self.rivals.is_empty() {
            write!(f, " or {}", self.rivals.join(", "))?;
        }
        for fact in &self.evidence {
            write!(f, "; {}: {}", fact.source, fact.text)?;
        }
        Ok(())
    }
}

/// A gateway process.
#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Process name.
    pub comm: String,
    /// Inode of its network namespace.
    pub netns: u64,
    /// Its cgroup; empty where it was gone before that was looked up.
    #[serde(default)]
    pub cgroup: String,
}

/// One fact that supports a verdict.
#[derive(Clone, Debug, Deserialize)]
pub struct Evidence {
    /// Where the fact comes from.
    pub source: String,
    /// Its short name.
    pub what: String,
    /// The fact in words.
    pub text: String,
}

/// Whether anything was lost that could have changed the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Completeness {
    /// Segments that were not observed.
    pub lost_segments: u64,
    /// Whether payload was captured short.
    pub truncated: bool,
    /// Whether the hop was open when it was first seen.
    pub mid_stream: bool,
}

/// A running `hopscope run`. Dropping it ends it.
#[derive(Debug)]
pub struct Agent {
    process: Program,
    address: SocketAddr,
    log: PathBuf,
    captures: PathBuf,
    _files: Directory,
}

impl Agent {
    /// Starts the agent on a free port of loopback and waits until it serves.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with more arguments.
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        let files = Directory::new()?;
        let captures = files.path().join("captures");
        Self::start_in(files, captures, arguments)
    }

    /// Starts an agent that keeps its captures in a directory of an earlier one.
    pub fn start_again(captures: &Path) -> Result<Self> {
        Self::start_in(Directory::new()?, captures.to_owned(), &[])
    }

    fn start_in(files: Directory, captures: PathBuf, arguments: &[&str]) -> Result<Self> {
        let log = files.path().join("log");
        let address = free_port()?;
        // The agent lives outside the lab's namespaces, so nothing else ends it when this process is
        // killed. Virtual machines do without.
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.args(["--pdeathsig", "TERM", "--"]).arg(path());
            command
        } else {
            binary()
        };
        command
            .args(["run", "--listen", &address.to_string(), "--capture-dir"])
            .arg(&captures)
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let process = Program::new(start(&mut command)?);
        let mut agent = Self {
            process,
            address,
            log,
            captures,
            _files: files,
        };
        wait_for("the agent to serve", START, || {
            if let Some(status) = agent.process.child().try_wait()? {
                bail!("the agent ended with {status}: {}", agent.log().trim());
            }
            Ok(TcpStream::connect(address).ok())
        })?;
        // It listens before its programs are attached, and answers once they are.
        agent.ask(&["status"])?;
        Ok(agent)
    }

    /// Where it serves gRPC.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it keeps its captures.
    pub fn captures(&self) -> &Path {
        &self.captures
    }

    /// What a command of `hopscope` says of it.
    fn ask(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = binary()
            .args(arguments)
            .args(["--agent", &self.url()])
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed: {}", arguments.join(" "), said.trim());
        }
        Ok(output.stdout)
    }

    /// What `hopscope captures` says with these arguments and this agent.
    pub fn ask_captures(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.ask(&[&["captures"], arguments].concat())
    }

    /// What `hopscope explain --last` says of it with these words.
    pub fn explain_last(&self, words: &[&str]) -> Result<String> {
        let said = self.ask(&[&["explain", "--last"], words].concat())?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Sends `signal` and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.end(signal)
    }

    /// The events that it holds, as the command prints them: a JSON line each.
    pub fn recent(&self) -> Result<String> {
        let said = self.ask(&["events", "--format", "jsonl"])?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// The events that it holds.
    pub fn recent_events(&self) -> Result<Vec<Event>> {
        self.recent()?.lines().map(parse).collect()
    }

    /// Subscribes to its events.
    pub fn follow(&self) -> Result<Events> {
        let mut command = binary();
        command.args([
            "events",
            "--agent",
            &self.url(),
            "--follow",
            "--format",
            "jsonl",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut process = Program::new(start(&mut command)?);
        let output = process
            .child()
            .stdout
            .take()
            .context("the event stream has no output")?;
        let (sender, receiver) = sync_channel(QUEUE);
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let event = line.map_err(Into::into).and_then(|line| parse(&line));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Events {
            receiver,
            _process: process,
        })
    }
}

/// A live stream of events.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Result<Event>>,
    _process: Program,
}

impl Events {
    /// The next event, or `None` once `deadline` has passed.
    pub fn next(&self, deadline: Deadline) -> Result<Option<Event>> {
        match self.receiver.recv_timeout(deadline.remaining()) {
            Ok(event) => event.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the event stream ended"),
        }
    }
}

/// The events that the engine finds in a capture file.
pub fn analyze(file: &Path) -> Result<Vec<Event>> {
    let output = binary()
        .arg("analyze")
        .arg(file)
        .args(["--format", "jsonl"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start {}", path().display()))?;
    // Failures found in the file may show in the exit status; they are not failures of the command.
    if output.stdout.is_empty() && !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "analyze {} ended with {}: {}",
            file.display(),
            output.status,
            said.trim()
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(parse)
        .collect()
}

fn parse(line: &str) -> Result<Event> {
    serde_json::from_str(line).with_context(|| format!("not an event: {line}"))
}

fn start(command: &mut Command) -> Result<std::process::Child> {
    command.spawn().with_context(|| {
        format!(
            "could not start {}: run `cargo xtask build`",
            path().display()
        )
    })
}

/// The binary under test.
pub fn binary() -> Command {
    Command::new(path())
}

fn path() -> PathBuf {
    std::env::var_os(BINARY_VARIABLE).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/hopscope"),
        PathBuf::from,
    )
}

/// An address of loopback on which nothing listens. Another program could take it first; then the
/// agent says so and the test fails.
fn free_port() -> Result<SocketAddr> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
    Ok(probe.local_addr()?)
}
