//! In which order each thread of a gateway did what is seen of it: which upstream it let go of, which one it
//! connected to, and whom it answered.
//!
//! A thread does one thing at a time. What it does next to a failure of an upstream, with nothing in between,
//! it does about that failure:
//!
//! ```text
//!   ... let go of X ─ connect to Y ...      Y is another attempt for the request of X
//!   ... let go of Y ─ answer a client ...   Y was the last attempt for the request of that client
//! ```
//!
//! A gateway of another habit answers before it lets go:
//!
//! ```text
//!   ... answer a client ─ let go of X ...   X was the last attempt for the request of that client, or
//!   ... let go of X ─ connect to Y ...      Y is another attempt for the request of X, and that answer needed none
//! ```
//!
//! Where both may be meant, times tell: what was begun before a client asked was not for that one.
//!
//! So neither paths nor times have to tell whose attempt it was, which they cannot where many clients ask at once.
//! A record that was lost may have been in between: then what was noted before counts no more.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::join;
use crate::model::{HopId, Timestamp, Turn};

/// Neighbours that are farther apart may have had something in between that is not seen, such as an answer that
/// was good.
const NEXT: Duration = Duration::from_millis(100);
/// The same within one turn, which only a lack of processors makes long.
const IN_TURN: Duration = Duration::from_millis(250);

/// Attempts whose neighbours are remembered, and threads.
const MAX_LINKS: usize = 32_768;
const MAX_THREADS: usize = 4096;

/// How long neighbours are remembered: as long as an event may wait.
const MEMORY: Duration = Duration::from_secs(12);

/// What a gateway does first when an attempt fails for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    /// It lets go of the upstream, and answers in the same turn.
    LetsGo,
    /// It lets go of the upstream and answers, in a thread that does nothing else meanwhile, however often that
    /// sleeps.
    OneByThread,
    /// It answers and lets go of the upstream, in one task of the same turn. A connect that fails at once is
    /// let go of first.
    Answers,
}

impl Habit {
    /// That of the gateway with this name, where it is known from its code and was measured.
    pub(super) fn of(comm: &str) -> Option<Self> {
        match comm {
            _ if join::is_one_by_one(comm) => Some(Self::LetsGo),
            "apache2" | "httpd" => Some(Self::OneByThread),
            "haproxy" => Some(Self::Answers),
            _ => None,
        }
    }

    /// Whether what was done in `next` is in one piece with what was done in `last`, both of one thread.
    fn is_one_piece(self, last: Turn, next: Turn) -> bool {
        self == Self::OneByThread || last == next
    }
}

/// One attempt on an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tried {
    /// On this hop.
    Hop(HopId),
    /// A call of `connect()` that failed at once.
    Call {
        /// The thread that called.
        thread: u32,
        /// When it had failed.
        at: Timestamp,
    },
}

/// What a thread did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// It let go of an attempt.
    LetGo(Tried),
    /// It connected to an upstream.
    Opened(HopId),
    /// That failed at once.
    Failed(Tried),
    /// Nothing that is known.
    Nothing,
    /// It answered a client. The number is the answer's.
    Answered(u64),
}

/// What a thread did last.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Timestamp,
    turn: Turn,
    deed: Deed,
    /// A hop that was closed since, perhaps by the kernel.
    perhaps: Option<HopId>,
}

/// What an attempt had for neighbours.
#[derive(Clone, Copy, Debug)]
struct Link {
    at: Timestamp,
    /// When the turn began that connected, where that is known.
    began: Option<Timestamp>,
    /// The answer that it was let go of right behind, by a gateway whose habit is another: it may be what it said.
    after: Option<u64>,
    /// The answer next to it, and whether it is sure that the thread itself let go of it there. There is no other
    /// attempt next to it then, unless the gateway answers first.
    answer: Option<(u64, bool)>,
    /// The attempts next to it: the one that had failed, and the one that followed.
    before: Option<Tried>,
    next: Option<Tried>,
}

/// The order in which threads did what is seen of them.
#[derive(Debug, Default)]
pub(super) struct Order {
    threads: HashMap<u32, Last>,
    links: HashMap<Tried, Link>,
    /// The keys of those, oldest first.
    noted: VecDeque<(Timestamp, Tried)>,
}

impl Order {
    /// A thread connects to an upstream.
    pub(super) fn opened(
        &mut self,
        at: Timestamp,
        turn: Turn,
        began: Option<Timestamp>,
        hop: HopId,
        habit: Habit,
    ) {
        let tried = Tried::Hop(hop);
        self.tries(at, turn, tried, habit);
        if habit == Habit::Answers && began.is_some() {
            self.link(at, tried).began = began;
        }
        self.did(at, turn, Deed::Opened(hop));
    }

