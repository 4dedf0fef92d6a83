//! The gateway gave up.

use std::time::Duration;

use super::{Acked, Ended, ExchangeFacts, idle, in_body, packet, response_phase, tail};
use crate::classify::{Verdict, fact, human};
use crate::http1::Stage;
use crate::model::{Cause, EvidenceSource, Phase, Proof};
use crate::tcp::{Hole, Windows};

/// Exchanges that one time-out ended last equally long but for this: the time that a gateway takes to
/// connect and to get a turn.
pub const ALIKE: Duration = Duration::from_millis(25);

/// So many that lasted equally long are no coincidence.
const ENOUGH_ALIKE: usize = 3;

/// A segment that was merely lost comes again sooner: after 200 ms on Linux, and after 400 ms once more.
const LOST_FOR_GOOD: Duration = Duration::from_secs(1);

/// The gateway closed before a byte of response.
pub(in crate::classify) fn waiting(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    if facts.silence < facts.patience {
        return None;
    }
    if let Some(hole) = &facts.hole {
        return swallowed(facts, hole);
    }
    if facts.acked != Acked::All {
        return unacknowledged(facts);
    }
    if !facts.request_complete {
        // The gateway itself had not sent everything: its own client may be slow.
        return None;
    }
    Some(unanswered(facts))
}

/// Request bytes that the upstream's kernel never acknowledged.
fn unacknowledged(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    let waited = human(facts.silence);
    if facts.upstream_window_closed {
        let text =
            format!("the upstream's window stayed closed for {waited}, then the gateway closed");
        let decisive = packet("zero_window", text);
        return Some(Verdict::new(
            Cause::TcpZeroWindow,
            Proof::Inferred,
            Phase::Request,
            decisive,
        ));
    }
    let stuck = facts.stuck?;
    let text = format!(
        "request bytes were sent {} times more and never acknowledged for {waited}",
        stuck.times
    );
    let verdict = |cause| {
        let decisive = packet("request_unacknowledged", text.clone());
        Verdict::new(cause, Proof::Inferred, Phase::Request, decisive).with(idle(facts))
    };
    // Its size is what keeps a segment from getting through only where nothing of that size ever did
    // and smaller ones do.
    let large = stuck.full_size() && stuck.times > 1 && !facts.passed_full_size;
    if large && (facts.passes_some || facts.acked == Acked::Part) {
        let smaller = if facts.passes_some {
            "something sent later got through: the upstream acknowledged again what it had"
        } else {
            "smaller segments of the same request got through"
        };
        let size = format!(
            "the segment that never got through carries {} bytes, and none of full size ever did",
            stuck.len
        );
        let evidence = [
            packet("smaller_acknowledged", smaller),
            packet("full_size", size),
        ];
        return Some(verdict(Cause::TcpMtuBlackhole).with(evidence));
    }
    let forgotten = facts.acked == Acked::Nothing && facts.may_be_forgotten();
    Some(match (forgotten, large) {
        (true, false) if facts.upstream_alive => {
            let text = "meanwhile another connection to the upstream was established";
            verdict(Cause::TcpIdleStateLost).with([packet("upstream_alive", text)])
        }
        (true, false) => verdict(Cause::TcpIdleStateLost).against(
            &[Cause::TcpRequestUnacknowledged],
            "whether other connections to the upstream work at that moment",
        ),
        (true, true) => verdict(Cause::TcpIdleStateLost).against(
            &[Cause::TcpRequestUnacknowledged, Cause::TcpMtuBlackhole],
            "whether a small request on another connection that was idle as long gets through",
        ),
        (false, true) => verdict(Cause::TcpRequestUnacknowledged).against(
            &[Cause::TcpMtuBlackhole],
            "whether a small request gets through at that moment",
        ),
        (false, false) => verdict(Cause::TcpRequestUnacknowledged),
    })
}

/// What the upstream sent last arrives, and full-size segments before it never do (RFC 2923 section
/// 2.1). Had they only escaped the observer, the gateway would have acknowledged them. The upstream is
/// not silent where smaller ones are missing either, and nothing tells why.
pub(in crate::classify) fn swallowed(facts: &ExchangeFacts<'_>, hole: &Hole) -> Option<Verdict> {
    if !hole.full_size || facts.silence < LOST_FOR_GOOD {
        return None;
    }
    let text = format!(
        "{} response bytes never came although later ones did, and no segment of full size ever came; the gateway gave up after {}",
        hole.bytes,
        human(facts.silence)
    );
    let mut decisive = packet("full_size_missing", text);
    decisive.offset = Some(facts.response_bytes);
    Some(Verdict::new(
        Cause::TcpMtuBlackhole,
        Proof::Inferred,
        response_phase(facts.stage),
        decisive,
    ))
}

