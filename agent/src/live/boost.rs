//! Upstreams whose exchanges are all sent up for a while. The kernel keeps the times; here the entries
//! that are over are taken out, so that nobody looks for them.

use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, MapData, MapError};

use super::LiveError;
use super::config::key;
use super::load;
use crate::model::UpstreamPattern;

/// Boosts at once; the map has room for more.
const MAX_BOOSTS: usize = 1024;

/// The boosts that are on.
pub(super) struct Boosts {
    until: Vec<(UpstreamPattern, u64)>,
    table: LpmTrie<MapData, [u8; 18], u64>,
    any: Array<MapData, u32>,
}

impl Boosts {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LiveError> {
        Ok(Self {
            until: Vec::new(),
            table: load::take_map(ebpf, "BOOSTS")?,
            any: load::take_map(ebpf, "BOOSTING")?,
        })
    }

    /// Boosts `upstreams` for as long as `time` from `now_ns`; zero ends it.
    pub(super) fn set(
        &mut self,
        upstreams: &UpstreamPattern,
        time: Duration,
        now_ns: u64,
    ) -> Result<(), LiveError> {
        if time.is_zero() {
            for (known, until) in &mut self.until {
                if known == upstreams {
                    *until = 0;
                }
            }
            return self.expire(now_ns);
        }
        self.until.retain(|(known, _)| known != upstreams);
        if self.until.len() >= MAX_BOOSTS {
            return Err(LiveError::TooManyBoosts(MAX_BOOSTS));
        }
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let until = now_ns.saturating_add(time);
        self.table
            .insert(&key(upstreams), until, 0)
            .map_err(failed)?;
        self.until.push((*upstreams, until));
        self.any.set(0, 1, 0).map_err(failed)
    }

    /// Takes out what is over.
    pub(super) fn expire(&mut self, now_ns: u64) -> Result<(), LiveError> {
        if self.until.is_empty() {
            return Ok(());
        }
        let table = &mut self.table;
        self.until.retain(|(upstreams, until)| {
            let on = *until > now_ns;
            if !on {
                // It fails only where there is no entry.
                let _ = table.remove(&key(upstreams));
            }
            on
        });
        if self.until.is_empty() {
            self.any.set(0, 0, 0).map_err(failed)?;
        }
        Ok(())
    }
}

fn failed(source: MapError) -> LiveError {
    LiveError::Map {
        name: "BOOSTS",
        source,
    }
}