    /// The call that connected failed, and nothing is let go of any more.
    pub(super) fn failed_at_once(&mut self, hop: HopId) {
        let mut threads = self.threads.values_mut();
        if let Some(last) = threads.find(|last| last.deed == Deed::Opened(hop)) {
            last.deed = Deed::Failed(Tried::Hop(hop));
        }
    }

    /// A call of `connect()` failed.
    pub(super) fn called(&mut self, at: Timestamp, turn: Turn, habit: Habit) {
        let call = Tried::Call {
            thread: turn.thread,
            at,
        };
        self.tries(at, turn, call, habit);
        self.did(at, turn, Deed::LetGo(call));
    }

    /// A hop is let go of; `sure` where the thread of that turn did it itself, and not the kernel meanwhile.
    pub(super) fn let_go(
        &mut self,
        at: Timestamp,
        turn: Turn,
        hop: HopId,
        sure: bool,
        habit: Habit,
    ) {
        let tried = Tried::Hop(hop);
        // Closing a socket may take several steps. The thread's own is the one that counts.
        match self.links.get_mut(&tried) {
            Some(Link {
                answer: Some((_, true)),
                ..
            }) => return,
            Some(link) if sure => (link.answer, link.next) = (None, None),
            _ => {}
        }
        let last = self.last(at, turn, habit);
        if habit == Habit::Answers && !sure {
            // Unless the process lets go of it later, this was the process.
            if let Some(Deed::Answered(number)) = last.map(|last| last.deed) {
                self.link(at, tried).answer.get_or_insert((number, false));
            }
            return;
        }
        if let Some(Last {
            deed: Deed::Answered(number),
            ..
        }) = last
        {
            let link = self.link(at, tried);
            link.after = Some(number);
            if habit == Habit::Answers {
                link.answer = Some((number, true));
            }
        }
        if sure {
            self.did(at, turn, Deed::LetGo(tried));
            return;
        }
        let last = last.unwrap_or(Last {
            at,
            turn,
            deed: Deed::Nothing,
            perhaps: None,
        });
        let perhaps = Some(hop);
        self.note(Last { perhaps, ..last });
    }

    /// A client is answered.
    pub(super) fn answered(&mut self, at: Timestamp, turn: Turn, answer: u64, habit: Habit) {
        let mut deed = Deed::Answered(answer);
        if let Some(last) = self.last(at, turn, habit) {
            let let_go = match last.deed {
                Deed::LetGo(Tried::Hop(_)) if habit == Habit::Answers => None,
                Deed::LetGo(tried) | Deed::Failed(tried) => Some(tried),
                Deed::Opened(_) | Deed::Nothing | Deed::Answered(_) => None,
            };
            let perhaps = last.perhaps.map(Tried::Hop);
            let perhaps = perhaps.filter(|hop| let_go != Some(*hop));
            for (tried, sure) in [(let_go, true), (perhaps, false)] {
                // One that another followed was not the last.
                if let Some(tried) = tried
                    && let link = self.link(at, tried)
                    && link.next.is_none()
                {
                    link.answer = Some((answer, sure));
                    // It is explained, whatever is let go of next.
                    if habit == Habit::Answers {
                        deed = Deed::Nothing;
                    }
                }
            }
        }
        self.did(at, turn, deed);
    }

    /// Records were lost, which may have told of anything.
    pub(super) fn lost(&mut self) {
        *self = Self::default();
    }

    /// Forgets what nobody asks for any more.
    pub(super) fn forget(&mut self, now: Timestamp) {
        self.forget_links(now);
        if self.noted.is_empty() {
            self.threads.retain(|_, last| now.since(last.at) <= IN_TURN);
        }
    }

    /// Forgets the neighbours of long ago, and the oldest where there are too many for one more.
    fn forget_links(&mut self, now: Timestamp) {
        while let Some((at, tried)) = self.noted.front().copied()
            && (now.since(at) > MEMORY || self.noted.len() >= MAX_LINKS)
        {
            self.noted.pop_front();
            if self.links.get(&tried).is_some_and(|link| link.at <= at) {
                self.links.remove(&tried);
            }
        }
    }

    /// The answer that an attempt was the last one for, and whether the thread itself let go of it there.
    pub(super) fn answer_of(&self, tried: Tried) -> Option<(u64, bool)> {
        self.links.get(&tried)?.answer
    }

