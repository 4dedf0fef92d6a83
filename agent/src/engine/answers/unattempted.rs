//! Answers that no attempt seen explains: what their rules are told.

use std::sync::Arc;
use std::time::Duration;

use super::join::{self, Fit};
use super::kin::Kin;
use super::order::Tried;
use super::{Answer, Answers, Attempt, Decided, Failure, Release, Told};
use crate::classify::{EarlierFailure, SocketError, Unattempted};
use crate::model::{Cause, GatewayAnswer, SocketCall, Timestamp};

/// How long an earlier failure may be what an answer without an attempt echoes: the longest time in which
/// gateways put a member aside by default (nginx `fail_timeout` 10 s, Envoy outlier detection 30 s).
const ECHO: Duration = Duration::from_secs(30);
/// Earlier failures that are told with such an answer.
const MAX_EARLIER: usize = 8;
/// Failed checks that are counted for such an answer, each of which is compared with all other answers.
const MAX_CHECKS: usize = 8;

impl Answers {
    /// An answer that no failed attempt fits.
    pub(super) fn without_attempt(&mut self, answer: Answer, mut told: GatewayAnswer) {
        told.candidates.clone_from(&answer.taken);
        // Of an answer that the kernel sent by itself it is not known which process made it.
        let foreign = answer.turn.is_none() && answer.exit.is_none();
        // Its attempt may be one that went out too early.
        let hurried = self.hurried.is_some_and(|at| at >= answer.asked.at);
        let touching = |release: &&Release| self.touches(release, &answer);
        let touched = self.released.iter().filter(touching).count()
            + self.passed_on(&answer)
            + usize::from(foreign)
            + usize::from(hurried);
        let facts = Unattempted {
            status: told.status,
            comm: Arc::clone(&answer.process.comm),
            latency: answer.at.since(answer.asked.at),
            exit: answer.exit,
            touched,
            earlier: self.earlier(&answer, &told),
            failing_checks: self.failing_checks(&answer),
            error: self.socket_error(&answer),
            in_flight: answer.in_flight,
            // Filled in by the engine, which knows the hops.
            unjudged: 0,
        };
        self.decided.push_back(Decided::Unattempted(Box::new(Told {
            at: answer.at,
            requested: answer.asked.at,
            process: answer.process,
            answer: told,
            facts,
            thread: answer.free.and(answer.turn).map(|turn| turn.thread),
        })));
    }

    /// Whether something may have been the matter with a hop that is the answer's: its gateway let go of it
    /// meanwhile, and nothing was said of it.
    fn touches(&self, release: &Release, answer: &Answer) -> bool {
        let meanwhile = release.at >= answer.asked.at && release.at <= answer.at.after(join::SLACK);
        let opened_by = |at: Timestamp| release.opened.is_none_or(|opened| opened <= at);
        // Where nothing was asked, it was made for the request, or for a health check.
        let made_for = || {
            let opened = release.opened;
            opened.is_none_or(|opened| answer.asked.is_before(opened))
        };
        // Of where connections are queued for, it is not known whom one that failed was made for.
        let told_otherwise = !join::tells_of_no_connection(&answer.process.comm, answer.status);
        let of_another_kin =
            |attempt: &Attempt| told_otherwise && self.servers.kin(answer, attempt) == Kin::Other;
        // What is another's for sure is none of it; what is only doubtful may be.
        let of_another = |attempt: &Attempt| {
            attempt.event.hop == Some(release.hop)
                && (attempt.listed || Fit::of(answer, attempt).is_none() || of_another_kin(attempt))
        };
        release.pid == answer.process.pid
            && meanwhile
            && opened_by(answer.at)
            && (release.asked || made_for())
            && if answer.habit.is_some() {
                self.is_let_go_beside(release, answer)
            } else {
                is_let_go_with(release, answer)
            }
            && !self.told.iter().any(|(_, told)| *told == release.hop)
            && !self.attempts.iter().any(of_another)
    }

    /// Whether a gateway whose order is known let go of a hop beside an answer.
    fn is_let_go_beside(&self, release: &Release, answer: &Answer) -> bool {
        // A response that was good is no reason to say that there is no upstream.
        let good = release.served && answer.status == Some(503);
        let tried = Tried::Hop(release.hop);
        let known = self.order.answer_of(tried).is_some() || self.order.next(tried).is_some();
        let failed = |attempt: &Attempt| attempt.hop == Some(release.hop);
        let alone = answer.turn == Some(release.turn) && !known && self.attempts.iter().any(failed);
        self.order.is_beside(release.hop, answer.serial) && !good || alone
    }

