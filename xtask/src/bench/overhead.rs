//! `cargo xtask bench overhead`: what watching costs a gateway under load. The same load runs with
//! nothing beside it and with each observer in turn, round after round, so that a slow moment of the
//! machine hits all of them. It prints ratios to "nothing" and judges none.
//!
//! All traffic stays in two network namespaces, and everything ends with the command. The agent is the
//! one that the live tests use: `HOPSCOPE_BIN`, or else the release build, which is made first.

mod bed;
mod observer;
mod usage;

use anyhow::{Result, bail};
use clap::ValueEnum;
use hopscope_tests::agent::BINARY_VARIABLE;

use self::bed::{Bed, Case, Load};
use self::observer::{Kind, Seen, Watching};
use crate::bench::Format;
use crate::exec::say;
use crate::{build, demo, host, setup};

/// What the bench needs beside the live tests' packages; bpftrace is nice to have.
const PACKAGES: [&str; 3] = ["wrk", "tcpdump", "openssl"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds: within four minutes.
    #[arg(long)]
    quick: bool,
    /// A table for people, or a JSON line a row.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Only the case of this name.
    #[arg(long)]
    case: Option<Case>,
    /// Only these observers; repeat for more.
    #[arg(long = "observer")]
    observers: Vec<Kind>,
    /// Rounds of each case.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of load a round.
    #[arg(long)]
    seconds: Option<u64>,
}

/// What one observer gave in one round, as ratios to nothing in the same round.
struct Round {
    load: Load,
    seen: Seen,
    throughput: f64,
    p99: f64,
    /// Processor time of gateway, upstream, client and observer together, a request.
    cpu: f64,
    /// Processor time of the gateway alone, a request.
    gateway: f64,
    /// Microseconds of processor time that the observer's own process took, a request.
    own_us: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let obstacles = host::live_obstacles();
    if !obstacles.is_empty() {
        bail!("this needs a live host: {}", obstacles.join("; "));
    }
    setup::install(&PACKAGES)?;
    if std::env::var_os(BINARY_VARIABLE).is_none() {
        build::run()?;
    }
    demo::clean_up_on_signals()?;
    let text = args.format == Format::Text;
    let mut kinds = args.observers.clone();
    if kinds.is_empty() {
        kinds.extend(Kind::value_variants());
    }
    kinds.retain(|kind| match observer::obstacle(*kind) {
        None => true,
        Some(why) => {
            if text {
                say(&format!("{} is left out: {why}", kind.name()));
            }
            false
        }
    });
    let bed = Bed::start()?;
    let cases = Case::value_variants();
    for case in cases
        .iter()
        .filter(|case| args.case.is_none_or(|only| only == **case))
    {
        bench_case(*case, &kinds, &bed, args)?;
    }
    if text {
        if kinds.contains(&Kind::NoSystemCalls) {
            say(
                "\nno-system-calls: the agent without its programs on system calls, which is what it costs where the",
            );
            say(
                "        kernel has fentry: where it has not, their tracepoints slow every system call",
            );
        }
        say(
            "\nclient, gateway and upstream have a cgroup each, and only the gateway's is watched;",
        );
        say(
            "wanted: throughput with hopscope 0.98 or more, at most 64 MiB resident, no record lost,",
        );
        say("        and as many failures seen as there were");
    }
    Ok(())
}

fn bench_case(case: Case, kinds: &[Kind], bed: &Bed, args: &Args) -> Result<()> {
    let (rounds, seconds) = match (args.quick, case) {
        (true, Case::KeepAlive) => (4, 3),
        (true, _) => (2, 3),
        (false, Case::KeepAlive) => (9, 8),
        (false, _) => (5, 8),
    };
    let rounds = args.rounds.unwrap_or(rounds).max(1);
    let seconds = args.seconds.unwrap_or(seconds).max(1);
    let text = args.format == Format::Text;
    // Fills pools and caches.
    bed.load(case, 1)?;
    let mut alone = Vec::new();
    let mut results: Vec<Vec<Round>> = kinds.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let nothing = bed.load(case, seconds)?;
        let mut turns: Vec<_> = kinds.iter().zip(&mut results).collect();
        // Who comes late in one round comes early in the next.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (kind, results) in turns {
            let watching = Watching::start(*kind, bed)?;
            let load = bed.load(case, seconds)?;
            let seen = watching.finish(load.failures)?;
            results.push(Round::new(load, seen, &nothing));
        }
        alone.push(nothing);
    }
    if text {
        head(case, &alone, rounds, seconds);
    }
    for (kind, rounds) in kinds.iter().zip(&results) {
        say(&if text {
            row(*kind, rounds)
        } else {
            json(case, *kind, rounds)
        });
    }
    let of = |kind| {
        let at = kinds.iter().position(|other| *other == kind)?;
        results.get(at)
    };
    if let (Some(with), Some(without)) = (of(Kind::Hopscope), of(Kind::NoClientSide)) {
        say(&client_side(case, with, without, text));
    }
    if text {
        for kind in kinds.iter().filter(|kind| kind.agent().is_some()) {
            programs(case, *kind, bed, seconds)?;
        }
    }
    Ok(())
}

