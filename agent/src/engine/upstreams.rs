//! How the exchanges with each upstream went. Bounded: the upstream that was silent longest makes room for a new one.

use core::net::SocketAddr;
use std::collections::{BTreeMap, HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::traffic::Traffic;
use crate::model::{Cause, Timestamp};

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

#[derive(Debug)]
struct Entry {
    tally: UpstreamTally,
}

/// The table of upstreams.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    entries: HashMap<SocketAddr, Entry, RandomState>,
    /// In the order in which they may have to go. One heard of since it was queued gets another turn.
    queue: VecDeque<(Timestamp, SocketAddr)>,
}

impl Upstreams {
    /// Every upstream that is remembered, by its address.
    pub(super) fn tallies(&self) -> BTreeMap<SocketAddr, UpstreamTally> {
        let entries = self.entries.iter();
        entries
            .map(|(upstream, entry)| (*upstream, entry.tally.clone()))
            .collect()
    }

    /// Notes that a hop was opened. Returns how many upstreams were forgotten for that.
    pub(super) fn opened(&mut self, upstream: SocketAddr, at: Timestamp, most: usize) -> u64 {
        if let Some(entry) = self.entries.get_mut(&upstream) {
            entry.tally.last = entry.tally.last.max(at);
            return 0;
        }
        let mut forgotten = 0;
        while self.entries.len() >= most.max(1) {
            let Some((queued, oldest)) = self.queue.pop_front() else {
                break;
            };
            match self.entries.get(&oldest) {
                Some(entry) if entry.tally.last > queued => {
                    self.queue.push_back((entry.tally.last, oldest));
                }
                _ => {
                    self.entries.remove(&oldest);
                    forgotten += 1;
                }
            }
        }
        let tally = UpstreamTally {
            first: at,
            last: at,
            ..UpstreamTally::default()
        };
        self.entries.insert(upstream, Entry { tally });
        self.queue.push_back((at, upstream));
        forgotten
    }

    /// Notes that exchanges ended.
    pub(super) fn exchanged(&mut self, upstream: &SocketAddr, at: Timestamp, count: u64) {
        if let Some(entry) = self.entries.get_mut(upstream) {
            entry.tally.exchanges += count;
            entry.tally.last = entry.tally.last.max(at);
        }
    }

    /// What passed, to be added to; none for an upstream that was forgotten.
    pub(super) fn traffic(&mut self, upstream: &SocketAddr) -> Option<&mut Traffic> {
        let entry = self.entries.get_mut(upstream)?;
        Some(&mut entry.tally.traffic)
    }

    /// Notes a failure.
    pub(super) fn failed(&mut self, upstream: &SocketAddr, at: Timestamp, cause: Cause) {
        if let Some(entry) = self.entries.get_mut(upstream) {
            entry.tally.failures += 1;
            *entry.tally.causes.entry(cause).or_default() += 1;
            entry.tally.last = entry.tally.last.max(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 80))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_one_that_was_silent_longest_goes() {
        let mut upstreams = Upstreams::default();
        assert_eq!(upstreams.opened(upstream(1), at(1), 2), 0);
        assert_eq!(upstreams.opened(upstream(2), at(2), 2), 0);
        upstreams.exchanged(&upstream(1), at(3), 5);
        assert_eq!(upstreams.opened(upstream(3), at(4), 2), 1);
        let tallies = upstreams.tallies();
        assert_eq!(tallies.len(), 2);
        assert_eq!(tallies[&upstream(1)].exchanges, 5);
        assert!(!tallies.contains_key(&upstream(2)));
    }

    #[test]
    fn causes_are_counted() {
        let mut upstreams = Upstreams::default();
        upstreams.opened(upstream(1), at(1), 2);
        upstreams.failed(&upstream(1), at(2), Cause::TcpConnectRefused);
        upstreams.failed(&upstream(1), at(3), Cause::TcpConnectRefused);
        let tally = &upstreams.tallies()[&upstream(1)];
        assert_eq!((tally.failures, tally.first, tally.last), (2, at(1), at(3)));
        assert_eq!(tally.causes[&Cause::TcpConnectRefused], 2);
    }
}
