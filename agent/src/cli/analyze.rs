//! `hopscope analyze FILE...`: the verdicts of capture files.
//!
//! Decides in which order files are read (by their first packets, so that the parts of a rotated
//! capture fit together) and which errors are the user's. The verdicts are the engine's.

mod report;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use thiserror::Error;

use self::report::Report;
use super::CliError;
use super::output::{Format, Out};
use crate::engine::{Config, Engine};
use crate::limits::Limits;
use crate::model::{HopEvent, Timestamp, UpstreamPattern};
use crate::source::{Analysis, Options, Reader, SourceError};

/// Files longer than this get a progress bar on a terminal.
const LONG_FILE: u64 = 64 * 1024 * 1024;

/// Flags of `hopscope analyze`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// pcap or pcapng files, plain or compressed with gzip or zstd; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Only hops of the gateway with this address; repeat for more.
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,

    /// Only hops to this upstream: ADDRESS, CIDR, either with :PORT, or :PORT alone; repeat for
    /// more.
    #[arg(long, value_name = "UPSTREAM")]
    upstream: Vec<UpstreamPattern>,

    /// Name of the node to put on the events.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,

    /// How many events to show as text.
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,

    /// Text for people, with a summary first, or JSON lines for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A file that gave nothing.
#[derive(Debug, Error)]
#[error("{name}: {source}")]
struct FileError {
    name: String,
    source: SourceError,
}

impl FileError {
    fn new(path: &Path, source: impl Into<SourceError>) -> Self {
        Self {
            name: name_of(path),
            source: source.into(),
        }
    }
}

impl From<FileError> for CliError {
    fn from(error: FileError) -> Self {
        match error.source {
            SourceError::NotACapture { .. } => Self::usage(error),
            SourceError::Read(_) => Self::failed(error),
        }
    }
}

pub(super) fn run(args: Args) -> Result<(), CliError> {
    let files = in_order(args.files)?;
    let options = Options {
        gateways: args.gateway,
        upstreams: args.upstream,
    };
    let mut config = Config::default();
    if let Some(node) = args.node {
        config.node = node.into();
    }
    let mut out = Out::stdout();
    let mut engine = Engine::new(config, Limits::default());
    let mut analysis = Analysis::new(options, &mut engine);
    let mut report = Report::default();
    let mut written = Ok(());
    let mut on_event = |event: HopEvent| {
        if args.format == Format::Text {
            report.add(event);
        } else if written.is_ok() {
            written = out.event(&event, Format::Jsonl);
        }
    };
    for path in &files {
        let (reader, length) = open(path).map_err(|error| FileError::new(path, error))?;
        let bar = progress(path, length);
        let cut = analysis
            .read(bar.wrap_read(reader), &mut on_event)
            .map_err(|error| FileError::new(path, error))?;
        bar.finish_and_clear();
        if let Some(cut) = cut {
            let name = name_of(path);
            // With standard error closed there is nobody to warn.
            let _ = writeln!(
                io::stderr(),
                "hopscope: warning: {name}: {cut}; what comes before is analysed"
            );
        }
    }
    let summary = analysis.finish(&mut on_event);
    written?;
    if args.format == Format::Text {
        let names: Vec<_> = files.iter().map(|path| name_of(path)).collect();
        let text = report.text(&names, &summary, &engine, args.limit, out.colour());
        out.line(text.trim_end())?;
    }
    Ok(out.flush()?)
}

/// The files by the time of their first packets, standard input where it stands. Opening them all
/// first also means that one that is no capture is reported before anything is printed.
fn in_order(mut files: Vec<PathBuf>) -> Result<Vec<PathBuf>, FileError> {
    if files.iter().any(|path| is_stdin(path)) {
        return Ok(files);
    }
    let mut begins = BTreeMap::new();
    for path in &files {
        let begin = begin_of(path).map_err(|error| FileError::new(path, error))?;
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
fn progress(path: &Path, length: Option<u64>) -> ProgressBar {
    let Some(length) = length.filter(|length| *length > LONG_FILE) else {
        return ProgressBar::hidden();
    };
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length).with_message(name_of(path));
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
