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

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Exchanges so far, those included whose packets nobody saw.
    exchanges: u64,
    /// How many there had been before the last one that was kept.
    kept: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    boosts: Vec<Boost>,
    /// Boosts that the source was not told of yet.
    fresh: Vec<(UpstreamPattern, Timestamp)>,
    counts: HashMap<SocketAddr, Count, RandomState>,
    /// Of all upstreams beyond the cap.
    others: Count,
}

impl Inner {
    fn count(&mut self, upstream: SocketAddr, most: usize) -> &mut Count {
        let room = self.counts.len() < most;
        if room || self.counts.contains_key(&upstream) {
            self.counts.entry(upstream).or_default()
        } else {
            &mut self.others
        }
    }
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
        inner.fresh.retain(|(known, _)| *known != upstreams);
        inner.fresh.truncate(self.config.boosts);
        inner.fresh.push((upstreams, until));
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
        inner.boosts.retain(|boost| boost.until > now);
        let fitting = inner.boosts.iter();
        let boosted = fitting.filter(|boost| boost.upstreams.matches(upstream));
        let one_in = match boosted.map(|boost| boost.one_in).min() {
            Some(one_in) => one_in,
            None => self.config.one_in,
        };
        let count = inner.count(upstream, self.config.upstreams);
        let before = count.exchanges;
        count.exchanges += 1;
        // The multiple itself may have passed unseen: then the next one takes its place.
        let place = |count: u64| count.checked_div(u64::from(one_in));
        let wanted = one_in > 0 && count.kept.is_none_or(|kept| place(before) > place(kept));
        if wanted {
            count.kept = Some(before);
        }
        wanted
    }

    /// Counts healthy exchanges whose packets nobody saw.
    pub(super) fn skip(&self, upstream: SocketAddr, exchanges: u64) {
        let mut inner = self.inner();
        inner.count(upstream, self.config.upstreams).exchanges += exchanges;
    }

    /// Boosts that were asked for since the last call, and until when.
    pub(super) fn new_boosts(&self) -> Vec<(UpstreamPattern, Timestamp)> {
        std::mem::take(&mut self.inner().fresh)
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
    fn exchanges_that_nobody_saw_count() {
        let sampler = Sampler::new(SamplerConfig {
            one_in: 10,
            ..SamplerConfig::default()
        });
        assert!(sampler.wants(upstream(1), NOW));
        sampler.skip(upstream(1), 7);
        assert_eq!(kept(&sampler, 1, 2, NOW), 0);
        sampler.skip(upstream(1), 5);
        // The tenth was among those: the sixteenth is kept for it.
        assert!(sampler.wants(upstream(1), NOW));
        assert_eq!(kept(&sampler, 1, 4, NOW), 0);
        assert!(sampler.wants(upstream(1), NOW));
    }

    #[test]
    fn a_boost_ends_by_itself() {
        let sampler = Sampler::new(SamplerConfig::default());
        assert!(sampler.wants(upstream(1), NOW));
        let network = "10.0.0.1/32".parse().unwrap();
        sampler.boost(network, 0, LATER, NOW).unwrap();
        assert_eq!(sampler.new_boosts(), [(network, LATER)]);
        assert_eq!(sampler.new_boosts(), []);
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
