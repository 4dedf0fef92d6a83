//! The agent's own counters, over its status call.

use anyhow::{Result, ensure};
use hopscope_proto::v1::StatusRequest;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;

use crate::agent::Agent;

/// Every counter of the agent with its name.
pub fn counters(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let status = runtime.block_on(async {
        let mut client = HopAgentClient::connect(agent.url()).await?;
        Ok::<_, anyhow::Error>(client.status(StatusRequest {}).await?.into_inner())
    })?;
    ensure!(!status.counters.is_empty(), "the agent reports no counters");
    let counters = status.counters.into_iter();
    Ok(counters
        .map(|counter| (counter.name, counter.value))
        .collect())
}
