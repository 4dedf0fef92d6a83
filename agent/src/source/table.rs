//! What is remembered of connections by their ends, bounded: those that were not seen for longest are
//! forgotten together.
//!
//! Entries lie one behind the other in the order in which they came, and the hash table holds their
//! places only. So the connections of one moment share cache lines and pages, however many there are. Where
//! the first of them matter no more by then, those that come take their places, and little memory is used at all.

use core::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::tcp::Ends;

/// Entries in one of the two generations.
pub(super) const GENERATION: usize = 65_536;

/// So many newer ones come before an entry that matters no more gives its place away.
const KEPT: usize = 16_384;

/// Places that are remembered beside the hash table: more than connections take turns, in few cache
/// lines.
const HINTS: usize = 2048;

/// A table by ends, of two generations: what is used again becomes young again.
pub(super) struct Table<T> {
    /// Seeded at random: peers choose their ends.
    hasher: RandomState,
    young: Generation<T>,
    old: Generation<T>,
    /// Where the young entry may lie whose hash ends so: it is looked at before the hash table is.
    hints: Box<[u16; HINTS]>,
    /// Whether an entry matters no more.
    spent: fn(&T) -> bool,
    /// The young entry that gives its place away next, if it may.
    next: usize,
}

struct Generation<T> {
    /// Places in `entries`.
    places: HashTable<u32>,
    /// One that was taken out leaves its place empty.
    entries: Vec<(Ends, Option<T>)>,
}

impl<T> Generation<T> {
    fn new() -> Self {
        Self {
            // What grows moves all that it holds, over and over. Memory that is not written to is not taken.
            places: HashTable::with_capacity(GENERATION),
            entries: Vec::with_capacity(GENERATION),
        }
    }

    #[inline]
    fn find(&self, hash: u64, ends: &Ends) -> Option<usize> {
        let place = self.places.find(hash, |place| self.is_at(*place, ends))?;
        Some(*place as usize)
    }

    #[inline]
    fn is_at(&self, place: u32, ends: &Ends) -> bool {
        let entry = self.entries.get(place as usize);
        entry.is_some_and(|(found, _)| found == ends)
    }

    fn take(&mut self, hash: u64, ends: &Ends) -> Option<T> {
        let entries = &mut self.entries;
        let is_at = |place: &u32| {
            let entry = entries.get(*place as usize);
            entry.is_some_and(|(found, _)| found == ends)
        };
        let (place, _) = self.places.find_entry(hash, is_at).ok()?.remove();
        entries.get_mut(place as usize)?.1.take()
    }
}

impl<T> Table<T> {
    /// An empty table, whose entries may be forgotten early once they are `spent`.
    pub(super) fn new(spent: fn(&T) -> bool) -> Self {
        Self {
            hasher: RandomState::default(),
            young: Generation::new(),
            old: Generation::new(),
            hints: Box::new([0; HINTS]),
            spent,
            next: 0,
        }
    }

