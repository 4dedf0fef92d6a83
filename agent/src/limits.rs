//! Every cap of the engine in one struct, and the memory bound that it implies.

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
    /// Out-of-order payload and incomplete heads kept of all hops together; the hop silent longest is
    /// evicted for more.
    pub kept_bytes: usize,
    /// Requests kept on one hop whose response has not begun (pipelining).
    pub pipelined: usize,
    /// Upstreams remembered to compare a failure with earlier successes.
    pub upstreams: usize,
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
            events: 65_536,
        }
    }
}
