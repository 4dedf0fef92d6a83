//! Somebody between gateway and upstream reset the connection in the upstream's name.

use super::{Acked, ExchangeFacts, idle, packet, response_phase};
use crate::classify::{Verdict, human};
use crate::http1::Stage;
use crate::model::{Cause, Evidence, Phase, Proof};

/// What splits another's reset from the upstream's where only a handshake came before.
pub(super) const HANDSHAKE_SPLITTER: &str =
    "whether the SYN-ACK came from the upstream's own host: the ttl of anything else it sends";

/// A reset that the upstream did not send. Its time to live is not that of the upstream's other
/// segments, or the upstream goes on after it: Linux sends resets with the time to live of any segment
/// (`ip_select_ttl` in `include/net/ip.h`), and nothing after them. A device that lost the state of an
/// idle connection does the same, and the idleness tells.
///
/// Where the handshake is all that came before, another time to live may be that of a device that only
/// answers SYNs: the rivals stay.
pub(in crate::classify) fn reset(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let reset = facts.reset?;
    if facts.reset_reason.is_some() {
        // The upstream is on this host, and its kernel sent it.
        return None;
    }
    // The way from the upstream may have changed while the connection was idle.
    let usual = reset.other_ttl().filter(|_| !facts.reset_ttl_known);
    let ttl = usual.map(|usual| {
        let text = format!(
            "RST with ttl {} {} after the last byte, the upstream's own segments have ttl {usual}",
            reset.ttl,
            human(facts.silence)
        );
        packet("reset_ttl", text)
    });
    let went_on = reset.went_on.map(|after| {
        let text = format!(
            "the upstream went on {} after the RST as if it had not sent it",
            human(after)
        );
        packet("upstream_went_on", text)
    });
    let phase = match facts.stage {
        Stage::Idle if facts.acked != Acked::All => Phase::Request,
        stage => response_phase(stage),
    };
    let firm = went_on.is_some() || !reset.after_handshake;
    let lost = ttl.is_some() && went_on.is_none() && facts.may_be_forgotten();
    let mut signs = ttl.into_iter().chain(went_on).chain(off(facts));
    let decisive = match (usual, reset.went_on) {
        (None, None) => return None,
        _ => signs.next()?,
    };
    let cause = if lost && facts.stage == Stage::Idle {
        Cause::TcpIdleStateLost
    } else {
        Cause::TcpResetInjected
    };
    let verdict = Verdict::new(cause, Proof::Inferred, phase, decisive)
        .with(signs)
        .with(idle(facts));
    if firm {
        return Some(verdict);
    }
    Some(verdict.against(&[Cause::TcpClosedOnAccept], HANDSHAKE_SPLITTER))
}

/// The sequence number is not what the sender had come to, with every segment before it seen.
pub(super) fn off(facts: &ExchangeFacts<'_>) -> Option<Evidence> {
    let off = facts.reset.filter(|_| facts.reset_reason.is_none())?.off?;
    let text = format!("the RST's sequence number is {off:+} bytes from where the upstream was");
    Some(packet("reset_sequence", text))
}
