//! The tokio runtime of a command, and the signals that ask it to stop.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliError;

/// A runtime for a service. Two threads carry more events than one host makes, and leave the
/// processors to the gateway.
pub(super) fn service() -> Result<Runtime, CliError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.map_err(|error| no_runtime(&error))
}

/// A runtime for a client.
pub(super) fn client() -> Result<Runtime, CliError> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| no_runtime(&error))
}

fn no_runtime(error: &io::Error) -> CliError {
    CliError::failed(format!(
        "cannot start the asynchronous runtime: {error}; raise the limits on threads and open files"
    ))
}

/// SIGHUP, from the moment that it is made.
#[derive(Debug)]
pub(super) struct ReloadSignal(Signal);

impl ReloadSignal {
    /// Starts to listen. Must be called on a runtime.
    pub(super) fn new() -> Result<Self, CliError> {
        signal(SignalKind::hangup())
            .map(Self)
            .map_err(|error| CliError::failed(format!("cannot listen for SIGHUP: {error}")))
    }

    /// Resolves when the signal comes.
    pub(super) async fn wait(&mut self) {
        // It ends only with the runtime.
        let _ = self.0.recv().await;
    }
}

/// SIGTERM and SIGINT, from the moment that it is made.
#[derive(Debug)]
pub(super) struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    /// Starts to listen. Must be called on a runtime.
    pub(super) fn new() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                CliError::failed(format!("cannot listen for SIGTERM and SIGINT: {error}"))
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Resolves with the name of the signal that came.
    pub(super) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
