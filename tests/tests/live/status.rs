//! The agent's own account of what it lost.

use anyhow::{Result, ensure};
use hopscope_proto::v1::StatusRequest;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use hopscope_tests::agent::Agent;

/// Counters of lost records and segments that are not zero. Everything else that the agent counts,
/// such as traffic that it chose not to look at, is no loss.
pub(crate) fn losses(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let status = runtime.block_on(async {
        let mut client = HopAgentClient::connect(agent.url()).await?;
        Ok::<_, anyhow::Error>(client.status(StatusRequest {}).await?.into_inner())
    })?;
    ensure!(!status.counters.is_empty(), "the agent reports no counters");
    Ok(status
        .counters
        .into_iter()
        .filter(|counter| counter.value > 0 && is_loss(&counter.name))
        .map(|counter| (counter.name, counter.value))
        .collect())
}

fn is_loss(name: &str) -> bool {
    // Truncated payload is the snap length at work.
    ["lost", "drop", "full", "failed", "malformed"]
        .iter()
        .any(|word| name.contains(word))
}
