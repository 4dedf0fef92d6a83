//! Real gateways answer each scenario as the table says, without any agent: the lab itself is right.

use std::thread;

use hopscope_tests::gateway::Kind;
use hopscope_tests::lab::Lab;
use hopscope_tests::scenario::{failures, healthy, traps};

#[test]
fn clients_see_what_the_table_says() {
    let mut scenarios = failures();
    scenarios.extend(traps());
    scenarios.push(healthy(100));
    let lab = Lab::start(&Kind::ALL, &scenarios).unwrap();

    let mut wrong = Vec::new();
    thread::scope(|scope| {
        let mut running = Vec::new();
        for scenario in &scenarios {
            for kind in Kind::ALL {
                let lab = &lab;
                running.push((
                    scenario,
                    kind,
                    scope.spawn(move || lab.play(scenario, kind)),
                ));
            }
        }
        for (scenario, kind, play) in running {
            match play.join().unwrap() {
                Ok(seen) if seen == scenario.seen(kind) => {}
                Ok(seen) => wrong.push(format!(
                    "{} through {kind}: saw {seen}, not {}",
                    scenario.name,
                    scenario.seen(kind)
                )),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