/// The whole request arrived, and nothing came back. Whether the process ever read it shows only where
/// the request fills half of the window: a kernel advertises less with every byte that waits, and more
/// as soon as reading doubles what it could (`tcp_cleanup_rbuf` in `net/ipv4/tcp.c`). A window that
/// opened a little says that some of it was read.
fn unanswered(facts: &ExchangeFacts<'_>) -> Verdict {
    let text = format!(
        "the upstream acknowledged the whole request and then sent nothing for {}, until the gateway closed",
        human(facts.silence)
    );
    let verdict = |cause| {
        let decisive = fact(EvidenceSource::Timer, "no_first_byte", text.clone());
        Verdict::new(cause, Proof::Inferred, Phase::ResponseHead, decisive)
    };
    let Windows {
        last,
        widest,
        narrowest,
    } = facts.upstream_windows;
    let shrunk = narrowest <= widest / 2 && u64::from(widest - narrowest) <= facts.request_bytes;
    let opened = last > narrowest && last / 2 >= narrowest;
    if shrunk && !opened {
        let text = format!(
            "its window shrank from {widest} to {last} (unscaled) with the request and never opened again"
        );
        return verdict(Cause::UpstreamNotReading).with([packet("window_shrunk", text)]);
    }
    if shrunk && last > widest / 2 {
        let text = format!(
            "its window shrank from {widest} to {narrowest} (unscaled) with the request and opened to {last}: the request was read"
        );
        return verdict(Cause::UpstreamSlowFirstByte).with([packet("window_opened", text)]);
    }
    verdict(Cause::UpstreamSlowFirstByte).against(
        &[Cause::UpstreamNotReading],
        "Recv-Q of this connection on the upstream host (ss -tn): above zero until it reads",
    )
}

/// Whether the gateway closed inside a response although data flowed, after a number of whole seconds,
/// as one does that has a limit for the whole exchange. Gateways that have none are left out, and
/// streams that are meant to end when their reader wants.
pub fn cut_off(facts: &ExchangeFacts<'_>) -> bool {
    // Those in Go close towards client and upstream on different threads: that a client left is not seen.
    let limited = !matches!(
        facts.comm,
        None | Some("nginx" | "haproxy" | "caddy" | "traefik")
    );
    let since_whole = Duration::from_nanos(facts.lasted.subsec_nanos().into());
    let whole = since_whole <= ALIKE || since_whole + ALIKE >= Duration::from_secs(1);
    facts.ended == Ended::Gateway
        && limited
        && (in_body(facts.stage) || matches!(facts.stage, Stage::Head))
        && facts.silence < facts.patience
        && !facts.gateway_window_closed
        && !facts.event_stream
        && whole
        && facts.lasted + ALIKE >= Duration::from_secs(1)
}

/// A limit for the whole exchange ended it although data flowed. Only a gateway's kernel tells that no
/// client left in that turn, and even then not of a client that only gave up a stream of its own: so it
/// takes several that lasted equally long, and another explanation stays. From packets alone a client
/// with a time-out of its own looks the same, and nothing is said.
fn deadline(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    if facts.ended_alike < ENOUGH_ALIKE {
        return None;
    }
    let text = format!(
        "the gateway closed after {}, {} after the last byte, as {} times lately after the same time",
        human(facts.lasted),
        human(facts.silence),
        facts.ended_alike
    );
    let decisive = fact(EvidenceSource::Timer, "deadline", text);
    let verdict = Verdict::new(
        Cause::UpstreamDeadline,
        Proof::Underdetermined,
        response_phase(facts.stage),
        decisive,
    );
    Some(verdict.against(
        &[Cause::GwWorkerDied],
        "the gateway's log of that request: its own limit, its client's departure, or its worker's end",
    ))
}

/// The gateway closed inside a response.
pub(super) fn reading(facts: &ExchangeFacts<'_>) -> Option<Verdict> {
    if facts.silence < facts.patience && facts.hole.is_none() {
        return deadline(facts);
    }
    // While data flows, or while the gateway does not take it, or where silence is meant, the gateway
    // has a reason of its own to close, its client's departure first of all.
    if facts.silence < facts.patience || facts.gateway_window_closed || facts.event_stream {
        return None;
    }
    if let Some(hole) = &facts.hole {
        return swallowed(facts, hole);
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
