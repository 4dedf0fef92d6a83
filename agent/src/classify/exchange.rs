//! Why an exchange on an established connection failed.

use std::time::Duration;

use super::{Verdict, broken_rule, fact, human};
use crate::http1::{Finding, FindingKind, Stage};
use crate::model::{Actor, Cause, Evidence, EvidenceSource, Phase, Proof, ResetReason};

/// A fresh connection that the upstream closes later than this was not closed "on accept".
const ON_ACCEPT: Duration = Duration::from_secs(1);

/// A reset this soon after a request on a reused connection may answer a request that crossed the
/// upstream's close: round trips are shorter, and few handlers are.
const CROSSING: Duration = Duration::from_millis(50);

/// What ended an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// The response is complete.
    Complete,
    /// The upstream sent a FIN first.
    UpstreamFin,
    /// The upstream sent a RST first.
    UpstreamRst,
    /// The gateway closed first.
    Gateway,
    /// Nothing did, but a broken rule was found a while ago.
    Settled,
}

/// How much of a request the upstream's kernel acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acked {
    /// Not a byte.
    Nothing,
    /// Some of it.
    Part,
    /// All of it.
    All,
}

/// What is known of an exchange when it ended.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ExchangeFacts<'a> {
    /// What ended it.
    pub ended: Ended,
    /// Whether it is the first exchange of a connection whose handshake was seen.
    pub fresh: bool,
    /// Silence on the connection before it, for a reused one.
    pub idle: Option<Duration>,
    /// Whether the request is complete.
    pub request_complete: bool,
    /// Whether the upstream had closed before the request began.
    pub closed_before: bool,
    /// How much of the request was acknowledged by the end.
    pub acked: Acked,
    /// Request bytes.
    pub request_bytes: u64,
    /// Where in the response it ended.
    pub stage: Stage,
    /// Status of the response.
    pub status: Option<u16>,
    /// Body bytes that were promised and did not come.
    pub missing: Option<u64>,
    /// Response bytes.
    pub response_bytes: u64,
    /// Whether the response may be silent at will.
    pub event_stream: bool,
    /// Broken rules, in the order of their bytes.
    pub findings: &'a [Finding],
    /// The incomplete head.
    pub partial_head: &'a [u8],
    /// Name of the gateway's process.
    pub comm: Option<&'a str>,
    /// Time since the last request byte, or since the last response byte where there is one.
    pub silence: Duration,
    /// Time from the end of the handshake to the end of the exchange.
    pub since_established: Option<Duration>,
    /// Why the upstream's kernel reset, where it is on this host.
    pub reset_reason: Option<&'a ResetReason>,
    /// Whether the gateway's window was closed: it did not take more itself.
    pub gateway_window_closed: bool,
    /// Whether the upstream's window was closed.
    pub upstream_window_closed: bool,
    /// Request segments sent again.
    pub retransmits: u32,
    /// A gateway that gives up sooner is taken to have lost its client.
    pub patience: Duration,
    /// Time to live of the upstream's last segment.
    pub ttl: u8,
    /// Whether the response began before the upstream could have had the request: what was taken for
    /// it is left over from an earlier exchange.
    pub unasked: bool,
    /// Whether the request asks for an upgrade to a web socket.
    pub web_socket: bool,
}

/// The cause of a failed exchange; none for a healthy one, and none where the facts do not reach.
pub fn exchange(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    if facts.unasked && facts.ended != Ended::Settled {
        return Some(excess(facts));
    }
    if let Some(finding) = decisive(facts) {
        let phase = response_phase(facts.stage);
        let verdict = broken_rule(finding, facts.findings, phase);
        return Some(match finding.kind {
            FindingKind::ContentCoding(_) => undecodable(verdict),
            kind if kind.is_limit() => limit(verdict, "closed with the response unfinished"),
            _ => verdict,
        });
    }
    match (facts.ended, facts.stage) {
        (_, Stage::Lost | Stage::Tunnel) | (Ended::Settled, _) => None,
        (Ended::Complete, _) => own_error(facts).or_else(|| upgrade_refused(facts)),
        (Ended::UpstreamFin, Stage::Idle) => Some(closed_silent(facts)),
        (Ended::UpstreamRst, Stage::Idle) => Some(reset_silent(facts)),
        (Ended::Gateway, Stage::Idle) => gave_up_waiting(facts),
        (Ended::UpstreamFin | Ended::UpstreamRst, _) => cut(facts),
        (Ended::Gateway, _) => gave_up_reading(facts),
    }
}

