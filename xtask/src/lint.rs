//! `cargo xtask lint`: formatting and clippy for the workspace and, apart from it, for the kernel
//! programs, which only a build for a BPF target can compile.

use anyhow::Result;

use crate::exec::{self, cargo};

pub(crate) fn run() -> Result<()> {
    exec::run(cargo().args(["fmt", "--all", "--", "--check"]))?;
    exec::run(
        cargo()
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--features", LIVE_TESTS])
            .args(DENY_WARNINGS),
    )?;
    // clippy has no BPF target on stable, and needs none: types and lints are the same on the host.
    // Kernel programs have no unwinder, so the host build must do without one, too.
    let mut command = cargo();
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-C panic=abort")
        .args([
            "clippy",
            "--package",
            "hopscope-ebpf",
            "--features",
            "programs",
        ])
        .args(["--target-dir", "target/ebpf-lint"])
        .args(DENY_WARNINGS);
    exec::run(&mut command)
}

/// Tests that need a live host are linted wherever they can be compiled.
const LIVE_TESTS: &str = "hopscope/live-tests,hopscope-tests/live-tests";

const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];
