//! What the clients of real gateways get, joined to the failure behind it.

use std::collections::BTreeMap;

use hopscope_tests::client::Seen;
use hopscope_tests::gateway::Kind;
use hopscope_tests::scenario::failures;
use hopscope_tests::status;
use hopscope_tests::watch::Played;

use crate::live::status::play;

/// Gateways whose thread that lets go of an upstream is the one that answers the client.
const KINDS: [Kind; 2] = [Kind::Nginx, Kind::Haproxy];

/// What is wrong with how the answer that a client saw is told.
fn fault(one: &Played<'_>) -> Option<String> {
    let path = format!("/{}", one.scenario.name);
    let [event] = one.events.as_slice() else {
        // Whether there is one event is another test's business.
        return None;
    };
    let answer = event.gateway_answer.as_ref();
    match one.seen {
        Ok(Seen::Status(status) | Seen::Cut(status)) if status >= 500 => match answer {
            // It may be another one's: then it says so.
            Some(answer) if answer.contested || !answer.candidates.is_empty() => None,
            Some(answer)
                if answer.status == Some(status)
                    && answer.path.as_deref() == Some(&*path)
                    && answer
                        .attempts
                        .last()
                        .is_some_and(|last| last.cause == event.cause) =>
            {
                None
            }
            answer => Some(format!("{status} is not told, but {answer:?}: {event}")),
        },
        Ok(Seen::Status(status) | Seen::Cut(status)) => match answer {
            None if event.hidden_from_client => None,
            answer => Some(format!(
                "{status} is told as {answer:?}, hidden: {}: {event}",
                event.hidden_from_client
            )),
        },
        _ => None,
    }
    .map(|what| format!("{} through {}: {what}", one.scenario.name, one.kind))
}

#[test]
fn every_failure_carries_what_its_client_got() {
    let scenarios = failures();
    let (watch, played) = play(&KINDS, &scenarios).unwrap();
    let counters: BTreeMap<String, u64> = status::counters(watch.agent())
        .unwrap()
        .into_iter()
        .filter(|(name, _)| name.contains("answers") || name.contains("client"))
        .collect();
    let told = played.iter().filter(|one| {
        one.events
            .iter()
            .any(|event| event.gateway_answer.is_some())
    });
    let told = told.count();
    let wrong: Vec<String> = played.iter().filter_map(fault).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} wrong, {told} told, {counters:?}\n{}",
        wrong.len(),
        played.len(),
        wrong.join("\n")
    );
    let ambiguous = counters.get("engine_answers_ambiguous");
    // The busier the machine, the more failures share one turn of a gateway.
    assert!(ambiguous.is_some_and(|count| *count <= 28), "{counters:?}");
    assert!(told > 40, "{told}, {counters:?}");
}
