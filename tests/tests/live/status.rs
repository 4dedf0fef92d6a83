//! The agent's own account of what it lost.

use std::time::Duration;

use anyhow::{Result, bail};
use hopscope_tests::agent::Agent;
use hopscope_tests::clock::wait_for;
use hopscope_tests::gateway::Kind;
use hopscope_tests::scenario::Scenario;
use hopscope_tests::status;
use hopscope_tests::watch::{Played, Watch};

/// Longer than a program takes to be attached.
const STARTS: Duration = Duration::from_secs(10);

/// Times that something is played at most.
const ROUNDS: u32 = 3;

/// Plays `once` until it gives something, which it does unless records were lost on the way, such as by
/// [runs that the kernel left out](runs_left_out).
pub(crate) fn rounds<T>(mut once: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..ROUNDS {
        if let Some(whole) = once()? {
            return Ok(whole);
        }
    }
    bail!("records were lost in each of {ROUNDS} rounds")
}

/// Plays all of `scenarios` at once through every gateway, in [`rounds`].
pub(crate) fn play<'a>(
    kinds: &[Kind],
    scenarios: &'a [Scenario],
) -> Result<(Watch, Vec<Played<'a>>)> {
    play_with(kinds, scenarios, &[])
}

/// The same, before an agent that runs with these arguments.
pub(crate) fn play_with<'a>(
    kinds: &[Kind],
    scenarios: &'a [Scenario],
    arguments: &[&str],
) -> Result<(Watch, Vec<Played<'a>>)> {
    rounds(|| {
        let watch = Watch::start_with(kinds, scenarios, arguments)?;
        let played = watch.play(scenarios)?;
        let whole = !runs_left_out(watch.agent())?;
        Ok(whole.then_some((watch, played)))
    })
}

/// Waits until the agent counts the turns of HAProxy, of which one runs.
pub(crate) fn counts_turns(agent: &Agent) -> Result<()> {
    wait_for("turns of HAProxy to be counted", STARTS, || {
        let told = status::probe(agent, "turns")?;
        Ok((told == "of HAProxy").then_some(()))
    })
}

/// Whether the kernel left out runs of the agent's programs, which it does where an interrupt comes at the wrong
/// moment. What was open then is marked, and may be told with less certainty; anything else that is lost is a fault.
pub(crate) fn runs_left_out(agent: &Agent) -> Result<bool> {
    let counters = status::counters(agent)?;
    let left_out = |(name, count): &(String, u64)| name == "kernel_runs_missed" && *count > 0;
    Ok(counters.iter().any(left_out))
}

/// Counters of lost records and segments that are not zero. Everything else that the agent counts,
/// such as traffic that it chose not to look at, is no loss.
pub(crate) fn losses(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let counters = status::counters(agent)?.into_iter();
    Ok(counters
        .filter(|(name, value)| *value > 0 && is_loss(name))
        .collect())
}

fn is_loss(name: &str) -> bool {
    // Truncated payload is the snap length at work.
    ["lost", "drop", "full", "failed", "malformed"]
        .iter()
        .any(|word| name.contains(word))
}
