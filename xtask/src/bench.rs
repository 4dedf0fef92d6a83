//! `cargo xtask bench`: how fast and how small `hopscope analyze` is, beside tshark and cat on the same
//! file, and what `hopscope run` costs a gateway. It prints ratios, which say more about the program
//! than about the machine, and judges none.

mod measure;
mod overhead;
mod traffic;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::{Subcommand, ValueEnum};

use crate::build;
use crate::exec::{find_program, say};

use self::measure::{Cost, measure};
use self::traffic::{Case, Size, Written};

/// Runs of the fast programs; the quickest counts.
const RUNS: usize = 3;

/// Packets of a file that tshark reads in a quick run: it would take most of its time.
const QUICK_PACKETS: u64 = 300_000;

const MIB: f64 = 1024.0 * 1024.0;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// `hopscope analyze` on generated captures, beside tshark and cat.
    Analyze(Args),
    /// A real gateway under load: alone, with hopscope, with tcpdump and with bpftrace.
    Overhead(overhead::Args),
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// 200 MB a file instead of 1 GB, and tshark on the first packets only: within three minutes.
    #[arg(long)]
    quick: bool,
    /// A table for people, or a JSON line a case.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Only the case of this name.
    #[arg(long)]
    case: Option<Case>,
    /// This binary instead of the one that is built now.
    #[arg(long)]
    binary: Option<std::path::PathBuf>,
    /// Leave tshark out.
    #[arg(long)]
    no_tshark: bool,
    /// Write the captures into this directory and leave them there, for a profiler.
    #[arg(long, value_name = "DIRECTORY")]
    keep: Option<std::path::PathBuf>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Jsonl,
}

/// What one case gave.
struct Row {
    case: Case,
    written: Written,
    hopscope: Cost,
    cat: Cost,
    /// tshark's processor time, scaled to the whole file.
    tshark: Option<f64>,
}

impl Row {
    fn vs_tshark(&self) -> Option<f64> {
        Some(self.tshark? / self.hopscope.seconds())
    }

    fn vs_cat(&self) -> f64 {
        self.cat.seconds() / self.hopscope.seconds()
    }

    fn peak_rss_mib(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a size for people")]
        let bytes = self.hopscope.peak_rss as f64;
        bytes / MIB
    }

    fn json(&self) -> String {
        let vs_tshark = self
            .vs_tshark()
            .map_or_else(|| "null".to_owned(), |ratio| format!("{ratio:.1}"));
        format!(
            r#"{{"case":"{}","vs_tshark":{vs_tshark},"vs_cat":{:.3},"peak_rss_mib":{:.1}}}"#,
            self.case.name(),
            self.vs_cat(),
            self.peak_rss_mib()
        )
    }

    fn text(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let (packets, bytes) = (self.written.packets as f64, self.written.bytes as f64);
        let seconds = self.hopscope.seconds();
        format!(
            "{:<18} {:>9} {:>6.0} MB {:>8.2} s {:>9.2} M/s {:>10} {:>8.2} {:>8.1} MiB",
            self.case.name(),
            self.written.packets,
            bytes / 1e6,
            seconds,
            packets / seconds / 1e6,
            self.vs_tshark()
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}")),
            self.vs_cat(),
            self.peak_rss_mib(),
        )
    }
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Analyze(args) => analyze(args),
        Bench::Overhead(args) => overhead::run(args),
    }
}

fn analyze(args: &Args) -> Result<()> {
    if !args.no_tshark && find_program("tshark").is_none() {
        bail!("tshark is not installed: install it, or leave it out with --no-tshark");
    }
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => build::release_binary(None)?,
    };
    let core = measure::pin()?;
    let text = args.format == Format::Text;
    if text {
        say(&format!(
            "processor time on core {core}, file in the page cache, best of {RUNS}"
        ));
        if args.quick && !args.no_tshark {
            say(&format!(
                "quick: tshark reads the first {QUICK_PACKETS} packets; its time is scaled to all"
            ));
        }
        say(
            "case                 packets      size   analyze     packets  vs tshark   vs cat     peak RSS",
        );
    }
    let cases = Case::value_variants();
    for case in cases
        .iter()
        .filter(|case| args.case.is_none_or(|only| only == **case))
    {
        let row = bench_case(*case, &binary, args)?;
        say(&if text { row.text() } else { row.json() });
    }
    if text {
        say("wanted: vs tshark 30, better 50; vs cat on full-size segments 0.25, better 0.5;");
        say("        peak RSS below 64 MiB, with short connections below 256 MiB");
    }
    Ok(())
}

fn bench_case(case: Case, binary: &Path, args: &Args) -> Result<Row> {
    let directory = tempfile::tempdir().context("could not make a directory for the captures")?;
    let path = match &args.keep {
        Some(keep) => keep.join(format!("{}.pcap", case.name())),
        None => directory.path().join("bench.pcap"),
    };
    let size = if args.quick { Size::QUICK } else { Size::FULL };
    let written = traffic::write(case, size, &path)?;
    let report = directory.path().join("report");

    let cat = best(|| {
        let mut command = Command::new("cat");
        measure(command.arg(&path).stdout(Stdio::null()))
    })?;
    let hopscope = best(|| {
        let stdout = File::create(&report).context("could not write the report")?;
        let mut command = Command::new(binary);
        measure(command.arg("analyze").arg(&path).stdout(stdout))
    })?;
    let found = std::fs::read_to_string(&report).context("could not read the report")?;
    if !found.contains(&format!(", {} failures", written.failures)) {
        let head: Vec<_> = found.lines().take(3).collect();
        bail!(
            "{}: {} failures were written, and the report says: {}",
            case.name(),
            written.failures,
            head.join(" / ")
        );
    }
    let tshark = if args.no_tshark {
        None
    } else {
        let mut command = Command::new("tshark");
        command.args(["-q", "-z", "expert", "-n", "-r"]).arg(&path);
        let mut share = 1.0;
        if args.quick && written.packets > QUICK_PACKETS {
            command.args(["-c", &QUICK_PACKETS.to_string()]);
            #[expect(clippy::cast_precision_loss, reason = "a ratio of packets")]
            let ratio = written.packets as f64 / QUICK_PACKETS as f64;
            share = ratio;
        }
        let cost = measure(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        Some(cost.seconds() * share)
    };
    Ok(Row {
        case,
        written,
        hopscope,
        cat,
        tshark,
    })
}

/// The quickest of a few runs, with the largest memory of them.
fn best(mut run: impl FnMut() -> Result<Cost>) -> Result<Cost> {
    let mut best = run()?;
    for _ in 1..RUNS {
        let next = run()?;
        best = Cost {
            cpu: best.cpu.min(next.cpu),
            peak_rss: best.peak_rss.max(next.peak_rss),
        };
    }
    Ok(best)
}
