//! What is known of each upstream over all hops to it: how its exchanges went, and what tells one
//! hop's failure from that of the whole upstream.
//!
//! It only remembers; what it means is `classify`'s business. Everything is kept by the network
//! namespace as well, zero where that is unknown: the same address in another one is another host.
//! Bounded by [`Limits::upstreams`].

use core::hash::{Hash, Hasher};
use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;
use std::time::Duration;

use super::recent::Recent;
use super::traffic::{AllFinished, Traffic};
use crate::classify::{Died, Origin, origin};
use crate::limits::Limits;
use crate::model::{Cause, HeldExchanges, Timestamp};

/// An upstream's address and the network namespace in which it is one.
pub(super) type Place = (u64, SocketAddr);

/// The kernel closes the sockets of a process that ends one after the other: that takes milliseconds.
pub(super) const ONE_INSTANT: Duration = Duration::from_millis(50);

/// A refused SYN this much later still tells what happened in such an instant.
pub(super) const AFTER_INSTANT: Duration = Duration::from_secs(1);

/// Packets of the upstream this long ago still tell how far away it is.
const TTL_FRESH: Duration = Duration::from_mins(1);

/// How often that is noted where nothing changed.
const TTL_AGAIN: Duration = Duration::from_secs(10);

/// How the exchanges with one upstream went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTally {
    /// Exchanges that ended, failed ones included.
    pub exchanges: u64,
    /// Failures, those without an exchange included.
    pub failures: u64,
    /// Failures by their cause.
    pub causes: BTreeMap<Cause, u64>,
    /// What passed, failures included.
    pub traffic: Traffic,
    /// When the first of its hops was seen.
    pub first: Timestamp,
    /// When the last of its exchanges or hops ended or began.
    pub last: Timestamp,
}

impl UpstreamTally {
    /// Adds what is known of the same address in another network namespace.
    fn add(&mut self, other: &Self) {
        self.exchanges += other.exchanges;
        self.failures += other.failures;
        for (cause, count) in &other.causes {
            *self.causes.entry(*cause).or_default() += count;
        }
        self.traffic.join(&other.traffic);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// How an upstream closed a connection first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// With an exchange in flight.
    Cut,
    /// In order, right behind a complete response, on a connection that carried others before or not.
    Behind { reused: bool },
    /// While nothing was going on.
    Idle,
}

/// Connections that an upstream closed in one instant.
#[derive(Clone, Copy, Debug)]
struct Burst {
    at: Timestamp,
    last: Timestamp,
    connections: u32,
    /// Those with an exchange in flight.
    cut: u32,
    /// The first SYN that it refused right after.
    refused: Option<Timestamp>,
}

/// What is known of one upstream.
#[derive(Debug, Default)]
pub(super) struct Peer {
    tally: UpstreamTally,
    /// Established hops that no side has closed yet, as far as they are known.
    open: u32,
    /// When a connection was last established.
    established: Option<Timestamp>,
    /// When that last took more than one SYN.
    hard_won: Option<Timestamp>,
    /// The first SYN that it refused since.
    refused: Option<Timestamp>,
    /// When an exchange was last completed.
    completed: Option<Timestamp>,
    /// When one was last completed or ended on a hop that had to repeat request bytes.
    lossy: Option<Timestamp>,
    /// When it last closed a connection that was in use right behind a response.
    finished: Option<Timestamp>,
    /// The last instants in which it closed connections, the newest last.
    bursts: [Option<Burst>; 2],
    /// The time to live that its packets were last noted with, and when.
    ttl: Option<(u8, Timestamp)>,
}

impl Peer {
    /// Established hops that no side has closed yet.
    pub(super) const fn open(&self) -> u32 {
        self.open
    }

    /// When a connection was last established.
    pub(super) const fn established(&self) -> Option<Timestamp> {
        self.established
    }

    /// When establishing one last took more than one SYN.
    pub(super) const fn hard_won(&self) -> Option<Timestamp> {
        self.hard_won
    }

    /// The first SYN refused since a connection was last established.
    pub(super) const fn refused(&self) -> Option<Timestamp> {
        self.refused
    }

    /// When an exchange was last completed.
    pub(super) const fn completed(&self) -> Option<Timestamp> {
        self.completed
    }

    /// When an exchange last ended on a hop that had to repeat request bytes.
    pub(super) const fn lossy(&self) -> Option<Timestamp> {
        self.lossy
    }

    /// When the upstream last closed a connection right behind a response.
    pub(super) const fn finished(&self) -> Option<Timestamp> {
        self.finished
    }

