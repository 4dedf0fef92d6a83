//! The text output of `hopscope analyze`: what was read, a row an upstream, then the events.
//!
//! Decides layout and order. A person should see within a minute which upstream fails and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use indicatif::BinaryBytes;

use crate::cli::render;
use crate::engine::{Engine, UpstreamTally};
use crate::model::{Cause, HopEvent, Phase, Timestamp};
use crate::source::{Summary, UpstreamTally as HopTally};
use crate::stats::Stats;

/// Events kept to be shown; those beyond are counted.
const MAX_KEPT: usize = 10_000;
/// Upstreams shown one by one, the worst first.
const MAX_ROWS: usize = 30;
const COLUMNS: usize = 7;

/// How each upstream did, as the engine tells.
type Tallies = BTreeMap<SocketAddr, UpstreamTally>;

/// What the text output is made of.
#[derive(Default)]
pub(super) struct Report {
    events: Vec<HopEvent>,
    total: u64,
}

impl Report {
    /// Takes one event.
    pub(super) fn add(&mut self, event: HopEvent) {
        self.total += 1;
        if self.events.len() < MAX_KEPT {
            self.events.push(event);
        }
    }

    /// The whole output.
    pub(super) fn text(
        mut self,
        files: &[String],
        summary: &Summary,
        engine: &Engine,
        limit: usize,
        colour: bool,
    ) -> String {
        let mut text = String::new();
        let tallies = engine.upstreams();
        capture_lines(&mut text, files, summary, &engine.stats(), self.total);
        let rows = rows(summary, &tallies);
        table(&mut text, rows.get(..MAX_ROWS).unwrap_or(&rows));
        if rows.len() > MAX_ROWS {
            let _ = writeln!(
                text,
                "{} more",
                counted((rows.len() - MAX_ROWS) as u64, "upstream")
            );
        }
        if self.total == 0 {
            text.push_str(if summary.hops.hops == 0 && summary.dns == 0 {
                "\nnothing to judge: no TCP connection was read\n"
            } else {
                "\nno failure found\n"
            });
            return text;
        }
        self.sort(&tallies);
        let shown = self.events.len().min(limit);
        let order = if self.total > 1 {
            ", the worst first"
        } else {
            ""
        };
        let _ = writeln!(text, "\n{}{order}", counted(self.total, "failure"));
        for event in self.events.iter().take(shown) {
            text.push_str(&render::event_text(event, colour));
            text.push('\n');
        }
        let hidden = self.total - shown as u64;
        if hidden > 0 {
            let _ = writeln!(text, "{hidden} more: --format jsonl shows all of them");
        }
        text
    }

    /// Worst first: what happens most often to one upstream, then in order of time. What happens on
    /// an idle connection costs no client anything and comes last.
    fn sort(&mut self, tallies: &Tallies) {
        self.events.sort_by_cached_key(|event| {
            let count = event
                .upstream
                .socket_addr()
                .and_then(|upstream| tallies.get(&upstream))
                .and_then(|tally| tally.causes.get(&event.cause))
                .copied()
                .unwrap_or_default();
            let idle = event.phase == Phase::Idle;
            (idle, u64::MAX - count, event.time, event.id.clone())
        });
    }
}

/// One row an upstream, the one with most failures first.
fn rows(summary: &Summary, tallies: &Tallies) -> Vec<[String; COLUMNS]> {
    let hops: BTreeMap<SocketAddr, &HopTally> = summary
        .upstreams
        .iter()
        .map(|hops| (hops.upstream, hops))
        .collect();
    let none = UpstreamTally::default();
    let mut upstreams: Vec<_> = hops.keys().chain(tallies.keys()).copied().collect();
    upstreams.sort_unstable();
    upstreams.dedup();
    let mut rows: Vec<_> = upstreams
        .into_iter()
        .map(|upstream| (tallies.get(&upstream).unwrap_or(&none), upstream))
        .collect();
    rows.sort_by_key(|(tally, upstream)| (u64::MAX - tally.failures, *upstream));
    rows.into_iter()
        .map(|(tally, upstream)| {
            // The source has the times of the packets themselves.
            let (count, first, last) = hops
                .get(&upstream)
                .map_or((0, tally.first, tally.last), |hops| {
                    (hops.hops, hops.first, hops.last)
                });
            [
                upstream.to_string(),
                count.to_string(),
                tally.exchanges.to_string(),
                tally.failures.to_string(),
                short_time(first),
                short_time(last),
                causes_text(&tally.causes),
            ]
        })
        .collect()
}

