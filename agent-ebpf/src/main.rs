//! The kernel programs: one entry point a hook, each of them three lines around a function that gives
//! up with `None`.
//!
//! They decide which sockets are hops (a gateway process entering `SYN_SENT`) and send facts about
//! those up, nothing else. What a fact means is user space's business. No program ever changes,
//! delays or drops a packet, and a socket that is not a hop costs one failed map lookup.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::inline_always,
    reason = "a call becomes a BPF subprogram, which the verifier knows less about"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "registers have 64 bits; what is cut off is known to be zero"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the attribute of an entry point hands its context over by value"
)]

mod again;
mod arrival;
mod client;
mod connect;
mod ctx;
mod dns;
mod emit;
mod gateway;
mod goroutine;
mod heads;
mod maps;
mod plain;
mod records;
mod segment;
mod socket;
mod stage;
mod tls;
mod turns;

use aya_ebpf::macros::{
    btf_tracepoint, cgroup_skb, cgroup_sock, fentry, fexit, tracepoint, uprobe,
};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, SkBuffContext, SockContext,
    TracePointContext,
};
use hopscope_ebpf::{ABI_VERSION, call, kind};

use crate::again::Place;

/// The version of the record layout, read by the loader from the file before anything is loaded.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = "hopscope_abi")]
static HOPSCOPE_ABI: u32 = ABI_VERSION;

/// The kernel's function for a system call has one argument, the registers. Its result is behind it.
const CALL_RESULT: usize = 1;

/// Helpers such as `bpf_probe_read_kernel` are open to GPL-compatible programs only.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

// Stacks of callers and callees count together, rounded up each: one function has room enough.
#[btf_tracepoint(function = "inet_sock_set_state")]
#[inline(always)]
fn state(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::State, || socket::state_changed(&ctx, true))
}

#[btf_tracepoint(function = "inet_sock_set_state")]
#[inline(always)]
fn state_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::State, || socket::state_changed(&ctx, false))
}

#[btf_tracepoint(function = "tcp_receive_reset")]
fn reset_in(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::ResetIn, || socket::reset_received(&ctx, true))
}

#[btf_tracepoint(function = "tcp_receive_reset")]
fn reset_in_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::ResetIn, || socket::reset_received(&ctx, false))
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn destroyed(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::Destroyed, || socket::destroyed(&ctx, true))
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn destroyed_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::Destroyed, || socket::destroyed(&ctx, false))
}

#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_out(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::ResetOut, || socket::reset_sent(&ctx, true))
}

#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_out_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::ResetOut, || socket::reset_sent(&ctx, false))
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn retransmit(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::Retransmit, || {
        socket::fact(&ctx, kind::RETRANSMIT, true)
    })
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn retransmit_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::Retransmit, || {
        socket::fact(&ctx, kind::RETRANSMIT, false)
    })
}

#[btf_tracepoint(function = "inet_sk_error_report")]
fn error(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::Error, || socket::fact(&ctx, kind::ERROR, true))
}

#[btf_tracepoint(function = "inet_sk_error_report")]
fn error_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::Error, || socket::fact(&ctx, kind::ERROR, false))
}

// Of the programs on system calls there are two each: one on the kernel's own function, which costs
// nobody else anything, and one for kernels without fentry.
#[fentry]
fn connect_enter(ctx: FEntryContext) -> i32 {
    let _ = connect::Arguments::passed(&ctx).and_then(|arguments| connect::entered(&arguments));
    0
}

#[fexit]
fn connect_exit(ctx: FExitContext) -> i32 {
    let _ = connect::returned(&ctx, ctx.arg(CALL_RESULT));
    0
}

