//! Owns the tables of hops; takes observations and time, gives events and the next deadline.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::Limits;
use crate::model::{HopEvent, Input, Timestamp};
use crate::stats::Stats;

/// Settings of the engine that are not caps.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node, put on every event.
    pub node: Arc<str>,
    /// A gateway that gives up sooner than this is taken to have lost its client, not its patience.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: Arc::from("localhost"),
            patience: Duration::from_millis(200),
        }
    }
}

/// The deterministic state machine at the heart of hopscope: no IO, no clock.
///
/// Call [`Engine::handle`] for each observation and [`Engine::handle_timeout`] when
/// [`Engine::poll_timeout`] is due; then drain [`Engine::poll_event`]. Time never runs backwards
/// inside: an observation older than the newest one is treated as if made at that time.
#[derive(Debug)]
pub struct Engine {
    stats: Stats,
}

impl Engine {
    /// An engine that tracks nothing yet.
    pub fn new(_config: Config, _limits: Limits) -> Self {
        Self {
            stats: Stats::default(),
        }
    }

    /// Takes one observation made at `at`.
    pub fn handle(&mut self, _at: Timestamp, _input: Input<'_>) {}

    /// Lets every deadline up to `now` expire.
    pub fn handle_timeout(&mut self, _now: Timestamp) {}

    /// Ends the observation: decides what can be decided of the hops that are still open.
    pub fn finish(&mut self, _at: Timestamp) {}

    /// The next event, if one was decided.
    pub fn poll_event(&mut self) -> Option<HopEvent> {
        None
    }

    /// When [`Engine::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }

    /// Hops tracked now.
    pub fn open_hops(&self) -> usize {
        0
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
