//! The handshake of a hop: SYNs, what answers them, and how a connect ends without being established.

use std::time::Duration;

use super::across::LATELY;
use super::{Context, Hop, Judged, Outcome, Phase, Wait};
use crate::classify::{ConnectFacts, connect, connect_late};
use crate::engine::peers::Peer;
use crate::model::{Direction, Errno, EvidenceSource, IcmpError, Segment, TcpFlags, Timestamp};
use crate::tcp::Flow;

/// Kernel facts about a failed connect follow the packet at once; an ICMP error comes through a
/// socket of its own and may be a little later.
const CONNECT_SETTLE: Duration = Duration::from_millis(20);
const ICMP_SETTLE: Duration = Duration::from_millis(150);

/// Where nothing at all answered, an answer may come right after the gateway gave up.
const LATE_SETTLE: Duration = Duration::from_secs(1);

/// An ICMP error does not end a connect whose process is inside the call, and another SYN follows.
/// Without a kernel the error is final unless that comes: the second SYN after one second (RFC 6298
/// section 2).
const ICMP_FINAL: Duration = Duration::from_millis(1200);

/// Linux gives up a connect after six retransmissions, 127 s (`tcp_syn_retries`).
const CONNECT_LIMIT: Duration = Duration::from_secs(130);

/// A SYN that is seen again sooner was captured twice, not sent twice: a kernel waits for a second
/// (RFC 6298 section 2), and no setting goes below its shortest timeout of 200 ms.
const SYN_AGAIN: Duration = Duration::from_millis(100);

/// The gateway's kernel resets what is for no socket as soon as it comes.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What is known of how the connect ended.
#[derive(Debug, Default)]
pub(super) struct ConnectEnd {
    pub(super) at: Option<Timestamp>,
    pub(super) reset_ttl: Option<u8>,
    /// Whether the upstream's kernel, on this host, said that the reset is its own.
    pub(super) reset_own: bool,
    /// When the SYN was answered although the gateway had given up, and who told.
    pub(super) late: Option<(Timestamp, EvidenceSource)>,
    pub(super) icmp: Option<IcmpError>,
    pub(super) errno: Option<Errno>,
    pub(super) returned: Option<Errno>,
    pub(super) over: bool,
}

impl Hop {
    /// SYN or SYN-ACK.
    pub(super) fn syn(&mut self, at: Timestamp, segment: &Segment<'_>, cx: &mut Context<'_>) {
        match segment.direction {
            Direction::ToUpstream if !segment.flags.contains(TcpFlags::ACK) => {
                if self.last_syn.is_some_and(|seen| at.since(seen) < SYN_AGAIN) {
                    return;
                }
                if self.last_syn.is_some() {
                    self.syn_retransmits += 1;
                    // Its record may come behind that of the end.
                    if !self.connect.over {
                        self.connect.at = None;
                        self.waits.retain(|(_, wait)| *wait != Wait::Connect);
                    }
                } else if !self.to.started() && self.phase != Phase::Over {
                    self.phase = Phase::Connecting;
                    self.mid_stream = false;
                }
                self.last_syn = Some(at);
                if !self.kernel {
                    // Without a kernel nothing tells when the gateway gives up.
                    let limit = match self.connect.icmp {
                        Some(_) => self.icmp_final(),
                        None => CONNECT_LIMIT,
                    };
                    self.waits.push((at.after(limit), Wait::Connect));
                }
            }
            Direction::FromUpstream
                if self.phase == Phase::Connecting
                    && self.connect.over
                    && segment.flags.contains(TcpFlags::ACK) =>
            {
                self.answered_late(at, EvidenceSource::Packet);
            }
            Direction::FromUpstream if self.phase == Phase::Connecting => {
                if let Some(sent) = self.last_syn
                    && self.syn_retransmits == 0
                {
                    self.rtt_us = u32::try_from(at.since(sent).as_micros()).ok();
                }
                self.establish(at, segment.ttl, cx);
                self.half_open = true;
                self.last_syn_ack = Some(at);
            }
            Direction::FromUpstream
                if self.phase == Phase::Established
                    && self
                        .last_syn_ack
                        .is_some_and(|seen| at.since(seen) >= SYN_AGAIN) =>
            {
                self.last_syn_ack = Some(at);
                self.syn_acks_again += u32::from(!self.half_open);
            }
            _ => {}
        }
    }

