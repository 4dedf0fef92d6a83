//! Names and addresses: joins what resolvers said to the gateways that asked and to their hops.

use core::net::{IpAddr, SocketAddr};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::answers::Attempt;
use super::hop::Hop;
use super::recent::Recent;
use crate::classify::{Behind, StaleFacts, Verdict, may_be_stale, stale_address, unresolved};
use crate::dns::{Asker, Exchanged, Learned, LookupLimits, Lookups, Message, Name, Resolution};
use crate::limits::Limits;
use crate::model::{Direction, DnsMessage, LocalInfo, Process, Target, Timestamp};

/// Names remembered of one address, and addresses of one name.
const MAX_NAMES: usize = 4;
const MAX_ADDRESSES: usize = 32;

/// A gateway may use an address for long after its time to live: nginx resolves the names of its
/// configuration once. This long, its name is remembered.
const GRACE: Duration = Duration::from_hours(24);

/// What answers and connects do within this time may be under way at the same time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Clocks of several processors differ by less.
const SKEW: Duration = Duration::from_millis(1);

/// Failed resolutions remembered for the answers that a gateway made of them.
const MAX_LATELY: usize = 1024;

/// Failures remembered of resolvers on this host, and for how long they explain those of a gateway.
const MAX_BEHIND: usize = 256;
const BEHIND: Duration = Duration::from_secs(40);

/// Whom an answer told something: workers of one gateway inherit what its first process was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Program {
    /// A program in a network namespace, by the kernel's name for it.
    Named(u64, [u8; 16]),
    /// A resolver of this host, on behalf of whoever asked it.
    OnBehalf,
    /// Whoever has this address: a capture file knows no more.
    Address(IpAddr),
}

impl Program {
    fn of(process: Option<&Arc<Process>>, local: IpAddr) -> Self {
        match process {
            Some(process) => {
                let mut comm = [0; 16];
                for (room, byte) in comm.iter_mut().zip(process.comm.bytes()) {
                    *room = byte;
                }
                Self::Named(process.netns, comm)
            }
            None => Self::Address(local),
        }
    }
}

/// A name of an address.
#[derive(Clone, Debug)]
pub(super) struct Known {
    name: Name,
    /// When it was asked for last.
    asked: Timestamp,
    /// Who told.
    resolver: IpAddr,
    /// The network namespace that the resolver's address means something in; zero where in all.
    netns: u64,
}

/// The addresses of one family that a name has by one resolver.
#[derive(Debug, Default)]
struct Current {
    /// When the last answer came, and whether all of it was seen.
    at: Timestamp,
    whole: bool,
    /// Whether an address came back that had been left out: answers hold a part of them all.
    rotates: bool,
    /// Addresses with when an answer held them last, and how long that held good.
    addresses: Vec<(IpAddr, Timestamp, Duration)>,
}

/// What is known of names.
#[derive(Debug)]
pub(super) struct Names {
    lookups: Lookups,
    most: usize,
    told: Recent<(Program, IpAddr), Vec<Known>>,
    current: Recent<(u64, IpAddr, Name, bool), Current>,
    behind: VecDeque<(Timestamp, Name, Behind)>,
    /// Failed resolutions, to number their events.
    failed: u64,
    /// The last of them: who asked, and when.
    lately: VecDeque<(u32, Timestamp)>,
}

