//! The flight recorder: the packets of each failed exchange, kept so that a verdict can be checked.
//!
//! ```text
//! inputs ──▶ Flight (recent packets of each hop) ──▶ Redactor ──▶ pcapng ──▶ Store (files on disk)
//! events ──▶ Recorder::keep: takes the packets of the event's hop, sets its `capture_id`
//! ```
//!
//! Decides which packets are kept, for how long, and what of them may be read later. What failed and
//! why is the engine's verdict; who may read a capture is decided where they are served.

mod capture;
mod flight;
mod pcapng;
mod recorder;
mod redact;
mod sampler;
mod store;
#[cfg(test)]
mod testing;

pub use capture::{
    Capture, CaptureFilter, CaptureId, CaptureIdError, CaptureInfo, CapturedPacket, ExchangeLine,
};
pub use flight::{Flight, RecordLimits};
pub use recorder::Recorder;
pub use redact::{RedactConfig, Redactor};
pub use sampler::{BoostError, Sampler, SamplerConfig};
pub use store::{Store, StoreError, StoreLimits};
