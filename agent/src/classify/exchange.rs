//! Why an exchange on an established connection failed.
//!
//! Broken rules come first, then how it ended: [`closed`] where the upstream closed, [`injected`] where
//! somebody else reset, [`gave_up`] where the gateway closed.

mod closed;
mod gave_up;
pub(super) mod injected;

use std::time::Duration;

use super::{Verdict, broken_rule, fact, human};
use crate::http1::{Finding, FindingKind, Stage};
use crate::model::{Actor, Cause, Evidence, EvidenceSource, Phase, Proof, ResetReason};
use crate::tcp::{Hole, Reset, Stuck, Windows};

pub use self::closed::closed_before_request;
pub use self::gave_up::{ALIKE, cut_off};
pub(super) use self::gave_up::{swallowed, waiting};

/// A connection idle for this long may be forgotten by a device that keeps state of it: those in use
/// do so after one to several minutes.
const LONG_IDLE: Duration = Duration::from_mins(1);

/// A fresh connection that the upstream closes later than this was not closed "on accept".
const ON_ACCEPT: Duration = Duration::from_secs(1);

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
    /// For how long not a segment was seen before the last request: probes of a connection keep it from
    /// being forgotten.
    pub quiet: Duration,
    /// Whether the request is complete.
    pub request_complete: bool,
    /// Whether bytes were missed that may have been the end of the request.
    pub request_missed: bool,
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
    /// Time from the first request byte to the end of the exchange.
    pub lasted: Duration,
    /// Exchanges of the same gateway that were cut off after the same time, this one included; see
    /// [`cut_off`].
    pub ended_alike: usize,
    /// Time since the last request byte, or since the last response byte where there is one; where the
    /// gateway ended it, since the gateway last began to take more at the latest.
    pub silence: Duration,
    /// Time from the end of the handshake to the end of the exchange.
    pub since_established: Option<Duration>,
    /// Why the upstream's kernel reset, where it is on this host.
    pub reset_reason: Option<&'a ResetReason>,
    /// Whether the gateway's window was closed: it did not take more itself.
    pub gateway_window_closed: bool,
    /// Whether the upstream's window was closed.
    pub upstream_window_closed: bool,
    /// What the upstream advertised since the request began.
    pub upstream_windows: Windows,
    /// The oldest unacknowledged request bytes, where they were sent again.
    pub stuck: Option<Stuck>,
    /// Whether the upstream acknowledged again what it had: something later got through to it.
    pub passes_some: bool,
    /// Whether a full-size request segment ever got through.
    pub passed_full_size: bool,
    /// Response bytes that never came although later ones did.
    pub hole: Option<Hole>,
    /// Whether another connection to the upstream was established since the request began.
    pub upstream_alive: bool,
    /// A gateway that gives up sooner is taken to have lost its client.
    pub patience: Duration,
    /// The reset on the upstream's side, where it was seen as a segment.
    pub reset: Option<&'a Reset>,
    /// Whether other connections to the upstream's host show the reset's time to live as its own.
    pub reset_ttl_known: bool,
    /// Whether the response began before the upstream could have had the request: what was taken for
    /// it is left over from an earlier exchange.
    pub unasked: bool,
    /// Whether the response is a 400 that says that the port is one for TLS.
    pub tls_port: bool,
    /// Whether the request asks for an upgrade to a web socket.
    pub web_socket: bool,
}

impl ExchangeFacts<'_> {
    /// Whether the request is known not to be complete.
    const fn is_unfinished(&self) -> bool {
        !self.request_complete && !self.request_missed
    }

    /// Whether a device on the way may have forgotten the connection before the request.
    fn may_be_forgotten(&self) -> bool {
        self.is_pooled() && self.quiet >= LONG_IDLE
    }

    /// Whether the connection waited in a pool: after another exchange, or from the start, as one does
    /// that was opened for a request which another connection then took.
    fn is_pooled(&self) -> bool {
        !self.fresh || self.unused().is_some()
    }

    /// For how long a connection had been open when its first request began, if that is long.
    fn unused(&self) -> Option<Duration> {
        let unused = self.since_established?.saturating_sub(self.lasted);
        Some(unused).filter(|unused| self.fresh && *unused > ON_ACCEPT)
    }
}

/// The cause of a failed exchange; none for a healthy one, and none where the facts do not reach.
pub fn exchange(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    if facts.unasked && facts.ended != Ended::Settled {
        return Some(excess(facts));
    }
    if let Some(finding) = decisive(facts) {
        let verdict = broken_rule(finding, facts.findings, place(finding.kind));
        return Some(match finding.kind {
            FindingKind::ContentCoding(_) => undecodable(verdict),
            kind if kind.is_limit() => limit(verdict, "closed with the response unfinished"),
            _ => verdict,
        });
    }
    match (facts.ended, facts.stage) {
        (_, Stage::Lost | Stage::Tunnel) | (Ended::Settled, _) => None,
        (Ended::Complete, _) => own_error(facts)
            .or_else(|| tls_port(facts))
            .or_else(|| upgrade_refused(facts)),
        (Ended::UpstreamFin, Stage::Idle) => Some(closed::silent(facts)),
        (Ended::UpstreamRst, _) if let Some(verdict) = injected::reset(facts) => Some(verdict),
        (Ended::UpstreamRst, Stage::Idle) => Some(closed::reset_silent(facts)),
        (Ended::Gateway, Stage::Idle) => waiting(facts),
        (Ended::UpstreamFin | Ended::UpstreamRst, _) => closed::inside(facts),
        (Ended::Gateway, _) => gave_up::reading(facts),
    }
}

/// The cause of a failure that only shows when the connection is reset after a complete response:
/// `rst` tells whose reset it was.
pub fn afterwards(facts: &ExchangeFacts<'_>, rst: Actor) -> Option<Verdict> {
    match rst {
        Actor::Upstream if facts.is_unfinished() => {
            injected::reset(facts).or_else(|| Some(early(facts)))
        }
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

/// A server that takes requests on a port for TLS only to say so.
fn tls_port(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let status = facts.status.filter(|_| facts.tls_port)?;
    let text = format!(
        "the upstream answered {status} and says that this port takes TLS, not plaintext HTTP"
    );
    let decisive = packet("tls_port", text);
    Some(Verdict::new(
        Cause::TlsPlaintextToTlsPort,
        Proof::Inferred,
        Phase::ResponseHead,
        decisive,
    ))
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

fn packet(what: &'static str, text: impl Into<String>) -> Evidence {
    fact(EvidenceSource::Packet, what, text)
}

const fn in_body(stage: Stage) -> bool {
    matches!(
        stage,
        Stage::SizedBody | Stage::ChunkedBody | Stage::BodyUntilClose
    )
}

const fn response_phase(stage: Stage) -> Phase {
    if in_body(stage) {
        Phase::ResponseBody
    } else {
        Phase::ResponseHead
    }
}

/// Where in the response a rule of this kind is broken, however far the response got.
const fn place(kind: FindingKind) -> Phase {
    match kind.cause() {
        Cause::Http1ChunkSyntax | Cause::Http1ContentCodingBad => Phase::ResponseBody,
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

/// The last bytes of an incomplete head.
fn tail(head: &[u8]) -> &[u8] {
    head.get(head.len().saturating_sub(64)..).unwrap_or(head)
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
