//! IP packets: from an IP header to a TCP segment, an ICMP quote of one, or a datagram of DNS.
//!
//! Decides where headers end and how many payload bytes there were on the wire, also for packets
//! that the capture cut short and for the oversized ones that segmentation offload makes. Leaves
//! alone what checksums say: offload makes them wrong on healthy hosts.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use thiserror::Error;

use crate::dns;
use crate::model::{Direction, IcmpKind, RecordHeads, Segment, TcpFlags};

/// IP protocol numbers, also used as IPv6 next-header values.
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const IPV4: u8 = 4;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6: u8 = 41;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const GRE: u8 = 47;
    pub(crate) const AUTHENTICATION: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION_OPTIONS: u8 = 60;
    pub(crate) const MOBILITY: u8 = 135;
}

/// Why a packet could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Error)]
pub enum PacketError {
    /// The captured bytes end inside a header that is needed.
    #[error("packet captured too short: its headers are cut off")]
    Truncated,
    /// Neither IPv4 nor IPv6.
    #[error("IP version is neither 4 nor 6")]
    Version,
    /// A header states a length that contradicts the packet.
    #[error("a header length contradicts the packet")]
    Length,
}

/// What an IP packet holds, as far as a hop is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpPacket<'a> {
    /// A TCP segment.
    Tcp(TcpPacket<'a>),
    /// "Destination unreachable" about a TCP segment.
    Icmp(IcmpQuote),
    /// A UDP datagram from or to the port of DNS.
    Dns(Datagram<'a>),
    /// Anything else.
    Other,
    /// Part of a datagram that IP split up. TCP avoids that, so it is counted and not put together.
    Fragment,
}

/// A TCP segment and the few facts of its IP header that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpPacket<'a> {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// Sequence number of the first payload byte, or of the SYN.
    pub seq: u32,
    /// Acknowledgement number; meaningless without the ACK flag.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// Advertised window, unscaled.
    pub window: u16,
    /// The captured payload bytes; fewer than `wire_len` where the capture was cut short.
    pub payload: &'a [u8],
    /// Payload bytes on the wire.
    pub wire_len: u32,
    /// IPv4 time to live or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 identification.
    pub ip_id: Option<u16>,
}

impl<'a> TcpPacket<'a> {
    /// The packet as a segment of a hop.
    #[expect(
        clippy::inline_always,
        reason = "once a packet, and what it returns is large"
    )]
    #[inline(always)]
    pub const fn segment(&self, direction: Direction) -> Segment<'a> {
        let (local, upstream) = self.ends(direction);
        Segment {
            direction,
            local,
            upstream,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            payload: self.payload,
            wire_len: self.wire_len,
            ttl: self.ttl,
            ip_id: self.ip_id,
            records: RecordHeads::NONE,
            packet: &[],
        }
    }

    /// The gateway's end and the upstream's.
    #[expect(
        clippy::inline_always,
        reason = "once a packet, and what it returns is large"
    )]
    #[inline(always)]
    const fn ends(&self, direction: Direction) -> (SocketAddr, SocketAddr) {
        let to = matches!(direction, Direction::ToUpstream);
        match (self.src, self.dst) {
            // As numbers: to choose from what lies in memory takes longer.
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                let (src, src_port) = (src.ip().to_bits(), src.port());
                let (dst, dst_port) = (dst.ip().to_bits(), dst.port());
                let (local, local_port) = if to { (src, src_port) } else { (dst, dst_port) };
                let (upstream, port) = if to { (dst, dst_port) } else { (src, src_port) };
                (v4(local, local_port), v4(upstream, port))
            }
            (src, dst) if to => (src, dst),
            (src, dst) => (dst, src),
        }
    }
}

#[inline]
const fn v4(address: u32, port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from_bits(address), port))
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver.
    pub dst: SocketAddr,
    /// The captured payload bytes; fewer than `wire_len` where the capture was cut short.
    pub payload: &'a [u8],
    /// Payload bytes on the wire.
    pub wire_len: u32,
}