/// The cause of a failure that only shows when the connection is reset after a complete response:
/// `rst` tells whose reset it was.
pub fn afterwards(facts: &ExchangeFacts<'_>, rst: Actor) -> Option<Verdict> {
    match rst {
        Actor::Upstream if !facts.request_complete => Some(early(facts)),
        Actor::Upstream => None,
        Actor::Gateway => {
            let finding = facts
                .findings
                .iter()
                .find(|found| found.kind.is_limit() && found.kind.fails_behind(facts.comm))?;
            let verdict = broken_rule(finding, facts.findings, Phase::ResponseHead);
            Some(limit(
                verdict,
                "reset the connection with the response complete",
            ))
        }
    }
}

/// The broken rule that made this gateway fail, if any of them did.
fn decisive<'a>(facts: &ExchangeFacts<'a>) -> Option<&'a Finding> {
    // What an interim response does to a gateway shows with the final one.
    let interim = facts.stage == Stage::AfterInterim && facts.ended != Ended::Complete;
    facts.findings.iter().find(|finding| {
        if matches!(finding.kind, FindingKind::ContentCoding(_)) {
            return refused_body(facts);
        }
        let told = match finding.kind.cause() {
            Cause::Http1InterimMishandled => !interim,
            _ => !finding.kind.is_limit() || facts.ended == Ended::Gateway,
        };
        told && finding.kind.fails_behind(facts.comm)
    })
}

/// Whether the gateway closed in the middle of a body that kept coming and that it could take: it was
/// neither finished nor out of patience.
fn refused_body(facts: &ExchangeFacts<'_>) -> bool {
    let in_body = matches!(
        facts.stage,
        Stage::SizedBody | Stage::ChunkedBody | Stage::BodyUntilClose
    );
    facts.ended == Ended::Gateway
        && in_body
        && facts.silence < facts.patience
        && !facts.gateway_window_closed
}

/// Gateways decode only where they are told to, so it takes what the gateway did to tell. What they do
/// by default says nothing about this one.
fn undecodable(mut verdict: Verdict) -> Verdict {
    verdict.proof = Proof::Inferred;
    verdict.rejected_by.clear();
    verdict.tolerated_by.clear();
    let text = "the gateway closed with the response unfinished, as one does that decodes bodies";
    verdict.with([packet("gateway_closed", text.to_owned())])
}

/// A default limit may have been raised, so it takes what the gateway did to tell.
fn limit(mut verdict: Verdict, what: &str) -> Verdict {
    verdict.proof = Proof::Inferred;
    let text = format!("the gateway {what}, as one does whose limit is at its default");
    verdict.with([packet("gateway_closed", text)])
}

/// The bytes were on the wire before the request was.
fn excess(facts: &ExchangeFacts<'_>) -> Verdict {
    let text = format!(
        "{} bytes of the upstream that belong to no request came before this one reached it, and stand where its response should",
        facts.response_bytes
    );
    let decisive = packet("unasked_bytes", text);
    Verdict::new(
        Cause::Http1ExcessBytes,
        Proof::Proven,
        Phase::ResponseHead,
        decisive,
    )
    .with(idle(facts))
}