    /// The attempt that failed right before this one was made.
    pub(super) fn before(&self, tried: Tried) -> Option<Tried> {
        let before = self.links.get(&tried)?.before?;
        (self.next(before) == Some(tried)).then_some(before)
    }

    /// The attempt that was made right behind this one.
    pub(super) fn next(&self, tried: Tried) -> Option<Tried> {
        self.links.get(&tried)?.next
    }

    /// When the turn began that connected for it, where that is known.
    pub(super) fn began(&self, tried: Tried) -> Option<Timestamp> {
        self.links.get(&tried)?.began
    }

    /// The answer that came right before it was let go of.
    pub(super) fn after(&self, tried: Tried) -> Option<u64> {
        let link = self.links.get(&tried)?;
        link.after.or_else(|| link.answer.map(|(answer, _)| answer))
    }

    /// Whether a thread let go of a hop right beside an answer.
    pub(super) fn is_beside(&self, hop: HopId, answer: u64) -> bool {
        let link = self.links.get(&Tried::Hop(hop));
        link.is_some_and(|link| link.answer.is_some_and(|(own, _)| own == answer))
    }

    /// An upstream is tried.
    fn tries(&mut self, at: Timestamp, turn: Turn, tried: Tried, habit: Habit) {
        let Some(last) = self.last(at, turn, habit) else {
            return;
        };
        let before = match last.deed {
            Deed::LetGo(before) | Deed::Failed(before) => Some(before),
            Deed::Opened(_) | Deed::Nothing | Deed::Answered(_) => last.perhaps.map(Tried::Hop),
        };
        if let Some(before) = before {
            let link = self.link(at, before);
            link.next = Some(tried);
            if habit != Habit::Answers {
                link.answer = None;
            }
            self.link(at, tried).before = Some(before);
        }
    }

    /// What the thread did last, where what it does now follows that in one piece.
    fn last(&self, at: Timestamp, turn: Turn, habit: Habit) -> Option<Last> {
        let last = self.threads.get(&turn.thread)?;
        let most = if last.turn == turn { IN_TURN } else { NEXT };
        let next = at >= last.at && at.since(last.at) <= most;
        (next && habit.is_one_piece(last.turn, turn)).then_some(*last)
    }

    fn did(&mut self, at: Timestamp, turn: Turn, deed: Deed) {
        let last = Last {
            at,
            turn,
            deed,
            perhaps: None,
        };
        self.note(last);
    }

    /// Notes what a thread did last. Healthy traffic is noted as well, so that this makes its own room.
    fn note(&mut self, last: Last) {
        let Last { at, turn, .. } = last;
        if self.threads.len() >= MAX_THREADS && !self.threads.contains_key(&turn.thread) {
            // Most threads are asked of again; those that ended are not.
            self.threads.retain(|_, last| at.since(last.at) <= IN_TURN);
            if self.threads.len() >= MAX_THREADS {
                return;
            }
        }
        self.threads.insert(turn.thread, last);
    }