/// An ICMP or `ICMPv6` error and the TCP segment that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpQuote {
    /// Who sent the error.
    pub from: IpAddr,
    /// Which error it is.
    pub kind: IcmpKind,
    /// Bytes of the message up to the quoted payload, from the ICMP header on.
    pub head_len: usize,
    /// ICMP code.
    pub code: u8,
    /// Sender of the quoted segment.
    pub src: SocketAddr,
    /// Receiver that it did not reach.
    pub dst: SocketAddr,
    /// Sequence number of the quoted segment.
    pub seq: u32,
}

/// An IP header with its extensions taken off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IpLayer<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Protocol of `payload`.
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) ip_id: Option<u16>,
    pub(crate) fragment: bool,
    pub(crate) payload: &'a [u8],
    /// Length of `payload` on the wire.
    pub(crate) wire_len: u32,
}

/// Reads one packet that begins with its IP header.
///
/// `wire_len` is the packet's length from the IP header on as it was seen. The header's own length
/// field overrules it (Ethernet pads short frames), except where that field cannot be right: it is
/// zero, or the packet is longer than it can state (segmentation offload).
pub fn parse_ip(bytes: &[u8], wire_len: u32) -> Result<IpPacket<'_>, PacketError> {
    transport(&ip_layer(bytes, wire_len)?)
}

/// Reads what nearly every packet is, an IPv4 header without options and a TCP segment, in one look.
/// `None` for any other, and where a length makes it doubtful: that is for [`parse_ip`].
#[inline]
pub(crate) fn plain_segment(bytes: &[u8], wire_len: u32) -> Option<TcpPacket<'_>> {
    const IP: usize = 20;
    let header = bytes.first_chunk::<40>()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let long = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let address = |at: usize| IpAddr::V4(Ipv4Addr::from_bits(long(at)));
    let total = usize::from(word(2));
    let tcp_len = usize::from(header[IP + 12] >> 4) * 4;
    let fragment = word(6) & 0x3fff != 0;
    let plain = header[0] == 0x45
        && header[9] == protocol::TCP
        && !fragment
        && u16::try_from(wire_len).is_ok()
        && tcp_len >= 20;
    let payload_len = total.checked_sub(IP + tcp_len).filter(|_| plain)?;
    let payload = bytes.get(IP + tcp_len..)?;
    Some(TcpPacket {
        src: SocketAddr::new(address(12), word(IP)),
        dst: SocketAddr::new(address(16), word(IP + 2)),
        seq: long(IP + 4),
        ack: long(IP + 8),
        flags: TcpFlags(header[IP + 13]),
        window: word(IP + 14),
        // What follows is padding of the frame.
        payload: payload.get(..payload_len).unwrap_or(payload),
        wire_len: u32_len(payload_len),
        ttl: header[8],
        ip_id: Some(word(4)),
    })
}

/// Reads what an IP header carries.
#[inline]
pub(crate) fn transport<'a>(ip: &IpLayer<'a>) -> Result<IpPacket<'a>, PacketError> {
    match ip.protocol {
        _ if ip.fragment => Ok(IpPacket::Fragment),
        protocol::TCP => tcp(ip).map(IpPacket::Tcp),
        protocol::UDP => Ok(datagram(ip)
            .filter(|datagram| datagram.concerns(dns::PORT))
            .map_or(IpPacket::Other, IpPacket::Dns)),
        protocol::ICMP if ip.src.is_ipv4() => Ok(icmp(icmp_quote(ip.payload, ip.src))),
        protocol::ICMPV6 if ip.src.is_ipv6() => Ok(icmp(icmp_quote(ip.payload, ip.src))),
        _ => Ok(IpPacket::Other),
    }
}

/// Reads an `ICMPv6` message of `from` without its IP header, as a raw socket gives it.
#[cfg_attr(
    not(feature = "live"),
    expect(dead_code, reason = "only the live source has raw sockets")
)]
pub(crate) fn parse_icmp_v6(bytes: &[u8], from: Ipv6Addr) -> Option<IcmpQuote> {
    icmp_quote(bytes, from.into())
}

