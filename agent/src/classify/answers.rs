//! Why a gateway answered with a failure of its own although no attempt on an upstream failed: facts of
//! such an answer to a cause.
//!
//! Little of that is on the wire, so that most verdicts name rivals. What a gateway's log says beside such
//! an answer would split them; hopscope does not read logs.

use std::sync::Arc;
use std::time::Duration;

use super::{Verdict, fact, human};
use crate::model::{
    Cause, Errno, Evidence, EvidenceSource, Exit, HopEvent, Phase, Process, Proof, SocketCall,
    Target, Timestamp,
};

/// A gateway that takes longer than this without an upstream waited for something.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A failure that an earlier answer to the same request had behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierFailure {
    /// When it was.
    pub at: Timestamp,
    /// Id of its event.
    pub event: String,
    /// Why it failed.
    pub cause: Cause,
    /// The upstream that was tried.
    pub upstream: Target,
}

/// A system call about a socket that failed between request and answer, in the turn that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketError {
    /// The call.
    pub call: SocketCall,
    /// What it returned.
    pub errno: Errno,
    /// Whether no other client was answered in that turn that it may have failed for.
    pub alone: bool,
}

/// Requests that waited for an upstream as the gateway answered another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// All of them.
    pub requests: usize,
    /// Those for the same path, begun before the other came.
    pub same_path: usize,
    /// Connections to upstreams in which nothing can be read.
    pub opaque: usize,
}

/// What is known of an answer that no failed attempt explains.
#[derive(Clone, Debug)]
pub struct Unattempted {
    /// Status; none where the gateway closed the connection without one.
    pub status: Option<u16>,
    /// Name of the gateway process.
    pub comm: Arc<str>,
    /// From the first byte of the request to the first of the answer.
    pub latency: Duration,
    /// Set where the gateway's process ended.
    pub exit: Option<Exit>,
    /// Connections to upstreams that the process let go of as it answered, without a failure of theirs.
    pub touched: usize,
    /// Failures behind earlier answers to the same path and host, oldest first.
    pub earlier: Vec<EarlierFailure>,
    /// Connects of the process that failed and that fit no answer to a client: at least this many.
    pub failing_checks: usize,
    /// A failed system call.
    pub error: Option<SocketError>,
    /// Requests of the process that waited for an upstream then, where that was looked at.
    pub in_flight: Option<InFlight>,
    /// Those of them that may be for the same request as the answer: begun since then, and for no other
    /// path.
    pub unjudged: usize,
}

