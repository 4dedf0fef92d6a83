//! IP and TCP headers of one packet, for whatever source has its bytes from the IP header on.
//!
//! Decides what is a TCP segment and how long its payload was on the wire. Checksums are left alone:
//! offload leaves them unfinished where packets are captured. Fragments are refused: no TCP of today
//! sends any, and reassembling them would keep what an attacker sends.

use core::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6ExtensionsSlice, Ipv6HeaderSlice, TcpHeaderSlice};
use thiserror::Error;

use crate::model::{Direction, Segment, TcpFlags};

/// Why bytes are no TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotTcp {
    /// Neither IPv4 nor IPv6.
    #[error("the packet is neither IPv4 nor IPv6")]
    NotIp,
    /// The IP header or an extension header is cut short or contradicts itself.
    #[error("the IP header is malformed or cut short")]
    IpHeader,
    /// One fragment of a packet.
    #[error("the packet is a fragment")]
    Fragment,
    /// Another protocol.
    #[error("the packet carries IP protocol {0}, not TCP")]
    Protocol(u8),
    /// The TCP header is cut short or contradicts itself.
    #[error("the TCP header is malformed or cut short")]
    TcpHeader,
}

/// A TCP segment in its IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Who sent it.
    pub source: SocketAddr,
    /// Whom it is for.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// Advertised window, unscaled.
    pub window: u16,
    /// Captured payload.
    pub payload: &'a [u8],
    /// Payload bytes on the wire.
    pub payload_len: u32,
    /// IPv4 time to live or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 identification.
    pub ip_id: Option<u16>,
}

impl<'a> IpPacket<'a> {
    /// The packet as a segment of a hop.
    pub const fn segment(&self, direction: Direction) -> Segment<'a> {
        let (local, upstream) = match direction {
            Direction::ToUpstream => (self.source, self.destination),
            Direction::FromUpstream => (self.destination, self.source),
        };
        Segment {
            direction,
            local,
            upstream,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            payload: self.payload,
            wire_len: self.payload_len,
            ttl: self.ttl,
            ip_id: self.ip_id,
        }
    }
}

/// Reads a packet from its IP header on. `wire_len` is its length before it was captured short.
///
/// The length in the IP header is believed only where it fits: behind a short packet there may be
/// Ethernet padding, and segmentation offload hands on packets longer than the field can say.
pub fn parse_ip(bytes: &[u8], wire_len: u32) -> Result<IpPacket<'_>, NotTcp> {
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(bytes, wire_len),
        Some(6) => parse_v6(bytes, wire_len),
        _ => Err(NotTcp::NotIp),
    }
}

fn parse_v4(bytes: &[u8], wire_len: u32) -> Result<IpPacket<'_>, NotTcp> {
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| NotTcp::IpHeader)?;
    if header.is_fragmenting_payload() {
        return Err(NotTcp::Fragment);
    }
    if header.protocol() != IpNumber::TCP {
        return Err(NotTcp::Protocol(header.protocol().0));
    }
    let header_len = header.slice().len();
    let rest = bytes.get(header_len..).ok_or(NotTcp::IpHeader)?;
    let said = u32::from(header.total_len()).checked_sub(length(header_len));
    let network = Network {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.ttl(),
        ip_id: Some(header.identification()),
    };
    parse_tcp(
        rest,
        &network,
        said,
        wire_len.saturating_sub(length(header_len)),
    )
}

fn parse_v6(bytes: &[u8], wire_len: u32) -> Result<IpPacket<'_>, NotTcp> {
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| NotTcp::IpHeader)?;
    let after = bytes.get(header.slice().len()..).ok_or(NotTcp::IpHeader)?;
    let (extensions, protocol, rest) = Ipv6ExtensionsSlice::from_slice(header.next_header(), after)
        .map_err(|_| NotTcp::IpHeader)?;
    if extensions.is_fragmenting_payload() {
        return Err(NotTcp::Fragment);
    }
    if protocol != IpNumber::TCP {
        return Err(NotTcp::Protocol(protocol.0));
    }
    let skipped = length(after.len() - rest.len());
    let said = u32::from(header.payload_length()).checked_sub(skipped);
    let header_len = length(header.slice().len()) + skipped;
    let network = Network {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.hop_limit(),
        ip_id: None,
    };
    parse_tcp(rest, &network, said, wire_len.saturating_sub(header_len))
}

/// What the IP header says about a segment.
struct Network {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    ip_id: Option<u16>,
}

/// Reads a segment; `said` is its length by the IP header, `seen` by who captured it.
fn parse_tcp<'a>(
    bytes: &'a [u8],
    network: &Network,
    said: Option<u32>,
    seen: u32,
) -> Result<IpPacket<'a>, NotTcp> {
    let tcp = TcpHeaderSlice::from_slice(bytes).map_err(|_| NotTcp::TcpHeader)?;
    let header_len = tcp.slice().len();
    let len = match said {
        Some(said) if said <= seen && said >= length(header_len) => said,
        _ => seen,
    };
    let payload_len = len.saturating_sub(length(header_len));
    let payload = bytes.get(header_len..).unwrap_or_default();
    let kept = payload
        .len()
        .min(usize::try_from(payload_len).unwrap_or(usize::MAX));
    // The thirteenth byte holds the eight control bits (RFC 9293 section 3.1).
    let flags = TcpFlags(tcp.slice().get(13).copied().unwrap_or(0));
    Ok(IpPacket {
        source: SocketAddr::new(network.source, tcp.source_port()),
        destination: SocketAddr::new(network.destination, tcp.destination_port()),
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags,
        window: tcp.window_size(),
        payload: payload.get(..kept).unwrap_or_default(),
        payload_len,
        ttl: network.ttl,
        ip_id: network.ip_id,
    })
}

