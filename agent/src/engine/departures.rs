//! Clients that left, by the turn of the gateway's thread that let go of them. Bounded: only the latest
//! moments count.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::model::{Departure, Timestamp, Turn};

/// Turns remembered at once: far more than gateways take while a verdict waits.
const MAX_TURNS: usize = 16_384;

/// What is older than this is forgotten before the table grows.
const LATEST: Duration = Duration::from_secs(1);

/// When a gateway last let go of clients that had left.
#[derive(Debug, Default)]
pub(super) struct Departures {
    by_turn: HashMap<Turn, Left, RandomState>,
}

/// The clients of one turn.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// One that waited for an answer, or may have.
    waiting: Option<Timestamp>,
    /// One whose answer had begun, or may have.
    answered: Option<Timestamp>,
}

impl Left {
    fn last(&self) -> Option<Timestamp> {
        self.waiting.max(self.answered)
    }
}

impl Departures {
    pub(super) fn note(&mut self, at: Timestamp, turn: Turn, departure: Departure) {
        if self.by_turn.len() >= MAX_TURNS {
            self.by_turn
                .retain(|_, left| left.last().is_some_and(|last| at.since(last) < LATEST));
        }
        if self.by_turn.len() >= MAX_TURNS {
            return;
        }
        let left = self.by_turn.entry(turn).or_default();
        if departure != Departure::Answered {
            left.waiting = Some(at);
        }
        if departure != Departure::Waiting {
            left.answered = Some(at);
        }
    }

    /// When the client left that a hop may have been for which was closed in `turn`. A client whose
    /// upstream's response has not begun waits; of any other the gateway may have passed on a part.
    pub(super) fn left(&self, turn: Turn, response_begun: bool) -> Option<Timestamp> {
        let left = self.by_turn.get(&turn)?;
        if response_begun {
            left.last()
        } else {
            left.waiting
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Turn = Turn {
        thread: 7,
        number: 1,
    };

    #[test]
    fn an_idle_client_leaves_nothing_that_waits() {
        let mut departures = Departures::default();
        let at = Timestamp::from_nanos;
        departures.note(at(5), TURN, Departure::Answered);
        assert_eq!(departures.left(TURN, false), None);
        assert_eq!(departures.left(TURN, true), Some(at(5)));
        departures.note(at(7), TURN, Departure::Waiting);
        assert_eq!(departures.left(TURN, false), Some(at(7)));
        departures.note(at(9), TURN, Departure::Unknown);
        assert_eq!(departures.left(TURN, false), Some(at(9)));
        let other = Turn { number: 2, ..TURN };
        assert_eq!(departures.left(other, true), None);
    }

    #[test]
    fn the_table_is_bounded_and_makes_room() {
        let mut departures = Departures::default();
        let turn = |number| Turn { number, ..TURN };
        let seconds = |seconds: u64| Timestamp::from_nanos(seconds * 1_000_000_000);
        for number in 0..20_000 {
            departures.note(seconds(1), turn(number), Departure::Waiting);
        }
        assert_eq!(departures.by_turn.len(), MAX_TURNS);
        departures.note(seconds(3), turn(30_000), Departure::Waiting);
        assert_eq!(departures.by_turn.len(), 1);
    }
}
