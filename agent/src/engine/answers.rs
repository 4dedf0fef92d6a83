//! Joins what a gateway's clients got to the attempts on upstreams that failed for them.
//!
//! An answer (a 5xx, or a close without a status) and the failed attempts behind it are seen on different
//! connections and in either order, and a verdict may come up to a second after its failure. So both wait
//! here, each for a bounded time, and only where the client side of the gateway is watched:
//!
//! ```text
//!   request ──┬── attempt 1 fails ──┬── attempt 2 fails ── answer
//!             │                     │                        │ settle: time for the verdicts to come in
//!             └─ held for hold ─────┴─ held for hold ─────── join ── event of attempt 2, with the answer
//! ```
//!
//! * An event waits from its failure for at most [`Config::hold`], or until the answer that may list it is
//!   joined. It is published once, whole, and never amended after that; so consumers see one event a failure,
//!   in the order in which they are decided.
//! * An answer waits for [`Config::settle`], which is shorter, so that the attempts of that time are still
//!   there; it is joined at once where a request id, or thread, turn and path name its attempt.
//! * The answer goes onto the event of the last attempt before it. Attempts before that one are listed in
//!   it, and their own events carry no answer.
//! * Where several events of different cause would fit alike, the nearest in time carries the answer and
//!   the others are named as candidates: the answer counts as ambiguous.
//! * Where a failed connect may have been another client's, which nothing but times would show, the answer says that
//!   it is contested, and counts as ambiguous.
//! * An event that no answer could belong to is marked `hidden_from_client` when its time is over.
//! * An answer without an attempt is explained by the rules for those. It counts as ambiguous where they
//!   name rivals, and as unexplained where they say nothing. Where a connection to an upstream was used
//!   meanwhile, and nothing was said of it, no rule is asked.
//!
//! What fits is [`join`]'s business; what an answer without an attempt means is `classify`'s.

mod choose;
mod contest;
mod facts;
mod head;
mod hidden;
mod join;
mod kin;
mod nest;
mod order;
mod tally;
mod unattempted;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::facts::{Answer, Asked, Failure, Opened, Past};
pub(super) use self::facts::{Attempt, Decided, Release, Told};
use self::head::status_of;
use self::join::{Fit, Known};
use self::kin::{Kin, Servers};
use self::order::{Habit, Order, Tried};
use self::tally::Tally;
use crate::classify::{EarlierFailure, InFlight};
use crate::http1::RequestHead;
use crate::model::{
    AnswerEnd, AttemptInfo, Cause, ClientAnswer, Errno, Exit, HopEvent, HopId, Process, SocketCall,
    Timestamp, Turn,
};

/// How long answers and events wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// From a failure until its event is published at the latest.
    pub hold: Duration,
    /// From an answer until it is joined at the latest. Longer than verdicts take, and shorter than
    /// `hold` by more than a gateway takes from a failure to its answer.
    pub settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(2),
            settle: Duration::from_millis(1300),
        }
    }
}

/// Events and answers that wait at once, of each. The oldest goes out undecided for one more. Each new one
/// is compared with all of the other kind.
const MAX_WAITING: usize = 1024;
/// Attempts that fit one answer, or answers that one fits, of which is asked what else those fit.
const MAX_COMPARED: usize = 16;
/// Events that are named as other explanations of one answer.
const MAX_CONTESTED: usize = 32;
/// Facts of each other kind that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// How long facts are remembered for answers that come later.
const MEMORY: Duration = Duration::from_mins(1);

/// Answers and events that wait for each other.
#[derive(Debug, Default)]
pub(super) struct Answers {
    config: Config,
    /// Namespaces with a listener, and whether requests can be read at every one.
    watched: HashMap<u64, bool>,
    attempts: VecDeque<Attempt>,
    waiting: VecDeque<Answer>,
    /// Nothing of those is due before.
    due: Option<Timestamp>,
    /// When the last attempt failed that had to go out before its time.
    hurried: Option<Timestamp>,
    past: VecDeque<Past>,
    failures: VecDeque<Failure>,
    /// Hops that their process let go of, and when.
    released: VecDeque<Release>,
    /// Connects to upstreams, of gateways whose order is not known.
    opened: VecDeque<Opened>,
    /// What each thread did next to what.
    order: Order,
    /// Which goroutines answer clients.
    servers: Servers,
    /// Answers so far.
    serial: u64,
    errors: VecDeque<(Timestamp, Arc<Process>, Turn, SocketCall, Errno)>,
    /// Processes that ended, and when that was seen.
    exits: VecDeque<(Timestamp, u32, Exit)>,
    /// Events whose answers are contested: when, the attempt that may have been made next for the same request, and
    /// the id.
    doubted: VecDeque<(Timestamp, Tried, String)>,
    /// Hops of which an event was published.
    told: VecDeque<(Timestamp, HopId)>,
    /// Whether it is to be asked which clients wait.
    asking: bool,
    /// When that was answered last, and since when clients wait, by namespace.
    oldest: Option<(Timestamp, HashMap<u64, Timestamp>)>,
    decided: VecDeque<Decided>,
    pub(super) tally: Tally,
}