/// Lengths here are of captured packets, far below the limit.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// IPv4, 20 bytes of header, then TCP with 20 bytes of header and `payload`.
    fn v4(payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(40 + payload.len()).unwrap();
        let mut out = vec![0x45, 0];
        out.extend(total.to_be_bytes());
        out.extend([0x12, 0x34, 0x40, 0, 63, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        out.extend(tcp(payload));
        out
    }

    fn tcp(payload: &[u8]) -> Vec<u8> {
        let mut out = vec![
            0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x18, 0x01, 0x00,
        ];
        out.extend([0, 0, 0, 0]);
        out.extend(payload);
        out
    }

    /// IPv6 with a hop-by-hop header of eight bytes.
    fn v6(payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(28 + payload.len()).unwrap();
        let mut out = vec![0x60, 0, 0, 0];
        out.extend(len.to_be_bytes());
        out.extend([0, 61]);
        out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        out.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        out.extend(tcp(payload));
        out
    }

    fn len(bytes: &[u8]) -> u32 {
        u32::try_from(bytes.len()).unwrap()
    }

    #[test]
    fn headers_are_read() {
        let bytes = v4(b"hello");
        let packet = parse_ip(&bytes, len(&bytes)).unwrap();
        assert_eq!(packet.source, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(packet.destination, "10.0.0.2:80".parse().unwrap());
        assert_eq!((packet.seq, packet.ack, packet.window), (7, 9, 256));
        assert_eq!(packet.flags, TcpFlags::ACK.union(TcpFlags::PSH));
        assert_eq!((packet.payload, packet.payload_len), (&b"hello"[..], 5));
        assert_eq!((packet.ttl, packet.ip_id), (63, Some(0x1234)));

        let bytes = v6(b"hello");
        let packet = parse_ip(&bytes, len(&bytes)).unwrap();
        assert_eq!(packet.source, "[fd00::1]:8080".parse().unwrap());
        assert_eq!((packet.payload, packet.payload_len), (&b"hello"[..], 5));
        assert_eq!((packet.ttl, packet.ip_id), (61, None));
    }

    #[test]
    fn directions_name_the_ends() {
        let bytes = v4(b"");
        let packet = parse_ip(&bytes, 40).unwrap();
        assert_eq!(packet.segment(Direction::ToUpstream).upstream.port(), 80);
        assert_eq!(
            packet.segment(Direction::FromUpstream).upstream.port(),
            8080
        );
    }

    #[test]
    fn a_packet_captured_short_keeps_its_length() {
        let bytes = v4(&[b'x'; 1000]);
        let packet = parse_ip(&bytes[..100], len(&bytes)).unwrap();
        assert_eq!((packet.payload.len(), packet.payload_len), (60, 1000));
    }

    #[test]
    fn a_packet_longer_than_its_header_says_is_cut_only_where_the_field_is_set() {
        let mut padded = v4(b"");
        padded.extend([0; 6]);
        assert_eq!(
            parse_ip(&padded, 46).unwrap().payload_len,
            0,
            "Ethernet padding"
        );
        let mut large = v4(&[b'x'; 100]);
        large[2..4].fill(0);
        assert_eq!(
            parse_ip(&large, 140).unwrap().payload_len,
            100,
            "segmentation offload"
        );
    }

    #[test]
    fn what_is_no_segment_is_named() {
        let refuse = |bytes: &[u8]| parse_ip(bytes, len(bytes)).unwrap_err();
        assert_eq!(refuse(&[]), NotTcp::NotIp);
        assert_eq!(refuse(&[0x70; 60]), NotTcp::NotIp);
        let mut udp = v4(b"");
        udp[9] = 17;
        assert_eq!(refuse(&udp), NotTcp::Protocol(17));
        let mut fragment = v4(b"");
        fragment[6] = 0x20;
        assert_eq!(refuse(&fragment), NotTcp::Fragment);
        let mut offset = v4(b"");
        offset[32] = 0xf0;
        assert_eq!(refuse(&offset), NotTcp::TcpHeader);
        assert_eq!(refuse(&v4(b"")[..19]), NotTcp::IpHeader);
    }

    #[test]
    fn every_truncation_is_handled() {
        for bytes in [v4(b"hello"), v6(b"hello")] {
            for cut in 0..bytes.len() {
                let headers = bytes.len() - 5;
                assert_eq!(
                    parse_ip(&bytes[..cut], len(&bytes)).is_ok(),
                    cut >= headers,
                    "{cut}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes: Vec<u8>, version in 0_u8..16, wire_len: u32) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            if let Ok(packet) = parse_ip(&bytes, wire_len) {
                prop_assert!(packet.payload.len() <= bytes.len());
                prop_assert!(packet.payload_len <= wire_len);
            }
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0_usize..70, value: u8) {
            for mut bytes in [v4(b"hello"), v6(b"hello")] {
                let at = at % bytes.len();
                bytes[at] = value;
                let _ = parse_ip(&bytes, len(&bytes));
            }
        }
    }
}
