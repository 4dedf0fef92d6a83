//! `hopscope captures` from outside.

use std::fs::{self, File};
use std::io::Read as _;
use std::process::{Output, Stdio};

use crate::commands::{Service, hopscope, text};
use crate::shelf::{BAD, GET, Shelf, agent, exchange, files, shelf, upstream};
use crate::support::{ANY_PORT, Agent, soon, until};
use hopscope::model::Cause;
use hopscope::serve::HubConfig;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Runs `hopscope captures` against `agent`.
async fn captures(agent: &Agent, args: &[&str]) -> Output {
    let address = agent.address.to_string();
    let mut command = hopscope(&["captures"]);
    command.args(args).args(["--agent", &address]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    soon("captures", output).await.unwrap()
}

/// Its output, where it succeeds and says nothing else.
async fn shown(agent: &Agent, args: &[&str]) -> String {
    let output = captures(agent, args).await;
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    text(&output.stdout).to_owned()
}

/// Its message and exit code, where it fails.
async fn refused(agent: &Agent, args: &[&str]) -> (i32, String) {
    let output = captures(agent, args).await;
    assert_eq!(text(&output.stdout), "");
    let message = text(&output.stderr).strip_prefix("hopscope: ").unwrap();
    (output.status.code().unwrap(), message.trim_end().to_owned())
}

#[tokio::test]
async fn the_list_command_shows_what_the_agent_holds() {
    let (agent, shelf) = agent().await;
    let row = |place: usize, time, cause, upstream, packets, exchange| {
        let (id, bytes) = (shelf.id(place), shelf.bytes(place).len());
        format!(
            "{id}  {time}  {cause:30}  {upstream:21}  {packets:>4} packets  {bytes:>8} bytes  {exchange}\n"
        )
    };
    let (first, second) = ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:21.000Z");
    let (bad, closed) = ("http1.header_control_char", "tcp.closed_no_response");
    let expected = [
        row(0, first, "-", "10.0.0.7:80", 2, "GET /cart -> 200"),
        row(1, second, bad, "10.0.0.7:80", 2, "GET /cart -> 200"),
        row(
            2,
            "2023-11-14T22:13:22.000Z",
            closed,
            "10.0.0.7:81",
            1,
            "GET /cart",
        ),
    ];
    assert_eq!(shown(&agent, &["list"]).await, expected.concat());
    let json = shown(&agent, &["list", "--cause", "http1.*", "--format", "jsonl"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({
        "id": shelf.id(1), "time": "2023-11-14T22:13:21.000000000Z", "cause": bad,
        "event_id": "event-1", "node": "gw1", "upstream": {"address": "10.0.0.7", "port": 80},
        "method": "GET", "path": "/cart", "status": 200,
        "packets": 2, "bytes": shelf.bytes(1).len(),
    });
    assert_eq!(json, expected);
    let (code, message) = refused(&agent, &["list", "--cause", "http1.nope"]).await;
    assert_eq!(code, 2);
    assert!(
        message.starts_with("unknown cause `http1.nope`"),
        "{message}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn the_pull_command_writes_one_valid_file() {
    let (agent, shelf) = agent().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.pcapng");
    let path = file.to_str().unwrap();
    let all = shelf.all();
    let said = shown(&agent, &["pull", "-o", path]).await;
    assert_eq!(said, format!("3 captures, {} bytes in {path}\n", all.len()));
    assert_eq!(fs::read(&file).unwrap(), all);
    let analyzed = hopscope(&["analyze", path]).output().unwrap();
    assert_eq!(analyzed.status.code(), Some(0));

    let output = captures(&agent, &["pull", shelf.id(1), "--format", "jsonl"]).await;
    let one = shelf.bytes(1);
    assert_eq!((output.status.code(), &output.stdout), (Some(0), &one));
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"captures": 1, "bytes": one.len(), "unreadable": 0, "file": null})
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_pull_that_breaks_leaves_no_half_file() {
    let (agent, shelf) = agent().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.pcapng");
    fs::write(&file, "before").unwrap();
    let path = file.to_str().unwrap();
    shelf.damage(2);
    let (code, message) = refused(&agent, &["pull", shelf.id(0), shelf.id(2), "-o", path]).await;
    assert_eq!(code, 1);
    let said = format!("says: capture {} is damaged", shelf.id(2));
    assert!(message.contains(&said), "{message}");
    assert_eq!(fs::read(&file).unwrap(), b"before");
    assert_eq!(files(dir.path()), ["all.pcapng"]);

    let absent = dir.path().join("none");
    let none = absent.to_str().unwrap();
    let cases = [
        (
            &["pull", "c-9", "-o", none][..],
            1,
            "says: there is no capture c-9",
        ),
        (
            &["pull", "--upstream", ":99", "-o", none],
            1,
            "holds no capture that matches",
        ),
        (
            &["pull", "c-1", "--upstream", ":80", "-o", none],
            2,
            "ids and filters exclude each other: give the one or the other",
        ),
        (
            &["pull", "-o", dir.path().to_str().unwrap()],
            2,
            "it is a directory; name a file in it",
        ),
        (
            &["pull", shelf.id(0), "-o", "/dev/full"],
            1,
            "cannot write /dev/full: ",
        ),
        (
            &["pull", "-o", "/nonexistent/file"],
            1,
            "cannot write /nonexistent/file",
        ),
    ];
    for (args, expected_code, expected) in cases {
        let (code, message) = refused(&agent, args).await;
        assert_eq!(code, expected_code, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(files(dir.path()), ["all.pcapng"]);
    agent.stop().await;
}

#[tokio::test]
async fn a_pull_by_filter_leaves_out_what_cannot_be_read() {
    let (agent, shelf) = agent().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.pcapng");
    let path = file.to_str().unwrap();
    shelf.damage(1);
    let output = captures(&agent, &["pull", "-o", path, "--format", "jsonl"]).await;
    assert_eq!(output.status.code(), Some(0));
    let rest = [shelf.bytes(0), shelf.bytes(2)].concat();
    assert_eq!(fs::read(&file).unwrap(), rest);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"captures": 2, "bytes": rest.len(), "unreadable": 1, "file": path})
    );
    let warned = String::from_utf8(output.stderr).unwrap();
    let expected = format!("warning: left out: capture {} is damaged", shelf.id(1));
    assert!(warned.starts_with(&expected), "{warned}");

    for place in [0, 2] {
        shelf.damage(place);
    }
    let output = captures(&agent, &["pull"]).await;
    let message = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    assert!(
        message.contains("could read none of the captures that match"),
        "{message}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_pull_that_is_stopped_leaves_no_half_file() {
    // An agent that never answers: the connection waits to be accepted.
    let silent = std::net::TcpListener::bind(ANY_PORT).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.pcapng");
    let path = file.to_str().unwrap();
    let mut pull = Service::start(&["captures", "pull", "-o", path, "--agent", &address]);
    until("a file", || !files(dir.path()).is_empty()).await;
    // The signal must find the command listening, which it does before it connects.
    until("a connection", || is_waiting(&silent)).await;
    pull.signal(Signal::INT);
    let said = "hopscope: stopped by SIGINT".to_owned();
    assert_eq!(pull.ended(), (1, vec![said]));
    assert!(files(dir.path()).is_empty());
}

/// Whether somebody wants to connect.
fn is_waiting(listener: &std::net::TcpListener) -> bool {
    let mut events = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut events, Some(&Timespec::default())).unwrap() > 0
}

#[tokio::test]
async fn the_boost_command_says_what_is_in_force() {
    let (agent, _) = agent().await;
    let said = shown(&agent, &["boost", "10.0.0.7:80", "--for", "5m"]).await;
    assert_eq!(
        said,
        "every exchange with 10.0.0.7:80 is kept until 2023-11-14T22:18:20.000Z\n"
    );
    let said = shown(
        &agent,
        &["boost", ":80", "--one-in", "10", "--format", "jsonl"],
    )
    .await;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said,
        serde_json::json!({"upstream": ":80", "one_in": 10, "until": "2023-11-14T22:23:20.000000000Z"})
    );
    let (code, message) = refused(&agent, &["boost", ":80", "--for", "2h"]).await;
    assert_eq!(code, 2);
    assert!(message.contains("a boost cannot last 7200s"), "{message}");
    agent.stop().await;
}

#[tokio::test]
async fn the_diff_command_marks_the_byte() {
    let mut shelf = shelf(16 << 20);
    // Newer, but of another path: the one with the same path is compared.
    let other = exchange(
        upstream(80),
        b"GET /other HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
    );
    shelf.add(None, upstream(80), other);
    let agent = shelf.serve().await;
    let page = shown(&agent, &["diff", "10.0.0.7"]).await;
    let page = page
        .replace(shelf.id(1), "FAILING")
        .replace(shelf.id(0), "HEALTHY");
    let expected = r"upstream 10.0.0.7:80
  failing  FAILING  2023-11-14T22:13:21.000Z  http1.header_control_char  GET shop/cart
  healthy  HEALTHY  2023-11-14T22:13:20.000Z  no failure  GET shop/cart

status line
  both     HTTP/1.1 200 OK

headers
  failing  X-Id: 1\x002
                  ^^^^ NUL in a header value (byte 35)
  healthy  (absent)
  both     2 more are the same

framing
  failing  Content-Length: complete with 2 bytes
  healthy  Content-Length: complete with 2 bytes
";
    assert_eq!(page, expected);
    let json = shown(
        &agent,
        &["diff", ":80", "--healthy", shelf.id(3), "--format", "jsonl"],
    )
    .await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["healthy"]["capture_id"], shelf.id(3));
    assert_eq!(json["headers"][1]["failing"][0]["marks"][0]["byte"], 0);
    agent.stop().await;
}

