//! The client side of gateways: what their accepted sockets were asked and what they answered.
//!
//! Of each request the first bytes are kept in the kernel until the response begins. A response that is
//! no 5xx ends that, and nothing leaves the kernel. A 5xx, or a close without any response, sends up
//! what was kept. Where the requests cannot be read, as with TLS, nothing is known, and that is counted.
//!
//! A socket counts as a gateway's where it was accepted on a port that a gateway listens on in the same
//! network namespace. Which process and thread answers is told by the context in which the response is
//! sent, that of the writer but for what the kernel sends later by itself; user space decides whether it
//! is a gateway's.
//!
//! The segment programs hand the packets of such ports over by tail calls, so that these programs have
//! a stack and a fate of their own.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_skb_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::programs::{BtfTracePointContext, SkBuffContext};
use hopscope_ebpf::{
    CLIENT_REQUEST_LEN, CLIENT_RESPONSE_LEN, COMM_LEN, Client, ClientRecord, Counter, Endpoints,
    Header, ListenerKey, OpenRecord, SocketCallRecord, StateRecord, client_flag, hop_flag, kind,
};

use crate::ctx::{self, Sock, field};
use crate::emit::{emit, header};
use crate::gateway::is_gateway_process;
use crate::maps::{self, EVENTS, HOPS, count};
use crate::segment::{START_LEN, Segment, Shape, bounded, now};

/// Clients' connections watched at once, of a little more than one KiB each.
const CLIENTS_CAP: u32 = 32_768;

/// Listening sockets of gateways.
const LISTENERS_CAP: u32 = 4_096;

/// Every TCP port.
const PORTS_LEN: u32 = 1 << 16;

/// `BPF_F_NO_PREALLOC` of `include/uapi/linux/bpf.h`.
const NO_PREALLOC: u32 = 1;

/// `TCP_ESTABLISHED`, `TCP_SYN_RECV`, `TCP_CLOSE` and `TCP_LISTEN` of `include/net/tcp_states.h`.
const ESTABLISHED: i32 = 1;
const SYN_RECV: i32 = 3;
const CLOSE: u32 = 7;
const LISTEN: i32 = 10;

/// One at the index of every port that a gateway listens on.
#[map]
static CLIENT_PORTS: Array<u8> = Array::with_max_entries(PORTS_LEN, 0);

/// Where gateways listen.
#[map]
static LISTENERS: HashMap<ListenerKey, u8> = HashMap::with_max_entries(LISTENERS_CAP, 0);

/// Clients' connections, by socket cookie. Entries go with their sockets.
#[map]
static CLIENTS: HashMap<u64, Client> = HashMap::with_max_entries(CLIENTS_CAP, NO_PREALLOC);

/// What the last packet to a listener asked that came in on this processor, if anything. Of a listener that is
/// told of connections with their first data (`TCP_DEFER_ACCEPT` of tcp(7), as Apache has it), that data passes
/// before there is a socket for it; the kernel makes that right behind, if it takes the connection.
#[map]
static FIRST_DATA: PerCpuArray<Client> = PerCpuArray::with_max_entries(1, 0);

/// The programs behind the segment programs, one for each direction.
#[map]
static CLIENT_INGRESS: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static CLIENT_EGRESS: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Hands a packet over where it passes a socket of a port that a gateway listens on; comes back where it
/// does not, or where nobody takes it.
#[inline(always)]
pub(crate) fn passed(ctx: &SkBuffContext, egress: u32) {
    // SAFETY: the program's own context.
    let port = unsafe { (*ctx.skb.skb).local_port };
    if !is_client_port(port) {
        return;
    }
    // SAFETY: nothing here needs to be dropped.
    unsafe {
        if egress == 0 {
            CLIENT_INGRESS.tail_call(ctx, 0);
        } else {
            CLIENT_EGRESS.tail_call(ctx, 0);
        }
    }
}

#[inline(always)]
fn is_client_port(port: u32) -> bool {
    // SAFETY: an entry of a live array is one byte, which only ever changes from zero to one.
    CLIENT_PORTS
        .get_ptr(port)
        .is_some_and(|known| unsafe { *known } != 0)
}