    /// The instant of closing to which `at` belongs, if more than one connection was closed in it: when
    /// it began, and what followed.
    pub(super) fn died(&self, at: Timestamp) -> Option<(Timestamp, Option<Died>)> {
        let burst = self.bursts.iter().rev().flatten().find(|burst| {
            let apart = at.since(burst.at).max(burst.at.since(at));
            apart <= ONE_INSTANT && burst.connections > 1
        })?;
        Some((burst.at, burst.died()))
    }

    /// The instant of closing right before a SYN that was refused at `at`.
    pub(super) fn died_before(&self, at: Timestamp) -> Option<Died> {
        let mut bursts = self.bursts.iter().rev().flatten();
        bursts
            .find(|burst| burst.connections > 1 && burst.refused.is_some_and(|first| first <= at))
            .filter(|burst| at.since(burst.at) <= AFTER_INSTANT)
            .and_then(Burst::died)
    }

    /// Whether the time to live of its packets is to be noted once more.
    fn seen_ttl(&mut self, at: Timestamp, ttl: u8) -> bool {
        let noted = |(last, noted): (u8, Timestamp)| last == ttl && at.since(noted) < TTL_AGAIN;
        if ttl == 0 || self.ttl.is_some_and(noted) {
            return false;
        }
        self.ttl = Some((ttl, at));
        true
    }

    fn refuse(&mut self, at: Timestamp) {
        let first = *self.refused.get_or_insert(at);
        for burst in self.bursts.iter_mut().flatten() {
            let alive = self.established.is_some_and(|last| last > burst.last);
            // Where SYNs were refused before, the listener went ahead of the connections.
            let ahead = burst.at.since(first) > ONE_INSTANT;
            if !alive && !ahead && at.since(burst.at) <= AFTER_INSTANT {
                burst.refused.get_or_insert(at);
            }
        }
    }

    fn close(&mut self, at: Timestamp, how: Closed) {
        if let Closed::Behind { reused } = how {
            // What each connection of some upstreams ends with is no sign of one that ends.
            if reused {
                self.finished = self.finished.max(Some(at));
            }
            return;
        }
        let cut = u32::from(how == Closed::Cut);
        if let Some(Some(burst)) = self.bursts.last_mut()
            && at.since(burst.at) <= ONE_INSTANT
        {
            burst.last = burst.last.max(at);
            burst.connections += 1;
            burst.cut += cut;
            return;
        }
        self.bursts.rotate_left(1);
        // A process that ends may close its listener before its connections.
        let together = |refused: &Timestamp| at.since(*refused) <= ONE_INSTANT;
        if let Some(last) = self.bursts.last_mut() {
            *last = Some(Burst {
                at,
                last: at,
                connections: 1,
                cut,
                refused: self.refused.filter(together),
            });
        }
    }
}

impl Burst {
    fn died(&self) -> Option<Died> {
        let refused = self.refused.filter(|_| self.cut > 0)?;
        Some(Died {
            connections: self.connections,
            at: self.at,
            refused,
        })
    }
}

/// The times to live of one host's own packets.
#[derive(Debug, Default)]
struct Ttls {
    last: Option<(u8, Timestamp)>,
    /// The last one that differs from that.
    other: Option<(u8, Timestamp)>,
}

impl Ttls {
    fn note(&mut self, ttl: u8, at: Timestamp) {
        if let Some(last) = self.last.replace((ttl, at))
            && last.0 != ttl
        {
            self.other = Some(last);
        }
    }
}

/// A place as the key of a table: it is looked up several times a connection, so the hash takes no more
/// words than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(Place);

impl Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self((netns, upstream)) = *self;
        match upstream {
            SocketAddr::V4(end) => {
                let end = u64::from(end.ip().to_bits()) << 16 | u64::from(end.port());
                state.write_u128(u128::from(netns) << 64 | u128::from(end));
            }
            SocketAddr::V6(end) => {
                state.write_u128(end.ip().to_bits());
                state.write_u128(u128::from(netns) << 64 | u128::from(end.port()));
            }
        }
    }
}

/// The tables.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: Recent<Key, Peer>,
    /// How far away each host is. A host has many ports.
    hosts: Recent<(u64, IpAddr), Ttls>,
    /// The most entries of each table.
    most: usize,
    /// Entries forgotten because a table was full.
    dropped: u64,
}

