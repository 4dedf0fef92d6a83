//! `hopscope captures`: the evidence that an agent keeps.

mod compare;
mod diff;
mod exchange;
mod pull;
mod sheet;
mod target;

use core::net::{IpAddr, SocketAddr};
use std::fmt::Write as _;
use std::time::Duration;

use clap::Subcommand;
use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use serde::{Serialize, Serializer};
use tonic::transport::Channel;
use tracing::warn;

use super::access::ClientFlags;
use super::client::{AGENT, Agent};
use super::output::{Format, Out};
use super::{CliError, clock, config, render, runtime};
use crate::model::{Timestamp, UpstreamPattern};
use crate::serve::{Filter, duration_to_proto, timestamp_from_proto, timestamp_to_proto};

/// Fits most ids of the catalogue.
const CAUSE_WIDTH: usize = 30;

/// An IPv4 address with a port.
const UPSTREAM_WIDTH: usize = 21;

/// Flags of `hopscope captures`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the captures that an agent holds.
    List(ListArgs),
    /// Fetch captures as pcapng, for Wireshark, tcpdump or `hopscope analyze`.
    Pull(pull::Args),
    /// Keep more healthy exchanges of an upstream, for a limited time.
    Boost(BoostArgs),
    /// Put a failing response of an upstream beside a healthy one.
    Diff(diff::Args),
}

/// Flags that say which agent is asked, and how.
#[derive(Debug, clap::Args)]
struct AgentFlags {
    /// Agent to ask [default: 127.0.0.1:7502].
    #[arg(long, value_name = "HOST:PORT")]
    agent: Option<String>,

    #[command(flatten)]
    client: ClientFlags,
}

impl AgentFlags {
    fn agent(self, file: &mut config::Client) -> Result<Agent, CliError> {
        let client = self.client.or(file.client());
        let agent = self.agent.or_else(|| file.agent.take());
        let agent = agent.as_deref().unwrap_or(AGENT);
        Ok(Agent::new(client.endpoint(agent)?))
    }
}

/// Flags that choose captures.
#[derive(Debug, Default, clap::Args)]
struct FilterFlags {
    /// Only evidence of this cause, or family such as `http1.*`; repeat for more.
    #[arg(long = "cause", value_name = "ID")]
    causes: Vec<String>,

    /// Only this upstream: ADDRESS, CIDR, either with :PORT, or :PORT alone; repeat for more.
    #[arg(long = "upstream", value_name = "UPSTREAM")]
    upstreams: Vec<String>,

    /// Nothing older: an age such as `5m`, or a date such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
}

impl FilterFlags {
    fn is_empty(&self) -> bool {
        self.causes.is_empty() && self.upstreams.is_empty() && self.since.is_none()
    }

    /// The filter as a message, checked here already: the error comes before any connection.
    fn filter(self) -> Result<proto::CaptureFilter, CliError> {
        let now = clock::now();
        let since = self.since.map(|since| clock::parse_since(&since, now));
        let since = since.transpose().map_err(CliError::usage)?;
        Filter::parse(&self.causes, &self.upstreams, since).map_err(CliError::usage)?;
        Ok(proto::CaptureFilter {
            causes: self.causes,
            upstreams: self.upstreams,
            since: since.map(timestamp_to_proto),
            outcome: proto::capture_filter::Outcome::Unspecified.into(),
        })
    }
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    agent: AgentFlags,

    #[command(flatten)]
    filter: FilterFlags,

    /// At most so many, the newest.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,

    /// Text for people or JSON lines for programs [default: text].
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Debug, clap::Args)]
struct BoostArgs {
    /// ADDRESS, CIDR, either with :PORT, or :PORT alone.
    #[arg(value_name = "UPSTREAM")]
    upstream: String,

    /// For how long, at most an hour.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Keep one of so many exchanges.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    one_in: u32,

    #[command(flatten)]
    agent: AgentFlags,

    /// Text for people or JSON lines for programs [default: text].
    #[arg(long, value_enum)]
    format: Option<Format>,
}

pub(super) fn run(args: Args, file: config::Client) -> Result<(), CliError> {
    match args.command {
        Command::List(args) => list(args, file),
        Command::Pull(args) => pull::run(args, file),
        Command::Boost(args) => boost(args, file),
        Command::Diff(args) => diff::run(args, file),
    }
}

/// A capture in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Capture {
    id: String,
    time: Timestamp,
    /// Of the event that it is evidence of; none for a healthy exchange.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    #[serde(serialize_with = "as_address_and_port")]
    upstream: SocketAddr,
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u32>,
    packets: u32,
    bytes: u64,
}

/// As events have it.
fn as_address_and_port<S: Serializer>(
    upstream: &SocketAddr,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Upstream {
        address: IpAddr,
        port: u16,
    }
    let (address, port) = (upstream.ip(), upstream.port());
    Upstream { address, port }.serialize(serializer)
}

