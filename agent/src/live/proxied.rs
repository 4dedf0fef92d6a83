//! Whom a balancer names as the client of a connection, by the header of the PROXY protocol with which it begins that
//! (HAProxy's `proxy-protocol.txt`). The kernel programs find the header and where it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hopscope_ebpf::PROXY_SIGNATURE;

/// The client that `header` names; `None` where it names none: for a connection of the balancer's own, for one of a unix
/// socket, and where the header cannot be read.
pub(super) fn client(header: &[u8]) -> Option<SocketAddr> {
    match header.strip_prefix(&PROXY_SIGNATURE) {
        Some(rest) => of_binary(rest),
        None => of_line(header),
    }
}

/// Version 1 (section 2.1): `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`.
fn of_line(header: &[u8]) -> Option<SocketAddr> {
    let line = str::from_utf8(header).ok()?.strip_suffix("\r\n")?;
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let is_v4 = match words.next()? {
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let mut address = || {
        let address: IpAddr = words.next()?.parse().ok()?;
        (address.is_ipv4() == is_v4).then_some(address)
    };
    let (source, _) = (address()?, address()?);
    let mut port = || -> Option<u16> {
        let word = words.next()?;
        let digits = word.bytes().all(|byte| byte.is_ascii_digit());
        word.parse().ok().filter(|_| digits)
    };
    let (source_port, _) = (port()?, port()?);
    words
        .next()
        .is_none()
        .then_some(SocketAddr::new(source, source_port))
}

/// What follows the signature of version 2: version and command, family and transport, a length, and then addresses and
/// ports. What else there is stands behind these and may be cut off.
fn of_binary(rest: &[u8]) -> Option<SocketAddr> {
    /// Version 2 with the command `PROXY`. With `LOCAL` addresses mean nothing.
    const PROXY: u8 = 0x21;
    /// `AF_INET` and `AF_INET6`, in the upper half of their byte.
    const V4: u8 = 1;
    const V6: u8 = 2;

    let (&[command, family, high, low], rest) = rest.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes([high, low]));
    let rest = rest.get(..len).unwrap_or(rest);
    let (source, ports): (IpAddr, &[u8]) = match (command, family >> 4) {
        (PROXY, V4) => {
            let (addresses, ports) = rest.split_first_chunk::<8>()?;
            let [source @ .., _, _, _, _] = *addresses;
            (Ipv4Addr::from(source).into(), ports)
        }
        (PROXY, V6) => {
            let (source, rest) = rest.split_first_chunk::<16>()?;
            let (_, ports) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*source).into(), ports)
        }
        _ => return None,
    };
    let (&[high, low, _, _], _) = ports.split_first_chunk()?;
    Some(SocketAddr::new(source, u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2 with these addresses.
    fn binary(command: u8, source: SocketAddr, destination: SocketAddr, more: &[u8]) -> Vec<u8> {
        let (family, addresses) = match (source.ip(), destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (0x11, [source.octets(), destination.octets()].concat())
            }
            (source, destination) => {
                let octets = |ip| match ip {
                    IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip).octets(),
                    IpAddr::V6(ip) => ip.octets(),
                };
                (0x21, [octets(source), octets(destination)].concat())
            }
        };
        let ports = [source.port(), destination.port()].map(u16::to_be_bytes);
        let body = [&addresses, ports.as_flattened(), more].concat();
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&PROXY_SIGNATURE[..], &[command, family], &len, &body].concat()
    }

    #[test]
    fn a_header_without_a_client_names_none() {
        let one = "192.0.2.1:1".parse().unwrap();
        let other = "192.0.2.2:2".parse().unwrap();
        for none in [
            &b""[..],
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 gateway 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.\xff 192.0.2.2 1 2\r\n",
            // One of the balancer's own, and of a unix socket.
            &binary(0x20, one, other, &[]),
            &[&PROXY_SIGNATURE[..], b"\x21\x31\x00\xd8", &[7; 92]].concat(),
            // Another version, no addresses, and too few bytes of them.
            &binary(0x31, one, other, &[]),
            &[&PROXY_SIGNATURE[..], b"\x21\x00\x00\x00"].concat(),
            &[&PROXY_SIGNATURE[..], b"\x21\x11\x00\x0b", &[7; 12]].concat(),
        ] {
            assert_eq!(client(none), None, "{}", none.escape_ascii());
        }
    }

    fn end() -> impl Strategy<Value = SocketAddr> {
        any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
    }

    proptest! {
        #[test]
        fn the_client_that_is_named_is_read(
            source in end(), destination in end(), more in proptest::collection::vec(any::<u8>(), 0..90),
        ) {
            let mapped = |end: SocketAddr| match end.ip() {
                IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), end.port()),
                IpAddr::V6(_) => end,
            };
            let alike = source.is_ipv4() == destination.is_ipv4();
            let seen = if alike { source } else { mapped(source) };
            let whole = binary(0x21, source, destination, &more);
            prop_assert_eq!(client(&whole), Some(seen));
            let cut = if seen.is_ipv4() { 28 } else { 52 };
            prop_assert_eq!(client(&whole[..cut]), Some(seen));
            prop_assert_eq!(client(&whole[..cut - 1]), None);

            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
            prop_assert_eq!(client(line.as_bytes()), alike.then_some(source));
        }

        #[test]
        fn a_header_may_be_anything(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), words in "[PROXYTC46 0-9a-f.:+\r\n-]{0,108}",
        ) {
            let _ = client(&bytes);
            let _ = client(words.as_bytes());
            let _ = client(&[b"PROXY TCP4 ", words.as_bytes()].concat());
            let _ = client(&[&PROXY_SIGNATURE[..], &bytes].concat());
            let _ = client(&[&PROXY_SIGNATURE[..], b"\x21\x11", &bytes].concat());
        }
    }
}
