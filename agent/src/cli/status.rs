//! `hopscope status`: what an agent watches, how its upstreams do, and what it could not see.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use serde::Serialize;

use super::access::ClientFlags;
use super::client::{AGENT, Agent};
use super::output::{Format, Out};
use super::render::printable;
use super::{CliError, clock, config, runtime};
use crate::model::Timestamp;
use crate::serve::timestamp_from_proto;

/// Flags of `hopscope status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Agent to ask [default: 127.0.0.1:7502].
    #[arg(long, value_name = "HOST:PORT")]
    agent: Option<String>,

    /// Probes that work and counters that are zero as well.
    #[arg(long)]
    all: bool,

    /// Text for people or JSON lines for programs [default: text].
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    client: ClientFlags,
}

pub(super) fn run(args: Args, mut file: config::Client) -> Result<(), CliError> {
    let client = args.client.or(file.client());
    let agent = args.agent.or(file.agent);
    let agent = Agent::new(client.endpoint(agent.as_deref().unwrap_or(AGENT))?);
    let format = args.format.or(file.format).unwrap_or_default();
    let response = runtime::client()?.block_on(ask(&agent))?;
    let mut out = Out::stdout();
    match format {
        Format::Text => out.line(text(&response, args.all, clock::now()).trim_end())?,
        Format::Jsonl => {
            for line in lines(&response) {
                out.json(&line)?;
            }
        }
    }
    Ok(out.flush()?)
}

async fn ask(agent: &Agent) -> Result<proto::StatusResponse, CliError> {
    let mut client = HopAgentClient::new(agent.connect().await?);
    let response = client.status(proto::StatusRequest {}).await;
    Ok(response
        .map_err(|status| agent.refused(&status))?
        .into_inner())
}

/// One line of `--format jsonl`.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Agent {
        version: &'a str,
        node: &'a str,
        kernel: &'a str,
        started: Option<Timestamp>,
    },
    Upstream {
        address: &'a str,
        port: u32,
        connects: u64,
        exchanges: u64,
        failures: u64,
        /// Exchanges by class of their status, from 1xx to 5xx.
        statuses: &'a [u64],
        request_bytes: u64,
        response_bytes: u64,
        /// Microseconds that the first response byte took less than, for half and for 99 of 100
        /// exchanges; absent where there were none, or where it took longer than is told apart.
        first_byte_us_p50: Option<u64>,
        first_byte_us_p99: Option<u64>,
    },
    Probe {
        name: &'a str,
        attached: bool,
        reason: &'a str,
    },
    Counter {
        name: &'a str,
        value: u64,
    },
}

fn lines(status: &proto::StatusResponse) -> impl Iterator<Item = Line<'_>> {
    let agent = Line::Agent {
        version: &status.version,
        node: &status.node,
        kernel: &status.kernel,
        started: started(status),
    };
    let upstreams = status.upstreams.iter().map(|upstream| Line::Upstream {
        address: &upstream.address,
        port: upstream.port,
        connects: upstream.connects,
        exchanges: upstream.exchanges,
        failures: upstream.failures,
        statuses: &upstream.statuses,
        request_bytes: upstream.request_bytes,
        response_bytes: upstream.response_bytes,
        first_byte_us_p50: percentile(&upstream.first_byte, 50),
        first_byte_us_p99: percentile(&upstream.first_byte, 99),
    });
    let probes = status.probes.iter().map(|probe| Line::Probe {
        name: &probe.name,
        attached: probe.attached,
        reason: &probe.reason,
    });
    let counters = status.counters.iter().map(|counter| Line::Counter {
        name: &counter.name,
        value: counter.value,
    });
    std::iter::once(agent)
        .chain(upstreams)
        .chain(probes)
        .chain(counters)
}

/// When the agent started, where it says so and the time is one.
fn started(status: &proto::StatusResponse) -> Option<Timestamp> {
    timestamp_from_proto(status.started?, "started").ok()
}

