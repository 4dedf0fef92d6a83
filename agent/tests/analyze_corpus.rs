//! Third-party captures: every one is read, and its TCP connections are counted as tshark counts
//! them. The captures are not part of the repository; where they are not there, the tests say so.

#![cfg(feature = "std-edges")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(clippy::print_stderr, reason = "says why a test had nothing to do")]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use hopscope::engine::{Config, Engine};
use hopscope::limits::Limits;
use hopscope::source::{self, Options, SourceError, Summary};

/// The corpus, beside the workspace or where the environment says.
fn corpus() -> Option<PathBuf> {
    let path = std::env::var_os("HOPSCOPE_CORPUS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"),
        PathBuf::from,
    );
    if path.join("truth").is_dir() {
        return Some(path);
    }
    eprintln!("not run: no captures at {}", path.display());
    None
}

struct Truth {
    capture: PathBuf,
    name: String,
    packets: u64,
    tcp: Vec<serde_json::Value>,
}

fn truths(corpus: &Path) -> Vec<Truth> {
    let mut rows: Vec<_> = std::fs::read_dir(corpus.join("truth"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    rows.sort();
    rows.into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let mut rows = text
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            let file = rows.next().unwrap();
            let name = file["file"].as_str().unwrap().to_owned();
            Truth {
                capture: corpus.join("pcaps").join(&name),
                packets: file["packets"].as_u64().unwrap(),
                tcp: rows.filter(|row| row["kind"] == "tcp").collect(),
                name,
            }
        })
        .collect()
}

fn read(path: &Path) -> Result<Summary, SourceError> {
    let mut engine = Engine::new(Config::default(), Limits::default());
    let file = File::open(path).unwrap();
    source::analyze(file, &Options::default(), &mut engine, &mut |_| {})
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
fn packets_and_connections_agree() {
    let Some(corpus) = corpus() else { return };
    let mut disagreements = Vec::new();
    let mut captures = 0;
    for truth in truths(&corpus) {
        captures += 1;
        let summary = match read(&truth.capture) {
            Ok(summary) => summary,
            Err(error) => {
                disagreements.push(format!("{}: {error}", truth.name));
                continue;
            }
        };
        if summary.packets != truth.packets {
            let (ours, theirs) = (summary.packets, truth.packets);
            disagreements.push(format!("{}: {ours} packets, not {theirs}", truth.name));
        }
        if NO_SEGMENT.contains(&truth.name.as_str()) {
            assert!(summary.fragments + summary.undecodable.len() as u64 > 0);
            continue;
        }
        // A connection that turned out the other way round is two hops.
        let ours = summary.hops.hops - summary.hops.corrected;
        let theirs = truth.tcp.len() as u64;
        if ours != theirs {
            disagreements.push(format!("{}: {ours} connections, not {theirs}", truth.name));
        }
    }
    assert!(captures > 0, "the corpus is empty");
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}

#[test]
fn the_client_is_the_gateway() {
    let Some(corpus) = corpus() else { return };
    let mut disagreements = Vec::new();
    for truth in truths(&corpus) {
        let Ok(summary) = read(&truth.capture) else {
            continue;
        };
        let upstreams: BTreeSet<_> = summary
            .upstreams
            .iter()
            // The truth rows have no brackets around IPv6 addresses.
            .map(|tally| format!("{}:{}", tally.upstream.ip(), tally.upstream.port()))
            .collect();
        if NO_SEGMENT.contains(&truth.name.as_str()) {
            continue;
        }
        for row in &truth.tcp {
            let server = row["server"].as_str().unwrap();
            if !upstreams.contains(server) {
                disagreements.push(format!("{}: {server} is no upstream", truth.name));
            }
        }
    }
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}
