//! Whether an attempt may be behind an answer, and how well it fits.
//!
//! What must hold: the same process, the attempt began behind the request and failed before the answer,
//! the methods do not contradict, and what was passed on has the status that the upstream gave. Paths may
//! differ, since gateways rewrite them; then only the turn of the thread that let go of the upstream and
//! answered the client joins the two. Of a connect there is no path, and a gateway connects for its own health
//! checks as well: where it runs an event loop, the turn must be the same for that too.

use core::net::SocketAddr;
use std::collections::VecDeque;
use std::time::Duration;

use super::contest::is_out_of_order;
use super::kin::{Kin, Servers};
use super::order::{Order, Tried};
use super::{Answer, Attempt, Opened, Past};
use crate::model::{Cause, HopEvent, Phase, Timestamp};

/// Gateways may answer before they close.
pub(super) const SLACK: Duration = Duration::from_millis(100);

/// Times of kernel records are of one clock: what differs is how long a program takes to read it. Less than
/// it takes a client to ask again once it is answered.
pub(super) const SMALL: Duration = Duration::from_micros(50);

/// Two failures this close to an answer are equally near.
const EQUALLY_NEAR: Duration = Duration::from_millis(2);

/// An attempt that was let go of behind an answer is so much farther from it than one before it.
const BEHIND: Duration = Duration::from_secs(1);

/// A gateway that tries again at once does it within this.
pub(super) const AT_ONCE: Duration = Duration::from_millis(20);

/// A gateway that does one request after another answers this soon behind what it let go of, unless something came
/// between.
const AT_THAT: Duration = Duration::from_millis(1);

/// `HAProxy` waits for a second before it tries the same server again: at least this long, and at most. Its timers
/// are late on a busy host, and never early by more than their rounding.
const BEFORE_AGAIN: Duration = Duration::from_millis(980);
const SAME_AGAIN: Duration = Duration::from_millis(1200);

/// Caddy waits for `lb_try_interval` before it tries another upstream, 250 ms unless it is told otherwise.
const CADDY_PAUSE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(240)..=Duration::from_millis(400);

/// How well an attempt fits an answer; the greater the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fit {
    named: bool,
    /// What paths and turns say together.
    rank: u8,
    turn: Turns,
    path: Paths,
    /// Nanoseconds between the failure and the answer, the fewer the better.
    near: std::cmp::Reverse<u64>,
    /// Of a connect that nothing but its time or turn joins to the answer: when it had failed.
    bare: Option<Timestamp>,
}

/// What paths and turns say together. The same path outweighs everything, and the same turn says more than
/// a path that is not known.
const fn rank(path: Paths, turn: Turns) -> u8 {
    match (path, turn) {
        (Paths::Same, Turns::Same) => 8,
        (Paths::Same, Turns::SameThread | Turns::Unknown) => 7,
        (Paths::Suffix, Turns::Same) => 6,
        (Paths::Same, Turns::OtherThread) => 5,
        (Paths::Unknown, Turns::Same) => 4,
        (Paths::Suffix, _) => 3,
        (Paths::Unknown, Turns::SameThread | Turns::Unknown) => 2,
        (Paths::Unknown, Turns::OtherThread) => 1,
        (Paths::Other, _) => 0,
    }
}

/// What the threads and turns say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turns {
    OtherThread,
    Unknown,
    SameThread,
    Same,
}

/// What the paths say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Paths {
    Other,
    Unknown,
    /// One is the end of the other: a prefix was put on or taken off.
    Suffix,
    Same,
}

