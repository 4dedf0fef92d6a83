//! The agent's own account of what it lost.

use anyhow::Result;
use hopscope_tests::agent::Agent;
use hopscope_tests::status;

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