impl Capture {
    fn read(info: proto::CaptureInfo, agent: &Agent) -> Result<Self, CliError> {
        let bad = |field: &str| {
            agent.failed(&format!(
                "listed a capture that cannot be read, by its field `{field}`: is it another version?"
            ))
        };
        let upstream = info.upstream.ok_or_else(|| bad("upstream"))?;
        let address = upstream.address.parse().map_err(|_| bad("upstream"))?;
        let port = u16::try_from(upstream.port).map_err(|_| bad("upstream"))?;
        let time = info.time.ok_or_else(|| bad("time"))?;
        Ok(Self {
            id: info.id,
            time: timestamp_from_proto(time, "time").map_err(|_| bad("time"))?,
            cause: Some(info.cause).filter(|cause| !cause.is_empty()),
            event_id: Some(info.event_id).filter(|id| !id.is_empty()),
            upstream: SocketAddr::new(address, port),
            node: info.node,
            method: info.method,
            path: info.path,
            status: info.status,
            packets: info.packets,
            bytes: info.bytes,
        })
    }

    fn text(&self) -> String {
        let cause = self.cause.as_deref().unwrap_or("-");
        let mut text = format!(
            "{}  {}  {:CAUSE_WIDTH$}  {:UPSTREAM_WIDTH$}  {:>4} packets  {:>8} bytes",
            render::printable(&self.id),
            render::time(self.time),
            render::printable(cause),
            self.upstream,
            self.packets,
            self.bytes,
        );
        if let Some(method) = &self.method {
            let path = self.path.as_deref().unwrap_or_default();
            text += "  ";
            text += &render::printable(&format!("{method} {path}"));
        }
        if let Some(status) = self.status {
            // Writing to a string cannot fail.
            let _ = write!(text, " -> {status}");
        }
        text
    }
}

/// The captures that match, oldest first, and how many were left out.
async fn captures(
    client: &mut HopAgentClient<Channel>,
    agent: &Agent,
    filter: proto::CaptureFilter,
    limit: u32,
) -> Result<(Vec<Capture>, u32), CliError> {
    let request = proto::ListCapturesRequest {
        filter: Some(filter),
        limit,
    };
    let response = client.list_captures(request).await;
    let response = response
        .map_err(|status| agent.refused(&status))?
        .into_inner();
    let captures = response.captures.into_iter();
    let captures = captures.map(|info| Capture::read(info, agent));
    Ok((captures.collect::<Result<_, _>>()?, response.omitted))
}

fn list(args: ListArgs, mut file: config::Client) -> Result<(), CliError> {
    let format = args.format.or(file.format).unwrap_or_default();
    let agent = args.agent.agent(&mut file)?;
    let filter = args.filter.filter()?;
    let held = async {
        let mut client = HopAgentClient::new(agent.connect().await?);
        captures(&mut client, &agent, filter, args.limit.unwrap_or(0)).await
    };
    let (held, omitted) = runtime::client()?.block_on(held)?;
    if omitted > 0 && args.limit.is_none() {
        warn!("{omitted} older captures did not fit into the answer; narrow it with the filters");
    }
    let mut out = Out::stdout();
    for capture in held {
        match format {
            Format::Text => out.line(&capture.text())?,
            Format::Jsonl => out.json(&capture)?,
        }
    }
    Ok(out.flush()?)
}

/// What a boost came to.
#[derive(Debug, Serialize)]
struct Boosted {
    upstream: String,
    one_in: u32,
    until: Timestamp,
}

fn boost(args: BoostArgs, mut file: config::Client) -> Result<(), CliError> {
    let format = args.format.or(file.format).unwrap_or_default();
    // Checked here too: the error comes before any connection.
    let _: UpstreamPattern = args.upstream.parse().map_err(CliError::usage)?;
    let agent = args.agent.agent(&mut file)?;
    let request = proto::BoostSamplingRequest {
        upstream: args.upstream.clone(),
        one_in: args.one_in,
        duration: Some(duration_to_proto(args.duration)),
    };
    let boosted = async {
        let mut client = HopAgentClient::new(agent.connect().await?);
        let response = client.boost_sampling(request).await;
        response.map_err(|status| agent.refused(&status))
    };
    let boosted = runtime::client()?.block_on(boosted)?.into_inner();
    let until = boosted.until.unwrap_or_default();
    let boosted = Boosted {
        upstream: args.upstream,
        one_in: boosted.one_in,
        until: timestamp_from_proto(until, "until").map_err(|error| {
            agent.failed(&format!("gave an answer that cannot be read: {error}"))
        })?,
    };
    let mut out = Out::stdout();
    match format {
        Format::Text => {
            let share = match boosted.one_in {
                1 => "every exchange".to_owned(),
                n => format!("one in {n} exchanges"),
            };
            let until = render::time(boosted.until);
            out.line(&format!(
                "{share} with {} is kept until {until}",
                boosted.upstream
            ))?;
        }
        Format::Jsonl => out.json(&boosted)?,
    }
    Ok(out.flush()?)
}