impl Fit {
    /// How well `attempt` fits; `None` where it cannot be behind `answer`.
    pub(super) fn of(answer: &Answer, attempt: &Attempt) -> Option<Self> {
        // The times first: they tell most attempts from those of this request.
        if !answer.asked.is_before(attempt.began) || attempt.began > answer.at {
            return None;
        }
        let event = &attempt.event;
        if let Some(gateway) = &event.gateway {
            let process = &answer.process;
            let known = gateway.netns != 0 && process.netns != 0;
            if gateway.pid != process.pid || (known && gateway.netns != process.netns) {
                return None;
            }
        }
        // The very connection that the answer was given on, where the client is a gateway itself.
        let local = event
            .local
            .map(|local| SocketAddr::new(local.address, local.port));
        if local == Some(answer.ends.0) && event.upstream.socket_addr() == Some(answer.ends.1) {
            return None;
        }
        if is_of_another_request(answer, attempt) {
            return None;
        }
        let turn = match (answer.turn, attempt.turn) {
            // Go moves them between threads as it likes.
            _ if answer.goroutine.is_some() => Turns::Unknown,
            (Some(one), Some(other)) if one == other => Turns::Same,
            (Some(one), Some(other)) if one.thread == other.thread => Turns::SameThread,
            (Some(_), Some(_)) => Turns::OtherThread,
            _ => Turns::Unknown,
        };
        let failed = decided(event, attempt);
        // Who has no connection yet, or no address, is told so by the failure itself. Silence ends with the close,
        // and so does what an ICMP error alone does not end.
        let connecting = matches!(event.phase, Phase::Resolve | Phase::Connect);
        let closes = turn == Turns::Same
            && (is_silence(event.cause)
                || matches!(
                    event.cause,
                    Cause::TcpConnectHostUnreachable
                        | Cause::TcpConnectNoNeighbour
                        | Cause::TcpConnectRejectedByFilter
                ));
        let slack = if connecting && !closes { SMALL } else { SLACK };
        if failed > answer.at.after(slack) {
            return None;
        }
        // A name that does not resolve is answered for at once, unless it is silence that was waited for.
        if event.phase == Phase::Resolve && !is_silence(event.cause) {
            let late = answer.at.since(failed);
            if late > SLACK {
                return None;
            }
        }
        let own = event.cause == Cause::UpstreamOwnError;
        let status = event.exchange.as_ref().and_then(|exchange| exchange.status);
        if own && status != answer.status {
            return None;
        }
        let exchange = event.exchange.as_ref();
        let asked = exchange.and_then(|exchange| exchange.method.as_deref());
        if let (Some(asked), Some(wanted)) = (asked, answer.request.method())
            && asked != wanted
            && (asked, &*wanted) != ("GET", "HEAD")
        {
            return None;
        }
        let path = paths(
            exchange.and_then(|exchange| exchange.path.as_deref()),
            answer.request.path().as_deref(),
        );
        let named = named(event, answer);
        let loops = has_event_loop(&answer.process.comm);
        if path == Paths::Unknown && !own && loops && answer.turn.is_some() {
            let sure = attempt.sure || is_silence(event.cause);
            if sure && turn != Turns::Same {
                return None;
            }
        }
        // Of another path, only what one turn let go of and answered, before any of it was passed on.
        let begun = event.phase == Phase::ResponseBody;
        let in_turn = turn == Turns::Same && (loops || answer.habit.is_some());
        if path == Paths::Other && !named && (!in_turn || own || begun) {
            return None;
        }
        // What is let go of and answered one by one shows whose answer is whose by its order.
        let ordered = turn == Turns::Same && is_one_by_one(&answer.process.comm);
        let released = attempt.released.filter(|_| ordered);
        let known = matches!(path, Paths::Same | Paths::Suffix) || named;
        if !known && released.is_some_and(|released| released > answer.at) {
            return None;
        }
        let moment = released.unwrap_or(failed);
        let behind = if ordered && moment > answer.at {
            BEHIND
        } else {
            Duration::ZERO
        };
        let (early, late) = (moment.min(answer.at), moment.max(answer.at));
        let near = (late.since(early) + behind).as_nanos();
        Some(Self {
            named,
            rank: rank(path, turn),
            turn,
            path,
            near: std::cmp::Reverse(u64::try_from(near).unwrap_or(u64::MAX)),
            bare: (path == Paths::Unknown && !named && event.exchange.is_none()).then_some(moment),
        })
    }

    /// Whether something that was asked joins the two, or may.
    pub(super) fn is_by_request(&self) -> bool {
        self.bare.is_none() && (self.named || self.path != Paths::Other)
    }

    /// Whether what was asked is the same, beyond doubt.
    pub(super) fn is_by_name(self) -> bool {
        self.named || self.path == Paths::Same
    }

    /// Whether a failed connect right before an answer, of a status that does not tell of one, is too far ahead of it.
    /// What helped the client that it was made for may not be seen, such as a stale page.
    pub(super) fn is_late(&self, answer: &Answer) -> bool {
        let Some(failed) = self.bare else {
            return false;
        };
        let usual = tells_of_no_connection(&answer.process.comm, answer.status);
        !usual && answer.at.since(failed) > AT_THAT
    }

