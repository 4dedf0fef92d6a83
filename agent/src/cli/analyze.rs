//! `hopscope analyze FILE...`: the verdicts of capture files.
//!
//! Decides in which order files are read (by their first packets, so that the parts of a rotated
//! capture fit together) and how the result is shown. The verdicts are the engine's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use thiserror::Error;

use crate::engine::{Config, Engine};
use crate::limits::Limits;
use crate::model::{HopEvent, Phase, Timestamp};
use crate::source::{Analysis, Options, Reader, SourceError, Summary, UpstreamFilter};
use crate::stats::Stats;

/// Files longer than this get a progress bar on a terminal.
const LONG_FILE: u64 = 64 * 1024 * 1024;
/// Events kept for the text output; those beyond are counted.
const MAX_KEPT: usize = 10_000;

/// Names the cause of each failure in capture files, with no privileges.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// pcap or pcapng files, plain or compressed with gzip or zstd; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Take only hops of the gateway with this address (may be repeated).
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Take only hops to these upstreams, such as 10.0.0.0/8 or 10.0.0.7:8080 (may be repeated).
    #[arg(long, value_name = "CIDR[:PORT]")]
    upstream: Vec<UpstreamFilter>,
    /// How to print: a summary and the events for people, or one event a line for programs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// How many events to print as text.
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,
    /// Name of the node to put on the events.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Jsonl,
}

/// Why the command failed.
#[derive(Debug, Error)]
pub enum AnalyzeError {
    /// A file cannot be opened or read.
    #[error("{name}: {source}")]
    File {
        /// The file as it was given.
        name: String,
        /// What went wrong.
        source: SourceError,
    },
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
}

impl AnalyzeError {
    /// The exit code: 2 where the command was given something that it cannot be used on.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::File {
                source: SourceError::NotACapture { .. },
                ..
            } => 2,
            _ => 1,
        }
    }
}