/// The upstream answered and reset the connection while the request was on its way.
fn early(facts: &ExchangeFacts<'_>) -> Verdict {
    let status = facts
        .status
        .map_or_else(String::new, |status| format!(" {status}"));
    let text = format!(
        "the upstream answered{status} and sent RST before the request was complete ({} bytes of it seen)",
        facts.request_bytes
    );
    let decisive = packet("reset_after_early_response", text);
    Verdict::new(
        Cause::Http1EarlyResponse,
        Proof::Proven,
        Phase::Request,
        decisive,
    )
    .with(reason(facts))
}

/// A web socket was asked for, and the upstream answered as if it had not been.
fn upgrade_refused(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    // Other statuses say why: who asks is not let in, or is sent elsewhere.
    let status = facts
        .status
        .filter(|status| matches!(status, 200..=299 | 400 | 426))?;
    if !facts.web_socket {
        return None;
    }
    let text =
        format!("the request asks for an upgrade to websocket, the upstream answered {status}");
    let decisive = packet("upgrade_refused", text);
    Some(Verdict::new(
        Cause::Http1UpgradeFailed,
        Proof::Proven,
        Phase::ResponseHead,
        decisive,
    ))
}

/// The upstream closed a fresh connection before the gateway sent a byte, and the gateway then closed
/// without sending one.
pub fn closed_before_request(rst: bool, since_established: Duration, ttl: u8) -> Option<Verdict> {
    if since_established > ON_ACCEPT {
        return None;
    }
    let text = format!(
        "{} from the upstream {} after the handshake, before any request byte, ttl {ttl}",
        if rst { "RST" } else { "FIN" },
        human(since_established)
    );
    let decisive = packet("closed_after_handshake", text);
    Some(Verdict::new(
        Cause::TcpClosedOnAccept,
        Proof::Inferred,
        Phase::Request,
        decisive,
    ))
}

fn packet(what: &'static str, text: impl Into<String>) -> Evidence {
    fact(EvidenceSource::Packet, what, text)
}

const fn response_phase(stage: Stage) -> Phase {
    match stage {
        Stage::SizedBody | Stage::ChunkedBody | Stage::BodyUntilClose => Phase::ResponseBody,
        _ => Phase::ResponseHead,
    }
}

/// A complete response is a failure only by its own status.
fn own_error(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let status = facts.status.filter(|status| (500..600).contains(status))?;
    let text = format!("the upstream itself answered {status}, in a complete and valid response");
    let decisive = packet("upstream_status", text);
    Some(Verdict::new(
        Cause::UpstreamOwnError,
        Proof::Proven,
        Phase::ResponseHead,
        decisive,
    ))
}

/// What the kernel says about a reset, where it does.
fn reason(facts: &ExchangeFacts<'_>) -> Option<Evidence> {
    facts.reset_reason.map(|reason| {
        fact(
            EvidenceSource::Kernel,
            "reset_reason",
            format!("the upstream's kernel gave the reason {reason}"),
        )
    })
}

fn idle(facts: &ExchangeFacts<'_>) -> Option<Evidence> {
    facts.idle.map(|idle| {
        let text = format!(
            "the connection had been idle for {} before the request",
            human(idle)
        );
        fact(EvidenceSource::Timer, "idle_before_request", text)
    })
}

/// FIN, and not a byte of response.
fn closed_silent(facts: &ExchangeFacts<'_>) -> Verdict {
    let unread = facts.closed_before || facts.acked == Acked::Nothing;
    match (unread, facts.fresh) {
        (true, true) => closed_on_accept(facts, "FIN"),
        (true, false) => stale_reuse(facts, "FIN"),
        (false, fresh) => {
            let text = format!(
                "the upstream acknowledged the request ({} bytes) and sent FIN {} after it, without a byte of response",
                facts.request_bytes,
                human(facts.silence)
            );
            // On a connection used before, the upstream may have meant to close it anyway.
            let proof = if fresh && facts.acked == Acked::All {
                Proof::Proven
            } else {
                Proof::Inferred
            };
            let decisive = packet("fin_after_request", text);
            Verdict::new(
                Cause::TcpClosedNoResponse,
                proof,
                Phase::ResponseHead,
                decisive,
            )
            .with(idle(facts))
        }
    }
}

