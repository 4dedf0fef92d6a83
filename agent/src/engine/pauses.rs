//! Threads that sleep in the middle of what they do.
//!
//! A turn of an event loop ends where its thread sleeps. A gateway that does one request after another writes to its log
//! between a call that failed at once and what it does about that, and may have to wait there: for a disk, for another
//! worker that writes to the same file, for whoever reads a pipe. What it does next is for the same request all the same,
//! so that it is told as of the same turn.

use std::collections::HashMap;
use std::time::Duration;

use crate::classify::is_nginx;
use crate::model::{Process, Timestamp, Turn};

/// Lines that are logged about one failure at most, each of which may be waited for.
const LINES: u32 = 8;
/// A log that makes its gateway wait for longer is not waited for here.
const PATIENCE: Duration = Duration::from_millis(250);
/// Threads that are remembered.
const MAX_THREADS: usize = 4096;

/// A turn as it is told.
#[derive(Clone, Copy, Debug)]
struct Told {
    turn: Turn,
    /// The number of the latest turn that is told as this one.
    latest: u32,
    /// When a call failed after which nothing was seen yet.
    failed: Option<Timestamp>,
}

impl Told {
    /// Whether something in a turn with this number is of the same one as it is told.
    fn holds(&self, at: Timestamp, number: u32) -> bool {
        let slept = number.wrapping_sub(self.latest);
        let soon = |failed: Timestamp| slept <= LINES && at.since(failed) <= PATIENCE;
        slept == 0 || self.failed.is_some_and(soon)
    }
}

/// What is known of such threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses {
    threads: HashMap<u32, Told>,
}

impl Pauses {
    /// As which turn something is told that a thread does. Whatever it does is what it does about its call that failed,
    /// and ends that.
    pub(super) fn told(&mut self, at: Timestamp, turn: Turn) -> Turn {
        let Some(told) = self.threads.get_mut(&turn.thread) else {
            return turn;
        };
        if told.holds(at, turn.number) {
            told.latest = turn.number;
            told.failed = None;
            told.turn
        } else {
            self.threads.remove(&turn.thread);
            turn
        }
    }

    /// As which turn something is told that may be the kernel's doing while the thread had the processor.
    pub(super) fn told_of_kernel(&self, at: Timestamp, turn: Turn) -> Turn {
        let told = self.threads.get(&turn.thread);
        let told = told.filter(|told| told.holds(at, turn.number));
        told.map_or(turn, |told| told.turn)
    }

    /// Notes that a call of a gateway failed at once, in a turn as it is told.
    pub(super) fn failed(&mut self, at: Timestamp, turn: Turn, process: &Process) {
        if !is_nginx(&process.comm) {
            return;
        }
        if self.threads.len() >= MAX_THREADS {
            let is_recent = |failed: Timestamp| at.since(failed) <= PATIENCE;
            self.threads
                .retain(|_, told| told.failed.is_some_and(is_recent));
        }
        let failed = Some(at);
        if let Some(told) = self.threads.get_mut(&turn.thread) {
            told.failed = failed;
        } else if self.threads.len() < MAX_THREADS {
            let latest = turn.number;
            let told = Told {
                turn,
                latest,
                failed,
            };
            self.threads.insert(turn.thread, told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    fn turn(thread: u32, number: u32) -> Turn {
        Turn { thread, number }
    }

    fn process(comm: &str) -> Process {
        Process {
            comm: Arc::from(comm),
            ..Process::default()
        }
    }

    fn failed_in(number: u32) -> Pauses {
        let mut pauses = Pauses::default();
        pauses.failed(at(0), turn(1, number), &process("nginx"));
        pauses
    }

    #[test]
    fn what_follows_a_call_that_failed_is_of_its_turn_however_often_the_thread_slept() {
        for slept in 0..=LINES {
            let mut pauses = failed_in(u32::MAX - 2);
            let next = turn(1, (u32::MAX - 2).wrapping_add(slept));
            // All that is done in that turn is, and nothing behind it.
            assert_eq!(pauses.told(at(7), next), turn(1, u32::MAX - 2));
            assert_eq!(pauses.told(at(300), next), turn(1, u32::MAX - 2));
            let later = turn(1, next.number.wrapping_add(LINES + 1));
            assert_eq!(pauses.told(at(301), later), later);
        }
    }

    #[test]
    fn what_was_done_about_it_in_the_same_turn_ends_that() {
        let mut pauses = failed_in(10);
        assert_eq!(pauses.told(at(1), turn(1, 10)), turn(1, 10));
        assert_eq!(pauses.told(at(2), turn(1, 11)), turn(1, 11));
    }

    #[test]
    fn what_the_kernel_does_meanwhile_ends_nothing() {
        let mut pauses = failed_in(10);
        assert_eq!(pauses.told_of_kernel(at(1), turn(1, 10)), turn(1, 10));
        assert_eq!(pauses.told_of_kernel(at(2), turn(1, 11)), turn(1, 10));
        assert_eq!(pauses.told_of_kernel(at(2), turn(2, 11)), turn(2, 11));
        assert_eq!(pauses.told(at(3), turn(1, 12)), turn(1, 10));
    }

    #[test]
    fn only_the_next_turn_is_and_only_soon() {
        let mut pauses = failed_in(10);
        assert_eq!(pauses.told(at(1), turn(1, 11)), turn(1, 10));
        assert_eq!(pauses.told(at(2), turn(1, 12)), turn(1, 12));
        assert_eq!(
            failed_in(10).told(at(1), turn(1, 11 + LINES)),
            turn(1, 11 + LINES)
        );
        assert_eq!(failed_in(10).told(at(251), turn(1, 11)), turn(1, 11));
        assert_eq!(failed_in(10).told(at(1), turn(2, 11)), turn(2, 11));
        let mut pauses = Pauses::default();
        pauses.failed(at(0), turn(1, 10), &process("haproxy"));
        assert_eq!(pauses.told(at(1), turn(1, 11)), turn(1, 11));
    }

    #[test]
    fn one_failure_after_another_is_one_turn() {
        let mut pauses = failed_in(10);
        for number in [12, 13, 17] {
            let told = pauses.told(at(u64::from(number)), turn(1, number));
            assert_eq!(told, turn(1, 10));
            pauses.failed(at(u64::from(number)), told, &process("nginx"));
        }
        assert_eq!(pauses.told(at(90), turn(1, 18)), turn(1, 10));
        assert_eq!(pauses.told(at(90), turn(1, 19)), turn(1, 19));
    }

    #[test]
    fn the_table_is_bounded_and_makes_room() {
        let mut pauses = Pauses::default();
        for thread in 0..10_000 {
            pauses.failed(at(0), turn(thread, 1), &process("nginx"));
        }
        assert_eq!(pauses.threads.len(), MAX_THREADS);
        pauses.failed(at(251), turn(20_000, 1), &process("nginx"));
        assert_eq!(pauses.threads.len(), 1);
    }
}
