//! What a program costs: processor time and peak memory, on one core.
//!
//! Processor time and not wall time: with the file in the page cache they are the same on an idle
//! machine, and only the first stays true on a busy one.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use wait4::Wait4 as _;

use crate::exec::shown;

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// User and system time.
    pub(super) cpu: Duration,
    /// Largest resident set, in bytes.
    pub(super) peak_rss: u64,
}

impl Cost {
    pub(super) fn seconds(&self) -> f64 {
        self.cpu.as_secs_f64().max(1e-6)
    }
}

/// Keeps this process and what it starts on one of the cores that it may use, and returns which.
pub(super) fn pin() -> Result<usize> {
    let allowed = sched_getaffinity(None).context("could not read the allowed cores")?;
    // The last one: interrupts tend to be on the first.
    let core = (0..CpuSet::MAX_CPU)
        .rev()
        .find(|&core| allowed.is_set(core))
        .context("no core is allowed")?;
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).with_context(|| format!("could not stay on core {core}"))?;
    Ok(core)
}

/// Runs a command to its end and says what it took.
pub(super) fn measure(command: &mut Command) -> Result<Cost> {
    let shown = shown(command);
    let child = command
        .spawn()
        .with_context(|| format!("could not start `{shown}`"))?;
    let used = child
        .wait4()
        .with_context(|| format!("could not wait for `{shown}`"))?;
    if !used.status.success() {
        bail!("`{shown}` ended with {}", used.status);
    }
    Ok(Cost {
        cpu: used.rusage.utime + used.rusage.stime,
        peak_rss: used.rusage.maxrss,
    })
}
