//! Owns the tables of hops; takes observations and time, gives events and the next deadline.
//!
//! It decides which hop an observation belongs to and what is kept of how many hops; what happened on
//! a hop is [`hop`]'s business, and what that means is `classify`'s.

mod answers;
mod deadlines;
mod departures;
mod emit;
mod exchange;
mod hop;
mod names;
mod pauses;
mod peers;
mod recent;
mod signals;
mod slots;
mod timers;
mod traffic;

#[cfg(test)]
mod tests;

use core::hash::BuildHasher as _;
use core::net::SocketAddr;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use self::answers::Answers;
use self::deadlines::Deadlines;
use self::departures::Departures;
use self::hop::{Context, Hop, News, Outcome};
use self::names::Names;
use self::pauses::Pauses;
use self::peers::{Exchanged, Peers, Place};
use self::slots::ByHop;
use self::timers::Timers;
use self::traffic::AllFinished;
use crate::limits::Limits;
use crate::model::{HopEvent, HopId, IcmpError, Input, Segment, SocketCall, TcpFlags, Timestamp};
use crate::stats::Stats;
use crate::tcp::Ends;

pub use self::answers::Config as AnswersConfig;
pub use self::emit::Healthy;
pub use self::peers::UpstreamTally;
pub use self::traffic::Traffic;

/// The two ends of a hop behind its network namespace, zero where that is unknown: namespaces may use
/// the same addresses for different hops.
type Site = (u64, Ends);

/// Deadlines, and places in the order of eviction, that may be stale before they are looked for: so many
/// that looking costs next to nothing.
const MAX_STALE: usize = 1024;

/// Boxes kept for the next hops.
const MAX_SPARE: usize = 64;

/// ICMP errors kept for a SYN that may still come, and for how long.
const MAX_EARLY_ICMP: usize = 64;
const EARLY_ICMP: Duration = Duration::from_secs(1);

/// Settings of the engine that are not caps.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node, put on every event.
    pub node: Arc<str>,
    /// A gateway that gives up sooner than this is taken to have lost its client, not its patience.
    /// Chosen well below any timeout that is set on purpose, and above what a healthy request takes.
    pub patience: Duration,
    /// Whether healthy exchanges are told of by [`Engine::poll_healthy`].
    pub tell_healthy: bool,
    /// How long failures and the answers of the gateway to its clients wait for each other.
    pub answers: AnswersConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: Arc::from("localhost"),
            patience: Duration::from_millis(200),
            tell_healthy: false,
            answers: AnswersConfig::default(),
        }
    }
}

/// The deterministic state machine at the heart of hopscope: no IO, no clock.
///
/// Call [`Engine::handle`] for each observation and [`Engine::handle_timeout`] when
/// [`Engine::poll_timeout`] is due; then drain [`Engine::poll_event`]. Time never runs backwards on a
/// hop: an observation older than the newest one of the same hop is treated as if made at that time.
/// Between hops any order will do.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    limits: Limits,
    stats: Stats,
    now: Timestamp,
    hops: ByHop<Slot>,
    /// Hops that are over and when they are forgotten, in that order.
    over: VecDeque<(Timestamp, HopId)>,
    /// Payload and heads that the hops keep, in bytes.
    kept_bytes: usize,
    /// Hops by their ends, with the hash of those, to match ICMP errors. Each of them is live and has
    /// these ends. A table that grows need not look for the hops.
    ends: HashTable<(u64, HopId)>,
    /// Seeded at random: peers choose their ends.
    ends_hasher: RandomState,
    /// Hops in the order in which they may have to be evicted. A hop heard of since it was queued
    /// gets another turn.
    eviction: VecDeque<(Timestamp, HopId)>,
    timers: Timers,
    peers: Peers,
    names: Names,
    /// When a gateway let go of clients that had left.
    departures: Departures,
    pauses: Pauses,
    deadlines: Deadlines,
    /// ICMP errors that are ahead of the SYN that they quote.
    early_icmp: VecDeque<(Timestamp, IcmpError)>,
    /// Events to be polled.
    events: VecDeque<HopEvent>,
    /// Boxes of hops that are over, to be used again.
    #[expect(clippy::vec_box, reason = "it is the boxes that are used again")]
    spare: Vec<Box<Tracked>>,
    healthy: VecDeque<Healthy>,
    unseen: VecDeque<(SocketAddr, u64)>,
    /// Failed connects without a hop, to number their events.
    hopless: u64,
    /// Hops that were looked at for answers without an attempt in the second that began then.
    unattempted: (Timestamp, usize),
    /// What waits for the answer to the gateway's client.
    answers: Answers,
    /// Whether every segment goes the long way, to compare the two.
    #[cfg(any(test, feature = "fuzzing"))]
    long_way: bool,
}

