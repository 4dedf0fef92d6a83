//! The client side of gateways: what their accepted sockets were asked and what they answered.
//!
//! Of each request the first bytes are kept in the kernel until the response begins. A response that is
//! no 5xx ends that, and nothing leaves the kernel. A 5xx, or a close without any response, sends up
//! what was kept. Where the requests cannot be read, as with TLS, see [`inside`].
//!
//! A socket counts as a gateway's where it was accepted on a port that a gateway listens on in the same
//! network namespace. Which process and thread answers is told by the context in which the response is
//! sent, that of the writer but for what the kernel sends later by itself; user space decides whether it
//! is a gateway's.
//!
//! The segment programs hand the packets of such ports over by tail calls, so that these programs have
//! a stack and a fate of their own.

pub(crate) mod answered;
pub(crate) mod asked;
pub(crate) mod inside;
mod proxied;
mod text;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::programs::{BtfTracePointContext, SkBuffContext};
use hopscope_ebpf::{
    Client, Counter, Endpoints, Goroutine, ListenerKey, OpenRecord, SocketCallRecord, StateRecord,
    client_flag, hop_flag, kind,
};

use crate::ctx::{self, Sock};
use crate::emit::{emit, header};
use crate::gateway::is_gateway_process;
use crate::maps::{self, DNS_SOCKETS, HOPS, NO_PREALLOC, PORTS_LEN, count};
use crate::segment::now;
use crate::turns;

/// Clients' connections watched at once, of a little more than one KiB each.
const CLIENTS_CAP: u32 = 32_768;

/// Listening sockets of gateways.
const LISTENERS_CAP: u32 = 4_096;

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
/// does not, or where nobody takes it. Where it `goes_out`, as the ports say, the socket may be one of a
/// gateway's own whose port another gateway listens on.
#[inline(always)]
pub(crate) fn passed(ctx: &SkBuffContext, egress: u32, goes_out: bool) {
    let skb = ctx.skb.skb;
    // SAFETY: the program's own context.
    let port = unsafe { (*skb).local_port };
    // A socket that is closed with bytes unread has given its port back as it sends its reset.
    let is_listener = port == 0 || is_client_port(port);
    if maps::CLIENT_SIDE.load() == 0 || !is_listener || (goes_out && is_own(skb)) {
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

/// Whether the packet passes a socket that a gateway opened towards an upstream or a name server.
#[inline(always)]
fn is_own(skb: *mut __sk_buff) -> bool {
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    HOPS.get_ptr(cookie).is_some() || DNS_SOCKETS.get_ptr(cookie).is_some()
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
    if maps::CLIENT_SIDE.load() != 0 && CLIENTS.get_ptr(cookie).is_some() {
        let _ = CLIENTS.remove(cookie);
    }
}

/// Which kind of record tells that the client of a connection left.
#[inline(always)]
pub(crate) fn departure(cookie: u64) -> u16 {
    let Some(client) = CLIENTS.get_ptr(cookie) else {
        return kind::CLIENT_LEFT;
    };
    // SAFETY: an entry of a live map.
    let flags = unsafe { (*client).flags };
    if flags & (client_flag::OPAQUE | client_flag::INSIDE) == client_flag::OPAQUE {
        kind::CLIENT_LEFT
    } else if flags & (client_flag::ASKED | client_flag::LEFT) != 0 {
        kind::CLIENT_LEFT_WAITING
    } else if flags & client_flag::UNREAD != 0 {
        kind::CLIENT_LEFT
    } else {
        kind::CLIENT_LEFT_ANSWERED
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
        inside::tell_unreadable(asked);
    } else if asked.flags & client_flag::OPAQUE != 0 {
        inside::count_unread(asked);
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
        goroutine: Goroutine::NONE,
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

/// `tcp_rcv_space_adjust(sk)`: the current thread has read from a socket. Of an event loop whose turns are counted it
/// is noted when and in which of them it read the first of a request: what it did before that was not about it.
#[inline(always)]
pub(crate) fn read(ctx: &BtfTracePointContext) -> Option<()> {
    let (thread, turn) = turns::current()?;
    let client = CLIENTS.get_ptr_mut(Sock::arg(ctx, 0)?.cookie())?;
    // SAFETY: an entry of a live map. What begins the next request on another processor writes these fields as well,
    // once this one is answered.
    let client = unsafe { &mut *client };
    // Of what is inside TLS the library tells when it was read. What came before the turns were counted may have been
    // read before as well.
    let waits = client.flags & (client_flag::ASKED | client_flag::OPAQUE) == client_flag::ASKED;
    if waits && client.read_ns == 0 && client.requested_ns >= turn.since_ns {
        client.read_ns = now();
        client.read_tid = thread;
        client.read_turn = turn.number;
    }
    Some(())
}

/// Nothing was asked.
#[inline(always)]
fn forget(client: &mut Client) {
    client.flags = 0;
    client.ordinal = 0;
    client.request_len = 0;
    client.requested_ns = 0;
    client.read_ns = 0;
    client.answer_len = 0;
    client.proxied_len = 0;
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
