//! The promise for hops with TLS where the agent reads what is inside: every failure of HTTP is named as on a
//! bare connection, and healthy traffic gives no event.

use hopscope_tests::gateway::Kind;
use hopscope_tests::scenario::Scenario;
use hopscope_tests::status::counters;
use hopscope_tests::tls::Versions;
use hopscope_tests::tls::scenario::{healthy, inside};
use hopscope_tests::watch::Watch;

use crate::{faults, live::status};

/// Scenarios that are played at once.
const AT_ONCE: usize = 12;

#[test]
fn failures_inside_tls_are_named_as_on_a_bare_connection() {
    for versions in [Versions::Only12, Versions::Only13] {
        judge(&Kind::ALL, &inside(versions));
    }
}

#[test]
fn healthy_traffic_inside_tls_gives_no_event() {
    judge(&Kind::TLS, &healthy());
}

/// Plays `scenarios` through every gateway before an agent that reads what is inside TLS.
fn judge(kinds: &[Kind], scenarios: &[Scenario]) {
    let watch = Watch::start_with(kinds, scenarios, &["--tls-plaintext"]).unwrap();
    let mut wrong: Vec<String> = Vec::new();
    for some in scenarios.chunks(AT_ONCE) {
        let played = watch.play(some).unwrap();
        wrong.extend(played.iter().flat_map(|one| faults(one, &watch)));
    }
    let counters = counters(watch.agent()).unwrap();
    let count = |wanted: &str| {
        let found = counters.iter().find(|(name, _)| name == wanted);
        found.map_or(0, |(_, count)| *count)
    };
    assert!(wrong.is_empty(), "{}\n{counters:?}", wrong.join("\n"));
    assert_eq!(status::losses(watch.agent()).unwrap(), []);
    assert_eq!(count("engine_tls_sources_disagree"), 0);
    assert!(count("engine_plaintexts") > 0);
}
