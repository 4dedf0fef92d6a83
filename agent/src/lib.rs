//! hopscope names the cause of every 502, 503 and 504 that a gateway hands out, from what happens on
//! the hop between the gateway and its upstream.
//!
//! The core (`model`, `input`, `tcp`, `http1`, `tls`, `dns`, `classify`, `engine`) is a deterministic state machine:
//! time comes in as an argument, bytes as borrowed slices, events and the next deadline come out. It
//! does no IO and reads no clock; a build without default features proves that. The other modules are
//! edges: sources that feed it and services that carry its events away.

#![cfg_attr(
    test,
    expect(
        clippy::cast_possible_truncation,
        clippy::semicolon_if_nothing_returned,
        reason = "tests handle small numbers and chain steps"
    )
)]

pub mod classify;
pub mod dns;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod http1;
pub mod input;
pub mod limits;
pub mod model;
pub mod stats;
pub mod tcp;
pub mod tls;

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "collector")]
pub mod collector;
#[cfg(feature = "live")]
pub mod live;
#[cfg(feature = "std-edges")]
pub mod record;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "std-edges")]
pub mod source;
