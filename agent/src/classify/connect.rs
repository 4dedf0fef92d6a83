//! Why a connect failed.

use std::time::Duration;

use super::{Died, Origin, Verdict, fact, human, origin};
use crate::model::{Cause, Errno, EvidenceSource, IcmpError, Phase, Proof, Timestamp};

/// A kernel sends its SYN again after this long (RFC 6298 section 2): one alone may just have been lost.
const SECOND_SYN: Duration = Duration::from_secs(1);

/// What is known of a connect that did not succeed.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ConnectFacts {
    /// Time from the first SYN to the end of the attempt.
    pub elapsed: Duration,
    /// SYNs sent again.
    pub syn_retransmits: u32,
    /// A reset answered the SYN, with this time to live; zero where only the kernel told of it.
    pub reset_ttl: Option<u8>,
    /// The time to live of the target's own packets, where it is known and comparable.
    pub target_ttl: Option<u8>,
    /// Whether the upstream is on this host and its own kernel said that it sent the reset.
    pub reset_own: bool,
    /// The instant right before, in which the upstream closed several connections.
    pub died: Option<(Died, Timestamp)>,
    /// An ICMP error quoted the SYN.
    pub icmp: Option<IcmpError>,
    /// `sk_err` when the socket closed.
    pub errno: Option<Errno>,
    /// What `connect()` itself returned.
    pub returned: Option<Errno>,
    /// Whether another connection to the same upstream was established shortly before or meanwhile.
    pub upstream_alive: bool,
    /// Whether one was established meanwhile, one of that time took more than one SYN, and no request
    /// bytes had to be repeated: SYNs alone are dropped now and then.
    pub syns_dropped: bool,
    /// Whether the end of the attempt was seen; otherwise the observation ended first.
    pub over: bool,
    /// A gateway that gives up sooner is taken to have lost its client.
    pub patience: Duration,
}

/// The cause of a failed connect.
pub fn connect(facts: &ConnectFacts) -> Option<Verdict> {
    // Behind SYN_SENT, the other errors of connect() repeat what a packet said.
    if let Some(errno) = facts.returned.filter(|errno| {
        matches!(
            *errno,
            Errno::EADDRNOTAVAIL | Errno::EACCES | Errno::EPERM | Errno::EINVAL
        )
    }) {
        return local_refusal(errno, EvidenceSource::Kernel);
    }
    let verdict = if let Some(ttl) = facts.reset_ttl {
        reset(facts, ttl)
    } else if let Some(icmp) = &facts.icmp {
        unreachable(icmp)
    } else {
        silent(facts)?
    };
    let kernel = facts.errno.map(|errno| {
        fact(
            EvidenceSource::Kernel,
            "socket_error",
            format!("the socket closed with {errno}"),
        )
    });
    let repeated = (facts.syn_retransmits > 0).then(|| {
        let text = format!("the SYN was sent {} times", facts.syn_retransmits + 1);
        fact(EvidenceSource::Packet, "syn_retransmits", text)
    });
    Some(verdict.with(kernel).with(repeated))
}

/// The cause of a `connect()` call that failed before its socket ever sent a SYN.
pub fn connect_call(errno: Errno) -> Option<Verdict> {
    local_refusal(errno, EvidenceSource::Kernel)
}

/// The cause of a `connect()` call to a unix socket that failed. The kernel decides all of it within the
/// call (unix(7)), so that the number says everything.
pub fn connect_unix(errno: Errno) -> Option<Verdict> {
    let why = match errno {
        Errno::ENOENT => "there is no such socket: the upstream is not running, or elsewhere",
        Errno::EACCES => {
            "the gateway may not write to the socket, or not search a directory above it"
        }
        Errno::ECONNREFUSED => {
            "nobody listens: the socket is a leftover of a process that has ended"
        }
        Errno::EAGAIN => "the listener's backlog is full: all workers are busy and nobody accepts",
        _ => return None,
    };
    let text = format!("connect() to the unix socket returned {errno}: {why}");
    let decisive = fact(EvidenceSource::Kernel, "connect_errno", text);
    Some(Verdict::new(
        Cause::UnixUnavailable,
        Proof::Proven,
        Phase::Connect,
        decisive,
    ))
}

