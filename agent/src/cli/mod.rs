//! The command line: one file a subcommand.
//!
//! Decides flags, defaults, what goes to standard output and how the process ends. Standard output
//! carries results only; the log and errors go to standard error. Exit codes: 0 done, 1 failed, 2
//! wrong usage or bad input.

mod access;
mod analyze;
mod captures;
mod check;
mod client;
mod clock;
mod collect;
mod config;
mod error;
mod events;
mod explain;
mod output;
mod record;
pub mod render;
mod run;
mod runtime;
mod size;
mod status;
mod wait;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

pub use config::ConfigError;
pub use error::CliError;
pub use output::{Format, Out};

/// Names the cause of every 502, 503 and 504 on the gateway-to-upstream hop.
#[derive(Debug, Parser)]
#[command(name = "hopscope", version, propagate_version = true)]
struct Cli {
    /// TOML file with the tables [run], [events], [captures] and [collect]; flags win over it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Log level, or directives such as `info,hopscope=debug` [default: info].
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this host's gateways and serve what is found.
    Run(Box<run::Args>),
    /// Name the cause of each failure in capture files, with no privileges.
    Analyze(analyze::Args),
    /// Show the events of an agent.
    Events(events::Args),
    /// Say what an agent watches, how its upstreams do, and what it could not see.
    Status(status::Args),
    /// List, fetch and compare the evidence that an agent keeps.
    Captures(captures::Args),
    /// Take events from agents and print them.
    Collect(collect::Args),
    /// Say what this host offers, what would attach and why not.
    Check(check::Args),
    /// Explain a cause: meaning, proof, what to do, and the tempting wrong fix.
    Explain(explain::Args),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, where a reader may have left already.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            if !error.is_broken_pipe() {
                // With standard error closed there is nobody left to tell.
                let _ = writeln!(std::io::stderr(), "hopscope: {error}");
            }
            error.exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    let config = match &cli.config {
        Some(path) => config::Config::read(path).map_err(CliError::usage)?,
        None => config::Config::default(),
    };
    start_log(
        cli.log
            .as_deref()
            .or(config.log.as_deref())
            .unwrap_or("info"),
    )?;
    let done = ExitCode::SUCCESS;
    match cli.command {
        Command::Run(args) => run::run(*args, config.run).map(|()| done),
        Command::Analyze(args) => analyze::run(args).map(|()| done),
        Command::Events(args) => events::run(args, config.events).map(|()| done),
        Command::Status(args) => status::run(args, config.events).map(|()| done),
        Command::Captures(args) => captures::run(args, config.captures).map(|()| done),
        Command::Collect(args) => collect::run(args, config.collect).map(|()| done),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(args, config.events).map(|()| done),
    }
}

fn start_log(level: &str) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        CliError::usage(format!(
            "bad log level `{level}`: {error}; give error, warn, info, debug, trace or directives \
             such as info,hopscope=debug"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::colour_wanted(&std::io::stderr()))
        .with_target(false)
        .try_init()
        .map_err(CliError::failed)
}
