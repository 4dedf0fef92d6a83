//! `hopscope captures diff`: a failing response beside a healthy one of the same upstream.

use std::collections::HashMap;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::capture_filter::Outcome;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;
use tonic::transport::Channel;

use super::super::client::Agent;
use super::super::output::{Format, Out};
use super::super::{CliError, config, render, runtime};
use super::compare::compare;
use super::exchange::{self, Exchange};
use super::sheet::{self, Sheet, Title};
use super::{AgentFlags, Capture, captures};
use crate::http1::RequestHead;

/// The newest captures of each kind that are looked into.
const LOOKED_INTO: u32 = 32;

/// Flags of `hopscope captures diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ADDRESS, CIDR, either with :PORT, or :PORT alone.
    #[arg(value_name = "UPSTREAM")]
    upstream: String,

    /// Only failures with this cause, or family such as `http1.*`; repeat for more.
    #[arg(long = "cause", value_name = "ID")]
    causes: Vec<String>,

    /// This failing capture instead of the newest.
    #[arg(long, value_name = "ID", conflicts_with = "causes")]
    failing: Option<String>,

    /// This healthy capture instead of the one with the most similar request.
    #[arg(long, value_name = "ID")]
    healthy: Option<String>,

    #[command(flatten)]
    agent: AgentFlags,

    /// Text for people or JSON lines for programs [default: text].
    #[arg(long, value_enum)]
    format: Option<Format>,
}

/// A capture with what is in it.
#[derive(Debug)]
struct Read {
    capture: Capture,
    exchange: Exchange,
}

impl Read {
    fn title(&self) -> Title {
        let request = self.exchange.request.as_ref().map(|request| {
            let method = request.method().unwrap_or_default();
            let host = request.host().unwrap_or_default();
            let path = request.path().unwrap_or_default();
            let text = format!("{method} {host}{path}");
            render::printable(&text).into_owned()
        });
        Title {
            capture_id: render::printable(&self.capture.id).into_owned(),
            time: render::time(self.capture.time),
            cause: self
                .capture
                .cause
                .as_deref()
                .map(|cause| render::printable(cause).into_owned()),
            request,
        }
    }
}

pub(super) fn run(args: Args, mut file: config::Client) -> Result<(), CliError> {
    let format = args.format.or(file.format).unwrap_or_default();
    let filter = super::FilterFlags {
        causes: args.causes,
        upstreams: vec![args.upstream.clone()],
        since: None,
    };
    let agent = args.agent.agent(&mut file)?;
    let wanted = Wanted {
        agent: &agent,
        upstream: &args.upstream,
        filter: filter.filter()?,
    };
    let (failing, healthy) = runtime::client()?.block_on(async {
        let mut client = HopAgentClient::new(agent.connect().await?);
        let failing = wanted.failing(&mut client, args.failing.as_deref()).await?;
        let healthy = wanted.healthy(&mut client, &failing, args.healthy.as_deref());
        let healthy = healthy.await?;
        Ok::<_, CliError>((failing, healthy))
    })?;
    let comparison = compare(&failing.exchange, &healthy.exchange);
    let (upstream, titles) = (failing.capture.upstream.to_string(), [failing, healthy]);
    let titles = titles.map(|read| read.title());
    let titles = titles.each_ref();
    let mut out = Out::stdout();
    match format {
        Format::Text => {
            let colour = out.colour();
            out.line(&sheet::text(&upstream, titles, &comparison, colour))?;
        }
        Format::Jsonl => out.json(&Sheet::new(&upstream, titles, &comparison))?,
    }
    Ok(out.flush()?)
}

struct Wanted<'a> {
    agent: &'a Agent,
    upstream: &'a str,
    filter: proto::CaptureFilter,
}

