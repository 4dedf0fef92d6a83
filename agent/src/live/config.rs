//! What the kernel source is asked to watch. Decides nothing about the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Names of the gateways that are recognised without any configuration. A name is that of the process,
/// at most fifteen bytes: the kernel keeps no more.
const GATEWAYS: &[&str] = &[
    "nginx",
    "openresty",
    "angie",
    "haproxy",
    "envoy",
    "apache2",
    "httpd",
    "caddy",
    "traefik",
    "varnishd",
    "cache-main",
    "squid",
    "lighttpd",
    "nghttpx",
    "traffic_server",
    // Apache Traffic Server names its process so.
    "[TS_MAIN]",
    "pingap",
    "sozu",
    "h2o",
    "hitch",
    "pound",
    "kong",
    "tengine",
    "linkerd2-proxy",
    "pilot-agent",
    "oauth2-proxy",
];

/// What to watch and how much to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveConfig {
    /// Names of gateway processes.
    pub gateways: Vec<String>,
    /// cgroup directories of gateways, either under the mount point or below the v2 root.
    pub cgroups: Vec<PathBuf>,
    /// Upstreams: whoever connects to one counts as a gateway.
    pub upstreams: Vec<UpstreamMatch>,
    /// Payload bytes kept of each segment.
    pub snap_len: u32,
    /// Size of the ring between kernel and user space, rounded up to a power of two.
    pub ring_bytes: u32,
    /// Whether the kernel programs' own debug lines go to `tracing`.
    pub kernel_log: bool,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            gateways: GATEWAYS.iter().map(ToString::to_string).collect(),
            cgroups: Vec::new(),
            upstreams: Vec::new(),
            snap_len: 2048,
            ring_bytes: 8 << 20,
            kernel_log: false,
        }
    }
}

/// Upstream addresses and ports: `CIDR`, `CIDR:PORT`, `ADDR:PORT`, `[V6]:PORT`, `*:PORT` or `:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamMatch {
    /// First address of the range; the unspecified IPv6 address with prefix zero for any of both
    /// families.
    pub addr: IpAddr,
    /// Bits that count.
    pub prefix: u8,
    /// The port, or any.
    pub port: Option<u16>,
}

/// Text that is no [`UpstreamMatch`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "cannot read upstream {text:?}: {problem}; write it as 10.0.0.0/8, 10.0.0.7:8080, [fd00::/8]:443 or :8080"
)]
pub struct UpstreamMatchError {
    text: String,
    problem: &'static str,
}

impl UpstreamMatch {
    /// Any address, this port.
    const fn any(port: u16) -> Self {
        Self {
            addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            prefix: 0,
            port: Some(port),
        }
    }

    /// The address as the kernel programs see it (IPv4 mapped into IPv6) with the bits that do not
    /// count cleared, and the number of bits that count.
    pub(super) fn mapped(&self) -> ([u8; 16], u8) {
        let (addr, prefix) = match self.addr {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), self.prefix.saturating_add(96)),
            IpAddr::V6(v6) => (v6, self.prefix),
        };
        let prefix = prefix.min(128);
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        ((u128::from(addr) & mask).to_be_bytes(), prefix)
    }

    /// Whether this address and port belong to it.
    pub fn matches(&self, addr: IpAddr, port: u16) -> bool {
        let (own, prefix) = self.mapped();
        let (other, _) = Self {
            addr,
            prefix: if addr.is_ipv4() { 32 } else { 128 },
            port: None,
        }
        .mapped();
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        u128::from_be_bytes(own) == u128::from_be_bytes(other) & mask
            && self.port.is_none_or(|own| own == port)
    }
}

