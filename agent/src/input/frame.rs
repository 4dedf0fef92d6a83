//! Link-layer frames: from the bytes that a capture file holds to an IP packet.
//!
//! Decides where the IP header begins, through VLAN tags, MPLS labels, `PPPoE` and the tunnels that
//! commonly lie between a gateway and its upstream (VXLAN, Geneve, GRE, IP in IP). Leaves link
//! types that carry no IP alone: they are an error, which the reader counts.

use core::fmt;

use thiserror::Error;

use super::packet::{
    IpLayer, IpPacket, PacketError, TcpPacket, clip, ip_layer, plain_segment, protocol, transport,
    u32_len,
};

/// A link type as pcap and pcapng number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback, family in the byte order of the capturing host.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// PPP, possibly in HDLC-like framing.
    pub const PPP: Self = Self(9);
    /// Raw IP, as some systems number it.
    pub const RAW_BSD: Self = Self(12);
    /// Raw IP, as `OpenBSD` numbers it.
    pub const RAW_OPENBSD: Self = Self(14);
    /// PPP in HDLC-like framing, or Cisco HDLC.
    pub const PPP_HDLC: Self = Self(50);
    /// `PPPoE` without its Ethernet header.
    pub const PPP_ETHER: Self = Self(51);
    /// Raw IP.
    pub const RAW: Self = Self(101);
    /// Cisco HDLC.
    pub const CISCO_HDLC: Self = Self(104);
    /// BSD loopback, family in network byte order.
    pub const LOOP: Self = Self(108);
    /// Linux cooked capture.
    pub const LINUX_SLL: Self = Self(113);
    /// Raw IPv4.
    pub const IPV4: Self = Self(228);
    /// Raw IPv6.
    pub const IPV6: Self = Self(229);
    /// What Wireshark decrypted and exported: [`super::pdu`].
    pub const PDU: Self = Self(252);
    /// Linux cooked capture version 2.
    pub const LINUX_SLL2: Self = Self(276);

    /// The name, for those that can be read.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NULL | Self::LOOP => "BSD loopback",
            Self::ETHERNET => "Ethernet",
            Self::PPP | Self::PPP_HDLC => "PPP",
            Self::RAW_BSD | Self::RAW_OPENBSD | Self::RAW => "raw IP",
            Self::PPP_ETHER => "PPPoE",
            Self::CISCO_HDLC => "Cisco HDLC",
            Self::LINUX_SLL => "Linux cooked",
            Self::LINUX_SLL2 => "Linux cooked v2",
            Self::IPV4 => "raw IPv4",
            Self::IPV6 => "raw IPv6",
            Self::PDU => "decrypted bytes",
            _ => return None,
        })
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "link type {}", self.0),
        }
    }
}

/// Why a frame gave no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Error)]
pub enum FrameError {
    /// A link type that hopscope does not know.
    #[error("link type not supported")]
    LinkType,
    /// Carries something else, such as ARP.
    #[error("not IP")]
    NotIp,
    /// The captured bytes end inside a link-layer or tunnel header.
    #[error("frame captured too short: its headers are cut off")]
    Truncated,
    /// More tunnels inside each other than anybody builds.
    #[error("tunnels nested too deep")]
    Nested,
    /// The IP packet cannot be read.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// Tunnels taken off one frame.
const MAX_TUNNELS: u8 = 4;
/// VLAN tags and MPLS labels taken off one header.
const MAX_TAGS: u8 = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_TRANSPARENT_ETHERNET: u16 = 0x6558;
const ETHERTYPE_PPP: u16 = 0x880b;
const ETHERTYPE_ERSPAN_2: u16 = 0x88be;

const PORT_VXLAN: u16 = 4789;
/// Linux used it before the assignment, and flannel still does.
const PORT_VXLAN_LINUX: u16 = 8472;
const PORT_GENEVE: u16 = 6081;

/// Bytes of a frame with their length on the wire.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    seen: &'a [u8],
    wire_len: u32,
}

impl<'a> Bytes<'a> {
    /// Takes `N` bytes off.
    fn take<const N: usize>(self) -> Result<(&'a [u8; N], Self), FrameError> {
        let (head, seen) = self
            .seen
            .split_first_chunk::<N>()
            .ok_or(FrameError::Truncated)?;
        let wire_len = self.wire_len.saturating_sub(u32_len(N));
        Ok((head, Self { seen, wire_len }))
    }

