//! Remembers which events were taken over lately.
//!
//! The window is bounded: an event that comes again after that many others counts as new. Agents
//! resend only what they have not seen acknowledged, at most their own queue.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The newest events by node and id.
#[derive(Debug)]
pub struct Seen {
    cap: usize,
    keys: HashSet<Key>,
    order: VecDeque<Key>,
}

/// Node and id share one allocation, which set and queue share again.
type Key = Arc<(Arc<str>, String)>;

impl Seen {
    /// A memory of the newest `cap` events.
    pub fn new(cap: usize) -> Self {
        Self {
            cap,
            keys: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Remembers an event; false where it is remembered already. Ids are unique per node only.
    pub fn insert(&mut self, node: &Arc<str>, id: &str) -> bool {
        let key = Arc::new((Arc::clone(node), id.to_owned()));
        if !self.keys.insert(Arc::clone(&key)) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > self.cap
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }

    /// Forgets an event that was remembered but could not be kept.
    pub(super) fn forget_newest(&mut self) {
        if let Some(newest) = self.order.pop_back() {
            self.keys.remove(&newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_per_node_within_the_window() {
        let (one, two) = (Arc::from("one"), Arc::from("two"));
        let mut seen = Seen::new(2);
        assert!(seen.insert(&one, "a"));
        assert!(!seen.insert(&one, "a"));
        assert!(seen.insert(&two, "a"), "another node's id");
        assert!(seen.insert(&one, "b"), "pushes the first one out");
        assert!(!seen.insert(&two, "a"));
        assert!(seen.insert(&one, "a"), "forgotten by now");
        assert_eq!(seen.keys.len(), 2);
        assert_eq!(seen.order.len(), 2);
    }

    #[test]
    fn forgets_what_could_not_be_kept() {
        let node = Arc::from("one");
        let mut seen = Seen::new(2);
        assert!(seen.insert(&node, "a"));
        seen.forget_newest();
        assert!(seen.insert(&node, "a"));
    }
}
