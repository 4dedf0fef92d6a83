//! Sockets from which gateways, and the resolvers of this host, ask name servers, and what passes them.
//!
//! A packet tells no process. A datagram socket is made in the context of its process, so that this is
//! remembered by the socket's cookie then; a stream to a name server is known when it opens.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes};
use aya_ebpf::programs::SockContext;
use hopscope_ebpf::{
    Caller, Counter, DNS_TIERS, DnsHeader, DnsSocket, Endpoints, Header, dns_role, kind,
};

use crate::ctx;
use crate::emit::{reserve, submit};
use crate::gateway::is_gateway;
use crate::maps::{DNS_SOCKETS, RESOLVERS, count};
use crate::segment::{Segment, behind, bounded, now};

/// The port of DNS over UDP and TCP.
pub(crate) const PORT: u16 = 53;

/// `SOCK_DGRAM` of `include/linux/net.h`.
const DATAGRAM: u32 = 2;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// A message with room for `CAP` bytes of its packet.
#[repr(C)]
struct DnsRecord<const CAP: usize> {
    header: DnsHeader,
    bytes: [u8; CAP],
}

/// The current process made a socket.
#[inline(always)]
pub(crate) fn created(ctx: &SockContext) -> Option<()> {
    if !is_udp(ctx) {
        return None;
    }
    let comm = ctx::comm();
    let role = if is_gateway(&comm, &[0; 16], 0) {
        dns_role::GATEWAY
    } else if RESOLVERS.get_ptr(comm).is_some() {
        dns_role::RESOLVER
    } else {
        return None;
    };
    enter(cookie(ctx), ctx::caller(comm), ctx::netns(), role);
    Some(())
}

/// A socket is closed for good.
#[inline(always)]
pub(crate) fn released(ctx: &SockContext) {
    if is_udp(ctx) {
        gone(cookie(ctx));
    }
}

/// Nothing passes the socket any more.
#[inline(always)]
pub(crate) fn gone(cookie: u64) {
    // Most have no entry, and a look costs less than a removal.
    if DNS_SOCKETS.get_ptr(cookie).is_some() {
        let _ = DNS_SOCKETS.remove(cookie);
    }
}

#[inline(always)]
fn is_udp(ctx: &SockContext) -> bool {
    // SAFETY: the program's own context.
    let (shape, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    shape == DATAGRAM && protocol == u32::from(UDP)
}

#[inline(always)]
fn cookie(ctx: &SockContext) -> u64 {
    // SAFETY: the program's own context, for which the verifier admits this call.
    unsafe { bpf_get_socket_cookie(ctx.sock.cast()) }
}

/// A gateway opens a stream to a name server, which is no hop.
#[inline(always)]
pub(crate) fn opened(cookie: u64, caller: Caller, ends: &Endpoints) {
    enter(cookie, caller, ends.netns, dns_role::GATEWAY);
}

#[inline(always)]
fn enter(cookie: u64, caller: Caller, netns: u32, role: u32) {
    let socket = DnsSocket {
        caller,
        netns,
        role,
    };
    if DNS_SOCKETS.insert(cookie, socket, 0).is_err() {
        count(Counter::DnsMapFull);
    }
}

/// Whether a packet at a socket whose other end has `port` may be a query to a name server or its answer.
/// A socket that talks to many has none.
#[inline(always)]
pub(crate) fn may_pass(skb: *mut __sk_buff, port: u16, egress: u32) -> bool {
    port == PORT || (port == 0 && is_datagram(skb, egress))
}

/// A packet that may be one passed a socket.
#[inline(always)]
pub(crate) fn seen(segment: &Segment) -> Option<()> {
    let socket = DNS_SOCKETS.get_ptr(segment.cookie)?;
    if segment
        .shape()
        .is_some_and(|shape| shape.payload == 0 && shape.plain)
    {
        // A stream's acknowledgement.
        return None;
    }
    if segment.wire_len <= DNS_TIERS[0] {
        send::<{ DNS_TIERS[0] as usize }>(segment, socket)
    } else {
        send::<{ DNS_TIERS[1] as usize }>(segment, socket)
    }
}

/// Sends the packet up in a record with room for `CAP` bytes.
#[inline(always)]
fn send<const CAP: usize>(segment: &Segment, socket: *const DnsSocket) -> Option<()> {
    let most = if segment.wire_len < CAP as u32 {
        segment.wire_len
    } else {
        CAP as u32
    };
    let captured = bounded(most, CAP as u32)?;
    let mut room = reserve::<DnsRecord<CAP>>()?;
    let record = room.as_mut_ptr();
    // SAFETY: `record` has room for `CAP` bytes, and `captured` is at most `CAP`.
    let loaded = unsafe {
        bpf_skb_load_bytes(
            segment.skb.cast(),
            0,
            (&raw mut (*record).bytes).cast(),
            captured,
        )
    };
    if loaded != 0 {
        count(Counter::LoadFailed);
        room.discard(0);
        return None;
    }
    let header = DnsHeader {
        header: Header {
            kind: kind::DNS,
            reserved: 0,
            len: size_of::<DnsHeader>() as u32 + captured,
            time_ns: now(),
            cookie: segment.cookie,
        },
        // SAFETY: an entry of a live map, which changes only where a cookie is used again; none is.
        socket: unsafe { *socket },
        wire_len: segment.wire_len,
        captured,
        egress: segment.egress,
        reserved: 0,
    };
    // SAFETY: as above.
    unsafe { (&raw mut (*record).header).write(header) };
    submit(room);
    Some(())
}

/// Whether a packet is a UDP datagram to a name server, or one from there.
#[inline(always)]
fn is_datagram(skb: *mut __sk_buff, egress: u32) -> bool {
    const V4_LEN: usize = 20;
    const V6_LEN: usize = 40;
    const UDP_LEN: usize = 8;

    // SAFETY: the program's own context.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // SAFETY: each read comes behind a check of the end, as the verifier demands.
    let byte = |at: usize| unsafe { *(at as *const u8) };
    if data + V4_LEN > end {
        return false;
    }
    let ip_len = match byte(data) >> 4 {
        4 if byte(data + 9) == UDP => usize::from(byte(data) & 0x0f) << 2,
        6 if byte(data + 6) == UDP => V6_LEN,
        _ => return false,
    };
    let udp = behind(data, ip_len);
    if udp + UDP_LEN > end {
        return false;
    }
    // The port of the other end: the destination on the way out, else the source.
    let (high, low) = if egress == 0 {
        (byte(udp), byte(udp + 1))
    } else {
        (byte(udp + 2), byte(udp + 3))
    };
    u16::from_be_bytes([high, low]) == PORT
}