/// RST, and not a byte of response.
fn reset_silent(facts: &ExchangeFacts<'_>) -> Verdict {
    // A kernel answers data for a socket that was closed already with a reset: the close came first.
    let closed_first = facts.closed_before
        || facts.acked == Acked::Nothing
        || facts.reset_reason == Some(&ResetReason::NoSocket);
    if closed_first {
        return if facts.fresh {
            closed_on_accept(facts, "RST")
        } else {
            stale_reuse(facts, "RST")
        };
    }
    let unread = facts.reset_reason == Some(&ResetReason::AbortOnClose);
    if unread
        && facts.fresh
        && facts
            .since_established
            .is_some_and(|since| since <= ON_ACCEPT)
    {
        return closed_on_accept(facts, "RST");
    }
    let text = format!(
        "the upstream acknowledged the request ({} bytes) and sent RST {} after it, without a byte of response, ttl {}",
        facts.request_bytes,
        human(facts.silence),
        facts.ttl
    );
    let decisive = packet("reset_after_request", text);
    let verdict = Verdict::new(
        Cause::TcpResetNoResponse,
        Proof::Proven,
        Phase::ResponseHead,
        decisive,
    )
    .with(reason(facts))
    .with(idle(facts));
    let deliberate = facts.reset_reason == Some(&ResetReason::AbortOnLinger);
    if !facts.fresh && !deliberate && facts.silence <= CROSSING {
        return verdict.against(
            &[Cause::PoolStaleReuse],
            "whether the upstream's close was under way when the request arrived: its log, or its kernel's reset reason",
        );
    }
    verdict
}

fn closed_on_accept(facts: &ExchangeFacts<'_>, what: &str) -> Verdict {
    let how = if facts.closed_before {
        "before the request was sent"
    } else if facts.acked == Acked::Nothing {
        "without acknowledging a byte of the request"
    } else {
        "with the request unread"
    };
    let since = facts.since_established.map_or_else(String::new, |since| {
        format!(", {} after the handshake", human(since))
    });
    let decisive = packet(
        "closed_unread",
        format!("{what} from the upstream on a fresh connection {how}{since}"),
    );
    // A FIN says that the process closed; a RST alone may also come from something in between.
    let firm = facts.closed_before || what == "FIN" || facts.reset_reason.is_some();
    let proof = if firm { Proof::Proven } else { Proof::Inferred };
    Verdict::new(Cause::TcpClosedOnAccept, proof, Phase::Request, decisive).with(reason(facts))
}

fn stale_reuse(facts: &ExchangeFacts<'_>, what: &str) -> Verdict {
    let how = if facts.closed_before {
        "the upstream had closed before the request was sent"
    } else {
        "the upstream's close crossed the request: it acknowledged none of it"
    };
    let decisive = packet(
        "closed_while_idle",
        format!("{what} on a reused connection: {how}"),
    );
    let proof = if facts.closed_before || what == "FIN" {
        Proof::Proven
    } else {
        Proof::Inferred
    };
    Verdict::new(Cause::PoolStaleReuse, proof, Phase::Request, decisive)
        .with(idle(facts))
        .with(reason(facts))
}

