//! What goes into the engine: segments, signals, and word of what was lost.

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{
    ClientAnswer, Direction, Errno, HeldExchanges, HopId, Process, ResetReason, SocketCall, Target,
    TcpFlags, TcpState, Timestamp,
};

/// What a client that left had of its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It waited for an answer that had not begun.
    Waiting,
    /// Its answer had begun, or it had asked for nothing.
    Answered,
    /// That is not known: its requests cannot be read.
    Unknown,
}

/// One observation. Its time is passed beside it.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A TCP segment of a hop.
    Segment {
        /// The hop it belongs to.
        hop: HopId,
        /// The segment.
        segment: Segment<'a>,
    },
    /// What the gateway wrote to a hop, or read from it, inside TLS.
    Plaintext {
        /// The hop it belongs to.
        hop: HopId,
        /// What it was.
        text: Plaintext<'a>,
    },
    /// A kernel fact about a hop.
    Signal {
        /// The hop it is about.
        hop: HopId,
        /// The fact.
        signal: Signal,
    },
    /// `connect()` failed before the socket ever entered `SYN_SENT`, or on a unix socket, so there is no
    /// hop and no packet.
    ConnectFailed {
        /// The process that called it.
        process: Arc<Process>,
        /// Where it wanted to go.
        upstream: Target,
        /// What it was told.
        errno: Errno,
        /// The turn that called it, where the source knows it.
        turn: Option<Turn>,
        /// The goroutine that called it, where the source knows it.
        goroutine: Option<Goroutine>,
    },
    /// What a client of a gateway got, where that was a failure.
    Answer(ClientAnswer<'a>),
    /// A gateway listens for clients: from now on its answers are told of.
    Listening {
        /// The process that listens.
        process: Arc<Process>,
        /// Where it listens; the address may be unspecified.
        local: SocketAddr,
        /// Whether all answers there can be read; not where clients speak TLS or HTTP/2, unless the gateway's
        /// library tells of them.
        readable: bool,
    },
    /// The answer to [`Engine::asks_who_waits`](crate::engine::Engine::asks_who_waits): since when the client
    /// has waited for its answer that has waited longest, in each network namespace where one does.
    Waiting(&'a [(u64, Timestamp)]),
    /// A system call about a socket failed in a gateway, which is no failure of an upstream.
    SocketFailed {
        /// The process that called it.
        process: Arc<Process>,
        /// Its turn.
        turn: Turn,
        /// The call.
        call: SocketCall,
        /// What it was told.
        errno: Errno,
    },
    /// A gateway's thread closed the connection of a client that had closed it before. Hops that the same
    /// thread closes in the same turn for want of a client did not fail.
    ClientLeft {
        /// Of which thread, and when in its life.
        turn: Turn,
        /// What the client left.
        departure: Departure,
    },
    /// An ICMP error that quotes a segment of some hop.
    Icmp {
        /// What it says.
        error: IcmpError,
        /// The message, from the IP header on; empty where the source keeps none.
        packet: &'a [u8],
    },
    /// A DNS message between a gateway and a resolver.
    Dns(DnsMessage<'a>),
    /// The source lost records: every hop that is open now may have missed some.
    Lost {
        /// How many records were lost since the last such word.
        records: u64,
    },
}

/// What a thread does between two sleeps: one turn of a gateway's event loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Turn {
    /// The thread's id.
    pub thread: u32,
    /// How often it went to sleep before, or asked for events where it need not sleep for that, modulo 2^32.
    pub number: u32,
}

/// A goroutine of a program written in Go. Its scheduler moves them between threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Goroutine {
    /// Its number, which no other goroutine of its process ever has.
    pub id: u64,
    /// The number of the goroutine that started it.
    pub parent: u64,
}