/// Takes the IP header and all extension headers off.
#[inline]
pub(crate) fn ip_layer(bytes: &[u8], wire_len: u32) -> Result<IpLayer<'_>, PacketError> {
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => ipv4(bytes, wire_len),
        Some(6) => ipv6(bytes, wire_len),
        Some(_) => Err(PacketError::Version),
        None => Err(PacketError::Truncated),
    }
}

#[inline]
fn ipv4(bytes: &[u8], wire_len: u32) -> Result<IpLayer<'_>, PacketError> {
    let (header, _) = bytes
        .split_first_chunk::<20>()
        .ok_or(PacketError::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header_len < header.len() {
        return Err(PacketError::Length);
    }
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let total = if total == 0 || wire_len > u32::from(u16::MAX) {
        wire_len
    } else {
        total
    };
    let wire_len = total
        .checked_sub(u32_len(header_len))
        .ok_or(PacketError::Length)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let layer = IpLayer {
        src: IpAddr::V4(Ipv4Addr::new(
            header[12], header[13], header[14], header[15],
        )),
        dst: IpAddr::V4(Ipv4Addr::new(
            header[16], header[17], header[18], header[19],
        )),
        protocol: header[9],
        ttl: header[8],
        ip_id: Some(u16::from_be_bytes([header[4], header[5]])),

        // More fragments, or an offset.
        fragment: fragment & 0x3fff != 0,
        payload: clip(bytes.get(header_len..).unwrap_or_default(), wire_len),
        wire_len,
    };
    if layer.protocol == protocol::AUTHENTICATION && !layer.fragment {
        return extensions(layer);
    }
    Ok(layer)
}

fn ipv6(bytes: &[u8], wire_len: u32) -> Result<IpLayer<'_>, PacketError> {
    let (header, rest) = bytes
        .split_first_chunk::<40>()
        .ok_or(PacketError::Truncated)?;
    let stated = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let next = header[6];
    let wire_len = if stated == 0 {
        // A jumbogram states its length in an option (RFC 2675); offload may leave even that out.
        let jumbo = if next == protocol::HOP_BY_HOP {
            jumbo_length(rest)
        } else {
            None
        };
        jumbo.unwrap_or_else(|| wire_len.saturating_sub(40))
    } else {
        stated
    };
    extensions(IpLayer {
        src: IpAddr::V6(ipv6_address(header, 8)),
        dst: IpAddr::V6(ipv6_address(header, 24)),
        protocol: next,
        ttl: header[7],
        ip_id: None,

        fragment: false,
        payload: clip(rest, wire_len),
        wire_len,
    })
}

fn ipv6_address(header: &[u8; 40], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    if let Some(bytes) = header.get(at..at + 16) {
        octets.copy_from_slice(bytes);
    }
    Ipv6Addr::from(octets)
}

/// The jumbo payload option of a hop-by-hop header. It is the first option in practice.
fn jumbo_length(hop_by_hop: &[u8]) -> Option<u32> {
    let (option, _) = hop_by_hop.get(2..)?.split_first_chunk::<6>()?;
    let &[0xc2, 4, a, b, c, d] = option else {
        return None;
    };
    Some(u32::from_be_bytes([a, b, c, d])).filter(|&length| length > u32::from(u16::MAX))
}

/// Walks extension headers until something else follows. Each one is at least eight bytes, so the
/// walk is as long as the packet at most.
fn extensions(mut layer: IpLayer<'_>) -> Result<IpLayer<'_>, PacketError> {
    loop {
        let length = match layer.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY => 8 + 8 * extension_units(layer.payload)?,
            // Its unit is four bytes, and two units are not counted (RFC 4302 section 2.2).
            protocol::AUTHENTICATION => 8 + 4 * extension_units(layer.payload)?,
            protocol::FRAGMENT => {
                let (fragment, _) = layer
                    .payload
                    .split_first_chunk::<8>()
                    .ok_or(PacketError::Truncated)?;
                // Offset zero without more to come is a whole packet (RFC 6946).
                if u16::from_be_bytes([fragment[2], fragment[3]]) & 0xfff9 != 0 {
                    layer.fragment = true;
                    return Ok(layer);
                }
                8
            }
            _ => return Ok(layer),
        };
        layer.protocol = layer.payload.first().copied().unwrap_or_default();
        layer.payload = layer.payload.get(length..).ok_or(PacketError::Truncated)?;
        layer.wire_len = layer
            .wire_len
            .checked_sub(u32_len(length))
            .ok_or(PacketError::Length)?;
    }
}

