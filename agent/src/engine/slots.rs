//! How a hop's id finds its slot.

use core::hash::{BuildHasherDefault, Hasher};
use std::collections::HashMap;

use crate::model::HopId;

/// A table by hop. There are several look-ups a segment, so the hash is next to none.
pub(super) type ByHop<T> = HashMap<HopId, T, BuildHasherDefault<IdHasher>>;

/// Ids that follow each other are neighbours in the table up to this many bits: running numbers and
/// the kernel's cookies both count up, so that hops of the same moment share cache lines.
const NEIGHBOURS: u32 = 4;

/// Bits of a hash that the table keeps to tell its entries from each other, at the top.
const TAG: u32 = 7;

/// Spreads ids over a table. No seed is needed: no peer chooses an id.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 << 8 | u64::from(*byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, id: u64) {
        // The golden ratio's bits: multiples of it lie far from each other.
        let spread = (id >> NEIGHBOURS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let near = id & ((1 << NEIGHBOURS) - 1);
        self.0 = id << (u64::BITS - TAG) | spread << NEIGHBOURS | near;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(id: u64) -> u64 {
        let mut hasher = IdHasher::default();
        hasher.write_u64(id);
        hasher.finish()
    }

    /// The most of `ids` that begin their search in the same group of a table of 2^17 places.
    fn fullest(ids: impl Iterator<Item = u64>) -> usize {
        let mut groups = vec![0_usize; 1 << 13];
        for id in ids {
            groups[(hash(id) >> NEIGHBOURS) as usize % (1 << 13)] += 1;
        }
        groups.into_iter().max().unwrap_or(0)
    }

    #[test]
    fn ids_that_count_up_are_spread_evenly() {
        assert_eq!(hash(32) ^ hash(33), 1 | 1 << 57, "neighbours");
        assert!(fullest(0..65_536) <= 2 * 16);
        // Processors draw cookies in batches of 4096; a few of each batch belong to hops.
        let batches = (0..16).flat_map(|batch| (0..4096).map(move |id| batch << 17 | id));
        assert!(fullest(batches) <= 4 * 16);
        assert!(fullest((0..65_536).map(|id| id << 17)) <= 64);
    }
}
