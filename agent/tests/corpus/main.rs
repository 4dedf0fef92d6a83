//! Third-party captures against what tshark says of them: every capture is read, its packets and
//! connections are counted alike, and each fact of a connection has its event or a rule by which it
//! has none. The captures are no part of the repository; where they are missing, the tests say so.

#![cfg(feature = "std-edges")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(
    clippy::print_stdout,
    reason = "says why a test had nothing to do, and how often what was found"
)]

mod facts;
mod listed;
mod tls;
mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hopscope::engine::{Config, Engine};
use hopscope::limits::Limits;
use hopscope::model::HopEvent;
use hopscope::source::{self, Options, Summary};
use hopscope::stats::Stats;

use facts::{Case, RULES, agree, is_failed_handshake};
use listed::LISTED;
use truth::{Capture, Fact, Stream, captures};

/// The corpus, beside the workspace or where the environment says.
fn corpus() -> Option<PathBuf> {
    let path = std::env::var_os("HOPSCOPE_CORPUS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"),
        PathBuf::from,
    );
    if path.join("truth").is_dir() {
        return Some(path);
    }
    println!("skipped: no captures at {}", path.display());
    None
}

struct Told {
    summary: Summary,
    events: Vec<HopEvent>,
    stats: Stats,
}

fn analyze(capture: &Capture) -> Told {
    let mut engine = Engine::new(Config::default(), Limits::default());
    let mut events = Vec::new();
    let file = File::open(&capture.path).unwrap();
    let summary = source::analyze(file, &Options::default(), &mut engine, &mut |event| {
        events.push(event);
    });
    Told {
        summary: summary.unwrap_or_else(|error| panic!("{}: {error}", capture.name)),
        events,
        stats: engine.stats(),
    }
}

/// TCP in IP fragments, which hopscope counts and does not put together, and packets whose IP
/// header contradicts its TCP header. tshark counts a connection all the same.
const NO_SEGMENT: [&str; 5] = [
    "suricata-verify/tests/defrag/bug-6887-defrag-eth-vlan-ipv6-tcp/frag-eth-vlan-ipv6-tcp.pcap",
    "suricata-verify/tests/defrag/bug-6887-defrag-ppp-ipv6-tcp/frag-ppp-ipv6-tcp.pcap",
    "suricata-verify/tests/drop-protocol-change/input.pcap",
    "tcpdump/tests/bgp-bgp_capabilities_print-oobr-1.pcap",
    "tcpdump/tests/rpki-rtr-oobr.pcap",
];

