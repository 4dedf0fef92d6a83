//! Real gateways answer each scenario as the table says, without any agent: the lab itself is right.

use std::thread;

use hopscope_tests::gateway::Kind;
use hopscope_tests::lab::Lab;
use hopscope_tests::scenario::{Scenario, failures, healthy, traps};
use hopscope_tests::tls;

#[test]
fn clients_see_what_the_table_says() {
    let mut scenarios = failures();
    scenarios.extend(traps());
    scenarios.push(healthy(100));
    play(&Kind::ALL, &scenarios);
}

#[test]
fn clients_see_what_the_table_says_of_tls() {
    let mut scenarios = tls::scenario::failures();
    scenarios.extend(tls::scenario::healthy());
    play(&Kind::TLS, &scenarios);
}

fn play(kinds: &[Kind], scenarios: &[Scenario]) {
    let lab = Lab::start(kinds, scenarios).unwrap();
    let mut wrong = Vec::new();
    let said = |scenario: &Scenario, kind| {
        let upstream = lab.upstream(scenario, kind).unwrap().to_string();
        let gateway = lab.gateways().iter().find(|one| one.kind() == kind);
        gateway.map_or_else(String::new, |one| one.log(&[scenario.name, &upstream]))
    };
    thread::scope(|scope| {
        let mut running = Vec::new();
        for scenario in scenarios {
            for kind in kinds.iter().filter(|kind| scenario.plays(**kind)) {
                let lab = &lab;
                running.push((
                    scenario,
                    *kind,
                    scope.spawn(move || lab.play(scenario, *kind)),
                ));
            }
        }
        for (scenario, kind, play) in running {
            match play.join().unwrap() {
                Ok(seen) if scenario.accepts(kind, seen) => {}
                Ok(seen) => wrong.push(format!(
                    "{} through {kind}: saw {seen}, not {}\n{}",
                    scenario.name,
                    scenario.seen(kind),
                    said(scenario, kind)
                )),
                Err(error) => wrong.push(format!("{error:#}\n{}", said(scenario, kind))),
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
