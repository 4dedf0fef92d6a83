//! What a hop's verdict owes to the other hops to the same upstream.
//!
//! Most verdicts are told at once. One that may be part of something larger waits for a moment, but
//! only where other connections to the upstream are open or were closed with it.

use std::time::Duration;

use super::{Context, Hop, Judged, Outcome, Wait};
use crate::classify::{
    ExchangeFacts, Verdict, draining_connect, draining_cut, half_open, is_cut, process_died,
};
use crate::engine::exchange::{EXCHANGE_BYTES, Exchange};
use crate::engine::peers::{AFTER_INSTANT, Closed, ONE_INSTANT, Peer, Peers};
use crate::model::{Cause, Proof, Timestamp};
use crate::tcp::Close;

/// Connects and exchanges this much before still tell how the upstream is doing.
pub(super) const LATELY: Duration = Duration::from_secs(10);

/// How long a connect stays refused beside open connections before that says something, and how long
/// no connection must have been established before it.
const REFUSED: Duration = Duration::from_secs(1);

/// Verdicts that wait for word of the upstream.
#[derive(Debug)]
pub(super) struct Held {
    /// When the upstream closed, or refused the SYN.
    since: Timestamp,
    judged: Vec<Judged>,
}

impl Held {
    /// Memory for the verdicts' exchanges.
    pub(super) fn kept_bytes(&self) -> usize {
        self.judged.len() * EXCHANGE_BYTES
    }
}

impl Hop {
    /// The hop is over, or as good as that; `how` where the upstream closed it first.
    pub(super) fn leave(&mut self, at: Timestamp, how: Option<Closed>, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.counted) {
            cx.peers.closed(&self.place(), at, how);
        }
    }

    /// How the upstream closes, being first; `completed` tells whether the close itself ends a response.
    pub(super) fn how_closed(&self, at: Timestamp, close: Close, completed: bool) -> Closed {
        let in_flight = |open: &Exchange| !open.judged && !open.closed_before;
        let exchanges = &self.exchanges;
        let ended = exchanges.last_end;
        let behind = ended.is_some_and(|end| at.since(end) <= ONE_INSTANT);
        if exchanges.open.iter().any(in_flight) {
            Closed::Cut
        } else if close == Close::Fin && behind {
            let reused = exchanges.is_reused() && !completed;
            Closed::Behind { reused }
        } else {
            Closed::Idle
        }
    }

    /// Tells the verdict on an open exchange, or holds it.
    pub(super) fn tell(&mut self, judged: Judged, cx: &Context<'_>, out: &mut Outcome) {
        let at = judged.at;
        if !is_cut(&judged.verdict) {
            out.judge(judged);
            return;
        }
        let Some(peer) = cx.peers.get(&self.place()) else {
            out.judge(judged);
            return;
        };
        if peer.open() == 0 && peer.died(at).is_none() {
            let verdict = self.may_drain(judged.verdict, at, peer);
            out.judge(Judged { verdict, ..judged });
        } else {
            self.hold(judged, at, at.after(ONE_INSTANT));
        }
    }

    /// Tells the verdict on the connect, or holds it.
    pub(super) fn tell_connect(&mut self, judged: Judged, cx: &Context<'_>, out: &mut Outcome) {
        let at = judged.at;
        let refused = judged.verdict.cause == Cause::TcpConnectRefused
            && judged.verdict.proof == Proof::Proven;
        let beside = || {
            let peer = cx.peers.get(&self.place());
            peer.is_some_and(|peer| peer.open() > 0)
        };
        if refused && beside() {
            self.hold(judged, at, at.after(REFUSED));
        } else {
            out.judge(judged);
        }
    }

    /// The verdict on a cut, or that the upstream drains where it refused a SYN before.
    fn may_drain(&self, verdict: Verdict, at: Timestamp, peer: &Peer) -> Verdict {
        let begun = self.established.unwrap_or(self.opened);
        match peer.refused().filter(|refused| begun < *refused) {
            Some(refused) => draining_cut(verdict, refused, at, peer.open() > 0),
            None => verdict,
        }
    }

    fn hold(&mut self, judged: Judged, since: Timestamp, until: Timestamp) {
        let held = self.held.get_or_insert_with(|| {
            let judged = Vec::with_capacity(1);
            Box::new(Held { since, judged })
        });
        held.judged.push(judged);
        if !self.waiting(Wait::Held) {
            self.waits.push((until, Wait::Held));
        }
    }

    /// The verdicts that waited, changed by what is known of the upstream by now. Without `last`, they
    /// may have to wait longer.
    pub(in crate::engine) fn release(
        &mut self,
        now: Timestamp,
        last: bool,
        peers: &Peers,
    ) -> Vec<Judged> {
        let Some(held) = self.held.take() else {
            return Vec::new();
        };
        let since = held.since;
        let Some(peer) = peers.get(&self.place()) else {
            return held.judged;
        };
        let died = peer.died(since);
        if let Some((began, None)) = died
            && !last
            && now < began.after(AFTER_INSTANT)
            && held.judged.iter().any(|judged| is_cut(&judged.verdict))
        {
            self.held = Some(held);
            self.waits.push((began.after(AFTER_INSTANT), Wait::Held));
            return Vec::new();
        }
        let died = died.and_then(|(_, died)| died);
        let after = |when: Option<Timestamp>| when.is_some_and(|when| when > since);
        let established = peer.established();
        // An observation that ends too soon shows less.
        // What is closed behind one response while others go on is one of several hosts, or a limit of its
        // own.
        let finished = after(peer.finished())
            && peer.completed() <= peer.finished()
            && now >= since.after(REFUSED);
        let drains = after(peer.completed())
            && established.is_none_or(|last| last.after(REFUSED) < since)
            && peer.died_before(since).is_none();
        let mut judged = held.judged;
        for Judged { at, verdict, .. } in &mut judged {
            let refused = verdict.cause == Cause::TcpConnectRefused;
            if let Some(died) = died.as_ref().filter(|_| is_cut(verdict)) {
                change(verdict, |verdict| process_died(verdict, died));
            } else if is_cut(verdict) {
                change(verdict, |verdict| self.may_drain(verdict, *at, peer));
            } else if refused && drains {
                change(verdict, |verdict| draining_connect(verdict, finished));
            }
        }
        judged
    }

    /// The verdict on an exchange whose connection the upstream never took from its queue.
    pub(super) fn half_open(&self, facts: &ExchangeFacts<'_>, cx: &Context<'_>) -> Option<Verdict> {
        if self.syn_acks_again == 0 {
            return None;
        }
        let peer = cx.peers.get(&self.place());
        let completed = peer.and_then(Peer::completed);
        let alive = completed.is_some_and(|last| last.after(LATELY) >= self.opened);
        half_open(facts, self.syn_acks_again, alive)
    }
}

/// Puts another verdict into the place of one.
fn change(verdict: &mut Verdict, how: impl FnOnce(Verdict) -> Verdict) {
    *verdict = how(verdict.clone());
}
