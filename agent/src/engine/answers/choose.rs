//! Which attempts are behind an answer.

use super::join::{self, Fit, Known};
use super::kin::Kin;
use super::order::{Habit, Tried};
use super::{Answer, Answers, Attempt, MAX_COMPARED, Past, Release};
use crate::model::Cause;

impl Answers {
    /// Whether an attempt is the one behind an answer whatever verdicts may still come: what the gateway let
    /// go of since the request may be judged later, and be an earlier attempt or the last.
    pub(super) fn is_certain(&self, answer: &Answer, attempt: &Attempt) -> bool {
        // What came back to the gateway is told once the answers within it are.
        if attempt.event.upstream.socket_addr() == Some(answer.ends.1) {
            return false;
        }
        if answer.habit.is_some() {
            // What was tried before may be judged later.
            return attempt.tried().is_some_and(|tried| {
                self.order.answer_of(tried) == Some((answer.serial, true))
                    && self.order.before(tried).is_none()
                    && (self.order.next(tried).is_none() || answer.habit == Some(Habit::Answers))
            }) && Fit::of(answer, attempt).is_some_and(Fit::is_by_name);
        }
        // Asked of all that wait: most end here.
        if answer.turn.is_none() || answer.turn != attempt.turn {
            return false;
        }
        let beside = |release: &Release| {
            let own = release.pid == answer.process.pid || Some(release.turn) == answer.turn;
            own && release.at.after(join::SMALL) >= answer.asked.at
                && Some(release.hop) != attempt.event.hop
        };
        let fits = Fit::of(answer, attempt).is_some_and(Fit::is_certain);
        fits && !self.released.iter().any(beside)
    }

    /// The attempt behind an answer: its place, and those of others that fit alike.
    pub(super) fn candidates(&self, answer: &Answer) -> Option<(usize, Vec<usize>)> {
        if let Some(place) = self.last_of_kin(answer) {
            return Some((place, Vec::new()));
        }
        let by_name = |attempt: &Attempt| Fit::of(answer, attempt).is_some_and(Fit::is_by_name);
        // What was passed on is known by its status and path, whatever was let go of beside it.
        let passed_on = self.attempts.iter().any(|attempt| {
            attempt.event.cause == Cause::UpstreamOwnError
                && attempt.event.gateway_answer.is_none()
                && !attempt.listed
                && by_name(attempt)
                && !self.is_tried_again(attempt)
        });
        if let Some(place) = self.beside(answer)
            && (!passed_on || self.attempts.get(place).is_some_and(by_name))
        {
            return Some((place, Vec::new()));
        }
        let mut fitting: Vec<(usize, Fit)> = self
            .attempts
            .iter()
            .enumerate()
            .filter(|(_, attempt)| attempt.event.gateway_answer.is_none() && !attempt.listed)
            .filter(|(_, attempt)| self.servers.kin(answer, attempt) != Kin::Other)
            .filter_map(|(index, attempt)| Some((index, Fit::of(answer, attempt)?)))
            .filter(|(index, fit)| !self.is_doubtful(answer, *index, fit))
            .collect();
        // Of statuses that may have been passed on, those that another attempt for the same followed come last.
        let again = |place: &usize| {
            let attempt = self.attempts.get(*place);
            attempt.is_some_and(|attempt| self.is_tried_again(attempt))
        };
        if answer.habit.is_some() && !fitting.iter().all(|(place, _)| again(place)) {
            fitting.retain(|(place, _)| !again(place));
        }
        let mut preferred = fitting.clone();
        self.opened_for(answer, &mut preferred);
        let best = preferred.iter().max_by_key(|(_, fit)| *fit).copied()?;
        let (best, fit) = self.first_of(answer, &preferred, best).unwrap_or(best);
        let last = if answer.habit.is_some() {
            best
        } else {
            join::last_of(&self.attempts, best, answer, &self.waiting)
        };
        let chosen = self.attempts.get(best)?;
        let alike = fitting
            .iter()
            .filter(|(index, other)| *index != best && *index != last && other.is_like(&fit))
            .filter_map(|(index, _)| Some((*index, self.attempts.get(*index)?)))
            // One that failed before this one began is an earlier attempt for the same request, which does
            // not decide the answer, unless it may be another client's.
            .filter(|(_, other)| {
                let of_another = |answer| Fit::of(answer, other).is_some();
                other.event.time > chosen.began || self.waiting.iter().any(of_another)
            })
            .filter(|(_, other)| {
                other.event.cause != chosen.event.cause
                    || other.event.upstream != chosen.event.upstream
            })
            .map(|(index, _)| index)
            .collect();
        Some((last, alike))
    }

    /// The one of several attempts that is taken where another client waits whom some of them fit as well: the first that
    /// was begun, which fits the fewest of those who asked later.
    pub(super) fn first_of(
        &self,
        answer: &Answer,
        fitting: &[(usize, Fit)],
        (best, fit): (usize, Fit),
    ) -> Option<(usize, Fit)> {
        // What is passed on is let go of later, or kept.
        let best = self.attempts.get(best)?;
        let passed_on = best.event.cause == Cause::UpstreamOwnError;
        if !matches!(
            (answer.habit, passed_on),
            (None, _) | (Some(Habit::Answers), true)
        ) {
            return None;
        }
        let alike = || {
            fitting
                .iter()
                .filter(|(_, other)| other.is_as_good_as(&fit))
        };
        let fits = |other: &Answer| {
            alike().any(|(place, _)| {
                let attempt = self.attempts.get(*place);
                attempt.is_some_and(|attempt| Fit::of(other, attempt).is_some())
            })
        };
        if !(2..=MAX_COMPARED).contains(&alike().count()) || !self.waiting.iter().any(fits) {
            return None;
        }
        let began = |place: usize| self.attempts.get(place).map(|attempt| attempt.began);
        alike().min_by_key(|(place, _)| began(*place)).copied()
    }

