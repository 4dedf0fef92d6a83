//! What the kernel source is asked to watch. Decides nothing about the host.

use std::net::IpAddr;
use std::path::PathBuf;

use aya::maps::lpm_trie::Key;
use hopscope_ebpf::{MAX_HEAD_LEN, MAX_SNAP_LEN, MIN_HEAD_LEN};

use crate::model::UpstreamPattern;

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
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct LiveConfig {
    /// Names of gateway processes.
    pub gateways: Vec<String>,
    /// cgroup directories of gateways, either under the mount point or below the v2 root.
    pub cgroups: Vec<PathBuf>,
    /// Upstreams: whoever connects to one counts as a gateway.
    pub upstreams: Vec<UpstreamPattern>,
    /// Payload bytes kept of each segment. From `HEADS_FROM` on, response heads that are longer are kept as well.
    pub snap_len: u32,
    /// Payload bytes of a request that are held back in the kernel until it is known whether its exchange
    /// matters, from [`MIN_HEAD_LEN`] to [`MAX_HEAD_LEN`].
    pub request_head: u32,
    /// The same of a response.
    pub response_head: u32,
    /// Size of the ring between kernel and user space, rounded up to a power of two.
    pub ring_bytes: u32,
    /// Of how many healthy exchanges on a connection one is sent up in full; zero for none.
    pub sample: u32,
    /// Milliseconds after which a first response byte is late, so that its exchange is sent up.
    pub slow_first_byte_ms: u32,
    /// cgroups whose packets are looked at; empty for those of gateways, and of the resolvers that ask name
    /// servers for them. Where `upstreams` are given, that is the root: every process of the host.
    pub packets_of: Vec<PathBuf>,
    /// Whether system calls of gateways that fail are looked at. The kernel makes every system call of
    /// every process a little slower for that.
    pub system_calls: bool,
    /// Whether the accepted connections of gateways are looked at, so that it is known what their clients got.
    pub client_side: bool,
    /// Whether what gateways write and read inside TLS is looked at, where their TLS library can be asked.
    pub tls_plaintext: bool,
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
            // All that there is room for: what is cut off of a head hides how long its body is.
            request_head: MAX_HEAD_LEN,
            response_head: MAX_HEAD_LEN,
            ring_bytes: 8 << 20,
            sample: 1000,
            slow_first_byte_ms: 1000,
            packets_of: Vec::new(),
            system_calls: true,
            client_side: true,
            tls_plaintext: false,
            kernel_log: false,
        }
    }
}

impl LiveConfig {
    /// A length in the kernel: within its bounds, and without one where everything is wanted that there is
    /// room for. With a longer `snap_len`, segments without that room are not held back.
    pub(super) const fn head(len: u32) -> u32 {
        if len >= MAX_HEAD_LEN {
            MAX_SNAP_LEN
        } else if len < MIN_HEAD_LEN {
            MIN_HEAD_LEN
        } else {
            len
        }
    }
}

/// The addresses of a set of upstreams as the kernel programs see them (IPv4 mapped into IPv6), with the
/// bits that do not count cleared, and the number of bits that count.
pub(super) fn mapped(upstream: &UpstreamPattern) -> ([u8; 16], u8) {
    let (addr, prefix) = match upstream.network {
        None => return ([0; 16], 0),
        Some((IpAddr::V4(v4), prefix)) => (v4.to_ipv6_mapped(), prefix.saturating_add(96)),
        Some((IpAddr::V6(v6), prefix)) => (v6, prefix),
    };
    let prefix = prefix.min(128);
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    ((u128::from(addr) & mask).to_be_bytes(), prefix)
}

/// A set of upstreams as a key of the kernel's longest-prefix maps.
pub(super) fn key(upstream: &UpstreamPattern) -> Key<[u8; 18]> {
    let (addr, prefix) = mapped(upstream);
    let mut data = [0; 18];
    data[..2].copy_from_slice(&upstream.port.unwrap_or(0).to_be_bytes());
    data[2..].copy_from_slice(&addr);
    Key::new(16 + u32::from(prefix), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_as_the_kernel_matches_them() {
        let mapped = |text: &str| mapped(&text.parse().unwrap());
        let (addr, prefix) = mapped("10.1.2.3/8:80");
        assert_eq!((&addr[10..], prefix), (&[0xff, 0xff, 10, 0, 0, 0][..], 104));
        assert_eq!(mapped(":80"), ([0; 16], 0));
        let (addr, prefix) = mapped("[2001:db8::1]:80");
        assert_eq!(
            (addr[..4].to_vec(), prefix),
            (vec![0x20, 1, 0xd, 0xb8], 128)
        );
        assert_eq!(mapped("2001:db8::1/16").0[..4], [0x20, 1, 0, 0]);
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
