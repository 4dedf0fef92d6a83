//! What the kernel tells of hops and of calls, beside their packets.

use std::sync::Arc;

use super::answers::Attempt;
use super::{Engine, MAX_EARLY_ICMP, Slot};
use crate::classify::{connect_call, connect_unix};
use crate::model::{
    Errno, HopId, IcmpError, IcmpKind, Process, Signal, Target, TcpState, Timestamp, Turn,
};
use crate::tcp::Ends;

impl Engine {
    /// Notes that a call of a gateway failed at once. Returns as which turn it is told.
    pub(super) fn call_failed(&mut self, at: Timestamp, turn: Turn, process: &Process) -> Turn {
        let turn = self.pauses.told(at, turn);
        self.pauses.failed(at, turn, process);
        turn
    }

    pub(super) fn signal(&mut self, at: Timestamp, id: HopId, mut signal: Signal) {
        self.stats.signals += 1;
        let released = match &mut signal {
            Signal::Opened { turn, .. } => {
                *turn = self.pauses.told(at, *turn);
                None
            }
            Signal::State { old, new, turn, .. } => {
                let release = release(*old, *new);
                *turn = if release == Some(By::Process) {
                    self.pauses.told(at, *turn)
                } else {
                    self.pauses.told_of_kernel(at, *turn)
                };
                release.map(|by| (*turn, by == By::Process))
            }
            _ => None,
        };
        if let Signal::State {
            old: TcpState::Close,
            new: TcpState::Close,
            turn,
            ..
        } = signal
        {
            // The process let go of a socket that was closed already.
            self.note_release(at, id, turn, true);
            return;
        }
        if self.hops.contains_key(&id) {
            if matches!(signal, Signal::Opened { .. }) {
                // What the socket did before is told as it was.
                self.tell_held(id);
            }
        } else {
            match &signal {
                Signal::Opened {
                    process, upstream, ..
                } => self.track(at, id, (process.netns, *upstream), false),
                Signal::Seeded {
                    process, upstream, ..
                } => self.track(at, id, (process.netns, *upstream), true),
                // Whose hop it is was never told, or it is over.
                _ => return,
            }
        }
        let seeded = match &signal {
            Signal::Seeded {
                local, upstream, ..
            } => Some((*local, *upstream)),
            _ => None,
        };
        if matches!(signal, Signal::ConnectReturned { .. }) {
            self.answers.connect_failed(id);
            if let Some(Slot::Live(tracked)) = self.hops.get(&id)
                && let (Some(turn), Some(process)) =
                    (tracked.hop.opener(), tracked.hop.process.as_ref())
            {
                self.pauses.failed(at, turn, process);
            }
        }
        let opened = matches!(signal, Signal::Opened { .. });
        if let Signal::Opened {
            turn,
            turn_age,
            process,
            ..
        } = &signal
        {
            let began = turn_age.map(|age| at.before(age));
            self.answers.opened(at, *turn, began, id, process);
        }
        self.with_hop(id, |hop, cx| hop.signal(at, signal, cx));
        if opened {
            self.name(at, id, None);
        }
        if let Some((turn, sure)) = released {
            self.note_release(at, id, turn, sure);
        }
        // The hop knows its process, and so its namespace, only now.
        if let Some(ends) = seeded {
            self.enter_ends(id, ends);
        }
    }

    pub(super) fn icmp(&mut self, at: Timestamp, icmp: IcmpError) {
        // Of the others the kernel makes what it needs: they are kept as evidence alone.
        if icmp.kind != IcmpKind::Unreachable {
            return;
        }
        let ends = Ends::new(icmp.local, icmp.upstream);
        let known = self.hop_of((icmp.netns, ends));
        let Some(id) = known.or_else(|| self.hop_of((0, ends))) else {
            // The error and the SYN that it quotes come through different sockets: the error may be
            // first.
            self.early_icmp.push_back((at, icmp));
            if self.early_icmp.len() > MAX_EARLY_ICMP {
                self.early_icmp.pop_front();
                self.stats.icmp_unmatched += 1;
            }
            return;
        };
        self.with_hop(id, |hop, _| hop.icmp(at, icmp));
    }

    pub(super) fn connect_failed(
        &mut self,
        at: Timestamp,
        process: &Arc<Process>,
        upstream: Target,
        errno: Errno,
        turn: Option<Turn>,
    ) -> Option<Attempt> {
        let verdict = match upstream {
            Target::Inet(_) => connect_call(errno),
            Target::Unix(_) => connect_unix(errno),
            Target::None => None,
        };
        let Some(verdict) = verdict else {
            self.stats.connect_unmapped += 1;
            return None;
        };
        self.hopless += 1;
        let id = format!("{:x}-c{:x}", at.as_nanos(), self.hopless);
        let event = self.event(id, at, verdict, upstream, Some(process));
        Some(Attempt::new(event, at, turn).in_one_turn())
    }
}

/// Who let go of a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Process,
    /// The process, or the kernel whatever had the processor.
    Anyone,
}

/// Who let go of a socket that went from one of these states to the other; `None` where nobody did.
const fn release(old: TcpState, new: TcpState) -> Option<By> {
    match (old, new) {
        // What follows is the kernel's.
        (
            TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::LastAck
            | TcpState::Closing
            | TcpState::TimeWait,
            _,
        ) => None,
        // The last: of a socket that was closed already.
        (_, TcpState::FinWait1 | TcpState::LastAck) | (TcpState::Close, TcpState::Close) => {
            Some(By::Process)
        }
        (_, TcpState::Close) => Some(By::Anyone),
        _ => None,
    }
}
