//! Events whose time is over with no answer that took them: whether a client may still be told, or never was.

use std::time::Duration;

use super::join;
use super::{Answer, Answers, Attempt, Past};
use crate::model::{Cause, Timestamp};

/// An event waits no longer than this for a client that still waits itself, and is not marked then.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the source has to say who waits, and how often it is asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Answers {
    /// Publishes an event whose time is over, unless its client may still wait.
    pub(super) fn give_up(&mut self, now: Timestamp, mut attempt: Attempt) {
        let gateway = attempt.event.gateway.as_ref();
        let (pid, netns) = gateway.map_or((0, 0), |gateway| (gateway.pid, gateway.netns));
        // An answer that is not joined yet may list it.
        let of_answer = |answer: &&Answer| {
            answer.process.pid == pid
                && answer.asked.is_before(attempt.began)
                && answer.at.after(join::SMALL) >= attempt.event.time
        };
        let joined = self
            .waiting
            .iter()
            .filter(of_answer)
            .map(|answer| answer.due);
        if let Some(due) = joined.max().filter(|due| !attempt.listed && *due > now) {
            attempt.due = due;
            self.keep(attempt);
            return;
        }
        if let Some(exit) = self.exit_of(&attempt.event) {
            crate::classify::worker_died(&mut attempt.event, exit, pid);
        } else if self.may_be_hidden(&attempt, netns) {
            let known = self.oldest.as_ref().filter(|_| attempt.asked);
            let waits = known.map(|(_, oldest)| {
                let since = oldest.get(&netns);
                since.is_some_and(|since| *since <= attempt.began.after(join::SLACK))
            });
            if waits == Some(false) {
                attempt.event.hidden_from_client = true;
                self.tally.hidden += 1;
            } else if now.since(attempt.event.time) < PATIENCE {
                // Asked the first time, or again: somebody waits that may be told of it yet.
                let first = !attempt.asked;
                attempt.asked = first;
                attempt.due = now.after(ASK_AGAIN);
                self.asking |= first;
                self.keep(attempt);
                return;
            }
        }
        self.publish(attempt.event);
    }

    /// Puts an attempt back that was taken out. Those that were not shown yet stay the last ones.
    pub(super) fn keep(&mut self, attempt: Attempt) {
        if attempt.shown {
            self.attempts.push_front(attempt);
        } else {
            self.attempts.push_back(attempt);
        }
    }

    /// Whether no client that is known of was told of a failure.
    pub(super) fn may_be_hidden(&self, attempt: &Attempt, netns: u64) -> bool {
        let exchange = attempt.event.exchange.as_ref();
        let path = exchange.and_then(|exchange| exchange.path.as_deref());
        // Some answer of that gateway covers its time, and is not to a request for something else. Which of its
        // processes made it is not always known.
        let gateway = attempt.event.gateway.as_ref();
        // A connect that fails is over before anybody is told.
        let slack = if exchange.is_some() {
            join::SLACK
        } else {
            join::SMALL
        };
        let covered = |past: &Past| {
            past.process.netns == netns
                && gateway.is_none_or(|gateway| gateway.comm == past.process.comm)
                && past.asked.is_before(attempt.began)
                && past.at.after(slack) >= attempt.event.time
                && join::paths(path, past.path.as_deref()) != join::Paths::Other
        };
        // The one after it was for the same client, who was told of both if of any.
        let next = attempt.tried().filter(|tried| {
            let answer = self.order.answer_of(*tried);
            answer.is_none_or(|(serial, _)| !self.may_have(serial, attempt))
        });
        let next = next.and_then(|tried| self.order.next(tried));
        !attempt.listed
            // Its own status is what clients get, good or bad.
            && attempt.event.cause != Cause::UpstreamOwnError
            && self.watched.get(&netns) == Some(&true)
            && (next.is_some() || !self.past.iter().any(covered))
    }
}
