//! Facts about sockets: opened, changed state, reset, retransmitted, failed.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use hopscope_ebpf::{
    Counter, Endpoints, Goroutine, Hop, OpenRecord, SocketRecord, StateRecord, Tuple, flag, kind,
};

use crate::client;
use crate::ctx::{self, Sock};
use crate::dns;
use crate::emit::{emit, header, reserve, submit};
use crate::gateway::is_gateway;
use crate::goroutine;
use crate::maps::{
    self, CONNECTS, GATEWAYS, HOPS, Known, RESETS, STAGES, TUPLES, count, is_hop_port,
};
use crate::stage;

/// `TCP_ESTABLISHED` of `include/net/tcp_states.h`.
const ESTABLISHED: i32 = 1;
/// `TCP_SYN_SENT` of the same file.
const SYN_SENT: i32 = 2;
/// `TCP_CLOSE` of the same file.
const CLOSE: i32 = 7;
/// `TCP_CLOSE_WAIT` of the same file.
const CLOSE_WAIT: i32 = 8;
/// `TCP_LAST_ACK` of the same file.
const LAST_ACK: i32 = 9;
/// The same two as a socket keeps them.
const ESTABLISHED_STATE: u8 = ESTABLISHED as u8;
const CLOSE_WAIT_STATE: u8 = CLOSE_WAIT as u8;
/// A client that was sent something this few ticks ago got its answer: 20 ms to 200 ms, by the kernel's
/// tick. Long enough for a gateway that loses its processor between the answer and the close, and no
/// longer than the silence that an engine takes for a stall.
const ANSWERED_JIFFIES: u32 = 20;
/// How long a hop that gave up is looked for. Upstreams repeat their SYN-ACK after 1, 3 and 7 seconds.
const LATE_NS: u64 = 10_000_000_000;
/// SYN and ACK of a TCP header, and all control bits that decide what a segment is.
const SYN_ACK: u8 = 0x12;
const DECISIVE: u8 = 0x17;
/// `ECONNREFUSED` of `include/uapi/asm-generic/errno.h`.
const ECONNREFUSED: i32 = 111;
/// `IPPROTO_TCP`: the tracepoint fires for SCTP and DCCP as well.
pub(crate) const TCP: u16 = 6;

/// Whether the socket may be a hop, told by its other end: all that most sockets of a host cost. One that
/// was disconnected has forgotten it.
#[inline(always)]
fn may_be_hop(sk: Sock) -> bool {
    sk.field(&maps::SKC_DPORT)
        .is_none_or(|port| port == 0 || is_hop_port(u16::from_be(port)))
}

/// The cookie where the socket is a hop.
#[inline(always)]
fn hop(sk: Sock) -> Option<u64> {
    if !may_be_hop(sk) {
        return None;
    }
    let cookie = sk.cookie();
    HOPS.get_ptr(cookie).map(|_| cookie)
}

/// `inet_sock_set_state(sk, oldstate, newstate)`.
#[inline(always)]
pub(crate) fn state_changed(ctx: &BtfTracePointContext, log: bool) -> Option<()> {
    let sk = Sock::arg(ctx, 0)?;
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    if new == SYN_SENT {
        return opened(ctx, sk, log);
    }
    let Some(cookie) = hop(sk) else {
        return client_left(ctx, sk, old, new, log);
    };
    stage::flush(cookie);
    let sk_err = sk.field::<i32>(&maps::SK_ERR);
    // Who was refused has had its answer.
    let gave_up = old == SYN_SENT && new == CLOSE && sk_err != Some(ECONNREFUSED);
    if new == ESTABLISHED || gave_up {
        let ends = sk.ends();
        let (netns, gave_up_ns) = if gave_up {
            // SAFETY: no arguments.
            (ends.netns, unsafe { bpf_ktime_get_ns() })
        } else {
            (scope(&ends.remote_addr, ends.netns), 0)
        };
        let known = Known { cookie, gave_up_ns };
        // Full or not, a tuple that is missing only loses who sent a reset, or why.
        let _ = TUPLES.insert(reversed(&ends, netns), known, 0);
    }
    let tcp = sk.tcp();
    let bytes_acked = tcp.and_then(|tcp| ctx::direct::<u64>(tcp, &maps::TCP_BYTES_ACKED));
    let srtt = tcp.and_then(|tcp| ctx::direct::<u32>(tcp, &maps::TCP_SRTT));
    if log {
        debug!(ctx, "hop {}: state {} to {}", cookie, old, new);
    }
    emit(StateRecord {
        header: header::<StateRecord>(kind::STATE, cookie),
        bytes_acked: bytes_acked.unwrap_or(0),
        old_state: old.cast_unsigned(),
        new_state: new.cast_unsigned(),
        sk_err: sk_err.unwrap_or(0),
        // The kernel keeps eight times the value (`tcp_rtt_estimator`).
        srtt_us: srtt.unwrap_or(0) >> 3,
        flags: known(sk_err, flag::SK_ERR)
            | known(bytes_acked, flag::BYTES_ACKED)
            | known(srtt, flag::SRTT),
        tid: bpf_get_current_pid_tgid() as u32,
        turn: ctx::turn(),
        reserved: 0,
    })
}