#[tokio::test]
async fn a_diff_without_two_sides_says_what_to_do() {
    let (agent, shelf) = agent().await;
    let (healthy, failing) = (shelf.id(0), shelf.id(1));
    let no_failing = format!("no failing capture of :80 has the id {healthy}: `hopscope captures");
    let no_healthy = format!("no healthy capture of 10.0.0.7:80 has the id {failing}: `hopscope");
    let cases = [
        (
            &["diff", ":99"][..],
            "there is no capture of a failure of :99 yet: wait for one",
        ),
        (
            &["diff", ":81"],
            "the newest captures of failures of :81 (1) hold no response byte, so there",
        ),
        (&["diff", ":80", "--failing", healthy], &no_failing),
        (&["diff", ":80", "--healthy", failing], &no_healthy),
    ];
    for (args, expected) in cases {
        let (code, message) = refused(&agent, args).await;
        assert_eq!(code, 1);
        assert!(message.starts_with(expected), "{message}");
    }
    agent.stop().await;
    let mut shelf = Shelf::new(16 << 20);
    let bad = Some(Cause::Http1HeaderControlChar);
    shelf.add(bad, upstream(80), exchange(upstream(80), GET, BAD));
    let agent = shelf.serve().await;
    let (code, message) = refused(&agent, &["diff", ":80"]).await;
    assert_eq!(code, 1);
    assert_eq!(
        message,
        "there is no capture of a healthy response of 10.0.0.7:80 yet: `hopscope captures boost \
         10.0.0.7:80` has some kept as soon as there are requests"
    );
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_without_captures_says_how_to_have_them() {
    let agent = Agent::start(HubConfig::default()).await;
    for args in [
        &["list"][..],
        &["pull", "-o", "/dev/null"],
        &["boost", ":80"],
        &["diff", ":80"],
    ] {
        let (code, message) = refused(&agent, args).await;
        assert_eq!(code, 1);
        assert!(
            message.contains("says: this agent keeps no captures: let `hopscope run`"),
            "{message}"
        );
    }
    agent.stop().await;
}

/// Runs `hopscope captures` with a terminal as its standard output, and gives what that shows.
async fn on_a_terminal(agent: &Agent, args: &[&str]) -> (i32, String, String) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let address = agent.address.to_string();
    let mut command = hopscope(&["captures"]);
    command.args(args).args(["--agent", &address]);
    command.stdout(terminal).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The command keeps the terminal's end open; with it, the last one goes.
    drop(command);
    let ended = tokio::task::spawn_blocking(move || {
        let mut shown = Vec::new();
        // A terminal whose other end is closed reads as an error.
        let _ = File::from(controller).read_to_end(&mut shown);
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let code = child.wait().unwrap().code().unwrap();
        (code, String::from_utf8(shown).unwrap(), said)
    });
    soon("captures", ended).await.unwrap()
}

#[tokio::test]
async fn a_terminal_gets_colours_but_no_packets() {
    let (agent, shelf) = agent().await;
    let (code, shown, said) = on_a_terminal(&agent, &["pull", shelf.id(0)]).await;
    assert_eq!((code, shown.as_str()), (2, ""));
    assert_eq!(
        said,
        "hopscope: refusing to write pcapng to a terminal: give -o FILE, or pipe it into a program\n"
    );
    let (code, shown, said) = on_a_terminal(&agent, &["diff", ":80"]).await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(shown.contains("1\u{1b}[7m\\x00\u{1b}[0m2"), "{shown}");
    agent.stop().await;
}
