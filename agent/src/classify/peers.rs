//! Causes that only show across several connections to one upstream: it died, it drains, its backlog is
//! full, or something else answers for it.

use std::time::Duration;

use super::{ExchangeFacts, Verdict, fact, human};
use crate::classify::{Acked, Ended};
use crate::http1::Stage;
use crate::model::{Cause, Evidence, EvidenceSource, Phase, Proof, Timestamp};

/// A drain whose first refused SYN is longer ago than this is over: whatever runs now is another
/// process.
const DRAIN_LIMIT: Duration = Duration::from_mins(10);

/// An in-flight exchange cut sooner after the first refused SYN was not given any time to end.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);

/// A request above this may not fit into one segment.
const ONE_SEGMENT: u64 = 1200;

/// What splits a host that stops from one of several.
const ONE_HOST: &str = "whether the address is one host that stops or several of which one is down";

/// Whose a packet is, by its time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It came as far as the target's own.
    Target,
    /// It came from a place well before the target, or from another kind of system.
    Elsewhere,
    /// One hop nearer, where a filter may stand as well as the host that forwards the port to a
    /// container; or further away, where the address is forwarded to.
    Unclear,
}

/// Compares a packet with the target's own, both by their time to live.
pub fn origin(target: u8, ttl: u8) -> Origin {
    // What systems begin with: 64, 128 or 255.
    let initial = |ttl: u8| match ttl {
        0..=64 => 64,
        65..=128 => 128,
        129.. => 255_u8,
    };
    if ttl == target {
        Origin::Target
    } else if ttl == 0 || (initial(ttl) == initial(target) && ttl <= target.saturating_add(1)) {
        Origin::Unclear
    } else {
        Origin::Elsewhere
    }
}

/// Several connections that their upstream closed in one instant, and that it then refused a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died {
    /// How many.
    pub connections: u32,
    /// When the first of them was closed.
    pub at: Timestamp,
    /// When it refused a SYN.
    pub refused: Timestamp,
}

impl Died {
    /// The instant as evidence, seen from `at`.
    pub fn evidence(&self, at: Timestamp) -> Evidence {
        let text = format!(
            "the upstream closed {} connections in one instant, exchanges in flight among them, {} before",
            self.connections,
            human(at.since(self.at))
        );
        packet("closed_in_one_instant", text)
    }
}

fn packet(what: &'static str, text: String) -> Evidence {
    fact(EvidenceSource::Packet, what, text)
}

/// The decisive fact where a process closed a reused connection with a request in its queue.
pub(super) const UNREAD_ON_CLOSE: &str = "closed_with_request_unread";

/// Whether a verdict says that the upstream closed with the exchange in flight.
pub fn is_cut(verdict: &Verdict) -> bool {
    match verdict.cause {
        Cause::TcpClosedNoResponse
        | Cause::TcpResetNoResponse
        | Cause::Http1HeadTruncated
        | Cause::Http1BodyTruncated
        | Cause::Http1LastChunkMissing
        | Cause::Http1EofBodyReset => true,
        // A process that ends leaves what it did not read as well.
        Cause::PoolStaleReuse => {
            let decisive = verdict.evidence.first();
            decisive.is_some_and(|evidence| evidence.what == UNREAD_ON_CLOSE)
        }
        _ => false,
    }
}

/// A verdict that explains another, whose evidence supports it.
fn instead(verdict: Verdict, cause: Cause, decisive: Evidence) -> Verdict {
    Verdict::new(cause, Proof::Inferred, verdict.phase, decisive).with(verdict.evidence)
}

/// An exchange that was cut because its upstream's process ended.
pub fn process_died(verdict: Verdict, died: &Died) -> Verdict {
    // The listener may be closed a moment before the connections.
    let when = if died.refused < died.at {
        format!("{} before", human(died.at.since(died.refused)))
    } else {
        format!("{} later", human(died.refused.since(died.at)))
    };
    let text = format!(
        "the upstream closed {} connections in one instant and refused a SYN {when}",
        died.connections
    );
    let decisive = packet("closed_in_one_instant", text);
    instead(verdict, Cause::UpstreamProcessDied, decisive)
}

