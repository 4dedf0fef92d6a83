//! The promise for hops with TLS: nginx, HAProxy and Apache before upstreams that break TLS in every way of
//! the catalogue, and before healthy ones.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use hopscope_tests::agent::{Event, analyze};
use hopscope_tests::cleanup::Directory;
use hopscope_tests::gateway::Kind;
use hopscope_tests::recording::Recording;
use hopscope_tests::scenario::{Drive, Scenario};
use hopscope_tests::status::counters;
use hopscope_tests::tls::scenario::{failures, healthy};
use hopscope_tests::watch::{Played, Watch};

use crate::{faults, live::status, names};

/// Scenarios that are played at once. Handshakes keep a gateway busy, and one that never sleeps does
/// everything in one turn.
const AT_ONCE: usize = 12;

#[test]
fn every_tls_failure_is_named_once_live_and_from_the_recording() {
    let failures = failures();
    let wrong = status::rounds(|| judge("tls_failures", &failures)).unwrap();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn healthy_tls_traffic_gives_no_event() {
    let healthy = healthy();
    let wrong = status::rounds(|| judge("tls_healthy", &healthy)).unwrap();
    assert!(wrong.is_empty(), "{wrong}");
}

/// Plays `scenarios` through every gateway and says how what the agent says of them, and what the engine
/// says of their recording, differs from the table; nothing where the kernel left out runs. The recording stays where
/// something differs.
fn judge(name: &str, scenarios: &[Scenario]) -> Result<Option<String>> {
    let watch = Watch::start(&Kind::TLS, scenarios)?;
    let files = Directory::new()?;
    let file = files.path().join("hop.pcap");
    let recording = Recording::start(watch.lab().namespace(), &file)?;
    let mut played = Vec::new();
    for some in scenarios.chunks(AT_ONCE) {
        played.extend(watch.play(some)?);
    }
    let recording = recording.finish()?;
    let recorded = analyze(&recording)?;
    if status::runs_left_out(watch.agent())? {
        return Ok(None);
    }

    let mut wrong: Vec<String> = Vec::new();
    for one in &played {
        wrong.extend(faults(one, &watch));
        wrong.extend(faults_of_recording(one, &recorded));
    }
    let lost = status::losses(watch.agent())?;
    wrong.extend(lost.iter().map(|lost| format!("lost: {lost:?}")));
    let faults_found = wrong.len();
    if faults_found > 0 {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pcap"));
        fs::copy(&recording, &kept).context("could not keep the recording")?;
        let counters = counters(watch.agent())?.into_iter();
        let counters: Vec<_> = counters.filter(|(_, count)| *count > 0).collect();
        wrong.push(format!("the agent counted {counters:?}"));
        wrong.push(format!(
            "{} faults; the recording is {}",
            faults_found,
            kept.display()
        ));
    }
    Ok(Some(wrong.join("\n")))
}

/// Whether the client of a scenario goes away while it waits.
const fn left(one: &Played<'_>) -> bool {
    matches!(one.scenario.drive, Drive::Leave(_))
}

/// What is wrong with what the engine says of the recording of one scenario.
fn faults_of_recording(one: &Played<'_>, recorded: &[Event]) -> Option<String> {
    let of_it: Vec<&Event> = recorded
        .iter()
        .filter(|event| event.upstream == one.upstream)
        .collect();
    match (one.verdict(), of_it.as_slice()) {
        (None, []) => None,
        // Packets alone do not tell a gateway whose client left from one that ran out of patience.
        (None, [event]) if left(one) && event.proof == "underdetermined" => None,
        (Some(verdict), []) if !verdict.shown.recorded() => None,
        (Some(verdict), [event]) if names(event, verdict) => None,
        (expected, events) => {
            let said: Vec<String> = events.iter().map(ToString::to_string).collect();
            Some(format!(
                "{} through {}, {}, recorded: {said:?}, not {:?}",
                one.scenario.name,
                one.kind,
                one.upstream,
                expected.map(|one| one.cause)
            ))
        }
    }
}