    fn skip(self, length: usize) -> Result<Self, FrameError> {
        Ok(Self {
            seen: self.seen.get(length..).ok_or(FrameError::Truncated)?,
            wire_len: self.wire_len.saturating_sub(u32_len(length)),
        })
    }
}

/// Reads what nearly every frame is, Ethernet with a plain IPv4 segment, in one look. `None` for any
/// other, and where a length makes it doubtful: that is for [`parse_frame`].
#[inline]
pub fn plain_frame(link: LinkType, bytes: &[u8], wire_len: u32) -> Option<TcpPacket<'_>> {
    let header = bytes.first_chunk::<14>()?;
    if link != LinkType::ETHERNET || header[12..] != ETHERTYPE_IPV4.to_be_bytes() {
        return None;
    }
    let wire_len = wire_len.checked_sub(14)?;
    plain_segment(clip(bytes.get(14..)?, wire_len), wire_len)
}

/// Reads one frame of `link` with `wire_len` bytes on the wire, tunnels unwrapped.
pub fn parse_frame(
    link: LinkType,
    bytes: &[u8],
    wire_len: u32,
) -> Result<IpPacket<'_>, FrameError> {
    let seen = clip(bytes, wire_len);
    any_frame(link, Bytes { seen, wire_len })
}

fn any_frame(link: LinkType, frame: Bytes<'_>) -> Result<IpPacket<'_>, FrameError> {
    match link {
        LinkType::ETHERNET => ethernet(frame, 0),
        LinkType::LINUX_SLL => {
            let (header, rest) = frame.take::<16>()?;
            by_ethertype(u16::from_be_bytes([header[14], header[15]]), rest, 0)
        }
        LinkType::LINUX_SLL2 => {
            let (header, rest) = frame.take::<20>()?;
            by_ethertype(u16::from_be_bytes([header[0], header[1]]), rest, 0)
        }
        LinkType::RAW_BSD
        | LinkType::RAW_OPENBSD
        | LinkType::RAW
        | LinkType::IPV4
        | LinkType::IPV6 => ip(frame, 0),
        LinkType::NULL | LinkType::LOOP => {
            let (family, rest) = frame.take::<4>()?;
            // Either order, whatever the link type says: files change hosts, and writers err.
            match (u32::from_le_bytes(*family), u32::from_be_bytes(*family)) {
                (family, _) | (_, family) if is_ip_family(family) => ip(rest, 0),
                _ => Err(FrameError::NotIp),
            }
        }
        LinkType::PPP | LinkType::PPP_HDLC => match frame.seen {
            [0x0f | 0x8f, 0x00, ..] => cisco_hdlc(frame),
            _ => ppp(frame, 0),
        },
        LinkType::CISCO_HDLC => cisco_hdlc(frame),
        LinkType::PPP_ETHER => pppoe(frame, 0),
        _ => Err(FrameError::LinkType),
    }
}

/// `AF_INET` and the numbers that the BSDs and Linux have for `AF_INET6`.
const fn is_ip_family(family: u32) -> bool {
    matches!(family, 2 | 10 | 24 | 28 | 30)
}

fn ethernet(frame: Bytes<'_>, depth: u8) -> Result<IpPacket<'_>, FrameError> {
    let (header, rest) = frame.take::<14>()?;
    let ethertype = u16::from_be_bytes([header[12], header[13]]);
    if ethertype < 0x0600 {
        // A length: IEEE 802.3, where IP comes behind LLC and SNAP (RFC 1042).
        let (llc, rest) = rest.take::<8>()?;
        return match *llc {
            [0xaa, 0xaa, 3, 0, 0, 0, high, low] => {
                by_ethertype(u16::from_be_bytes([high, low]), rest, depth)
            }
            _ => Err(FrameError::NotIp),
        };
    }
    by_ethertype(ethertype, rest, depth)
}

fn by_ethertype(
    mut ethertype: u16,
    mut rest: Bytes<'_>,
    depth: u8,
) -> Result<IpPacket<'_>, FrameError> {
    for _ in 0..=MAX_TAGS {
        match ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => return ip(rest, depth),
            // VLAN and QinQ, with the values used before 802.1ad.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let (tag, inner) = rest.take::<4>()?;
                ethertype = u16::from_be_bytes([tag[2], tag[3]]);
                rest = inner;
            }
            // PPPoE session.
            0x8864 => return pppoe(rest, depth),
            // MPLS.
            0x8847 | 0x8848 => return mpls(rest, depth),
            _ => return Err(FrameError::NotIp),
        }
    }
    Err(FrameError::Nested)
}

