//! The gRPC services, the collector and the command line, over loopback and from outside.
#![cfg(feature = "cli")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test; clippy exempts test functions only"
)]

mod access;
mod agent;
mod captures;
mod captures_command;
mod commands;
mod convert;
mod filter;
mod metrics;
mod pki;
mod push;
mod render;
mod shelf;
mod support;