/// The cause; `None` where an upstream may have been asked, so that nothing can be said.
pub fn unattempted(facts: &Unattempted) -> Option<Verdict> {
    if let Some(exit) = facts.exit {
        let decisive = fact(EvidenceSource::Kernel, "process_exit", died(exit));
        return Some(verdict(Cause::GwWorkerDied, Proof::Proven, decisive));
    }
    let status = facts.status?;
    if let Some(verdict) = socket_error(facts, status) {
        return Some(verdict);
    }
    let InFlight {
        requests,
        same_path,
        opaque,
    } = facts.in_flight?;
    if facts.touched > 0 || facts.unjudged > 0 || opaque > 0 {
        return None;
    }
    let nothing = format!(
        "status {status} was sent {} after the request, and no upstream was connected to or asked for it",
        human(facts.latency)
    );
    let nothing = fact(EvidenceSource::Packet, "no_attempt", nothing);
    let waited = facts.latency >= AT_ONCE;
    let in_flight = (requests > 0).then(|| {
        let text = format!(
            "{requests} other requests of the process waited for their upstream then, {same_path} of them for the same path"
        );
        fact(EvidenceSource::Packet, "in_flight", text)
    });
    let is_nginx = is_nginx(&facts.comm);
    // nginx says 502 where no peer is left (GATEWAYS: `no live upstreams`), the others 503.
    let says_no_peer = if is_nginx {
        status == 502
    } else {
        status == 503
    };
    if waited && status == 503 && !is_nginx {
        // Who waits for a slot waits behind others. A tarpit makes clients wait for nobody.
        let (cause, rival) = if requests > 0 {
            (Cause::PickQueueTimeout, Cause::GwLocalAnswer)
        } else {
            (Cause::GwLocalAnswer, Cause::PickQueueTimeout)
        };
        let rivals = [
            rival,
            Cause::PickAllUnhealthy,
            Cause::PickPassivelyEjected,
            Cause::UpstreamOwnError,
        ];
        let verdict = verdict(cause, Proof::Inferred, nothing)
            .with(in_flight)
            .with(echo(&facts.earlier));
        return Some(verdict.against(&rivals, SPLITTER));
    }
    // What the upstream itself said is no failure to nginx by default.
    let mut earlier = facts.earlier.clone();
    earlier.retain(|failure| !is_nginx || failure.cause != Cause::UpstreamOwnError);
    if says_no_peer && !earlier.is_empty() {
        // A rule may say the same, and how long a member is put aside is not seen.
        let mut rivals = vec![Cause::GwLocalAnswer, Cause::UpstreamOwnError];
        if !is_nginx {
            rivals.push(Cause::PickAllUnhealthy);
        } else if requests > 0 {
            rivals.push(Cause::PickConnectionLimit);
        }
        let verdict = verdict(Cause::PickPassivelyEjected, Proof::Inferred, nothing)
            .with(echo(&earlier))
            .with(in_flight);
        return Some(verdict.against(&rivals, SPLITTER));
    }
    // nginx has no queue: a request that finds its upstream's connections taken is refused at once.
    if is_nginx && says_no_peer && !waited && same_path > 0 {
        let verdict = verdict(Cause::PickConnectionLimit, Proof::Inferred, nothing).with(in_flight);
        let rivals = [
            Cause::PickPassivelyEjected,
            Cause::GwLocalAnswer,
            Cause::UpstreamOwnError,
        ];
        return Some(verdict.against(&rivals, SPLITTER));
    }
    if says_no_peer && facts.failing_checks > 0 && !is_nginx {
        let text = format!(
            "at least {} connects of the process failed lately that fit no answer to a client, as those of health checks do",
            facts.failing_checks
        );
        let checks = fact(EvidenceSource::Packet, "failing_checks", text);
        return Some(
            verdict(Cause::PickAllUnhealthy, Proof::Inferred, nothing)
                .with([checks])
                .against(
                    &[
                        Cause::PickEmptySet,
                        Cause::PickNoRoute,
                        Cause::GwLocalAnswer,
                        Cause::UpstreamOwnError,
                    ],
                    SPLITTER,
                ),
        );
    }
    // What an upstream says over a unix socket is not seen, so that its own status is always a rival.
    let rivals: &[Cause] = match (status, is_nginx) {
        // Only a rule or a limit on requests makes nginx say so by itself.
        (503, true) => &[Cause::UpstreamOwnError],
        (502, true) => &[
            Cause::PickPassivelyEjected,
            Cause::PickConnectionLimit,
            Cause::PickEmptySet,
            Cause::DnsNxdomain,
            Cause::UpstreamOwnError,
        ],
        (500, _) => &[
            Cause::PickNoRoute,
            Cause::GwFdExhausted,
            Cause::UpstreamOwnError,
        ],
        (503, false) => &[
            Cause::PickAllUnhealthy,
            Cause::PickEmptySet,
            Cause::PickConnectionLimit,
            Cause::PickNoRoute,
            Cause::UpstreamOwnError,
        ],
        _ => &[Cause::PickNoRoute, Cause::UpstreamOwnError],
    };
    Some(
        verdict(Cause::GwLocalAnswer, Proof::Inferred, nothing)
            .with(in_flight)
            .against(rivals, SPLITTER),
    )
}

/// What would split what packets cannot.
const SPLITTER: &str =
    "the gateway's own log line for this request, or its list of upstreams and their state";

