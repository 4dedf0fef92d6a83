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

mod contest;
mod head;
mod join;
mod order;

use core::net::SocketAddr;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::head::status_of;
use self::join::{Fit, Known};
use self::order::{Habit, Order, Tried};
use crate::classify::{EarlierFailure, InFlight, SocketError, Unattempted};
use crate::http1::RequestHead;
use crate::model::{
    AnswerEnd, AttemptInfo, Cause, ClientAnswer, Errno, Exit, GatewayAnswer, HopEvent, HopId,
    Process, Proof, SocketCall, Timestamp, Turn,
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
/// How long an earlier failure may be what an answer without an attempt echoes: the longest time in which
/// gateways put a member aside by default (nginx `fail_timeout` 10 s, Envoy outlier detection 30 s).
const ECHO: Duration = Duration::from_secs(30);
/// Earlier failures that are told with such an answer.
const MAX_EARLIER: usize = 8;
/// How long facts are remembered for answers that come later.
const MEMORY: Duration = Duration::from_mins(1);

/// An event waits no longer than this for a client that still waits itself, and is not marked then.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the source has to say who waits, and how often it is asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the engine tells of a failed attempt beside its event.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Attempt {
    /// Boxed: all that wait are looked through for each answer, most of them no further than their times.
    pub(super) event: Box<HopEvent>,
    hop: Option<HopId>,
    /// When it began: its request, or its SYN where it failed to connect.
    pub(super) began: Timestamp,
    /// The turn that connected for it, where it was the first on its connection.
    opener: Option<Turn>,
    /// The turn that let go of it.
    pub(super) turn: Option<Turn>,
    /// When the gateway let go of it, where that is sure.
    released: Option<Timestamp>,
    /// Whether that was the gateway's own. The kernel closes a socket that was reset in whatever turn
    /// it has the processor.
    sure: bool,
    due: Timestamp,
    /// Whether an answer lists it as one of its attempts.
    listed: bool,
    /// Whether it was shown to who keeps packets.
    shown: bool,
    /// Whether the source was asked which clients wait.
    asked: bool,
    /// Events that an answer could not tell from this one when it took one of them.
    contested: Vec<String>,
}

impl Attempt {
    pub(super) fn new(event: HopEvent, began: Timestamp, turn: Option<Turn>) -> Self {
        Self {
            hop: event.hop,
            event: Box::new(event),
            began,
            opener: None,
            turn,
            released: None,
            sure: false,
            due: Timestamp::MAX,
            listed: false,
            shown: false,
            asked: false,
            contested: Vec::new(),
        }
    }

    /// The same, of a connection that this turn opened for it.
    pub(super) const fn opened_by(mut self, turn: Option<Turn>) -> Self {
        self.opener = turn;
        self
    }

    /// The same, of a call that failed in the turn that made it.
    pub(super) const fn in_one_turn(mut self) -> Self {
        self.opener = self.turn;
        self.sure = self.turn.is_some();
        self
    }
}

impl Attempt {
    /// The gateway's process.
    fn pid(&self) -> Option<u32> {
        self.event.gateway.as_ref().map(|gateway| gateway.pid)
    }

    /// Its name in the order of what threads did.
    fn tried(&self) -> Option<Tried> {
        match (self.hop, self.turn) {
            (Some(hop), _) => Some(Tried::Hop(hop)),
            (None, Some(turn)) => Some(Tried::Call {
                thread: turn.thread,
                at: self.event.time,
            }),
            (None, None) => None,
        }
    }

    /// Takes the turn that let go of its hop: the first that is sure.
    fn release(&mut self, release: &Release) {
        if !self.sure {
            self.turn = Some(release.turn);
            self.released = release.sure.then_some(release.at);
            self.sure = release.sure;
        }
    }
}

/// A process let go of a hop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    pub(super) at: Timestamp,
    pub(super) hop: HopId,
    /// When it was opened, where that is known.
    pub(super) opened: Option<Timestamp>,
    /// The process, zero where it is not known.
    pub(super) pid: u32,
    pub(super) turn: Turn,
    /// Whether the turn is the process's own beyond doubt.
    pub(super) sure: bool,
    /// Whether every request on it had a whole response that was good.
    pub(super) served: bool,
    /// Whether anything was asked on it, as far as is known.
    pub(super) asked: bool,
}

/// A process connects to an upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    at: Timestamp,
    hop: HopId,
    pid: u32,
}

