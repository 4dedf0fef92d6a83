//! When an agent has said all that it has to say.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Gateway, Setting, nginx};
use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::clock::wait_for;

/// Time that the agent gets. Failures that no client was told of are known as such when no client waits any more.
const VERDICTS: Duration = Duration::from_secs(40);

/// Waits until the agent has told of everything that happened so far: of a failure that is made now, which nobody is
/// told of, it says so when its time is over, and that of all before it is over then as well. The gateway for it is
/// put into `cgroup`, which the agent must watch.
pub fn settle(agent: &Agent, cgroup: &Cgroup) -> Result<()> {
    let wanted = [(Gateway::Nginx, vec![nginx::canary()])];
    let bench = Bench::start(Setting::default(), &wanted, cgroup)?;
    bench.play(Gateway::Nginx)?;
    wait_for("the agent to say all that it has to say", VERDICTS, || {
        let events = agent.recent_events()?;
        let told = !bench.own(&events)?.is_empty();
        Ok(told.then_some(()))
    })
}
