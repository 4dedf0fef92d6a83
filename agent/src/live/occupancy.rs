//! How many hops the kernel's table gave up for others.
//!
//! The table is an LRU one: where it is full, the kernel drops the entry that was used least recently, and tells
//! nobody. What went in and what was taken out is known here, so that entries which must have gone are
//! counted: each that makes more than there is room for, and each that is not there when it is to be taken
//! out. The kernel may drop a few before the table is full (it hands out places to processors in lots), so
//! that the count may be short by that many, and is never too high by more than records of closed
//! hops that were lost.

/// What is in the table by what was told.
#[derive(Debug)]
pub(super) struct Occupancy {
    room: u64,
    /// Entered and not taken out.
    entered: u64,
    /// Of those, how many must have gone.
    gone: u64,
    evicted: u64,
}

impl Occupancy {
    /// An empty table with so much room.
    pub(super) const fn new(room: u64) -> Self {
        Self {
            room,
            entered: 0,
            gone: 0,
            evicted: 0,
        }
    }

    /// An entry was made.
    pub(super) const fn enter(&mut self) {
        self.entered += 1;
        if self.entered - self.gone > self.room {
            self.gone += 1;
            self.evicted += 1;
        }
    }

    /// An entry was to be taken out; `found` says whether it was there.
    pub(super) const fn leave(&mut self, found: bool) {
        self.entered = self.entered.saturating_sub(1);
        if found {
            // It was no mistake to count one more as gone only where there is an entry for each.
            if self.gone > self.entered {
                self.gone = self.entered;
            }
        } else if self.gone > 0 {
            self.gone -= 1;
        } else {
            self.evicted += 1;
        }
    }

    /// Entries that made room for others, as far as is known.
    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(room: u64, entries: u64) -> Occupancy {
        let mut table = Occupancy::new(room);
        for _ in 0..entries {
            table.enter();
        }
        table
    }

    #[test]
    fn a_table_with_room_evicts_nothing() {
        let mut table = filled(10, 10);
        for _ in 0..100 {
            table.leave(true);
            table.enter();
        }
        assert_eq!(table.evicted(), 0);
    }

    #[test]
    fn what_is_above_the_room_is_counted_once() {
        let mut table = filled(10, 13);
        assert_eq!(table.evicted(), 3);
        // Those are found to be gone, each when its turn comes.
        for _ in 0..3 {
            table.leave(false);
        }
        assert_eq!(table.evicted(), 3);
        for _ in 0..10 {
            table.leave(true);
        }
        assert_eq!((table.entered, table.gone), (0, 0));
        // One that the kernel dropped although there seemed to be room.
        table.enter();
        table.leave(false);
        assert_eq!(table.evicted(), 4);
    }

    #[test]
    fn what_never_comes_back_makes_no_room() {
        let mut table = filled(10, 14);
        for _ in 0..6 {
            table.leave(true);
        }
        // Four of the eight that are left went long ago: there is room for six.
        for _ in 0..6 {
            table.enter();
        }
        assert_eq!(table.evicted(), 4);
        table.enter();
        assert_eq!(table.evicted(), 5);
        for _ in 0..100 {
            table.leave(true);
        }
        assert_eq!((table.entered, table.gone), (0, 0));
    }
}