/// Runs the command: the result goes to `out`, warnings to `err`.
pub fn run(args: Args, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), AnalyzeError> {
    let files = in_order(args.files)?;
    let options = Options {
        gateways: args.gateway,
        upstreams: args.upstream,
    };
    let mut config = Config::default();
    if let Some(node) = args.node {
        config.node = node.into();
    }
    let mut engine = Engine::new(config, Limits::default());
    let mut analysis = Analysis::new(options, &mut engine);
    let mut report = Report::default();
    let mut written = Ok(());
    let mut on_event = |event: HopEvent| {
        if args.format == Format::Text {
            report.add(event);
        } else if written.is_ok() {
            written = write_json(out, &event);
        }
    };
    for path in &files {
        let name = name_of(path);
        let failed = |source| AnalyzeError::File {
            name: name.clone(),
            source,
        };
        let (reader, length) = open(path).map_err(|error| failed(error.into()))?;
        let bar = progress(&name, length);
        let cut = analysis
            .read(bar.wrap_read(reader), &mut on_event)
            .map_err(failed)?;
        bar.finish_and_clear();
        if let Some(cut) = cut {
            writeln!(
                err,
                "warning: {name}: {cut}; what was read before is analysed"
            )?;
        }
    }
    let summary = analysis.finish(&mut on_event);
    written?;
    if args.format == Format::Text {
        let text = report.text(&files, &summary, engine.stats(), args.limit);
        out.write_all(text.as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

fn write_json(out: &mut dyn Write, event: &HopEvent) -> io::Result<()> {
    serde_json::to_writer(&mut *out, event)?;
    out.write_all(b"\n")
}

/// The files by the time of their first packets, standard input where it stands. Opening them all
/// first also means that one that is no capture is reported before anything is printed.
fn in_order(mut files: Vec<PathBuf>) -> Result<Vec<PathBuf>, AnalyzeError> {
    if files.iter().any(|path| is_stdin(path)) {
        return Ok(files);
    }
    let mut begins = BTreeMap::new();
    for path in &files {
        let begin = begin_of(path).map_err(|source| AnalyzeError::File {
            name: name_of(path),
            source,
        })?;
        begins.insert(path.clone(), begin);
    }
    files.sort_by_key(|path| begins.get(path).copied().flatten());
    Ok(files)
}

fn begin_of(path: &Path) -> Result<Option<Timestamp>, SourceError> {
    if !path.metadata()?.is_file() {
        // What is read from a pipe is gone.
        return Ok(None);
    }
    let mut reader = Reader::open(File::open(path)?)?;
    Ok(reader.next_packet()?.map(|packet| packet.at))
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn name_of(path: &Path) -> String {
    if is_stdin(path) {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
}

/// The stream of a file, and its length where it has one.
fn open(path: &Path) -> io::Result<(Box<dyn Read>, Option<u64>)> {
    if is_stdin(path) {
        return Ok((Box::new(io::stdin().lock()), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let length = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), length))
}

/// A bar on standard error, hidden unless that is a terminal and the file is long.
fn progress(name: &str, length: Option<u64>) -> ProgressBar {
    let Some(length) = length.filter(|length| *length > LONG_FILE) else {
        return ProgressBar::hidden();
    };
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length).with_message(name.to_owned());
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What the text output is made of.
#[derive(Default)]
struct Report {
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
    fn add(&mut self, event: HopEvent) {
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

    fn text(mut self, files: &[PathBuf], summary: &Summary, stats: Stats, limit: usize) -> String {
        let mut text = String::new();
        capture_lines(&mut text, files, summary, stats);
        text.push('\n');
        table(&mut text, &self.rows(summary));
        if self.total == 0 {
            text.push_str("\nno failure found\n");
            return text;
        }
        self.sort();
        let shown = self.events.len().min(limit);
        let _ = writeln!(
            text,
            "\n{}, the worst first",
            counted(self.total, "failure")
        );
        for event in self.events.iter().take(shown) {
            text.push('\n');
            event_text(&mut text, event);
        }
        let hidden = self.total - shown as u64;
        if hidden > 0 {
            let _ = writeln!(text, "\n{hidden} more: --format jsonl prints all of them");
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
fn capture_lines(text: &mut String, files: &[PathBuf], summary: &Summary, stats: Stats) {
    let name = match files {
        [file] => name_of(file),
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
        counted(stats.events, "failure"),
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
    let unused: Vec<_> = unused
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !unused.is_empty() {
        let _ = writeln!(text, "not used: {}", unused.join("; "));
    }
    if hops.guessed > 0 {
        let _ = writeln!(
            text,
            "{} began before the capture; the gateway was told from ports there",
            counted(hops.guessed, "hop")
        );
    }
}

/// Aligned columns: numbers to the right, the rest to the left.
fn table(text: &mut String, rows: &[[String; 6]]) {
    const HEAD: [&str; 6] = ["UPSTREAM", "HOPS", "FAILURES", "FIRST", "LAST", "CAUSES"];
    if rows.is_empty() {
        return;
    }
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

/// One event in a few lines.
fn event_text(text: &mut String, event: &HopEvent) {
    let upstream = event.upstream.socket_addr();
    let _ = write!(
        text,
        "{} {} {} {upstream} {}",
        event.time,
        event.cause,
        event.proof.as_str(),
        event.phase.as_str()
    );
    if let Some(exchange) = &event.exchange {
        for part in [&exchange.method, &exchange.path].into_iter().flatten() {
            let _ = write!(text, " {part}");
        }
        if let Some(status) = exchange.status {
            let _ = write!(text, " -> {status}");
        }
    }
    text.push('\n');
    for evidence in &event.evidence {
        let _ = writeln!(text, "    {}: {}", evidence.source.as_str(), evidence.text);
    }
    if !event.rivals.is_empty() {
        let rivals: Vec<_> = event.rivals.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "    or: {}", rivals.join(", "));
    }
    if let Some(splitter) = &event.splitter {
        let _ = writeln!(text, "    would tell: {splitter}");
    }
}

fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A time without its fraction.
fn short_time(at: Timestamp) -> String {
    let text = at.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}