impl Answers {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// Whether the answers of gateways in a namespace are seen at all.
    pub(super) fn watches(&self, netns: u64) -> bool {
        self.watched.contains_key(&netns)
    }

    /// A gateway listens in a namespace, and all answers can be read there, or not.
    pub(super) fn listening(&mut self, netns: u64, readable: bool) {
        let all = self.watched.entry(netns).or_insert(true);
        *all &= readable;
    }

    /// The process let go of a hop.
    pub(super) fn released(&mut self, release: Release, comm: Option<&str>) {
        if self.watched.is_empty() {
            return;
        }
        if let Some(habit) = comm.and_then(Habit::of) {
            let Release {
                at,
                turn,
                hop,
                sure,
                ..
            } = release;
            self.order.let_go(at, turn, hop, sure, habit);
        }
        let mut latest = None;
        for (place, attempt) in self.attempts.iter_mut().enumerate() {
            if attempt.hop == Some(release.hop) {
                attempt.release(&release);
                latest = Some(place);
            }
        }
        remember(&mut self.released, release);
        if let Some(place) = latest {
            self.claim_certain(place);
        }
    }

    /// A process connects to an upstream, in a turn that began then, where that is known.
    pub(super) fn opened(
        &mut self,
        at: Timestamp,
        turn: Turn,
        began: Option<Timestamp>,
        hop: HopId,
        process: &Process,
    ) {
        if self.watched.is_empty() {
            return;
        }
        if let Some(habit) = Habit::of(&process.comm) {
            self.order.opened(at, turn, began, hop, habit);
        } else {
            let pid = process.pid;
            remember(&mut self.opened, Opened { at, hop, pid });
        }
    }

    /// The call that opened a hop failed.
    pub(super) fn connect_failed(&mut self, hop: HopId) {
        self.order.failed_at_once(hop);
    }

    /// Records were lost.
    pub(super) fn lost(&mut self) {
        self.order.lost();
        for answer in &mut self.waiting {
            answer.habit = None;
        }
    }

    /// A system call about a socket failed.
    pub(super) fn socket_failed(
        &mut self,
        at: Timestamp,
        process: Arc<Process>,
        turn: Turn,
        call: SocketCall,
        errno: Errno,
    ) {
        remember(&mut self.errors, (at, process, turn, call, errno));
    }

    /// Takes the event of a failed attempt.
    pub(super) fn attempt(&mut self, now: Timestamp, mut attempt: Attempt) {
        attempt.due = attempt.event.time.after(self.config.hold).max(now);
        for release in &self.released {
            if attempt.event.hop == Some(release.hop) && release.at >= attempt.began {
                attempt.release(release);
            }
        }
        let comm = attempt.event.gateway.as_ref().map(|gateway| &*gateway.comm);
        if let (None, Some(turn), Some(habit)) =
            (attempt.hop, attempt.opener, comm.and_then(Habit::of))
        {
            self.order.called(attempt.event.time, turn, habit);
        }
        if let Some(exit) = self.exit_of(&attempt.event) {
            let gateway = attempt.event.gateway.as_ref();
            let pid = gateway.map_or(0, |gateway| gateway.pid);
            crate::classify::worker_died(&mut attempt.event, exit, pid);
        }
        if self.attempts.len() >= MAX_WAITING
            && let Some(oldest) = self.attempts.pop_front()
        {
            self.hurried = self.hurried.max(Some(oldest.event.time));
            self.publish(oldest.event);
        }
        self.due_by(attempt.due);
        self.attempts.push_back(attempt);
        self.claim_certain(self.attempts.len() - 1);
    }