impl Round {
    fn new(load: Load, seen: Seen, nothing: &Load) -> Self {
        Self {
            throughput: load.per_second() / nothing.per_second(),
            p99: load.p99_us / nothing.p99_us,
            cpu: (load.cpu_us + seen.cpu_us) / load.requests / (nothing.cpu_us / nothing.requests),
            gateway: load.gateway_us / load.requests / (nothing.gateway_us / nothing.requests),
            own_us: seen.cpu_us / load.requests,
            load,
            seen,
        }
    }
}

fn head(case: Case, alone: &[Load], rounds: usize, seconds: u64) {
    let of = |value: fn(&Load) -> f64| median(alone.iter().map(value));
    say(&format!(
        "\n{}: {rounds} rounds of {seconds} s; nothing beside it: {:.0} requests/s, p99 {:.1} ms, {:.1} us \
         of processor time a request, {:.1} of them in the gateway",
        case.title(),
        of(Load::per_second),
        of(|load| load.p99_us) / 1000.0,
        of(|load| load.cpu_us / load.requests),
        of(|load| load.gateway_us / load.requests),
    ));
    say(
        "                 requests/s     p99   cpu/request  of gateway  own us/request        RSS    lost  failures   seen",
    );
}

fn row(kind: Kind, rounds: &[Round]) -> String {
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let (failures, seen) = failures(rounds);
    format!(
        "{:<15} {:>9.3} {:>7.2} {:>13.3} {:>11.3} {:>15.2} {:>6.1} MiB {:>7} {failures:>9} {:>6}",
        kind.name(),
        of(|round| round.throughput),
        of(|round| round.p99),
        of(|round| round.cpu),
        of(|round| round.gateway),
        of(|round| round.own_us),
        peak(rounds),
        lost(rounds),
        seen.map_or_else(|| "-".to_owned(), |seen| seen.to_string()),
    )
}

fn json(case: Case, kind: Kind, rounds: &[Round]) -> String {
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let (failures, seen) = failures(rounds);
    format!(
        r#"{{"case":"{}/{}","throughput_ratio":{:.4},"p99_ratio":{:.3},"cpu_per_request_ratio":{:.4},"rss_mib":{:.1},"lost_records":{},"failures_injected":{failures},"failures_with_capture":{}}}"#,
        case.name(),
        kind.name(),
        of(|round| round.throughput),
        of(|round| round.p99),
        of(|round| round.cpu),
        peak(rounds),
        lost(rounds),
        seen.map_or_else(|| "null".to_owned(), |seen| seen.to_string()),
    )
}

/// What it costs to watch the client side: the agent with it beside the agent without it, round by round.
fn client_side(case: Case, with: &[Round], without: &[Round], text: bool) -> String {
    let of = |value: fn(&Round) -> f64| {
        median(with.iter().zip(without).map(|(a, b)| value(a) / value(b)))
    };
    let throughput = of(|round| round.throughput);
    let cpu = of(|round| round.cpu);
    let gateway = of(|round| round.gateway);
    if text {
        format!(
            "the client side: throughput {throughput:.3} of hopscope without it, processor time a request \
             {cpu:.3}, in the gateway {gateway:.3}"
        )
    } else {
        format!(
            r#"{{"case":"{}/client_side","throughput_ratio":{throughput:.4},"cpu_per_request_ratio":{cpu:.4},"gateway_cpu_per_request_ratio":{gateway:.4}}}"#,
            case.name()
        )
    }
}

fn failures(rounds: &[Round]) -> (u64, Option<u64>) {
    let injected = rounds.iter().map(|round| round.load.failures).sum();
    let seen = rounds.iter().map(|round| round.seen.failures);
    (injected, seen.sum())
}

fn peak(rounds: &[Round]) -> f64 {
    let all = rounds.iter().map(|round| round.seen.rss_mib);
    all.fold(0.0, f64::max)
}

fn lost(rounds: &[Round]) -> u64 {
    rounds.iter().map(|round| round.seen.lost).sum()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    match all.get(all.len() / 2) {
        Some(upper) if all.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(
            *upper,
            all.get(all.len() / 2 - 1).copied().unwrap_or(*upper),
        ),
        None => f64::NAN,
    }
}

/// One more round in which the kernel takes the time of each program. That costs time itself, so that
/// it is not one of those that count.
fn programs(case: Case, kind: Kind, bed: &Bed, seconds: u64) -> Result<()> {
    let timing = usage::time_programs()?;
    let watching = Watching::start(kind, bed)?;
    let load = bed.load(case, seconds)?;
    say(&format!(
        "kernel programs of {:<14} runs/request   ns/run   ns/request",
        kind.name()
    ));
    let mut all = 0.0;
    for program in watching.programs()? {
        all += program.nanos / load.requests;
        say(&format!(
            "  {:<31} {:>12.3} {:>8.0} {:>12.1}",
            program.name,
            program.runs / load.requests,
            program.nanos / program.runs,
            program.nanos / load.requests,
        ));
    }
    say(&format!("  {:<53} {all:>12.1}", "together"));
    watching.finish(load.failures)?;
    drop(timing);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        let of = |values: &[f64]| median(values.iter().copied());
        assert!((of(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((of(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(of(&[]).is_nan());
    }
}
