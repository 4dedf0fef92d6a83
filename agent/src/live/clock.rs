//! Kernel time to wall time, and the one place that reads a clock.
//!
//! Records carry `CLOCK_MONOTONIC`. The anchor between the two clocks is taken again and again, so that
//! a clock that was set is followed; small slews are left alone, which keeps the distance between two
//! records of a hop exact.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::model::Timestamp;

/// Drift that is followed. NTP slews by at most half a millisecond a second; a difference beyond this
/// is a clock that was set, or long uptime.
const FOLLOW_NS: u64 = 1_000_000;

/// Time between two looks at the anchor.
const REANCHOR: Duration = Duration::from_secs(1);

/// The distance between the two clocks.
#[derive(Debug)]
pub(super) struct Clock {
    /// Wall time minus monotonic time.
    offset_ns: u64,
    checked_ns: u64,
}

impl Clock {
    pub(super) fn new() -> Self {
        let (offset_ns, checked_ns) = measure();
        Self {
            offset_ns,
            checked_ns,
        }
    }

    /// Looks at both clocks again where the last look is a while ago.
    pub(super) fn refresh(&mut self) {
        if u128::from(monotonic_ns().saturating_sub(self.checked_ns)) < REANCHOR.as_nanos() {
            return;
        }
        let (offset_ns, checked_ns) = measure();
        self.checked_ns = checked_ns;
        if offset_ns.abs_diff(self.offset_ns) > FOLLOW_NS {
            self.offset_ns = offset_ns;
        }
    }

    /// Wall time of a kernel time.
    pub(super) const fn wall(&self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_nanos(monotonic_ns.saturating_add(self.offset_ns))
    }
}

/// `CLOCK_MONOTONIC` now.
pub(super) fn monotonic_ns() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// Wall time minus monotonic time, and the monotonic time of the measurement. Of three tries the one
/// that was disturbed least counts.
fn measure() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..3 {
        let before = monotonic_ns();
        let wall = nanos(clock_gettime(ClockId::Realtime));
        let after = monotonic_ns();
        let gap = after.saturating_sub(before);
        if gap < best.0 {
            let middle = before + gap / 2;
            best = (gap, wall.saturating_sub(middle), after);
        }
    }
    (best.1, best.2)
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_near_the_real_clock() {
        let clock = Clock::new();
        let real = nanos(clock_gettime(ClockId::Realtime));
        assert!(clock.wall(monotonic_ns()).as_nanos().abs_diff(real) < 50_000_000);
    }

    #[test]
    fn a_clock_that_was_set_is_followed() {
        let mut clock = Clock::new();
        let right = clock.offset_ns;
        clock.offset_ns += 3_600_000_000_000;
        clock.refresh();
        assert_ne!(clock.offset_ns.abs_diff(right), 0, "looked at too early");
        clock.checked_ns = 0;
        clock.refresh();
        assert!(clock.offset_ns.abs_diff(right) < 50_000_000);
    }
}
