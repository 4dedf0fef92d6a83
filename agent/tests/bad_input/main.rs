//! Whatever comes in, nothing panics, memory stays within its bound, and time grows no faster than
//! the input. Smaller in debug builds, at full size in release builds.

#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod bodies;
mod feed;
mod files;
mod floods;
mod measure;
mod memory;
mod tls;

/// What is full size in a release build, and smaller where the code is slow.
const fn scaled(full: usize, divisor: usize) -> usize {
    if cfg!(debug_assertions) {
        full / divisor
    } else {
        full
    }
}
