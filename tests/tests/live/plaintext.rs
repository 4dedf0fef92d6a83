//! The promise for hops with TLS where the agent reads what is inside: every failure of HTTP is named as on a
//! bare connection, and healthy traffic gives no event.

use std::fs;

use anyhow::Result;
use hopscope_tests::gateway::Kind;
use hopscope_tests::scenario::Scenario;
use hopscope_tests::status::counters;
use hopscope_tests::tls::Versions;
use hopscope_tests::tls::scenario::{SECRET, compared, healthy, inside};
use hopscope_tests::watch::Watch;

use crate::{faults, live::status};

/// Scenarios that are played at once.
const AT_ONCE: usize = 12;

#[test]
fn failures_inside_tls_are_named_as_on_a_bare_connection() {
    for versions in [Versions::Only12, Versions::Only13] {
        let inside = inside(versions);
        let watch = status::rounds(|| judge(&Kind::ALL, &inside)).unwrap();
        assert_nothing_leaks(&watch).unwrap();
    }
}

#[test]
fn healthy_traffic_inside_tls_gives_no_event() {
    let healthy = healthy();
    status::rounds(|| judge(&Kind::TLS, &healthy)).unwrap();
}

#[test]
fn a_failing_and_a_healthy_response_inside_tls_are_compared() {
    for versions in [Versions::Only12, Versions::Only13] {
        let kinds = [Kind::Nginx, Kind::Haproxy];
        let scenarios = [compared(versions)];
        let arguments = ["--tls-plaintext", "--sample", "1"];
        let (watch, played) = status::play_with(&kinds, &scenarios, &arguments).unwrap();
        for one in &played {
            assert_eq!(faults(one, &watch), [""; 0]);
            let upstream = one.upstream.to_string();
            let page = watch.agent().ask_captures(&["diff", &upstream]).unwrap();
            let page = String::from_utf8(page).unwrap();
            let lines: Vec<&str> = page.lines().map(str::trim).collect();
            let holds = |words: &[&str]| {
                let line = lines
                    .iter()
                    .position(|line| words.iter().all(|word| line.contains(word)));
                line.unwrap_or_else(|| panic!("no {words:?} in\n{page}"))
            };
            // The values of secrets are masked on both sides; what is wrong is marked.
            holds(&["failing", "http1.header_syntax", "GET", "/compared"]);
            holds(&["healthy", "no failure", "GET", "/compared"]);
            holds(&["both", "HTTP/1.1 200 OK"]);
            let marked = holds(&["failing", "X-Cache : miss"]);
            assert!(lines[marked + 1].starts_with("^ space between"), "{page}");
            holds(&["failing", "Set-Cookie:***"]);
            holds(&["both", "1 more are the same"]);
            holds(&["healthy", "Content-Length: complete with 3 bytes"]);
            assert!(!page.contains(SECRET), "{page}");
        }
        assert_eq!(played.len(), kinds.len());
    }
}

/// Plays `scenarios` through every gateway before an agent that reads what is inside TLS. Nothing comes back where the
/// kernel left out runs.
fn judge(kinds: &[Kind], scenarios: &[Scenario]) -> Result<Option<Watch>> {
    let watch = Watch::start_with(kinds, scenarios, &["--tls-plaintext"])?;
    let mut wrong: Vec<String> = Vec::new();
    for some in scenarios.chunks(AT_ONCE) {
        let played = watch.play(some)?;
        wrong.extend(played.iter().flat_map(|one| faults(one, &watch)));
    }
    if status::runs_left_out(watch.agent())? {
        return Ok(None);
    }
    let counters = counters(watch.agent())?;
    let count = |wanted: &str| {
        let found = counters.iter().find(|(name, _)| name == wanted);
        found.map_or(0, |(_, count)| *count)
    };
    assert!(wrong.is_empty(), "{}\n{counters:?}", wrong.join("\n"));
    assert_eq!(status::losses(watch.agent())?, []);
    assert_eq!(count("engine_tls_sources_disagree"), 0);
    assert!(count("engine_plaintexts") > 0);
    Ok(Some(watch))
}

/// What the agent gives away of itself and of what it kept: nothing secret, and what was inside TLS.
fn assert_nothing_leaks(watch: &Watch) -> Result<()> {
    let agent = watch.agent();
    let pulled = agent.ask_captures(&["pull", "-o", "-"])?;
    let mut outputs = vec![pulled, agent.recent()?.into(), agent.log().into()];
    let kept = fs::read_dir(agent.captures())?;
    for file in kept {
        outputs.push(fs::read(file?.path())?);
    }
    let holds = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    assert!(outputs.iter().all(|bytes| !holds(bytes, SECRET)));
    assert!(holds(&outputs[0], "GET /leaky"));
    assert!(holds(
        &outputs[0],
        "inside TLS, as the gateway's TLS library gave it"
    ));
    Ok(())
}