impl Names {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            lookups: Lookups::new(LookupLimits {
                lookups: limits.lookups,
            }),
            most: limits.names,
            told: Recent::default(),
            current: Recent::default(),
            behind: VecDeque::new(),
            failed: 0,
            lately: VecDeque::new(),
        }
    }

    #[inline]
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.lookups.next_due()
    }

    /// Answers to no query that was seen, and resolutions that were forgotten.
    pub(super) const fn counts(&self) -> (u64, u64) {
        (self.lookups.unmatched(), self.lookups.evicted())
    }

    fn learn(&mut self, at: Timestamp, message: &DnsMessage<'_>, learned: Learned) {
        let program = if message.on_behalf {
            Program::OnBehalf
        } else {
            Program::of(message.process.as_ref(), message.local.ip())
        };
        let resolver = message.resolver.ip();
        let own = message.process.as_ref().filter(|_| resolver.is_loopback());
        let netns = own.map_or(0, |process| process.netns);
        for address in &learned.addresses {
            let (names, _) = self.told.entry((program, *address), at, self.most);
            names.retain(|told| told.name != learned.name && at.since(told.asked) <= GRACE);
            if names.len() >= MAX_NAMES {
                names.remove(0);
            }
            names.push(Known {
                name: learned.name.clone(),
                asked: learned.asked,
                resolver,
                netns,
            });
        }
        let Some(first) = learned.addresses.first() else {
            return;
        };
        let key = (netns, resolver, learned.name, first.is_ipv6());
        let (current, _) = self.current.entry(key, at, self.most);
        let before = std::mem::replace(&mut current.at, at);
        current.whole = !learned.cut;
        for address in learned.addresses {
            let left_out = |(known, seen, _): &(IpAddr, Timestamp, Duration)| {
                *known == address && *seen < before
            };
            current.rotates |= current.addresses.iter().any(left_out);
            current.addresses.retain(|(known, ..)| *known != address);
            if current.addresses.len() >= MAX_ADDRESSES {
                current.addresses.remove(0);
            }
            current.addresses.push((address, at, learned.ttl));
        }
    }

    /// The name that `address` has at `at` for this program: the one that it asked for last. Where it
    /// never asked, what a resolver of the host told on its behalf, if that is one name only.
    fn name_of(&self, program: Program, address: IpAddr, at: Timestamp) -> Option<&Known> {
        let own = self.told.get(&(program, address)).and_then(|names| {
            let earlier = names
                .iter()
                .filter(|told| told.asked <= at && at.since(told.asked) <= GRACE);
            earlier.max_by_key(|told| told.asked)
        });
        if own.is_some() || matches!(program, Program::Address(_)) {
            return own;
        }
        match self.told.get(&(Program::OnBehalf, address))?.as_slice() {
            [only] => Some(only).filter(|told| told.asked <= at && at.since(told.asked) <= GRACE),
            _ => None,
        }
    }

    /// The name of the upstream of a hop that was joined mid-stream, by now.
    pub(super) fn name_of_hop(&self, hop: &Hop) -> Option<&Known> {
        let local = hop.local.filter(|_| hop.mid_stream)?.ip();
        let program = Program::of(hop.process.as_ref(), local);
        self.name_of(program, hop.upstream.ip(), hop.last_seen)
    }

    /// Names that a process had asked for by `at`, not before `since`, and that gave no address or are
    /// not decided.
    pub(super) fn without_address(
        &self,
        process: &Process,
        since: Timestamp,
        at: Timestamp,
    ) -> usize {
        let asker = Asker::Process(process.pid);
        let within = |(pid, began): &&(u32, Timestamp)| {
            *pid == process.pid && began.after(SKEW) >= since && *began <= at
        };
        self.lookups.pending(asker, since, at) + self.lately.iter().filter(within).count()
    }

    /// Whether the name of any address is known.
    pub(super) fn know_any(&self) -> bool {
        !self.told.is_empty()
    }

    /// Takes the word that a gateway connects to `upstream` at `at`, and returns the name of that.
    pub(super) fn connects(
        &mut self,
        at: Timestamp,
        process: Option<&Arc<Process>>,
        local: Option<SocketAddr>,
        upstream: SocketAddr,
    ) -> Option<Known> {
        let asker = match (process, local) {
            (Some(process), _) => Asker::Process(process.pid),
            (None, Some(local)) => Asker::Address(local.ip()),
            (None, None) => return None,
        };
        let local = local.unwrap_or(upstream).ip();
        let program = Program::of(process, local);
        let told = self.name_of(program, upstream.ip(), at)?.clone();
        for known in self
            .told
            .get(&(program, upstream.ip()))
            .into_iter()
            .flatten()
        {
            self.lookups.used(asker, &known.name);
        }
        Some(told)
    }

    /// Whether a connect at `at` went to an address that its name no longer has.
    fn is_stale(&self, told: &Known, address: IpAddr, at: Timestamp) -> Option<StaleFacts<'_>> {
        let key = (
            told.netns,
            told.resolver,
            told.name.clone(),
            address.is_ipv6(),
        );
        let (key, current) = self.current.get_with_key(&key)?;
        let held = current
            .addresses
            .iter()
            .find(|(known, ..)| *known == address);
        let (_, held, ttl) = *held?;
        let mut now = current
            .addresses
            .iter()
            .filter(|(_, seen, _)| *seen == current.at);
        // A gateway that connects may have begun with an answer that is a moment old, or with one whose
        // time to live has not passed.
        let moved = current.whole
            && !current.rotates
            && held.after(AT_ONCE) < current.at
            && current.at.after(AT_ONCE) < at
            && held.after(ttl) < at;
        let count = now.clone().count();
        let (first, ..) = *now.next().filter(|_| moved)?;
        Some(StaleFacts {
            name: &key.2,
            last_held: at.since(held),
            ttl,
            moved: at.since(current.at),
            now: first,
            count,
        })
    }

    /// The verdict on a connect, with what is known of the name.
    pub(super) fn with_name(
        &self,
        verdict: Verdict,
        told: Option<&Known>,
        upstream: SocketAddr,
        opened: Timestamp,
    ) -> Verdict {
        let stale = told
            .filter(|_| may_be_stale(verdict.cause))
            .and_then(|told| self.is_stale(told, upstream.ip(), opened));
        match stale {
            Some(facts) => stale_address(verdict, &facts),
            None => verdict,
        }
    }

    /// Remembers what a resolver of this host was answered, where it gave nothing.
    fn note_behind(&mut self, resolution: Resolution) {
        let Resolution {
            name,
            process,
            decided,
            asked,
            ..
        } = resolution;
        let Some(asked) = asked.into_iter().next_back() else {
            return;
        };
        if self.behind.len() >= MAX_BEHIND {
            self.behind.pop_front();
        }
        let behind = Behind { process, asked };
        self.behind.push_back((decided, name, behind));
    }

    /// What a resolver of this host had been answered when the gateway asked it, or waits for still.
    fn behind(&self, resolution: &Resolution) -> Option<Behind> {
        let found = self.behind.iter().rev().find(|(at, name, behind)| {
            *name == resolution.name
                && resolution.decided.since(*at) <= BEHIND
                && behind.asked.first.after(BEHIND) >= resolution.began
        });
        found.map(|(.., behind)| behind.clone()).or_else(|| {
            // It asked behind the gateway's query, and may go on for longer than the gateway waits.
            let waiting = self
                .lookups
                .waiting_on_behalf(&resolution.name, resolution.decided);
            waiting.map(|(process, asked)| Behind { process, asked })
        })
    }
}