/// The microseconds that `percent` of all first bytes took less than, by a histogram whose place n counts
/// those of less than 2^(n + 1) microseconds. `None` where there are none, and where the last place has
/// no such bound.
fn percentile(histogram: &[u64], percent: u64) -> Option<u64> {
    let total: u128 = histogram.iter().map(|n| u128::from(*n)).sum();
    if total == 0 {
        return None;
    }
    let wanted = total * u128::from(percent);
    let mut seen = 0_u128;
    let place = histogram.iter().position(|n| {
        seen += u128::from(*n) * 100;
        seen >= wanted
    })?;
    if place + 1 == histogram.len() {
        return None;
    }
    1_u64.checked_shl(u32::try_from(place).ok()? + 1)
}

fn text(status: &proto::StatusResponse, all: bool, now: Timestamp) -> String {
    let mut text = format!(
        "hopscope {} on {}, kernel {}",
        printable(&status.version),
        printable(&status.node),
        printable(&status.kernel)
    );
    if let Some(started) = started(status) {
        let up = Duration::from_secs(now.since(started).as_secs());
        let _ = write!(text, ", up {}", humantime::format_duration(up));
    }
    text.push('\n');
    answers(&mut text, status);
    upstreams(&mut text, &status.upstreams);
    probes(&mut text, &status.probes, all);
    counters(&mut text, &status.counters, all);
    text
}

/// What clients got from their gateways.
fn answers(text: &mut String, status: &proto::StatusResponse) {
    let counter = |name: &str| {
        let name = format!("engine_answers_{name}");
        let found = status.counters.iter().find(|counter| counter.name == name);
        found.map_or(0, |counter| counter.value)
    };
    let by_status = ["500", "502", "503", "504", "other"].map(|name| (name, counter(name)));
    let made: u64 = by_status.iter().map(|(_, count)| count).sum();
    let shares: Vec<_> = by_status
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name}: {count}"))
        .collect();
    let _ = write!(text, "5xx made by gateways: {made}");
    if made > 0 {
        let _ = write!(
            text,
            " ({}); explained {}, ambiguous {}, unexplained {}",
            shares.join(", "),
            counter("explained"),
            counter("ambiguous"),
            counter("unexplained")
        );
    }
    let _ = writeln!(text, "; passed on: {}", counter("passed_on"));
}

fn upstreams(text: &mut String, upstreams: &[proto::UpstreamTraffic]) {
    if upstreams.is_empty() {
        text.push_str("\nno upstream was seen yet\n");
        return;
    }
    let mut table = plain();
    table.set_header([
        "upstream",
        "connects",
        "exchanges",
        "failures",
        "2xx",
        "3xx",
        "4xx",
        "5xx",
        "first byte, half",
        "99 %",
    ]);
    for upstream in upstreams {
        let class = |place: usize| upstream.statuses.get(place).copied().unwrap_or(0);
        let within = |percent| match percentile(&upstream.first_byte, percent) {
            Some(us) => format!(
                "< {}",
                humantime::format_duration(Duration::from_micros(us))
            ),
            None => "-".to_owned(),
        };
        table.add_row([
            target(&upstream.address, upstream.port),
            upstream.connects.to_string(),
            upstream.exchanges.to_string(),
            upstream.failures.to_string(),
            class(1).to_string(),
            class(2).to_string(),
            class(3).to_string(),
            class(4).to_string(),
            within(50),
            within(99),
        ]);
    }
    let _ = writeln!(text, "\n{}", table.trim_fmt());
}

fn target(address: &str, port: u32) -> String {
    match address.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{}:{port}", printable(address)),
    }
}

fn probes(text: &mut String, probes: &[proto::Probe], all: bool) {
    let attached = probes.iter().filter(|probe| probe.attached).count();
    let _ = writeln!(text, "\nprobes: {attached} of {} work", probes.len());
    let mut table = plain();
    // Of those that work, those are told that say where.
    for probe in probes
        .iter()
        .filter(|probe| all || !probe.attached || !probe.reason.is_empty())
    {
        let works = if probe.attached { "yes" } else { "no" };
        table.add_row([&printable(&probe.name), works, &printable(&probe.reason)]);
    }
    if table.row_count() > 0 {
        let _ = writeln!(text, "{}", table.trim_fmt());
    }
}

