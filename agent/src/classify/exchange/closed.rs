//! The upstream closed, or its kernel reset.

use std::time::Duration;

use super::{
    Acked, Ended, ExchangeFacts, ON_ACCEPT, early, idle, in_body, injected, packet, reason,
    response_phase, tail,
};
use crate::classify::peers::UNREAD_ON_CLOSE;
use crate::classify::{Verdict, human};
use crate::http1::Stage;
use crate::model::{Cause, Phase, Proof, ResetReason};
use crate::tcp::Reset;

/// A reset this soon after a request on a reused connection may answer a request that crossed the
/// upstream's close: round trips are shorter, and few handlers are.
const CROSSING: Duration = Duration::from_millis(50);

/// A request of no more bytes is taken by one read of any server: nginx reads 1024 bytes at first, others
/// more. What is unread of it then is all of it.
const ONE_READ: u64 = 1024;

/// The upstream closed a fresh connection before the gateway sent a byte, and the gateway then closed
/// without sending one.
pub fn closed_before_request(
    rst: bool,
    since_established: Duration,
    ttl: u8,
    reset: Option<&Reset>,
) -> Option<Verdict> {
    if since_established > ON_ACCEPT {
        return None;
    }
    let ttl = reset.map_or(ttl, |reset| reset.ttl);
    let text = format!(
        "{} from the upstream {} after the handshake, before any request byte, ttl {ttl}",
        if rst { "RST" } else { "FIN" },
        human(since_established)
    );
    let decisive = packet("closed_after_handshake", text);
    let verdict = Verdict::new(
        Cause::TcpClosedOnAccept,
        Proof::Inferred,
        Phase::Request,
        decisive,
    );
    let Some(usual) = reset.and_then(Reset::other_ttl) else {
        return Some(verdict);
    };
    let other = packet("reset_ttl", format!("the SYN-ACK has ttl {usual}"));
    Some(
        verdict
            .with([other])
            .against(&[Cause::TcpResetInjected], injected::HANDSHAKE_SPLITTER),
    )
}

/// FIN, and not a byte of response.
pub(super) fn silent(facts: &ExchangeFacts<'_>) -> Verdict {
    let unread = facts.closed_before || facts.acked == Acked::Nothing;
    match (unread, facts.is_pooled()) {
        (true, false) => closed_on_accept(facts, "FIN"),
        (true, true) => stale_reuse(facts, "FIN"),
        (false, pooled) => {
            let text = format!(
                "the upstream acknowledged the request ({} bytes) and sent FIN {} after it, without a byte of response",
                facts.request_bytes,
                human(facts.silence)
            );
            // On a connection used before, the upstream may have meant to close it anyway.
            let proof = if !pooled && facts.acked == Acked::All {
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
pub(super) fn reset_silent(facts: &ExchangeFacts<'_>) -> Verdict {
    // A kernel answers data for a socket that was closed already with a reset: the close came first.
    let closed_first = facts.closed_before
        || facts.acked == Acked::Nothing
        || facts.reset_reason == Some(&ResetReason::NoSocket);
    if closed_first {
        return if facts.is_pooled() {
            stale_reuse(facts, "RST")
        } else {
            closed_on_accept(facts, "RST")
        };
    }
    let unread = facts.reset_reason == Some(&ResetReason::AbortOnClose);
    if unread && facts.is_pooled() && facts.silence <= CROSSING && facts.request_bytes <= ONE_READ {
        return stale_reuse(facts, "RST");
    }
    if unread
        && facts.fresh
        && facts
            .since_established
            .is_some_and(|since| since <= ON_ACCEPT)
    {
        return closed_on_accept(facts, "RST");
    }
    let ttl = facts
        .reset
        .map_or_else(String::new, |reset| format!(", ttl {}", reset.ttl));
    let text = format!(
        "the upstream acknowledged the request ({} bytes) and sent RST {} after it, without a byte of response{ttl}",
        facts.request_bytes,
        human(facts.silence)
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
    if let Some(off) = injected::off(facts) {
        return verdict.with([off]).against(
            &[Cause::TcpResetInjected],
            "whether the upstream's host sent that reset: a capture there",
        );
    }
    let deliberate = facts.reset_reason == Some(&ResetReason::AbortOnLinger);
    if facts.is_pooled() && !deliberate && facts.silence <= CROSSING {
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
    let closed = "closed_while_idle";
    let (fact, how) = if facts.closed_before {
        (
            closed,
            "the upstream had closed before the request was sent",
        )
    } else if facts.acked == Acked::Nothing {
        (
            closed,
            "the upstream's close crossed the request: it acknowledged none of it",
        )
    } else if facts.reset_reason == Some(&ResetReason::AbortOnClose) {
        (
            UNREAD_ON_CLOSE,
            "the upstream's close crossed the request: its process closed with the request unread",
        )
    } else {
        (
            closed,
            "the upstream's close crossed the request: its socket was gone",
        )
    };
    let connection = facts.unused().map_or_else(
        || "a reused connection".to_owned(),
        |unused| {
            format!(
                "a connection that had been open and unused for {}",
                human(unused)
            )
        },
    );
    let decisive = packet(fact, format!("{what} on {connection}: {how}"));
    let proof = if facts.closed_before || what == "FIN" {
        Proof::Proven
    } else {
        Proof::Inferred
    };
    Verdict::new(Cause::PoolStaleReuse, proof, Phase::Request, decisive)
        .with(idle(facts))
        .with(reason(facts))
}

/// A kernel resets a connection that its process closes with request bytes unread (RFC 2525 section
/// 2.17), and that reset may destroy what was sent of the response. The kernel says so, or the reset
/// came while some of a complete request was not acknowledged.
fn unread(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let (proof, how) = match facts.reset_reason {
        Some(ResetReason::AbortOnClose) => (Proof::Proven, "closed with request bytes unread"),
        Some(ResetReason::AbortOnLinger) => return None,
        _ if facts.request_complete && facts.acked != Acked::All => {
            (Proof::Inferred, "reset with request bytes unacknowledged")
        }
        _ => return None,
    };
    let text = format!(
        "the upstream had sent {} bytes of its response when it {how} ({} bytes of request)",
        facts.response_bytes, facts.request_bytes
    );
    let mut decisive = packet("reset_unread_request", text);
    decisive.offset = Some(facts.response_bytes);
    decisive.bytes = tail(facts.partial_head).to_vec();
    Some(
        Verdict::new(
            Cause::TcpResetUnreadRequest,
            proof,
            response_phase(facts.stage),
            decisive,
        )
        .with(reason(facts)),
    )
}

/// The upstream closed inside its response.
pub(super) fn inside(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let rst = facts.ended == Ended::UpstreamRst;
    if rst && in_body(facts.stage) && facts.is_unfinished() {
        return Some(early(facts));
    }
    if rst && let Some(verdict) = unread(facts) {
        return Some(verdict);
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
