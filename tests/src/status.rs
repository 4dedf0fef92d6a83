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
    Probe { name: String, reason: String },
    Counter { name: String, value: u64 },
}

/// Every counter of the agent with its name.
pub fn counters(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let mut counters = Vec::new();
    for line in lines(agent)? {
        if let Line::Counter { name, value } = line {
            counters.push((name, value));
        }
    }
    ensure!(!counters.is_empty(), "the agent reports no counters");
    Ok(counters)
}

/// What the agent says of one of its probes: why it is not attached, or to what it is.
pub fn probe(agent: &Agent, wanted: &str) -> Result<String> {
    let found = lines(agent)?.into_iter().find_map(|line| match line {
        Line::Probe { name, reason } if name == wanted => Some(reason),
        _ => None,
    });
    found.with_context(|| format!("the agent reports no probe {wanted}"))
}

fn lines(agent: &Agent) -> Result<Vec<Line>> {
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
    let parse = |line: &str| serde_json::from_str(line).with_context(|| line.to_owned());
    text.lines().map(parse).collect()
}
