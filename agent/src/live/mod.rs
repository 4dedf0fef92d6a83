//! The kernel as a source: load, attach, ring, offsets, sockets.
//!
//! Decides what the kernel's records say, as inputs of the engine. What they mean is the engine's
//! business. The kernel programs themselves are in package `hopscope-ebpf`.

mod btf;
mod cgroup;
mod check;
mod clock;
mod config;
mod decode;
mod error;
mod icmp;
mod load;
mod log;
mod netns;
mod offsets;
mod process;
mod scout;
mod seed;
mod source;
mod tracefs;
mod translate;

pub use btf::BtfError;
pub use check::check;
pub use config::LiveConfig;
pub use error::LiveError;
pub use source::{LiveSource, Waker};

/// The object with the kernel programs; empty where the binary was built without them.
pub fn programs() -> &'static [u8] {
    load::PROGRAMS
}