/// The upstream closed inside its response.
fn cut(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let rst = facts.ended == Ended::UpstreamRst;
    let answered = matches!(
        facts.stage,
        Stage::SizedBody | Stage::ChunkedBody | Stage::BodyUntilClose
    );
    if rst && answered && !facts.request_complete {
        return Some(early(facts));
    }
    let what = if rst { "RST" } else { "FIN" };
    let (cause, phase, text) = match facts.stage {
        Stage::Head => (
            Cause::Http1HeadTruncated,
            Phase::ResponseHead,
            format!(
                "{what} inside the response head, after {} bytes",
                facts.response_bytes
            ),
        ),
        Stage::AfterInterim => (
            Cause::Http1HeadTruncated,
            Phase::ResponseHead,
            format!("{what} after an interim response, before the final one"),
        ),
        Stage::SizedBody => (
            Cause::Http1BodyTruncated,
            Phase::ResponseBody,
            format!(
                "{what} with {} body bytes of Content-Length missing",
                facts.missing.unwrap_or(0)
            ),
        ),
        Stage::ChunkedBody => (
            Cause::Http1LastChunkMissing,
            Phase::ResponseBody,
            format!(
                "{what} before the last chunk, after {} response bytes",
                facts.response_bytes
            ),
        ),
        Stage::BodyUntilClose if rst => (
            Cause::Http1EofBodyReset,
            Phase::ResponseBody,
            format!(
                "RST at the end of a body that only a FIN delimits, after {} response bytes",
                facts.response_bytes
            ),
        ),
        _ => return None,
    };
    let mut decisive = packet("cut_short", text);
    decisive.offset = Some(facts.response_bytes);
    decisive.bytes = tail(facts.partial_head).to_vec();
    let verdict = Verdict::new(cause, Proof::Proven, phase, decisive);
    Some(verdict.with(if rst { reason(facts) } else { None }))
}

/// The last bytes of an incomplete head.
fn tail(head: &[u8]) -> &[u8] {
    head.get(head.len().saturating_sub(64)..).unwrap_or(head)
}

/// The gateway closed before a byte of response.
fn gave_up_waiting(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    if facts.silence < facts.patience {
        return None;
    }
    let waited = human(facts.silence);
    if facts.acked != Acked::All {
        if facts.upstream_window_closed {
            let text = format!(
                "the upstream's window stayed closed for {waited}, then the gateway closed"
            );
            let decisive = packet("zero_window", text);
            return Some(Verdict::new(
                Cause::TcpZeroWindow,
                Proof::Inferred,
                Phase::Request,
                decisive,
            ));
        }
        if facts.retransmits > 0 {
            let text = format!(
                "request bytes were sent {} times more and never acknowledged for {waited}",
                facts.retransmits
            );
            let decisive = packet("request_unacknowledged", text);
            return Some(Verdict::new(
                Cause::TcpRequestUnacknowledged,
                Proof::Inferred,
                Phase::Request,
                decisive,
            ));
        }
        return None;
    }
    if !facts.request_complete {
        // The gateway itself had not sent everything: its own client may be slow.
        return None;
    }
    let text = format!(
        "the upstream acknowledged the whole request and then sent nothing for {waited}, until the gateway closed"
    );
    let decisive = fact(EvidenceSource::Timer, "no_first_byte", text);
    Some(Verdict::new(
        Cause::UpstreamSlowFirstByte,
        Proof::Inferred,
        Phase::ResponseHead,
        decisive,
    ))
}

/// The gateway closed inside a response.
fn gave_up_reading(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    // While data flows, or while the gateway does not take it, or where silence is meant, the gateway
    // has a reason of its own to close, its client's departure first of all.
    if facts.silence < facts.patience || facts.gateway_window_closed || facts.event_stream {
        return None;
    }
    let (cause, phase, whence) = match facts.stage {
        Stage::Head | Stage::AfterInterim => (
            Cause::UpstreamStalledInHead,
            Phase::ResponseHead,
            "inside the response head",
        ),
        Stage::SizedBody | Stage::ChunkedBody | Stage::BodyUntilClose => (
            Cause::UpstreamStalledInBody,
            Phase::ResponseBody,
            "inside the response body",
        ),
        _ => return None,
    };
    let missing = facts.missing.map_or_else(String::new, |missing| {
        format!(", {missing} body bytes missing")
    });
    let text = format!(
        "the upstream stopped {whence} after {} bytes{missing}, silent for {} until the gateway closed",
        facts.response_bytes,
        human(facts.silence)
    );
    let mut decisive = fact(EvidenceSource::Timer, "stalled", text);
    decisive.offset = Some(facts.response_bytes);
    decisive.bytes = tail(facts.partial_head).to_vec();
    Some(Verdict::new(cause, Proof::Inferred, phase, decisive))
}