fn mpls(mut rest: Bytes<'_>, depth: u8) -> Result<IpPacket<'_>, FrameError> {
    for _ in 0..MAX_TAGS {
        let (label, inner) = rest.take::<4>()?;
        rest = inner;
        if label[2] & 1 != 0 {
            // Labels do not say what follows; IP shows itself by its version.
            return match rest.seen.first().map(|byte| byte >> 4) {
                Some(4 | 6) => ip(rest, depth),
                Some(_) => Err(FrameError::NotIp),
                None => Err(FrameError::Truncated),
            };
        }
    }
    Err(FrameError::Nested)
}

fn pppoe(frame: Bytes<'_>, depth: u8) -> Result<IpPacket<'_>, FrameError> {
    let (header, rest) = frame.take::<6>()?;
    if header[1] != 0 {
        // Discovery: the session is not up yet.
        return Err(FrameError::NotIp);
    }
    ppp(rest, depth)
}

fn ppp(mut frame: Bytes<'_>, depth: u8) -> Result<IpPacket<'_>, FrameError> {
    if let [0xff, 0x03, ..] = frame.seen {
        frame = frame.skip(2)?;
    }
    match frame.seen {
        // Protocols may be compressed to one byte (RFC 1661 section 6.5).
        [0x21 | 0x57, ..] => ip(frame.skip(1)?, depth),
        [0x00, 0x21 | 0x57, ..] => ip(frame.skip(2)?, depth),
        [_, _, ..] => Err(FrameError::NotIp),
        _ => Err(FrameError::Truncated),
    }
}

fn cisco_hdlc(frame: Bytes<'_>) -> Result<IpPacket<'_>, FrameError> {
    let (header, rest) = frame.take::<4>()?;
    by_ethertype(u16::from_be_bytes([header[2], header[3]]), rest, 0)
}

fn ip(packet: Bytes<'_>, depth: u8) -> Result<IpPacket<'_>, FrameError> {
    let layer = ip_layer(packet.seen, packet.wire_len)?;
    match layer.protocol {
        _ if layer.fragment => Ok(IpPacket::Fragment),
        protocol::UDP => udp(&layer, depth),
        protocol::GRE => gre(inside(&layer), deeper(depth)?),
        protocol::IPV4 | protocol::IPV6 => ip(inside(&layer), deeper(depth)?),
        _ => Ok(transport(&layer)?),
    }
}

fn inside<'a>(layer: &IpLayer<'a>) -> Bytes<'a> {
    Bytes {
        seen: layer.payload,
        wire_len: layer.wire_len,
    }
}

fn deeper(depth: u8) -> Result<u8, FrameError> {
    if depth < MAX_TUNNELS {
        Ok(depth + 1)
    } else {
        Err(FrameError::Nested)
    }
}

/// A UDP datagram: a tunnel by its destination port, or nothing that matters here.
fn udp<'a>(layer: &IpLayer<'a>, depth: u8) -> Result<IpPacket<'a>, FrameError> {
    let Ok((header, rest)) = inside(layer).take::<8>() else {
        return Ok(IpPacket::Other);
    };
    match u16::from_be_bytes([header[2], header[3]]) {
        PORT_VXLAN | PORT_VXLAN_LINUX => match rest.take::<8>() {
            // The flag says that the network identifier is valid (RFC 7348 section 5).
            Ok(([flags, ..], inner)) if flags & 0x08 != 0 => ethernet(inner, deeper(depth)?),
            _ => Ok(IpPacket::Other),
        },
        PORT_GENEVE => match rest.take::<8>() {
            Ok((&[first, _, high, low, ..], inner)) if first >> 6 == 0 => {
                let inner = inner.skip(usize::from(first & 0x3f) * 4)?;
                match u16::from_be_bytes([high, low]) {
                    ETHERTYPE_TRANSPARENT_ETHERNET => ethernet(inner, deeper(depth)?),
                    ethertype => by_ethertype(ethertype, inner, deeper(depth)?),
                }
            }
            _ => Ok(IpPacket::Other),
        },
        _ => Ok(transport(layer)?),
    }
}

/// GRE (RFC 2784, RFC 2890), the enhanced version of PPTP (RFC 2637), and ERSPAN inside.
fn gre(packet: Bytes<'_>, depth: u8) -> Result<IpPacket<'_>, FrameError> {
    let (header, mut rest) = packet.take::<4>()?;
    let flags = u16::from_be_bytes([header[0], header[1]]);
    let ethertype = u16::from_be_bytes([header[2], header[3]]);
    let sequence = flags & 0x1000 != 0;
    // Checksum or routing, key, sequence number, and the acknowledgement of version 1.
    for present in [
        flags & 0xc000 != 0,
        flags & 0x2000 != 0,
        sequence,
        flags & 0x0087 == 0x0081,
    ] {
        if present {
            rest = rest.skip(4)?;
        }
    }
    match ethertype {
        ETHERTYPE_TRANSPARENT_ETHERNET => ethernet(rest, depth),
        ETHERTYPE_PPP => ppp(rest, depth),
        // Type I has neither a sequence number nor a header of its own.
        ETHERTYPE_ERSPAN_2 => ethernet(rest.skip(if sequence { 8 } else { 0 })?, depth),
        ethertype => by_ethertype(ethertype, rest, depth),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(payload);
        packet
    }

    fn segment() -> Vec<u8> {
        let mut tcp = vec![0xc0, 0x01, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x18, 1, 0];
        tcp.extend([0, 0, 0, 0]);
        tcp.extend(b"GET /");
        v4(protocol::TCP, &tcp)
    }

    fn behind(header: &[u8], packet: &[u8]) -> Vec<u8> {
        [header, packet].concat()
    }

    fn ethernet_frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0xf0, 0];
        datagram.extend(port.to_be_bytes());
        datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        v4(protocol::UDP, &datagram)
    }

    #[track_caller]
    fn carries(link: LinkType, frame: &[u8]) {
        for padding in [0, 6] {
            let mut frame = frame.to_vec();
            frame.extend(vec![0; padding]);
            match parse_frame(link, &frame, u32_len(frame.len())) {
                Ok(IpPacket::Tcp(tcp)) => {
                    assert_eq!((tcp.payload, tcp.wire_len), (&b"GET /"[..], 5));
                }
                other => panic!("{link}: {other:?}"),
            }
        }
    }

    #[test]
    fn link_types() {
        let ip = segment();
        carries(LinkType::ETHERNET, &ethernet_frame(0x0800, &ip));
        for link in [12, 14, 101, 228] {
            carries(LinkType(link), &ip);
        }
        for family in [2u32, 24, 30] {
            carries(LinkType::NULL, &behind(&family.to_le_bytes(), &ip));
            carries(LinkType::NULL, &behind(&family.to_be_bytes(), &ip));
            carries(LinkType::LOOP, &behind(&family.to_be_bytes(), &ip));
        }
        let mut sll = [0u8; 16];
        sll[14..].copy_from_slice(&[8, 0]);
        carries(LinkType::LINUX_SLL, &behind(&sll, &ip));
        let mut sll2 = [0u8; 20];
        sll2[..2].copy_from_slice(&[8, 0]);
        carries(LinkType::LINUX_SLL2, &behind(&sll2, &ip));
        carries(LinkType::PPP, &behind(&[0xff, 3, 0, 0x21], &ip));
        carries(LinkType::PPP, &behind(&[0, 0x21], &ip));
        carries(LinkType::PPP_HDLC, &behind(&[0x0f, 0, 8, 0], &ip));
        carries(LinkType::CISCO_HDLC, &behind(&[0x0f, 0, 8, 0], &ip));
        carries(
            LinkType::PPP_ETHER,
            &behind(&[0x11, 0, 0, 1, 0, 47, 0, 0x21], &ip),
        );
    }

    #[test]
    fn tags_and_labels() {
        let ip = segment();
        carries(
            LinkType::ETHERNET,
            &ethernet_frame(0x8100, &behind(&[0, 5, 8, 0], &ip)),
        );
        carries(
            LinkType::ETHERNET,
            &ethernet_frame(0x88a8, &behind(&[0, 5, 0x81, 0, 0, 6, 8, 0], &ip)),
        );
        carries(
            LinkType::ETHERNET,
            &ethernet_frame(0x8847, &behind(&[0, 0, 0, 64, 0, 0, 1, 64], &ip)),
        );
        carries(
            LinkType::ETHERNET,
            &ethernet_frame(0x8864, &behind(&[0x11, 0, 0, 1, 0, 47, 0, 0x21], &ip)),
        );
        carries(
            LinkType::ETHERNET,
            &ethernet_frame(50, &behind(&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &ip)),
        );
        let mut sll = [0u8; 16];
        sll[14..].copy_from_slice(&[0x81, 0]);
        let tagged = behind(&sll, &behind(&[0, 5, 8, 0], &ip));
        carries(LinkType::LINUX_SLL, &tagged);
    }

    #[test]
    fn tunnels() {
        let ip = segment();
        let inner = ethernet_frame(0x0800, &ip);
        for port in [4789, 8472] {
            let vxlan = udp(port, &behind(&[8, 0, 0, 0, 0, 0, 42, 0], &inner));
            carries(LinkType::RAW, &vxlan);
        }
        let geneve = behind(&[1, 0, 0x65, 0x58, 0, 0, 9, 0, 1, 2, 0, 0], &inner);
        carries(LinkType::RAW, &udp(6081, &geneve));
        carries(
            LinkType::RAW,
            &v4(protocol::GRE, &behind(&[0, 0, 8, 0], &ip)),
        );
        let everything = [0xb0, 0, 8, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
        carries(LinkType::RAW, &v4(protocol::GRE, &behind(&everything, &ip)));
        carries(
            LinkType::RAW,
            &v4(protocol::GRE, &behind(&[0, 0, 0x65, 0x58], &inner)),
        );
        let pptp = [
            0x30, 0x81, 0x88, 0x0b, 0, 9, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0x21,
        ];
        carries(LinkType::RAW, &v4(protocol::GRE, &behind(&pptp, &ip)));
        let erspan = [0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 0, 0, 1, 0, 0, 0, 0];
        carries(LinkType::RAW, &v4(protocol::GRE, &behind(&erspan, &inner)));
        carries(LinkType::RAW, &v4(protocol::IPV4, &ip));
    }

    #[test]
    fn tunnels_without_end_are_refused() {
        let mut packet = segment();
        for _ in 0..9 {
            packet = v4(protocol::IPV4, &packet);
        }
        let length = u32_len(packet.len());
        assert_eq!(
            parse_frame(LinkType::RAW, &packet, length),
            Err(FrameError::Nested)
        );
        let tags = [0, 1, 0x81, 0].repeat(20);
        let frame = ethernet_frame(0x8100, &tags);
        let length = u32_len(frame.len());
        assert_eq!(
            parse_frame(LinkType::ETHERNET, &frame, length),
            Err(FrameError::Nested)
        );
    }

    #[test]
    fn what_is_not_ip_says_so() {
        let arp = ethernet_frame(0x0806, &[0; 28]);
        assert_eq!(
            parse_frame(LinkType::ETHERNET, &arp, 42),
            Err(FrameError::NotIp)
        );
        assert_eq!(
            parse_frame(LinkType(105), &arp, 42),
            Err(FrameError::LinkType)
        );
        assert_eq!(
            parse_frame(LinkType::ETHERNET, &arp[..13], 42),
            Err(FrameError::Truncated)
        );
        let ntp = udp(123, &[0; 12]);
        assert_eq!(parse_frame(LinkType::RAW, &ntp, 40), Ok(IpPacket::Other));
    }

    #[test]
    fn datagrams_of_dns_are_told_from_others() {
        let dns = udp(53, &[7; 12]);
        let Ok(IpPacket::Dns(datagram)) = parse_frame(LinkType::RAW, &dns, 40) else {
            panic!("no DNS")
        };
        assert_eq!(datagram.dst.port(), 53);
        assert_eq!((datagram.payload, datagram.wire_len), (&[7; 12][..], 12));
    }

    proptest! {
        #[test]
        fn any_bytes_do(
            link in prop::sample::select(vec![0u16, 1, 9, 12, 50, 51, 101, 104, 108, 113, 276]),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            wire_len: u32,
        ) {
            if let Ok(IpPacket::Tcp(tcp)) = parse_frame(LinkType(link), &bytes, wire_len) {
                prop_assert!(tcp.payload.len() <= tcp.wire_len as usize);
            }
        }

        #[test]
        fn any_damage_to_a_tunnel_does(at in 0usize..120, value: u8, cut in 0usize..140) {
            let inner = ethernet_frame(0x8100, &behind(&[0, 5, 8, 0], &segment()));
            let vxlan = udp(4789, &behind(&[8, 0, 0, 0, 0, 0, 42, 0], &inner));
            let mut frame = ethernet_frame(0x0800, &vxlan);
            let length = u32_len(frame.len());
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
            frame.truncate(cut);
            if let Ok(IpPacket::Tcp(tcp)) = parse_frame(LinkType::ETHERNET, &frame, length) {
                prop_assert!(tcp.payload.len() <= tcp.wire_len as usize);
            }
        }
    }
}
