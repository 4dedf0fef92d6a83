//! `cargo xtask test`: runs the tiers that this host can run and says which those were. A tier that was
//! asked for and cannot run is a failure, never a silent skip.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, cargo, say};
use crate::{build, host, lint, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Require the live tests: fail where this host cannot run them.
    #[arg(long)]
    live: bool,
    /// Leave formatting and clippy out.
    #[arg(long)]
    no_lint: bool,
}

/// What became of one tier.
enum Outcome {
    Passed { tests: Counts, took: Duration },
    Failed { tests: Counts, why: String },
    NotRun { why: String },
}

#[derive(Clone, Copy, Default)]
struct Counts {
    passed: u64,
    failed: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if host::is_root() && host::is_debian() {
        setup::packages()?;
        setup::caddy()?;
    }
    let mut obstacles = host::live_obstacles();
    if !host::has_current_caddy() {
        obstacles.push(format!(
            "there is no Caddy in {}: run `cargo xtask setup` as root",
            host::CADDY_DIRECTORY
        ));
    }
    if args.live && !obstacles.is_empty() {
        bail!(
            "live tests cannot run on this host: {}",
            obstacles.join("; ")
        );
    }
    let mut tiers = Vec::new();

    tiers.push((
        "format and lints",
        if args.no_lint {
            Outcome::NotRun {
                why: "left out with --no-lint".to_owned(),
            }
        } else {
            step(lint::run)
        },
    ));
    tiers.push((
        "core without default features",
        step(|| {
            exec::run(cargo().args(["build", "--package", "hopscope", "--no-default-features"]))
        }),
    ));
    tiers.push((
        "unprivileged tests",
        tests(cargo().args(["test", "--workspace"])),
    ));

    if obstacles.is_empty() {
        tiers.extend(live_tiers());
    } else {
        let why = obstacles.join("; ");
        tiers.push(("kernel programs", Outcome::NotRun { why: why.clone() }));
        tiers.push(("live tests", Outcome::NotRun { why }));
    }
    summary(&tiers)
}

/// Builds the complete agent and runs everything that needs it.
fn live_tiers() -> Vec<(&'static str, Outcome)> {
    let object = match build::kernel_object() {
        Ok(object) => object,
        Err(error) => {
            let why = "the kernel programs did not build".to_owned();
            return vec![
                ("kernel programs", failed(&error)),
                (
                    "live tests",
                    Outcome::Failed {
                        tests: Counts::default(),
                        why,
                    },
                ),
            ];
        }
    };
    let mut tiers = Vec::new();
    tiers.push((
        "kernel programs",
        tests(cargo().env(build::OBJECT_VARIABLE, &object).args([
            "test",
            "--package",
            "hopscope",
            "--features",
            "live-tests",
            "--test",
            "kernel",
        ])),
    ));
    let live = match build::release_binary(Some(&object)) {
        Ok(binary) => tests(
            cargo()
                .env("HOPSCOPE_BIN", binary)
                .args([
                    "test",
                    "--package",
                    "hopscope-tests",
                    "--features",
                    "live-tests",
                ])
                .args(["--test", "gateways", "--test", "live"]),
        ),
        Err(error) => failed(&error),
    };
    tiers.push(("live tests", live));
    tiers
}

fn step(work: impl FnOnce() -> Result<()>) -> Outcome {
    let start = clock();
    match work() {
        Ok(()) => Outcome::Passed {
            tests: Counts::default(),
            took: clock().saturating_sub(start),
        },
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Outcome {
    Outcome::Failed {
        tests: Counts::default(),
        why: format!("{error:#}"),
    }
}

/// Runs a `cargo test` command, passes its output on and counts its results.
fn tests(command: &mut Command) -> Outcome {
    let start = clock();
    let mut counts = Counts::default();
    match count(command, &mut counts) {
        Ok(()) => Outcome::Passed {
            tests: counts,
            took: clock().saturating_sub(start),
        },
        Err(error) => Outcome::Failed {
            tests: counts,
            why: format!("{error:#}"),
        },
    }
}

fn count(command: &mut Command, counts: &mut Counts) -> Result<()> {
    let shown = exec::shown(command);
    say(&format!("$ {shown}"));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{shown}`"))?;
    let output = child
        .stdout
        .take()
        .with_context(|| format!("no output of `{shown}`"))?;
    for line in BufReader::new(output).lines() {
        let line = line.with_context(|| format!("could not read the output of `{shown}`"))?;
        counts.add(&line);
        // One line a test would bury what matters; failures print their own section.
        if !is_noise(&line) {
            let _ = writeln!(io::stdout().lock(), "{line}");
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("could not wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

fn is_noise(line: &str) -> bool {
    line.is_empty()
        || line.starts_with("running ")
        || (line.starts_with("test ") && line.ends_with("... ok"))
        || line.starts_with("test result: ok. 0 passed")
}

impl Counts {
    /// Adds one `test result:` line of libtest.
    fn add(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            if let (Some(number), Some(word)) = (words.next(), words.next())
                && let Ok(number) = number.parse::<u64>()
            {
                match word {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    _ => {}
                }
            }
        }
    }
}

fn summary(tiers: &[(&str, Outcome)]) -> Result<()> {
    let mut total = Counts::default();
    let mut broken = Vec::new();
    say("\nsummary");
    for (name, outcome) in tiers {
        let text = match outcome {
            Outcome::Passed { tests, took } => {
                total.passed += tests.passed;
                let tests = match tests.passed {
                    0 => String::new(),
                    passed => format!("{passed} tests, "),
                };
                format!("passed   ({tests}{} s)", took.as_secs())
            }
            Outcome::Failed { tests, why } => {
                total.passed += tests.passed;
                // A build that breaks counts as one failure even though no test ran.
                total.failed += tests.failed.max(1);
                broken.push(*name);
                format!("FAILED   {why}")
            }
            Outcome::NotRun { why } => format!("not run  {why}"),
        };
        say(&format!("  {name:<30} {text}"));
    }
    say(&format!("{} passed, {} failed", total.passed, total.failed));
    if !broken.is_empty() {
        bail!("failed: {}", broken.join(", "));
    }
    Ok(())
}

fn clock() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        counts.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; finished in 0.00s");
        counts.add("test engine::result ... ok");
        assert_eq!((counts.passed, counts.failed), (15, 2));
    }

    #[test]
    fn failures_are_never_noise() {
        assert!(is_noise("test a::b ... ok"));
        assert!(!is_noise("test a::b ... FAILED"));
        assert!(!is_noise("test result: FAILED. 0 passed; 1 failed"));
    }
}
