//! Which failed connects may have been made for another client.
//!
//! Of a connect there is nothing that was asked. Where many clients wait for a gateway at once, and the order in which
//! it does things is not known (see [`super::order`]), only times are left, which may fit more than one client: the one
//! who was told next, another one who was told then, or one who got a good answer from the next upstream. Such a join
//! is said to be ambiguous.

use super::facts::Asked;
use super::join::{self, Fit, Known};
use super::order::Habit;
use super::{Answer, Attempt, MAX_COMPARED, Past};
use crate::model::{HopId, Timestamp};

impl Known<'_> {
    /// Whether the failed connect of `attempt` may have been made for somebody else than the client of `answer`.
    pub(super) fn is_contested(&self, answer: &Answer, attempt: &Attempt) -> bool {
        let bare = Fit::of(answer, attempt).is_some_and(|fit| fit.is_bare());
        if answer.habit == Some(Habit::Answers) {
            return bare
                && !join::fills_wait(answer, attempt)
                && self.may_be_for_next(answer, attempt);
        }
        answer.habit.is_none()
            && bare
            && (is_out_of_order(answer)
                || !join::tells_of_no_connection(&answer.process.comm, answer.status)
                || self.may_be_retried(attempt, answer.at, None)
                || self.fits_another(answer, attempt))
    }

    /// Whether the failed connect of `attempt` may be behind `answer` as far as times tell, and nothing was asked of it.
    pub(super) fn is_option(answer: &Answer, attempt: &Attempt) -> bool {
        join::tells_of_no_connection(&answer.process.comm, answer.status)
            && Fit::of(answer, attempt).is_some_and(|fit| fit.is_bare() && !fit.is_stale(answer))
            && (!join::is_silence(attempt.event.cause) || join::fills_wait(answer, attempt))
    }

    /// Whether a request whose times an attempt fits was read by the turn that connected for that at the latest. One that
    /// came in the course of that turn may have been: with a connection that was accepted in it.
    fn is_read(&self, asked: &Asked, attempt: &Attempt) -> bool {
        let began = attempt.tried().and_then(|tried| self.order.began(tried));
        asked.read.is_some() || began.is_some_and(|began| asked.at <= began)
    }

    /// Whether an attempt that was let go of between an answer and a connect may have been made for the request of
    /// that connect, and not for the answer's.
    fn may_be_for_next(&self, answer: &Answer, attempt: &Attempt) -> bool {
        let Some(next) = attempt.tried().and_then(|tried| self.order.next(tried)) else {
            return false;
        };
        // What is asked is tried in the turn that reads it, unless it has to wait for that.
        let tried_for = |asked: &Asked| asked.read_in().map(|turn| attempt.opener == Some(turn));
        if tried_for(&answer.asked) == Some(true) {
            return false;
        }
        let told = self.order.answer_of(next);
        let told = told.and_then(|(serial, _)| join::answer_with(self.past, serial));
        // Not where that was for a client who had not asked yet.
        if told.is_some_and(|told| !told.asked.is_before(attempt.began)) {
            return false;
        }
        if !self.is_read(&answer.asked, attempt) {
            return true;
        }
        let for_next = told.and_then(|told| tried_for(&told.asked));
        for_next.unwrap_or_else(|| {
            // Of the other client nothing is known. This one's request was read in another turn: it may have had to
            // wait, and what was tried for it once is tried again in any turn.
            let tried = attempt.tried();
            let is_retry = tried.and_then(|tried| self.order.before(tried)).is_some();
            answer.asked.read.is_some() && !is_retry
        })
    }

    /// Whether the process connected elsewhere from the failure of `attempt` on until then, but for the hop `but`.
    /// Silence is given up by who waited for it, and told at once.
    pub(super) fn may_be_retried(
        &self,
        attempt: &Attempt,
        until: Timestamp,
        but: Option<HopId>,
    ) -> bool {
        let failed = attempt.event.time;
        let Some(pid) = attempt.pid() else {
            return false;
        };
        let is_meanwhile = |at: Timestamp| at >= failed && at <= until;
        let connects = self.opened.iter().any(|opened| {
            opened.pid == pid
                && is_meanwhile(opened.at)
                && Some(opened.hop) != but
                && Some(opened.hop) != attempt.hop
        });
        let calls = || {
            self.attempts.iter().any(|other| {
                other.hop.is_none()
                    && other.pid() == Some(pid)
                    && is_meanwhile(other.began)
                    && other.event.id != attempt.event.id
            })
        };
        !join::is_silence(attempt.event.cause) && (connects || calls())
    }

    /// Whether another client who asked for the same was told of a failure then, and it is not known of which.
    pub(super) fn was_asked_by_another(&self, answer: &Answer, attempt: &Attempt) -> bool {
        let path = join::path_of(attempt);
        path.is_some()
            && self.past.iter().any(|past| {
                past.serial != answer.serial
                    && !past.settled
                    && past.path.as_deref() == path
                    && past.asked.is_before(attempt.began)
                    && past.at.after(join::SLACK) >= attempt.event.time
                    && Some(past.process.pid) == attempt.pid()
            })
    }

    /// Whether another client was told of a failure that the one of `attempt` may be behind.
    pub(super) fn fits_another(&self, answer: &Answer, attempt: &Attempt) -> bool {
        let silent = join::is_silence(attempt.event.cause);
        let fits = |past: &&Past| {
            let waited = (past.asked.since(), past.at);
            past.serial != answer.serial
                && !past.settled
                && past.asked.is_before(attempt.began)
                && past.at.after(join::SMALL) >= attempt.event.time
                && Some(past.process.pid) == attempt.pid()
                && join::tells_of_no_connection(&past.process.comm, past.status)
                && (!silent || join::fills(waited, attempt))
                && !is_of_another_turn(past, attempt)
        };
        // What names its attempt needs no other.
        let named = |past: &Past| {
            let waiting = self.waiting.iter().find(|one| one.serial == past.serial);
            waiting.is_some_and(|waiting| {
                let named = |other: &Attempt| {
                    Fit::of(waiting, other).is_some_and(Fit::is_by_name) && !other.listed
                };
                self.attempts.iter().any(named)
            })
        };
        let mut others = self.past.iter().filter(fits);
        // Where there are many, one will do.
        others.by_ref().take(MAX_COMPARED).any(|past| !named(past)) || others.next().is_some()
    }
}

/// Whether the order in which a gateway did things is of no help for an answer, since records were lost or the kernel
/// sent it by itself. A thread that does one thing at a time is known all the same.
pub(super) fn is_out_of_order(answer: &Answer) -> bool {
    let habit = Habit::of(&answer.process.comm);
    answer.habit.is_none() && matches!(habit, Some(Habit::LetsGo | Habit::Answers))
}

/// Whether an event loop let go of an attempt in another turn than the one in which it answered.
fn is_of_another_turn(past: &Past, attempt: &Attempt) -> bool {
    let sure = attempt.sure || join::is_silence(attempt.event.cause);
    let turns = (past.turn, attempt.turn.filter(|_| sure));
    join::has_event_loop(&past.process.comm)
        && matches!(turns, (Some(told), Some(released)) if told != released)
}
