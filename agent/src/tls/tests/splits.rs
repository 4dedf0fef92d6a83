//! The same bytes in any split, with bytes missing, and with bytes that are wrong.

use proptest::prelude::*;

use super::recorded::{Recording, feed};
use crate::model::{Actor, Timestamp};
use crate::tcp::Chunk;
use crate::tls::{Facts, Session};

/// Facts without the times, which say when bytes came.
fn timeless(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    facts.to.last_at = Timestamp::default();
    facts.from.last_at = Timestamp::default();
    for alert in &mut facts.alerts {
        alert.at = Timestamp::default();
    }
    facts
}

fn play(turns: &[(Actor, Vec<u8>)], mut piece: impl FnMut() -> usize) -> Session {
    let mut session = Session::new();
    let mut at = 0;
    for (by, bytes) in turns {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(piece().clamp(1, rest.len()));
            at += 1;
            feed(
                &mut session,
                *by,
                Timestamp::from_nanos(at),
                Chunk::Data(part),
            );
            rest = behind;
        }
        assert!(session.kept_bytes() <= Session::MAX_KEPT_BYTES);
    }
    session
}

fn any_recording() -> impl Strategy<Value = Recording> {
    proptest::sample::select(Recording::names()).prop_map(|name| Recording::read(&name))
}

proptest! {
    #[test]
    fn any_split_gives_the_same_facts(
        recording in any_recording(),
        pieces in proptest::collection::vec(1_usize..300, 1..20),
    ) {
        let whole = recording.play();
        let mut pieces = pieces.into_iter().cycle();
        let split = play(&recording.0, || pieces.next().unwrap_or(1));
        prop_assert_eq!(timeless(split.facts()), timeless(whole.facts()));
        let bytewise = play(&recording.0, || 1);
        prop_assert_eq!(timeless(bytewise.facts()), timeless(whole.facts()));
    }

    #[test]
    fn wrong_bytes_do_no_harm(
        recording in any_recording(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
        pieces in proptest::collection::vec(1_usize..300, 1..20),
    ) {
        let mut turns = recording.0;
        for (turn, at, byte) in flips {
            let (_, bytes) = turn.get_mut(&mut turns);
            *at.get_mut(bytes) = byte;
        }
        turns.truncate(end.index(turns.len()) + 1);
        let whole = play(&turns, || usize::MAX);
        let mut pieces = pieces.into_iter().cycle();
        let split = play(&turns, || pieces.next().unwrap_or(1));
        prop_assert_eq!(timeless(split.facts()), timeless(whole.facts()));
    }

    /// Segments captured short: of each only the beginning is known. What is told is a part of the truth.
    #[test]
    fn segments_cut_short_tell_nothing_wrong(
        recording in any_recording(),
        segment in 1_usize..1500,
        known in 0_usize..1500,
    ) {
        let whole = recording.play();
        let truth = whole.facts();
        let mut session = Session::new();
        for (by, bytes) in &recording.0 {
            for part in bytes.chunks(segment) {
                let (seen, missed) = part.split_at(known.min(part.len()));
                let at = Timestamp::default();
                feed(&mut session, *by, at, Chunk::Data(seen));
                feed(&mut session, *by, at, Chunk::Gap(missed.len() as u64));
            }
        }
        let facts = session.facts();
        if let Some(server) = &facts.server {
            prop_assert_eq!(Some(server), truth.server.as_ref());
        }
        for (ours, theirs) in facts.chain.iter().zip(&truth.chain) {
            prop_assert_eq!(ours, theirs);
        }
        prop_assert!(facts.chain.len() <= truth.chain.len());
        prop_assert!(facts.given.is_none_or(|given| Some(given) == truth.given));
        if let (Some(ours), Some(theirs)) = (&facts.client, &truth.client)
            && !facts.to.gap
        {
            prop_assert_eq!(ours, theirs);
        }
        for (ours, theirs) in [(facts.to, truth.to), (facts.from, truth.from)] {
            prop_assert!(ours.step <= theirs.step);
            prop_assert!(ours.records <= theirs.records);
            prop_assert!(ours.application <= theirs.application);
            if !ours.gap && !facts.to.gap && !facts.from.gap {
                prop_assert_eq!(ours.records, theirs.records);
            }
        }
        prop_assert!(facts.foreign.is_none() || truth.foreign.is_some());
        if !facts.to.gap && !facts.from.gap {
            prop_assert_eq!(facts.to.step, truth.to.step);
            prop_assert_eq!(facts.from.step, truth.from.step);
        }
    }

    /// Anything at all.
    #[test]
    fn any_bytes_are_survived(
        turns in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200), 0_u64..100), 0..20,
        ),
    ) {
        let mut session = Session::new();
        for (to, bytes, gap) in turns {
            let by = if to { Actor::Gateway } else { Actor::Upstream };
            feed(&mut session, by, Timestamp::default(), Chunk::Data(&bytes));
            feed(&mut session, by, Timestamp::default(), Chunk::Gap(gap));
            prop_assert!(session.kept_bytes() <= Session::MAX_KEPT_BYTES);
        }
    }
}