/// What is kept of a hop: nothing but its place once it is over, so that late segments of it do not
/// begin a hop. Boxed, as a table that grows would copy and double what it holds.
#[derive(Debug)]
enum Slot {
    Live(Box<Tracked>),
    Over,
}

/// What there is of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Live,
    Over,
    Nothing,
}

#[derive(Debug)]
struct Tracked {
    hop: Hop,
    /// The deadline that the timers hold for it.
    armed: Option<Timestamp>,
    /// What of the engine's `kept_bytes` is its own.
    kept_bytes: usize,
    /// Its entry in the table of ends, and the hash of that. Translated addresses are other ones than
    /// the socket's own.
    ends: Option<(u64, Site)>,
    /// When it was put into the order of eviction last; its earlier places count no more.
    queued: Timestamp,
}

impl Engine {
    /// An engine that tracks nothing yet.
    pub fn new(config: Config, limits: Limits) -> Self {
        Self {
            peers: Peers::new(&limits),
            names: Names::new(&limits),
            answers: Answers::new(config.answers),
            config,
            limits,
            stats: Stats::default(),
            now: Timestamp::default(),
            hops: ByHop::default(),
            over: VecDeque::new(),
            kept_bytes: 0,
            ends: HashTable::new(),
            ends_hasher: RandomState::default(),
            eviction: VecDeque::new(),
            timers: Timers::default(),
            departures: Departures::default(),
            pauses: Pauses::default(),
            deadlines: Deadlines::default(),
            early_icmp: VecDeque::new(),
            events: VecDeque::new(),
            spare: Vec::new(),
            healthy: VecDeque::new(),
            unseen: VecDeque::new(),
            hopless: 0,
            unattempted: (Timestamp::default(), 0),
            #[cfg(any(test, feature = "fuzzing"))]
            long_way: false,
        }
    }

    /// Takes one observation made at `at`.
    pub fn handle(&mut self, at: Timestamp, input: Input<'_>) {
        self.now = self.now.max(at);
        match input {
            Input::Segment { hop, segment } => self.handle_segment(at, hop, &segment),
            Input::Plaintext { hop, text } => {
                self.stats.plaintexts += 1;
                self.with_hop(hop, |hop, cx| hop.plaintext(at, &text, cx));
            }
            Input::Signal { hop, signal } => self.signal(at, hop, signal),
            Input::ConnectFailed {
                process,
                upstream,
                errno,
                turn,
                goroutine,
            } => {
                let turn = turn.map(|turn| self.call_failed(at, turn, &process));
                let attempt = self.connect_failed(at, &process, upstream, errno, turn);
                if let Some(attempt) = attempt {
                    self.emit(attempt.run_by(goroutine));
                }
            }
            Input::Answer(mut answer) => {
                answer.turn = answer.turn.map(|turn| self.pauses.told(at, turn));
                self.answered(at, &answer);
            }
            Input::Listening {
                process, readable, ..
            } => self.answers.listening(process.netns, readable),
            Input::Waiting(oldest) => {
                self.answers.waiting(self.now, oldest);
                self.tell_answers();
            }
            Input::SocketFailed {
                process,
                turn,
                call,
                errno,
            } => {
                // Nobody was asked for anything yet where a client could not be accepted.
                let turn = if call == SocketCall::Accept {
                    self.pauses.told(at, turn)
                } else {
                    self.call_failed(at, turn, &process)
                };
                self.answers.socket_failed(at, process, turn, call, errno);
            }
            Input::Icmp { error, .. } => self.icmp(at, error),
            Input::Dns(message) => self.dns(at, &message),
            Input::ClientLeft { turn, departure } => {
                let turn = self.pauses.told(at, turn);
                self.departures.note(at, turn, departure);
            }
            Input::Lost { records } => {
                self.stats.records_lost += records;
                self.answers.lost();
            }
        }
    }

