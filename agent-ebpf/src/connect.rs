//! `connect()` calls of gateways that return an error. A socket without a route never enters
//! `SYN_SENT`, so that nothing else would tell of it.
//!
//! Calls through `io_uring` and calls of 32-bit programs on a 64-bit kernel take other paths and are
//! not seen here.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use hopscope_ebpf::{ConnectRecord, Counter, Endpoints, kind};

use crate::ctx::{self, AF_INET, AF_INET6, Sock, argument, field, mapped};
use crate::emit::{emit, header};
use crate::gateway::is_gateway;
use crate::maps::{self, CONNECTS, HOPS, Pending, count};
use crate::socket::TCP;

/// `SOCK_STREAM` of `include/linux/net.h`.
const STREAM: u16 = 1;

/// `struct sockaddr_in`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SockaddrIn {
    family: u16,
    port_be: u16,
    addr: [u8; 4],
}

/// `struct sockaddr_in6`, without the scope.
#[repr(C)]
#[derive(Clone, Copy)]
struct SockaddrIn6 {
    family: u16,
    port_be: u16,
    flow: u32,
    addr: [u8; 16],
}

/// Remembers where a gateway's thread wants to go until the call returns.
#[inline(always)]
pub(crate) fn entered(ctx: &TracePointContext) -> Option<()> {
    let address = argument::<u64>(ctx, &maps::CONNECT_ADDR)?;
    let (addr, port) = destination(address)?;
    if !is_gateway(&ctx::comm(), &addr, port) {
        return None;
    }
    let pending = Pending {
        cookie: 0,
        remote_addr: addr,
        remote_port: port,
        reserved: 0,
        fd: argument::<u64>(ctx, &maps::CONNECT_FD)? as u32,
    };
    if CONNECTS
        .insert(bpf_get_current_pid_tgid(), pending, 0)
        .is_err()
    {
        count(Counter::ConnectMapFull);
    }
    Some(())
}

/// The address in user memory. A call with an address of another family is none of ours, and one with
/// an unreadable address fails by itself.
#[inline(always)]
fn destination(address: u64) -> Option<([u8; 16], u16)> {
    // SAFETY: the helper checks the address, and every bit pattern is valid for these types.
    unsafe {
        match bpf_probe_read_user(address as *const u16).ok()? {
            AF_INET => {
                let v4: SockaddrIn = bpf_probe_read_user(address as *const _).ok()?;
                Some((mapped(v4.addr), u16::from_be(v4.port_be)))
            }
            AF_INET6 => {
                let v6: SockaddrIn6 = bpf_probe_read_user(address as *const _).ok()?;
                Some((v6.addr, u16::from_be(v6.port_be)))
            }
            _ => None,
        }
    }
}

/// Reports the call where it failed.
#[inline(always)]
pub(crate) fn returned(ctx: &TracePointContext) -> Option<()> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied out at once, and the entry is this thread's own.
    let pending = *unsafe { CONNECTS.get(thread) }?;
    let _ = CONNECTS.remove(thread);
    let errno = argument::<i64>(ctx, &maps::CONNECT_RET)?.checked_neg()?;
    if !is_failure(errno) {
        return None;
    }
    let netns = if pending.cookie == 0 {
        stream_netns(pending.fd)?
    } else {
        0
    };
    debug!(
        ctx,
        "connect to port {} returned {}", pending.remote_port, errno
    );
    emit(ConnectRecord {
        header: header::<ConnectRecord>(kind::CONNECT, pending.cookie),
        ends: Endpoints {
            local_addr: [0; 16],
            remote_addr: pending.remote_addr,
            local_port: 0,
            remote_port: pending.remote_port,
            netns,
        },
        caller: ctx::caller(ctx::comm()),
        errno: errno as i32,
        reserved: 0,
    })
}

/// Whether the number tells of a connection that failed, rather than of one that is still under way, of
/// a signal, or of a file descriptor or pointer that was none.
#[inline(always)]
fn is_failure(errno: i64) -> bool {
    const EINTR: i64 = 4;
    const EBADF: i64 = 9;
    const EFAULT: i64 = 14;
    const ENOTSOCK: i64 = 88;
    const EISCONN: i64 = 106;
    const EALREADY: i64 = 114;
    const EINPROGRESS: i64 = 115;
    /// Numbers from here on are between parts of the kernel (`include/linux/errno.h`).
    const ERESTARTSYS: i64 = 512;
    (1..ERESTARTSYS).contains(&errno)
        && !matches!(
            errno,
            EINTR | EBADF | EFAULT | ENOTSOCK | EISCONN | EALREADY | EINPROGRESS
        )
}

/// The network namespace of file descriptor `fd` of the current process where that is a TCP socket that
/// never sent a SYN: resolvers connect datagram sockets, which is no hop.
#[inline(always)]
fn stream_netns(fd: u32) -> Option<u32> {
    let files: u64 = field(ctx::task(), &maps::TASK_FILES)?;
    let table: u64 = field(files, &maps::FILES_FDT)?;
    if fd >= field::<u32>(table, &maps::FDT_MAX)? {
        return None;
    }
    let array: u64 = field(table, &maps::FDT_FD)?;
    let slot = array + u64::from(fd) * 8;
    // SAFETY: the helper checks the address, and every bit pattern is a number.
    let file = unsafe { aya_ebpf::helpers::bpf_probe_read_kernel(slot as *const u64) }.ok()?;
    // The call did not fail with ENOTSOCK, so that `private_data` is a `struct socket`.
    let socket: u64 = field(file, &maps::FILE_PRIVATE)?;
    let sk = Sock::at(field(socket, &maps::SOCKET_SK)?);
    let stream = sk.field::<u16>(&maps::SK_TYPE)? == STREAM;
    let tcp = sk.field::<u16>(&maps::SK_PROTOCOL)? == TCP;
    // A hop sent its SYN in an earlier call, and this one only asks how that went, as HAProxy does: the
    // hop's own records tell.
    let known = HOPS.get_ptr(sk.field::<u64>(&maps::SKC_COOKIE)?).is_some();
    (stream && tcp && !known).then(|| sk.netns())
}