fn extension_units(payload: &[u8]) -> Result<usize, PacketError> {
    match payload {
        [_, units, ..] => Ok(usize::from(*units)),
        _ => Err(PacketError::Truncated),
    }
}

#[inline]
fn tcp<'a>(ip: &IpLayer<'a>) -> Result<TcpPacket<'a>, PacketError> {
    let (header, _) = ip
        .payload
        .split_first_chunk::<20>()
        .ok_or(if ip.wire_len < 20 {
            PacketError::Length
        } else {
            PacketError::Truncated
        })?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < header.len() {
        return Err(PacketError::Length);
    }
    let wire_len = ip
        .wire_len
        .checked_sub(u32_len(header_len))
        .ok_or(PacketError::Length)?;
    Ok(TcpPacket {
        src: SocketAddr::new(ip.src, u16::from_be_bytes([header[0], header[1]])),
        dst: SocketAddr::new(ip.dst, u16::from_be_bytes([header[2], header[3]])),
        seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        flags: TcpFlags(header[13]),
        window: u16::from_be_bytes([header[14], header[15]]),
        // Options that were cut off leave no payload, but the segment still counts.
        payload: ip.payload.get(header_len..).unwrap_or_default(),
        wire_len,
        ttl: ip.ttl,
        ip_id: ip.ip_id,
    })
}

impl Datagram<'_> {
    /// Whether it comes from or goes to `port`.
    pub const fn concerns(&self, port: u16) -> bool {
        self.src.port() == port || self.dst.port() == port
    }
}

/// Reads a UDP datagram. Its own length field says no more than that of the IP header.
pub(crate) fn datagram<'a>(ip: &IpLayer<'a>) -> Option<Datagram<'a>> {
    let (header, payload) = ip.payload.split_first_chunk::<8>()?;
    Some(Datagram {
        src: SocketAddr::new(ip.src, u16::from_be_bytes([header[0], header[1]])),
        dst: SocketAddr::new(ip.dst, u16::from_be_bytes([header[2], header[3]])),
        payload,
        wire_len: ip.wire_len.checked_sub(u32_len(header.len()))?,
    })
}

/// Reads one packet that begins with its IP header and holds a UDP datagram, whatever its ports.
#[cfg_attr(
    not(feature = "live"),
    expect(
        dead_code,
        reason = "only the kernel knows that another port carries DNS"
    )
)]
pub(crate) fn parse_datagram(bytes: &[u8], wire_len: u32) -> Option<Datagram<'_>> {
    let layer = ip_layer(bytes, wire_len).ok()?;
    let plain = layer.protocol == protocol::UDP && !layer.fragment;
    plain.then(|| datagram(&layer)).flatten()
}

fn icmp<'a>(quote: Option<IcmpQuote>) -> IpPacket<'a> {
    quote.map_or(IpPacket::Other, IpPacket::Icmp)
}

