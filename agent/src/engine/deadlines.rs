//! How long the exchanges lasted that gateways ended although data flowed. Bounded: only the last ones
//! are remembered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::classify::ALIKE;

/// So many are remembered.
const RECENT: usize = 64;

/// The last such exchanges, by the name of their gateway's process.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    recent: VecDeque<(Arc<str>, Duration)>,
}

impl Deadlines {
    /// Notes one. Returns how many of this gateway lasted as long, itself included.
    pub(super) fn note(&mut self, gateway: &Arc<str>, lasted: Duration) -> usize {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((Arc::clone(gateway), lasted));
        let alike = |(other, long): &&(Arc<str>, Duration)| {
            other == gateway && long.abs_diff(lasted) <= ALIKE
        };
        self.recent.iter().filter(alike).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_gateway_and_the_same_time_count() {
        let (envoy, caddy): (Arc<str>, Arc<str>) = (Arc::from("envoy"), Arc::from("caddy"));
        let mut deadlines = Deadlines::default();
        let seconds = Duration::from_secs;
        assert_eq!(deadlines.note(&envoy, seconds(15)), 1);
        assert_eq!(deadlines.note(&caddy, seconds(15)), 1);
        assert_eq!(deadlines.note(&envoy, seconds(16)), 1);
        assert_eq!(deadlines.note(&envoy, seconds(15) + ALIKE), 2);
        for _ in 0..RECENT {
            deadlines.note(&caddy, seconds(9));
        }
        assert_eq!(deadlines.note(&envoy, seconds(15)), 1, "forgotten");
        assert_eq!(deadlines.recent.len(), RECENT);
    }
}
