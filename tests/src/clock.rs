//! The lab's one reading of the clock: deadlines for waits.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// How long a poll waits before it looks again: short beside every time-out of the lab.
const POLL: Duration = Duration::from_millis(10);

/// A point in time after which waiting is a failure.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self(now() + limit)
    }

    /// The time that is left, zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }
}

/// Asks `poll` until it gives a value; fails with `what` after `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Deadline::after(limit);
    loop {
        if let Some(value) = poll()? {
            return Ok(value);
        }
        if deadline.passed() {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(POLL);
    }
}

#[expect(clippy::disallowed_methods, reason = "the lab's one edge to the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Time since 1970, for packet captures.
#[expect(clippy::disallowed_methods, reason = "the lab's one edge to the clock")]
pub(crate) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