/// The quote in an error message of ICMP (RFC 792) or, from an IPv6 address, `ICMPv6` (RFC 4443).
fn icmp_quote(message: &[u8], from: IpAddr) -> Option<IcmpQuote> {
    /// TCP headers without and with all options.
    const TCP_LEN: usize = 20;
    const TCP_MAX_LEN: usize = 60;

    let (&[kind, code, ..], quoted) = message.split_first_chunk::<8>()?;
    let kind = match (kind, from) {
        (3, IpAddr::V4(_)) | (1, IpAddr::V6(_)) => IcmpKind::Unreachable,
        (2, IpAddr::V6(_)) => IcmpKind::TooBig,
        (11, IpAddr::V4(_)) | (3, IpAddr::V6(_)) => IcmpKind::TimeExceeded,
        _ => return None,
    };
    // The quote is cut to what fits, so its own length field is no use here.
    let quoted = ip_layer(quoted, u32_len(quoted.len())).ok()?;
    if quoted.protocol != protocol::TCP || quoted.fragment {
        return None;
    }
    let tcp = quoted.payload.first_chunk::<8>()?;
    let tcp_len = quoted
        .payload
        .get(12)
        .map_or(TCP_LEN, |offset| usize::from(offset >> 4) * 4)
        .clamp(TCP_LEN, TCP_MAX_LEN)
        .min(quoted.payload.len());
    let before = quoted.payload.as_ptr().addr() - message.as_ptr().addr();
    Some(IcmpQuote {
        from,
        kind,
        head_len: before + tcp_len,
        code,
        src: SocketAddr::new(quoted.src, u16::from_be_bytes([tcp[0], tcp[1]])),
        dst: SocketAddr::new(quoted.dst, u16::from_be_bytes([tcp[2], tcp[3]])),
        seq: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
    })
}

/// At most `wire_len` bytes: what follows is padding of the frame.
pub(crate) fn clip(bytes: &[u8], wire_len: u32) -> &[u8] {
    usize::try_from(wire_len)
        .ok()
        .and_then(|length| bytes.get(..length))
        .unwrap_or(bytes)
}

