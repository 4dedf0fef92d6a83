//! Packets between this host and its name servers as messages.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::decode::DnsPacket;
use super::process::Processes;
use super::translate::NotSegment;
use crate::dns::{Piece, Streams};
use crate::input::packet::{IpPacket, parse_datagram, parse_ip};
use crate::model::{Direction, DnsMessage, Timestamp};

/// Names of the resolvers that ask on behalf of the other processes of their host, as the kernel keeps
/// them: at most fifteen bytes.
pub(super) const RESOLVERS: [&str; 14] = [
    "systemd-resolve",
    "dnsmasq",
    "unbound",
    "named",
    "nscd",
    "nsncd",
    "coredns",
    "node-cache",
    "pdns_recursor",
    "kresd",
    "stubby",
    "dnscrypt-proxy",
    "dockerd",
    "aardvark-dns",
];

/// Stands in for an end until it is known.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Cuts messages out of packets.
#[derive(Debug, Default)]
pub(super) struct Names {
    streams: Streams,
}

impl Names {
    /// Hands the messages that a packet of the socket `cookie` completes to `sink`.
    pub(super) fn packet(
        &mut self,
        at: Timestamp,
        cookie: u64,
        packet: &DnsPacket<'_>,
        processes: &mut Processes,
        mut sink: impl FnMut(DnsMessage<'_>),
    ) -> Result<(), NotSegment> {
        let direction = if packet.egress {
            Direction::ToUpstream
        } else {
            Direction::FromUpstream
        };
        let ends = |src, dst| match direction {
            Direction::ToUpstream => (src, dst),
            Direction::FromUpstream => (dst, src),
        };
        let asker = DnsMessage {
            process: Some(processes.of_caller(&packet.caller, packet.netns)),
            on_behalf: packet.on_behalf,
            direction,
            local: UNKNOWN,
            resolver: UNKNOWN,
            tcp: false,
            payload: &[],
            wire_len: 0,
        };
        match parse_ip(packet.bytes, packet.wire_len)? {
            IpPacket::Tcp(tcp) => {
                let (local, resolver) = ends(tcp.src, tcp.dst);
                let piece = Piece {
                    direction,
                    seq: tcp.seq,
                    flags: tcp.flags,
                    payload: tcp.payload,
                    wire_len: tcp.wire_len,
                };
                let key = (cookie, local, resolver);
                self.streams
                    .segment(at, key, &piece, |direction, payload, wire_len| {
                        sink(DnsMessage {
                            direction,
                            local,
                            resolver,
                            tcp: true,
                            payload,
                            wire_len,
                            ..asker.clone()
                        });
                    });
                Ok(())
            }
            // The socket belongs to DNS, whatever the ports are once addresses were translated.
            IpPacket::Dns(_) | IpPacket::Other => {
                let datagram = parse_datagram(packet.bytes, packet.wire_len)
                    .ok_or(NotSegment::OtherProtocol)?;
                let (local, resolver) = ends(datagram.src, datagram.dst);
                sink(DnsMessage {
                    local,
                    resolver,
                    payload: datagram.payload,
                    wire_len: datagram.wire_len,
                    ..asker
                });
                Ok(())
            }
            IpPacket::Icmp(_) | IpPacket::Fragment => Err(NotSegment::OtherProtocol),
        }
    }
}
