//! An agent that does not get to read: what it misses is counted, said on what it touched, and over
//! once it reads again.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hopscope_tests::agent::Event;
use hopscope_tests::clock::wait_for;
use hopscope_tests::gateway::Kind;
use hopscope_tests::scenario::{Scenario, failures};
use hopscope_tests::status;
use hopscope_tests::watch::Watch;
use rustix::process::Signal;

/// Connections that fail while nobody reads, at a dozen records each: more than the smallest ring
/// takes.
const FLOOD: u32 = 240;

/// The smallest ring that the agent takes.
const RING: &str = "256K";

/// Time that the agent gets to say what it has to say.
const VERDICT: Duration = Duration::from_secs(10);

fn scenario(name: &str) -> Result<Scenario> {
    let found = failures().into_iter().find(|one| one.name == name);
    found.with_context(|| format!("no scenario is named {name}"))
}

/// Waits for the agent's events about a scenario.
fn events(watch: &Watch, scenario: &Scenario, count: usize) -> Result<Vec<Event>> {
    let upstream = watch.lab().upstream(scenario, Kind::Nginx)?;
    wait_for("the events", VERDICT, || {
        let mut events = watch.agent().recent_events()?;
        events.retain(|event| event.upstream == upstream);
        Ok((events.len() >= count).then_some(events))
    })
}

#[test]
fn a_full_ring_is_counted_marked_and_over_when_it_is_read_again() {
    let (flood, open, after) = (
        scenario("closed_no_response").unwrap(),
        scenario("slow_first_byte").unwrap(),
        scenario("chunk_size").unwrap(),
    );
    let watch = Watch::start_with(
        &[Kind::Nginx],
        &[flood.clone(), open.clone(), after.clone()],
        &["--ring-size", RING],
    )
    .unwrap();
    let lab = watch.lab();
    let lost = || {
        let counters = status::counters(watch.agent()).unwrap();
        let ring_full = counters.iter().find(|(name, _)| name == "kernel_ring_full");
        ring_full.unwrap().1
    };
    assert_eq!(lost(), 0);

    // The gateway waits for two seconds: its hop is open while records are lost.
    let mut still_open = false;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| lab.play(&open, Kind::Nginx));
        watch.agent().signal(Signal::STOP).unwrap();
        let floods = [(); 4].map(|()| {
            scope.spawn(|| {
                for _ in 0..FLOOD / 4 {
                    lab.play(&flood, Kind::Nginx).unwrap();
                }
            })
        });
        for flood in floods {
            flood.join().unwrap();
        }
        watch.agent().signal(Signal::CONT).unwrap();
        still_open = !waiting.is_finished();
        waiting.join().unwrap().unwrap();
    });
    wait_for("the loss to be counted", VERDICT, || {
        Ok((lost() > 0).then_some(()))
    })
    .unwrap();
    let missed = lost();
    let counters = status::counters(watch.agent()).unwrap();
    let told = counters
        .iter()
        .find(|(name, _)| name == "engine_records_lost");
    assert!(told.unwrap().1 > 0, "{counters:?}");
    assert!(
        counters
            .iter()
            .any(|(name, value)| name == "live_malformed" && *value == 0)
    );

    // What was open then may have missed something, and says so. On a slow host its end was missed too.
    for event in events(&watch, &open, usize::from(still_open)).unwrap() {
        assert!(event.completeness.lost_segments > 0, "{event:?}");
        assert_ne!(event.proof, "proven");
    }

    // What begins now is seen whole.
    lab.play(&after, Kind::Nginx).unwrap();
    let [event] = <[Event; 1]>::try_from(events(&watch, &after, 1).unwrap()).unwrap();
    assert_eq!(event.cause, after.verdict.unwrap().cause);
    assert_eq!([event.proof.as_str()], after.verdict.unwrap().proofs);
    assert_eq!(event.completeness.lost_segments, 0);
    assert_eq!(lost(), missed);
}