    /// Takes an answer, and whether the client that got it is the gateway itself. Returns whether it
    /// waits.
    pub(super) fn answer(&mut self, at: Timestamp, answer: &ClientAnswer<'_>, own: bool) -> bool {
        let (status, exit) = match answer.end {
            AnswerEnd::Response(bytes) => (status_of(bytes), None),
            AnswerEnd::Closed { exit } => (None, exit),
        };
        let process = &answer.process;
        if let Some(exit) = exit {
            let known = self.exits.iter().any(|(_, pid, _)| *pid == process.pid);
            if !known {
                remember(&mut self.exits, (at, process.pid, exit));
            }
        }
        let netns = process.netns;
        let requested = at.before(answer.waited);
        let read = answer
            .read
            .map(|read| (requested.after(read.waited), read.turn));
        let asked = Asked {
            at: requested,
            read,
        };
        self.watched.entry(netns).or_insert(true);
        self.serial += 1;
        let serial = self.serial;
        let habit = answer.turn.and_then(|_| Habit::of(&process.comm));
        if let (Some(turn), Some(habit)) = (answer.turn, habit) {
            self.order.answered(at, turn, serial, habit);
        }
        let by_thread = answer.turn.filter(|_| habit == Some(Habit::OneByThread));
        let free = by_thread.map(|turn| {
            let before = |past: &&Past| {
                let thread = past.turn.map(|turn| turn.thread);
                past.process.pid == process.pid && thread == Some(turn.thread)
            };
            let before = self.past.iter().rev().find(before);
            before.map_or(Timestamp::from_nanos(0), |past| past.at)
        });
        if let Some(goroutine) = answer.goroutine {
            self.servers
                .answered(at, process.pid, goroutine, answer.client);
        }
        let request = RequestHead::of_start(answer.request).unwrap_or_default();
        remember(
            &mut self.past,
            Past {
                at,
                asked,
                process: Arc::clone(process),
                turn: answer.turn,
                serial,
                ends: (answer.client, answer.listener),
                own,
                status,
                method: request.method().map(std::borrow::Cow::into_owned),
                host: request.host().map(std::borrow::Cow::into_owned),
                path: request.path().map(std::borrow::Cow::into_owned),
                settled: false,
                nested: 1,
            },
        );
        if self.waiting.len() >= MAX_WAITING && self.waiting.pop_front().is_some() {
            self.tally.dropped += 1;
        }
        self.waiting.push_back(Answer {
            at,
            due: at.after(self.config.settle),
            process: Arc::clone(process),
            turn: answer.turn,
            goroutine: answer.goroutine,
            serial,
            habit,
            free,
            ends: (answer.client, answer.listener),
            on_behalf_of: answer.on_behalf_of,
            own,
            asked,
            request,
            status,
            exit,
            in_flight: None,
            taken: Vec::new(),
        });
        self.due_by(at.after(self.config.settle));
        // Those to the gateway itself may be a part of more.
        let certain = self.waiting.back().filter(|answer| !answer.own);
        let certain = certain.is_some_and(|answer| {
            let mut attempts = self.attempts.iter();
            attempts.any(|attempt| self.is_certain(answer, attempt))
        });
        if certain && let Some(answer) = self.waiting.pop_back() {
            self.join(answer);
            return false;
        }
        true
    }

    /// Notes what waited for an upstream as the answer was given that was taken last and waits.
    pub(super) fn note_in_flight(&mut self, in_flight: InFlight) {
        if let Some(answer) = self.waiting.back_mut() {
            answer.in_flight = Some(in_flight);
        }
    }

    /// Whether it is to be asked which clients wait.
    pub(super) const fn asks(&self) -> bool {
        self.asking
    }