    /// Whether nothing but a time or a turn joins the two: nobody was asked for anything.
    pub(super) const fn is_bare(&self) -> bool {
        self.bare.is_some()
    }

    /// Whether a failed connect is too far ahead of the answer to be behind it. A second upstream may have helped
    /// the client that it was made for, which leaves no trace here.
    pub(super) fn is_stale(&self, answer: &Answer) -> bool {
        let loops = has_event_loop(&answer.process.comm);
        self.bare
            .is_some_and(|failed| !loops && answer.at.since(failed) > SLACK)
    }

    /// Whether nothing that may still come could fit better. A gateway may have let go of one upstream in a turn and
    /// answered for another.
    pub(super) fn is_certain(self) -> bool {
        self.turn == Turns::Same && self.named
    }

    /// Whether the turn that let go of the upstream is the one that answered.
    const fn is_same_turn(self) -> bool {
        matches!(self.turn, Turns::Same)
    }

    /// Whether only the turn joins the two, and nothing that was asked.
    pub(super) fn is_by_turn_alone(self) -> bool {
        self.path == Paths::Other && !self.named
    }

    /// Whether all but the time says as much of one as of the other.
    pub(super) fn is_as_good_as(&self, other: &Self) -> bool {
        (self.named, self.rank) == (other.named, other.rank)
    }

    /// Whether the two cannot be told apart.
    pub(super) fn is_like(&self, best: &Self) -> bool {
        let apart = self.near.0.abs_diff(best.near.0);
        let near = u128::from(apart) <= EQUALLY_NEAR.as_nanos();
        let in_turn = best.turn == Turns::Same;
        self.is_as_good_as(best) && (in_turn || near)
    }
}

/// Whether a gateway does one request after another within a turn of its event loop, as nginx does: it lets go of
/// the upstream and answers the client at once. HAProxy runs the tasks of a turn in an order of its own.
pub(super) fn is_one_by_one(comm: &str) -> bool {
    crate::classify::is_nginx(comm)
}

/// Whether a gateway of this name gives this status of its own where no upstream took its connection, unless its
/// configuration says otherwise. One that is not known may give any.
pub(super) fn tells_of_no_connection(comm: &str, status: Option<u16>) -> bool {
    match status {
        Some(502 | 504) => !matches!(comm, "haproxy" | "envoy" | "apache2" | "httpd"),
        Some(503) => !is_one_by_one(comm) && comm != "caddy",
        _ => false,
    }
}

/// Whether every thread of a gateway runs an event loop that lets go of an upstream and answers the client for
/// which it had it in one turn.
pub(super) fn has_event_loop(comm: &str) -> bool {
    is_one_by_one(comm) || matches!(comm, "haproxy" | "envoy")
}

/// Whether a cause is that nothing came: the gateway itself gave up, in a turn of its own.
pub(super) const fn is_silence(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::TcpConnectBlackholed
            | Cause::TcpConnectBacklogFull
            | Cause::DnsTimeout
            | Cause::DnsBadReply
    )
}

/// Whether a connect that nothing answered lasted as long as the client waited: it began at once behind the request,
/// and was given up as the answer went out.
pub(super) fn fills_wait(answer: &Answer, attempt: &Attempt) -> bool {
    fills((answer.asked.since(), answer.at), attempt)
}

/// The same, of a client who asked and was answered at these times.
pub(super) fn fills((requested, answered): (Timestamp, Timestamp), attempt: &Attempt) -> bool {
    let failed = decided(&attempt.event, attempt);
    let apart = failed.since(answered).max(answered.since(failed));
    is_silence(attempt.event.cause)
        && attempt.began.since(requested) <= AT_ONCE
        && apart <= AT_ONCE
        && failed.since(attempt.began) > 2 * AT_ONCE
}

/// Whether an attempt was for another request, as far as threads show that do one at a time: another thread made it, or
/// the same one for a client that it answered before.
pub(super) fn is_of_another_request(answer: &Answer, attempt: &Attempt) -> bool {
    let (Some(own), Some(free)) = (answer.turn, answer.free) else {
        return false;
    };
    // A connection that serves others as well is let go of for any of them.
    let kept = attempt.event.cause == Cause::UpstreamOwnError;
    let closer = attempt.turn.filter(|_| attempt.sure && !kept);
    let made = attempt.opener.or(closer);
    made.is_some_and(|made| made.thread != own.thread) || attempt.began < free
}