    /// How many upstreams' own statuses may be the answer's, under another path.
    fn passed_on(&self, answer: &Answer) -> usize {
        let pid = answer.process.pid;
        let may_be = |attempt: &&Attempt| {
            let event = &attempt.event;
            let exchange = event.exchange.as_ref();
            let path = exchange.map(|exchange| &exchange.path);
            // Not where another one asked for just that.
            let asked_by_another = || {
                self.past.iter().any(|past| {
                    past.process.pid == pid
                        && past.ends != answer.ends
                        && past.path.is_some()
                        && path == Some(&past.path)
                        && past.asked.is_before(attempt.began)
                        && past.at >= attempt.began
                })
            };
            event.cause == Cause::UpstreamOwnError
                && attempt.pid() == Some(pid)
                && exchange.and_then(|exchange| exchange.status) == answer.status
                && answer.asked.is_before(attempt.began)
                && attempt.began <= answer.at
                && !join::is_of_another_request(answer, attempt)
                && !asked_by_another()
        };
        self.attempts.iter().filter(may_be).count()
    }

    /// Failures behind earlier answers to the same, which this one may echo, in order.
    fn earlier(&self, answer: &Answer, told: &GatewayAnswer) -> Vec<EarlierFailure> {
        let same = |failure: &&Failure| {
            failure.netns == answer.process.netns
                && failure.comm == answer.process.comm
                && failure.route.0 == told.host
                && failure.route.1 == told.path
                && failure.earlier.at <= answer.asked.at
                && answer.at.since(failure.earlier.at) <= ECHO
        };
        let latest = self.failures.iter().rev().filter(same).take(MAX_EARLIER);
        let mut earlier: Vec<_> = latest.map(|failure| failure.earlier.clone()).collect();
        earlier.reverse();
        earlier
    }

    /// How many connects of the gateway failed with no client behind them, its own checks: at least this many.
    fn failing_checks(&self, answer: &Answer) -> usize {
        let pid = answer.process.pid;
        let is_check = |attempt: &&Attempt| {
            let of_client = |answer| Fit::of(answer, attempt).is_some();
            let near = || {
                self.past.iter().any(|past| {
                    past.process.pid == pid
                        && past.serial != answer.serial
                        && past.asked.is_before(attempt.began)
                        && past.at >= attempt.began
                })
            };
            let known =
                |tried| self.order.answer_of(tried).is_some() || self.order.next(tried).is_some();
            attempt.pid() == Some(pid)
                && attempt.event.exchange.is_none()
                && attempt.event.hop.is_some()
                && !attempt.listed
                && !attempt.tried().is_some_and(known)
                && !of_client(answer)
                && !self.waiting.iter().any(of_client)
                && !near()
        };
        let checks = self.attempts.iter().filter(is_check);
        checks.take(MAX_CHECKS).count()
    }

    /// The system call that failed in the turn of an answer, for it. What fails is answered for in its turn, and by
    /// a gateway that does one request after another before any other answer.
    fn socket_error(&self, answer: &Answer) -> Option<SocketError> {
        let own = answer.turn?;
        let one_by_one = join::is_one_by_one(&answer.process.comm);
        let errors = self
            .errors
            .iter()
            .rev()
            .filter(|(at, process, turn, call, _)| {
                process.pid == answer.process.pid
                    && *turn == own
                    && *at >= answer.asked.since()
                    && *at <= answer.at.after(join::SMALL)
                    && *call != SocketCall::Accept
            });
        let others = |from: Timestamp| {
            self.past.iter().any(|past| {
                past.turn == Some(own)
                    && (past.ends, past.at) != (answer.ends, answer.at)
                    && (!one_by_one || (past.at >= from && past.at <= answer.at))
            })
        };
        errors
            .map(|(at, _, _, call, errno)| (others(*at), *call, *errno))
            .find(|(others, ..)| !(one_by_one && *others))
            .map(|(others, call, errno)| SocketError {
                call,
                errno,
                alone: !others,
            })
    }
}

/// Whether a hop was let go of as the client was answered, as far as threads and times tell.
fn is_let_go_with(release: &Release, answer: &Answer) -> bool {
    match (answer.turn, answer.free) {
        (Some(own), _) if own == release.turn => true,
        (Some(own), Some(free)) if own.thread == release.turn.thread => release.at >= free,
        (Some(own), None) if own.thread == release.turn.thread => false,
        (_, Some(_)) if release.sure => false,
        _ => join::is_near(release.at, answer.at),
    }
}
