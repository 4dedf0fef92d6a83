//! `hopscope explain --last`: why a client just got what it got, on one screen.

use std::fmt::Write as _;

use hopscope_proto::v1 as proto;
use hopscope_proto::v1::hop_agent_client::HopAgentClient;

use super::{field, width};
use crate::cli::access::ClientFlags;
use crate::cli::client::{AGENT, Agent};
use crate::cli::output::{Format, Out};
use crate::cli::render::{printable, time};
use crate::cli::{CliError, config, runtime};
use crate::model::{GatewayAnswer, HopEvent, Proof};
use crate::serve::from_proto;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    status: Option<u16>,
    path: Option<String>,
}

impl Wanted {
    /// From `[STATUS] [PATH]`, in either order.
    fn parse(words: &[String]) -> Result<Self, CliError> {
        let mut wanted = Self::default();
        for word in words {
            if word.starts_with('/') {
                wanted.path = Some(word.clone());
            } else {
                let status = word.parse().ok();
                wanted.status = Some(
                    status
                        .filter(|status| (200..=599).contains(status))
                        .ok_or_else(|| {
                            CliError::usage(format!(
                                "`{}` is neither a status such as 502 nor a path such as /shop",
                                printable(word)
                            ))
                        })?,
                );
            }
        }
        Ok(wanted)
    }

    fn matches(&self, answer: &GatewayAnswer) -> bool {
        let path = self.path.as_ref();
        (self.status.is_none() || self.status == answer.status)
            && path.is_none_or(|path| answer.path.as_ref() == Some(path))
    }
}

/// Asks the agent for the last answer of that kind and prints what is known of it.
pub(super) fn run(
    words: &[String],
    agent: Option<String>,
    client: ClientFlags,
    format: Format,
    mut file: config::Client,
) -> Result<(), CliError> {
    let wanted = Wanted::parse(words)?;
    let client = client.or(file.client());
    let agent = agent.or(file.agent);
    let agent = Agent::new(client.endpoint(agent.as_deref().unwrap_or(AGENT))?);
    let events = runtime::client()?.block_on(recent(&agent))?;
    let answered = events.iter().rev().find(|event| {
        let answer = event.gateway_answer.as_deref();
        answer.is_some_and(|answer| wanted.matches(answer))
    });
    let Some(event) = answered else {
        return Err(agent.failed(
            "holds no answer of that kind: no client got one since it started, or what clients get is not watched there (TLS, or see `hopscope check`)",
        ));
    };
    let mut out = Out::stdout();
    match format {
        Format::Text => out.line(&page(event, width()))?,
        Format::Jsonl => out.json(event)?,
    }
    Ok(out.flush()?)
}

async fn recent(agent: &Agent) -> Result<Vec<HopEvent>, CliError> {
    let mut client = HopAgentClient::new(agent.connect().await?);
    let response = client
        .query(proto::QueryRequest::default())
        .await
        .map_err(|status| agent.refused(&status))?;
    let events = response.into_inner().events.into_iter();
    events
        .map(|event| {
            from_proto(event).map_err(|error| {
                agent.failed(&format!("sent an event that cannot be read: {error}"))
            })
        })
        .collect()
}

/// One screen about one answer.
fn page(event: &HopEvent, width: usize) -> String {
    let info = event.cause.info();
    let mut text = String::new();
    if let Some(answer) = event.gateway_answer.as_deref() {
        field(&mut text, "client got", &got(answer), width);
    }
    let happened = format!("{}: {}", event.cause, info.definition);
    field(&mut text, "because", &happened, width);
    let upstream = printable(&event.upstream.target().to_string()).into_owned();
    field(&mut text, "upstream", &upstream, width);
    if let Some(gateway) = &event.gateway {
        let gateway = format!("{}[{}]", printable(&gateway.comm), gateway.pid);
        field(&mut text, "gateway", &gateway, width);
    }
    let attempts = event
        .gateway_answer
        .iter()
        .flat_map(|answer| &answer.attempts);
    for (number, attempt) in attempts.enumerate().filter(|_| more_than_one(event)) {
        let line = format!(
            "{} {}",
            printable(&attempt.upstream.target().to_string()),
            attempt.cause
        );
        field(&mut text, &format!("attempt {}", number + 1), &line, width);
    }
    field(&mut text, "proof", event.proof.as_str(), width);
    for piece in &event.evidence {
        let label = format!("  {}", piece.source.as_str());
        field(&mut text, &label, &printable(&piece.text), width);
    }
    if event.proof == Proof::Underdetermined {
        let rivals: Vec<_> = event.rivals.iter().map(|rival| rival.id()).collect();
        field(&mut text, "or else", &rivals.join(", "), width);
    }
    if let Some(splitter) = &event.splitter {
        field(&mut text, "to tell", &printable(splitter), width);
    }
    if let Some(doubt) = event.gateway_answer.as_deref().and_then(doubt) {
        field(&mut text, "certainty", &printable(&doubt), width);
    }
    field(&mut text, "fault side", info.fault_note, width);
    field(&mut text, "next step", info.next_step, width);
    field(&mut text, "wrong fix", info.wrong_fix, width);
    if let Some(capture) = &event.capture_id {
        field(&mut text, "capture", &printable(capture), width);
    }
    field(&mut text, "event", &printable(&event.id), width);
    text.truncate(text.trim_end().len());
    text
}

/// What keeps an explanation from being certain.
fn doubt(answer: &GatewayAnswer) -> Option<String> {
    let others = (!answer.candidates.is_empty()).then(|| {
        let candidates = answer.candidates.join(", ");
        format!("these events would explain it as well: {candidates}")
    });
    let contested = answer.contested.then(|| {
        "the attempts may have been made for another client, and the answer be the gateway's own"
            .to_owned()
    });
    let doubts: Vec<_> = others.into_iter().chain(contested).collect();
    (!doubts.is_empty()).then(|| format!("ambiguous: {}", doubts.join("; ")))
}

fn more_than_one(event: &HopEvent) -> bool {
    let answer = event.gateway_answer.as_deref();
    answer.is_some_and(|answer| answer.attempts.len() > 1)
}

/// What the client got.
fn got(answer: &GatewayAnswer) -> String {
    let mut text = match answer.status {
        Some(status) => status.to_string(),
        None => "a closed connection, no status".to_owned(),
    };
    let method = answer.method.as_deref().unwrap_or("?");
    let host = answer.host.as_deref().unwrap_or_default();
    let path = answer.path.as_deref().unwrap_or_default();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        " for {} {}{} after {:.1} ms, {}:{} at {}",
        printable(method),
        printable(host),
        printable(path),
        answer.latency_ms,
        answer.client.address,
        answer.client.port,
        time(answer.time)
    );
    if let Some(id) = &answer.request_id {
        let _ = write!(text, ", request id {}", printable(id));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_path_come_in_either_order() {
        let parse = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            Wanted::parse(&words).map(|wanted| (wanted.status, wanted.path))
        };
        let both = (Some(502), Some("/a".to_owned()));
        assert_eq!(parse(&["502", "/a"]).unwrap(), both);
        assert_eq!(parse(&["/a", "502"]).unwrap(), both);
        assert_eq!(parse(&[]).unwrap(), (None, None));
        for bad in ["50", "900", "a", ""] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
    }
}
