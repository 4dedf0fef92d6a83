//! What is remembered of attempts and answers.

use core::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::join;
use super::order::{Habit, Tried};
use crate::classify::{EarlierFailure, InFlight, Unattempted};
use crate::http1::RequestHead;
use crate::model::{Exit, GatewayAnswer, Goroutine, HopEvent, HopId, Process, Timestamp, Turn};

/// What the engine tells of a failed attempt beside its event.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(in crate::engine) struct Attempt {
    /// Boxed: all that wait are looked through for each answer, most of them no further than their times.
    pub(in crate::engine) event: Box<HopEvent>,
    pub(super) hop: Option<HopId>,
    /// When it began: its request, or its SYN where it failed to connect.
    pub(in crate::engine) began: Timestamp,
    /// The turn that connected for it, where it was the first on its connection.
    pub(super) opener: Option<Turn>,
    /// The goroutine that connected for it, where it was the first on its connection.
    pub(super) goroutine: Option<Goroutine>,
    /// The turn that let go of it.
    pub(in crate::engine) turn: Option<Turn>,
    /// When the gateway let go of it, where that is sure.
    pub(super) released: Option<Timestamp>,
    /// Whether that was the gateway's own. The kernel closes a socket that was reset in whatever turn
    /// it has the processor.
    pub(super) sure: bool,
    pub(super) due: Timestamp,
    /// Whether an answer lists it as one of its attempts.
    pub(super) listed: bool,
    /// Whether it was shown to who keeps packets.
    pub(super) shown: bool,
    /// Whether the source was asked which clients wait.
    pub(super) asked: bool,
    /// Events that an answer could not tell from this one when it took one of them.
    pub(super) contested: Vec<String>,
}

impl Attempt {
    pub(in crate::engine) fn new(event: HopEvent, began: Timestamp, turn: Option<Turn>) -> Self {
        Self {
            hop: event.hop,
            event: Box::new(event),
            began,
            opener: None,
            goroutine: None,
            turn,
            released: None,
            sure: false,
            due: Timestamp::MAX,
            listed: false,
            shown: false,
            asked: false,
            contested: Vec::new(),
        }
    }

    /// The same, of a connection that this turn opened for it.
    pub(in crate::engine) const fn opened_by(mut self, turn: Option<Turn>) -> Self {
        self.opener = turn;
        self
    }

    /// The same, of a connection that this goroutine opened for it.
    pub(in crate::engine) const fn run_by(mut self, goroutine: Option<Goroutine>) -> Self {
        self.goroutine = goroutine;
        self
    }

    /// The same, of a call that failed in the turn that made it.
    pub(in crate::engine) const fn in_one_turn(mut self) -> Self {
        self.opener = self.turn;
        self.sure = self.turn.is_some();
        self
    }
}

impl Attempt {
    /// The gateway's process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.event.gateway.as_ref().map(|gateway| gateway.pid)
    }

    /// Its name in the order of what threads did.
    pub(super) fn tried(&self) -> Option<Tried> {
        match (self.hop, self.turn) {
            (Some(hop), _) => Some(Tried::Hop(hop)),
            (None, Some(turn)) => Some(Tried::Call {
                thread: turn.thread,
                at: self.event.time,
            }),
            (None, None) => None,
        }
    }

    /// Takes the turn that let go of its hop: the first that is sure.
    pub(super) fn release(&mut self, release: &Release) {
        if !self.sure {
            self.turn = Some(release.turn);
            self.released = release.sure.then_some(release.at);
            self.sure = release.sure;
        }
    }
}

/// A process let go of a hop.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Release {
    pub(in crate::engine) at: Timestamp,
    pub(in crate::engine) hop: HopId,
    /// When it was opened, where that is known.
    pub(in crate::engine) opened: Option<Timestamp>,
    /// The process, zero where it is not known.
    pub(in crate::engine) pid: u32,
    pub(in crate::engine) turn: Turn,
    /// Whether the turn is the process's own beyond doubt.
    pub(in crate::engine) sure: bool,
    /// Whether every request on it had a whole response that was good.
    pub(in crate::engine) served: bool,
    /// Whether anything was asked on it, as far as is known.
    pub(in crate::engine) asked: bool,
}

/// A process connects to an upstream.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Opened {
    pub(super) at: Timestamp,
    pub(super) hop: HopId,
    pub(super) pid: u32,
}

/// When a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// When the first byte of the request arrived.
    pub(super) at: Timestamp,
    /// When the gateway read it, and in which turn, where that is known.
    pub(super) read: Option<(Timestamp, Turn)>,
}