/// A socket that is no hop changed state. Closing a connection that the other side closed first happens
/// in process context; where a gateway does that to a client that waited for an answer, what it closes
/// towards its upstreams in the same moment is no failure of theirs. Of a client whose requests are not
/// known, that it was sent nothing lately says as much.
#[inline(always)]
fn client_left(ctx: &BtfTracePointContext, sk: Sock, old: i32, new: i32, log: bool) -> Option<()> {
    if old != CLOSE_WAIT || new != LAST_ACK {
        return None;
    }
    let kind = client::departure(sk.cookie());
    if kind != kind::CLIENT_LEFT_WAITING {
        let sent: u32 = ctx::direct(sk.tcp()?, &maps::TCP_LSNDTIME)?;
        if ctx::jiffies().wrapping_sub(sent) < ANSWERED_JIFFIES {
            return None;
        }
    }
    let_go(ctx, sk, kind, log)
}

/// `tcp_destroy_sock(sk)`: of a socket that was reset while it was open, at the end of the owner's close.
/// What it was sent last does not count: HAProxy answers a client that has gone with a 400, and that
/// answer draws the reset.
#[inline(always)]
pub(crate) fn destroyed(ctx: &BtfTracePointContext, log: bool) -> Option<()> {
    let sk = Sock::arg(ctx, 0)?;
    let cookie = sk.cookie();
    if may_be_hop(sk) {
        // The last word about a socket: nothing of it passes any more.
        let _ = STAGES.remove(cookie);
        let _ = client::let_go_of_hop(cookie);
    }
    if sk.field(&maps::SKC_DPORT) == Some(dns::PORT.to_be()) {
        dns::gone(cookie);
    }
    let kind = client::departure(cookie);
    client::gone(cookie);
    RESETS.get_ptr(cookie)?;
    let _ = RESETS.remove(cookie);
    let_go(ctx, sk, kind, log)
}

/// The current process lets go of a connection that the other side has ended.
#[inline(always)]
fn let_go(ctx: &BtfTracePointContext, sk: Sock, kind: u16, log: bool) -> Option<()> {
    let comm = ctx::comm();
    let ends = sk.ends();
    if !is_gateway(&comm, &ends.remote_addr, ends.remote_port) {
        return None;
    }
    if log {
        debug!(ctx, "a client of {} left", bpf_get_current_pid_tgid() >> 32);
    }
    emit(OpenRecord {
        header: header::<OpenRecord>(kind, 0),
        ends,
        caller: ctx::caller(comm),
        goroutine: Goroutine::NONE,
    })
}

#[inline(always)]
fn known<T: Copy>(value: Option<T>, flag: u32) -> u32 {
    if value.is_some() { flag } else { 0 }
}

/// A socket enters `SYN_SENT`: always in the context of the process that connects.
#[inline(always)]
fn opened(ctx: &BtfTracePointContext, sk: Sock, log: bool) -> Option<()> {
    if sk
        .field::<u16>(&maps::SK_PROTOCOL)
        .is_some_and(|protocol| protocol != TCP)
    {
        return None;
    }
    let ends = sk.ends();
    let comm = ctx::comm();
    if !is_gateway(&comm, &ends.remote_addr, ends.remote_port) {
        count(Counter::Filtered);
        return None;
    }
    let cookie = sk.cookie();
    let caller = ctx::caller(comm);
    if ends.remote_port == dns::PORT {
        dns::opened(cookie, caller, &ends);
        return Some(());
    }
    let entry = Hop {
        pid: caller.pid,
        flags: 0,
        head: 0,
    };
    if HOPS.insert(cookie, entry, 0).is_err() {
        count(Counter::HopMapFull);
        return None;
    }
    maps::enter_port(ends.remote_port);
    if GATEWAYS.get_ptr(caller.pid).is_none() && GATEWAYS.insert(caller.pid, 0, 0).is_err() {
        count(Counter::LibraryMapFull);
    }
    if let Some(pending) = CONNECTS.get_ptr_mut(bpf_get_current_pid_tgid()) {
        // SAFETY: the entry is this thread's own: it is inside the very call that made it.
        unsafe { (*pending).cookie = cookie };
    }
    if log {
        debug!(
            ctx,
            "hop {}: opened by {}, port {}", cookie, caller.pid, ends.remote_port
        );
    }
    // Written where it lies: on the stack there is no room for a second one.
    let mut room = reserve::<OpenRecord>()?;
    let record = room.as_mut_ptr();
    // SAFETY: the room of that record, of which every field is written.
    unsafe {
        (&raw mut (*record).header).write(header::<OpenRecord>(kind::OPEN, cookie));
        (&raw mut (*record).ends).write(ends);
        (&raw mut (*record).caller).write(caller);
        (&raw mut (*record).goroutine).write(Goroutine::NONE);
        let _ = goroutine::tell(&raw mut (*record).goroutine);
    }
    submit(room);
    Some(())
}

