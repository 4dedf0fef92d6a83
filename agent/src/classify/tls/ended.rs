//! The handshake ended, and no alert says why.

use super::{TlsFacts, certificate, packet, verdict};
use crate::classify::exchange::{injected, swallowed, waiting};
use crate::classify::{Acked, Ended, Verdict, exchange, fact, human};
use crate::model::{Actor, Cause, EvidenceSource, Phase, Proof};
use crate::tls::Step;

/// The verdict on an end without an alert.
pub(super) fn without_alert(facts: &TlsFacts<'_>) -> Option<Verdict> {
    if facts.wire.to.step == Step::Nothing {
        return None;
    }
    if facts.is_done() {
        let closed = facts.hop.ended == Ended::Gateway;
        return closed
            .then(|| certificate::after_handshake(facts, None))
            .flatten();
    }
    if facts.hides_handshake() && facts.wire.to.step == Step::Encrypted {
        // How far the gateway came is not known.
        return None;
    }
    let verdict = match facts.hop.ended {
        Ended::UpstreamFin => closed(facts, "FIN"),
        Ended::UpstreamRst => match injected::reset(&facts.hop) {
            Some(verdict) => Some(verdict),
            None => closed(facts, "RST"),
        },
        Ended::Gateway => gave_up(facts),
        Ended::Complete | Ended::Settled => None,
    };
    verdict.map(|verdict| Verdict {
        phase: Phase::Tls,
        ..verdict
    })
}

fn closed(facts: &TlsFacts<'_>, what: &str) -> Option<Verdict> {
    let from = &facts.wire.from;
    let silent = from.records == 0 && from.partial == 0;
    if silent && (facts.hop.acked == Acked::Nothing || facts.hop.closed_before) {
        // It never read the ClientHello: TLS has no part in it.
        return exchange(&facts.hop);
    }
    let place = match (from.step, facts.wire.to.step) {
        _ if silent => "in answer to the ClientHello, without a byte of TLS",
        (Step::Nothing, _) => "before its ServerHello",
        (Step::Hello | Step::Encrypted, _) => "inside its part of the handshake",
        (Step::Finished, _) => "before the gateway's part of the handshake",
    };
    let notified = facts
        .wire
        .alerts
        .iter()
        .any(|alert| alert.by == Actor::Upstream && alert.said.is_some());
    let alert = if notified { "" } else { ", and sent no alert" };
    let text = format!(
        "the upstream sent {what} {} after the last byte, {place}{alert}",
        human(facts.hop.silence)
    );
    let decisive = packet("handshake_closed", text);
    let proof = if facts.hop.reset.is_some_and(|reset| reset.off.is_some()) {
        Proof::Inferred
    } else {
        Proof::Proven
    };
    let verdict = verdict(Cause::TlsHandshakeClosed, proof, decisive).with(facts.offer());
    let reason = facts.hop.reset_reason.map(|reason| {
        let text = format!("the upstream's kernel gave the reason {reason}");
        fact(EvidenceSource::Kernel, "reset_reason", text)
    });
    Some(verdict.with(reason))
}

/// The gateway closed inside the handshake and said nothing: its patience was over, or its own client
/// left.
fn gave_up(facts: &TlsFacts<'_>) -> Option<Verdict> {
    let hop = &facts.hop;
    if facts.left || hop.silence < hop.patience || hop.gateway_window_closed {
        return None;
    }
    if let Some(hole) = &hop.hole {
        return swallowed(hop, hole);
    }
    if hop.acked != Acked::All
        && let Some(verdict) = waiting(hop)
        && verdict.cause != Cause::TcpRequestUnacknowledged
        && verdict.cause != Cause::TcpIdleStateLost
    {
        return Some(verdict);
    }
    let waited = human(hop.silence);
    let sent = if facts.wire.from.step == Step::Nothing {
        "ClientHello"
    } else {
        "last handshake message"
    };
    let text = match (hop.acked, &hop.stuck) {
        (Acked::All, _) => format!(
            "the upstream's host acknowledged the gateway's {sent}, and the upstream did not answer it for {waited}: the application, not the network"
        ),
        (Acked::Nothing, Some(stuck)) => format!(
            "the gateway's {sent} was sent {} times more and never acknowledged for {waited}: the network, or the upstream's host",
            stuck.times
        ),
        (Acked::Part, Some(stuck)) => format!(
            "a part of the gateway's {sent} was acknowledged; the rest was sent {} times more and never was for {waited}: the network",
            stuck.times
        ),
        (_, None) => format!(
            "no acknowledgement of the gateway's {sent} was seen for {waited}, and no byte of an answer"
        ),
    };
    let decisive = fact(EvidenceSource::Timer, "handshake_silence", text);
    let verdict = verdict(Cause::TlsHandshakeTimeout, Proof::Inferred, decisive);
    Some(verdict.with(facts.offer()))
}
