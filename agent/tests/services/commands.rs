//! The binary from outside: output, messages and exit codes.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use crate::support::{
    ANY_PORT, Agent, DEADLINE, counter, event, full_event, soon, until, unused_address,
};
use hopscope::cli::render::{event_json, event_text};
use hopscope::model::catalogue;
use hopscope::serve::{Hub, HubConfig, Push, PushConfig};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn hopscope(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hopscope"));
    command
        .args(args)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

pub(crate) fn outcome(args: &[&str]) -> Output {
    hopscope(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The one line that a failed command says, with its exit code.
pub(crate) fn failure(args: &[&str]) -> (i32, String) {
    let output = outcome(args);
    assert_eq!(text(&output.stdout), "", "{args:?}");
    let message = text(&output.stderr).strip_suffix('\n').unwrap();
    assert!(!message.contains('\n'), "more than one line: {message}");
    let message = message
        .strip_prefix("hopscope: ")
        .unwrap_or_else(|| panic!("{message}"));
    (output.status.code().unwrap(), message.to_owned())
}

/// A command that keeps running, with its output line by line.
pub(crate) struct Service {
    child: Child,
    stdout: mpsc::Receiver<String>,
    stderr: mpsc::Receiver<String>,
}

fn lines(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

impl Service {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(hopscope(args).stdout(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        Self {
            stdout: child
                .stdout
                .take()
                .map_or_else(|| mpsc::sync_channel(0).1, lines),
            stderr: lines(child.stderr.take().unwrap()),
            child,
        }
    }

    pub(crate) fn line(&self) -> String {
        self.stdout
            .recv_timeout(DEADLINE)
            .expect("a line of output")
    }

    /// The next line on standard error with `word` in it.
    pub(crate) fn error_line(&self, word: &str) -> String {
        loop {
            let line = self.stderr.recv_timeout(DEADLINE).expect("such a line");
            if line.contains(word) {
                return line;
            }
        }
    }

    /// The address in the line that says that the service is ready.
    pub(crate) fn ready(&self, word: &str) -> SocketAddr {
        loop {
            let line = self.stderr.recv_timeout(DEADLINE).expect("a ready line");
            if let Some((_, address)) = line.split_once("listen=")
                && line.contains(word)
            {
                return address.split_whitespace().next().unwrap().parse().unwrap();
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end and gives its exit code and what it said on standard error since.
    pub(crate) fn ended(&mut self) -> (i32, Vec<String>) {
        // Its output ends when it does; a hang fails here.
        rest(&self.stdout);
        let said = rest(&self.stderr);
        (self.child.wait().unwrap().code().unwrap(), said)
    }
}

/// Every further line up to the end of a stream.
fn rest(lines: &mpsc::Receiver<String>) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(DEADLINE) {
            Ok(line) => all.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(content: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hopscope.toml");
    fs::write(&path, content).unwrap();
    (dir, path)
}

#[test]
fn explain_knows_every_id() {
    for row in catalogue() {
        let output = outcome(&["explain", row.id]);
        assert!(output.status.success(), "{}", row.id);
        let page = text(&output.stdout);
        assert!(page.starts_with(&format!("{}  (", row.id)), "{page}");
        // Undo the wrapping to find whole fields.
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        for field in [
            row.definition,
            row.proof,
            row.next_step,
            row.wrong_fix,
            row.fault_note,
        ] {
            let field = field.replace("**", "");
            let field = field.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(page.contains(&field), "{}: {field}", row.id);
        }
    }
}

#[test]
fn explain_lists_all() {
    let output = outcome(&["explain"]);
    let list = text(&output.stdout);
    for row in catalogue() {
        assert!(list.contains(&format!("\n  {} ", row.id)), "{}", row.id);
        assert!(list.contains(row.family.title()), "{}", row.id);
    }
    let output = outcome(&["explain", "--format", "jsonl"]);
    let ids: Vec<_> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["cause"].clone())
        .collect();
    assert_eq!(
        ids,
        catalogue().iter().map(|row| row.id).collect::<Vec<_>>()
    );
}

#[test]
fn explain_suggests_what_was_meant() {
    let (code, message) = failure(&["explain", "tcp.connect_refuse"]);
    assert_eq!(code, 2);
    assert!(
        message.starts_with("unknown cause `tcp.connect_refuse`; did you mean tcp.connect_refused"),
        "{message}"
    );
    let hopeless = failure(&["explain", "zzz"]);
    assert_eq!(
        hopeless,
        (
            2,
            "unknown cause `zzz`; `hopscope explain` lists all".to_owned()
        )
    );
}

#[test]
fn a_reader_that_left_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = hopscope(&["explain"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn a_full_disk_is_an_error() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = hopscope(&["explain"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.starts_with("hopscope: cannot write to standard output: "),
        "{message}"
    );
}

#[test]
fn check_exits_by_whether_the_agent_could_run() {
    let output = outcome(&["check", "--format", "jsonl"]);
    let lines: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(!lines.is_empty());
    // What works depends on the host; that row and exit code agree does not.
    let essential = ["programs", "privileges", "load", "state"];
    let runs = lines
        .iter()
        .all(|line| line["works"] == true || !essential.iter().any(|name| line["probe"] == *name));
    assert_eq!(output.status.code(), Some(i32::from(!runs)));
    let people = outcome(&["check"]);
    assert_eq!(people.status.code(), output.status.code());
    assert_eq!(text(&people.stdout).contains("cannot run"), !runs);
    for line in lines {
        assert_eq!(line["works"] == true, line["reason"] == "", "{line}");
    }
}

#[test]
fn a_bad_configuration_names_key_file_and_line() {
    let cases = [
        (
            "[run]\nlisen = \"127.0.0.1:1\"\n",
            2,
            "`lisen = \"127.0.0.1:1\"`): unknown field `lisen`",
        ),
        (
            "colour = true\n",
            1,
            "`colour = true`): unknown field `colour`, expected one of `log`",
        ),
        (
            "[collect]\n\nrecent = 5\n",
            3,
            "`recent = 5`): unknown field `recent`",
        ),
        (
            "[run]\nlisten = 7502\n",
            2,
            "`listen = 7502`): invalid type: integer `7502`",
        ),
        (
            "[run]\nring_size = \"8Q\"\n",
            2,
            "`ring_size = \"8Q\"`): bad size `8Q`: give bytes",
        ),
        ("[run]\nlisten = \n", 2, "`listen =`): "),
    ];
    for (content, line, expected) in cases {
        let (_dir, path) = config(content);
        let path = path.to_str().unwrap();
        for command in [["run", "--config", path], ["--config", path, "collect"]] {
            let (code, message) = failure(&command);
            assert_eq!(code, 2, "{message}");
            let start = format!("config file {path}, line {line} ({expected}");
            assert!(message.starts_with(&start), "{message}");
        }
    }
    let (code, message) = failure(&["run", "--config", "/nonexistent/hopscope.toml"]);
    assert_eq!(code, 2);
    assert!(
        message.starts_with("cannot read the config file /nonexistent/hopscope.toml: No such file"),
        "{message}"
    );
}

#[test]
fn bad_flags_are_named() {
    let cases: [(&[&str], &str); 12] = [
        (
            &["events", "--cause", "tcp.nope"],
            "unknown cause `tcp.nope`: give an id",
        ),
        (
            &["events", "--upstream", "10.0.0.0/40"],
            "bad upstream `10.0.0.0/40`: give ADDRESS",
        ),
        (
            &["events", "--since", "noon"],
            "bad time `noon`: give an age such as 5m",
        ),
        (
            &["events", "--agent", "localhost"],
            "bad address `localhost`: give HOST:PORT",
        ),
        (
            &["events", "--agent", "https://a:1"],
            "bad address `https://a:1`: https needs the CA of the server's certificate; give --tls-ca",
        ),
        (
            &["run", "--collector", "x"],
            "bad address `x`: give HOST:PORT",
        ),
        (
            &["run", "--snap-len", "99999"],
            "snap_len 99999 is too large: at most 32768 bytes",
        ),
        (
            &["run", "--request-head", "63"],
            "request_head 63 is out of range: give 64 to 2048 bytes",
        ),
        (
            &["run", "--response-head", "4K"],
            "response_head 4096 is out of range: give 64 to 2048 bytes",
        ),
        (
            &["run", "--ring-size", "4096"],
            "ring_size 4096 is too small: at least 262144 bytes",
        ),
        (
            &["run", "--upstream", "x"],
            "bad upstream `x`: give ADDRESS",
        ),
        (&["explain", "--log", "a=b=c"], "bad log level `a=b=c`: "),
    ];
    for (args, expected) in cases {
        let (code, message) = failure(args);
        assert_eq!(code, 2, "{message}");
        assert!(message.starts_with(expected), "{message}");
    }
    assert_eq!(outcome(&["run", "--nope"]).status.code(), Some(2));
    assert_eq!(outcome(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_taken_port_is_one_line_with_the_remedy() {
    let taken = TcpListener::bind(ANY_PORT).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for command in ["run", "collect"] {
        let expected = format!(
            "cannot listen on {address}: the port is taken by another process; stop that one or \
             choose another address with --listen"
        );
        assert_eq!(failure(&[command, "--listen", &address]), (1, expected));
    }
}

#[test]
fn an_absent_agent_is_one_line_with_the_remedy() {
    let address = unused_address();
    let expected = format!(
        "cannot reach an agent at http://{address}: Connection refused (os error 111); start \
         `hopscope run` or give another --agent"
    );
    assert_eq!(
        failure(&["events", "--agent", &address.to_string()]),
        (1, expected)
    );
}

/// Runs `hopscope events` against `agent` without holding up the runtime that serves it.
async fn events(agent: &Agent, more: &[&str]) -> String {
    let address = agent.address.to_string();
    let mut command = hopscope(&["events", "--agent", &address]);
    command.args(more);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = soon("events", output).await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout).to_owned()
}

#[tokio::test]
async fn events_shows_what_the_agent_holds() {
    let agent = Agent::start(HubConfig::default()).await;
    let (one, two, three) = (event(1), event(2), full_event());
    let all = [&one, &two, &three];
    for event in all {
        agent.hub.publish(event.clone());
    }
    let json = |event| format!("{}\n", event_json(event).unwrap());
    let people = all.map(|event| format!("{}\n", event_text(event, false)));
    assert_eq!(events(&agent, &[]).await, people.concat());
    assert_eq!(
        events(&agent, &["--format", "jsonl"]).await,
        all.map(json).concat()
    );
    let jsonl = async |more: &[&str]| {
        let mut args = vec!["--format", "jsonl"];
        args.extend(more);
        events(&agent, &args).await
    };
    assert_eq!(jsonl(&["--limit", "1"]).await, json(&three));
    assert_eq!(
        jsonl(&["--cause", "dns.*", "--cause", "tcp.*"])
            .await
            .lines()
            .count(),
        3
    );
    assert_eq!(
        jsonl(&["--cause", "tcp.connect_refused"]).await,
        json(&one) + &json(&two)
    );
    assert_eq!(jsonl(&["--upstream", "10.0.0.0/8:8002"]).await, json(&two));
    assert_eq!(
        jsonl(&["--since", "2023-11-14T22:13:22Z"]).await,
        json(&two)
    );
    assert_eq!(jsonl(&["--since", "5m"]).await, "");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_follows_until_the_agent_stops() {
    let agent = Agent::start(HubConfig::default()).await;
    agent.hub.publish(event(1));
    let address = agent.address.to_string();
    let args = [
        "events", "--agent", &address, "--follow", "--format", "jsonl",
    ];
    let mut following = Service::start(&args);
    assert_eq!(following.line(), event_json(&event(1)).unwrap());
    for number in 2..5 {
        agent.hub.publish(event(number));
        assert_eq!(following.line(), event_json(&event(number)).unwrap());
    }
    agent.stop().await;
    let said = format!("hopscope: the agent at http://{address} says: the agent is stopping");
    assert_eq!(following.ended(), (1, vec![said]));
}

#[tokio::test(flavor = "multi_thread")]
async fn collect_prints_one_json_line_an_event_and_stops_on_sigterm() {
    // The file's address is not on this host; the flag wins.
    let (_dir, path) = config("log = \"info\"\n[collect]\nlisten = \"192.0.2.1:1\"\n");
    let path = path.to_str().unwrap();
    let mut collect = Service::start(&["--config", path, "collect", "--listen", "127.0.0.1:0"]);
    let address = collect.ready("collecting");
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(&hub, PushConfig::new(address.to_string().parse().unwrap()));
    for event in [event(1), full_event()] {
        hub.publish(event.clone());
        assert_eq!(collect.line(), event_json(&event).unwrap());
    }
    until("acknowledged", || counter(&hub, "push_acknowledged") == 2).await;
    assert_eq!(push.stop(DEADLINE).await, 0);
    collect.signal(Signal::TERM);
    assert_eq!(collect.ended().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn collect_ends_quietly_when_its_reader_has_left() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = hopscope(&["collect", "--listen", "127.0.0.1:0"]);
    let mut collect = Service::spawn(command.stdout(writer));
    let address = collect.ready("collecting");
    let hub = Hub::new(HubConfig::default());
    let push = Push::start(&hub, PushConfig::new(address.to_string().parse().unwrap()));
    hub.publish(event(1));
    let (code, said) = collect.ended();
    assert_eq!(code, 0);
    assert!(
        !said.iter().any(|line| line.starts_with("hopscope: ")),
        "{said:?}"
    );
    assert_eq!(
        push.stop(std::time::Duration::ZERO).await,
        1,
        "nothing was taken over"
    );
}

#[test]
fn a_service_stops_on_sigint_too() {
    let mut collect = Service::start(&["collect", "--listen", "127.0.0.1:0"]);
    collect.ready("collecting");
    collect.signal(Signal::INT);
    assert_eq!(collect.ended().0, 0);
}