fn verdict(cause: Cause, proof: Proof, decisive: Evidence) -> Verdict {
    Verdict::new(cause, proof, Phase::Pick, decisive)
}

/// Whether a gateway is nginx under one of its names.
pub fn is_nginx(comm: &str) -> bool {
    matches!(comm, "nginx" | "openresty" | "angie")
}

/// What a failed system call of the gateway says.
fn socket_error(facts: &Unattempted, status: u16) -> Option<Verdict> {
    let SocketError { call, errno, alone } = facts.error?;
    let cause = match (call, errno) {
        (SocketCall::Socket, Errno::EMFILE | Errno::ENFILE) => Cause::GwFdExhausted,
        (SocketCall::Bind, _) => Cause::GwSourceBindFailed,
        _ => return None,
    };
    let text = format!("{}() returned {errno} in the gateway", call.as_str());
    let decisive = fact(EvidenceSource::Kernel, "socket_call", text);
    let verdict = verdict(cause, Proof::Proven, decisive);
    // nginx answers 500 for it, unless it is told to say something else. Another upstream may have been asked.
    let unusual = is_nginx(&facts.comm) && status != 500;
    let asked = facts.touched > 0 || facts.unjudged > 0;
    Some(if alone && !unusual && !asked {
        verdict
    } else {
        verdict.against(&[Cause::GwLocalAnswer, Cause::UpstreamOwnError], SPLITTER)
    })
}

/// The failures that put the members aside, the last ones.
fn echo(earlier: &[EarlierFailure]) -> Vec<Evidence> {
    const MOST: usize = 8;
    let skipped = earlier.len().saturating_sub(MOST);
    let listed = earlier.iter().skip(skipped);
    listed
        .map(|failure| {
            let text = format!(
                "{} {} at {}, event {}",
                failure.upstream,
                failure.cause.id(),
                failure.at,
                failure.event
            );
            fact(EvidenceSource::Packet, "earlier_failure", text)
        })
        .collect()
}

fn died(exit: Exit) -> String {
    if exit.signal == 0 {
        "the gateway's process ended while the request was open".to_owned()
    } else {
        format!(
            "signal {} ended the gateway's process while the request was open",
            exit.signal
        )
    }
}

/// Turns the verdict of an attempt around where the gateway's process ended then: it is the process that
/// let go of the upstream, whatever that had done so far. Failures that the upstream or the network made
/// stand.
pub fn worker_died(event: &mut HopEvent, exit: Exit, pid: u32) {
    let by_gateway = matches!(
        event.cause,
        Cause::UpstreamSlowFirstByte
            | Cause::UpstreamNotReading
            | Cause::UpstreamStalledInHead
            | Cause::UpstreamStalledInBody
            | Cause::UpstreamDeadline
            | Cause::TcpRequestUnacknowledged
            | Cause::TcpIdleStateLost
            | Cause::TcpMtuBlackhole
            | Cause::TcpZeroWindow
            | Cause::TcpConnectBlackholed
    );
    if !by_gateway {
        return;
    }
    let text = format!("{} (pid {pid})", died(exit));
    let decisive = fact(EvidenceSource::Kernel, "process_exit", text);
    recast(event, Cause::GwWorkerDied, decisive);
}

/// Answers to the same request, one within the other, from which on it is a loop. A gateway may pass a
/// request to a listener of its own once, on purpose, and that one on to another.
const LOOP: usize = 3;

/// Turns the verdict of an attempt around where it is the gateway itself that it asked, with the request that it
/// had got: `nested` answers to it lay one within the other. What became of each is the loop's doing.
pub fn looped(event: &mut HopEvent, nested: usize) {
    if nested < LOOP {
        return;
    }
    let text = format!(
        "the upstream is the listener that the request came in by: the gateway sent it to itself, and gave {nested} answers to it one within the other"
    );
    let decisive = fact(EvidenceSource::Kernel, "same_request", text);
    recast(event, Cause::GwLoop, decisive);
}

