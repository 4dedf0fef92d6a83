//! `cargo xtask`: set-up, build, demo, tests and benchmarks. It runs other programs and judges their
//! results; what it tests lives in the other packages.

mod bench;
mod build;
mod demo;
mod exec;
mod host;
mod lint;
mod setup;
mod test;
mod test_vm;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything that cargo alone cannot say.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the build, the tests and the demo need (Debian, root), or print the commands.
    Setup,
    /// Build the kernel programs and the complete binary: target/release/hopscope.
    Build,
    /// Show the agent at work on a real nginx and broken upstreams.
    Demo(demo::Args),
    /// Run the tests that this host can run, and say which those were.
    Test(test::Args),
    /// Boot Debian's kernels 6.1 and 6.12 in an emulator and smoke-test the agent there.
    TestVm,
    /// Measure how fast and how small hopscope is.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Check formatting and lints of the workspace and of the kernel programs.
    Lint,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::run(),
        Command::Build => build::run(),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::TestVm => test_vm::run(),
        Command::Bench(bench) => bench::run(&bench),
        Command::Lint => lint::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exec::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