/// Whether two things happened at about the same time.
pub(super) fn is_near(one: Timestamp, other: Timestamp) -> bool {
    one.min(other).after(EQUALLY_NEAR) >= one.max(other)
}

/// When an attempt had failed as far as the gateway could know. A response that is passed on need not be
/// complete for that.
fn decided(event: &HopEvent, attempt: &Attempt) -> Timestamp {
    if event.cause == Cause::UpstreamOwnError {
        attempt.began
    } else {
        event.time
    }
}

/// Whether a request id or a trace names the two as one. A gateway passes a trace on with a parent id of
/// its own (W3C Trace Context section 3.2.2).
fn named(event: &HopEvent, answer: &Answer) -> bool {
    let Some(exchange) = &event.exchange else {
        return false;
    };
    let id = exchange.request_id.as_deref();
    let same_id = id.is_some() && id == answer.request.request_id().as_deref();
    let trace = |text: &str| text.split('-').nth(1).map(str::to_owned);
    let own = exchange.traceparent.as_deref().and_then(trace);
    let same_trace =
        own.is_some() && own == answer.request.traceparent().as_deref().and_then(trace);
    (same_id || same_trace)
        && paths(exchange.path.as_deref(), answer.request.path().as_deref()) != Paths::Other
}

pub(super) fn paths(one: Option<&str>, other: Option<&str>) -> Paths {
    let (Some(one), Some(other)) = (one, other) else {
        return Paths::Unknown;
    };
    let (long, short) = if one.len() < other.len() {
        (other, one)
    } else {
        (one, other)
    };
    if long == short {
        Paths::Same
    } else if short == "/" {
        // All of it may have been taken off.
        Paths::Unknown
    } else if long.ends_with(short) {
        Paths::Suffix
    } else {
        Paths::Other
    }
}

/// What is known of attempts and answers.
pub(super) struct Known<'a> {
    pub(super) attempts: &'a VecDeque<Attempt>,
    pub(super) waiting: &'a VecDeque<Answer>,
    pub(super) past: &'a VecDeque<Past>,
    pub(super) order: &'a Order,
    pub(super) opened: &'a VecDeque<Opened>,
    pub(super) servers: &'a Servers,
}

