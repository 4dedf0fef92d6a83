//! The command line: one file a subcommand.

use std::process::ExitCode;

pub mod analyze;

/// Runs the command line.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
