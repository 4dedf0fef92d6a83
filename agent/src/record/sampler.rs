//! Which healthy exchanges are kept, to compare a failing one with.
//!
//! The first of each upstream, then one in so many, by counting: the same traffic gives the same
//! samples. A boost asks for more from some upstreams, for a time.

use core::net::SocketAddr;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use thiserror::Error;

use crate::model::{Timestamp, UpstreamPattern};

/// Settings of a [`Sampler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerConfig {
    /// One exchange of each upstream in so many is kept; zero for none at all.
    pub one_in: u32,
    /// Upstreams that are counted each for itself; all others are counted together.
    pub upstreams: usize,
    /// Boosts at once.
    pub boosts: usize,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            one_in: 1000,
            upstreams: 4096,
            boosts: 64,
        }
    }
}

/// Why a boost was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BoostError {
    /// The cap is reached.
    #[error("all {0} boosts are in use: wait until one is over, or boost a larger network")]
    TooMany(usize),
}

#[derive(Clone, Copy, Debug)]
struct Boost {
    upstreams: UpstreamPattern,
    one_in: u32,
    until: Timestamp,
}

#[derive(Debug, Default)]
struct Inner {
    boosts: Vec<Boost>,
    counts: HashMap<SocketAddr, u64, RandomState>,
    /// Of all upstreams beyond the cap.
    others: u64,
}

/// Decides which healthy exchanges are kept. Shared: the recorder asks, services boost.
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    inner: Mutex<Inner>,
}

impl Sampler {
    /// A sampler that has counted nothing yet.
    pub fn new(config: SamplerConfig) -> Self {
        Self {
            config,
            inner: Mutex::default(),
        }
    }

    /// Keeps one in `one_in` exchanges (zero and one: each) with `upstreams` until `until`. Another
    /// boost of the same upstreams is replaced. Where several fit an upstream, the one that keeps most
    /// counts.
    pub fn boost(
        &self,
        upstreams: UpstreamPattern,
        one_in: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<(), BoostError> {
        let mut inner = self.inner();
        inner
            .boosts
            .retain(|boost| boost.until > now && boost.upstreams != upstreams);
        if inner.boosts.len() >= self.config.boosts {
            return Err(BoostError::TooMany(self.config.boosts));
        }
        inner.boosts.push(Boost {
            upstreams,
            one_in: one_in.max(1),
            until,
        });
        Ok(())
    }

    /// Whether this healthy exchange, which ended `now`, is to be kept.
    pub(super) fn wants(&self, upstream: SocketAddr, now: Timestamp) -> bool {
        let mut inner = self.inner();
        let room = inner.counts.len() < self.config.upstreams;
        let count = match inner.counts.get_mut(&upstream) {
            Some(count) => count,
            None if room => inner.counts.entry(upstream).or_default(),
            None => &mut inner.others,
        };
        let before = *count;
        *count += 1;
        inner.boosts.retain(|boost| boost.until > now);
        let fitting = inner.boosts.iter();
        let boosted = fitting.filter(|boost| boost.upstreams.matches(upstream));
        let one_in = match boosted.map(|boost| boost.one_in).min() {
            Some(one_in) => one_in,
            None => self.config.one_in,
        };
        one_in > 0 && before.is_multiple_of(u64::from(one_in))
    }

    /// Boosts in force, and upstreams counted.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let inner = self.inner();
        vec![
            ("sampler_boosts", inner.boosts.len() as u64),
            ("sampler_upstreams", inner.counts.len() as u64),
        ]
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Counts that a panic left half made are as good as any.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000);
    const LATER: Timestamp = Timestamp::from_nanos(2_000_000_000);

    fn upstream(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn kept(sampler: &Sampler, last: u8, of: usize, now: Timestamp) -> usize {
        (0..of)
            .filter(|_| sampler.wants(upstream(last), now))
            .count()
    }

    #[test]
    fn the_first_of_each_upstream_then_one_in_so_many() {
        let sampler = Sampler::new(SamplerConfig {
            one_in: 10,
            ..SamplerConfig::default()
        });
        assert!(sampler.wants(upstream(1), NOW));
        assert_eq!(kept(&sampler, 1, 9, NOW), 0);
        assert_eq!(kept(&sampler, 1, 100, NOW), 10);
        assert!(sampler.wants(upstream(2), NOW));
        let off = Sampler::new(SamplerConfig {
            one_in: 0,
            ..SamplerConfig::default()
        });
        assert_eq!(kept(&off, 1, 100, NOW), 0);
    }

    #[test]
    fn a_boost_ends_by_itself() {
        let sampler = Sampler::new(SamplerConfig::default());
        assert!(sampler.wants(upstream(1), NOW));
        let network = "10.0.0.1/32".parse().unwrap();
        sampler.boost(network, 0, LATER, NOW).unwrap();
        assert_eq!(kept(&sampler, 1, 5, NOW), 5);
        assert_eq!(kept(&sampler, 2, 5, NOW), 1);
        assert_eq!(kept(&sampler, 1, 5, LATER), 0);
        assert_eq!(sampler.counters()[0], ("sampler_boosts", 0));
    }

    #[test]
    fn upstreams_and_boosts_are_bounded() {
        let sampler = Sampler::new(SamplerConfig {
            upstreams: 2,
            boosts: 2,
            one_in: 3,
        });
        for last in 1..=200 {
            sampler.wants(upstream(last), NOW);
        }
        assert_eq!(sampler.counters()[1], ("sampler_upstreams", 2));
        for port in [1, 2, 2] {
            let pattern = format!(":{port}").parse().unwrap();
            sampler.boost(pattern, 1, LATER, NOW).unwrap();
        }
        let third = ":3".parse().unwrap();
        let error = sampler.boost(third, 1, LATER, NOW).unwrap_err();
        assert!(error.to_string().contains("all 2 boosts"));
        sampler.boost(third, 1, LATER, LATER).unwrap();
    }
}
