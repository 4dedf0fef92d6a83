//! Every measured response through the engine, behind every measured gateway: exactly the gateways
//! that fail give an event, with the right cause, in any segmentation; and the profiles say what was
//! measured.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(clippy::panic, reason = "helpers of tests may panic as tests do")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "tests handle small numbers"
)]
#![expect(clippy::cast_sign_loss, reason = "tests handle positive numbers")]

mod fixture;
mod hop;

use std::path::Path;

use fixture::{Case, Then, cases, outcome, products};
use hop::{Gateway, exchange};
use hopscope::http1::{
    FindingKind, GATEWAYS, Outcome, RequestKind, ResponseEvent, ResponseParser, outcomes,
};
use hopscope::model::{Cause, HopEvent, Proof};
use proptest::prelude::*;

/// Whether the response is cut short: then it fails behind every gateway.
fn cut_short(case: &Case) -> bool {
    case.cause.is_some_and(|cause| {
        matches!(
            cause,
            Cause::Http1HeadTruncated
                | Cause::Http1BodyTruncated
                | Cause::Http1LastChunkMissing
                | Cause::Http1EofBodyReset
                | Cause::UpstreamStalledInHead
                | Cause::UpstreamStalledInBody
                | Cause::UpstreamSlowFirstByte
                | Cause::TcpClosedNoResponse
                | Cause::TcpResetNoResponse
        )
    })
}

/// The versions of a product that failed, and how it ends the hop then.
fn fails(case: &Case, versions: &[usize]) -> (bool, Gateway) {
    let rejected = versions
        .iter()
        .any(|&version| !outcome(&case.outcomes[version]).tolerates());
    let stalls = matches!(case.then, Then::Hold(millis) if millis > 2000);
    let gateway = if rejected && !stalls {
        Gateway::Rejects
    } else {
        Gateway::Takes
    };
    (rejected || cut_short(case), gateway)
}

fn causes(events: &[HopEvent]) -> Vec<&'static str> {
    events.iter().map(|event| event.cause.id()).collect()
}

/// The product and the cause of a case behind it, where they are not the case's own: a response that
/// breaks several rules fails for the first one that a gateway minds.
const OTHERWISE: &[(&str, &str, Cause)] =
    &[("100_cl_then_200", "envoy", Cause::Http1BodyOnBodyless)];