impl Peers {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            most: limits.upstreams,
            ..Self::default()
        }
    }

    /// Every upstream that is remembered, by its address.
    pub(super) fn tallies(&self) -> BTreeMap<SocketAddr, UpstreamTally> {
        let mut tallies: BTreeMap<SocketAddr, UpstreamTally> = BTreeMap::new();
        for (Key((_, upstream)), peer) in self.known.iter() {
            tallies
                .entry(*upstream)
                .and_modify(|tally| tally.add(&peer.tally))
                .or_insert_with(|| peer.tally.clone());
        }
        tallies
    }

    /// Entries forgotten because a table was full.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn get(&self, place: &Place) -> Option<&Peer> {
        self.known.get(&Key(*place))
    }

    /// Entries and places of both tables.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        let ([peers, queued], [hosts, hosts_queued]) = (self.known.sizes(), self.hosts.sizes());
        [peers, queued, hosts, hosts_queued]
    }

    fn peer(&mut self, place: Place, at: Timestamp) -> &mut Peer {
        let (peer, forgotten) = self.known.entry(Key(place), at, self.most);
        self.dropped += forgotten;
        if peer.tally.last == Timestamp::default() {
            peer.tally.first = at;
        }
        peer.tally.last = peer.tally.last.max(at);
        peer
    }

    /// A hop was opened, or joined while it was open already.
    pub(super) fn opened(&mut self, place: Place, at: Timestamp, joined: bool) {
        let peer = self.peer(place, at);
        peer.open = peer.open.saturating_add(u32::from(joined));
    }

    /// A connection was established; `ttl` is zero where only the kernel told of it.
    pub(super) fn established(&mut self, place: Place, at: Timestamp, repeated: bool, ttl: u8) {
        let peer = self.peer(place, at);
        peer.open = peer.open.saturating_add(1);
        peer.tally.traffic.connects += 1;
        peer.established = peer.established.max(Some(at));
        peer.refused = None;
        if repeated {
            peer.hard_won = peer.hard_won.max(Some(at));
        }
        if peer.seen_ttl(at, ttl) {
            self.note_ttl(place, at, ttl);
        }
    }

    /// The upstream refused a SYN; `ttl` as above.
    pub(super) fn refused(&mut self, place: Place, at: Timestamp, ttl: u8) {
        let ours = self.target_ttl(place, at, ttl);
        if ours.is_none_or(|ours| origin(ours, ttl) != Origin::Elsewhere) {
            self.peer(place, at).refuse(at);
        }
    }

    /// An established hop is over; `how` where its upstream closed it first.
    pub(super) fn closed(&mut self, place: &Place, at: Timestamp, how: Option<Closed>) {
        if let Some(peer) = self.known.get_mut(&Key(*place), at) {
            peer.open = peer.open.saturating_sub(1);
            if let Some(how) = how {
                peer.close(at, how);
            }
        }
    }

    /// So many exchanges of a hop ended, the last of them `complete`, all request bytes sent once or
    /// not.
    pub(super) fn exchanged(&mut self, place: Place, at: Timestamp, ended: &Exchanged) {
        if let Some(peer) = self.known.get_mut(&Key(place), at) {
            peer.tally.exchanges += ended.count;
            for finished in ended.finished.iter() {
                peer.tally.traffic.add(finished);
            }
            peer.tally.last = peer.tally.last.max(at);
            if ended.repeated {
                peer.lossy = peer.lossy.max(Some(at));
            }
            if ended.complete {
                peer.completed = peer.completed.max(Some(at));
                if peer.seen_ttl(at, ended.ttl) {
                    self.note_ttl(place, at, ended.ttl);
                }
            }
        }
    }

    /// What exchanges added that stayed in the kernel.
    pub(super) fn add_unseen(&mut self, place: &Place, unseen: &HeldExchanges) {
        if let Some(peer) = self.known.peek_mut(&Key(*place)) {
            peer.tally.traffic.add_unseen(unseen);
        }
    }

    /// A failure was told.
    pub(super) fn failed(&mut self, place: Place, at: Timestamp, cause: Cause) {
        let tally = &mut self.peer(place, at).tally;
        tally.failures += 1;
        *tally.causes.entry(cause).or_default() += 1;
    }

    fn note_ttl(&mut self, place: Place, at: Timestamp, ttl: u8) {
        let (netns, upstream) = place;
        let (host, forgotten) = self.hosts.entry((netns, upstream.ip()), at, self.most);
        self.dropped += forgotten;
        host.note(ttl, at);
    }

    /// The time to live of the host's own packets, to compare `ttl` with. None where there were none
    /// lately, and where they came from more than one distance, none of them this one.
    pub(super) fn target_ttl(&self, place: Place, at: Timestamp, ttl: u8) -> Option<u8> {
        let (netns, upstream) = place;
        let host = self.hosts.get(&(netns, upstream.ip()))?;
        let fresh = |seen: &(u8, Timestamp)| at.since(seen.1) <= TTL_FRESH + TTL_AGAIN;
        let (last, other) = (host.last.filter(fresh), host.other.filter(fresh));
        let (first, _) = last?;
        match other {
            Some((other, _)) if other == ttl => Some(ttl),
            Some(_) => Some(first).filter(|first| *first == ttl),
            None => Some(first),
        }
    }
}

