//! How a command ends badly.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use thiserror::Error;

/// An error that ends a command, sorted by who has to act. Its message is one line: what failed, on
/// what, and what to do.
#[derive(Debug, Error)]
pub enum CliError {
    /// Wrong flags, configuration or input: exit code 2.
    #[error("{0}")]
    Usage(#[source] Box<dyn Error + Send + Sync>),
    /// The command was understood and could not be carried out: exit code 1.
    #[error("{0}")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// Standard output cannot be written: exit code 1, or a quiet 0 where its reader left.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl CliError {
    /// The user has to change flags, configuration or input.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Usage(error.into())
    }

    /// The command could not be carried out.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(error.into())
    }

    /// Whether the reader of standard output has left, as `head` does.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Output(_) if self.is_broken_pipe() => ExitCode::SUCCESS,
            Self::Failed(_) | Self::Output(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
        }
    }
}