#[test]
fn each_gateway_that_fails_gives_one_event_with_the_cause() {
    let cases = cases();
    assert_eq!(cases.len(), 151);
    let mut wrong = Vec::new();
    for case in cases {
        for product in products() {
            let (fails, gateway) = fails(case, &product.versions);
            let otherwise = OTHERWISE
                .iter()
                .find(|(name, comm, _)| (*name, *comm) == (case.name.as_str(), product.comm));
            let cause = otherwise.map_or(case.cause, |(.., cause)| Some(*cause));
            let want: Vec<_> = cause.filter(|_| fails).map(Cause::id).into_iter().collect();
            let events = exchange(Some(product.comm), &case.bytes, &[], case.then, gateway);
            if causes(&events) != want {
                let have = causes(&events);
                wrong.push(format!(
                    "{} behind {}: {have:?}, not {want:?}",
                    case.name, product.comm
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn behind_an_unknown_gateway_what_most_reject_is_a_cause() {
    let mut wrong = Vec::new();
    for case in cases() {
        let rejected = case
            .outcomes
            .iter()
            .filter(|text| !outcome(text).tolerates())
            .count();
        let fails = cut_short(case) || rejected * 2 > GATEWAYS.len();
        let gateway = if fails && case.then != Then::Hold(6000) {
            Gateway::Rejects
        } else {
            Gateway::Takes
        };
        let want: Vec<_> = case
            .cause
            .filter(|_| fails)
            .map(Cause::id)
            .into_iter()
            .collect();
        let events = exchange(None, &case.bytes, &[], case.then, gateway);
        if causes(&events) != want {
            wrong.push(format!(
                "{}: {:?}, not {want:?}",
                case.name,
                causes(&events)
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the profiles say that each gateway makes of a response.
fn predicted(bytes: &[u8]) -> Option<([Outcome; 8], Vec<FindingKind>)> {
    let mut parser = ResponseParser::new(65_536);
    let mut rest = bytes;
    loop {
        let (taken, event) = parser.take(rest, RequestKind::Plain);
        rest = &rest[taken..];
        if event == Some(ResponseEvent::End) || (event.is_none() && rest.is_empty()) {
            break;
        }
    }
    let findings = parser.findings();
    let kinds: Vec<_> = findings.iter().map(|found| found.kind).collect();
    (!findings.is_empty()).then(|| (outcomes(&findings), kinds))
}

#[test]
fn profiles_say_what_the_fixtures_say() {
    let mut wrong = Vec::new();
    for case in cases().iter().filter(|case| !cut_short(case)) {
        let (profile, kinds) =
            predicted(&case.bytes).unwrap_or(([Outcome::Tolerates; 8], Vec::new()));
        for ((gateway, text), profile) in GATEWAYS.iter().zip(&case.outcomes).zip(profile) {
            if outcome(text) != profile {
                let name = gateway.name;
                wrong.push(format!(
                    "{} {kinds:?} {name}: {profile:?}, not {text}",
                    case.name
                ));
            }
        }
        // A response with one broken rule fails behind a product where some version of it does.
        if let [kind] = kinds[..] {
            for product in products() {
                let (fails, _) = fails(case, &product.versions);
                assert_eq!(
                    kind.fails_behind(Some(product.comm)),
                    fails,
                    "{}",
                    case.name
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn an_event_lists_who_rejects_and_who_tolerates() {
    let cases = cases();
    let case = cases.iter().find(|case| case.name == "crcrlf").unwrap();
    let events = exchange(
        Some("haproxy"),
        &case.bytes,
        &[],
        case.then,
        Gateway::Rejects,
    );
    let [event] = &events[..] else {
        panic!("{events:#?}")
    };
    assert_eq!(event.proof, Proof::Proven);
    assert_eq!(
        event.rejected_by,
        [
            "HAProxy 2.6 (502)",
            "HAProxy 3.5 (502)",
            "Varnish 7.1 (503)",
            "Caddy 2.11 (502)"
        ]
    );
    assert_eq!(
        event.tolerated_by,
        ["nginx 1.22", "nginx 1.31", "Apache 2.4", "Envoy 1.40"]
    );
}

/// The table that the fixtures were made from lies beside the workspace, if anywhere.
#[test]
fn fixtures_are_the_measured_table() {
    let path = std::env::var_os("HOPSCOPE_HTTP1_MATRIX").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/http1-matrix.jsonl"),
        Into::into,
    );
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("not run: no table at {}", path.display());
        return;
    };
    let cases = cases();
    let rows: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), cases.len());
    for (row, case) in rows.iter().zip(cases) {
        assert_eq!(row["case"], case.name.as_str());
        let encoded = row["response_b64"].as_str().unwrap();
        assert!(decode(encoded) == case.bytes, "{}", case.name);
        assert_eq!(fixture::then(row["then"].as_str().unwrap()), case.then);
        let gateways = row["gateways"].as_object().unwrap();
        assert_eq!(gateways.len(), GATEWAYS.len());
        for (gateway, outcome) in GATEWAYS.iter().zip(&case.outcomes) {
            let name = gateway.name.to_ascii_lowercase();
            let (_, measured) = gateways
                .iter()
                .find(|(measured, _)| measured.starts_with(&name))
                .unwrap();
            assert_eq!(measured, outcome.as_str(), "{} {name}", case.name);
        }
    }
}

fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => break,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// However a response is cut into segments, the events are the same to the last byte.
    #[test]
    fn split_invariance(
        index in 0_usize..151,
        product in 0_usize..6,
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let case = &cases()[index];
        // Huge heads are cut by size alone in the test above, and would take most of the time here.
        prop_assume!(case.bytes.len() < 100_000);
        let product = &products()[product];
        let (_, gateway) = fails(case, &product.versions);
        let whole = exchange(Some(product.comm), &case.bytes, &[], case.then, gateway);
        let split = exchange(Some(product.comm), &case.bytes, &cuts, case.then, gateway);
        prop_assert_eq!(&whole, &split, "{} behind {}", case.name, product.comm);
    }

    /// One byte a segment is a split too.
    #[test]
    fn byte_by_byte(index in 0_usize..151) {
        let case = &cases()[index];
        prop_assume!(case.bytes.len() < 3000);
        let cuts: Vec<usize> = (0..case.bytes.len()).collect();
        for product in products() {
            let (_, gateway) = fails(case, &product.versions);
            let whole = exchange(Some(product.comm), &case.bytes, &[], case.then, gateway);
            let split = exchange(Some(product.comm), &case.bytes, &cuts, case.then, gateway);
            prop_assert_eq!(&whole, &split, "{} behind {}", case.name, product.comm);
        }
    }
}