/// How exchanges of a hop ended.
#[derive(Debug)]
pub(super) struct Exchanged {
    /// How many.
    pub(super) count: u64,
    /// Whether one of them is complete.
    pub(super) complete: bool,
    /// Whether request bytes were sent more than once.
    pub(super) repeated: bool,
    /// Time to live of the upstream's last segment.
    pub(super) ttl: u8,
    /// What those add that were seen.
    pub(super) finished: AllFinished,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u8) -> Place {
        (0, SocketAddr::from(([10, 0, 0, number], 80)))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn table(most: usize) -> Peers {
        Peers::new(&Limits {
            upstreams: most,
            ..Limits::default()
        })
    }

    fn ended(count: u64, ttl: u8) -> Exchanged {
        Exchanged {
            count,
            complete: true,
            repeated: false,
            ttl,
            finished: AllFinished::default(),
        }
    }

    #[test]
    fn the_one_that_was_silent_longest_goes() {
        let mut peers = table(2);
        peers.opened(place(1), at(1), false);
        peers.opened(place(2), at(2), false);
        peers.exchanged(place(1), at(3), &ended(5, 0));
        assert_eq!(peers.dropped(), 0);
        peers.opened(place(3), at(4), false);
        assert_eq!(peers.dropped(), 1);
        let tallies = peers.tallies();
        assert_eq!(tallies.len(), 2);
        assert_eq!(tallies[&place(1).1].exchanges, 5);
        assert!(!tallies.contains_key(&place(2).1));
    }

    #[test]
    fn an_upstream_takes_no_more_than_the_limits_say() {
        let queues = 4 * size_of::<(Timestamp, Place)>();
        let peer = 2 * size_of::<(Place, (Timestamp, Peer))>();
        let host = 2 * size_of::<((u64, IpAddr), (Timestamp, Ttls))>();
        let bytes = peer + host + queues;
        assert!(bytes <= Limits::UPSTREAM_BYTES, "{bytes}");
    }

    #[test]
    fn causes_are_counted() {
        let mut peers = table(2);
        peers.opened(place(1), at(1), false);
        peers.failed(place(1), at(2), Cause::TcpConnectRefused);
        peers.failed(place(1), at(3), Cause::TcpConnectRefused);
        let tally = &peers.tallies()[&place(1).1];
        assert_eq!((tally.failures, tally.first, tally.last), (2, at(1), at(3)));
        assert_eq!(tally.causes[&Cause::TcpConnectRefused], 2);
    }

    #[test]
    fn an_address_is_shown_once_whatever_its_namespaces() {
        let mut peers = table(4);
        let (_, upstream) = place(1);
        for (netns, seconds) in [(1, 2), (2, 1)] {
            peers.opened((netns, upstream), at(seconds), false);
            peers.failed((netns, upstream), at(seconds), Cause::TcpConnectRefused);
        }
        let tallies = peers.tallies();
        let tally = &tallies[&upstream];
        assert_eq!((tallies.len(), tally.failures), (1, 2));
        assert_eq!((tally.first, tally.last), (at(1), at(2)));
        assert_eq!(tally.causes[&Cause::TcpConnectRefused], 2);
    }

    #[test]
    fn a_host_at_two_distances_is_compared_with_neither() {
        let mut peers = table(4);
        peers.established(place(1), at(1), false, 63);
        assert_eq!(peers.target_ttl(place(1), at(2), 60), Some(63));
        peers.exchanged(place(1), at(3), &ended(1, 62));
        assert_eq!(peers.target_ttl(place(1), at(4), 60), None);
        assert_eq!(peers.target_ttl(place(1), at(4), 63), Some(63));
        assert_eq!(peers.target_ttl(place(1), at(4), 62), Some(62));
        // What was seen long ago tells nothing of now.
        assert_eq!(peers.target_ttl(place(1), at(72), 60), Some(62));
        assert_eq!(peers.target_ttl(place(1), at(90), 62), None);
    }
}