#[test]
fn packets_connections_and_their_sides_agree() {
    let Some(corpus) = corpus() else { return };
    let mut wrong = Vec::new();
    for capture in captures(&corpus) {
        let Told { summary, .. } = analyze(&capture);
        let Capture { name, packets, .. } = &capture;
        if summary.packets != *packets {
            wrong.push(format!(
                "{name}: {} packets, not {packets}",
                summary.packets
            ));
        }
        if NO_SEGMENT.contains(&name.as_str()) {
            assert!(summary.fragments + summary.undecodable.len() as u64 > 0);
            continue;
        }
        // A connection that turned out the other way round is two hops.
        let ours = summary.hops.hops - summary.hops.corrected;
        let theirs = capture.streams.len() as u64;
        if ours != theirs {
            wrong.push(format!("{name}: {ours} connections, not {theirs}"));
        }
        let upstreams: BTreeSet<_> = summary
            .upstreams
            .iter()
            .map(|tally| tally.upstream)
            .collect();
        for Stream { server, .. } in &capture.streams {
            if !upstreams.contains(server) {
                wrong.push(format!("{name}: {server} is no upstream"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The events of each connection, by its number. Ports are used again: the connection that began
/// last counts.
fn by_stream<'e>(capture: &Capture, events: &'e [HopEvent]) -> BTreeMap<u64, Vec<&'e HopEvent>> {
    let mut streams: BTreeMap<u64, Vec<&HopEvent>> = BTreeMap::new();
    for event in events {
        // A name without an address has no connection.
        if event.upstream.is_only_name() {
            continue;
        }
        let local = event.local.unwrap();
        let ends = (
            SocketAddr::new(local.address, local.port),
            event.upstream.socket_addr().unwrap(),
        );
        let began = |stream: &&Stream| {
            (stream.client, stream.server) == ends
                && event.time.after(std::time::Duration::from_millis(1)) >= stream.first
        };
        let stream = capture
            .streams
            .iter()
            .filter(began)
            .max_by_key(|stream| stream.first);
        let stream = stream.unwrap_or_else(|| panic!("{}: {event:?}", capture.name));
        streams.entry(stream.number).or_default().push(event);
    }
    streams
}

/// What became of the facts and events.
#[derive(Default)]
struct Outcome {
    /// How often a fact of each kind was agreed with, ruled out or listed.
    counts: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// Rows of the list that were needed.
    listed: BTreeSet<usize>,
    wrong: Vec<String>,
}

impl Outcome {
    fn count(&mut self, kind: String, why: &'static str) {
        *self.counts.entry(kind).or_default().entry(why).or_default() += 1;
    }

    fn disagree(&mut self, capture: &Capture, stream: &Stream, what: &str, told: &str) {
        let row = LISTED.iter().position(|(name, number, listed, _)| {
            capture.name.ends_with(name) && *number == stream.number && what.starts_with(listed)
        });
        if let Some(row) = row {
            self.listed.insert(row);
            self.count(what.to_owned(), "listed");
        } else {
            let (name, number) = (&capture.name, stream.number);
            self.wrong.push(format!("{name} {number}: {what}, {told}"));
        }
    }

    fn stream(&mut self, capture: &Capture, stream: &Stream, events: &[&HopEvent], stats: &Stats) {
        for fact in stream.facts.iter().filter(|fact| ours(fact)) {
            if events.iter().any(|event| agree(fact, event)) {
                self.count(fact.kind(), "agreed");
                continue;
            }
            let case = Case {
                stream,
                fact,
                told: !events.is_empty(),
                stats,
            };
            match RULES.iter().find(|(_, holds)| holds(&case)) {
                Some((why, _)) => self.count(fact.kind(), why),
                None => self.disagree(capture, stream, &fact.kind(), "and no event"),
            }
        }
        for event in events {
            if !stream.facts.iter().any(|fact| agree(fact, event)) {
                self.disagree(capture, stream, event.cause.id(), "and no fact");
            }
        }
        if events.len() > stream.requests.max(1) {
            let requests = format!("for {} requests", stream.requests);
            self.disagree(capture, stream, "too many events", &requests);
        }
    }
}

/// Whether a fact is about a layer that hopscope looks at.
fn ours(fact: &Fact) -> bool {
    let other = ["tls_", "cert_", "h2_"]
        .iter()
        .any(|prefix| fact.name.starts_with(prefix));
    !other || is_failed_handshake(fact)
}

#[test]
fn every_fact_has_its_event_or_its_rule() {
    let Some(corpus) = corpus() else { return };
    let mut outcome = Outcome::default();
    for capture in captures(&corpus) {
        if NO_SEGMENT.contains(&capture.name.as_str()) {
            continue;
        }
        let told = analyze(&capture);
        let events = by_stream(&capture, &told.events);
        for stream in &capture.streams {
            let events = events.get(&stream.number).map_or(&[][..], Vec::as_slice);
            outcome.stream(&capture, stream, events, &told.stats);
        }
    }
    for (kind, counts) in &outcome.counts {
        for (why, count) in counts {
            println!("{count:5} {kind}: {why}");
        }
    }
    for (row, (capture, number, what, _)) in LISTED.iter().enumerate() {
        if !outcome.listed.contains(&row) {
            outcome
                .wrong
                .push(format!("{capture} {number}: {what} is listed for nothing"));
        }
    }
    let used: BTreeSet<_> = outcome.counts.values().flat_map(BTreeMap::keys).collect();
    for (why, _) in RULES.iter().filter(|(why, _)| !used.contains(why)) {
        outcome.wrong.push(format!("no fact needs the rule: {why}"));
    }
    let wrong = outcome.wrong.join("\n");
    assert!(wrong.is_empty(), "{wrong}");
}
