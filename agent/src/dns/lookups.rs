//! Queries and answers to resolutions: one attempt of a program to get the addresses of a name.
//!
//! One resolution is a query for each address family, their repeats, the same over TCP where an answer
//! did not fit, and the names that search domains make of the one asked for. It failed where none of that
//! gave an address, which is known only once nothing more follows: see [`Lookups::poll`].
//!
//! Programs differ in how they ask again, and each of their habits is recognised here. The libc of GNU
//! and nginx repeat a query under its id; Go takes a new id and a new port; nginx and `HAProxy` keep one
//! port for good, so that a new id from there is a new resolution.

mod facts;
mod judge;

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use self::facts::{Lookup, State};
use super::{Message, Name};
use crate::model::{Process, Timestamp};

pub use self::facts::{Asked, Outcome, Reply, Resolution, Unusable};

/// A failed resolution is told this long after its last word: the other family, the next search domain
/// or the next resolver is asked at once.
const SETTLE: Duration = Duration::from_secs(1);

/// An unanswered query is repeated within five seconds (nginx, glibc, Go and c-ares alike). Longer silence
/// means that its program gave up.
const QUIET: Duration = Duration::from_secs(6);

/// The longest that programs go on: `resolver_timeout` of nginx, and two rounds of three resolvers in
/// glibc.
const LONGEST: Duration = Duration::from_secs(31);

/// What a program does next without waiting for anything, on a busy host.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Timeouts of resolvers are whole seconds: who asks again sooner does not repeat a query that timed out.
const LEAST_TIMEOUT: Duration = Duration::from_millis(900);

/// Queries kept of one resolution, repeats of the same one not counted.
const MAX_ASKED: usize = 12;

/// Resolutions of one asker whose names have the same first label.
const MAX_ALIKE: usize = 32;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asker {
    /// A process, by its id.
    Process(u32),
    /// Whoever has this address: a capture file knows no more.
    Address(IpAddr),
}

/// What is known of a message beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Exchanged<'a> {
    /// Who asks.
    pub asker: Asker,
    /// The same as the kernel tells it.
    pub process: Option<&'a Arc<Process>>,
    /// Whether that is a resolver of the gateway's host, which asks on behalf of others.
    pub on_behalf: bool,
    /// The end that asks.
    pub local: SocketAddr,
    /// The end that answers.
    pub resolver: SocketAddr,
    /// Whether it came over TCP.
    pub tcp: bool,
    /// Records that the source had lost by then.
    pub lost: u64,
}

/// Addresses that an answer told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// The name that was asked for.
    pub name: Name,
    /// When.
    pub asked: Timestamp,
    /// All addresses of the family.
    pub addresses: Vec<IpAddr>,
    /// How long they hold.
    pub ttl: Duration,
    /// There may be more addresses than were seen.
    pub cut: bool,
}

/// Caps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupLimits {
    /// Resolutions at once; the oldest is forgotten for a new one.
    pub lookups: usize,
}

/// The resolutions under way.
#[derive(Debug)]
pub struct Lookups {
    limits: LookupLimits,
    /// By number, the oldest first.
    open: BTreeMap<u64, Lookup>,
    next: u64,
    /// Those of one asker whose names begin with the same label: search domains change only what follows.
    alike: HashMap<(Asker, Arc<str>), Vec<u64>, RandomState>,
    /// Which one a query belongs to, by the asker's end and the query's id.
    queries: HashMap<(Asker, SocketAddr, u16), u64, RandomState>,
    /// Which one goes on under this name, the target of an alias.
    aliases: HashMap<(Asker, Name), u64, RandomState>,
    due: BTreeSet<(Timestamp, u64)>,
    evicted: u64,
    unmatched: u64,
}

impl Lookups {
    /// An empty table.
    pub fn new(limits: LookupLimits) -> Self {
        Self {
            limits,
            open: BTreeMap::new(),
            next: 0,
            alike: HashMap::default(),
            queries: HashMap::default(),
            aliases: HashMap::default(),
            due: BTreeSet::new(),
            evicted: 0,
            unmatched: 0,
        }
    }