/// The socket is gone.
#[inline(always)]
pub(crate) fn gone(cookie: u64) {
    // Most sockets have no entry, and a look costs less than a removal.
    if CLIENTS.get_ptr(cookie).is_some() {
        let _ = CLIENTS.remove(cookie);
    }
}

/// Notes that something failed on a hop, so that its owner's letting go of it is told.
#[inline(always)]
pub(crate) fn mark_failed(cookie: u64) {
    if let Some(hop) = HOPS.get_ptr_mut(cookie) {
        // SAFETY: an entry of a live map. A flag that another processor sets at once may get lost.
        unsafe { (*hop).flags |= hop_flag::FAILED };
    }
}

/// A hop's socket is let go of. Where it was closed before, by a reset or an error, no change of state
/// told whose turn that is.
#[inline(always)]
pub(crate) fn let_go_of_hop(cookie: u64) -> Option<()> {
    let hop = HOPS.get_ptr(cookie)?;
    // SAFETY: an entry of a live map.
    if unsafe { (*hop).flags } & hop_flag::FAILED == 0 {
        return None;
    }
    emit(StateRecord {
        header: header::<StateRecord>(kind::STATE, cookie),
        bytes_acked: 0,
        old_state: CLOSE,
        new_state: CLOSE,
        sk_err: 0,
        srtt_us: 0,
        flags: 0,
        tid: aya_ebpf::helpers::bpf_get_current_pid_tgid() as u32,
        turn: ctx::turn(),
        reserved: 0,
    })
}

/// `inet_sock_set_state(sk, oldstate, newstate)`: a gateway listens, or a connection was accepted.
#[inline(always)]
pub(crate) fn state_changed(ctx: &BtfTracePointContext) -> Option<()> {
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    if new == LISTEN {
        let sk = Sock::arg(ctx, 0)?;
        return listening(sk);
    }
    if old != SYN_RECV || new != ESTABLISHED {
        return None;
    }
    let sk = Sock::arg(ctx, 0)?;
    if !is_client_port(u32::from(sk.field::<u16>(&maps::SKC_NUM)?)) {
        return None;
    }
    let ends = sk.ends();
    LISTENERS.get_ptr(key(&ends))?;
    let cookie = sk.cookie();
    let first = FIRST_DATA.get_ptr_mut(0)?;
    // SAFETY: an entry of a live map that only this processor uses, with no packet in between.
    let first = unsafe { &mut *first };
    first.ends = ends;
    let asked: &Client = first;
    if CLIENTS.insert(cookie, asked, 0).is_err() {
        count(Counter::ClientMapFull);
    } else if asked.flags & client_flag::OPAQUE != 0 {
        count(Counter::ClientOpaque);
    }
    forget(first);
    Some(())
}

/// A socket begins to listen: always in the context of the process that asks for it.
#[inline(always)]
fn listening(sk: Sock) -> Option<()> {
    let comm = ctx::comm();
    if !is_gateway_process(&comm) {
        return None;
    }
    let ends = sk.ends();
    if LISTENERS.insert(key(&ends), 1, 0).is_err() {
        count(Counter::ClientMapFull);
        return None;
    }
    if let Some(port) = CLIENT_PORTS.get_ptr_mut(u32::from(ends.local_port)) {
        // SAFETY: the entry of a live array, which only ever changes to this value.
        unsafe { *port = 1 };
    }
    emit(OpenRecord {
        header: header::<OpenRecord>(kind::LISTEN, sk.cookie()),
        ends,
        caller: ctx::caller(comm),
    })
}

#[inline(always)]
fn key(ends: &Endpoints) -> ListenerKey {
    ListenerKey {
        netns: ends.netns,
        port: ends.local_port,
        reserved: 0,
    }
}

/// Nothing was asked.
#[inline(always)]
fn forget(client: &mut Client) {
    client.flags = 0;
    client.ordinal = 0;
    client.request_len = 0;
    client.requested_ns = 0;
}

