//! Upstreams whose exchanges are all sent up for a while. The kernel keeps the times; here the entries
//! that are over are taken out, so that nobody looks for them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError};
use hopscope_ebpf::UpstreamKey;

use super::LiveError;
use super::load::{self, Table};

/// Boosts at once; the map has room for more.
const MAX_BOOSTS: usize = 1024;

/// The boosts that are on.
pub(super) struct Boosts {
    until: HashMap<[u8; 18], u64>,
    table: Table<[u8; 18], u64>,
    any: Array<MapData, u32>,
}

impl Boosts {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LiveError> {
        Ok(Self {
            until: HashMap::new(),
            table: load::take_map(ebpf, "BOOSTS")?,
            any: load::take_map(ebpf, "BOOSTING")?,
        })
    }

    /// Boosts `upstream` for as long as `time` from `now_ns`; zero ends it.
    pub(super) fn set(
        &mut self,
        upstream: SocketAddr,
        time: Duration,
        now_ns: u64,
    ) -> Result<(), LiveError> {
        let key = key(upstream);
        if time.is_zero() {
            self.until.insert(key, 0);
            return self.expire(now_ns);
        }
        if self.until.len() >= MAX_BOOSTS && !self.until.contains_key(&key) {
            return Err(LiveError::TooManyBoosts(MAX_BOOSTS));
        }
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let until = now_ns.saturating_add(time);
        self.table.insert(key, until, 0).map_err(failed)?;
        self.until.insert(key, until);
        self.any.set(0, 1, 0).map_err(failed)
    }

    /// Takes out what is over.
    pub(super) fn expire(&mut self, now_ns: u64) -> Result<(), LiveError> {
        if self.until.is_empty() {
            return Ok(());
        }
        let table = &mut self.table;
        self.until.retain(|key, until| {
            let on = *until > now_ns;
            if !on {
                // It fails only where there is no entry.
                let _ = table.remove(key);
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

/// An upstream as [`UpstreamKey`] lays it out.
fn key(upstream: SocketAddr) -> [u8; 18] {
    const _: () = assert!(size_of::<UpstreamKey>() == 18);
    let addr = match upstream.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut key = [0; 18];
    key[..2].copy_from_slice(&upstream.port().to_be_bytes());
    key[2..].copy_from_slice(&addr.octets());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_the_kernel_makes_them() {
        let v4 = key("10.1.2.3:8080".parse().unwrap());
        assert_eq!(v4[..2], [0x1f, 0x90]);
        assert_eq!(
            v4[2..],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]
        );
        assert_eq!(
            key("[2001:db8::1]:80".parse().unwrap())[2..6],
            [0x20, 1, 0xd, 0xb8]
        );
    }
}