impl Asked {
    /// From when on attempts may have been made for it.
    pub(super) fn since(&self) -> Timestamp {
        self.read.map_or(self.at, |(at, _)| at)
    }

    /// Whether an attempt that began then may have been made for it. What a gateway sends is behind what it reads on
    /// any clock; when a request arrived is told a little late.
    pub(super) fn is_before(&self, began: Timestamp) -> bool {
        let slack = if self.read.is_some() {
            Duration::ZERO
        } else {
            join::SMALL
        };
        self.since() <= began.after(slack)
    }

    /// The turn that read it.
    pub(super) fn read_in(&self) -> Option<Turn> {
        self.read.map(|(_, turn)| turn)
    }
}

/// An answer that waits.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) at: Timestamp,
    pub(super) due: Timestamp,
    pub(super) process: Arc<Process>,
    pub(super) turn: Option<Turn>,
    /// The goroutine that sent it.
    pub(super) goroutine: Option<u64>,
    /// Its number.
    pub(super) serial: u64,
    /// What its thread does first, where the order in which it does things is known.
    pub(super) habit: Option<Habit>,
    /// When its thread had answered the one before, as far as that is known, where it does one after another.
    pub(super) free: Option<Timestamp>,
    /// The client's end and the gateway's.
    pub(super) ends: (SocketAddr, SocketAddr),
    /// The client whom a balancer names, which is then at that end.
    pub(super) on_behalf_of: Option<SocketAddr>,
    /// Whether the client is the gateway itself.
    pub(super) own: bool,
    pub(super) asked: Asked,
    pub(super) request: RequestHead,
    pub(super) status: Option<u16>,
    pub(super) exit: Option<Exit>,
    pub(super) in_flight: Option<InFlight>,
    /// Events that went to other answers and fit this one.
    pub(super) taken: Vec<String>,
}

impl Answer {
    /// What an event tells of it.
    pub(in crate::engine) fn told(&self) -> GatewayAnswer {
        let owned = |text: Option<std::borrow::Cow<'_, str>>| {
            text.map(std::borrow::Cow::into_owned)
                .filter(|text| !text.is_empty())
        };
        let latency = self.at.since(self.asked.at);
        GatewayAnswer {
            status: self.status,
            client: self.on_behalf_of.unwrap_or(self.ends.0).into(),
            time: self.at,
            method: owned(self.request.method()),
            path: owned(self.request.path()),
            host: owned(self.request.host()),
            request_id: owned(self.request.request_id()),
            latency_ms: (latency.as_secs_f64() * 1e6).round() / 1e3,
            attempts: Vec::new(),
            candidates: Vec::new(),
            contested: false,
        }
    }
}

/// An answer of the recent past, to tell what a later event belongs to.
#[derive(Debug)]
pub(super) struct Past {
    pub(super) at: Timestamp,
    pub(super) asked: Asked,
    pub(super) process: Arc<Process>,
    pub(super) turn: Option<Turn>,
    /// Its number.
    pub(super) serial: u64,
    /// The client's end and the gateway's.
    pub(super) ends: (SocketAddr, SocketAddr),
    /// Whether the client is the gateway itself.
    pub(super) own: bool,
    pub(super) status: Option<u16>,
    pub(super) method: Option<String>,
    pub(super) host: Option<String>,
    pub(super) path: Option<String>,
    /// Whether it is known what was behind it.
    pub(super) settled: bool,
    /// How many answers to the same request lie one within the other from this one on, as far as is known.
    pub(super) nested: usize,
}

/// A failure behind an answer of the recent past.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) netns: u64,
    pub(super) comm: Arc<str>,
    pub(super) route: (Option<String>, Option<String>),
    pub(super) earlier: EarlierFailure,
}

/// What became of an event or an answer.
#[derive(Debug)]
pub(in crate::engine) enum Decided {
    /// Publish this event.
    Event(Box<HopEvent>),
    /// Publish an event for an answer that no attempt on the wire explains.
    Unattempted(Box<Told>),
}

/// An answer without an attempt, with its verdict's facts.
#[derive(Debug)]
pub(in crate::engine) struct Told {
    pub(in crate::engine) at: Timestamp,
    pub(in crate::engine) process: Arc<Process>,
    pub(in crate::engine) requested: Timestamp,
    pub(in crate::engine) answer: GatewayAnswer,
    pub(in crate::engine) facts: Unattempted,
    /// The thread that did nothing else meanwhile.
    pub(in crate::engine) thread: Option<u32>,
}