    /// Lets every deadline up to `now` expire.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        while self.over.front().is_some_and(|(due, _)| *due <= self.now) {
            self.forget_oldest_over();
        }
        while let Some((due, id)) = self.timers.pop_due(self.now) {
            let Some(Slot::Live(tracked)) = self.hops.get_mut(&id) else {
                continue;
            };
            if tracked.armed != Some(due) {
                continue;
            }
            tracked.armed = None;
            let mut forget = false;
            self.with_hop(id, |hop, cx| {
                let (out, over) = hop.timeout(due, cx);
                forget = over;
                out
            });
            if forget {
                self.forget(id);
            }
        }
        self.tell_unresolved();
        if self.answers.next().is_some_and(|due| due <= self.now) {
            self.answers.expire(self.now);
            self.tell_answers();
        }
    }

    /// Gives out the events that wait: for word of the upstream, and for what clients got, with nothing said
    /// of that.
    pub fn flush(&mut self) {
        let mut live: Vec<_> = self.hops.keys().copied().collect();
        // The table's order is random; the events' must not be.
        live.sort_unstable();
        for id in live {
            self.tell_held(id);
        }
        self.answers.flush();
        self.tell_answers();
    }

    /// Ends the observation: decides what can be decided of the hops that are still open.
    pub fn finish(&mut self, at: Timestamp) {
        self.handle_timeout(at);
        let mut open: Vec<_> = self.hops.keys().copied().collect();
        // The table's order is random; the events' must not be.
        open.sort_unstable();
        for id in open {
            let now = self.now;
            self.with_hop(id, |hop, cx| hop.finish(now, cx));
            self.forget(id);
        }
        // What is left is over, some of it by that.
        self.over.clear();
        self.hops.clear();
        self.finish_names();
        self.answers.finish();
        self.tell_answers();
    }

    /// The next event, if one was decided.
    #[inline]
    pub fn poll_event(&mut self) -> Option<HopEvent> {
        self.events.pop_front()
    }

    /// Whether the engine wants to know which clients wait for an answer, as an [`Input::Waiting`]: it holds
    /// events that nobody was told of, and the request behind one may still be under way.
    #[inline]
    pub const fn asks_who_waits(&self) -> bool {
        self.answers.asks()
    }

    /// The next event that was judged just now and waits for what the gateway's client gets. Its packets
    /// are at hand now, and may not be when it is polled. Events that wait for nothing are not given here.
    #[inline]
    pub fn poll_judged(&mut self) -> Option<&HopEvent> {
        self.answers.show()
    }

    /// The next healthy exchange, where [`Config::tell_healthy`] asks for them. Those that nobody
    /// polled are forgotten, the oldest first.
    pub fn poll_healthy(&mut self) -> Option<Healthy> {
        self.healthy.pop_front()
    }

    /// An upstream, and how many healthy exchanges with it stayed in the kernel, under the same terms.
    pub fn poll_unseen(&mut self) -> Option<(SocketAddr, u64)> {
        self.unseen.pop_front()
    }

    /// When [`Engine::handle_timeout`] wants to be called next.
    #[inline]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let over = self.over.front().map(|(due, _)| *due);
        let answers = self.answers.next();
        let earlier = |one: Option<Timestamp>, other: Option<Timestamp>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let timers = earlier(self.timers.next(), over);
        earlier(earlier(timers, answers), self.names.next_due())
    }

    /// Whether nothing more will be said of a hop: it went well or was judged, or is not tracked.
    pub fn is_over(&self, hop: HopId) -> bool {
        !matches!(self.hops.get(&hop), Some(Slot::Live(_)))
    }

    /// Hops tracked now, those that are over left out.
    pub fn open_hops(&self) -> usize {
        self.hops.len() - self.over.len()
    }

    /// How the exchanges with each upstream went: the upstreams heard of last, as many as
    /// [`Limits::upstreams`] allows.
    pub fn upstreams(&self) -> BTreeMap<SocketAddr, UpstreamTally> {
        self.peers.tallies()
    }

    /// Entries of the tables beside the hops themselves: ends, places in the order of eviction, and
    /// deadlines.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn remembered(&self) -> [usize; 3] {
        [self.ends.len(), self.eviction.len(), self.timers.len()]
    }

    /// Turns the short way of segments that say next to nothing off. The result must be the same.
    #[cfg(any(test, feature = "fuzzing"))]
    #[must_use]
    pub(crate) const fn by_the_long_way(mut self) -> Self {
        self.long_way = true;
        self
    }

    #[cfg(any(test, feature = "fuzzing"))]
    const fn has_short_way(&self) -> bool {
        !self.long_way
    }

    #[cfg(not(any(test, feature = "fuzzing")))]
    #[expect(clippy::unused_self, reason = "it has no choice but in tests")]
    const fn has_short_way(&self) -> bool {
        true
    }

    /// Counters.
    pub const fn stats(&self) -> Stats {
        let (dns_unmatched, dns_evicted) = self.names.counts();
        let answers = self.answers.tally;
        let [
            answers_500,
            answers_502,
            answers_503,
            answers_504,
            answers_other,
        ] = answers.made;
        Stats {
            upstreams_dropped: self.peers.dropped(),
            dns_unmatched,
            dns_evicted,
            answers_500,
            answers_502,
            answers_503,
            answers_504,
            answers_other,
            answers_explained: answers.explained,
            answers_ambiguous: answers.ambiguous,
            answers_unexplained: answers.unexplained,
            answers_passed_on: answers.passed_on,
            answers_without_status: answers.without_status,
            answers_dropped: answers.dropped,
            events_hidden: answers.hidden,
            ..self.stats
        }
    }

    /// Takes one segment observed at `at`, as [`Engine::handle`] does.
    pub fn handle_segment(&mut self, at: Timestamp, id: HopId, segment: &Segment<'_>) {
        self.now = self.now.max(at);
        self.stats.segments += 1;
        let (now, short_way) = (self.now, self.has_short_way());
        let mut local_known = true;
        let found = self.visit(id, |hop, cx| {
            if short_way {
                if hop.pass(at, now, segment, cx) {
                    return None;
                }
                if let Some(out) = hop.pass_fin(at, segment, cx) {
                    return Some(out);
                }
            }
            local_known = hop.local.is_some();
            local_known.then(|| hop.segment(at, segment, cx))
        });
        match found {
            Found::Over => {}
            Found::Live if local_known => {}
            // A reset alone tells nothing of a hop that is not tracked, nor does the rest of one that
            // is over.
            Found::Nothing if segment.flags.contains(TcpFlags::RST) => {}
            Found::Live => self.first_segment(at, id, segment),
            Found::Nothing => {
                let opening = segment.flags.contains(TcpFlags::SYN);
                self.track(at, id, (0, segment.upstream), !opening);
                self.first_segment(at, id, segment);
            }
        }
    }

    /// Takes the first segment of a hop, which tells its ends.
    #[inline(never)]
    fn first_segment(&mut self, at: Timestamp, id: HopId, segment: &Segment<'_>) {
        self.know_ends(at, id, (segment.local, segment.upstream));
        if segment.flags.contains(TcpFlags::SYN) {
            self.name(at, id, Some(segment.local));
        }
        self.with_hop(id, |hop, cx| hop.segment(at, segment, cx));
    }

    /// Looks up by what name the gateway knows the upstream that it connects to.
    fn name(&mut self, at: Timestamp, id: HopId, local: Option<SocketAddr>) {
        if !self.names.know_any() {
            return;
        }
        let Some(Slot::Live(tracked)) = self.hops.get_mut(&id) else {
            return;
        };
        let hop = &mut tracked.hop;
        let (process, local) = (hop.process.as_ref(), local.or(hop.local));
        if let Some(told) = self.names.connects(at, process, local, hop.upstream) {
            hop.name = Some(Box::new(told));
        }
    }

    /// Notes the ends of a hop, and hands it the ICMP error that was ahead of its SYN.
    fn know_ends(&mut self, at: Timestamp, id: HopId, ends: (SocketAddr, SocketAddr)) {
        let Some((netns, _)) = self.enter_ends(id, ends) else {
            return;
        };
        if self.early_icmp.is_empty() {
            return;
        }
        let before = self.early_icmp.len();
        self.early_icmp
            .retain(|(seen, _)| at.since(*seen) < EARLY_ICMP);
        self.stats.icmp_unmatched += (before - self.early_icmp.len()) as u64;
        let quoted = |(_, icmp): &(Timestamp, IcmpError)| {
            (icmp.local, icmp.upstream) == ends && (netns == 0 || icmp.netns == netns)
        };
        if let Some(index) = self.early_icmp.iter().position(quoted)
            && let Some((_, icmp)) = self.early_icmp.remove(index)
        {
            self.with_hop(id, |hop, _| hop.icmp(at, icmp));
        }
    }

    /// Enters the ends of a hop into the table, one entry a hop. Returns what was entered.
    fn enter_ends(
        &mut self,
        id: HopId,
        (local, upstream): (SocketAddr, SocketAddr),
    ) -> Option<Site> {
        let Some(Slot::Live(tracked)) = self.hops.get_mut(&id) else {
            return None;
        };
        let (netns, _) = tracked.hop.place();
        let site = (netns, Ends::new(local, upstream));
        let hash = self.ends_hasher.hash_one(site);
        if let Some((before, _)) = tracked.ends.replace((hash, site)) {
            self.leave_ends(id, before);
        }
        let hops = &self.hops;
        let is_there = |(known, id): &(u64, HopId)| *known == hash && has_ends(hops, *id, site);
        match self.ends.find_mut(hash, is_there) {
            Some((_, other)) => *other = id,
            None => {
                self.ends
                    .insert_unique(hash, (hash, id), |(known, _)| *known);
            }
        }
        Some(site)
    }

    /// Starts to track a hop, at the cost of the one that was silent longest if the table is full.
    fn track(&mut self, at: Timestamp, id: HopId, place: Place, mid_stream: bool) {
        while self.hops.len() >= self.limits.hops
            && (self.forget_oldest_over() || self.evict_oldest())
        {}
        self.stats.hops += 1;
        self.stats.hops_mid_stream += u64::from(mid_stream);
        self.peers.opened(place, at, mid_stream);
        // Built where it is moved from: it is large.
        let mut fresh = Tracked {
            hop: Hop::new(place.1, at, &self.limits),
            armed: None,
            kept_bytes: 0,
            ends: None,
            queued: at,
        };
        let mut tracked = match self.spare.pop() {
            Some(mut spare) => {
                fresh.hop.reuse(&mut spare.hop);
                *spare = fresh;
                spare
            }
            None => Box::new(fresh),
        };
        let hop = &mut tracked.hop;
        hop.mid_stream = mid_stream;
        hop.counted = mid_stream;
        hop.forget_losses(self.stats.records_lost);
        if !mid_stream {
            hop.connecting();
        }
        self.hops.insert(id, Slot::Live(tracked));
        // Hops that were forgotten leave their place in the queue behind: clear those now and then.
        let most = (MAX_STALE + 2 * self.open_hops()).min(2 * self.limits.hops.max(1));
        if self.eviction.len() > most {
            let hops = &self.hops;
            self.eviction.retain(|(at, id)| match hops.get(id) {
                Some(Slot::Live(hop)) => hop.queued == *at,
                Some(Slot::Over) | None => false,
            });
        }
        self.eviction.push_back((at, id));
    }

    /// Forgets the hop that was over first. Returns false where there is none.
    fn forget_oldest_over(&mut self) -> bool {
        let Some((_, id)) = self.over.pop_front() else {
            return false;
        };
        self.hops.remove(&id);
        true
    }

    /// Gives up the hop that was silent longest. Returns false where there is none.
    fn evict_oldest(&mut self) -> bool {
        while let Some((queued, oldest)) = self.eviction.pop_front() {
            match self.hops.get_mut(&oldest) {
                Some(Slot::Live(tracked)) if tracked.queued != queued => {}
                Some(Slot::Live(tracked)) if tracked.hop.last_seen > queued => {
                    tracked.queued = tracked.hop.last_seen;
                    self.eviction.push_back((tracked.queued, oldest));
                }
                Some(Slot::Live(_)) => {
                    self.tell_held(oldest);
                    self.forget(oldest);
                    self.stats.hops_evicted += 1;
                    return true;
                }
                Some(Slot::Over) | None => {}
            }
        }
        false
    }

    /// Tells the verdicts of a hop that wait, with what is known by now.
    fn tell_held(&mut self, id: HopId) {
        if let Some(Slot::Live(tracked)) = self.hops.get_mut(&id) {
            for judged in tracked.hop.release(self.now, true, &self.peers) {
                self.judged(id, judged);
            }
        }
    }

    /// Forgets a hop that is live. One that is over goes in the order of those.
    fn forget(&mut self, id: HopId) {
        if !self.is_over(id)
            && let Some(Slot::Live(tracked)) = self.hops.remove(&id)
        {
            self.let_go(id, &tracked);
        }
    }

    /// Leaves only the place of a hop that is over.
    fn close(&mut self, id: HopId) {
        let Some(slot) = self.hops.get_mut(&id) else {
            return;
        };
        if let Slot::Live(tracked) = std::mem::replace(slot, Slot::Over) {
            self.let_go(id, &tracked);
            // They are a help, and the more there are, the less of the table stays near the processor.
            if self.over.len() >= self.limits.hops / 4 {
                self.forget_oldest_over();
            }
            self.over.push_back((self.now.after(hop::LINGER), id));
            if self.spare.len() < MAX_SPARE && tracked.kept_bytes == 0 {
                self.spare.push(tracked);
            }
        }
    }

    /// Takes what a hop held off the books.
    fn let_go(&mut self, id: HopId, tracked: &Tracked) {
        self.kept_bytes -= tracked.kept_bytes;
        if tracked.hop.counted {
            self.peers.closed(&tracked.hop.place(), self.now, None);
        }
        if let Some((hash, _)) = tracked.ends {
            self.leave_ends(id, hash);
        }
    }

    /// The live hop with these ends.
    fn hop_of(&self, site: Site) -> Option<HopId> {
        let hash = self.ends_hasher.hash_one(site);
        let found = self.ends.find(hash, |(known, id)| {
            *known == hash && has_ends(&self.hops, *id, site)
        });
        found.map(|(_, id)| *id)
    }

    /// Takes the ends of a hop, which have this hash, out of the table, unless they are another hop's
    /// by now.
    fn leave_ends(&mut self, id: HopId, hash: u64) {
        if let Ok(entry) = self.ends.find_entry(hash, |(_, other)| *other == id) {
            entry.remove();
        }
    }

    /// Lets a hop handle something, then sees to its deadline and verdicts.
    fn with_hop(&mut self, id: HopId, handle: impl FnOnce(&mut Hop, &mut Context<'_>) -> Outcome) {
        self.visit(id, |hop, cx| Some(handle(hop, cx)));
    }

    /// The same, where there may be nothing to see to.
    #[inline]
    fn visit(
        &mut self,
        id: HopId,
        handle: impl FnOnce(&mut Hop, &mut Context<'_>) -> Option<Outcome>,
    ) -> Found {
        let tracked = match self.hops.get_mut(&id) {
            Some(Slot::Live(tracked)) => tracked,
            Some(Slot::Over) => return Found::Over,
            None => return Found::Nothing,
        };
        let mut cx = Context {
            limits: &self.limits,
            patience: self.config.patience,
            tell_healthy: self.config.tell_healthy,
            stats: &mut self.stats,
            peers: &mut self.peers,
            departures: &self.departures,
            deadlines: &mut self.deadlines,
        };
        let Some(out) = handle(&mut tracked.hop, &mut cx) else {
            return Found::Live;
        };
        let over = tracked.hop.is_over();
        // A hop that is over has its place among those.
        if !over && out.deadline != tracked.armed {
            tracked.armed = out.deadline;
            if let Some(deadline) = out.deadline {
                self.timers.set(deadline, id);
            }
        }
        let kept_bytes = tracked.hop.kept_bytes();
        self.kept_bytes = self.kept_bytes - tracked.kept_bytes + kept_bytes;
        tracked.kept_bytes = kept_bytes;
        if let Some(news) = out.news {
            self.tell(id, *news);
        }
        if over {
            self.close(id);
        }
        while self.kept_bytes > self.limits.kept_bytes && self.evict_oldest() {}
        // Deadlines of hops that were forgotten, and earlier ones of the others, stay behind.
        if self.timers.len() > MAX_STALE + 2 * self.open_hops() {
            let hops = &self.hops;
            self.timers.retain(|at, id| match hops.get(&id) {
                Some(Slot::Live(tracked)) => tracked.armed == Some(at),
                Some(Slot::Over) | None => false,
            });
        }
        Found::Live
    }

    /// Notes and tells what a hop showed.
    #[inline(never)]
    fn tell(&mut self, id: HopId, news: News) {
        let Some(Slot::Live(tracked)) = self.hops.get(&id) else {
            return;
        };
        let hop = &tracked.hop;
        let (place, upstream, seen) = (hop.place(), hop.upstream, news.finished.count());
        let (repeated, ttl) = (hop.retransmits() > 0, hop.ttl());
        let ended = |count, complete, finished| Exchanged {
            count,
            complete,
            repeated,
            ttl,
            finished,
        };
        if let Some((at, unseen)) = &news.unseen {
            let count = u64::from(unseen.exchanges);
            let ended = ended(count, true, AllFinished::default());
            self.peers.exchanged(place, *at, &ended);
            self.peers.add_unseen(&place, unseen);
            if self.config.tell_healthy {
                if self.unseen.len() >= emit::MAX_HEALTHY {
                    self.unseen.pop_front();
                }
                self.unseen.push_back((upstream, count));
            }
        }
        if seen > 0 {
            self.stats.exchanges += seen;
            let ended = ended(seen, news.completed, news.finished);
            self.peers.exchanged(place, self.now, &ended);
        }
        for judged in news.judged {
            self.judged(id, judged);
        }
        for (at, exchange, status) in news.healthy {
            self.tell_healthy(id, at, exchange, status);
        }
    }
}

/// Whether a hop is live and has these ends.
fn has_ends(hops: &ByHop<Slot>, id: HopId, site: Site) -> bool {
    match hops.get(&id) {
        Some(Slot::Live(tracked)) => tracked.ends.is_some_and(|(_, ends)| ends == site),
        Some(Slot::Over) | None => false,
    }
}