    /// Whether a segment that meets a SYN belongs to an earlier connection on the same ports, which the
    /// upstream has not forgotten: it acknowledges what that one had come to, the gateway resets just that
    /// and sends its SYN again (RFC 9293 section 3.5.1). A reset of that kind refuses nothing (section
    /// 3.10.7.3).
    pub(super) fn is_of_earlier(&self, segment: &Segment<'_>) -> bool {
        let flags = segment.flags;
        match segment.direction {
            Direction::FromUpstream => {
                flags.contains(TcpFlags::ACK) && !self.to.may_reach(segment.ack)
            }
            Direction::ToUpstream => {
                flags.contains(TcpFlags::RST) && !self.to.may_reach(segment.seq)
            }
        }
    }

    /// `ttl` is that of the upstream's segment, zero where none told.
    pub(super) fn establish(&mut self, at: Timestamp, ttl: u8, cx: &mut Context<'_>) {
        self.phase = Phase::Established;
        self.established.get_or_insert(at);
        self.waits.retain(|(_, wait)| *wait != Wait::Connect);
        if !std::mem::replace(&mut self.counted, true) {
            let repeated = self.syn_retransmits > 0;
            cx.peers.established(self.place(), at, repeated, ttl);
        }
    }

    /// A reset answered the SYN; `ttl` where its segment was seen.
    pub(super) fn refused(&mut self, at: Timestamp, ttl: Option<u8>, cx: &mut Context<'_>) {
        if self.connect.reset_ttl.is_none() {
            cx.peers.refused(self.place(), at, ttl.unwrap_or(0));
        }
        if ttl.is_some() {
            // The first one counts: a second may be the same behind a router.
            let seen = self.connect.reset_ttl.filter(|seen| *seen > 0);
            self.connect.reset_ttl = seen.or(ttl);
            self.connect_ended(at, CONNECT_SETTLE);
        } else {
            self.connect.reset_ttl.get_or_insert(0);
        }
    }

    /// The SYN was answered although the gateway had given up.
    pub(super) fn answered_late(&mut self, at: Timestamp, source: EvidenceSource) {
        self.connect.late.get_or_insert((at, source));
        self.connect_ended(at, CONNECT_SETTLE);
    }

    /// The socket left `SYN_SENT` without having been established.
    pub(super) fn gave_up(&mut self, at: Timestamp, errno: Option<Errno>, patience: Duration) {
        self.connect.errno = errno.or(self.connect.errno);
        self.connect.over = true;
        let end = &self.connect;
        let explained = end.reset_ttl.is_some() || end.icmp.is_some();
        let silent = matches!(end.errno, None | Some(Errno::ETIMEDOUT | Errno::ECONNRESET));
        let settle = if !explained && silent && at.since(self.opened) >= patience {
            LATE_SETTLE
        } else if explained || end.errno.is_none() {
            CONNECT_SETTLE
        } else {
            ICMP_SETTLE
        };
        self.connect_ended(at, settle);
    }

    /// Takes an ICMP error that quotes a segment of this hop.
    pub(in crate::engine) fn icmp(&mut self, at: Timestamp, icmp: IcmpError) -> Outcome {
        let mut out = Outcome::default();
        // On an established connection it is a hint, not an end (RFC 5927 section 4.1).
        if self.phase == Phase::Connecting {
            self.connect.icmp = Some(icmp);
            if self.kernel {
                if self.connect.over {
                    self.connect_ended(at, CONNECT_SETTLE);
                }
            } else {
                self.connect_ended(at, self.icmp_final());
            }
        }
        self.arm(&mut out);
        out
    }

    /// How long another SYN may take after an ICMP error, each twice as long as the one before.
    pub(super) fn icmp_final(&self) -> Duration {
        ICMP_FINAL * (1 << self.syn_retransmits.min(6))
    }