    /// Since when clients wait, by namespace.
    pub(super) fn waiting(&mut self, now: Timestamp, oldest: &[(u64, Timestamp)]) {
        self.asking = false;
        self.oldest = Some((now, oldest.iter().copied().collect()));
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.asked) {
            attempt.due = now;
        }
        self.expire(now);
    }

    /// When something may be due next.
    #[inline]
    pub(super) const fn next(&self) -> Option<Timestamp> {
        self.due
    }

    /// Something waits until `due`.
    fn due_by(&mut self, due: Timestamp) {
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Lets what is due up to `now` go: answers first, since they claim events.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(answer) = take_if(&mut self.waiting, |answer| answer.due <= now) {
            self.join(answer);
        }
        while let Some(attempt) = take_if(&mut self.attempts, |attempt| attempt.due <= now) {
            self.give_up(now, attempt);
        }
        forget(&mut self.past, now, |past| past.at);
        forget(&mut self.failures, now, |failure| failure.earlier.at);
        forget(&mut self.released, now, |release| release.at);
        forget(&mut self.opened, now, |opened| opened.at);
        self.order.forget(now);
        forget(&mut self.told, now, |(at, ..)| *at);
        forget(&mut self.doubted, now, |(at, ..)| *at);
        forget(&mut self.errors, now, |(at, ..)| *at);
        forget(&mut self.exits, now, |(at, ..)| *at);
        let attempts = self.attempts.iter().map(|attempt| attempt.due);
        let answers = self.waiting.iter().map(|answer| answer.due);
        self.due = attempts.chain(answers).min();
    }

    /// The observation stops: gives out what was judged. What is not settled of answers is not said.
    pub(super) fn flush(&mut self) {
        self.waiting.clear();
        while let Some(attempt) = self.attempts.pop_front() {
            self.publish(attempt.event);
        }
        self.due = None;
    }

    /// The observation ends: decides everything that waits.
    pub(super) fn finish(&mut self) {
        while let Some(answer) = self.waiting.pop_front() {
            self.join(answer);
        }
        while let Some(attempt) = self.attempts.pop_front() {
            self.publish(attempt.event);
        }
        self.due = None;
    }

    /// The next event to publish.
    pub(super) fn poll(&mut self) -> Option<Decided> {
        self.decided.pop_front()
    }

    /// The next event that waits and was not shown yet.
    pub(super) fn show(&mut self) -> Option<&HopEvent> {
        let unseen = self
            .attempts
            .iter()
            .rev()
            .take_while(|attempt| !attempt.shown);
        let first = self.attempts.len().checked_sub(unseen.count())?;
        let attempt = self.attempts.get_mut(first)?;
        attempt.shown = true;
        Some(&attempt.event)
    }

    fn publish(&mut self, event: Box<HopEvent>) {
        if let Some(hop) = event.hop {
            remember(&mut self.told, (event.time, hop));
        }
        self.decided.push_back(Decided::Event(event));
    }

    /// Joins the answer of which the attempt at `place` is the one beyond doubt, if it waits already.
    fn claim_certain(&mut self, place: usize) {
        let Some(attempt) = self.attempts.get(place) else {
            return;
        };
        let certain = |answer: &Answer| self.is_certain(answer, attempt);
        if let Some(index) = self.waiting.iter().position(certain)
            && let Some(answer) = self.waiting.remove(index)
        {
            self.join(answer);
        }
    }

    /// Finds what is behind an answer and lets the event go that carries it.
    fn join(&mut self, answer: Answer) {
        let mut told = answer.told();
        let Some((last, alike)) = self.candidates(&answer) else {
            self.without_attempt(answer, told);
            return;
        };
        let (chain, mut others) = self.chain(last, &answer);
        others.retain(|place| !alike.contains(place));
        let before = self.doubted_before(chain.first().copied());
        let listed = [&*chain, &*alike, &*others].concat();
        others.extend(self.others(&answer, last, &listed));
        let attempt = self.attempts.get(last);
        let kin = attempt.map(|last| self.servers.kin(&answer, last));
        told.contested = kin != Some(Kin::Own)
            && attempt.is_some_and(|last| self.known().is_contested(&answer, last));
        let mut times = Vec::with_capacity(chain.len());
        for index in chain {
            if let Some(attempt) = self.attempts.get_mut(index) {
                attempt.listed = true;
                times.push(attempt.event.time);
                told.attempts.push(AttemptInfo {
                    event: attempt.event.id.clone(),
                    cause: attempt.event.cause,
                    upstream: attempt.event.upstream.clone(),
                });
            }
        }
        let ids = alike.iter().chain(&others);
        let ids = ids.filter_map(|index| self.attempts.get(*index));
        told.candidates = ids.map(|attempt| attempt.event.id.clone()).collect();
        self.contest(last, &alike);
        let Some(attempt) = self.attempts.remove(last) else {
            return;
        };
        let next = attempt.tried().and_then(|tried| self.order.next(tried));
        if let Some(next) = next.filter(|_| told.contested) {
            let id = attempt.event.id.clone();
            remember(&mut self.doubted, (attempt.event.time, next, id));
        }
        self.take(&attempt);
        let fit = Fit::of(&answer, &attempt);
        let fills = !told.contested && join::fills_wait(&answer, &attempt);
        let named = fit.is_some_and(Fit::is_by_name) || fills || kin == Some(Kin::Own);
        let mut event = attempt.event;
        let taken = answer.taken.iter().filter(|_| !named);
        for id in attempt.contested.iter().chain(taken).chain(&before) {
            if *id != event.id && !told.candidates.contains(id) {
                told.candidates.push(id.clone());
            }
        }
        told.candidates.truncate(MAX_CONTESTED);
        if let Some(exit) = answer.exit.or_else(|| self.exit_of(&event)) {
            crate::classify::worker_died(&mut event, exit, answer.process.pid);
        }
        if event.upstream.socket_addr() == Some(answer.ends.1) {
            let nested = self.nest(&answer, &event);
            crate::classify::looped(&mut event, nested);
        }
        if let Some(entry) = told.attempts.last_mut() {
            entry.cause = event.cause;
        }
        self.tally
            .count(&told, event.cause == Cause::UpstreamOwnError);
        let clear = !told.is_ambiguous();
        self.settle(&answer, clear);
        for (entry, at) in told.attempts.iter().zip(times).filter(|_| clear) {
            let earlier = EarlierFailure {
                at,
                event: entry.event.clone(),
                cause: entry.cause,
                upstream: entry.upstream.target(),
            };
            remember(
                &mut self.failures,
                Failure {
                    netns: answer.process.netns,
                    comm: Arc::clone(&answer.process.comm),
                    route: (told.host.clone(), told.path.clone()),
                    earlier,
                },
            );
        }
        event.gateway_answer = Some(Box::new(told));
        self.name_second_gateway(&mut event);
        self.publish(event);
    }

    /// The events of attempts that may have been made before the first one of a request.
    fn doubted_before(&self, first: Option<usize>) -> Vec<String> {
        let first = first.and_then(|first| self.attempts.get(first)?.tried());
        let doubted = self.doubted.iter();
        let before = doubted.filter(|(_, next, _)| Some(*next) == first);
        before.map(|(.., id)| id.clone()).collect()
    }

    /// Tells the other answers that an attempt fits that it is taken.
    fn take(&mut self, attempt: &Attempt) {
        for answer in &mut self.waiting {
            let fits = answer.habit.is_none()
                && self.servers.kin(answer, attempt) != Kin::Other
                && (Known::is_option(answer, attempt)
                    || Fit::of(answer, attempt).is_some_and(Fit::is_by_name));
            if fits && answer.taken.len() < MAX_CONTESTED {
                answer.taken.push(attempt.event.id.clone());
            }
        }
    }

    /// Notes whether it is certain what was behind an answer.
    fn settle(&mut self, answer: &Answer, certain: bool) {
        let itself = |past: &&mut Past| past.serial == answer.serial;
        if let Some(past) = self.past.iter_mut().rev().find(itself) {
            past.settled = certain;
        }
    }

    /// Notes that an answer took one attempt and may as well have taken others: whose answer takes those is
    /// no more certain of it.
    fn contest(&mut self, taken: usize, alike: &[usize]) {
        if alike.is_empty() {
            return;
        }
        let all = alike.iter().chain([&taken]);
        let ids: Vec<String> = all
            .filter_map(|index| Some(self.attempts.get(*index)?.event.id.clone()))
            .take(MAX_CONTESTED)
            .collect();
        for index in alike {
            if let Some(attempt) = self.attempts.get_mut(*index) {
                for id in &ids {
                    let room = attempt.contested.len() < MAX_CONTESTED;
                    if room && !attempt.contested.contains(id) {
                        attempt.contested.push(id.clone());
                    }
                }
            }
        }
    }

    /// How the gateway's process ended, where it ended at the time of this event.
    fn exit_of(&self, event: &HopEvent) -> Option<Exit> {
        let pid = event.gateway.as_ref()?.pid;
        let near = |at: Timestamp| {
            at.since(event.time) <= join::SLACK && event.time.since(at) <= join::SLACK
        };
        self.exits
            .iter()
            .find(|(at, of, _)| *of == pid && near(*at))
            .map(|(.., exit)| *exit)
    }
}

/// Remembers a fact, at the cost of the oldest one where there are too many.
fn remember<T>(facts: &mut VecDeque<T>, fact: T) {
    if facts.len() >= MAX_REMEMBERED {
        facts.pop_front();
    }
    facts.push_back(fact);
}

/// Forgets the facts that are too old to matter. They are in order, or nearly.
fn forget<T>(facts: &mut VecDeque<T>, now: Timestamp, at: impl Fn(&T) -> Timestamp) {
    while facts
        .front()
        .is_some_and(|fact| now.since(at(fact)) > MEMORY)
    {
        facts.pop_front();
    }
}

/// Takes the first one out for which `wanted` holds.
fn take_if<T>(all: &mut VecDeque<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let index = all.iter().position(wanted)?;
    all.remove(index)
}
