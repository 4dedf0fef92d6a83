//! What narrows an analysis: the gateway's addresses and the upstreams of interest.

use core::net::{IpAddr, SocketAddr};

use crate::model::UpstreamPattern;

/// Which hops of a capture are analysed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Addresses of the gateway; empty for any.
    pub gateways: Vec<IpAddr>,
    /// Upstreams; empty for any.
    pub upstreams: Vec<UpstreamPattern>,
}

impl Options {
    /// Whether hops between these ends are of interest.
    pub(super) fn admit(&self, local: SocketAddr, upstream: SocketAddr) -> bool {
        (self.gateways.is_empty() || self.gateways.contains(&local.ip()))
            && (self.upstreams.is_empty()
                || self
                    .upstreams
                    .iter()
                    .any(|pattern| pattern.matches(upstream)))
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