    /// Notes the end of a failed connect, to be judged after `settle`.
    pub(super) fn connect_ended(&mut self, at: Timestamp, settle: Duration) {
        self.connect.at.get_or_insert(at);
        self.waits.retain(|(_, wait)| *wait != Wait::Connect);
        self.waits.push((at.after(settle), Wait::Connect));
    }

    /// The same socket is connected once more after a connect that failed.
    pub(super) fn connect_again(&mut self, at: Timestamp) {
        (self.to, self.from) = (Flow::default(), Flow::default());
        self.connect = ConnectEnd::default();
        self.opened = at;
        self.last_syn = None;
        self.syn_retransmits = 0;
        self.setup_judged = false;
        self.waits.clear();
    }

    /// Judges the reset with which a kernel answers the SYN-ACK for a socket that is gone: it does not
    /// acknowledge (RFC 9293 section 3.10.7.1). A process that only wants to see whether the port is
    /// open resets a connection that its kernel knows.
    pub(super) fn reset_syn_ack(
        &mut self,
        at: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        let bare = segment.flags.contains(TcpFlags::RST) && !segment.flags.contains(TcpFlags::ACK);
        let answered = self.established.filter(|_| self.half_open && !self.kernel);
        self.half_open = false;
        let Some(answered) = answered.filter(|answered| bare && at.since(*answered) <= AT_ONCE)
        else {
            return;
        };
        let elapsed = answered.since(self.opened);
        if elapsed < cx.patience {
            cx.stats.connect_abandoned += 1;
            return;
        }
        // The upstream may have closed in between: that is the same failure.
        if std::mem::replace(&mut self.setup_judged, true) {
            return;
        }
        out.judge(Judged {
            at,
            verdict: connect_late(elapsed, EvidenceSource::Packet),
            exchange: None,
            status: None,
        });
    }

    pub(super) fn judge_connect(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        if self.phase != Phase::Connecting {
            return;
        }
        let end = self.connect.at.or(self.last_syn).unwrap_or(at);
        let elapsed = self.connect.at.unwrap_or(at).since(self.opened);
        self.setup_judged = true;
        if let Some((answered, source)) = self.connect.late
            && elapsed >= cx.patience
        {
            out.judge(Judged {
                at: end,
                verdict: connect_late(answered.since(self.opened), source),
                exchange: None,
                status: None,
            });
            self.over(at);
            return;
        }
        let facts = self.connect_facts(elapsed, end, cx);
        match connect(&facts) {
            Some(verdict) => {
                let judged = Judged {
                    at: end,
                    verdict,
                    exchange: None,
                    status: None,
                };
                self.tell_connect(judged, cx, out);
            }
            None if facts.errno.is_some() => cx.stats.connect_unmapped += 1,
            None => cx.stats.connect_abandoned += 1,
        }
        self.over(at);
    }

    fn connect_facts(&self, elapsed: Duration, end: Timestamp, cx: &Context<'_>) -> ConnectFacts {
        let place = self.place();
        let peer = cx.peers.get(&place);
        let lately =
            |when: Option<Timestamp>| when.is_some_and(|when| when.after(LATELY) >= self.opened);
        let meanwhile = |when: Timestamp| when >= self.opened;
        let syns_dropped = |peer: &Peer| {
            peer.established().is_some_and(meanwhile)
                && lately(peer.hard_won().filter(|won| *won <= end.after(LATELY)))
                && !lately(peer.lossy())
        };
        let reset_ttl = self.connect.reset_ttl;
        ConnectFacts {
            elapsed,
            syn_retransmits: self.syn_retransmits,
            reset_ttl,
            target_ttl: reset_ttl.and_then(|ttl| cx.peers.target_ttl(place, end, ttl)),
            reset_own: self.connect.reset_own,
            died: peer.and_then(|peer| Some((peer.died_before(end)?, end))),
            icmp: self.connect.icmp,
            errno: self.connect.errno,
            returned: self.connect.returned,
            upstream_alive: lately(peer.and_then(Peer::established)),
            syns_dropped: peer.is_some_and(syns_dropped),
            over: self.connect.over,
            patience: cx.patience,
        }
    }
}
