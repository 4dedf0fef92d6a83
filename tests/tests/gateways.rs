//! Real gateways answer each scenario as the table says, without any agent: the lab itself is right.

use std::thread;

use anyhow::{Result, bail};
use hopscope_tests::gateway::Kind;
use hopscope_tests::lab::Lab;
use hopscope_tests::scenario::{Scenario, failures, healthy, traps};
use hopscope_tests::tls;

#[test]
fn clients_see_what_the_table_says() {
    let mut scenarios = failures();
    scenarios.extend(traps());
    scenarios.push(healthy(100));
    let wrong = play(&Kind::ALL, &scenarios).unwrap();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn clients_see_what_the_table_says_of_tls() {
    let mut scenarios = tls::scenario::failures();
    scenarios.extend(tls::scenario::healthy());
    let wrong = play(&Kind::TLS, &scenarios).unwrap();
    assert!(wrong.is_empty(), "{wrong}");
}

/// What clients saw that the table does not say, in words.
fn play(kinds: &[Kind], scenarios: &[Scenario]) -> Result<String> {
    let lab = Lab::start(kinds, scenarios)?;
    let mut wrong = Vec::new();
    thread::scope(|scope| {
        let mut running = Vec::new();
        for scenario in scenarios {
            for gateway in lab.gateways() {
                let (lab, kind) = (&lab, gateway.kind());
                if scenario.plays(kind) {
                    let play = scope.spawn(move || lab.play(scenario, kind));
                    running.push((scenario, gateway, play));
                }
            }
        }
        for (scenario, gateway, play) in running {
            let kind = gateway.kind();
            let what = match play.join() {
                Ok(Ok(seen)) if scenario.accepts(kind, seen) => continue,
                Ok(Ok(seen)) => format!(
                    "{} through {kind}: saw {seen}, not {}",
                    scenario.name,
                    scenario.seen(kind)
                ),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => bail!("a client panicked"),
            };
            let upstream = lab.upstream(scenario, kind)?.to_string();
            let said = gateway.log(&[scenario.name, &upstream]);
            wrong.push(format!("{what}\n{said}"));
        }
        Ok(wrong.join("\n"))
    })
}
