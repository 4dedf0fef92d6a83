//! `hopscope collect`: takes events from agents and prints them.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::info;

use super::access::{ServerFlags, reload_on};
use super::output::{Format, Out};
use super::{CliError, config, runtime};
use crate::collector::{Collector, Sink, serve_collector};
use crate::model::HopEvent;
use crate::serve::{Listener, ServerTls};

/// Where the collector listens unless told otherwise.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7503);

/// Flags of `hopscope collect`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address for gRPC [default: 127.0.0.1:7503].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Text for people or JSON lines for programs [default: jsonl].
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    server: ServerFlags,
}

/// Events on standard output.
#[derive(Debug)]
struct Printer {
    out: Out,
    format: Format,
}

impl Sink for Printer {
    fn keep(&mut self, event: &HopEvent) -> io::Result<()> {
        self.out.event(event, self.format)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub(super) fn run(args: Args, mut file: config::Collect) -> Result<(), CliError> {
    let listen = args.listen.or(file.listen).unwrap_or(LISTEN);
    let tls = args.server.or(file.server()).protect(listen)?;
    let printer = Printer {
        out: Out::stdout(),
        format: args.format.or(file.format).unwrap_or(Format::Jsonl),
    };
    let runtime = runtime::service()?;
    let outcome = runtime.block_on(collect(listen, tls, printer));
    // A write to a pipe that nobody reads may never end; it must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn collect(
    listen: SocketAddr,
    tls: Option<ServerTls>,
    printer: Printer,
) -> Result<(), CliError> {
    let mut signal = runtime::StopSignal::new()?;
    let mut listener = Listener::bind(listen).await.map_err(CliError::failed)?;
    tokio::spawn(reload_on(runtime::ReloadSignal::new()?, tls.clone()));
    if let Some(tls) = tls {
        listener = listener.with_tls(tls);
    }
    let address = listener.address();
    let collector = Collector::new(printer);
    let (stop_serving, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // A dropped sender means stop as well.
        let _ = stopped.await;
    };
    let mut server = tokio::spawn(serve_collector(listener, Arc::clone(&collector), stopped));
    info!(listen = %address, "collecting");

    let failure = tokio::select! {
        name = signal.wait() => {
            info!("stopping on {name}");
            None
        }
        error = collector.failed() => Some(CliError::Output(error)),
        outcome = &mut server => {
            return outcome.map_err(CliError::failed)?.map_err(CliError::failed);
        }
    };
    drop(stop_serving);
    let outcome = server.await.map_err(CliError::failed)?;
    for (name, value) in collector.counters() {
        info!("{name} {value}");
    }
    match failure {
        Some(error) => Err(error),
        None => outcome.map_err(CliError::failed),
    }
}