/// One observed TCP segment. `payload` may be shorter than `wire_len`: captured short.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// The gateway's end.
    pub local: SocketAddr,
    /// The upstream's end.
    pub upstream: SocketAddr,
    /// Sequence number of the first payload byte, or of the SYN.
    pub seq: u32,
    /// Acknowledgement number; meaningless without the ACK flag.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// Advertised window, unscaled.
    pub window: u16,
    /// The captured payload bytes.
    pub payload: &'a [u8],
    /// Payload bytes on the wire.
    pub wire_len: u32,
    /// The whole packet as captured, from the IP header on to the end of `payload`; empty where the
    /// source has none.
    pub packet: &'a [u8],
    /// IPv4 time to live or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 identification, where there is one.
    pub ip_id: Option<u16>,
    /// Headers of TLS records in the payload, most of them behind what was captured of it.
    pub records: RecordHeads<'a>,
}

/// Headers of TLS records inside a segment, in order: bytes of the payload, each with its place there. The last
/// may go on in the next segment: what is behind the end of this one counts for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeads<'a>(&'a [u8]);

impl<'a> RecordHeads<'a> {
    /// Bytes of one: its place as four bytes of this machine's order, the five bytes of the header
    /// (RFC 8446 section 5.1), and three more.
    pub const BYTES: usize = 12;

    /// None.
    pub const NONE: Self = Self(&[]);

    /// As the kernel lays them out, one behind the other.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Place and bytes of each.
    pub fn iter(self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let (heads, _) = self.0.as_chunks::<{ RecordHeads::BYTES }>();
        heads.iter().map(|head| {
            let (place, rest) = head.split_at(size_of::<u32>());
            let place = place.try_into().map_or(u32::MAX, u32::from_ne_bytes);
            (place, rest.split_at(5).0)
        })
    }
}

/// What the gateway's TLS library took from the gateway for the upstream, or gave to it, in one call. Where
/// the gateway asked for more and there was none, it is empty: everything that the upstream had sent by then
/// was read. It is empty for the upstream where the gateway sends more in a way that is not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plaintext<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Bytes of the same direction before it, inside TLS, and [`UNKNOWN`](Self::UNKNOWN) for each time that it
    /// is not known how many there were.
    pub offset: u64,
    /// The first bytes of it, as many as were captured.
    pub payload: &'a [u8],
    /// How many there were.
    pub len: u32,
}

impl Plaintext<'_> {
    /// More bytes than there are in one text.
    pub const UNKNOWN: u64 = 1 << 32;
}

/// A DNS message over UDP, or one that was cut out of a TCP stream.
#[derive(Clone, Debug)]
pub struct DnsMessage<'a> {
    /// The process that asks, where the source knows it.
    pub process: Option<Arc<Process>>,
    /// Whether that is a resolver of the gateway's own host, which asks on behalf of others.
    pub on_behalf: bool,
    /// Which way it went: `ToUpstream` is a query.
    pub direction: Direction,
    /// The end that asks.
    pub local: SocketAddr,
    /// The resolver.
    pub resolver: SocketAddr,
    /// Whether it came over TCP.
    pub tcp: bool,
    /// The captured bytes of the message; empty, with no length, where bytes of a TCP stream were missed, so
    /// that messages may have been.
    pub payload: &'a [u8],
    /// Its length on the wire.
    pub wire_len: u32,
}

/// Which end did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The gateway or its kernel.
    Gateway,
    /// The upstream or its kernel.
    Upstream,
}

