//! The main promise, on a live host: every failure of an upstream behind a real nginx and a real HAProxy
//! gives exactly one event with the right cause, and healthy traffic gives none. Needs root and BTF.

mod live {
    mod answers;
    pub(crate) mod attached;
    pub(crate) mod captures;
    mod cases;
    mod clients;
    mod crowd;
    mod dns;
    mod heads;
    mod places;
    mod plaintext;
    mod proxied;
    pub(crate) mod status;
    mod stopped;
    mod tls;
}

use std::time::Duration;

use hopscope_tests::agent::{Agent, Event, analyze};
use hopscope_tests::cleanup::Directory;
use hopscope_tests::clock::wait_for;
use hopscope_tests::gateway::Kind;
use hopscope_tests::recording::Recording;
use hopscope_tests::scenario::{Shown, Verdict, failures, healthy, traps};
use hopscope_tests::watch::{Played, Watch};
use rustix::process::Signal;

use live::status;

#[test]
fn every_failure_is_named_once_live_and_from_the_recording() {
    let scenarios = failures();
    let (watch, played, recorded) = status::rounds(|| {
        let watch = Watch::start(&Kind::ALL, &scenarios)?;
        let files = Directory::new()?;
        let file = files.path().join("hop.pcap");
        let recording = Recording::start(watch.lab().namespace(), &file)?;
        let played = watch.play(&scenarios)?;
        let recorded = analyze(&recording.finish()?)?;
        let whole = !status::runs_left_out(watch.agent())?;
        Ok(whole.then_some((watch, played, recorded)))
    })
    .unwrap();

    let mut wrong: Vec<String> = played.iter().flat_map(|one| faults(one, &watch)).collect();
    for one in &played {
        let verdict = one.scenario.verdict.unwrap();
        let causes: Vec<&str> = recorded
            .iter()
            .filter(|event| event.upstream == one.upstream)
            .map(|event| event.cause.as_str())
            .collect();
        let expected: &[&str] = if verdict.shown == Shown::Packets {
            &[verdict.cause]
        } else {
            &[]
        };
        if causes != expected {
            wrong.push(format!(
                "{} through {}, recorded: {causes:?}, not {expected:?}",
                one.scenario.name, one.kind
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(status::losses(watch.agent()).unwrap(), []);
}

#[test]
fn healthy_requests_and_traps_give_no_event() {
    let mut scenarios = traps();
    scenarios.push(healthy(1000));
    let (watch, played) = status::play(&Kind::ALL, &scenarios).unwrap();
    let wrong: Vec<String> = played.iter().flat_map(|one| faults(one, &watch)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(status::losses(watch.agent()).unwrap(), []);
}

#[test]
fn nothing_stays_attached_when_the_agent_ends() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut agent = Agent::start().unwrap();
        let held = wait_for("the agent to attach", Duration::from_secs(10), || {
            let held = live::attached::of_process(agent.pid())?;
            Ok((!held.programs.is_empty() && !held.links.is_empty()).then_some(held))
        })
        .unwrap();
        let status = agent.end(signal).unwrap();
        // The kernel frees programs a moment after the last reference is gone.
        wait_for("the kernel to let go", Duration::from_secs(5), || {
            Ok(held.left()?.is_empty().then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {:?} after {signal:?}", held.left()));
        if signal == Signal::TERM {
            assert!(status.success(), "on SIGTERM the agent ended with {status}");
        }
    }
}

/// Whether `event` tells what `verdict` says: its cause, or several with it among them where the gateway's
/// TLS library knows more and did not speak.
fn names(event: &Event, verdict: Verdict) -> bool {
    let told = event
        .evidence
        .iter()
        .any(|fact| fact.source == "tls_library");
    let among = verdict.shown.rivals()
        && !told
        && event.proof == "underdetermined"
        && event.rivals.iter().any(|rival| rival == verdict.cause);
    event.cause == verdict.cause || among
}

/// Whether the gateway closed on what the upstream said inside TLS before the upstream's FIN came: which of
/// the two is first is a race, and who began it is inferred then.
fn overtaken(event: &Event) -> bool {
    let mut evidence = event.evidence.iter();
    event.proof == "inferred" && evidence.any(|fact| fact.what == "upstream_farewell")
}

/// What is wrong with the outcome of one scenario, in words.
fn faults(one: &Played<'_>, watch: &Watch) -> Vec<String> {
    let Played {
        scenario,
        kind,
        upstream,
        seen,
        events,
    } = one;
    let mut wrong = Vec::new();
    match seen {
        Ok(seen) if scenario.accepts(*kind, *seen) => {}
        Ok(seen) => wrong.push(format!(
            "the client saw {seen}, not {}",
            scenario.seen(*kind)
        )),
        Err(error) => wrong.push(format!("{error:#}")),
    }
    match (one.verdict(), events.as_slice()) {
        (None, []) => {}
        (Some(verdict), []) if !verdict.shown.live() => {}
        (Some(verdict), [event]) => {
            if !names(event, verdict) {
                wrong.push(format!("{event}, not {}", verdict.cause));
            }
            if !verdict.proofs.contains(&event.proof.as_str()) && !overtaken(event) {
                wrong.push(format!("{event}, not {:?}", verdict.proofs));
            }
            if !verdict.sides().contains(&event.fault_side.as_str()) {
                wrong.push(format!(
                    "fault side {}, not one of {:?}",
                    event.fault_side,
                    verdict.sides()
                ));
            }
            if event.upstream != *upstream {
                wrong.push(format!("upstream {}, not {upstream}", event.upstream));
            }
            let workers: Vec<u32> = watch
                .lab()
                .gateways()
                .iter()
                .filter(|gateway| gateway.kind() == *kind)
                .flat_map(|gateway| gateway.workers().to_vec())
                .collect();
            match &event.gateway {
                Some(process) if process.comm != kind.program() => {
                    wrong.push(format!("process {}, not {kind}", process.comm));
                }
                Some(process) if !workers.contains(&process.pid) => {
                    wrong.push(format!("pid {}, not one of {workers:?}", process.pid));
                }
                Some(_) => {}
                None => wrong.push("no gateway process".to_owned()),
            }
            if event.evidence.is_empty() {
                wrong.push("no evidence".to_owned());
            }
            if event.completeness.lost_segments > 0 {
                wrong.push(format!("{:?}", event.completeness));
            }
        }
        (expected, events) => {
            let said: Vec<String> = events.iter().map(ToString::to_string).collect();
            wrong.push(format!(
                "events {said:?}, not {:?}",
                expected.map(|one| one.cause)
            ));
        }
    }
    wrong
        .into_iter()
        .map(|what| format!("{} through {kind}, {upstream}: {what}", scenario.name))
        .collect()
}