impl FromStr for UpstreamMatch {
    type Err = UpstreamMatchError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.trim()).map_err(|problem| UpstreamMatchError {
            text: text.to_owned(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<UpstreamMatch, &'static str> {
    if let Some(port) = text.strip_prefix("*:").or_else(|| {
        // "::1" and "::/0" begin with a colon as well, and are addresses.
        text.strip_prefix(':').filter(|rest| !rest.contains(':'))
    }) {
        return Ok(UpstreamMatch::any(parse_port(port)?));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, after) = rest
            .split_once(']')
            .ok_or("the closing bracket is missing")?;
        // Both "[fd00::/8]:443" and "[fd00::]/8:443" are in use.
        let (suffix, port) = match after.rsplit_once(':') {
            Some((suffix, port)) => (suffix, Some(parse_port(port)?)),
            None => (after, None),
        };
        let range = format!("{inner}{suffix}");
        return parse_range(&range, port);
    }
    if text.parse::<Ipv6Addr>().is_ok() || text.matches(':').count() > 1 {
        return parse_range(text, None);
    }
    match text.rsplit_once(':') {
        Some((range, port)) => parse_range(range, Some(parse_port(port)?)),
        None => parse_range(text, None),
    }
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    match text.parse() {
        Ok(0) | Err(_) => Err("the port is not a number from 1 to 65535"),
        Ok(port) => Ok(port),
    }
}

fn parse_range(text: &str, port: Option<u16>) -> Result<UpstreamMatch, &'static str> {
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (addr, Some(prefix)),
        None => (text, None),
    };
    let addr: IpAddr = addr
        .parse()
        .map_err(|_| "the address is neither IPv4 nor IPv6")?;
    let bits = match addr {
        IpAddr::V4(Ipv4Addr { .. }) => 32,
        IpAddr::V6(_) => 128,
    };
    let prefix = match prefix {
        None => bits,
        Some(text) => text
            .parse()
            .ok()
            .filter(|prefix| *prefix <= bits)
            .ok_or("the prefix length does not fit the address")?,
    };
    Ok(UpstreamMatch { addr, prefix, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, u8, Option<u16>) {
        let found: UpstreamMatch = text.parse().unwrap();
        (found.addr.to_string(), found.prefix, found.port)
    }

    #[test]
    fn every_form_is_read() {
        for (text, addr, prefix, port) in [
            ("10.0.0.0/8", "10.0.0.0", 8, None),
            ("10.0.0.0/8:80", "10.0.0.0", 8, Some(80)),
            ("10.0.0.7:8080", "10.0.0.7", 32, Some(8080)),
            ("10.0.0.7", "10.0.0.7", 32, None),
            ("fd00::1", "fd00::1", 128, None),
            ("::1", "::1", 128, None),
            ("::/0", "::", 0, None),
            ("fd00::/8", "fd00::", 8, None),
            ("[fd00::1]:443", "fd00::1", 128, Some(443)),
            ("[fd00::/8]:443", "fd00::", 8, Some(443)),
            ("[fd00::]/8:443", "fd00::", 8, Some(443)),
            ("*:9000", "::", 0, Some(9000)),
            (":9000", "::", 0, Some(9000)),
        ] {
            assert_eq!(parsed(text), (addr.to_owned(), prefix, port), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for text in [
            "",
            "*",
            "web",
            "10.0.0.0/33",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "[::1",
            "::1/129",
            ":",
            "*:x",
        ] {
            let error = text.parse::<UpstreamMatch>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn matches_what_the_kernel_matches() {
        let range: UpstreamMatch = "10.1.2.3/8:80".parse().unwrap();
        assert!(range.matches("10.200.0.1".parse().unwrap(), 80));
        assert!(!range.matches("10.200.0.1".parse().unwrap(), 81));
        assert!(!range.matches("11.0.0.1".parse().unwrap(), 80));
        assert!(!range.matches("fd00::1".parse().unwrap(), 80));
        assert_eq!(range.mapped().0[12..], [10, 0, 0, 0]);
        let any: UpstreamMatch = ":80".parse().unwrap();
        assert!(any.matches("192.0.2.1".parse().unwrap(), 80));
        assert!(any.matches("2001:db8::1".parse().unwrap(), 80));
    }

    #[test]
    fn built_in_names_fit_the_kernel() {
        assert!(
            GATEWAYS
                .iter()
                .all(|name| !name.is_empty() && name.len() < hopscope_ebpf::COMM_LEN)
        );
    }
}