/// An exchange that was cut at `at`, on a connection older than the first SYN that was refused; `others`
/// tells whether more connections stay open, which the end of a process would have closed.
pub fn draining_cut(verdict: Verdict, refused: Timestamp, at: Timestamp, others: bool) -> Verdict {
    let after = at.since(refused);
    if !(SHORTEST_GRACE..=DRAIN_LIMIT).contains(&after) {
        return verdict;
    }
    let text = format!(
        "the upstream had refused every SYN for {} when it closed this connection, which is older",
        human(after)
    );
    let decisive = packet("cut_after_refusal", text);
    let cut = verdict.cause;
    let verdict = instead(verdict, Cause::UpstreamDraining, decisive);
    if others {
        return verdict.against(&[cut], ONE_HOST);
    }
    verdict
}

/// A refused connect beside connections on which exchanges went on; `finished` tells whether the
/// upstream also closed one of them right behind a response.
pub fn draining_connect(verdict: Verdict, finished: bool) -> Verdict {
    let behind = if finished {
        ", and the upstream closed one of them right behind its response"
    } else {
        ""
    };
    let text = format!(
        "exchanges on connections that were open already completed after the refusal{behind}; no new connection was established"
    );
    let decisive = packet("refused_beside_open_connections", text);
    let verdict = instead(verdict, Cause::UpstreamDraining, decisive);
    if finished {
        return verdict;
    }
    verdict.against(&[Cause::TcpConnectRefused], ONE_HOST)
}

/// The SYN-ACK came when the gateway had given up: its kernel answered with a reset for a socket that
/// is not there.
pub fn connect_late(elapsed: Duration, source: EvidenceSource) -> Verdict {
    let text = format!(
        "the SYN was answered {} after it was sent, and the gateway's kernel reset the connection because its socket was gone",
        human(elapsed)
    );
    let decisive = fact(source, "syn_ack_after_give_up", text);
    Verdict::new(
        Cause::TcpConnectLate,
        Proof::Proven,
        Phase::Connect,
        decisive,
    )
}

/// A listener whose accept queue is full answers the SYN, drops the rest of the handshake, and so
/// repeats its SYN-ACK. `alive` tells whether it completes exchanges on other connections.
pub fn half_open(facts: &ExchangeFacts<'_>, syn_acks: u32, alive: bool) -> Option<Verdict> {
    let ended = matches!(facts.ended, Ended::Gateway | Ended::UpstreamRst);
    if !ended
        || syn_acks == 0
        || !facts.fresh
        || facts.acked != Acked::Nothing
        || facts.stage != Stage::Idle
        || facts.silence < facts.patience
    {
        return None;
    }
    let text = format!(
        "the SYN-ACK was sent {} times more after the gateway had acknowledged it, and not one of {} request bytes was acknowledged for {}",
        syn_acks,
        facts.request_bytes,
        human(facts.silence)
    );
    let decisive = packet("syn_ack_repeated", text);
    let verdict = Verdict::new(
        Cause::TcpConnectBacklogFull,
        Proof::Inferred,
        Phase::Connect,
        decisive,
    );
    let small = facts.request_bytes <= ONE_SEGMENT;
    Some(match (alive, small) {
        (true, true) => verdict.with([packet(
            "other_exchanges",
            "exchanges on other connections to that port were completed".to_owned(),
        )]),
        // A listener that waits for the first request byte repeats its SYN-ACK as well.
        (_, false) => verdict.against(
            &[Cause::TcpRequestUnacknowledged, Cause::TcpMtuBlackhole],
            "ListenOverflows on the upstream host, or whether small segments get there",
        ),
        (false, true) => verdict.against(
            &[Cause::TcpRequestUnacknowledged],
            "ListenOverflows on the upstream host, or whether any segment of the gateway gets there",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_nearer_than_its_target_or_another_system() {
        for (target, ttl, whose) in [
            (64, 64, Origin::Target),
            (57, 57, Origin::Target),
            // Port forwarding of the host in front of the target, or the last router's filter.
            (63, 64, Origin::Unclear),
            (60, 61, Origin::Unclear),
            // Forwarded further.
            (64, 63, Origin::Unclear),
            // Only the kernel told of it.
            (64, 0, Origin::Unclear),
            (60, 62, Origin::Elsewhere),
            (60, 253, Origin::Elsewhere),
            (126, 63, Origin::Elsewhere),
            (64, 65, Origin::Elsewhere),
        ] {
            assert_eq!(origin(target, ttl), whose, "{ttl} beside {target}");
        }
    }
}
