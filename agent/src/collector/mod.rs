//! Takes events of many agents.
//!
//! Decides what is new (agents send again after a broken connection) and when an event counts as
//! taken over: only once it is written. It keeps nothing itself yet.

mod seen;
mod service;

pub use seen::Seen;
pub use service::{Collector, CollectorService, PublishStream, Sink, serve_collector};