/// A packet arrived at a socket of a port that a gateway listens on.
#[inline(always)]
pub(crate) fn asked(ctx: &SkBuffContext) -> Option<()> {
    let segment = Segment::of(ctx, 0);
    let Some(client) = CLIENTS.get_ptr_mut(segment.cookie) else {
        return first_asked(&segment);
    };
    // SAFETY: an entry of a live map. Request and response of one exchange pass one behind the other,
    // and what a racing pipelined one tears is a text of its own client.
    let client = unsafe { &mut *client };
    if client.flags & client_flag::OPAQUE != 0 {
        return None;
    }
    let shape = segment.shape()?;
    if !shape.plain {
        client.flags |= client_flag::GONE;
    }
    if shape.payload == 0 || client.flags & client_flag::ASKED != 0 {
        return None;
    }
    keep(&segment, &shape, client);
    if client.flags & client_flag::OPAQUE != 0 {
        count(Counter::ClientOpaque);
    }
    Some(())
}

/// A packet arrived where nothing is watched. If it is the one behind which a connection is established, the
/// state program makes an entry of what it asks; a connection of another service is left alone.
#[inline(always)]
fn first_asked(segment: &Segment) -> Option<()> {
    // SAFETY: the program's own context, whose socket is checked before it is looked at.
    let state = unsafe {
        let sk = (*segment.skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        (*sk).state
    };
    // The latter has a socket before it is established (TCP Fast Open, RFC 7413).
    if state != LISTEN as u32 && state != SYN_RECV as u32 {
        return None;
    }
    let first = FIRST_DATA.get_ptr_mut(0)?;
    // SAFETY: an entry of a live map that only this processor uses.
    let first = unsafe { &mut *first };
    forget(first);
    let shape = segment.shape()?;
    if !shape.plain {
        first.flags |= client_flag::GONE;
    }
    if shape.payload > 0 {
        keep(segment, &shape, first);
    }
    Some(())
}

/// Keeps the first bytes of a request.
#[inline(always)]
fn keep(segment: &Segment, shape: &Shape, client: &mut Client) {
    let start = segment.start(shape);
    if start.is_some_and(|start| !is_request(&start)) {
        // What follows a request that was answered early is its rest.
        if client.ordinal == 0 {
            client.flags |= client_flag::OPAQUE;
        }
        return;
    }
    let most = CLIENT_REQUEST_LEN as u32;
    let len = if shape.payload < most {
        shape.payload
    } else {
        most
    };
    let Some(len) = bounded(len, most) else {
        return;
    };
    // SAFETY: there is room for as many bytes.
    let loaded = unsafe {
        bpf_skb_load_bytes(
            segment.skb.cast(),
            shape.start,
            (&raw mut client.request).cast(),
            len,
        )
    };
    if loaded != 0 {
        count(Counter::LoadFailed);
        return;
    }
    client.request_len = len;
    client.requested_ns = now();
    client.ordinal = client.ordinal.wrapping_add(1);
    client.flags |= client_flag::ASKED;
}

/// A packet leaves a socket of a port that a gateway listens on.
#[inline(always)]
pub(crate) fn answered(ctx: &SkBuffContext) -> Option<()> {
    let segment = Segment::of(ctx, 1);
    let client = CLIENTS.get_ptr_mut(segment.cookie)?;
    // SAFETY: as above.
    let client = unsafe { &mut *client };
    if client.flags & client_flag::ASKED == 0 {
        return None;
    }
    let shape = segment.shape()?;
    if shape.payload > 0 {
        let start = segment.start(&shape);
        let is_http = start.is_some_and(|start| start[..7] == *b"HTTP/1.");
        let class = start.map_or(0, |start| start[9]);
        if is_http && class == b'1' {
            return None;
        }
        client.flags &= !client_flag::ASKED;
        if !is_http {
            count(Counter::ClientRaw);
            return None;
        }
        if class == b'5' {
            return tell(&segment, &shape, client, segment.cookie);
        }
        return None;
    }
    if shape.plain {
        return None;
    }
    // The gateway closes without a word.
    client.flags &= !client_flag::ASKED;
    if client.flags & client_flag::GONE != 0 {
        return None;
    }
    tell(&segment, &shape, client, segment.cookie)
}

/// Sends up what was asked and what the answer begins with, if anything.
#[inline(always)]
fn tell(segment: &Segment, shape: &Shape, client: &Client, cookie: u64) -> Option<()> {
    let Some(mut room) = EVENTS.reserve::<ClientRecord>(0) else {
        count(Counter::RingFull);
        return None;
    };
    let record = room.as_mut_ptr();
    let most = CLIENT_RESPONSE_LEN as u32;
    let len = if shape.payload < most {
        shape.payload
    } else {
        most
    };
    let mut response_len = 0;
    // SAFETY: the record is room for all that is written to it, and the verifier sees the bounds.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*record).request).cast(),
            CLIENT_REQUEST_LEN as u32,
            (&raw const client.request).cast(),
        );
        if let Some(len) = bounded(len, most)
            && bpf_skb_load_bytes(
                segment.skb.cast(),
                shape.start,
                (&raw mut (*record).response).cast(),
                len,
            ) == 0
        {
            response_len = len;
        }
        (&raw mut (*record).header).write(Header {
            kind: kind::CLIENT,
            reserved: 0,
            len: size_of::<ClientRecord>() as u32,
            time_ns: now(),
            cookie,
        });
        (&raw mut (*record).ends).write(client.ends);
        (&raw mut (*record).requested_ns).write(client.requested_ns);
        (&raw mut (*record).ordinal).write(client.ordinal);
        (&raw mut (*record).request_len).write(client.request_len);
        (&raw mut (*record).response_len).write(response_len);
        let task = ctx::task();
        (&raw mut (*record).pid).write(field(task, &maps::TASK_TGID).unwrap_or(0));
        (&raw mut (*record).tid).write(field(task, &maps::TASK_PID).unwrap_or(0));
        (&raw mut (*record).turn).write(ctx::turn());
        (&raw mut (*record).task_flags).write(field(task, &maps::TASK_FLAGS).unwrap_or(0));
        (&raw mut (*record).exit_code).write(field(task, &maps::TASK_EXIT).unwrap_or(0));
        let leader: u64 = field(task, &maps::TASK_LEADER).unwrap_or(0);
        let comm: [u8; COMM_LEN] = field(leader, &maps::TASK_COMM).unwrap_or_default();
        (&raw mut (*record).comm).write(comm);
    }
    room.submit(0);
    count(Counter::Records);
    Some(())
}