/// A length as the 32 bits that captures count in.
pub(crate) fn u32_len(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(total: u16, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45 + u8::try_from(options / 4).unwrap(), 0];
        packet.extend(total.to_be_bytes());
        packet.extend([0x12, 0x34, 0x40, 0, 57, protocol::TCP, 0, 0]);
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(vec![1; options]);
        packet.extend(payload);
        packet
    }

    fn v6(length: u16, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([next, 61]);
        packet.extend(Ipv6Addr::LOCALHOST.octets());
        packet.extend(Ipv6Addr::LOCALHOST.octets());
        packet.extend(payload);
        packet
    }

    fn segment(options: usize, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 0x01, 0, 80, 0, 0, 0, 7, 0, 0, 0, 9];
        bytes.push(u8::try_from((20 + options) / 4).unwrap() << 4);
        bytes.extend([0x18, 0x20, 0, 0, 0, 0, 0]);
        bytes.extend(vec![1; options]);
        bytes.extend(payload);
        bytes
    }

    fn tcp_of(bytes: &[u8], wire_len: u32) -> TcpPacket<'_> {
        match parse_ip(bytes, wire_len) {
            Ok(IpPacket::Tcp(tcp)) => tcp,
            other => panic!("not a segment: {other:?}"),
        }
    }

    #[test]
    fn fields_of_a_plain_segment() {
        let bytes = v4(52 + 4, 4, &segment(12, b"abcd")[..36]);
        let tcp = tcp_of(&bytes, 60);
        assert_eq!(tcp.src, "10.0.0.1:49153".parse().unwrap());
        assert_eq!(tcp.dst, "10.0.0.2:80".parse().unwrap());
        assert_eq!((tcp.seq, tcp.ack, tcp.window), (7, 9, 0x2000));
        assert_eq!(tcp.flags, TcpFlags::PSH.union(TcpFlags::ACK));
        assert_eq!((tcp.ttl, tcp.ip_id), (57, Some(0x1234)));
        assert_eq!(tcp.payload, b"");
        let bytes = v4(60, 4, &segment(12, b"abcd"));
        assert_eq!(tcp_of(&bytes, 60).payload, b"abcd");
    }

    #[test]
    fn plain_segments_are_read_in_one_look() {
        let bytes = v4(44, 0, &segment(0, b"abcd"));
        let tcp = plain_segment(&bytes, 60).expect("a plain segment");
        assert_eq!((tcp, tcp.payload), (tcp_of(&bytes, 60), &b"abcd"[..]));
        assert_eq!(plain_segment(&v4(48, 4, &segment(0, b"abcd")), 60), None);
    }

    #[test]
    fn padding_is_not_payload() {
        let mut bytes = v4(40, 0, &segment(0, b""));
        bytes.extend([0; 6]);
        assert_eq!(plain_segment(&bytes, 46), Some(tcp_of(&bytes, 46)));
        let tcp = tcp_of(&bytes, 46);
        assert_eq!((tcp.payload, tcp.wire_len), (&b""[..], 0));
    }

    #[test]
    fn a_short_capture_keeps_the_wire_length() {
        let bytes = v4(1500, 0, &segment(0, b"abc"));
        let tcp = tcp_of(&bytes, 1500);
        assert_eq!((tcp.payload, tcp.wire_len), (&b"abc"[..], 1460));
        let without_options = &v4(1500, 0, &segment(12, b""))[..44];
        let tcp = tcp_of(without_options, 1500);
        assert_eq!((tcp.payload, tcp.wire_len), (&b""[..], 1448));
    }

    #[test]
    fn offloaded_packets_go_by_the_length_seen() {
        let zero = v4(0, 0, &segment(0, b"abc"));
        assert_eq!(tcp_of(&zero, 40_000).wire_len, 39_960);
        let wrapped = v4(4464, 0, &segment(0, b"abc"));
        assert_eq!(tcp_of(&wrapped, 70_000).wire_len, 69_960);
        let six = v6(0, protocol::TCP, &segment(0, b"abc"));
        assert_eq!(tcp_of(&six, 100_000).wire_len, 99_940);
    }

    #[test]
    fn ipv6_extensions_and_jumbograms() {
        let mut chain = vec![protocol::ROUTING, 0, 1, 4, 0, 0, 0, 0];
        chain.extend([protocol::DESTINATION_OPTIONS, 1]);
        chain.extend([0; 14]);
        chain.extend([protocol::FRAGMENT, 0, 1, 4, 0, 0, 0, 0]);
        chain.extend([protocol::TCP, 0, 0, 0, 0, 0, 0, 1]);
        chain.extend(segment(0, b"hello"));
        let bytes = v6(
            u16::try_from(chain.len()).unwrap(),
            protocol::HOP_BY_HOP,
            &chain,
        );
        let tcp = tcp_of(&bytes, u32_len(bytes.len()));
        assert_eq!((tcp.payload, tcp.wire_len), (&b"hello"[..], 5));
        assert_eq!((tcp.ttl, tcp.ip_id), (61, None));

        let mut jumbo = vec![protocol::TCP, 0, 0xc2, 4];
        jumbo.extend(200_000u32.to_be_bytes());
        jumbo.extend(segment(0, b"x"));
        let bytes = v6(0, protocol::HOP_BY_HOP, &jumbo);
        assert_eq!(tcp_of(&bytes, 60).wire_len, 200_000 - 8 - 20);
    }

    #[test]
    fn fragments_are_told_apart() {
        let mut first = v4(40, 0, &segment(0, b""));
        first[6] = 0x20;
        assert_eq!(parse_ip(&first, 40), Ok(IpPacket::Fragment));
        let six = v6(
            28,
            protocol::FRAGMENT,
            &[protocol::TCP, 0, 0, 9, 0, 0, 0, 1],
        );
        assert_eq!(parse_ip(&six, 68), Ok(IpPacket::Fragment));
    }

    #[test]
    fn contradicting_lengths_are_refused() {
        let mut short_offset = segment(0, b"");
        short_offset[12] = 0x40;
        assert_eq!(
            parse_ip(&v4(40, 0, &short_offset), 40),
            Err(PacketError::Length)
        );
        let long_offset = &segment(40, b"")[..20];
        assert_eq!(
            parse_ip(&v4(40, 0, long_offset), 40),
            Err(PacketError::Length)
        );
        assert_eq!(parse_ip(&v4(19, 0, &[]), 40), Err(PacketError::Length));
        assert_eq!(parse_ip(&[0x55; 60], 60), Err(PacketError::Version));
        assert_eq!(parse_ip(&[], 0), Err(PacketError::Truncated));
    }

    #[test]
    fn unreachables_quote_the_segment() {
        let quoted = &v4(60, 0, &segment(20, b""))[..28];
        let mut icmp = vec![3, 1, 0, 0, 0, 0, 0, 0];
        icmp.extend(quoted);
        let mut bytes = v4(56, 0, &icmp);
        bytes[9] = protocol::ICMP;
        bytes[15] = 254;
        let Ok(IpPacket::Icmp(quote)) = parse_ip(&bytes, 56) else {
            panic!("no quote");
        };
        assert_eq!(quote.from, IpAddr::from([10, 0, 0, 254]));
        assert_eq!((quote.kind, quote.code), (IcmpKind::Unreachable, 1));
        assert_eq!((quote.head_len, quote.seq), (36, 7));
        assert_eq!(quote.src, "10.0.0.1:49153".parse().unwrap());
        assert_eq!(quote.dst, "10.0.0.2:80".parse().unwrap());

        let mut icmp = vec![1, 3, 0, 0, 0, 0, 0, 0];
        icmp.extend(v6(20, protocol::TCP, &segment(0, b"")));
        let bytes = v6(68, protocol::ICMPV6, &icmp);
        let Ok(IpPacket::Icmp(quote)) = parse_ip(&bytes, 108) else {
            panic!("no quote");
        };
        assert_eq!((quote.code, quote.dst.port()), (3, 80));
        assert_eq!(quote.head_len, 68);
    }

    #[test]
    fn other_errors_are_told_apart_and_their_payload_left_out() {
        let with_payload = v4(152, 0, &segment(12, &[b'x'; 100]));
        let read = |kind: u8, quoted: &[u8], from: IpAddr| {
            let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
            icmp_quote(&message, from).map(|quote| (quote.kind, quote.head_len))
        };
        let from = IpAddr::from([10, 0, 0, 254]);
        let head = 8 + 20 + 32;
        let told = |kind| Some((kind, head));
        assert_eq!(read(11, &with_payload, from), told(IcmpKind::TimeExceeded));
        assert_eq!(read(3, &with_payload, from), told(IcmpKind::Unreachable));
        assert_eq!(read(2, &with_payload, from), None);
        let with_payload = v6(132, protocol::TCP, &segment(12, &[b'x'; 100]));
        let from = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 9]);
        let told = |kind| Some((kind, head + 20));
        assert_eq!(read(2, &with_payload, from), told(IcmpKind::TooBig));
        assert_eq!(read(3, &with_payload, from), told(IcmpKind::TimeExceeded));
        assert_eq!(read(11, &with_payload, from), None);
    }

    proptest! {
        #[test]
        fn any_bytes_do(bytes in proptest::collection::vec(any::<u8>(), 0..200), wire_len: u32) {
            if let Ok(IpPacket::Tcp(tcp)) = parse_ip(&bytes, wire_len) {
                prop_assert!(tcp.payload.len() <= tcp.wire_len as usize);
            }
        }

        #[test]
        fn any_damage_does(
            at in 0usize..200,
            value: u8,
            cut in 0usize..200,
            six: bool,
            options in 0usize..3,
        ) {
            let segment = segment(12, &[b'x'; 100]);
            let mut bytes = if six {
                v6(132, protocol::TCP, &segment)
            } else {
                v4(152 + 4 * options as u16, 4 * options, &segment)
            };
            let whole = u32_len(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut);
            // The short way says nothing else than the long one.
            if let Some(tcp) = plain_segment(&bytes, whole) {
                prop_assert_eq!(parse_ip(&bytes, whole), Ok(IpPacket::Tcp(tcp)));
            }
            if let Ok(IpPacket::Tcp(tcp)) = parse_ip(&bytes, whole) {
                prop_assert!(tcp.payload.len() <= tcp.wire_len as usize);
            }
        }
    }
}
