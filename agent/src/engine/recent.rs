//! A bounded table: the entry that was silent longest makes room for a new one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use foldhash::fast::RandomState;

use crate::model::Timestamp;

/// Values by key, with when each was heard of last. Every operation is constant over time: an entry is
/// looked at once for each time that it was heard of.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, (Timestamp, V), RandomState>,
    /// In the order in which they may have to go, each key once. One heard of since it was queued gets
    /// another turn.
    queue: VecDeque<(Timestamp, K)>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::default(),
            queue: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V: Default> Recent<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The same with the key as the table has it.
    pub(super) fn get_with_key(&self, key: &K) -> Option<(&K, &V)> {
        let (key, (_, value)) = self.entries.get_key_value(key)?;
        Some((key, value))
    }

    pub(super) fn get_mut(&mut self, key: &K, at: Timestamp) -> Option<&mut V> {
        let (last, value) = self.entries.get_mut(key)?;
        *last = (*last).max(at);
        Some(value)
    }

    /// The value of a key, of which nothing new was heard.
    pub(super) fn peek_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// The value of a key, a new one if need be, and how many entries were forgotten for that.
    pub(super) fn entry(&mut self, key: K, at: Timestamp, most: usize) -> (&mut V, u64) {
        let mut forgotten = 0;
        if self.entries.len() >= most.max(1) && !self.entries.contains_key(&key) {
            while self.entries.len() >= most.max(1) {
                let Some((queued, oldest)) = self.queue.pop_front() else {
                    break;
                };
                match self.entries.get(&oldest) {
                    Some((last, _)) if *last > queued => self.queue.push_back((*last, oldest)),
                    _ => {
                        self.entries.remove(&oldest);
                        forgotten += 1;
                    }
                }
            }
        }
        let (last, value) = match self.entries.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.queue.push_back((at, entry.key().clone()));
                entry.insert(Default::default())
            }
        };
        *last = (*last).max(at);
        (value, forgotten)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (_, value))| (key, value))
    }

    /// Entries, and places in the queue.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 2] {
        [self.entries.len(), self.queue.len()]
    }
}