fn causes_text(causes: &BTreeMap<Cause, u64>) -> String {
    let mut causes: Vec<_> = causes
        .iter()
        .map(|(cause, count)| (u64::MAX - count, cause.id(), count))
        .collect();
    causes.sort_unstable();
    let parts: Vec<_> = causes
        .into_iter()
        .map(|(_, id, count)| format!("{count} {id}"))
        .collect();
    parts.join(", ")
}

/// What was read, and what of it could not be used.
fn capture_lines(
    text: &mut String,
    files: &[String],
    summary: &Summary,
    stats: &Stats,
    failures: u64,
) {
    let name = match files {
        [file] => file.clone(),
        files => counted(files.len() as u64, "file"),
    };
    let packets = counted(summary.packets, "packet");
    let _ = write!(text, "{name}: {packets}, {}", size(summary.bytes));
    if let (Some(first), Some(last)) = (summary.first, summary.last) {
        let seconds = last.since(first).as_secs_f64();
        let _ = write!(
            text,
            ", {} to {} ({seconds:.1} s)",
            short_time(first),
            short_time(last)
        );
    }
    let links: Vec<_> = summary.links.iter().map(ToString::to_string).collect();
    if !links.is_empty() {
        let _ = write!(text, ", {}", links.join(" and "));
    }
    let _ = writeln!(
        text,
        "\n{}, {}, {}, {}",
        counted(summary.hops.hops, "hop"),
        counted(
            summary.upstreams.len() as u64 + summary.hops.untallied,
            "upstream"
        ),
        counted(stats.exchanges, "exchange"),
        counted(failures, "failure"),
    );
    let hops = &summary.hops;
    let mut unused: Vec<(u64, String)> = vec![
        (summary.fragments, "IP fragments".to_owned()),
        (summary.other, "IP packets other than TCP".to_owned()),
        (
            summary.skipped,
            "packet records that make no sense".to_owned(),
        ),
        (hops.filtered, "segments of other hops".to_owned()),
        (hops.evicted, "hops forgotten to bound memory".to_owned()),
    ];
    unused.extend(
        summary
            .undecodable
            .iter()
            .map(|(reason, count)| (*count, format!("packets: {reason}"))),
    );
    list(text, "not used", unused);
    let unjudged = [
        (
            stats.hops_opaque,
            "hops that carry something other than HTTP/1 or TLS",
        ),
        (stats.unjudged_gap, "exchanges behind a gap in the capture"),
        (
            stats.unjudged_gateway_closed,
            "exchanges that the gateway ended early",
        ),
        (
            stats.connect_abandoned,
            "connects that the gateway gave up early",
        ),
        (stats.hops_evicted, "hops given up to bound memory"),
        (
            stats.upstreams_dropped,
            "upstreams left out of the table to bound memory",
        ),
    ];
    list(
        text,
        "not judged",
        unjudged.map(|(count, what)| (count, what.to_owned())),
    );
    if summary.late > 0 {
        let _ = writeln!(
            text,
            "{} out of order by more than a second: durations there are too short",
            counted(summary.late, "packet")
        );
    }
    if hops.guessed > 0 {
        let _ = writeln!(
            text,
            "{} began before the capture; the gateway was told from ports there",
            counted(hops.guessed, "hop")
        );
    }
}

/// What there was of each kind, on one line; nothing where there was none.
fn list(text: &mut String, title: &str, counts: impl IntoIterator<Item = (u64, String)>) {
    let parts: Vec<_> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !parts.is_empty() {
        let _ = writeln!(text, "{title}: {}", parts.join("; "));
    }
}

/// Aligned columns: numbers to the right, the rest to the left.
fn table(text: &mut String, rows: &[[String; COLUMNS]]) {
    const HEAD: [&str; COLUMNS] = [
        "UPSTREAM",
        "HOPS",
        "EXCHANGES",
        "FAILURES",
        "FIRST",
        "LAST",
        "CAUSES",
    ];
    if rows.is_empty() {
        return;
    }
    text.push('\n');
    let mut widths = HEAD.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let head = HEAD.map(ToOwned::to_owned);
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = match column {
                1..=3 => write!(line, "{cell:>width$}  "),
                _ => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// A time without its fraction.
fn short_time(at: Timestamp) -> String {
    let text = at.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}
