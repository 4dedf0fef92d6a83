//! The text output of `hopscope analyze`: what was read, a row an upstream, then the events.
//!
//! Decides layout and order. A person should see within a minute which upstream fails and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use indicatif::BinaryBytes;

use crate::cli::render;
use crate::model::{HopEvent, Phase, Timestamp};
use crate::source::Summary;
use crate::stats::Stats;

/// Events kept to be shown; those beyond are counted.
const MAX_KEPT: usize = 10_000;
/// Upstreams shown one by one, the worst first.
const MAX_ROWS: usize = 30;

/// What the text output is made of.
#[derive(Default)]
pub(super) struct Report {
    events: Vec<HopEvent>,
    /// Failures of each upstream.
    upstreams: BTreeMap<SocketAddr, Failures>,
    total: u64,
}

#[derive(Default)]
struct Failures {
    total: u64,
    causes: BTreeMap<&'static str, u64>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl Report {
    /// Takes one event.
    pub(super) fn add(&mut self, event: HopEvent) {
        self.total += 1;
        let failures = self
            .upstreams
            .entry(event.upstream.socket_addr())
            .or_default();
        failures.total += 1;
        *failures.causes.entry(event.cause.id()).or_default() += 1;
        failures.first = Some(failures.first.map_or(event.time, |at| at.min(event.time)));
        failures.last = failures.last.max(Some(event.time));
        if self.events.len() < MAX_KEPT {
            self.events.push(event);
        }
    }

    /// The whole output.
    pub(super) fn text(
        mut self,
        files: &[String],
        summary: &Summary,
        stats: Stats,
        limit: usize,
        colour: bool,
    ) -> String {
        let mut text = String::new();
        capture_lines(&mut text, files, summary, stats, self.total);
        let rows = self.rows(summary);
        table(&mut text, rows.get(..MAX_ROWS).unwrap_or(&rows));
        if rows.len() > MAX_ROWS {
            let _ = writeln!(
                text,
                "{} more",
                counted((rows.len() - MAX_ROWS) as u64, "upstream")
            );
        }
        if self.total == 0 {
            text.push_str(if summary.hops.hops == 0 {
                "\nnothing to judge: no TCP connection was read\n"
            } else {
                "\nno failure found\n"
            });
            return text;
        }
        self.sort();
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
    fn sort(&mut self) {
        let upstreams = &self.upstreams;
        self.events.sort_by_cached_key(|event| {
            let count = upstreams
                .get(&event.upstream.socket_addr())
                .and_then(|failures| failures.causes.get(event.cause.id()))
                .copied()
                .unwrap_or_default();
            let idle = event.phase == Phase::Idle;
            (idle, u64::MAX - count, event.time, event.id.clone())
        });
    }

    /// One row an upstream, the one with most failures first.
    fn rows(&self, summary: &Summary) -> Vec<[String; 6]> {
        let mut upstreams: BTreeMap<SocketAddr, (u64, Timestamp, Timestamp)> = summary
            .upstreams
            .iter()
            .map(|tally| (tally.upstream, (tally.hops, tally.first, tally.last)))
            .collect();
        // An upstream may have failed without a hop that was tallied.
        for (upstream, failures) in &self.upstreams {
            let first = failures.first.unwrap_or_default();
            let last = failures.last.unwrap_or_default();
            upstreams.entry(*upstream).or_insert((0, first, last));
        }
        let none = Failures::default();
        let mut rows: Vec<_> = upstreams
            .into_iter()
            .map(|(upstream, seen)| {
                (
                    self.upstreams.get(&upstream).unwrap_or(&none),
                    upstream,
                    seen,
                )
            })
            .collect();
        rows.sort_by_key(|(failures, upstream, _)| (u64::MAX - failures.total, *upstream));
        rows.into_iter()
            .map(|(failures, upstream, (hops, first, last))| {
                [
                    upstream.to_string(),
                    hops.to_string(),
                    failures.total.to_string(),
                    short_time(first),
                    short_time(last),
                    causes_text(&failures.causes),
                ]
            })
            .collect()
    }
}

fn causes_text(causes: &BTreeMap<&'static str, u64>) -> String {
    let mut causes: Vec<_> = causes.iter().collect();
    causes.sort_by_key(|(id, count)| (u64::MAX - **count, **id));
    let parts: Vec<_> = causes
        .into_iter()
        .map(|(id, count)| format!("{count} {id}"))
        .collect();
    parts.join(", ")
}

/// What was read, and what of it could not be used.
fn capture_lines(
    text: &mut String,
    files: &[String],
    summary: &Summary,
    stats: Stats,
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
            "hops that carry something other than HTTP/1",
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
fn table(text: &mut String, rows: &[[String; 6]]) {
    const HEAD: [&str; 6] = ["UPSTREAM", "HOPS", "FAILURES", "FIRST", "LAST", "CAUSES"];
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
                1 | 2 => write!(line, "{cell:>width$}  "),
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
