//! What the agent's counters of answers must say, from what gateways logged.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::access::Logged;
use crate::agent::{Agent, Event};
use crate::status;

/// Counts by the names that the agent gives them.
pub type Tally = BTreeMap<String, u64>;

/// The counters of answers.
const NAMES: [&str; 9] = [
    "500",
    "502",
    "503",
    "504",
    "other",
    "passed_on",
    "explained",
    "ambiguous",
    "unexplained",
];

/// What the counters must say of the requests that a gateway logged, and of the agent's events about them. Which status
/// was passed on is taken from the log where that tells, and how firmly the others are explained from the events.
pub fn expected(logged: &[Logged], events: &[&Event]) -> Tally {
    let mut tally = zero();
    let mut count = |name: &str| *tally.entry(key(name)).or_default() += 1;
    for line in logged.iter().filter(|line| line.status >= 500) {
        let told = events.iter().find_map(|event| {
            let answer = event.gateway_answer.as_ref()?;
            (answer.client.port == line.client).then_some((event, answer))
        });
        let own = || told.is_some_and(|(event, _)| event.cause == "upstream.own_error");
        if line.asked.passed_on(line.status).unwrap_or_else(own) {
            count("passed_on");
            continue;
        }
        match line.status {
            500 => count("500"),
            502 => count("502"),
            503 => count("503"),
            504 => count("504"),
            _ => count("other"),
        }
        count(match told {
            None => "unexplained",
            Some((_, answer)) if answer.contested || !answer.candidates.is_empty() => "ambiguous",
            Some((event, answer))
                if answer.attempts.is_empty() && event.proof == "underdetermined" =>
            {
                "ambiguous"
            }
            Some(_) => "explained",
        });
    }
    tally
}

/// What the counters say.
pub fn counted(agent: &Agent) -> Result<Tally> {
    let mut tally = zero();
    for (name, value) in status::counters(agent)? {
        if let Some(known) = tally.get_mut(&name) {
            *known = value;
        }
    }
    Ok(tally)
}

/// The sum of two.
pub fn sum(mut one: Tally, other: &Tally) -> Tally {
    for (name, value) in other {
        *one.entry(name.clone()).or_default() += value;
    }
    one
}

fn zero() -> Tally {
    NAMES.map(|name| (key(name), 0)).into()
}

fn key(name: &str) -> String {
    format!("engine_answers_{name}")
}