    /// The attempt that the thread of an answer let go of right beside it.
    pub(super) fn beside(&self, answer: &Answer) -> Option<usize> {
        answer.habit?;
        let fitting = self.attempts.iter().enumerate().filter(|(_, attempt)| {
            attempt.event.gateway_answer.is_none()
                && !attempt.listed
                // A status that is passed on comes before its connection is let go of, or kept.
                && attempt.event.cause != Cause::UpstreamOwnError
        });
        let beside = fitting.filter_map(|(index, attempt)| {
            let tried = attempt.tried()?;
            let (serial, sure) = self.order.answer_of(tried)?;
            let fit = Fit::of(answer, attempt).filter(|_| serial == answer.serial)?;
            let call = matches!(tried, Tried::Call { .. });
            (!fit.is_late(answer)).then_some((fit.is_by_name(), call, sure, index))
        });
        beside.max().map(|(.., index)| index)
    }

    /// Whether another attempt for the same path was made right behind one.
    pub(super) fn is_tried_again(&self, attempt: &Attempt) -> bool {
        let next = attempt.tried().and_then(|tried| self.order.next(tried));
        let path = next.and_then(|next| self.path_of(next));
        path.is_some() && path == join::path_of(attempt)
    }

    /// What was asked with an attempt: as its request says, or the client for whom it was the last one.
    pub(super) fn path_of(&self, tried: Tried) -> Option<&str> {
        let mut attempts = self.attempts.iter();
        let attempt = attempts.find(|attempt| attempt.tried() == Some(tried));
        let own = attempt.and_then(join::path_of);
        own.or_else(|| {
            let (serial, _) = self.order.answer_of(tried)?;
            join::answer_with(&self.past, serial)?.path.as_deref()
        })
    }

    /// Whether an attempt that fits may as well be another client's, which nothing else shows.
    pub(super) fn is_doubtful(&self, answer: &Answer, index: usize, fit: &Fit) -> bool {
        let Some(attempt) = self.attempts.get(index) else {
            return true;
        };
        if answer.habit.is_some() && attempt.event.cause == Cause::UpstreamOwnError {
            return false;
        }
        if answer.habit.is_some()
            && let Some(tried) = attempt.tried()
        {
            // Silence ends in the turn that answers, whatever else is done in it.
            if join::fills_wait(answer, attempt) {
                return false;
            }
            // It is known what became of it, but for what a gateway put off.
            let of_another = self.order.answer_of(tried).is_some_and(|(serial, _)| {
                answer.habit != Some(Habit::Answers) || self.may_have(serial, attempt)
            });
            return of_another || self.order.next(tried).is_some() || !fit.is_by_request();
        }
        fit.is_stale(answer) || (fit.is_by_turn_alone() && self.shares_turn(answer))
    }

    /// Whether the client of the answer with this number asked before an attempt began, so that it may have been
    /// made for that one.
    pub(super) fn may_have(&self, serial: u64, attempt: &Attempt) -> bool {
        let answer = join::answer_with(&self.past, serial);
        answer.is_some_and(|past| past.asked.is_before(attempt.began))
    }

    /// Whether another client was answered in the same turn by a gateway that does what is to be done in a turn in
    /// an order of its own.
    pub(super) fn shares_turn(&self, answer: &Answer) -> bool {
        let others = |past: &Past| past.turn == answer.turn && past.ends != answer.ends;
        self.past.iter().any(others)
    }

    /// The attempts for one request, the last of which is at `last`, and those that may be meant as well.
    pub(super) fn chain(&self, last: usize, answer: &Answer) -> (Vec<usize>, Vec<usize>) {
        join::chain(&self.known(), last, answer)
    }

    pub(super) const fn known(&self) -> Known<'_> {
        Known {
            attempts: &self.attempts,
            waiting: &self.waiting,
            past: &self.past,
            order: &self.order,
            opened: &self.opened,
            servers: &self.servers,
        }
    }

    /// Other failed connects that fit an answer, where nothing was asked of the one at `last` either.
    pub(super) fn others(&self, answer: &Answer, last: usize, listed: &[usize]) -> Vec<usize> {
        let own = self.unlisted_kin(answer, listed);
        if !own.is_empty() {
            return own;
        }
        let chosen = self.attempts.get(last).filter(|chosen| {
            let bare = Fit::of(answer, chosen).is_some_and(|fit| fit.is_bare());
            let sure = self.servers.kin(answer, chosen) == Kin::Own;
            bare && !sure && !join::fills_wait(answer, chosen)
        });
        let Some(chosen) = chosen else {
            return Vec::new();
        };
        let differs = |other: &Attempt| {
            (other.event.cause, &other.event.upstream)
                != (chosen.event.cause, &chosen.event.upstream)
        };
        let all = self.attempts.iter().enumerate();
        let others = all.filter(|(place, other)| {
            answer.habit.is_none()
                && !listed.contains(place)
                && !other.listed
                && other.event.gateway_answer.is_none()
                && differs(other)
                && Known::is_option(answer, other)
                && self.servers.kin(answer, other) != Kin::Other
        });
        others.map(|(place, _)| place).collect()
    }
}
