//! Deadlines of hops: a heap with lazy removal.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::{HopId, Timestamp};

/// Deadlines by time. A hop's newest deadline is kept on the hop; older entries here are ignored.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Timestamp, HopId)>>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Timestamp, hop: HopId) {
        self.heap.push(Reverse((at, hop)));
    }

    /// Entries, those to be ignored included.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Drops the entries that `keep` does not want.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(Timestamp, HopId) -> bool) {
        self.heap.retain(|Reverse((at, hop))| keep(*at, *hop));
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Removes and returns the hop of the earliest deadline, if that is due.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, HopId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}
