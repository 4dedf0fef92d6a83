//! The kernel programs and the live source on this very host: root, BTF and a build with the programs
//! inside (`HOPSCOPE_EBPF_OBJECT`) are needed, and a test fails where one of them is missing.
//!
//! Each test watches processes of its own name only, so that tests and other users of the host do not
//! see each other.

#![expect(
    clippy::unwrap_used,
    reason = "what a test needs and does not get is a failed test"
)]

mod accepted;
mod again;
mod answered;
mod attach;
mod clients;
mod connects;
mod dns;
mod forgotten;
mod goroutines;
mod handover;
mod heads;
mod held;
mod late;
mod library;
mod network;
mod openssl;
mod pair;
mod places;
mod plaintext;
mod proxied;
mod segments;
mod support;
mod tls;
mod turns;
mod unix;