/// What the gateway's own kernel refuses at once.
fn local_refusal(errno: Errno, source: EvidenceSource) -> Option<Verdict> {
    let (cause, why) = match errno {
        Errno::ENETUNREACH => (Cause::TcpConnectNoRoute, "no route to that address"),
        Errno::EHOSTUNREACH => (
            Cause::TcpConnectNoRoute,
            "the route to that address is of type unreachable",
        ),
        Errno::EACCES => (
            Cause::TcpConnectLocalPolicy,
            "a prohibit route or a security module forbids it",
        ),
        Errno::EPERM => (
            Cause::TcpConnectLocalPolicy,
            "a cgroup program or a packet filter forbids it",
        ),
        Errno::EINVAL => (
            Cause::TcpConnectLocalPolicy,
            "the route to that address is of type blackhole",
        ),
        Errno::EADDRNOTAVAIL => (
            Cause::GwPortExhausted,
            "no free source port for that destination",
        ),
        _ => return None,
    };
    let text = format!("connect() returned {errno} before a SYN left: {why}");
    let decisive = fact(source, "connect_errno", text);
    Some(Verdict::new(cause, Proof::Proven, Phase::Connect, decisive))
}

/// A reset answered the SYN.
fn reset(facts: &ConnectFacts, ttl: u8) -> Verdict {
    let after = human(facts.elapsed);
    let (source, text) = match ttl {
        0 => (
            EvidenceSource::Kernel,
            format!("a reset answered the SYN after {after}"),
        ),
        ttl => (
            EvidenceSource::Packet,
            format!("RST answered the SYN after {after}, ttl {ttl}"),
        ),
    };
    let decisive = fact(source, "syn_reset", text);
    let verdict = |cause, proof| Verdict::new(cause, proof, Phase::Connect, decisive);
    let target = facts.target_ttl.filter(|_| ttl > 0 && !facts.reset_own);
    let Some(target) = target else {
        return verdict(Cause::TcpConnectRefused, Proof::Proven)
            .with(facts.died.map(|(died, at)| died.evidence(at)));
    };
    let beside = |text: String| fact(EvidenceSource::Packet, "target_ttl", text);
    match origin(target, ttl) {
        Origin::Target => verdict(Cause::TcpConnectRefused, Proof::Proven)
            .with([beside(format!(
                "ttl {target} on the target's own packets as well"
            ))])
            .with(facts.died.map(|(died, at)| died.evidence(at))),
        Origin::Elsewhere => verdict(Cause::TcpConnectRejectedByFilter, Proof::Inferred).with([
            beside(format!(
                "ttl {target} on the target's own packets: something else sent the reset"
            )),
        ]),
        Origin::Unclear => verdict(Cause::TcpConnectRefused, Proof::Inferred)
            .with([beside(format!(
                "ttl {target} on the target's own packets: the reset came from beside the target"
            ))])
            .against(
                &[Cause::TcpConnectRejectedByFilter],
                "whether the address forwards its ports to another host or container: then the reset is that of the one in front",
            ),
    }
}

/// An ICMP error quoted the SYN. Codes: RFC 792, RFC 1812 section 5.2.7.1; RFC 4443 section 3.1.
fn unreachable(icmp: &IcmpError) -> Verdict {
    let IcmpError { from, code, .. } = icmp;
    let (cause, what) = if icmp.from_self {
        (
            Cause::TcpConnectNoNeighbour,
            "this host's own neighbour lookup failed",
        )
    } else if icmp.upstream.is_ipv4() {
        match code {
            2 | 3 => (
                Cause::TcpConnectRejectedByFilter,
                "protocol or port unreachable: a filter's answer to a SYN",
            ),
            9 | 10 | 13 => (
                Cause::TcpConnectRejectedByFilter,
                "administratively prohibited",
            ),
            _ => (
                Cause::TcpConnectHostUnreachable,
                "network or host unreachable",
            ),
        }
    } else {
        match code {
            1 | 5 | 6 => (
                Cause::TcpConnectRejectedByFilter,
                "administratively prohibited",
            ),
            4 => (
                Cause::TcpConnectRejectedByFilter,
                "port unreachable: a filter's answer to a SYN",
            ),
            _ => (
                Cause::TcpConnectHostUnreachable,
                "no route or address unreachable",
            ),
        }
    };
    let text = format!("ICMP unreachable code {code} from {from} quoted the SYN: {what}");
    let decisive = fact(EvidenceSource::Packet, "icmp_unreachable", text);
    Verdict::new(cause, Proof::Proven, Phase::Connect, decisive)
}

