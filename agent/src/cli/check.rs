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

/// One line of `--format jsonl`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    probe: &'a str,
    attaches: bool,
    reason: &'a str,
}

/// The exit code tells a script whether the agent could run at all: 1 where nothing would attach.
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
            let attached = probes.iter().filter(|probe| probe.attached).count();
            let verdict = if attached == 0 {
                "the agent cannot run here".to_owned()
            } else {
                format!("{attached} of {} would attach", probes.len())
            };
            out.line(&verdict)?;
        }
        Format::Jsonl => {
            for probe in &probes {
                let line = Line {
                    probe: probe.name,
                    attaches: probe.attached,
                    reason: &probe.reason,
                };
                out.line(&serde_json::to_string(&line).map_err(CliError::failed)?)?;
            }
        }
    }
    out.flush()?;
    let any = probes.iter().any(|probe| probe.attached);
    Ok(if any {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn table(probes: &[ProbeStatus]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["probe", "attaches", "why not, and what is lost"]);
    for probe in probes {
        let attaches = if probe.attached { "yes" } else { "no" };
        table.add_row([probe.name, attaches, &printable(&probe.reason)]);
    }
    table.trim_fmt()
}