/// The attempts that were made for one request, the last of which is at `last`: in order, each begun when
/// the one before it had failed. And those that may be meant as well in place of one of them.
///
/// Under load, failures of several clients follow each other as closely as those of one: of those nothing but the
/// order in which the gateway does things says whose they are.
pub(super) fn chain(known: &Known<'_>, last: usize, answer: &Answer) -> (Vec<usize>, Vec<usize>) {
    let Known {
        attempts, order, ..
    } = *known;
    let client = answer.request.path();
    let rewritten = attempts.get(last).and_then(path_of);
    let for_request = |attempt: &Attempt| {
        let own = path_of(attempt);
        (own.is_some() && own == rewritten) || paths(own, client.as_deref()) != Paths::Other
    };
    let within = |attempt: &Attempt| {
        answer.asked.is_before(attempt.began) && attempt.event.time <= answer.at.after(SMALL)
    };
    let passed_on = |attempt: &Attempt| {
        let event = &attempt.event;
        let status = event.exchange.as_ref().and_then(|exchange| exchange.status);
        event.cause == Cause::UpstreamOwnError && status == answer.status
    };
    // What was asked first on a connection that failed was asked by whom it was opened for.
    let kin = |attempt: &Attempt| known.servers.opened_for(answer, attempt);
    let is_kin = attempts.get(last).map(kin) == Some(Kin::Own);
    let (mut chain, mut alike) = (vec![last], Vec::new());
    let mut index = last;
    while let Some(current) = attempts.get(index) {
        let of_another = |other: &Attempt| {
            let mut waiting = known.waiting.iter();
            waiting.any(|answer| Fit::of(answer, other).is_some())
        };
        let before = current.tried().and_then(|tried| order.before(tried));
        let by_order = |other: &Attempt| match (answer.habit, before) {
            (Some(_), Some(before)) => is_next(other, before, current, known),
            (Some(_), None) => {
                is_retried(other, current)
                    && (waited_to_retry(other, current) || current.opener.is_none())
                    && is_free(other, order)
            }
            (None, _) => {
                is_retried(other, current)
                    && !(other.opener.is_some() && asked_both(other, current))
                    && (other.event.exchange.is_none() || !of_another(other))
            }
        };
        let is_earlier = |other: &Attempt| match kin(other) {
            Kin::Own => !other.listed && other.event.time <= current.began.after(SMALL),
            Kin::Other => false,
            Kin::Unknown => !(is_kin && other.event.exchange.is_none()) && by_order(other),
        };
        let earlier: Vec<(usize, &Attempt)> = attempts
            .iter()
            .enumerate()
            .filter(|(place, other)| {
                !chain.contains(place)
                    && within(other)
                    && is_earlier(other)
                    && for_request(other)
                    && !passed_on(other)
            })
            .collect();
        let latest = earlier.iter().max_by_key(|(_, other)| other.event.time);
        let Some((place, best)) = latest.filter(|_| chain.len() < MAX_CHAIN) else {
            break;
        };
        if kin(best) == Kin::Own {
            chain.push(*place);
            index = *place;
            continue;
        }
        // A connect that was made for another client, perhaps.
        let at_once = |attempt: &Attempt| {
            attempt.event.exchange.is_none() && !waited_to_retry(attempt, current)
        };
        if answer.habit.is_none() && known.was_asked_by_another(answer, best) {
            alike.push(*place);
            break;
        }
        if answer.habit.is_none() && at_once(best) {
            let connects = earlier.iter().filter(|(_, other)| at_once(other));
            if is_out_of_order(answer)
                || connects.clone().count() > 1
                || known.may_be_retried(best, current.began, current.hop)
                || known.fits_another(answer, best)
            {
                alike.extend(connects.map(|(other, _)| *other));
                break;
            }
        }
        // A health check of the same server, or another client's attempt.
        if waited_to_retry(best, current) {
            let others = earlier.iter().filter(|(other, attempt)| {
                other != place
                    && waited_to_retry(attempt, current)
                    && attempt.event.exchange.is_none()
            });
            alike.extend(others.map(|(other, _)| *other));
        }
        chain.push(*place);
        index = *place;
    }
    chain.reverse();
    (chain, alike)
}

/// Whether an attempt is the one that the thread let go of as it made `next`, and not the last one for a client
/// that was answered then.
fn is_next(attempt: &Attempt, before: Tried, next: &Attempt, known: &Known<'_>) -> bool {
    let order = known.order;
    let asked = |attempt: &Attempt| attempt.event.exchange.is_some();
    let both = asked(attempt) && asked(next);
    let same = both && request_of(attempt) == request_of(next);
    let waits = |serial: Option<u64>| {
        let mut waiting = known.waiting.iter();
        waiting.any(|answer| Some(answer.serial) == serial)
    };
    // It was the last one for whoever was told right before, where that one had asked by then.
    let told = order.answer_of(before).is_some_and(|(serial, _)| {
        let mut waiting = known.waiting.iter();
        waiting.any(|answer| answer.serial == serial && Fit::of(answer, attempt).is_some())
    });
    attempt.tried() == Some(before)
        && !told
        && !attempt.listed
        && attempt.event.gateway_answer.is_none()
        // Once that client is told, what is left was for another.
        && !(waits(order.after(before)) && is_passed_on(attempt, order, known.past))
        && (same || !both)
}

/// The answer of the recent past with this number.
pub(super) fn answer_with(past: &VecDeque<Past>, serial: u64) -> Option<&Past> {
    past.iter().rev().find(|past| past.serial == serial)
}

/// Whether a status of an upstream was passed on to a client right before its connection was let go of.
pub(super) fn is_passed_on(attempt: &Attempt, order: &Order, past: &VecDeque<Past>) -> bool {
    let after = attempt.tried().and_then(|tried| order.after(tried));
    let answer = after.and_then(|after| answer_with(past, after));
    let exchange = attempt.event.exchange.as_ref();
    attempt.event.cause == Cause::UpstreamOwnError
        && answer.is_some_and(|past| {
            exchange.and_then(|exchange| exchange.status) == past.status
                && paths(path_of(attempt), past.path.as_deref()) != Paths::Other
        })
}