/// `tcp_receive_reset(sk)`.
#[inline(always)]
pub(crate) fn reset_received(ctx: &BtfTracePointContext, log: bool) -> Option<()> {
    let sk = Sock::arg(ctx, 0)?;
    let Some(cookie) = hop(sk) else {
        // Of a socket that its owner closed already, nobody will let go any more.
        if let Some(ESTABLISHED_STATE | CLOSE_WAIT_STATE) = sk.field::<u8>(&maps::SKC_STATE) {
            let _ = RESETS.insert(sk.cookie(), 0, 0);
        }
        return None;
    };
    client::mark_failed(cookie);
    if log {
        debug!(ctx, "hop {}: reset received", cookie);
    }
    send(kind::RESET_IN, cookie, None)
}

/// `tcp_send_reset(sk, skb)`, with a third argument `reason` on newer kernels. `sk` may be a request or
/// time-wait socket. It is null where no socket wanted the segment, of which kernels before Linux 6.10
/// do not tell.
#[inline(always)]
pub(crate) fn reset_sent(ctx: &BtfTracePointContext, log: bool) -> Option<()> {
    let (kind, cookie) = match Sock::arg(ctx, 0) {
        None => (kind::RESET_OUT, too_late(ctx)?),
        Some(sk) => {
            if let Some(own) = hop(sk) {
                (kind::RESET_OUT, own)
            } else {
                (kind::RESET_PEER, peer(&sk.ends())?)
            }
        }
    };
    let reason = if maps::RESET_HAS_REASON.load() != 0 {
        Some(ctx.arg::<i32>(2))
    } else {
        None
    };
    if log {
        debug!(ctx, "hop {}: reset sent, record kind {}", cookie, kind);
    }
    send(kind, cookie, reason)
}

/// The hop that gave up, where the segment that no socket wanted is the SYN-ACK that it waited for. Any
/// other segment, such as a scanner's, costs a look at its control bits.
#[inline(always)]
fn too_late(ctx: &BtfTracePointContext) -> Option<u64> {
    let ends = ctx::segment_ends(ctx, 1, |flags| flags & DECISIVE == SYN_ACK)?;
    let known = known_hop(&tuple(&ends, ends.netns))?;
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    (known.gave_up_ns != 0 && now.wrapping_sub(known.gave_up_ns) < LATE_NS).then_some(known.cookie)
}

/// `tcp_retransmit_skb(sk, ..)` and `inet_sk_error_report(sk)`.
#[inline(always)]
pub(crate) fn fact(ctx: &BtfTracePointContext, kind: u16, log: bool) -> Option<()> {
    let sk = Sock::arg(ctx, 0)?;
    let cookie = hop(sk)?;
    let value = if kind == kind::ERROR {
        client::mark_failed(cookie);
        sk.field::<i32>(&maps::SK_ERR)
    } else {
        sk.field::<u8>(&maps::SKC_STATE).map(i32::from)
    };
    if log {
        debug!(
            ctx,
            "hop {}: record kind {}, value {}",
            cookie,
            kind,
            value.unwrap_or(-1)
        );
    }
    send(kind, cookie, value)
}

#[inline(always)]
fn send(kind: u16, cookie: u64, value: Option<i32>) -> Option<()> {
    stage::flush(cookie);
    emit(SocketRecord {
        header: header::<SocketRecord>(kind, cookie),
        value: value.unwrap_or(0),
        flags: known(value, flag::VALUE),
    })
}

/// The hop's ends as the upstream's socket would have them.
#[inline(always)]
fn reversed(ends: &Endpoints, netns: u32) -> Tuple {
    Tuple {
        local_addr: ends.remote_addr,
        remote_addr: ends.local_addr,
        local_port: ends.remote_port,
        remote_port: ends.local_port,
        netns,
    }
}

/// The ends of an upstream's socket or segment.
#[inline(always)]
fn tuple(ends: &Endpoints, netns: u32) -> Tuple {
    Tuple {
        local_addr: ends.local_addr,
        remote_addr: ends.remote_addr,
        local_port: ends.local_port,
        remote_port: ends.remote_port,
        netns,
    }
}

/// The hop whose upstream is the socket with these ends.
#[inline(always)]
fn peer(ends: &Endpoints) -> Option<u64> {
    let known = known_hop(&tuple(ends, scope(&ends.local_addr, ends.netns)))?;
    (known.gave_up_ns == 0).then_some(known.cookie)
}

#[inline(always)]
fn known_hop(key: &Tuple) -> Option<Known> {
    // SAFETY: the value is copied out at once; an entry that is replaced meanwhile can only yield
    // another hop with the same two ends.
    unsafe { TUPLES.get(key) }.copied()
}

/// The namespace where `addr` is a loopback address, else zero.
#[inline(always)]
fn scope(addr: &[u8; 16], netns: u32) -> u32 {
    let mapped_loopback = addr[10] == 0xff && addr[12] == 127;
    let own_loopback = addr[10] == 0 && addr[12] == 0 && addr[15] == 1 && addr[0] == 0;
    if mapped_loopback || own_loopback {
        netns
    } else {
        0
    }
}