    /// The entry of these ends, which is young from now on.
    #[expect(
        clippy::inline_always,
        reason = "once a packet, and the hash is short where the address family is known"
    )]
    #[inline(always)]
    pub(super) fn find(&mut self, ends: &Ends) -> Option<&mut T> {
        let hash = self.hasher.hash_one(ends);
        let hint = hint_of(hash);
        let place = self.hints[hint] as usize;
        // One that was taken out is in no hash table either, and may have come again elsewhere.
        let place = match self.young.entries.get(place) {
            Some((found, Some(_))) if found == ends => place,
            _ => self.find_place(hash, hint, ends)?,
        };
        self.young.entries.get_mut(place)?.1.as_mut()
    }

    /// Looks for a young entry, or an old one that is young from now on, and leaves a hint.
    #[inline(never)]
    fn find_place(&mut self, hash: u64, hint: usize, ends: &Ends) -> Option<usize> {
        let Some(place) = self.young.find(hash, ends) else {
            return self.recall(hash, ends);
        };
        if let Some(hint) = self.hints.get_mut(hint) {
            *hint = u16::try_from(place).unwrap_or_default();
        }
        Some(place)
    }

    /// Makes an old entry young. Returns its place.
    fn recall(&mut self, hash: u64, ends: &Ends) -> Option<usize> {
        let entry = self.old.take(hash, ends)?;
        self.push(hash, *ends, entry)
    }

    /// The entry of these ends, as it is.
    pub(super) fn peek(&self, ends: &Ends) -> Option<&T> {
        let hash = self.hasher.hash_one(ends);
        [&self.young, &self.old].into_iter().find_map(|generation| {
            let place = generation.find(hash, ends)?;
            generation.entries.get(place)?.1.as_ref()
        })
    }

    /// Enters a young entry in place of what is there.
    pub(super) fn insert(&mut self, ends: Ends, entry: T) {
        let hash = self.hasher.hash_one(ends);
        self.old.take(hash, &ends);
        let place = self.young.find(hash, &ends);
        match place.and_then(|place| self.young.entries.get_mut(place)) {
            Some((_, known)) => *known = Some(entry),
            None => {
                self.push(hash, ends, entry);
            }
        }
    }

    /// Enters a young entry whose ends are not there.
    pub(super) fn insert_new(&mut self, ends: Ends, entry: T) {
        self.push(self.hasher.hash_one(ends), ends, entry);
    }

    /// Adds an entry whose ends are not there. Returns its place.
    fn push(&mut self, hash: u64, ends: Ends, entry: T) -> Option<usize> {
        let free = self.free();
        let Generation { places, entries } = &mut self.young;
        let at = free.unwrap_or(entries.len());
        let place = u32::try_from(at).ok()?;
        self.hints[hint_of(hash)] = u16::try_from(place).unwrap_or_default();
        match entries.get_mut(at) {
            Some(known) => *known = (ends, Some(entry)),
            None => entries.push((ends, Some(entry))),
        }
        places.insert_unique(hash, place, |place| {
            let entry = entries.get(*place as usize);
            entry.map_or(0, |(ends, _)| self.hasher.hash_one(ends))
        });
        Some(at)
    }

    /// Takes the place of the next young entry in turn, if that matters no more.
    fn free(&mut self) -> Option<usize> {
        let Generation { places, entries } = &mut self.young;
        if entries.len() < KEPT {
            return None;
        }
        let at = self.next;
        self.next = if at + 1 < entries.len() { at + 1 } else { 0 };
        let (ends, entry) = entries.get(at)?;
        match entry {
            None => Some(at),
            Some(entry) if (self.spent)(entry) => {
                let hash = self.hasher.hash_one(ends);
                let found = places.find_entry(hash, |place| *place as usize == at);
                found.ok()?.remove();
                Some(at)
            }
            Some(_) => None,
        }
    }

    /// Takes the entry of these ends out.
    pub(super) fn remove(&mut self, ends: &Ends) -> Option<T> {
        let hash = self.hasher.hash_one(ends);
        let young = self.young.take(hash, ends);
        young.or_else(|| self.old.take(hash, ends))
    }

    /// Every entry, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Ends, &T)> {
        let all = self.young.entries.iter().chain(&self.old.entries);
        all.filter_map(|(ends, entry)| Some((ends, entry.as_ref()?)))
    }

    /// Once the young generation is full: makes it the old one, and returns what was old until now.
    #[inline]
    pub(super) fn age(&mut self) -> Option<impl Iterator<Item = T>> {
        if self.young.entries.len() < GENERATION {
            return None;
        }
        std::mem::swap(&mut self.young, &mut self.old);
        self.next = 0;
        self.young.places.clear();
        let forgotten = self.young.entries.drain(..);
        Some(forgotten.filter_map(|(_, entry)| entry))
    }
}

/// Which hint is that of a hash.
#[inline]
const fn hint_of(hash: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the lower bits are wanted")]
    let low = hash as usize;
    low % HINTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(number: usize) -> Ends {
        let [a, b, c, d] = (number as u32).to_be_bytes();
        Ends::new(
            ([10, a, b, c], u16::from(d)).into(),
            ([10, 0, 0, 1], 80).into(),
        )
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten_together() {
        let mut table = Table::new(|_| false);
        for number in 0..GENERATION {
            assert!(table.age().is_none());
            table.insert(ends(number), number);
        }
        assert_eq!(table.age().unwrap().count(), 0);
        assert_eq!(table.find(&ends(7)), Some(&mut 7));
        assert_eq!(table.remove(&ends(8)), Some(8));
        assert_eq!(table.peek(&ends(9)), Some(&9));
        table.insert(ends(10), 11);
        assert_eq!(table.iter().count(), GENERATION - 1);
        for number in GENERATION.. {
            table.insert(ends(number), number);
            let Some(forgotten) = table.age() else {
                continue;
            };
            assert_eq!(forgotten.count(), GENERATION - 3, "without 7, 8 and 10");
            break;
        }
        assert_eq!(table.peek(&ends(7)), Some(&7));
        assert_eq!(table.find(&ends(10)), Some(&mut 11));
        assert_eq!(table.find(&ends(8)), None);
        assert_eq!(table.find(&ends(9)), None);
    }

    #[test]
    fn what_matters_no_more_makes_room() {
        // Every tenth is of use for good.
        let mut table = Table::new(|number| number % 10 != 0);
        for number in 0..8 * KEPT {
            assert!(table.age().is_none());
            table.insert_new(ends(number), number);
            assert_eq!(table.find(&ends(number)), Some(&mut { number }));
        }
        assert!(table.young.entries.len() < 3 * KEPT);
        assert_eq!(table.young.places.len(), table.iter().count());
        for number in (0..8 * KEPT).step_by(10).chain(7 * KEPT..8 * KEPT) {
            assert_eq!(table.peek(&ends(number)), Some(&number));
        }
        assert_eq!(table.find(&ends(1)), None);
        assert_eq!(table.remove(&ends(10)), Some(10));
        assert_eq!(table.find(&ends(10)), None);
    }

    #[test]
    fn an_entry_is_replaced_and_taken_out() {
        let mut table = Table::new(|_| false);
        table.insert(ends(1), 'a');
        table.insert(ends(1), 'b');
        assert_eq!(table.iter().count(), 1);
        assert_eq!(table.remove(&ends(1)), Some('b'));
        assert_eq!(table.remove(&ends(1)), None);
        assert_eq!(table.find(&ends(1)), None);
    }
}
