//! `hopscope check`: what this host offers, what would attach, and why not.

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::CliError;
use super::output::{Format, Out};
use super::render::printable;
use crate::live;
use crate::stats::ProbeStatus;

/// Flags of `hopscope check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Text for people or JSON lines for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Rows without which the agent cannot run: the kernel programs in this binary, the right to load
/// them, loading itself, and the program that finds hops. Anything else costs some causes only.
const ESSENTIAL: [&str; 4] = ["programs", "privileges", "load", "state"];

/// One line of `--format jsonl`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    probe: &'a str,
    works: bool,
    reason: &'a str,
}

/// The exit code tells a script whether the agent could run at all: 1 where it could not.
pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let probes = live::check();
    let mut out = Out::stdout();
    match args.format {
        Format::Text => {
            let host = rustix::system::uname();
            let (node, kernel) = (host.nodename(), host.release());
            out.line(&format!(
                "host {}, kernel {}",
                printable(&node.to_string_lossy()),
                printable(&kernel.to_string_lossy())
            ))?;
            out.line(&table(&probes))?;
            out.line(verdict(&probes))?;
        }
        Format::Jsonl => {
            for probe in &probes {
                let line = Line {
                    probe: probe.name,
                    works: probe.attached,
                    reason: &probe.reason,
                };
                out.line(&serde_json::to_string(&line).map_err(CliError::failed)?)?;
            }
        }
    }
    out.flush()?;
    Ok(if runs(&probes) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn runs(probes: &[ProbeStatus]) -> bool {
    let mut probes = probes.iter();
    probes.all(|probe| probe.attached || !ESSENTIAL.contains(&probe.name))
}

fn verdict(probes: &[ProbeStatus]) -> &'static str {
    if !runs(probes) {
        "the agent cannot run here"
    } else if probes.iter().all(|probe| probe.attached) {
        "the agent can run here, with nothing missing"
    } else {
        "the agent can run here, with less"
    }
}

fn table(probes: &[ProbeStatus]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["probe", "works", "why not, and what is lost"]);
    for probe in probes {
        let works = if probe.attached { "yes" } else { "no" };
        table.add_row([probe.name, works, &printable(&probe.reason)]);
    }
    table.trim_fmt()
}