fn counters(text: &mut String, counters: &[proto::Counter], all: bool) {
    let shown = counters.iter().filter(|counter| all || counter.value > 0);
    let mut table = plain();
    for counter in shown {
        table.add_row([
            printable(&counter.name).into_owned(),
            counter.value.to_string(),
        ]);
    }
    if table.row_count() > 0 {
        let _ = writeln!(text, "\ncounters\n{}", table.trim_fmt());
    }
}

fn plain() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str, value: u64) -> proto::Counter {
        proto::Counter {
            name: name.to_owned(),
            value,
        }
    }

    fn status() -> proto::StatusResponse {
        proto::StatusResponse {
            version: "1.2.3".to_owned(),
            node: "edge\x1b[2J".to_owned(),
            kernel: "6.12".to_owned(),
            started: Some(prost_types::Timestamp {
                seconds: 1_000,
                nanos: 0,
            }),
            probes: vec![
                proto::Probe {
                    name: "state".to_owned(),
                    attached: true,
                    reason: String::new(),
                },
                proto::Probe {
                    name: "seed".to_owned(),
                    attached: false,
                    reason: "no sock_diag".to_owned(),
                },
            ],
            counters: vec![
                counter("engine_answers_502", 3),
                counter("engine_answers_504", 1),
                counter("engine_answers_explained", 3),
                counter("engine_answers_ambiguous", 1),
                counter("engine_answers_passed_on", 7),
                counter("kernel_ring_full", 0),
            ],
            upstreams: vec![proto::UpstreamTraffic {
                address: "2001:db8::1".to_owned(),
                port: 8080,
                connects: 2,
                exchanges: 10,
                failures: 1,
                statuses: vec![0, 9, 0, 0, 0],
                first_byte: vec![0, 9, 1, 0],
                ..proto::UpstreamTraffic::default()
            }],
        }
    }

    #[test]
    fn the_text_says_what_clients_got_and_what_is_missing() {
        let now = Timestamp::from_nanos(1_090 * 1_000_000_000);
        let text = text(&status(), false, now);
        assert!(text.contains("up 1m 30s"), "{text}");
        assert!(
            text.contains("5xx made by gateways: 4 (502: 3, 504: 1); explained 3, ambiguous 1, unexplained 0; passed on: 7"),
            "{text}"
        );
        assert!(text.contains("[2001:db8::1]:8080"), "{text}");
        assert!(text.contains("< 4us") && text.contains("< 8us"), "{text}");
        assert!(text.contains("1 of 2 work") && text.contains("no sock_diag"));
        assert!(!text.contains("state") && !text.contains("kernel_ring_full"));
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[test]
    fn all_shows_what_works_and_what_is_zero() {
        let text = text(&status(), true, Timestamp::from_nanos(0));
        assert!(text.contains("state") && text.contains("kernel_ring_full"));
    }

    #[test]
    fn a_line_says_what_it_is() {
        let status = status();
        let lines: Vec<_> = lines(&status)
            .map(|line| serde_json::to_value(&line).unwrap())
            .collect();
        assert_eq!(lines.len(), 1 + 1 + 2 + 6);
        assert_eq!(lines[0]["kind"], "agent");
        assert_eq!(lines[1]["kind"], "upstream");
        assert_eq!(lines[1]["first_byte_us_p50"], 4);
        assert_eq!(lines[3]["reason"], "no sock_diag");
        assert_eq!(lines[4]["value"], 3);
    }

    #[test]
    fn a_percentile_is_the_bound_of_the_place_that_it_falls_into() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[0, 0], 50), None);
        assert_eq!(percentile(&[1, 0, 0], 99), Some(2));
        assert_eq!(percentile(&[50, 50, 0], 50), Some(2));
        assert_eq!(percentile(&[49, 51, 0], 50), Some(4));
        assert_eq!(percentile(&[0, 0, 1], 50), None);
        assert_eq!(percentile(&[u64::MAX, u64::MAX, 0], 99), Some(4));
    }
}
