//! Which events a reader wants.
//!
//! Decides how causes and upstreams are written and matched; a filter is checked in full before the
//! first event is looked at.

use core::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::model::{Cause, HopEvent, Timestamp, catalogue};

/// A checked filter. Empty lists let everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    causes: Vec<Cause>,
    upstreams: Vec<UpstreamPattern>,
    since: Option<Timestamp>,
}

/// Why a filter was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// No cause and no family has this name.
    #[error(
        "unknown cause `{0}`: give an id such as tcp.connect_refused or a family such as tcp.*; \
         `hopscope explain` lists them"
    )]
    Cause(String),
    /// Not an upstream pattern.
    #[error(
        "bad upstream `{0}`: give ADDRESS, ADDRESS:PORT, CIDR, CIDR:PORT or :PORT, with IPv6 in \
         brackets before a port, such as 10.0.0.0/8:8080 or [2001:db8::1]:80"
    )]
    Upstream(String),
    /// Not a time that hopscope can hold.
    #[error("bad time in `since`: give one between 1970 and 2554")]
    Since,
}

impl Filter {
    /// A filter from its written form.
    pub fn parse<C, U>(
        causes: &[C],
        upstreams: &[U],
        since: Option<Timestamp>,
    ) -> Result<Self, FilterError>
    where
        C: AsRef<str>,
        U: AsRef<str>,
    {
        let mut filter = Self {
            since,
            ..Self::default()
        };
        for cause in causes {
            filter.add_causes(cause.as_ref())?;
        }
        for upstream in upstreams {
            filter.upstreams.push(upstream.as_ref().parse()?);
        }
        Ok(filter)
    }

    fn add_causes(&mut self, text: &str) -> Result<(), FilterError> {
        let before = self.causes.len();
        if let Some(family) = text.strip_suffix(".*") {
            let rows = catalogue().iter();
            let members =
                rows.filter(|row| row.id.split_once('.').is_some_and(|id| id.0 == family));
            self.causes.extend(members.map(|row| row.cause));
        } else {
            self.causes.extend(Cause::from_id(text));
        }
        if self.causes.len() == before {
            return Err(FilterError::Cause(text.to_owned()));
        }
        Ok(())
    }

    /// Whether the filter lets `event` through.
    pub fn matches(&self, event: &HopEvent) -> bool {
        (self.causes.is_empty() || self.causes.contains(&event.cause))
            && self.since.is_none_or(|since| event.time >= since)
            && (self.upstreams.is_empty() || {
                let upstream = event.upstream.socket_addr();
                self.upstreams
                    .iter()
                    .any(|pattern| pattern.matches(upstream))
            })
    }
}

/// A set of upstreams: an address or a network, a port, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamPattern {
    /// An address with the number of its bits that count.
    network: Option<(IpAddr, u8)>,
    port: Option<u16>,
}

impl UpstreamPattern {
    /// Whether `upstream` belongs to it.
    pub fn matches(&self, upstream: SocketAddr) -> bool {
        if self.port.is_some_and(|port| port != upstream.port()) {
            return false;
        }
        let Some((network, prefix)) = self.network else {
            return true;
        };
        // An IPv4 upstream of an IPv6 socket is the same upstream.
        match (network, upstream.ip().to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = u32::from(network) ^ u32::from(address);
                differ.checked_shr(32 - u32::from(prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = u128::from(network) ^ u128::from(address);
                differ.checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for UpstreamPattern {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_pattern(text).ok_or_else(|| FilterError::Upstream(text.to_owned()))
    }
}

fn parse_pattern(text: &str) -> Option<UpstreamPattern> {
    let (network, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            if !after.is_empty() && !after.starts_with([':', '/']) {
                return None;
            }
            match after.rsplit_once(':') {
                // Both `[net/prefix]:port` and `[net]/prefix:port` are in use.
                Some((prefix, port)) => (format!("{inside}{prefix}"), Some(port)),
                None => (format!("{inside}{after}"), None),
            }
        }
        None if text.matches(':').count() == 1 => {
            let (network, port) = text.split_once(':')?;
            (network.to_owned(), Some(port))
        }
        None => (text.to_owned(), None),
    };
    let port = match port {
        Some(port) => Some(number::<u16>(port)?),
        None => None,
    };
    if port.is_some() && matches!(network.as_str(), "" | "*") {
        return Some(UpstreamPattern {
            network: None,
            port,
        });
    }
    let (address, prefix) = match network.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (network.as_str(), None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        Some(prefix) => number::<u8>(prefix)?,
        None => bits,
    };
    (prefix <= bits).then_some(UpstreamPattern {
        network: Some((address, prefix)),
        port,
    })
}

/// Digits only: `parse` alone would let a sign through.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}