/// An answer that waits.
#[derive(Debug)]
struct Answer {
    at: Timestamp,
    due: Timestamp,
    process: Arc<Process>,
    turn: Option<Turn>,
    /// Its number.
    serial: u64,
    /// What its thread does first, where the order in which it does things is known.
    habit: Option<Habit>,
    /// When its thread had answered the one before, as far as that is known, where it does one after another.
    free: Option<Timestamp>,
    /// The client's end and the gateway's.
    ends: (SocketAddr, SocketAddr),
    /// Whether the client is the gateway itself.
    own: bool,
    requested: Timestamp,
    request: RequestHead,
    status: Option<u16>,
    exit: Option<Exit>,
    in_flight: Option<InFlight>,
    /// Events that went to other answers and fit this one.
    taken: Vec<String>,
}

impl Answer {
    /// What an event tells of it.
    fn told(&self) -> GatewayAnswer {
        let owned = |text: Option<std::borrow::Cow<'_, str>>| {
            text.map(std::borrow::Cow::into_owned)
                .filter(|text| !text.is_empty())
        };
        let latency = self.at.since(self.requested);
        GatewayAnswer {
            status: self.status,
            client: self.ends.0.into(),
            time: self.at,
            method: owned(self.request.method()),
            path: owned(self.request.path()),
            host: owned(self.request.host()),
            request_id: owned(self.request.request_id()),
            latency_ms: (latency.as_secs_f64() * 1e6).round() / 1e3,
            attempts: Vec::new(),
            candidates: Vec::new(),
            contested: false,
        }
    }
}

/// An answer of the recent past, to tell what a later event belongs to.
#[derive(Debug)]
struct Past {
    at: Timestamp,
    requested: Timestamp,
    process: Arc<Process>,
    turn: Option<Turn>,
    /// Its number.
    serial: u64,
    /// The client's end and the gateway's.
    ends: (SocketAddr, SocketAddr),
    /// Whether the client is the gateway itself.
    own: bool,
    status: Option<u16>,
    method: Option<String>,
    host: Option<String>,
    path: Option<String>,
    /// Whether it is known what was behind it.
    settled: bool,
    /// How many answers to the same request lie one within the other from this one on, as far as is known.
    nested: usize,
}

/// A failure behind an answer of the recent past.
#[derive(Debug)]
struct Failure {
    netns: u64,
    comm: Arc<str>,
    route: (Option<String>, Option<String>),
    earlier: EarlierFailure,
}

/// What became of an event or an answer.
#[derive(Debug)]
pub(super) enum Decided {
    /// Publish this event.
    Event(Box<HopEvent>),
    /// Publish an event for an answer that no attempt on the wire explains.
    Unattempted(Box<Told>),
}

/// An answer without an attempt, with its verdict's facts.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) at: Timestamp,
    pub(super) process: Arc<Process>,
    pub(super) requested: Timestamp,
    pub(super) answer: GatewayAnswer,
    pub(super) facts: Unattempted,
    /// The thread that did nothing else meanwhile.
    pub(super) thread: Option<u32>,
}

/// How many answers there were, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// By status: 500, 502, 503, 504, any other 5xx; made by the gateway itself.
    pub(super) made: [u64; 5],
    pub(super) passed_on: u64,
    pub(super) explained: u64,
    pub(super) ambiguous: u64,
    pub(super) unexplained: u64,
    pub(super) without_status: u64,
    pub(super) hidden: u64,
    pub(super) dropped: u64,
}

/// Answers and events that wait for each other.
#[derive(Debug, Default)]
pub(super) struct Answers {
    config: Config,
    /// Where gateways listen, and whether requests can be read there.
    listeners: HashMap<(u64, SocketAddr), (Arc<Process>, bool)>,
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

