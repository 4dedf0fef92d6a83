//! `hopscope events`: what an agent has found.

use std::collections::HashSet;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use tonic::transport::Channel;
use tracing::warn;

use super::access::ClientFlags;
use super::client::{AGENT, Agent};
use super::output::{Format, Out};
use super::{CliError, clock, config, runtime};
use crate::model::HopEvent;
use crate::serve::{Filter, from_proto, timestamp_to_proto};

/// Flags of `hopscope events`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Agent to ask [default: 127.0.0.1:7502].
    #[arg(long, value_name = "HOST:PORT")]
    agent: Option<String>,

    /// Go on with events as they are decided.
    #[arg(long, short)]
    follow: bool,

    /// Only this cause, or family such as `tcp.*`; repeat for more.
    #[arg(long = "cause", value_name = "ID")]
    causes: Vec<String>,

    /// Only this upstream: ADDRESS, CIDR, either with :PORT, or :PORT alone; repeat for more.
    #[arg(long = "upstream", value_name = "UPSTREAM")]
    upstreams: Vec<String>,

    /// Nothing older: an age such as `5m`, or a date such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,

    /// Only answers of a gateway to its client that nothing explains for sure: of several failures that fit
    /// alike, or with none and rivals.
    #[arg(long)]
    unexplained: bool,

    /// At most so many of the events that the agent holds, the newest. With --follow, 0 shows new
    /// ones only.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,

    /// Text for people or JSON lines for programs [default: text].
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    client: ClientFlags,
}

pub(super) fn run(args: Args, mut file: config::Client) -> Result<(), CliError> {
    let client = args.client.or(file.client());
    let agent = args.agent.or(file.agent);
    let agent = Agent::new(client.endpoint(agent.as_deref().unwrap_or(AGENT))?);
    let format = args.format.or(file.format).unwrap_or_default();
    let now = clock::now();
    let since = args.since.map(|since| clock::parse_since(&since, now));
    let since = since.transpose().map_err(CliError::usage)?;
    // Checked here too: the error comes before any connection, and sooner.
    Filter::parse(&args.causes, &args.upstreams, since).map_err(CliError::usage)?;
    let filter = proto::EventFilter {
        causes: args.causes,
        upstreams: args.upstreams,
        since: since.map(timestamp_to_proto),
        unexplained: args.unexplained,
    };
    let show = Show {
        agent,
        filter,
        limit: args.limit,
        follow: args.follow,
        format,
    };
    runtime::client()?.block_on(show.run())
}

struct Show {
    agent: Agent,
    filter: proto::EventFilter,
    limit: Option<u32>,
    follow: bool,
    format: Format,
}

impl Show {
    async fn run(self) -> Result<(), CliError> {
        let mut out = Out::stdout();
        let channel = self.agent.connect().await?;
        let mut client = HopAgentClient::new(channel);
        if !self.follow {
            self.recent(&mut client, &mut out).await?;
            return Ok(());
        }
        // Subscribed before the recent ones are asked for, so that none falls between.
        let request = proto::SubscribeRequest {
            filter: Some(self.filter.clone()),
        };
        let stream = client.subscribe(request).await;
        let mut stream = stream
            .map_err(|status| self.agent.refused(&status))?
            .into_inner();
        let mut shown = self.recent(&mut client, &mut out).await?;
        while let Some(event) = stream
            .message()
            .await
            .map_err(|status| self.agent.refused(&status))?
        {
            if shown.remove(&event.id) {
                continue;
            }
            self.print(event, &mut out)?;
            out.flush()?;
        }
        Err(self.agent.failed("ended the stream"))
    }

    /// Prints the events that the agent holds and returns their ids.
    async fn recent(
        &self,
        client: &mut HopAgentClient<Channel>,
        out: &mut Out,
    ) -> Result<HashSet<String>, CliError> {
        let mut shown = HashSet::new();
        if self.limit == Some(0) {
            return Ok(shown);
        }
        let request = proto::QueryRequest {
            filter: Some(self.filter.clone()),
            limit: self.limit.unwrap_or(0),
        };
        let response = client
            .query(request)
            .await
            .map_err(|status| self.agent.refused(&status))?;
        let response = response.into_inner();
        if response.omitted > 0 && self.limit.is_none() {
            warn!(
                "{} older events did not fit into the answer; narrow it with --cause or --upstream",
                response.omitted
            );
        }
        for event in response.events {
            shown.insert(event.id.clone());
            self.print(event, out)?;
        }
        out.flush()?;
        Ok(shown)
    }

    fn print(&self, event: proto::HopEvent, out: &mut Out) -> Result<(), CliError> {
        let event: HopEvent = from_proto(event).map_err(|error| {
            self.agent
                .failed(&format!("sent an event that cannot be read: {error}"))
        })?;
        Ok(out.event(&event, self.format)?)
    }
}
