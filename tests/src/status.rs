//! The agent's own counters, as `hopscope status` prints them.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::agent::{Agent, binary};

/// One line of the command.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Agent {},
    Upstream {},
    Probe {},
    Counter { name: String, value: u64 },
}

/// Every counter of the agent with its name.
pub fn counters(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let output = binary()
        .args(["status", "--format", "jsonl", "--agent", &agent.url()])
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "`hopscope status` ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout).context("the status is no text")?;
    let mut counters = Vec::new();
    for line in text.lines() {
        let parsed = serde_json::from_str(line);
        if let Line::Counter { name, value } = parsed.with_context(|| line.to_owned())? {
            counters.push((name, value));
        }
    }
    ensure!(!counters.is_empty(), "the agent reports no counters");
    Ok(counters)
}
