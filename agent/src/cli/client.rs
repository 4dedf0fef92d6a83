//! What every command that asks an agent does alike: it connects, and says why it could not.

use std::error::Error as _;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::CliError;
use crate::serve::{Endpoint, reason};

/// Where an agent serves unless told otherwise.
pub(super) const AGENT: &str = "127.0.0.1:7502";

/// An agent to ask.
#[derive(Debug)]
pub(super) struct Agent {
    endpoint: Endpoint,
}

impl Agent {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Connects to it.
    pub(super) async fn connect(&self) -> Result<Channel, CliError> {
        let endpoint = self.endpoint.tonic().map_err(CliError::usage)?;
        endpoint
            .connect()
            .await
            .map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> CliError {
        let mut reason = reason(error);
        // Reasons of TLS come with their remedy.
        if !reason.contains(';') {
            reason += "; start `hopscope run` or give another --agent";
        }
        CliError::failed(format!(
            "cannot reach an agent at {}: {reason}",
            self.endpoint
        ))
    }

    /// The error for a call that did not succeed.
    pub(super) fn refused(&self, status: &Status) -> CliError {
        // Statuses with a source were made here: the connection failed, nobody said no.
        if status.source().is_some() {
            return self.unreachable(status);
        }
        if status.code() == Code::Unimplemented {
            return self.failed("does not offer this: is it a collector, or another version?");
        }
        let message = format!("the agent at {} says: {}", self.endpoint, status.message());
        match status.code() {
            Code::InvalidArgument => CliError::usage(message),
            _ => CliError::failed(message),
        }
    }

    /// An error about what the agent did, as the rest of a sentence.
    pub(super) fn failed(&self, what: &str) -> CliError {
        CliError::failed(format!("the agent at {} {what}", self.endpoint))
    }
}
