//! DNS in capture files: whoever asks is taken for the gateway, as whoever opens a connection is.

use core::net::{IpAddr, SocketAddr};

use super::options::Options;
use crate::dns::{PORT, Piece, Streams};
use crate::input::packet::Datagram;
use crate::model::{Direction, DnsMessage, HopId, Segment, Timestamp};

/// Whether a segment belongs to a connection to a name server, which carries no HTTP.
#[inline]
pub(super) const fn is_dns(segment: &Segment<'_>) -> bool {
    segment.upstream.port() == PORT
}

/// The messages of DNS in a file.
pub(super) struct Names {
    /// Addresses of the gateway; empty for any.
    gateways: Vec<IpAddr>,
    /// Whether a name without an address can be what was asked for.
    wanted: bool,
    streams: Streams,
}

impl Names {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            gateways: options.gateways.clone(),
            wanted: options.upstreams.is_empty(),
            streams: Streams::default(),
        }
    }

    /// Whether events without an address are of interest: where upstreams were named, they are not.
    pub(super) const fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// The message in a datagram.
    pub(super) fn datagram<'a>(&self, datagram: &Datagram<'a>) -> Option<DnsMessage<'a>> {
        // The first bit behind the id tells an answer, where both ports are that of DNS.
        let answer = datagram
            .payload
            .get(2)
            .is_some_and(|flags| flags & 0x80 != 0);
        let ends = self.ends(datagram.src, datagram.dst, answer)?;
        Some(message(ends, false, datagram.payload, datagram.wire_len))
    }

    /// Hands the messages that a segment completes to `sink`.
    #[cold]
    #[inline(never)]
    pub(super) fn segment(
        &mut self,
        at: Timestamp,
        HopId(stream): HopId,
        segment: &Segment<'_>,
        mut sink: impl FnMut(DnsMessage<'_>),
    ) {
        let (local, resolver) = (segment.local, segment.upstream);
        let piece = Piece {
            direction: segment.direction,
            seq: segment.seq,
            flags: segment.flags,
            payload: segment.payload,
            wire_len: segment.wire_len,
        };
        let key = (stream, local, resolver);
        self.streams
            .segment(at, key, &piece, |direction, bytes, wire_len| {
                sink(message((direction, local, resolver), true, bytes, wire_len));
            });
    }

    /// The way of a packet, who asks, and who is asked; `None` where the gateway is another.
    fn ends(
        &self,
        src: SocketAddr,
        dst: SocketAddr,
        answer: bool,
    ) -> Option<(Direction, SocketAddr, SocketAddr)> {
        let asks = dst.port() == PORT && !(src.port() == PORT && answer);
        let (direction, local, resolver) = if asks {
            (Direction::ToUpstream, src, dst)
        } else {
            (Direction::FromUpstream, dst, src)
        };
        let admitted = self.gateways.is_empty() || self.gateways.contains(&local.ip());
        admitted.then_some((direction, local, resolver))
    }
}

fn message(
    (direction, local, resolver): (Direction, SocketAddr, SocketAddr),
    tcp: bool,
    payload: &[u8],
    wire_len: u32,
) -> DnsMessage<'_> {
    DnsMessage {
        process: None,
        on_behalf: false,
        direction,
        local,
        resolver,
        tcp,
        payload,
        wire_len,
    }
}