/// A fact that the kernel states and packets cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A gateway process entered `SYN_SENT`. The local end may still be unknown.
    Opened {
        /// The connecting process.
        process: Arc<Process>,
        /// The gateway's end, once a port is bound.
        local: Option<SocketAddr>,
        /// The upstream's end.
        upstream: SocketAddr,
        /// The turn that connects.
        turn: Turn,
        /// Since that turn began, where that is known: what came later was not read before it connected.
        turn_age: Option<Duration>,
        /// The goroutine that connects, where the source knows it.
        goroutine: Option<Goroutine>,
    },
    /// The hop was already open when hopscope first saw it: joined mid-stream.
    Seeded {
        /// The owning process.
        process: Arc<Process>,
        /// The gateway's end.
        local: SocketAddr,
        /// The upstream's end.
        upstream: SocketAddr,
    },
    /// The hop was opened where its packets are not seen, or not from the first on: what is seen of it begins
    /// mid-stream. Follows [`Opened`](Self::Opened).
    Unwatched,
    /// The gateway's socket changed state (`inet_sock_set_state`).
    State {
        /// State before.
        old: TcpState,
        /// State after.
        new: TcpState,
        /// `sk_err` at that moment, where one is set.
        errno: Option<Errno>,
        /// `tcp_sock.bytes_acked`, where the kernel could be read; above zero means that the
        /// connection was established once.
        bytes_acked: Option<u64>,
        /// Smoothed round-trip time, where known.
        rtt_us: Option<u32>,
        /// What ran then: the turn that closed the socket, where a close changed the state.
        turn: Turn,
    },
    /// `connect()` on a tracked hop returned this error to its caller.
    ConnectReturned {
        /// What the caller was told.
        errno: Errno,
    },
    /// A reset arrived (`tcp_receive_reset`).
    ResetReceived,
    /// A reset was sent (`tcp_send_reset`); by the upstream only where both ends are on this host.
    ResetSent {
        /// Whose kernel sent it.
        by: Actor,
        /// Why, where the kernel says.
        reason: Option<ResetReason>,
    },
    /// The gateway's kernel retransmitted a segment (`tcp_retransmit_skb`).
    Retransmitted {
        /// State of the socket then: `SynSent` means that a SYN was repeated.
        state: Option<TcpState>,
    },
    /// The TLS library of the gateway's process said something about the hop.
    Library(LibraryFact),
    /// Healthy exchanges were held back in the kernel and are over. The segments of the hop that follow
    /// belong to a later exchange.
    Held(Box<HeldExchanges>),
    /// The kernel reported an error on the socket (`inet_sk_error_report`).
    SocketError {
        /// The error.
        errno: Errno,
    },
}

/// What OpenSSL said about a hop to the program that uses it. Only what somebody acts on is told: a hop
/// that is well has none of this, save a [`Verified`](Self::Verified) with code zero from a program that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LibraryFact {
    /// It raised an error in the handshake of this hop, or as this hop was read or written
    /// (`ERR_set_error`).
    Raised {
        /// Number of the part of OpenSSL that raised it: 20 is SSL. Errors of the others are not told.
        library: u32,
        /// Its reason. From 1000 on, of library 20: alert `reason - 1000` was received.
        reason: u32,
    },
    /// How the verification of the upstream's certificate chain ended. A chain that does not verify and
    /// that the program does not mind is not told.
    Verified {
        /// An `X509_V_` code, zero for a good chain.
        code: u32,
        /// Whether the program asked after the handshake (`SSL_get_verify_result`), as nginx does where it
        /// is to verify. Else the library gave up on it, and `Raised` with library 20 and reason 134
        /// (`CERTIFICATE_VERIFY_FAILED`) follows; code one (`X509_V_ERR_UNSPECIFIED`) is then a program's own
        /// check that failed on a good chain, HAProxy's of the name.
        asked: bool,
    },
}

/// The errors of ICMP (RFC 792) and `ICMPv6` (RFC 4443) that concern a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// "Destination unreachable"; for IPv4 also "fragmentation needed", which is its code 4.
    Unreachable,
    /// "Packet too big", of IPv6 only.
    TooBig,
    /// "Time exceeded".
    TimeExceeded,
}

/// An ICMP or `ICMPv6` error that quotes a segment to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Inode of the network namespace it arrived in, or zero from a file.
    pub netns: u64,
    /// Who sent it. The host's own address means that its own neighbour lookup failed.
    pub from: IpAddr,
    /// Whether `from` is an address of the gateway host itself.
    pub from_self: bool,
    /// Which error it is.
    pub kind: IcmpKind,
    /// ICMP code: RFC 792 and RFC 1812 section 5.2.7.1 for IPv4, RFC 4443 section 3.1 for IPv6.
    pub code: u8,
    /// The gateway's end, from the quoted segment.
    pub local: SocketAddr,
    /// The upstream's end, from the quoted segment.
    pub upstream: SocketAddr,
}
