//! TLS on the hop: certificates that are wrong in one way each, upstreams that speak TLS over a library,
//! over `openssl s_server` or not at all, and how the gateways are told to speak to them.

pub mod gateway;
pub(crate) mod hello;
pub mod openssl;
pub mod pki;
pub mod scenario;
pub mod server;

use crate::tls::pki::Identity;

/// Protocol versions that a side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Versions {
    /// TLS 1.2 and 1.3.
    Both,
    /// TLS 1.2.
    Only12,
    /// TLS 1.3.
    Only13,
    /// TLS 1.1, which no gateway of the lab speaks.
    Only11,
}

/// How a gateway speaks TLS to an upstream. It always verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Versions that it offers.
    pub versions: Versions,
    /// Whether it says which name it wants (RFC 6066 section 3).
    pub sni: bool,
    /// Whether it looks certificates up in the lists of revoked ones.
    pub revocations: bool,
    /// What it shows of itself.
    pub identity: Option<Identity>,
    /// Whether it offers HTTP/2, and nothing else, in ALPN (RFC 7301).
    pub http2: bool,
}

impl Client {
    /// Offers both versions and the name.
    pub const DEFAULT: Self = Self {
        versions: Versions::Both,
        sni: true,
        revocations: false,
        identity: None,
        http2: false,
    };
}