#[tracepoint(category = "syscalls", name = "sys_enter_connect")]
fn connect_enter_traced(ctx: TracePointContext) -> u32 {
    let _ = connect::Arguments::recorded(&ctx).and_then(|arguments| connect::entered(&arguments));
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_connect")]
fn connect_exit_traced(ctx: TracePointContext) -> u32 {
    let _ = ctx::result(&ctx).and_then(|result| connect::returned(&ctx, result));
    0
}

// A subprogram may not call another program.
#[cgroup_skb(egress)]
#[inline(always)]
fn segment_egress(ctx: SkBuffContext) -> i32 {
    let _ = segment::seen(&ctx, 1);
    segment::ALLOW
}

#[cgroup_skb(ingress)]
#[inline(always)]
fn segment_ingress(ctx: SkBuffContext) -> i32 {
    let _ = segment::seen(&ctx, 0);
    segment::ALLOW
}

#[cgroup_sock(sock_create)]
fn dns_socket(ctx: SockContext) -> i32 {
    let _ = dns::created(&ctx);
    segment::ALLOW
}

#[cgroup_sock(sock_release)]
fn dns_socket_gone(ctx: SockContext) -> i32 {
    dns::released(&ctx);
    segment::ALLOW
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn client_state(ctx: BtfTracePointContext) -> i32 {
    again::first(Place::ClientState, || client::state_changed(&ctx))
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn client_state_again(ctx: BtfTracePointContext) -> i32 {
    again::second(Place::ClientState, || client::state_changed(&ctx))
}

#[btf_tracepoint(function = "sched_process_exec")]
fn executed(_ctx: BtfTracePointContext) -> i32 {
    let _ = arrival::executed();
    0
}

/// Attached to the end of `epoll_pwait()` as well.
#[tracepoint(category = "syscalls", name = "sys_exit_epoll_wait")]
fn turn_begins(_ctx: TracePointContext) -> u32 {
    let _ = turns::begun();
    0
}

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn request_read(ctx: BtfTracePointContext) -> i32 {
    let _ = client::read(&ctx);
    0
}

/// Never attached: the segment programs call it.
#[cgroup_skb(egress)]
#[inline(always)]
fn client_egress(ctx: SkBuffContext) -> i32 {
    let _ = client::answered::packet(&ctx);
    segment::ALLOW
}

/// Never attached: the segment programs call it.
#[cgroup_skb(ingress)]
#[inline(always)]
fn client_ingress(ctx: SkBuffContext) -> i32 {
    let _ = client::asked::packet(&ctx);
    segment::ALLOW
}

#[fexit]
fn socket_exit(ctx: FExitContext) -> i32 {
    let _ = client::call_returned(ctx.arg(CALL_RESULT), call::SOCKET);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_socket")]
fn socket_exit_traced(ctx: TracePointContext) -> u32 {
    let _ = ctx::result(&ctx).and_then(|result| client::call_returned(result, call::SOCKET));
    0
}

#[fexit]
fn accept_exit(ctx: FExitContext) -> i32 {
    let _ = client::call_returned(ctx.arg(CALL_RESULT), call::ACCEPT);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_accept4")]
fn accept_exit_traced(ctx: TracePointContext) -> u32 {
    let _ = ctx::result(&ctx).and_then(|result| client::call_returned(result, call::ACCEPT));
    0
}

#[fexit]
fn bind_exit(ctx: FExitContext) -> i32 {
    let _ = client::call_returned(ctx.arg(CALL_RESULT), call::BIND);
    0
}

#[tracepoint(category = "syscalls", name = "sys_exit_bind")]
fn bind_exit_traced(ctx: TracePointContext) -> u32 {
    let _ = ctx::result(&ctx).and_then(|result| client::call_returned(result, call::BIND));
    0
}

#[uprobe]
fn tls_handshake(ctx: ProbeContext) -> u32 {
    let _ = tls::handshake(&ctx);
    0
}

#[uprobe]
fn tls_raised(ctx: ProbeContext) -> u32 {
    let _ = tls::raised(&ctx);
    0
}

#[uprobe]
fn tls_put(ctx: ProbeContext) -> u32 {
    let _ = tls::put(&ctx);
    0
}

#[uprobe]
fn tls_verified(ctx: ProbeContext) -> u32 {
    let _ = tls::verified(&ctx);
    0
}

#[uprobe]
fn tls_asked(ctx: ProbeContext) -> u32 {
    let _ = tls::asked(&ctx);
    0
}

#[uprobe]
fn tls_freed(ctx: ProbeContext) -> u32 {
    let _ = tls::freed(&ctx);
    0
}

#[uprobe]
fn tls_accepts(ctx: ProbeContext) -> u32 {
    let _ = tls::accepts(&ctx);
    0
}

#[uprobe]
fn tls_call(ctx: ProbeContext) -> u32 {
    let _ = plain::entered(&ctx);
    0
}

#[uprobe]
fn tls_returns(ctx: ProbeContext) -> u32 {
    let _ = plain::returns(&ctx);
    0
}

#[uprobe]
fn tls_cleared(ctx: ProbeContext) -> u32 {
    let _ = tls::cleared(&ctx);
    0
}

#[uprobe]
fn tls_skips(ctx: ProbeContext) -> u32 {
    let _ = plain::skips(&ctx);
    0
}

#[uprobe]
fn tls_shuts(ctx: ProbeContext) -> u32 {
    let _ = plain::shuts(&ctx);
    0
}

/// Never reached: the verifier rejects a program that could panic.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
