//! `cargo xtask demo`: a real nginx in front of a healthy upstream and of broken ones, the agent beside
//! it, and one table of what the client saw and what the agent said. Where that cannot run, the same
//! engine reads a capture of it.

use std::path::PathBuf;
use std::process;
use std::thread;

use anyhow::{Context as _, Result, bail};
use hopscope_tests::agent::{self, Event};
use hopscope_tests::cleanup;
use hopscope_tests::gateway::Kind;
use hopscope_tests::recording::Recording;
use hopscope_tests::scenario::{Scenario, failures, healthy};
use hopscope_tests::watch::{Played, Watch};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exec::{complain, say, workspace};
use crate::{build, host, setup, toolchain};

/// Exit status of a program that a signal ended, as shells give it: this plus the signal's number.
const SIGNAL_STATUS: i32 = 128;

/// The capture for hosts without root or BTF.
const CAPTURE: &str = "tests/fixtures/demo.pcap";

/// What the demo shows: one scenario for each kind of failure that a user is likely to meet.
const SHOWN: [&str; 16] = [
    "refused",
    "no_route",
    "host_unreachable",
    "blackholed",
    "closed_on_accept",
    "closed_no_response",
    "reset_no_response",
    "stale_reuse",
    "slow_first_byte",
    "own_error_503",
    "not_http_ssh",
    "header_space",
    "content_length_word",
    "chunk_size",
    "head_truncated_fin",
    "body_truncated_fin",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also record the packets of the demo to this file.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if host::is_root() && host::is_debian() {
        setup::packages()?;
    }
    let obstacles = host::live_obstacles();
    if obstacles.is_empty() {
        build::run()?;
        live(args)
    } else {
        say(&format!(
            "a live demo cannot run on this host: {}",
            obstacles.join("; ")
        ));
        say("the same engine on a capture of it:");
        recorded(args)
    }
}

/// Plays the scenarios in front of a running agent.
fn live(args: &Args) -> Result<()> {
    clean_up_on_signals()?;
    let mut scenarios = vec![healthy(20)];
    scenarios.extend(
        failures()
            .into_iter()
            .filter(|one| SHOWN.contains(&one.name)),
    );
    say(&format!(
        "\nstarting hopscope, nginx, a healthy upstream and {} broken ones ...",
        scenarios.len() - 1
    ));
    let watch = Watch::start(&[Kind::Nginx], &scenarios)?;
    let recording = match &args.record {
        Some(file) => Some(Recording::start(watch.lab().namespace(), file)?),
        None => None,
    };
    let played = watch.play(&scenarios)?;
    if let Some(recording) = recording {
        say(&format!("recorded {}", recording.finish()?.display()));
    }
    say("");
    table(
        &["request", "client saw", "cause", "proof", "evidence"],
        &rows(&played),
    );
    let failed = played.iter().filter(|one| one.verdict().is_some()).count();
    let named = played.iter().filter(|one| is_right(one)).count() - (played.len() - failed);
    say(&format!(
        "\n{named} of {failed} failures named once and as expected; \
         {} healthy requests gave {} events",
        20,
        played
            .iter()
            .filter(|one| one.verdict().is_none())
            .map(|one| one.events.len())
            .sum::<usize>()
    ));
    if named < failed {
        bail!(
            "the agent did not name every failure; it logged:\n{}",
            watch.agent().log()
        );
    }
    Ok(())
}

/// Whether the agent said about a scenario what the table of scenarios says, once.
fn is_right(one: &Played<'_>) -> bool {
    match (one.verdict(), one.events.as_slice()) {
        (None, []) => true,
        (Some(verdict), [event]) => event.cause == verdict.cause,
        _ => false,
    }
}

fn rows(played: &[Played<'_>]) -> Vec<[String; 5]> {
    let mut rows = Vec::new();
    for one in played {
        let seen = one
            .seen
            .as_ref()
            .map_or_else(|error| format!("{error:#}"), ToString::to_string);
        let request = request(one.scenario);
        if one.events.is_empty() {
            let cause = if one.verdict().is_some() {
                "(missing)"
            } else {
                "-"
            };
            rows.push([
                request,
                seen,
                cause.to_owned(),
                String::new(),
                String::new(),
            ]);
        } else {
            for event in &one.events {
                rows.push([
                    request.clone(),
                    seen.clone(),
                    event.cause.clone(),
                    event.proof.clone(),
                    evidence(event),
                ]);
            }
        }
    }
    rows
}

fn request(scenario: &Scenario) -> String {
    use hopscope_tests::scenario::Drive;
    match scenario.drive {
        Drive::Again => format!("POST /{}", scenario.name),
        Drive::Many(count) => format!("GET /{} x{count}", scenario.name),
        Drive::Twice => format!("GET /{} x2", scenario.name),
        Drive::Once
        | Drive::Idle
        | Drive::GoAway
        | Drive::Leave(_)
        | Drive::Crawl
        | Drive::Upgrade => format!("GET /{}", scenario.name),
    }
}

fn evidence(event: &Event) -> String {
    event
        .evidence
        .first()
        .map_or_else(String::new, |first| first.text.clone())
}

/// Reads the shipped capture.
fn recorded(args: &Args) -> Result<()> {
    if args.record.is_some() {
        bail!("--record needs a live demo");
    }
    let capture = workspace().join(CAPTURE);
    // With the tools at hand the binary is complete; without them it reads files as well.
    let object = toolchain::is_complete()
        .then(build::kernel_object)
        .transpose()?;
    build::release_binary(object.as_deref())?;
    let events = agent::analyze(&capture).with_context(|| format!("could not read {CAPTURE}"))?;
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            let upstream = event.upstream.to_string();
            [
                upstream,
                event.cause.clone(),
                event.proof.clone(),
                evidence(event),
            ]
        })
        .collect();
    say("");
    table(&["upstream", "cause", "proof", "evidence"], &rows);
    Ok(())
}

/// Prints aligned columns; the last one runs free.
fn table<const N: usize>(titles: &[&str; N], rows: &[[String; N]]) {
    let widths: Vec<usize> = titles
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(title.len())
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        say(padded.join("  ").trim_end());
    };
    line(titles.to_vec());
    let rules: Vec<String> = widths
        .iter()
        .map(|&width| "-".repeat(width.min(60)))
        .collect();
    line(rules.iter().map(String::as_str).collect());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// Removes namespaces, programs and files when the demo is interrupted.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            cleanup::everything();
            complain("interrupted; everything that the demo started is gone");
            process::exit(SIGNAL_STATUS + signal);
        }
    });
    Ok(())
}