    fn link(&mut self, at: Timestamp, tried: Tried) -> &mut Link {
        self.forget_links(at);
        let noted = &mut self.noted;
        self.links.entry(tried).or_insert_with(|| {
            noted.push_back((at, tried));
            Link {
                at,
                began: None,
                after: None,
                answer: None,
                before: None,
                next: None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Turn = Turn {
        thread: 7,
        number: 1,
    };
    const LATER: Turn = Turn {
        thread: 7,
        number: 2,
    };
    const ELSEWHERE: Turn = Turn {
        thread: 8,
        number: 1,
    };
    const X: Tried = Tried::Hop(HopId(1));
    const Y: Tried = Tried::Hop(HopId(2));

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_nanos(micros * 1000)
    }

    #[test]
    fn what_is_let_go_of_right_before_an_answer_or_a_connect_is_for_that() {
        let mut order = Order::default();
        let habit = Habit::LetsGo;
        order.let_go(at(1), TURN, HopId(1), true, habit);
        // Other threads do not come between.
        order.answered(at(2), ELSEWHERE, 9, habit);
        order.opened(at(3), TURN, None, HopId(2), habit);
        order.let_go(at(4), TURN, HopId(2), true, habit);
        order.answered(at(5), TURN, 10, habit);
        order.answered(at(6), TURN, 11, habit);
        assert_eq!((order.next(X), order.before(Y)), (Some(Y), Some(X)));
        assert_eq!(order.answer_of(Y), Some((10, true)));
        assert_eq!(order.answer_of(X), None);
        assert!(order.is_beside(HopId(2), 10) && !order.is_beside(HopId(2), 11));
    }

    #[test]
    fn who_answers_first_lets_go_right_behind_that() {
        let mut order = Order::default();
        let habit = Habit::Answers;
        let (third, sure) = (Tried::Hop(HopId(3)), true);
        order.opened(at(1), TURN, Some(at(0)), HopId(1), habit);
        // The kernel closes it.
        order.let_go(at(2), TURN, HopId(1), !sure, habit);
        order.answered(at(3), LATER, 10, habit);
        order.let_go(at(4), LATER, HopId(1), sure, habit);
        order.opened(at(5), LATER, None, HopId(2), habit);
        assert_eq!(order.answer_of(X), Some((10, sure)));
        assert_eq!((order.next(X), order.before(Y)), (Some(Y), Some(X)));
        assert_eq!((order.began(X), order.began(Y)), (Some(at(0)), None));
        // One that fails at once is over before the answer.
        order.failed_at_once(HopId(2));
        order.answered(at(6), LATER, 11, habit);
        order.let_go(at(7), LATER, HopId(3), sure, habit);
        assert_eq!(order.answer_of(Y), Some((11, sure)));
        assert_eq!(order.answer_of(third), None);
        // Of what it closes over unread data there is no other word.
        order.answered(at(8), LATER, 12, habit);
        order.let_go(at(9), LATER, HopId(3), !sure, habit);
        assert_eq!(order.answer_of(third), Some((12, !sure)));
    }

    #[test]
    fn another_turn_is_another_piece_but_for_a_thread_that_does_one_request_at_a_time() {
        for (habit, expected) in [
            (Habit::LetsGo, None),
            (Habit::OneByThread, Some((10, true))),
        ] {
            let mut order = Order::default();
            order.let_go(at(1), TURN, HopId(1), true, habit);
            order.answered(at(2), LATER, 10, habit);
            assert_eq!(order.answer_of(X), expected, "{habit:?}");
        }
    }

    #[test]
    fn what_the_kernel_closed_meanwhile_is_known_once_the_process_lets_go_of_it() {
        let mut order = Order::default();
        let habit = Habit::LetsGo;
        order.let_go(at(1), TURN, HopId(1), true, habit);
        order.let_go(at(2), TURN, HopId(2), false, habit);
        order.answered(at(3), TURN, 10, habit);
        assert_eq!(order.answer_of(X), Some((10, true)));
        assert_eq!(order.answer_of(Y), Some((10, false)));
        order.let_go(at(4), LATER, HopId(2), true, habit);
        assert_eq!(order.answer_of(Y), None);
        order.answered(at(5), LATER, 11, habit);
        assert_eq!(order.answer_of(Y), Some((11, true)));
    }

    #[test]
    fn what_was_lost_may_have_been_in_between() {
        let mut order = Order::default();
        let habit = Habit::LetsGo;
        order.let_go(at(1), TURN, HopId(1), true, habit);
        order.lost();
        order.answered(at(2), TURN, 10, habit);
        assert_eq!(order.answer_of(X), None);
    }

    #[test]
    fn neighbours_are_near_and_nearer_where_the_thread_slept_in_between() {
        for (habit, turn, apart, expected) in [
            (Habit::LetsGo, TURN, IN_TURN, Some((11, true))),
            (Habit::LetsGo, TURN, IN_TURN + NEXT, None),
            (Habit::OneByThread, LATER, NEXT, Some((11, true))),
            (Habit::OneByThread, LATER, NEXT + NEXT, None),
        ] {
            let mut order = Order::default();
            order.let_go(at(3), TURN, HopId(2), true, habit);
            order.answered(at(3).after(apart), turn, 11, habit);
            assert_eq!(order.answer_of(Y), expected, "{habit:?}, {turn:?}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut order = Order::default();
        for number in 0..2 * MAX_LINKS as u64 {
            let turn = Turn {
                thread: u32::try_from(number / 8).unwrap(),
                number: 0,
            };
            order.let_go(at(number), turn, HopId(number), true, Habit::LetsGo);
            order.answered(at(number), turn, number, Habit::LetsGo);
        }
        // Nobody said so far that anything may be forgotten.
        assert!(order.links.len() <= MAX_LINKS && order.noted.len() <= MAX_LINKS);
        assert!(order.threads.len() <= MAX_THREADS);
        order.forget(at(1).after(MEMORY).after(MEMORY));
        assert!(order.links.is_empty() && order.threads.is_empty());
    }
}
