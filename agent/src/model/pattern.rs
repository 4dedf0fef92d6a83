//! How people write a set of upstreams.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;

use thiserror::Error;

/// A set of upstreams: an address or a network, a port, or both. Written `10.0.0.7`, `10.0.0.0/8`,
/// either with `:8080`, `[2001:db8::/32]:443`, or `:8080` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamPattern {
    /// An address and how many of its bits count; none for any address.
    pub network: Option<(IpAddr, u8)>,
    /// The port; none for any.
    pub port: Option<u16>,
}

impl UpstreamPattern {
    /// Whether `upstream` belongs to it.
    pub fn matches(&self, upstream: SocketAddr) -> bool {
        if self.port.is_some_and(|port| port != upstream.port()) {
            return false;
        }
        // An IPv4 upstream of an IPv6 socket is the same upstream.
        match (self.network, upstream.ip().to_canonical()) {
            (None, _) => true,
            (Some((IpAddr::V4(network), prefix)), IpAddr::V4(address)) => {
                let differ = u32::from(network) ^ u32::from(address);
                differ.leading_zeros() >= u32::from(prefix)
            }
            (Some((IpAddr::V6(network), prefix)), IpAddr::V6(address)) => {
                let differ = u128::from(network) ^ u128::from(address);
                differ.leading_zeros() >= u32::from(prefix)
            }
            _ => false,
        }
    }
}

impl fmt::Display for UpstreamPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.port) {
            (None, None) => f.write_str("*"),
            (None, Some(port)) => write!(f, ":{port}"),
            (Some((network, prefix)), None) => write!(f, "{network}/{prefix}"),
            (Some((network @ IpAddr::V4(_), prefix)), Some(port)) => {
                write!(f, "{network}/{prefix}:{port}")
            }
            (Some((network, prefix)), Some(port)) => write!(f, "[{network}/{prefix}]:{port}"),
        }
    }
}

/// An upstream that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "bad upstream `{0}`: give ADDRESS, ADDRESS:PORT, CIDR, CIDR:PORT or :PORT, with IPv6 in \
     brackets before a port, such as 10.0.0.0/8:8080 or [2001:db8::1]:80"
)]
pub struct UpstreamPatternError(String);

impl FromStr for UpstreamPattern {
    type Err = UpstreamPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| UpstreamPatternError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<UpstreamPattern> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']')?;
        // Both `[network/prefix]:port` and `[network]/prefix:port` are in use.
        let (prefix, port) = match after.split_once(':') {
            Some((prefix, port)) => (prefix, Some(port)),
            None => (after, None),
        };
        return match prefix.strip_prefix('/') {
            Some(prefix) => pattern(inside, Some(prefix), port),
            None if prefix.is_empty() => split_pattern(inside, port),
            None => None,
        };
    }
    match text.split_once(':') {
        Some(("" | "*", port)) if !port.contains(':') => Some(UpstreamPattern {
            network: None,
            port: Some(port_number(port)?),
        }),
        Some((network, port)) if !port.contains(':') => split_pattern(network, Some(port)),
        // More than one colon: an IPv6 address, which takes a port only in brackets.
        _ => split_pattern(text, None),
    }
}

fn split_pattern(network: &str, port: Option<&str>) -> Option<UpstreamPattern> {
    match network.split_once('/') {
        Some((address, prefix)) => pattern(address, Some(prefix), port),
        None => pattern(network, None, port),
    }
}

fn pattern(address: &str, prefix: Option<&str>, port: Option<&str>) -> Option<UpstreamPattern> {
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        Some(prefix) => number(prefix)?,
        None => bits,
    };
    let port = match port {
        Some(port) => Some(port_number(port)?),
        None => None,
    };
    (prefix <= bits).then_some(UpstreamPattern {
        network: Some((address, prefix)),
        port,
    })
}

/// No connection goes to port zero.
fn port_number(text: &str) -> Option<u16> {
    number(text).filter(|port| *port != 0)
}

/// Digits only: `parse` alone would let a sign through.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, upstream: &str) -> bool {
        let pattern: UpstreamPattern = pattern.parse().unwrap();
        pattern.matches(upstream.parse().unwrap())
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
        assert!(matches("[2001:db8::]/32:80", "[2001:db8:1::9]:80"));
        assert!(matches("[2001:db8::]/32", "[2001:db8:1::9]:81"));
        for any in [":80", "*:80"] {
            assert!(matches(any, "10.0.0.7:80") && matches(any, "[::1]:80"));
            assert!(!matches(any, "10.0.0.7:81"));
        }
        assert!(matches("10.0.0.0/8:80", "[::ffff:10.0.0.7]:80"));
        assert!(matches("::/0", "[::1]:80") && !matches("::/0", "10.0.0.1:80"));
    }

    #[test]
    fn shown_as_it_is_read() {
        for text in [
            "10.0.0.0/8",
            "10.0.0.0/8:80",
            "2001:db8::/32",
            "[::1/128]:80",
            ":80",
        ] {
            let pattern: UpstreamPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
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
            "[::1]8/0:1",
            ":",
            "*",
            "10.0.0.1/+8",
            "10.0.0.1:+80",
            "10.0.0.1/",
            "::1/129",
        ] {
            assert!(text.parse::<UpstreamPattern>().is_err(), "{text}");
        }
    }
}