impl Known {
    pub(super) fn text(&self) -> String {
        self.name.as_str().to_owned()
    }
}

impl Engine {
    /// Takes one DNS message.
    pub(super) fn dns(&mut self, at: Timestamp, message: &DnsMessage<'_>) {
        let with = Exchanged {
            asker: match &message.process {
                Some(process) => Asker::Process(process.pid),
                None => Asker::Address(message.local.ip()),
            },
            process: message.process.as_ref(),
            on_behalf: message.on_behalf,
            local: message.local,
            resolver: message.resolver,
            tcp: message.tcp,
            lost: self.stats.records_lost,
        };
        if message.tcp && message.wire_len == 0 {
            self.names.lookups.missed(at, &with);
            return;
        }
        self.stats.dns_messages += 1;
        let parsed = Message::parse(message.payload, message.wire_len);
        self.stats.dns_malformed += u64::from(parsed.is_err());
        let parsed = parsed.ok().or_else(|| Message::damaged(message.payload));
        let Some(parsed) = parsed else {
            return;
        };
        // Both may use port 53, as name servers among themselves do.
        let answers = message.direction == Direction::FromUpstream;
        if parsed.header.response != answers {
            return;
        }
        if let Some(learned) = self.names.lookups.message(at, &with, &parsed) {
            self.names.learn(at, message, learned);
        }
    }

    /// Tells the resolutions that have failed by now.
    pub(super) fn tell_unresolved(&mut self) {
        while let Some(resolution) = self.names.lookups.poll(self.now) {
            self.unresolved(resolution);
        }
    }

    /// The same at the end of the observation, of all that can be decided.
    pub(super) fn finish_names(&mut self) {
        for resolution in self.names.lookups.finish(self.now) {
            self.unresolved(resolution);
        }
    }

    fn unresolved(&mut self, resolution: Resolution) {
        if resolution.on_behalf {
            self.names.note_behind(resolution);
            return;
        }
        let Some(verdict) = unresolved(&resolution, self.names.behind(&resolution).as_ref()) else {
            return;
        };
        let lost = self.stats.records_lost - resolution.lost_before;
        if lost > 0 {
            // An answer, or a whole query with its answer, may be among what was missed.
            self.stats.dns_unjudged += 1;
            return;
        }
        self.names.failed += 1;
        if let Some(process) = &resolution.process {
            if self.names.lately.len() >= MAX_LATELY {
                self.names.lately.pop_front();
            }
            let began = (process.pid, resolution.began);
            self.names.lately.push_back(began);
        }
        // Its last query or answer: what the gateway made of it came soon after.
        let at = resolution.ended;
        let id = format!("{:x}-d{:x}", at.as_nanos(), self.names.failed);
        let process = resolution.process.as_ref();
        let mut event = self.event(id, at, verdict, Target::None, process);
        event.upstream.name = Some(resolution.name.as_str().to_owned());
        event.local = Some(LocalInfo {
            address: resolution.local.ip(),
            port: resolution.local.port(),
        });
        self.emit(Attempt::new(event, resolution.began, None));
    }
}
