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

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skb_load_bytes, bpf_tcp_sock,
};
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
use crate::maps::{self, DNS_SOCKETS, EVENTS, HOPS, count};
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
    if flags & client_flag::OPAQUE != 0 {
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
    client.answer_len = 0;
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
    if shape.payload > 0 {
        arrived(&segment, &shape, client);
    }
    if !shape.plain {
        leaves(client);
    }
    Some(())
}

/// The client closes its side, or resets it.
#[inline(always)]
fn leaves(client: &mut Client) {
    client.flags |= client_flag::GONE;
    if client.flags & client_flag::ASKED != 0 {
        client.flags |= client_flag::LEFT;
    }
}

/// Bytes arrived on a client's connection.
#[inline(always)]
fn arrived(segment: &Segment, shape: &Shape, client: &mut Client) {
    let is_asked = client.flags & client_flag::ASKED != 0;
    let next = if is_asked || client.ordinal == 0 {
        next_in(segment)
    } else {
        // As good, and had for nothing.
        Some(client.next_in)
    };
    let Some(next) = next else {
        return;
    };
    // Bytes come again where their acknowledgement was lost, and the last one to see whether the gateway is
    // there still (RFC 9293 section 3.8.4).
    let ahead = shape.seq.wrapping_sub(next).cast_signed();
    if ahead < 0 {
        return;
    }
    if is_asked {
        more(segment, shape, client);
    } else if !keep(segment, shape, client) {
        client.flags |= client_flag::UNREAD;
        if client.ordinal == 0 && ahead == 0 {
            client.flags |= client_flag::OPAQUE;
            count(Counter::ClientOpaque);
        }
    }
}

/// A packet arrived where nothing is watched. If it is the one behind which a connection is established, the
/// state program makes an entry of what it asks; a connection of another service is left alone.
#[inline(always)]
fn first_asked(segment: &Segment) -> Option<()> {
    let sk = socket(segment)?;
    // SAFETY: a socket that the verifier has seen checked.
    let state = unsafe { (*sk).state };
    // The latter has a socket before it is established (TCP Fast Open, RFC 7413).
    if state != LISTEN as u32 && state != SYN_RECV as u32 {
        return None;
    }
    let first = FIRST_DATA.get_ptr_mut(0)?;
    // SAFETY: an entry of a live map that only this processor uses.
    let first = unsafe { &mut *first };
    forget(first);
    if state != LISTEN as u32 {
        first.flags |= client_flag::UNREAD;
    }
    let shape = segment.shape()?;
    if shape.payload > 0 && !keep(segment, &shape, first) {
        first.flags |= client_flag::OPAQUE;
    }
    if !shape.plain {
        leaves(first);
    }
    Some(())
}

