//! What narrows an analysis: the gateway's addresses and the upstreams of interest.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;

use thiserror::Error;

/// Which hops of a capture are analysed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Addresses of the gateway; empty for any.
    pub gateways: Vec<IpAddr>,
    /// Upstreams; empty for any.
    pub upstreams: Vec<UpstreamFilter>,
}

impl Options {
    /// Whether hops between these ends are of interest.
    pub(super) fn admit(&self, local: SocketAddr, upstream: SocketAddr) -> bool {
        (self.gateways.is_empty() || self.gateways.contains(&local.ip()))
            && (self.upstreams.is_empty()
                || self.upstreams.iter().any(|filter| filter.matches(upstream)))
    }

    /// Whether the options tell that `a` is the gateway (true) or `b` (false).
    pub(super) fn names_gateway(&self, a: SocketAddr, b: SocketAddr) -> Option<bool> {
        if self.gateways.is_empty() && self.upstreams.is_empty() {
            return None;
        }
        match (self.admit(a, b), self.admit(b, a)) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }
}

/// Addresses, and maybe a port: `10.0.0.0/8`, `10.0.0.7:8080`, `[2001:db8::/32]:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamFilter {
    network: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

impl UpstreamFilter {
    /// Whether an upstream is meant.
    pub fn matches(&self, upstream: SocketAddr) -> bool {
        let same_network = match (self.network, upstream.ip()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let distance = u32::from(network) ^ u32::from(address);
                distance.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let distance = u128::from(network) ^ u128::from(address);
                distance.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        };
        same_network && self.port.is_none_or(|port| port == upstream.port())
    }
}

impl fmt::Display for UpstreamFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.port) {
            (network, None) => write!(f, "{network}/{}", self.prefix),
            (IpAddr::V4(network), Some(port)) => write!(f, "{network}/{}:{port}", self.prefix),
            (IpAddr::V6(network), Some(port)) => write!(f, "[{network}/{}]:{port}", self.prefix),
        }
    }
}

/// An upstream that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "not an upstream: {0:?}; write ADDRESS, NETWORK/PREFIX or either with :PORT, IPv6 in brackets then"
)]
pub struct UpstreamFilterError(String);

impl FromStr for UpstreamFilter {
    type Err = UpstreamFilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| UpstreamFilterError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<UpstreamFilter> {
    let (network, port) = if let Some(rest) = text.strip_prefix('[') {
        let (network, rest) = rest.split_once(']')?;
        match rest {
            "" => (network, None),
            rest => (network, Some(rest.strip_prefix(':')?)),
        }
    } else {
        match text.split_once(':') {
            // More than one colon is an IPv6 address without brackets, so without a port.
            Some((network, port)) if !port.contains(':') => (network, Some(port)),
            _ => (text, None),
        }
    };
    let port = port.map(str::parse).transpose().ok()?;
    let (address, prefix) = match network.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
        None => (network, None),
    };
    let network: IpAddr = address.parse().ok()?;
    let widest = if network.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(widest);
    (prefix <= widest).then_some(UpstreamFilter {
        network,
        prefix,
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, upstream: &str) -> bool {
        let filter: UpstreamFilter = filter.parse().unwrap();
        filter.matches(upstream.parse().unwrap())
    }

    #[test]
    fn networks_and_ports() {
        assert!(matches("10.0.0.0/8", "10.9.8.7:1"));
        assert!(!matches("10.0.0.0/8", "11.0.0.1:1"));
        assert!(matches("10.0.0.7", "10.0.0.7:80"));
        assert!(matches("10.0.0.7:80", "10.0.0.7:80"));
        assert!(!matches("10.0.0.7:80", "10.0.0.7:81"));
        assert!(matches("0.0.0.0/0:80", "1.2.3.4:80"));
        assert!(!matches("0.0.0.0/0", "[::1]:80"));
        assert!(matches("2001:db8::/32", "[2001:db8:1::9]:80"));
        assert!(matches("[2001:db8::/32]:80", "[2001:db8:1::9]:80"));
        assert!(matches("[::1]:80", "[::1]:80"));
        assert!(!matches("[::1]:80", "[::1]:81"));
    }

    #[test]
    fn shown_as_it_is_read() {
        for text in [
            "10.0.0.0/8",
            "10.0.0.0/8:80",
            "2001:db8::/32",
            "[::1/128]:80",
        ] {
            let filter: UpstreamFilter = text.parse().unwrap();
            assert_eq!(filter.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "a",
            "10.0.0.1/33",
            "10.0.0.1:",
            "10.0.0.1:70000",
            "[::1",
            "[::1]80",
        ] {
            assert!(text.parse::<UpstreamFilter>().is_err(), "{text}");
        }
    }
}
