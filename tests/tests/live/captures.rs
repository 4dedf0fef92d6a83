//! What the agent keeps of failed exchanges.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hopscope_tests::agent::{Agent, Event, analyze};
use hopscope_tests::cleanup::Directory;
use hopscope_tests::clock::Deadline;
use hopscope_tests::gateway::Kind;
use hopscope_tests::scenario::{Shown, failures};
use hopscope_tests::status;
use hopscope_tests::watch::{Played, Watch};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::Value;

use crate::live::status::play;

/// Time that a few kilobytes last at the most.
const FULL: Duration = Duration::from_mins(1);

#[test]
fn every_failure_leaves_packets_that_tell_its_cause() {
    let scenarios = failures();
    let (mut watch, played) = play(&Kind::ALL, &scenarios).unwrap();
    let files = Directory::new().unwrap();
    let wrong: Vec<String> = played
        .iter()
        .flat_map(|one| {
            let named = |what| format!("{} through {}: {what}", one.scenario.name, one.kind);
            match faults(one, watch.agent(), files.path()) {
                Ok(wrong) => wrong.into_iter().map(named).collect(),
                Err(error) => vec![named(format!("{error:#}"))],
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Whatever happens to the agent, what it kept is there.
    let before = listed(watch.agent()).unwrap();
    assert!(!before.is_empty());
    watch.agent_mut().end(Signal::KILL).unwrap();
    let again = Agent::start_again(watch.agent().captures()).unwrap();
    let after = listed(&again).unwrap();
    let lost: Vec<_> = before.iter().filter(|id| !after.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?} are gone");
}

/// A file system of a few kilobytes over a directory, for as long as the value lives.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn over(directory: &'a Path) -> Result<Self> {
        let flags = MountFlags::empty();
        mount("none", directory, "tmpfs", flags, c"size=12k")
            .with_context(|| format!("no file system over {}", directory.display()))?;
        Ok(Self(directory))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // The agent may have a file open there.
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_and_deleted_files_cost_captures_and_nothing_else() {
    let all = failures();
    let failing = all.iter().find(|one| one.name == "closed_no_response");
    let scenarios = [failing.unwrap().clone()];
    let watch = Watch::start(&[Kind::Nginx], &scenarios).unwrap();
    let captured = || {
        let [one] = <[Played<'_>; 1]>::try_from(watch.play(&scenarios).unwrap()).unwrap();
        let [event] = <[Event; 1]>::try_from(one.events).unwrap();
        assert_eq!(event.cause, "tcp.closed_no_response");
        event.capture_id
    };
    let counted = |name: &str| {
        let counters = status::counters(watch.agent()).unwrap();
        counters.iter().find(|(known, _)| known == name).unwrap().1
    };
    let id = captured().unwrap();
    let directory = watch.agent().captures();
    {
        // Its files are gone at the same time.
        let _small = Small::over(directory).unwrap();
        let deadline = Deadline::after(FULL);
        while captured().is_some() {
            assert!(!deadline.passed(), "the disk is not full");
        }
        assert_eq!(counted("captures_files_gone"), 1);
        assert_eq!(counted("captures_write_errors"), 1);
        assert!(watch.agent().log().contains("nothing is recorded for 30 s"));
        let refused = watch.agent().ask_captures(&["pull", &id, "-o", "-"]);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("there is no capture")
        );
    }
    assert_eq!(captured(), None, "nothing is recorded for a while");
    assert_eq!(counted("captures_write_errors"), 1);
    assert!(counted("captures_not_written") >= 2);
}

/// What is wrong with the capture of a scenario.
fn faults(one: &Played<'_>, agent: &Agent, files: &Path) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let in_packets = one
        .verdict()
        .is_some_and(|verdict| verdict.shown == Shown::Packets);
    for event in one.events.iter().filter(|_| in_packets) {
        let Some(id) = event.capture_id.as_deref() else {
            wrong.push("no capture".to_owned());
            continue;
        };
        let bytes = agent.ask_captures(&["pull", id, "-o", "-"])?;
        let file = files.join(format!("{id}.pcapng"));
        fs::write(&file, &bytes)?;
        let told = analyze(&file)?;
        let causes: Vec<_> = told.iter().map(|event| &event.cause).collect();
        if causes != [&event.cause] {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{id}.pcapng"));
            fs::write(&kept, &bytes).context("could not keep the capture")?;
            let told: Vec<_> = told.iter().map(ToString::to_string).collect();
            let kept = kept.display();
            wrong.push(format!("{kept} tells {told:?}, and the event is {event}"));
        }
        wrong.extend(shown(&file, event)?);
    }
    Ok(wrong)
}

/// What is wrong with how tshark shows a capture, where there is one.
fn shown(file: &Path, event: &Event) -> Result<Option<String>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file);
    command.args(["-T", "fields", "-e", "frame.comment", "-e", "_ws.malformed"]);
    let Ok(output) = command.output() else {
        return Ok(None);
    };
    let text = String::from_utf8(output.stdout).context("tshark speaks no UTF-8")?;
    let verdict = format!("{} ({})", event.cause, event.proof);
    let client = match &event.gateway_answer {
        Some(answer) => answer.status.map_or_else(
            || "got no answer".to_owned(),
            |status| format!("got {status}"),
        ),
        None if event.hidden_from_client => "; the client saw no failure".to_owned(),
        None => String::new(),
    };
    let told = |line: &&str| line.contains(&verdict) && line.contains(&client);
    let comments = text.lines().filter(told).count();
    let good = output.status.success() && comments == 1 && !text.contains("Malformed");
    Ok((!good).then(|| format!("tshark shows {text:?} without {verdict} {client}")))
}

/// Ids of the captures that an agent lists.
fn listed(agent: &Agent) -> Result<Vec<String>> {
    let output = agent.ask_captures(&["list", "--format", "jsonl"])?;
    let text = String::from_utf8(output)?;
    text.lines()
        .map(|line| {
            let capture: Value = serde_json::from_str(line)?;
            let id = capture["id"].as_str().context("a capture without an id")?;
            Ok(id.to_owned())
        })
        .collect()
}
