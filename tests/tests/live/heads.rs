//! Heads of responses about as large as each gateway takes, with the agent's default options: one that is too large
//! is named, and nothing is said of one that is taken.

use std::fs;

use hopscope_tests::agent::analyze;
use hopscope_tests::cleanup::Directory;
use hopscope_tests::gateway::Kind;
use hopscope_tests::heads::{scenarios, words};

use crate::{faults, live::status};

#[test]
fn a_head_that_is_too_large_for_its_gateway_is_named() {
    let scenarios = scenarios();
    let (watch, played) = status::play(&Kind::TLS, &scenarios).unwrap();
    let wrong: Vec<String> = played.iter().flat_map(|one| faults(one, &watch)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(status::losses(watch.agent()).unwrap(), []);

    // As often as the gateway says so itself.
    for gateway in watch.lab().gateways() {
        let kind = gateway.kind();
        let told = played.iter().filter(|one| one.kind == kind);
        let told = told.map(|one| one.events.len()).sum::<usize>();
        if !words(kind).is_empty() {
            assert_eq!(gateway.log(&[words(kind)]).lines().count(), told, "{kind}");
        }
    }

    // What was kept says the same where most gateways would: a file does not tell whose packets they are.
    let files = Directory::new().unwrap();
    let file = files.path().join("heads.pcapng");
    let pulled = watch
        .agent()
        .ask_captures(&["pull", "--cause", "http1.*", "-o", "-"]);
    fs::write(&file, pulled.unwrap()).unwrap();
    let recorded = analyze(&file).unwrap();
    for one in played
        .iter()
        .filter(|one| one.scenario.name.ends_with("above_haproxy"))
    {
        let causes = recorded
            .iter()
            .filter(|event| event.upstream == one.upstream);
        let causes: Vec<&str> = causes.map(|event| event.cause.as_str()).collect();
        let expected: Vec<&str> = one.verdict().iter().map(|verdict| verdict.cause).collect();
        // nginx closes when it has read a page: what the upstream had not sent by then is in no packet.
        let cut_off = one.kind == Kind::Nginx && causes.is_empty();
        assert!(
            causes == expected || cut_off,
            "{causes:?}, not {expected:?}: {} through {}",
            one.scenario.name,
            one.kind
        );
    }
}
