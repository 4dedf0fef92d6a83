//! Where an upstream is reached: over IP, through a unix socket of the gateway's own host, or nowhere, as
//! its name gave no address.

use core::fmt;
use core::net::{AddrParseError, IpAddr, SocketAddr};
use core::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// What is written before a unix path, by gateways and by us.
const UNIX: &str = "unix:";

/// What is written where there is no address.
const NONE: &str = "none";

/// Where a connect was to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address and a port.
    Inet(SocketAddr),
    /// Path of a unix socket, or `@` and an abstract name.
    Unix(Arc<str>),
    /// Nowhere: no upstream was chosen, or it has no known address. Shown as `none`.
    None,
}

impl From<SocketAddr> for Target {
    fn from(upstream: SocketAddr) -> Self {
        Self::Inet(upstream)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(upstream) => fmt::Display::fmt(upstream, f),
            // Padding applies to the whole.
            Self::Unix(path) => f.pad(&format!("{UNIX}{path}")),
            Self::None => f.pad(NONE),
        }
    }
}

/// The address of an upstream without its port. Shown and serialised as `10.0.0.1`, `::1`,
/// `unix:/run/app.sock` or `none`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// IP address.
    Ip(IpAddr),
    /// Path of a unix socket, or `@` and an abstract name.
    Unix(Arc<str>),
    /// No upstream was chosen, or its address is not known.
    None,
}

impl From<IpAddr> for UpstreamAddress {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => fmt::Display::fmt(address, f),
            Self::Unix(path) => f.pad(&format!("{UNIX}{path}")),
            Self::None => f.pad(NONE),
        }
    }
}

impl FromStr for UpstreamAddress {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(UNIX) {
            Some(path) => Ok(Self::Unix(Arc::from(path))),
            None if text == NONE => Ok(Self::None),
            None => text.parse().map(Self::Ip),
        }
    }
}

impl Serialize for UpstreamAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in [
            "10.0.0.1",
            "2001:db8::7",
            "unix:/run/app.sock",
            "unix:@app",
            "none",
        ] {
            let address: UpstreamAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(
                serde_json::to_string(&address).unwrap(),
                format!("{text:?}")
            );
        }
        assert!("/run/app.sock".parse::<UpstreamAddress>().is_err());
    }

    #[test]
    fn a_target_fills_its_column() {
        let target = Target::Unix(Arc::from("/a"));
        assert_eq!(format!("{target:10}|"), "unix:/a   |");
        let target = Target::from(SocketAddr::from(([10, 0, 0, 1], 80)));
        assert_eq!(format!("{target:12}|"), "10.0.0.1:80 |");
    }
}