/// Whether a payload may begin a request of HTTP/1: registered methods have three capital letters and more, some
/// with hyphens, and a space follows (RFC 9112 section 3); a few of them are longer than what is looked at. That
/// of the HTTP/2 preface is told by what follows it (RFC 9113 section 3.4).
#[inline(always)]
fn is_request(start: &[u8; START_LEN]) -> bool {
    let mut len = 0;
    while len < START_LEN && (start[len].is_ascii_uppercase() || start[len] == b'-') {
        len += 1;
    }
    len == START_LEN || (len >= 3 && start[len] == b' ' && start[..6] != *b"PRI * ")
}

/// The end of a `socket()`, `accept4()` or `bind()`: reports the call of a gateway where it failed for want
/// of descriptors or, for the last, at all.
#[inline(always)]
pub(crate) fn call_returned(result: i64, call: u32) -> Option<()> {
    const ENFILE: i64 = 23;
    const EMFILE: i64 = 24;
    let errno = result.checked_neg()?;
    let full = errno == ENFILE || errno == EMFILE;
    let refused = call == hopscope_ebpf::call::BIND && (1..512).contains(&errno);
    if !full && !refused {
        return None;
    }
    let comm = ctx::comm();
    if !is_gateway_process(&comm) {
        return None;
    }
    emit(SocketCallRecord {
        header: header::<SocketCallRecord>(kind::SOCKET_CALL, 0),
        caller: ctx::caller(comm),
        call,
        errno: errno as i32,
    })
}