/// The socket that a packet passes.
#[inline(always)]
fn socket(segment: &Segment) -> Option<*mut bpf_sock> {
    // SAFETY: the program's own context.
    let sk = unsafe { (*segment.skb).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

/// The sequence number that the socket waits for.
#[inline(always)]
fn next_in(segment: &Segment) -> Option<u32> {
    // SAFETY: the verifier has seen the socket checked, and sees the result checked.
    unsafe {
        let tcp = bpf_tcp_sock(socket(segment)?);
        if tcp.is_null() {
            return None;
        }
        Some((*tcp).rcv_nxt)
    }
}

/// Keeps the first bytes of a request. Returns false where they begin none: what follows a request that was
/// answered early is its rest.
#[inline(always)]
fn keep(segment: &Segment, shape: &Shape, client: &mut Client) -> bool {
    let most = CLIENT_REQUEST_LEN as u32;
    let len = if shape.payload < most {
        shape.payload
    } else {
        most
    };
    let Some(len) = bounded(len, most) else {
        return true;
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
        return true;
    }
    if !is_request(&client.request, len, client.ordinal == 0) {
        return false;
    }
    client.request_len = len;
    client.requested_ns = now();
    client.ordinal = client.ordinal.wrapping_add(1);
    client.asked_seq = shape.seq;
    client.next_out = shape.ack;
    client.answer_len = 0;
    client.flags = client.flags & !client_flag::UNREAD | client_flag::ASKED;
    true
}

/// More bytes arrived before an answer: the rest of a head that came in pieces, a body, or the next request.
#[inline(always)]
fn more(segment: &Segment, shape: &Shape, client: &mut Client) -> Option<()> {
    /// As many bytes are added to as many at most, so that the verifier sees that both have room.
    const HALF: u32 = CLIENT_REQUEST_LEN as u32 / 2;
    if segment.start(shape).is_some_and(|start| is_next(&start)) {
        if client.flags & client_flag::INTERIM == 0 {
            client.flags |= client_flag::PIPELINED;
        } else {
            // The answer went unseen, in one segment with an interim response.
            client.flags &= !(client_flag::ASKED | client_flag::INTERIM);
            keep(segment, shape, client);
        }
        return Some(());
    }
    let known = client.request_len;
    if shape.seq != client.asked_seq.wrapping_add(known) {
        return None;
    }
    let at = bounded(known, HALF - 1)?;
    let len = if shape.payload < HALF {
        shape.payload
    } else {
        HALF
    };
    let len = bounded(len, HALF)?;
    // SAFETY: there is room for as many bytes at that place.
    let loaded = unsafe {
        let room = (&raw mut client.request).byte_add(at as usize);
        bpf_skb_load_bytes(segment.skb.cast(), shape.start, room.cast(), len)
    };
    if loaded != 0 {
        count(Counter::LoadFailed);
        return None;
    }
    client.request_len = at + len;
    Some(())
}

/// A packet leaves a socket of a port that a gateway listens on.
#[inline(always)]
pub(crate) fn answered(ctx: &SkBuffContext) -> Option<()> {
    /// The interim response that gateways make themselves, all of it (RFC 9110 section 15.2.1).
    const CONTINUE_LEN: u32 = 25;
    let segment = Segment::of(ctx, 1);
    let client = CLIENTS.get_ptr_mut(segment.cookie)?;
    // SAFETY: as above.
    let client = unsafe { &mut *client };
    if client.flags & client_flag::ASKED == 0 {
        return None;
    }
    let shape = segment.shape()?;
    if shape.payload == 0 {
        return if shape.plain {
            None
        } else {
            closed(&segment, client)
        };
    }
    // What is sent again was looked at before.
    if shape.seq.wrapping_sub(client.next_out).cast_signed() < 0 {
        return None;
    }
    client.next_out = shape.seq.wrapping_add(shape.payload);
    client.next_in = shape.ack;
    let known = client.answer_len;
    let mut rest = Rest {
        at: shape.start,
        len: shape.payload,
    };
    let mut begins = begin(&segment, &rest, client);
    if let Begins::Interim = begins {
        client.flags |= client_flag::INTERIM;
        if known > 0 || rest.len <= CONTINUE_LEN {
            return None;
        }
        rest.at += CONTINUE_LEN;
        rest.len -= CONTINUE_LEN;
        begins = begin(&segment, &rest, client);
    }
    match begins {
        Begins::Unknown if shape.plain => return None,
        Begins::Interim => return None,
        Begins::Nothing if client.flags & client_flag::INTERIM != 0 => return None,
        Begins::Nothing | Begins::Unknown => {
            client.flags &= !client_flag::ASKED;
            count(Counter::ClientRaw);
            return None;
        }
        Begins::Final(_) | Begins::Upgrade => {}
    }
    let pipelined = client.flags & client_flag::PIPELINED != 0;
    client.flags &= !(client_flag::ASKED | client_flag::INTERIM | client_flag::PIPELINED);
    if let Begins::Final(b'5') = begins {
        tell(&segment, &rest, known, client);
    }
    if pipelined {
        client.flags |= client_flag::OPAQUE;
        count(Counter::ClientOpaque);
    } else if is_tunnel(&begins, client) {
        // Nobody speaks HTTP/1 there from now on.
        client.flags |= client_flag::OPAQUE;
    }
    Some(())
}

/// The gateway closes its side before its answer was seen.
#[inline(always)]
fn closed(segment: &Segment, client: &mut Client) -> Option<()> {
    client.flags &= !client_flag::ASKED;
    if client.answer_len > 0 {
        count(Counter::ClientRaw);
        return None;
    }
    if client.flags & client_flag::GONE != 0 {
        return None;
    }
    tell(segment, &Rest { at: 0, len: 0 }, 0, client)
}

/// A part of a packet.
struct Rest {
    at: u32,
    len: u32,
}

/// What bytes of an answer begin.
enum Begins {
    /// Too few to tell.
    Unknown,
    /// No response of HTTP/1.
    Nothing,
    Interim,
    /// 101 (Switching Protocols).
    Upgrade,
    /// A final response, and the class of its status.
    Final(u8),
}

/// Adds the first bytes of `rest` to those of the answer that are known, and says what they begin.
#[inline(always)]
fn begin(segment: &Segment, rest: &Rest, client: &mut Client) -> Begins {
    const VERSION: [u8; 7] = *b"HTTP/1.";
    const MOST: u32 = START_LEN as u32;
    let known = client.answer_len;
    client.answer_len = 0;
    let missing = MOST.wrapping_sub(known);
    let len = if rest.len < missing {
        rest.len
    } else {
        missing
    };
    // One more, since a number from one on is what can be bounded.
    let (Some(place), Some(len)) = (bounded(known + 1, MOST), bounded(len, MOST)) else {
        return Begins::Nothing;
    };
    let known = place - 1;
    // SAFETY: there is room for as many bytes at that place.
    let loaded = unsafe {
        let room = (&raw mut client.answer).byte_add(known as usize);
        bpf_skb_load_bytes(segment.skb.cast(), rest.at, room.cast(), len)
    };
    if loaded != 0 {
        count(Counter::LoadFailed);
        return Begins::Nothing;
    }
    let known = known + len;
    let mut at = 0;
    while at < VERSION.len() {
        if at < known as usize && client.answer[at] != VERSION[at] {
            return Begins::Nothing;
        }
        at += 1;
    }
    if known < MOST {
        client.answer_len = known;
        return Begins::Unknown;
    }
    match client.answer[9] {
        b'1' if client.answer[10] == b'0' && client.answer[11] == b'1' => Begins::Upgrade,
        b'1' => Begins::Interim,
        class => Begins::Final(class),
    }
}

/// Whether a connection is a tunnel from this response on.
#[inline(always)]
fn is_tunnel(begins: &Begins, client: &Client) -> bool {
    match begins {
        Begins::Upgrade => true,
        Begins::Final(b'2') => client.request[..8] == *b"CONNECT ",
        _ => false,
    }
}

/// Sends up what was asked and what the answer begins with, if anything: `known` bytes of it were seen before,
/// and `rest` is there now.
#[inline(always)]
fn tell(segment: &Segment, rest: &Rest, known: u32, client: &Client) -> Option<()> {
    let Some(mut room) = EVENTS.reserve::<ClientRecord>(0) else {
        count(Counter::RingFull);
        return None;
    };
    let record = room.as_mut_ptr();
    let most = (CLIENT_RESPONSE_LEN - START_LEN) as u32;
    let len = if rest.len < most { rest.len } else { most };
    let mut response_len = 0;
    // SAFETY: the record is room for all that is written to it, and the verifier sees the bounds.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*record).request).cast(),
            CLIENT_REQUEST_LEN as u32,
            (&raw const client.request).cast(),
        );
        let known_bytes = (&raw const client.answer).cast::<[u8; START_LEN]>().read();
        (&raw mut (*record).response)
            .cast::<[u8; START_LEN]>()
            .write(known_bytes);
        if let Some(len) = bounded(len, most)
            && let Some(place) = bounded(known + 1, START_LEN as u32)
            && bpf_skb_load_bytes(
                segment.skb.cast(),
                rest.at,
                (&raw mut (*record).response)
                    .byte_add(place as usize - 1)
                    .cast(),
                len,
            ) == 0
        {
            response_len = place - 1 + len;
        }
        (&raw mut (*record).header).write(Header {
            kind: kind::CLIENT,
            reserved: 0,
            len: size_of::<ClientRecord>() as u32,
            time_ns: now(),
            cookie: segment.cookie,
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

/// Whether the `len` bytes begin a request of HTTP/1: registered methods have three capital letters and more, some
/// with hyphens, and a space and the target follow (RFC 9112 section 3). The method of the HTTP/2 preface is told
/// by what follows it (RFC 9113 section 3.4).
///
/// The `first` bytes of a connection are a request or something else for good, and may be a part of a method.
/// Later ones may also be the rest of a body, of any text.
#[inline(always)]
fn is_request(bytes: &[u8; CLIENT_REQUEST_LEN], len: u32, first: bool) -> bool {
    /// Longer than any that is registered.
    const METHOD_LEN: usize = 24;
    let mut at = 0;
    while at < METHOD_LEN && is_method(bytes[at]) {
        at += 1;
    }
    let len = len as usize;
    if at >= len {
        // What lies behind `len` is older.
        return first;
    }
    if at < 3 || at == METHOD_LEN || bytes[at] != b' ' || bytes[..6] == *b"PRI * " {
        return false;
    }
    first || (at + 1 < len && (is_target(bytes[at + 1]) || bytes[..8] == *b"CONNECT "))
}

/// Whether bytes that follow a request begin the next one.
#[inline(always)]
fn is_next(start: &[u8; START_LEN]) -> bool {
    let mut at = 0;
    while at < START_LEN - 1 && is_method(start[at]) {
        at += 1;
    }
    (3..START_LEN - 1).contains(&at) && start[at] == b' ' && start[at + 1] == b'/'
}

#[inline(always)]
fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-'
}

/// Whether a request target may begin so: a path, an asterisk or a scheme (RFC 9112 section 3.2).
#[inline(always)]
fn is_target(byte: u8) -> bool {
    matches!(byte, b'/' | b'*' | b'h' | b'H')
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
