//! Every cap of the engine in one struct, and the memory bound that it implies.

use crate::tls::Session;

/// Caps on what the engine keeps. Reaching one is counted, never silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Hops tracked at once; the one idle longest is evicted for a new one.
    pub hops: usize,
    /// Out-of-order payload bytes kept per direction of a hop.
    pub reassembly_bytes: usize,
    /// Out-of-order pieces kept per direction of a hop.
    pub reassembly_pieces: usize,
    /// Bytes of a response head kept for judging it.
    pub head_bytes: usize,
    /// Memory for out-of-order payload, incomplete heads, TLS handshakes and pipelined requests of all
    /// hops together; the hop silent longest is evicted for more.
    pub kept_bytes: usize,
    /// Requests kept on one hop whose response has not begun (pipelining).
    pub pipelined: usize,
    /// Upstreams remembered to compare a failure with earlier successes.
    pub upstreams: usize,
    /// Names that are being resolved, or were within the last seconds; the oldest is forgotten for a new
    /// one.
    pub lookups: usize,
    /// Addresses whose names are remembered, and names whose addresses are.
    pub names: usize,
    /// Events kept until they are polled.
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hops: 65_536,
            reassembly_bytes: 256 * 1024,
            reassembly_pieces: 64,
            // Above the head limits of nginx, HAProxy, Apache and Envoy (GATEWAYS: 4 KiB to 60 KiB).
            head_bytes: 64 * 1024,
            kept_bytes: 64 * 1024 * 1024,
            pipelined: 64,
            upstreams: 4096,
            lookups: 2048,
            names: 4096,
            events: 65_536,
        }
    }
}

impl Limits {
    /// What one hop may take beside [`Limits::kept_bytes`]: its state, one exchange with five texts of
    /// 512 bytes, findings, and its places in tables and queues. An ordinary hop takes a quarter.
    pub const HOP_BYTES: usize = 8 * 1024;

    /// What an upstream may take, and an event that nobody polled.
    pub const UPSTREAM_BYTES: usize = 1536;
    /// What a name that is being resolved may take: each query and answer with names of their own.
    pub const LOOKUP_BYTES: usize = 40 * 1024;
    /// What an address with its names and a name with its addresses may take.
    pub const NAME_BYTES: usize = 8 * 1024;
    /// An event with its evidence.
    pub const EVENT_BYTES: usize = 4 * 1024;

    /// The most memory that an engine takes, in bytes, whatever goes in. It is what hostile traffic
    /// may bring it to; healthy traffic stays far below.
    pub const fn memory_bound(&self) -> usize {
        // One hop's head, handshake or pieces may be above the sum before another hop is evicted for them.
        let one_hop = 2 * self.reassembly_bytes + 3 * self.head_bytes + Session::MAX_KEPT_BYTES;
        self.hops * Self::HOP_BYTES
            + self.kept_bytes
            + one_hop
            + self.upstreams * Self::UPSTREAM_BYTES
            + self.lookups * Self::LOOKUP_BYTES
            + self.names * Self::NAME_BYTES
            + self.events * Self::EVENT_BYTES
    }
}