/// Nothing that could be seen answered the SYN.
fn silent(facts: &ConnectFacts) -> Option<Verdict> {
    let kernel = |what, text: String| fact(EvidenceSource::Kernel, what, text);
    let elapsed = human(facts.elapsed);
    match facts.errno {
        Some(errno @ Errno::ECONNREFUSED) => {
            let decisive = kernel(
                "connect_errno",
                format!("{errno} after {elapsed}, the answer itself was not seen"),
            );
            Some(
                Verdict::new(
                    Cause::TcpConnectRefused,
                    Proof::Underdetermined,
                    Phase::Connect,
                    decisive,
                )
                .against(
                    &[Cause::TcpConnectRejectedByFilter],
                    "the packet that answered the SYN: a RST from the target or an ICMP error",
                ),
            )
        }
        Some(errno @ (Errno::EHOSTUNREACH | Errno::ENETUNREACH)) => {
            let decisive = kernel(
                "connect_errno",
                format!("{errno} after {elapsed}, the ICMP error itself was not seen"),
            );
            Some(
                Verdict::new(
                    Cause::TcpConnectHostUnreachable,
                    Proof::Underdetermined,
                    Phase::Connect,
                    decisive,
                )
                .against(
                    &[
                        Cause::TcpConnectNoNeighbour,
                        Cause::TcpConnectRejectedByFilter,
                    ],
                    "the sender and the code of the ICMP error",
                ),
            )
        }
        Some(errno @ (Errno::EADDRNOTAVAIL | Errno::EACCES | Errno::EPERM | Errno::EINVAL)) => {
            local_refusal(errno, EvidenceSource::Kernel)
        }
        // No reset was seen, so ECONNRESET is the kernel's word for a gateway that gave up with
        // shutdown(), as HAProxy does, rather than close().
        None | Some(Errno::ETIMEDOUT | Errno::ECONNRESET) => blackholed(facts),
        Some(_) => None,
    }
}

/// SYNs left and nothing came back.
fn blackholed(facts: &ConnectFacts) -> Option<Verdict> {
    // Without the end of the attempt, one unanswered SYN is not yet a failure.
    let patient = facts.elapsed >= facts.patience;
    let gave_up = if facts.over {
        patient
    } else {
        facts.syn_retransmits > 0
    };
    if !gave_up {
        return None;
    }
    let end = if facts.over {
        "when the gateway gave up"
    } else {
        "when the observation ended"
    };
    let text = format!(
        "no answer of any kind to the SYN for {}, {end}",
        human(facts.elapsed)
    );
    let decisive = fact(EvidenceSource::Timer, "syn_unanswered", text);
    let verdict = Verdict::new(
        Cause::TcpConnectBlackholed,
        Proof::Inferred,
        Phase::Connect,
        decisive,
    );
    if facts.syns_dropped && facts.syn_retransmits > 0 {
        let text = "meanwhile a connection to that port was established, one only after its SYN was sent again, and no established one lost request bytes";
        let others = fact(EvidenceSource::Packet, "other_connects", text);
        let verdict = Verdict {
            cause: Cause::TcpConnectBacklogFull,
            ..verdict
        };
        return Some(verdict.with([others]));
    }
    if facts.over && facts.syn_retransmits == 0 && facts.elapsed < SECOND_SYN {
        return Some(verdict.against(
            &[Cause::TcpConnectBacklogFull],
            "whether a second SYN is answered: the gateway gave up before its kernel sent one",
        ));
    }
    if facts.upstream_alive {
        return Some(verdict.against(
            &[Cause::TcpConnectBacklogFull],
            "ListenOverflows on the upstream host: other connections to that port work",
        ));
    }
    Some(verdict)
}