    /// A gateway listens.
    pub(super) fn listening(&mut self, process: Arc<Process>, local: SocketAddr, readable: bool) {
        let netns = process.netns;
        if self.listeners.len() >= MAX_REMEMBERED {
            return;
        }
        let all = self.watched.entry(netns).or_insert(true);
        *all &= readable;
        self.listeners.insert((netns, local), (process, readable));
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
        let request = RequestHead::of_start(answer.request).unwrap_or_default();
        remember(
            &mut self.past,
            Past {
                at,
                requested,
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
            serial,
            habit,
            free,
            ends: (answer.client, answer.listener),
            own,
            requested,
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

    /// Whether an attempt is the one behind an answer whatever verdicts may still come: what the gateway let
    /// go of since the request may be judged later, and be an earlier attempt or the last.
    fn is_certain(&self, answer: &Answer, attempt: &Attempt) -> bool {
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
            own && release.at.after(join::SMALL) >= answer.requested
                && Some(release.hop) != attempt.event.hop
        };
        let fits = Fit::of(answer, attempt).is_some_and(Fit::is_certain);
        fits && !self.released.iter().any(beside)
    }

    /// The attempt behind an answer: its place, and those of others that fit alike.
    fn candidates(&self, answer: &Answer) -> Option<(usize, Vec<usize>)> {
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
        let best = fitting.iter().max_by_key(|(_, fit)| *fit).copied()?;
        let (best, fit) = self.first_of(answer, &fitting, best).unwrap_or(best);
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
    fn first_of(
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
    fn beside(&self, answer: &Answer) -> Option<usize> {
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
    fn is_tried_again(&self, attempt: &Attempt) -> bool {
        let next = attempt.tried().and_then(|tried| self.order.next(tried));
        let path = next.and_then(|next| self.path_of(next));
        path.is_some() && path == join::path_of(attempt)
    }

    /// What was asked with an attempt: as its request says, or the client for whom it was the last one.
    fn path_of(&self, tried: Tried) -> Option<&str> {
        let mut attempts = self.attempts.iter();
        let attempt = attempts.find(|attempt| attempt.tried() == Some(tried));
        let own = attempt.and_then(join::path_of);
        own.or_else(|| {
            let (serial, _) = self.order.answer_of(tried)?;
            join::answer_with(&self.past, serial)?.path.as_deref()
        })
    }

    /// Whether an attempt that fits may as well be another client's, which nothing else shows.
    fn is_doubtful(&self, answer: &Answer, index: usize, fit: &Fit) -> bool {
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
    fn may_have(&self, serial: u64, attempt: &Attempt) -> bool {
        let answer = join::answer_with(&self.past, serial);
        answer.is_some_and(|past| past.requested <= attempt.began.after(join::SMALL))
    }

    /// Whether another client was answered in the same turn by a gateway that does what is to be done in a turn in
    /// an order of its own.
    fn shares_turn(&self, answer: &Answer) -> bool {
        let others = |past: &Past| past.turn == answer.turn && past.ends != answer.ends;
        self.past.iter().any(others)
    }

    /// The attempts for one request, the last of which is at `last`, and those that may be meant as well.
    fn chain(&self, last: usize, answer: &Answer) -> (Vec<usize>, Vec<usize>) {
        join::chain(&self.known(), last, answer)
    }

    const fn known(&self) -> Known<'_> {
        Known {
            attempts: &self.attempts,
            waiting: &self.waiting,
            past: &self.past,
            order: &self.order,
            opened: &self.opened,
        }
    }

    /// Other failed connects that fit an answer, where nothing was asked of the one at `last` either.
    fn others(&self, answer: &Answer, last: usize, listed: &[usize]) -> Vec<usize> {
        let chosen = self.attempts.get(last).filter(|chosen| {
            let bare = Fit::of(answer, chosen).is_some_and(|fit| fit.is_bare());
            bare && !join::fills_wait(answer, chosen)
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
        });
        others.map(|(place, _)| place).collect()
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
        told.contested = attempt.is_some_and(|last| self.known().is_contested(&answer, last));
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
        let named = fit.is_some_and(Fit::is_by_name) || fills;
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
        self.count(&told, event.cause == Cause::UpstreamOwnError);
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

    /// How many answers to the same request, by the same listener, lie one within the other from this one on: the
    /// next one was given on the very connection that `event` was on. Notes it for the answer around this one.
    ///
    /// Clients that ask the same at once look like that too where the gateway passes each on to itself once. So
    /// there must be more of them than the clients of that time account for.
    fn nest(&mut self, answer: &Answer, event: &HopEvent) -> usize {
        let (method, host, path) = (
            answer.request.method(),
            answer.request.host(),
            answer.request.path(),
        );
        let local = event
            .local
            .map(|local| SocketAddr::new(local.address, local.port));
        let (mut clients, mut inner, mut next) = (0, 0, 1);
        let same = |past: &&Past| {
            past.ends.1 == answer.ends.1
                && past.process.netns == answer.process.netns
                && past.process.comm == answer.process.comm
                && past.method.as_deref() == method.as_deref()
                && past.host.as_deref() == host.as_deref()
                && past.path.as_deref() == path.as_deref()
        };
        for past in self.past.iter().filter(same) {
            let within = past.requested >= answer.requested && past.at <= answer.at;
            if !past.own {
                let meanwhile = past.requested <= answer.at && past.at >= answer.requested;
                clients += usize::from(meanwhile);
            } else if within && past.ends != answer.ends {
                inner += 1;
                if Some(past.ends.0) == local {
                    next = past.nested + 1;
                }
            }
        }
        let nested = if inner < next.saturating_sub(1) * clients {
            1
        } else {
            next
        };
        let itself = |past: &&mut Past| {
            past.ends == answer.ends && past.requested == answer.requested && past.at == answer.at
        };
        if let Some(past) = self.past.iter_mut().rev().find(itself) {
            past.nested = nested;
        }
        nested
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

    /// An answer that no failed attempt fits.
    fn without_attempt(&mut self, answer: Answer, mut told: GatewayAnswer) {
        told.candidates.clone_from(&answer.taken);
        let pid = answer.process.pid;
        let meanwhile =
            |at: Timestamp| at >= answer.requested && at <= answer.at.after(join::SLACK);
        // Of a hop that is let go of as the client is answered, something may have been the matter.
        let with_answer = |release: &Release| match (answer.turn, answer.free) {
            (Some(own), _) if own == release.turn => true,
            (Some(own), Some(free)) if own.thread == release.turn.thread => release.at >= free,
            (Some(own), None) if own.thread == release.turn.thread => false,
            (_, Some(_)) if release.sure => false,
            _ => join::is_near(release.at, answer.at),
        };
        let touched = self
            .released
            .iter()
            .filter(|release| {
                release.pid == pid
                    && release.opened.is_none_or(|opened| opened <= answer.at)
                    // Where nothing was asked, it was made for the request, or for a health check.
                    && (release.asked
                        || release
                            .opened
                            .is_none_or(|opened| opened.after(join::SMALL) >= answer.requested))
                    && meanwhile(release.at)
                    && if answer.habit.is_some() {
                        // A response that was good is no reason to say that there is no upstream.
                        let good = release.served && told.status == Some(503);
                        let tried = Tried::Hop(release.hop);
                        let known = self.order.answer_of(tried).is_some()
                            || self.order.next(tried).is_some();
                        let failed = |attempt: &Attempt| attempt.hop == Some(release.hop);
                        let alone = answer.turn == Some(release.turn)
                            && !known
                            && self.attempts.iter().any(failed);
                        self.order.is_beside(release.hop, answer.serial) && !good || alone
                    } else {
                        with_answer(release)
                    }
                    && !self.told.iter().any(|(_, told)| *told == release.hop)
                    // What is another's for sure is none of it; what is only doubtful may be.
                    && !self.attempts.iter().any(|attempt| {
                        attempt.event.hop == Some(release.hop)
                            && (attempt.listed || Fit::of(&answer, attempt).is_none())
                    })
            })
            .count();
        // The status may be an upstream's, under another path.
        let passed_on = self.attempts.iter().filter(|attempt| {
            let event = &attempt.event;
            let status = event.exchange.as_ref().and_then(|exchange| exchange.status);
            event.cause == Cause::UpstreamOwnError
                && event.gateway.as_ref().is_some_and(|by| by.pid == pid)
                && status == told.status
                && attempt.began >= answer.requested
                && attempt.began <= answer.at
                && !join::is_of_another_request(&answer, attempt)
                // Not where another one asked for just that.
                && !self.past.iter().any(|past| {
                    let path = event.exchange.as_ref().map(|exchange| &exchange.path);
                    past.process.pid == pid
                        && past.ends != answer.ends
                        && past.path.is_some()
                        && path == Some(&past.path)
                        && past.requested <= attempt.began.after(join::SMALL)
                        && past.at >= attempt.began
                })
        });
        // Of an answer that the kernel sent by itself it is not known which process made it.
        let foreign = answer.turn.is_none() && answer.exit.is_none();
        // Its attempt may be one that went out too early.
        let hurried = self.hurried.is_some_and(|at| at >= answer.requested);
        let touched = touched + passed_on.count() + usize::from(foreign) + usize::from(hurried);
        let same = |failure: &&Failure| {
            failure.netns == answer.process.netns
                && failure.comm == answer.process.comm
                && failure.route == (told.host.clone(), told.path.clone())
                && failure.earlier.at <= answer.requested
                && answer.at.since(failure.earlier.at) <= ECHO
        };
        let earlier = self.failures.iter().rev().filter(same).take(MAX_EARLIER);
        let mut earlier: Vec<_> = earlier.map(|failure| failure.earlier.clone()).collect();
        earlier.reverse();
        // Connects of the gateway that failed with no client behind them: its own checks.
        let checks = self
            .attempts
            .iter()
            .filter(|attempt| {
                attempt
                    .event
                    .gateway
                    .as_ref()
                    .is_some_and(|by| by.pid == pid)
            })
            .filter(|attempt| attempt.event.exchange.is_none() && attempt.event.hop.is_some())
            .filter(|attempt| {
                let of_client = |answer| Fit::of(answer, attempt).is_some();
                let near = |past: &Past| {
                    past.process.pid == pid
                        && past.serial != answer.serial
                        && past.requested <= attempt.began.after(join::SMALL)
                        && past.at >= attempt.began
                };
                let known = |tried| {
                    self.order.answer_of(tried).is_some() || self.order.next(tried).is_some()
                };
                !attempt.listed
                    && !attempt.tried().is_some_and(known)
                    && !of_client(&answer)
                    && !self.waiting.iter().any(of_client)
                    && !self.past.iter().any(near)
            })
            .count();
        let error = self.socket_error(&answer);
        let facts = Unattempted {
            status: told.status,
            comm: Arc::clone(&answer.process.comm),
            latency: answer.at.since(answer.requested),
            exit: answer.exit,
            touched,
            earlier,
            failing_checks: checks,
            error,
            in_flight: answer.in_flight,
            // Filled in by the engine, which knows the hops.
            unjudged: 0,
        };
        self.decided.push_back(Decided::Unattempted(Box::new(Told {
            at: answer.at,
            requested: answer.requested,
            process: answer.process,
            answer: told,
            facts,
            thread: answer.free.and(answer.turn).map(|turn| turn.thread),
        })));
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
                    && *at >= answer.requested
                    && *at <= answer.at.after(join::SMALL)
                    && (!one_by_one || join::is_near(*at, answer.at))
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

    /// Counts an answer that is joined.
    fn count(&mut self, told: &GatewayAnswer, passed_on: bool) {
        let Some(status) = told.status else {
            self.tally.without_status += 1;
            return;
        };
        if passed_on {
            self.tally.passed_on += 1;
            return;
        }
        self.count_made(status);
        if told.is_ambiguous() {
            self.tally.ambiguous += 1;
        } else {
            self.tally.explained += 1;
        }
    }

    fn count_made(&mut self, status: u16) {
        let place = match status {
            500 => 0,
            502 => 1,
            503 => 2,
            504 => 3,
            _ => 4,
        };
        if let Some(count) = self.tally.made.get_mut(place) {
            *count += 1;
        }
    }

    /// Counts an answer without an attempt, by how firmly it is explained, if at all.
    pub(super) fn count_unattempted(&mut self, told: &GatewayAnswer, proof: Option<Proof>) {
        let Some(status) = told.status else {
            self.tally.without_status += 1;
            return;
        };
        self.count_made(status);
        match proof {
            Some(_) if told.is_ambiguous() => self.tally.ambiguous += 1,
            Some(Proof::Proven | Proof::Inferred) => self.tally.explained += 1,
            Some(Proof::Underdetermined) => self.tally.ambiguous += 1,
            None => self.tally.unexplained += 1,
        }
    }

    /// Publishes an event whose time is over, unless its client may still wait.
    fn give_up(&mut self, now: Timestamp, mut attempt: Attempt) {
        let gateway = attempt.event.gateway.as_ref();
        let (pid, netns) = gateway.map_or((0, 0), |gateway| (gateway.pid, gateway.netns));
        // An answer that is not joined yet may list it.
        let of_answer = |answer: &&Answer| {
            answer.process.pid == pid
                && answer.requested <= attempt.began.after(join::SMALL)
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
    fn keep(&mut self, attempt: Attempt) {
        if attempt.shown {
            self.attempts.push_front(attempt);
        } else {
            self.attempts.push_back(attempt);
        }
    }

    /// Whether no client that is known of was told of a failure.
    fn may_be_hidden(&self, attempt: &Attempt, netns: u64) -> bool {
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
                && past.requested <= attempt.began.after(join::SMALL)
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

    /// Says where the upstream that made the status is a gateway on this host itself: its own answer to
    /// the first one was seen, on the very connection.
    fn name_second_gateway(&self, event: &mut HopEvent) {
        let (Cause::UpstreamOwnError, Some(local), Some(upstream)) =
            (event.cause, event.local, event.upstream.socket_addr())
        else {
            return;
        };
        let ends = (SocketAddr::new(local.address, local.port), upstream);
        if let Some(past) = self.past.iter().rev().find(|past| past.ends == ends) {
            crate::classify::second_gateway(event, &past.process);
        }
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