    /// Resolutions that are not decided or were lately.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Entries of the tables beside the resolutions.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn remembered(&self) -> [usize; 4] {
        [
            self.alike.values().map(Vec::len).sum(),
            self.queries.len(),
            self.aliases.len(),
            self.due.len(),
        ]
    }

    /// Resolutions that were forgotten to make room.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Answers to no query that was seen.
    pub const fn unmatched(&self) -> u64 {
        self.unmatched
    }

    /// Takes a message seen at `at`. Queries of recursive resolvers among themselves, and those for
    /// anything but addresses, are left alone. Returns what an answer told.
    pub fn message(
        &mut self,
        at: Timestamp,
        with: &Exchanged<'_>,
        message: &Message,
    ) -> Option<Learned> {
        if message.header.opcode != 0 {
            return None;
        }
        if message.header.response {
            return self.reply(at, with, message);
        }
        let question = message.question.as_ref()?;
        if message.header.recursion_desired && question.is_for_address() {
            self.query(
                at,
                with,
                message.header.id,
                question.name.clone(),
                question.kind,
            );
        }
        None
    }

    /// Notes that bytes of a stream to a resolver were missed: what is asked of that resolver by the same
    /// asker over TCP, or did not fit into a datagram, may have been answered well.
    pub fn missed(&mut self, at: Timestamp, with: &Exchanged<'_>) {
        let asks = |(_, lookup): &(&u64, &mut Lookup)| lookup.asker == with.asker;
        let numbers: Vec<u64> = self
            .open
            .iter_mut()
            .filter(asks)
            .filter_map(|(number, lookup)| lookup.missed(at, with).then_some(*number))
            .collect();
        for number in numbers {
            self.arm(number);
        }
    }

    /// Notes that `asker` connects to an address of `name`: whatever else it was answered, it has one.
    pub fn used(&mut self, asker: Asker, name: &Name) {
        let key = (asker, Arc::from(name.first_label()));
        for id in self.alike.get(&key).into_iter().flatten() {
            if let Some(lookup) = self.open.get_mut(id)
                && lookup.name == *name
            {
                lookup.used = true;
            }
        }
    }

    /// How many resolutions of `asker` that began from `since` to `at` wait for an answer.
    pub fn pending(&self, asker: Asker, since: Timestamp, at: Timestamp) -> usize {
        let waits = |lookup: &&Lookup| {
            lookup.asker == asker
                && lookup.began >= since
                && lookup.began <= at
                && lookup.state() != State::Resolved
        };
        self.open.values().filter(waits).count()
    }

    /// The newest query for `name` that a resolver of the gateway's host sent by `at` and that no usable
    /// answer came to yet, with that resolver.
    pub fn waiting_on_behalf(
        &self,
        name: &Name,
        at: Timestamp,
    ) -> Option<(Option<Arc<Process>>, Asked)> {
        let waits = |lookup: &&Lookup| {
            lookup.on_behalf && lookup.name == *name && lookup.state() == State::Waiting
        };
        let unanswered = |asked: &&Asked| asked.reply.is_none() && asked.first <= at;
        self.open.values().rev().filter(waits).find_map(|lookup| {
            let asked = lookup.asked.iter().rev().find(unanswered)?;
            Some((lookup.process.clone(), asked.clone()))
        })
    }

    /// When [`Lookups::poll`] wants to be called next.
    #[inline]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The next resolution that is known by `now` to have failed.
    pub fn poll(&mut self, now: Timestamp) -> Option<Resolution> {
        while let Some((due, id)) = self.due.first().copied()
            && due <= now
        {
            if let Some(failed) = self.judge(id, due, false) {
                return Some(failed);
            }
        }
        None
    }

    /// Ends the observation at `at`: decides what needs no further word.
    pub fn finish(&mut self, at: Timestamp) -> Vec<Resolution> {
        let mut failed = Vec::new();
        while let Some(resolution) = self.poll(at) {
            failed.push(resolution);
        }
        while let Some((_, id)) = self.due.first().copied() {
            failed.extend(self.judge(id, at, true));
        }
        failed
    }

    fn query(&mut self, at: Timestamp, with: &Exchanged<'_>, id: u16, name: Name, kind: u16) {
        let known = self.place_of(at, with, id, &name, kind);
        let number = known.unwrap_or_else(|| self.begin(at, with, name.clone()));
        let Some(lookup) = self.open.get_mut(&number) else {
            return;
        };
        if lookup.ask(at, with, id, name, kind) {
            let key = (with.asker, with.local, id);
            self.queries.insert(key, number);
        }
        self.arm(number);
    }

    /// The resolution that a query belongs to, if that has begun.
    fn place_of(
        &mut self,
        at: Timestamp,
        with: &Exchanged<'_>,
        id: u16,
        name: &Name,
        kind: u16,
    ) -> Option<u64> {
        let key = (with.asker, Arc::from(name.first_label()));
        let alike = self.alike.get(&key).map_or(&[][..], Vec::as_slice);
        let goes_on = self.aliases.get(&(with.asker, name.clone()));
        let mut found = None;
        let mut superseded = None;
        for number in alike.iter().chain(goes_on) {
            let Some(lookup) = self.open.get(number) else {
                continue;
            };
            if lookup.name != *name && goes_on != Some(number) {
                continue;
            }
            if lookup.takes(at, with, id, kind) {
                // Threads may look the same name up at a time, each from a port of its own.
                let same_port = lookup.asked_from(with.local);
                found = found.max(Some((same_port, *number)));
            } else if lookup.is_given_up_by(at, with, id, kind) {
                superseded = Some(*number);
            }
        }
        if found.is_none()
            && let Some(number) = superseded
        {
            if let Some(lookup) = self.open.get_mut(&number) {
                lookup.given_up = Some(at);
            }
            self.arm(number);
        }
        found.map(|(_, number)| number)
    }

    fn begin(&mut self, at: Timestamp, with: &Exchanged<'_>, name: Name) -> u64 {
        let number = self.next;
        self.next += 1;
        let key = (with.asker, Arc::from(name.first_label()));
        if let Some(alike) = self.alike.get(&key)
            && alike.len() >= MAX_ALIKE
            && let Some(oldest) = alike.first().copied()
        {
            self.evict(oldest);
        }
        while self.open.len() >= self.limits.lookups.max(1)
            && let Some(oldest) = self.open.keys().next().copied()
        {
            self.evict(oldest);
        }
        self.alike.entry(key).or_default().push(number);
        self.open.insert(number, Lookup::new(at, with, name));
        number
    }

    fn evict(&mut self, number: u64) {
        if let Some(lookup) = self.remove(number)
            && !matches!(lookup.state(), State::Resolved)
        {
            self.evicted += 1;
        }
    }

    fn reply(&mut self, at: Timestamp, with: &Exchanged<'_>, message: &Message) -> Option<Learned> {
        let key = (with.asker, with.local, message.header.id);
        let number = self.queries.get(&key).copied();
        let question = message.question.as_ref();
        if question.is_some_and(|question| !question.is_for_address()) && number.is_none() {
            return None;
        }
        let Some(lookup) = number.and_then(|number| self.open.get_mut(&number)) else {
            self.wrong_id(at, with, message);
            return None;
        };
        let learned = lookup.answer(at, with, message);
        let alias = lookup.alias().cloned();
        if let (Some(number), Some(alias)) = (number, alias) {
            self.aliases.insert((with.asker, alias), number);
        }
        if let Some(number) = number {
            self.arm(number);
        }
        learned
    }

    /// An answer under an id that nobody asked under may be meant for a query that waits.
    fn wrong_id(&mut self, at: Timestamp, with: &Exchanged<'_>, message: &Message) {
        let waiting = message.question.as_ref().and_then(|question| {
            let key = (with.asker, Arc::from(question.name.first_label()));
            let alike = self.alike.get(&key)?;
            alike.iter().copied().find(|number| {
                self.open
                    .get(number)
                    .is_some_and(|lookup| lookup.expects(with.local, question))
            })
        });
        match waiting.and_then(|number| self.open.get_mut(&number)) {
            Some(lookup) => lookup.ignored(at, with, message, Unusable::WrongId),
            None => self.unmatched += 1,
        }
    }

    /// Sets the deadline of a resolution anew, and of those that wait for it.
    fn arm(&mut self, number: u64) {
        let Some(due) = self.arm_one(number, None) else {
            return;
        };
        let Some(lookup) = self.open.get(&number) else {
            return;
        };
        let key = (lookup.asker, Arc::from(lookup.name.first_label()));
        let alike = self.alike.get(&key).cloned().unwrap_or_default();
        for other in alike {
            if self
                .open
                .get(&other)
                .is_some_and(|lookup| lookup.waits_for == Some(number))
            {
                self.arm_one(other, Some(due));
            }
        }
    }

    /// Sets one deadline anew, not before `least`. Returns it.
    fn arm_one(&mut self, number: u64, least: Option<Timestamp>) -> Option<Timestamp> {
        let lookup = self.open.get_mut(&number)?;
        if least.is_none() {
            lookup.waits_for = None;
        }
        let due = lookup.deadline().max(least.unwrap_or_default());
        let before = std::mem::replace(&mut lookup.due, due);
        self.due.remove(&(before, number));
        self.due.insert((due, number));
        Some(due)
    }

    fn remove(&mut self, number: u64) -> Option<Lookup> {
        let lookup = self.open.remove(&number)?;
        self.due.remove(&(lookup.due, number));
        let key = (lookup.asker, Arc::from(lookup.name.first_label()));
        if let Some(alike) = self.alike.get_mut(&key) {
            alike.retain(|other| *other != number);
            if alike.is_empty() {
                self.alike.remove(&key);
            }
        }
        for asked in &lookup.asked {
            let key = (lookup.asker, asked.local, asked.id);
            if self.queries.get(&key) == Some(&number) {
                self.queries.remove(&key);
            }
        }
        for alias in lookup.aliases() {
            let key = (lookup.asker, alias.clone());
            if self.aliases.get(&key) == Some(&number) {
                self.aliases.remove(&key);
            }
        }
        Some(lookup)
    }
}

#[cfg(test)]
mod tests;