/// Gives an event another cause, which is proven.
fn recast(event: &mut HopEvent, cause: Cause, decisive: Evidence) {
    let info = cause.info();
    event.cause = cause;
    event.proof = Proof::Proven;
    event.rivals.clear();
    event.splitter = None;
    event.proxy_error = info.proxy_error.map(Into::into);
    event.recommended_status = info.recommended_status;
    event.fault_side = info.fault_side;
    event.evidence.insert(0, decisive);
}

/// Says that the upstream which made a status is a gateway on this host.
pub fn second_gateway(event: &mut HopEvent, process: &Process) {
    let text = format!(
        "the upstream is itself a gateway on this host, {}[{}]: its own answer has an event of its own",
        process.comm, process.pid
    );
    event
        .evidence
        .push(fact(EvidenceSource::Kernel, "second_gateway", text));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(comm: &str, status: u16) -> Unattempted {
        Unattempted {
            status: Some(status),
            comm: Arc::from(comm),
            latency: Duration::from_micros(80),
            exit: None,
            touched: 0,
            earlier: Vec::new(),
            failing_checks: 0,
            error: None,
            in_flight: Some(InFlight::default()),
            unjudged: 0,
        }
    }

    fn waits(same_path: usize, requests: usize) -> InFlight {
        InFlight {
            requests,
            same_path,
            opaque: 0,
        }
    }

    fn told(facts: &Unattempted) -> Option<(Cause, Proof)> {
        unattempted(facts).map(|verdict| (verdict.cause, verdict.proof))
    }

    fn rivals(facts: &Unattempted) -> Vec<Cause> {
        unattempted(facts).map_or_else(Vec::new, |verdict| verdict.rivals)
    }

    fn refused() -> EarlierFailure {
        EarlierFailure {
            at: Timestamp::from_nanos(1),
            event: "1-1-1".to_owned(),
            cause: Cause::TcpConnectRefused,
            upstream: Target::Inet(([10, 0, 0, 2], 80).into()),
        }
    }

    #[test]
    fn a_limit_on_connections_looks_like_a_rule_but_for_the_requests_that_wait() {
        let open = Proof::Underdetermined;
        let mut facts = facts("nginx", 502);
        assert_eq!(told(&facts), Some((Cause::GwLocalAnswer, open)));
        assert!(rivals(&facts).contains(&Cause::PickConnectionLimit));
        facts.in_flight = Some(waits(0, 3));
        assert_eq!(told(&facts), Some((Cause::GwLocalAnswer, open)));
        facts.in_flight = Some(waits(1, 3));
        assert_eq!(told(&facts), Some((Cause::PickConnectionLimit, open)));
        assert!(rivals(&facts).contains(&Cause::GwLocalAnswer));
        // nginx has no queue, so that it does not wait for its limit.
        facts.latency = Duration::from_secs(1);
        assert_eq!(told(&facts), Some((Cause::GwLocalAnswer, open)));
    }

    #[test]
    fn members_that_failed_may_be_put_aside_and_a_rule_may_say_the_same() {
        let open = Some((Cause::PickPassivelyEjected, Proof::Underdetermined));
        let mut facts = facts("nginx", 502);
        facts.earlier.push(refused());
        assert_eq!(told(&facts), open);
        let ever = [Cause::GwLocalAnswer, Cause::UpstreamOwnError];
        assert_eq!(rivals(&facts), ever);
        facts.in_flight = Some(waits(0, 1));
        assert_eq!(rivals(&facts)[2..], [Cause::PickConnectionLimit]);
        // Another status of the same gateway is no word of its members.
        facts.status = Some(503);
        assert_eq!(told(&facts).unwrap().0, Cause::GwLocalAnswer);
        // nginx goes on with a member that answers 5xx, others need not.
        facts.earlier[0].cause = Cause::UpstreamOwnError;
        facts.status = Some(502);
        assert_eq!(told(&facts).unwrap().0, Cause::GwLocalAnswer);
        facts.status = Some(503);
        facts.comm = Arc::from("envoy");
        assert_eq!(told(&facts), open);
    }

    #[test]
    fn who_waits_in_a_queue_waits_behind_others_and_a_tarpit_makes_all_wait() {
        let open = Proof::Underdetermined;
        let mut facts = facts("haproxy", 503);
        facts.latency = Duration::from_millis(500);
        assert_eq!(told(&facts), Some((Cause::GwLocalAnswer, open)));
        assert!(rivals(&facts).contains(&Cause::PickQueueTimeout));
        facts.in_flight = Some(waits(1, 1));
        assert_eq!(told(&facts), Some((Cause::PickQueueTimeout, open)));
        for rival in [
            Cause::GwLocalAnswer,
            Cause::PickAllUnhealthy,
            Cause::PickPassivelyEjected,
        ] {
            assert!(rivals(&facts).contains(&rival), "{rival:?}");
        }
    }

    #[test]
    fn checks_that_fail_speak_for_a_group_that_is_down_and_against_nothing() {
        let mut facts = facts("haproxy", 503);
        let all = rivals(&facts);
        for rival in [
            Cause::PickAllUnhealthy,
            Cause::PickEmptySet,
            Cause::PickNoRoute,
        ] {
            assert!(all.contains(&rival), "{all:?}");
        }
        facts.failing_checks = 2;
        let open = Proof::Underdetermined;
        assert_eq!(told(&facts), Some((Cause::PickAllUnhealthy, open)));
        assert!(rivals(&facts).contains(&Cause::PickEmptySet));
        // nginx makes no checks: what it connects to is for a client.
        facts.comm = Arc::from("nginx");
        assert_eq!(told(&facts).unwrap().0, Cause::GwLocalAnswer);
    }

    #[test]
    fn nothing_is_said_where_an_upstream_may_have_been_asked() {
        let whole = facts("nginx", 503);
        assert!(told(&whole).is_some());
        let touched = Unattempted {
            touched: 1,
            ..whole.clone()
        };
        let unjudged = Unattempted {
            unjudged: 1,
            ..whole.clone()
        };
        let unseen = Unattempted {
            in_flight: None,
            ..whole.clone()
        };
        let opaque = InFlight {
            opaque: 1,
            ..InFlight::default()
        };
        let opaque = Unattempted {
            in_flight: Some(opaque),
            ..whole
        };
        for facts in [touched, unjudged, unseen, opaque] {
            assert_eq!(told(&facts), None, "{facts:?}");
        }
    }

    #[test]
    fn a_system_call_that_failed_says_why_for_sure_where_it_can_be_no_other_clients() {
        let error = |call, errno, alone| Some(SocketError { call, errno, alone });
        let open = Proof::Underdetermined;
        let mut facts = facts("nginx", 500);
        facts.error = error(SocketCall::Socket, Errno::EMFILE, true);
        assert_eq!(told(&facts), Some((Cause::GwFdExhausted, Proof::Proven)));
        facts.error = error(SocketCall::Bind, Errno::EADDRNOTAVAIL, true);
        let cause = Cause::GwSourceBindFailed;
        assert_eq!(told(&facts), Some((cause, Proof::Proven)));
        facts.unjudged = 1;
        assert_eq!(told(&facts), Some((cause, open)));
        facts.unjudged = 0;
        facts.status = Some(503);
        assert_eq!(told(&facts), Some((cause, open)));
        facts.comm = Arc::from("haproxy");
        assert_eq!(told(&facts), Some((cause, Proof::Proven)));
        facts.error = error(SocketCall::Bind, Errno::EADDRNOTAVAIL, false);
        assert_eq!(told(&facts), Some((cause, open)));
        assert!(rivals(&facts).contains(&Cause::GwLocalAnswer));
        // Whoever asked had been accepted.
        facts.error = error(SocketCall::Accept, Errno::EMFILE, true);
        assert_eq!(told(&facts).unwrap().0, Cause::GwLocalAnswer);
    }
}
