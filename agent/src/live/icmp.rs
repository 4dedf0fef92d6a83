//! ICMP and `ICMPv6` errors in the network namespaces of gateways: "destination unreachable" with
//! "fragmentation needed", "packet too big" and "time exceeded".
//!
//! The kernel tells a socket of an ICMP error by an errno alone, which does not say who sent it. A raw
//! socket a namespace shows the message itself. It takes nothing away from anyone: the kernel hands
//! raw sockets a copy.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, recvfrom, socket_with,
};

use super::{netns, process};
use crate::input::packet::{IcmpQuote, IpPacket, parse_icmp_v6, parse_ip, protocol};
use crate::model::IcmpError;

/// "Destination unreachable" and "time exceeded" of RFC 792.
const ERRORS_V4: [u8; 2] = [3, 11];
/// The same and "packet too big" of RFC 4443 section 3.
const ERRORS_V6: [u8; 3] = [1, 2, 3];
/// Length of an IPv6 header.
const V6_HEADER: usize = 40;
/// `ICMP_FILTER` of `linux/icmp.h` and `ICMPV6_FILTER` of `linux/icmpv6.h`, which have the same number.
const FILTER: libc::c_int = 1;
/// IP header with options, ICMP header, and what RFC 4443 section 2.4 quotes at most.
const MESSAGE_BYTES: usize = 1500;
/// Messages read from one socket before anything else gets its turn.
const AT_ONCE: usize = 256;

/// The raw sockets of one network namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The family, so that the two kinds of message are not confused.
    pub(super) fds: Vec<(Family, OwnedFd)>,
    /// The namespace's own addresses.
    pub(super) own: HashSet<IpAddr>,
}

/// Which ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Opens the sockets in the namespace of process `pid`.
pub(super) fn open(pid: u32) -> io::Result<Sockets> {
    let fds = netns::inside(&process::netns_path(pid), || {
        let mut fds = vec![(Family::V4, open_one(Family::V4)?)];
        // A kernel without IPv6 has no such family.
        fds.extend(open_one(Family::V6).ok().map(|fd| (Family::V6, fd)));
        Ok(fds)
    })?;
    Ok(Sockets {
        fds,
        own: own_addresses(pid),
    })
}

fn open_one(family: Family) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (domain, protocol) = match family {
        Family::V4 => (AddressFamily::INET, ipproto::ICMP),
        Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let fd = socket_with(domain, SocketType::RAW, flags, Some(protocol))?;
    filter(&fd, family)?;
    Ok(fd)
}

/// Has the kernel drop every other type of message, so that a flood of echo requests costs nothing.
fn filter(fd: &OwnedFd, family: Family) -> io::Result<()> {
    // A set bit blocks its type, in both filters (`linux/icmp.h`, RFC 3542 section 3.2).
    let but = |kinds: &[u8]| {
        kinds
            .iter()
            .fold(u32::MAX, |mask, kind| mask & !(1 << kind))
    };
    let (level, mask) = match family {
        Family::V4 => (libc::SOL_RAW, vec![but(&ERRORS_V4)]),
        Family::V6 => {
            let mut mask = vec![u32::MAX; 8];
            mask[0] = but(&ERRORS_V6);
            (libc::SOL_ICMPV6, mask)
        }
    };
    let len = libc::socklen_t::try_from(size_of_val(mask.as_slice())).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes from the slice, which lives through the call, and keeps
    // no pointer to it.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, FILTER, mask.as_ptr().cast(), len) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads what has arrived: the errors, and each message from its IP header on to the end of the quoted
/// TCP header.
pub(super) fn drain(netns: u64, sockets: &Sockets, mut found: impl FnMut(IcmpError, &[u8])) {
    let mut buffer = [0; V6_HEADER + MESSAGE_BYTES];
    for (family, fd) in &sockets.fds {
        for _ in 0..AT_ONCE {
            // In front of an `ICMPv6` message there is room for the header that it comes without.
            let start = match family {
                Family::V4 => 0,
                Family::V6 => V6_HEADER,
            };
            let Ok((len, _, from)) = recvfrom(fd, &mut buffer[start..], RecvFlags::empty()) else {
                break;
            };
            let bytes = buffer.get(start..start + len).unwrap_or_default();
            let message = match family {
                Family::V4 => parse_v4(bytes).map(|quote| (header_v4(bytes), quote)),
                Family::V6 => from
                    .and_then(|from| SocketAddrV6::try_from(from).ok())
                    .and_then(|from| parse_icmp_v6(bytes, *from.ip()))
                    .map(|quote| (V6_HEADER, quote)),
            };
            let Some((header, quote)) = message else {
                continue;
            };
            if *family == Family::V6
                && let Some(head) = buffer.first_chunk_mut()
            {
                *head = header_v6(&quote, len);
            }
            let packet = buffer.get(..header + quote.head_len).unwrap_or_default();
            found(error(&quote, netns, &sockets.own), packet);
        }
    }
}

/// Length of the IPv4 header that `bytes` begin with.
fn header_v4(bytes: &[u8]) -> usize {
    bytes
        .first()
        .map_or(0, |first| usize::from(first & 0x0f) * 4)
}

/// The header that an `ICMPv6` message of `len` bytes came with, as far as it is known: its hop limit is
/// left zero.
fn header_v6(quote: &IcmpQuote, len: usize) -> [u8; V6_HEADER] {
    let mut header = [0; V6_HEADER];
    header[0] = 0x60;
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    header[4..6].copy_from_slice(&len.to_be_bytes());
    header[6] = protocol::ICMPV6;
    for (room, address) in [(8, quote.from), (24, quote.src.ip())] {
        if let IpAddr::V6(address) = address {
            header[room..room + 16].copy_from_slice(&address.octets());
        }
    }
    header
}

/// Reads a message as a raw IPv4 socket gives it, IP header included.
fn parse_v4(bytes: &[u8]) -> Option<IcmpQuote> {
    let len = u32::try_from(bytes.len()).ok()?;
    match parse_ip(bytes, len).ok()? {
        IpPacket::Icmp(quote) => Some(quote),
        _ => None,
    }
}

/// The message as it concerns a hop of a gateway in the namespace whose own addresses are `own`.
fn error(quote: &IcmpQuote, netns: u64, own: &HashSet<IpAddr>) -> IcmpError {
    let from = quote.from;
    IcmpError {
        netns,
        from,
        from_self: from == quote.src.ip() || from.is_loopback() || own.contains(&from),
        kind: quote.kind,
        code: quote.code,
        local: quote.src,
        upstream: quote.dst,
    }
}

/// The addresses of the namespace of process `pid`; none where they cannot be read.
fn own_addresses(pid: u32) -> HashSet<IpAddr> {
    let read =
        |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let mut own = addresses_v4(&read("fib_trie"));
    own.extend(addresses_v6(&read("if_inet6")));
    own
}

/// Local addresses in the text of `fib_trie`: a leaf, then a line that says what it is.
fn addresses_v4(text: &str) -> HashSet<IpAddr> {
    let mut leaf = None;
    let mut own = HashSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(addr) = line.strip_prefix("|-- ") {
            leaf = addr.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            own.extend(leaf.map(IpAddr::V4));
        }
    }
    own
}