/// Whether no answer is known to be for an attempt.
fn is_free(attempt: &Attempt, order: &Order) -> bool {
    let answered = |tried| order.answer_of(tried).is_some();
    !attempt.tried().is_some_and(answered)
}

/// The last attempt for the request that the one at `best` was made for: a connect has no path to be known
/// by, but it was made as the one before had failed, and it is what the turn of the answer let go of.
///
/// A gateway may do several requests in a turn as it likes, so that it may be another's: it is left out where another
/// answer would fit it as well.
pub(super) fn last_of(
    attempts: &VecDeque<Attempt>,
    best: usize,
    answer: &Answer,
    waiting: &VecDeque<Answer>,
) -> usize {
    let mut last = best;
    for _ in 0..MAX_CHAIN {
        // A status that was passed on ends it.
        let current = attempts.get(last);
        let current = current.filter(|current| current.event.cause != Cause::UpstreamOwnError);
        let Some(current) = current else {
            break;
        };
        let own_answer = |other: &Attempt| {
            let of_another =
                |waits: &Answer| waits.ends != answer.ends && Fit::of(waits, other).is_some();
            Fit::of(answer, other).is_some_and(Fit::is_same_turn)
                && other.event.time <= answer.at.after(SMALL)
                && !waiting.iter().any(of_another)
        };
        let next = attempts
            .iter()
            .enumerate()
            .filter(|(place, other)| {
                *place != last && path_of(other).is_none() && is_retried(current, other)
            })
            .filter(|(_, other)| !other.listed && own_answer(other))
            .min_by_key(|(_, other)| other.began);
        match next {
            Some((place, _)) => last = place,
            None => break,
        }
    }
    last
}

/// Attempts that an answer lists at most.
const MAX_CHAIN: usize = 32;

/// Path of the request that was sent to the upstream.
pub(super) fn path_of(attempt: &Attempt) -> Option<&str> {
    attempt.event.exchange.as_ref()?.path.as_deref()
}

/// Method and path of that request.
fn request_of(attempt: &Attempt) -> Option<(Option<&str>, Option<&str>)> {
    let exchange = attempt.event.exchange.as_ref()?;
    Some((exchange.method.as_deref(), exchange.path.as_deref()))
}

/// Whether only the pause between the two says that `next` is another attempt for the request of `first`.
fn waited_to_retry(first: &Attempt, next: &Attempt) -> bool {
    first.event.upstream == next.event.upstream
        && next.began.since(first.event.time) >= BEFORE_AGAIN
}

/// Whether requests were sent with both to the same upstream: the second for the first only where the connection of that
/// had gone stale, as one that was just opened has not.
fn asked_both(first: &Attempt, next: &Attempt) -> bool {
    first.event.exchange.is_some()
        && next.event.exchange.is_some()
        && first.event.upstream == next.event.upstream
}

/// Whether `next` is another attempt for the request of `first`.
fn is_retried(first: &Attempt, next: &Attempt) -> bool {
    // Asked of all attempts: most end at the times.
    if first.listed || first.began > next.began || first.event.time > next.began.after(SMALL) {
        return false;
    }
    let asked = |attempt: &Attempt| attempt.event.exchange.is_some();
    let both = asked(first) && asked(next);
    let same_request = !both || request_of(first) == request_of(next);
    let pause = next.began.since(first.event.time);
    // The turn that let go of the first connects to the next. Without it, connects of other clients and for
    // health checks look the same.
    let in_turn = match (first.turn.filter(|_| first.sure), next.opener) {
        (Some(released), Some(opened)) => released == opened,
        _ => true,
    };
    let same = first.event.upstream == next.event.upstream;
    let again = same && pause <= SAME_AGAIN && (in_turn || pause >= BEFORE_AGAIN);
    let comm = first.event.gateway.as_ref().map(|gateway| &*gateway.comm);
    let after_pause = if comm == Some("caddy") && !both {
        CADDY_PAUSE.contains(&pause)
    } else {
        (pause <= AT_ONCE && (both || in_turn)) || again
    };
    first.event.gateway_answer.is_none() && first.pid() == next.pid() && same_request && after_pause
}
