//! `hopscope captures pull`: captures as one pcapng file.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use serde::Serialize;

use super::super::client::Agent;
use super::super::output::{Format, Out};
use super::super::{CliError, config, runtime};
use super::target::Target;
use super::{AgentFlags, FilterFlags};

/// Flags of `hopscope captures pull`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Captures by id; without, all that the filters let through.
    #[arg(value_name = "ID")]
    ids: Vec<String>,

    #[command(flatten)]
    filter: FilterFlags,

    /// File to write, or `-` for standard output.
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    #[command(flatten)]
    agent: AgentFlags,

    /// How to say what was written: text for people or JSON lines for programs [default: text].
    #[arg(long, value_enum)]
    format: Option<Format>,
}

/// What was written.
#[derive(Debug, Default, Serialize)]
struct Written<'a> {
    captures: u64,
    bytes: u64,
    /// Captures that the agent could not read.
    unreadable: u64,
    file: Option<&'a Path>,
}

pub(super) fn run(args: Args, mut file: config::Client) -> Result<(), CliError> {
    let format = args.format.or(file.format).unwrap_or_default();
    if !args.ids.is_empty() && !args.filter.is_empty() {
        return Err(CliError::usage(
            "ids and filters exclude each other: give the one or the other",
        ));
    }
    let agent = args.agent.agent(&mut file)?;
    let request = proto::PullCaptureRequest {
        ids: args.ids,
        filter: Some(args.filter.filter()?),
    };
    let path = (args.output != Path::new("-")).then_some(args.output.as_path());
    let mut target = Target::open(path)?;
    let written = runtime::client()?.block_on(async {
        let mut signal = runtime::StopSignal::new()?;
        tokio::select! {
            written = pull(&agent, request, &mut target) => written,
            name = signal.wait() => Err(CliError::failed(format!("stopped by {name}"))),
        }
    })?;
    if written.captures == 0 {
        return Err(agent.failed(if written.unreadable > 0 {
            "could read none of the captures that match"
        } else {
            "holds no capture that matches; `hopscope captures list` shows all"
        }));
    }
    target.finish()?;
    report(
        &Written {
            file: path,
            ..written
        },
        format,
    )
}

async fn pull(
    agent: &Agent,
    request: proto::PullCaptureRequest,
    target: &mut Target,
) -> Result<Written<'static>, CliError> {
    let mut client = HopAgentClient::new(agent.connect().await?);
    let chunks = client.pull_capture(request).await;
    let mut chunks = chunks
        .map_err(|status| agent.refused(&status))?
        .into_inner();
    let mut written = Written::default();
    while let Some(chunk) = chunks
        .message()
        .await
        .map_err(|status| agent.refused(&status))?
    {
        if !chunk.unreadable.is_empty() {
            written.unreadable += 1;
            // With standard error closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "warning: left out: {}", chunk.unreadable);
            continue;
        }
        written.captures += u64::from(!chunk.capture_id.is_empty());
        written.bytes += chunk.data.len() as u64;
        target.write(&chunk.data)?;
    }
    Ok(written)
}

/// Says what was written where the bytes themselves did not go.
fn report(written: &Written<'_>, format: Format) -> Result<(), CliError> {
    let line = match (format, written.file) {
        (Format::Jsonl, _) => serde_json::to_string(written).map_err(CliError::failed)?,
        (Format::Text, None) => format!("{} captures, {} bytes", written.captures, written.bytes),
        (Format::Text, Some(path)) => format!(
            "{} captures, {} bytes in {}",
            written.captures,
            written.bytes,
            path.display()
        ),
    };
    if written.file.is_some() {
        let mut out = Out::stdout();
        out.line(&line)?;
        out.flush()?;
    } else {
        // With standard error closed there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    Ok(())
}