/// Addresses in the text of `if_inet6`: thirty-two hexadecimal digits begin each line.
fn addresses_v6(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines()
        .filter_map(|line| u128::from_str_radix(line.split(' ').next()?, 16).ok())
        .map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
}

/// The sockets of every namespace that has a gateway, by its inode.
pub(super) type Namespaces = HashMap<u64, Sockets>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Host unreachable from 10.0.0.254 about 10.0.0.1:40000 -> 10.0.0.2:80, quoting eight bytes.
    fn v4() -> Vec<u8> {
        let mut out = vec![
            0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 254, 10, 0, 0, 1,
        ];
        out.extend([3, 1, 0, 0, 0, 0, 0, 0]);
        out.extend([
            0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        out.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1]);
        out
    }

    fn v6() -> Vec<u8> {
        let mut out = vec![1, 3, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 20, 6, 64];
        out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        out.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1]);
        out
    }

    #[test]
    fn the_quoted_segment_is_read() {
        let found = parse_v4(&v4()).unwrap();
        assert_eq!(found.from, "10.0.0.254".parse::<IpAddr>().unwrap());
        assert_eq!(found.code, 1);
        assert_eq!(found.src, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(found.dst, "10.0.0.2:80".parse().unwrap());
        let found = parse_icmp_v6(&v6(), "fd00::9".parse().unwrap()).unwrap();
        assert_eq!(
            (found.code, found.dst),
            (3, "[fd00::2]:80".parse().unwrap())
        );
    }

    #[test]
    fn the_host_itself_is_told_from_a_router() {
        let own = HashSet::from(["10.0.0.254".parse().unwrap()]);
        let found = parse_v4(&v4()).unwrap();
        assert!(error(&found, 1, &own).from_self);
        assert!(!error(&found, 1, &HashSet::new()).from_self);
        let mut from_source = v4();
        from_source[12..16].copy_from_slice(&[10, 0, 0, 1]);
        let found = parse_v4(&from_source).unwrap();
        assert!(error(&found, 1, &HashSet::new()).from_self);
    }

    #[test]
    fn the_missing_header_is_made() {
        let message = v6();
        let quote = parse_icmp_v6(&message, "fd00::9".parse().unwrap()).unwrap();
        let packet = [&header_v6(&quote, message.len())[..], &message].concat();
        let len = u32::try_from(packet.len()).unwrap();
        assert_eq!(parse_ip(&packet, len).ok(), Some(IpPacket::Icmp(quote)));
    }

    #[test]
    fn other_messages_are_left_alone() {
        let change = |at: usize, value: u8| {
            let mut bytes = v4();
            bytes[at] = value;
            parse_v4(&bytes)
        };
        assert_eq!(change(20, 8), None, "an echo request");
        assert_eq!(change(37, 17), None, "a quoted datagram");
        assert_eq!(change(35, 1), None, "a later fragment");
        for len in 0..v4().len() {
            assert_eq!(parse_v4(&v4()[..len]), None, "{len}");
        }
    }

    #[test]
    fn own_addresses_are_read() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n\
            \x20    |-- 10.0.0.1\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n";
        assert_eq!(
            addresses_v4(text),
            HashSet::from(["10.0.0.1".parse().unwrap()])
        );
        let text = "00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(
            addresses_v6(text).collect::<Vec<_>>(),
            ["::1".parse::<IpAddr>().unwrap()]
        );
        assert!(own_addresses(std::process::id()).contains(&IpAddr::from([127, 0, 0, 1])));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, at in 0_usize..60, value: u8) {
            let _ = parse_v4(&bytes);
            let _ = parse_icmp_v6(&bytes, Ipv6Addr::LOCALHOST);
            for mut changed in [v4(), v6()] {
                let at = at % changed.len();
                changed[at] = value;
                let _ = parse_v4(&changed);
                let _ = parse_icmp_v6(&changed, Ipv6Addr::LOCALHOST);
            }
        }
    }
}