impl Wanted<'_> {
    /// The failing capture: `id`, or the newest that holds a byte of a response.
    async fn failing(
        &self,
        client: &mut HopAgentClient<Channel>,
        id: Option<&str>,
    ) -> Result<Read, CliError> {
        let filter = proto::CaptureFilter {
            outcome: Outcome::Failed.into(),
            ..self.filter.clone()
        };
        let upstream = self.upstream;
        let held = self.held(client, filter, id).await?;
        if held.is_empty() {
            return Err(CliError::failed(match id {
                Some(id) => format!(
                    "no failing capture of {upstream} has the id {}: `hopscope captures list \
                     --upstream {upstream}` shows all",
                    render::printable(id)
                ),
                None => format!(
                    "there is no capture of a failure of {upstream} yet: wait for one; `hopscope \
                     captures list` shows what there is"
                ),
            }));
        }
        let count = held.len();
        let read = self.read(client, held).await?;
        let answered = read.into_iter().rev().find(Self::answered);
        answered.ok_or_else(|| {
            CliError::failed(format!(
                "the newest captures of failures of {upstream} ({count}) hold no response byte, so \
                 there is nothing to compare: `hopscope events --upstream {upstream}` has their \
                 causes"
            ))
        })
    }

    fn answered(read: &Read) -> bool {
        !read.exchange.response.is_empty()
    }

    /// The healthy capture: `id`, or the newest with the most similar request.
    async fn healthy(
        &self,
        client: &mut HopAgentClient<Channel>,
        failing: &Read,
        id: Option<&str>,
    ) -> Result<Read, CliError> {
        let upstream = failing.capture.upstream;
        let filter = proto::CaptureFilter {
            causes: Vec::new(),
            upstreams: vec![upstream.to_string()],
            since: None,
            outcome: Outcome::Healthy.into(),
        };
        let held = self.held(client, filter, id).await?;
        let read = self.read(client, held).await?;
        let best = read
            .into_iter()
            .filter(Self::answered)
            .max_by_key(|read| similarity(&failing.exchange, &read.exchange));
        best.ok_or_else(|| {
            CliError::failed(match id {
                Some(id) => format!(
                    "no healthy capture of {upstream} has the id {}: `hopscope captures list \
                     --upstream {upstream}` shows all",
                    render::printable(id)
                ),
                None => format!(
                    "there is no capture of a healthy response of {upstream} yet: `hopscope captures \
                     boost {upstream}` has some kept as soon as there are requests"
                ),
            })
        })
    }

    /// The newest captures that match, oldest first, or the one with `id`.
    async fn held(
        &self,
        client: &mut HopAgentClient<Channel>,
        filter: proto::CaptureFilter,
        id: Option<&str>,
    ) -> Result<Vec<Capture>, CliError> {
        let limit = if id.is_some() { 0 } else { LOOKED_INTO };
        let (mut held, _) = captures(client, self.agent, filter, limit).await?;
        if let Some(id) = id {
            held.retain(|capture| capture.id == id);
        }
        Ok(held)
    }

    /// Pulls captures and reads what is in them.
    async fn read(
        &self,
        client: &mut HopAgentClient<Channel>,
        held: Vec<Capture>,
    ) -> Result<Vec<Read>, CliError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let request = proto::PullCaptureRequest {
            ids: held.iter().map(|capture| capture.id.clone()).collect(),
            filter: None,
        };
        let refused = |status| self.agent.refused(&status);
        let chunks = client.pull_capture(request).await.map_err(refused)?;
        let mut chunks = chunks.into_inner();
        let mut files: HashMap<String, Vec<u8>> = HashMap::new();
        let mut current = String::new();
        while let Some(chunk) = chunks.message().await.map_err(refused)? {
            if !chunk.capture_id.is_empty() {
                current = chunk.capture_id;
            }
            files.entry(current.clone()).or_default().extend(chunk.data);
        }
        let read = held.into_iter().map(|capture| {
            let file = files.remove(&capture.id).unwrap_or_default();
            let exchange = exchange::read(&file, capture.upstream).map_err(|error| {
                let id = render::printable(&capture.id);
                self.agent.failed(&format!(
                    "sent the capture {id}, which cannot be read: {error}"
                ))
            })?;
            Ok(Read { capture, exchange })
        });
        read.collect()
    }
}

/// How alike two requests are: the path says most, then the method, then the host.
fn similarity(a: &Exchange, b: &Exchange) -> (bool, bool, bool) {
    let both = a.request.as_ref().zip(b.request.as_ref());
    let same = |what: fn(&RequestHead, &RequestHead) -> bool| both.is_some_and(|(a, b)| what(a, b));
    (
        same(|a, b| a.path() == b.path()),
        same(|a, b| a.method() == b.method()),
        same(|a, b| a.host() == b.host()),
    )
}
