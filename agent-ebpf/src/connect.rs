//! `connect()` calls of gateways that return an error. A socket without a route never enters
//! `SYN_SENT`, and one of the unix family has no such state, so that nothing else would tell of them.
//!
//! Calls through `io_uring` and calls of 32-bit programs on a 64-bit kernel take other paths and are
//! not seen here.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user, generated};
use aya_ebpf::programs::{FEntryContext, TracePointContext};
use aya_log_ebpf::debug;
use hopscope_ebpf::{
    ConnectRecord, Counter, Endpoints, Goroutine, UNIX_PATH_LEN, UnixConnectRecord, kind,
};

use crate::ctx::{self, AF_INET, AF_INET6, AF_UNIX, Sock, argument, field, mapped};
use crate::dns;
use crate::emit::{emit_with, header};
use crate::gateway::is_gateway;
use crate::goroutine;
use crate::maps::{self, CONNECTS, HOPS, Pending, count};
use crate::segment::bounded;
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

/// The arguments of a call.
pub(crate) struct Arguments {
    fd: u32,
    address: u64,
    address_len: u32,
}

impl Arguments {
    /// From the record of the tracepoint.
    #[inline(always)]
    pub(crate) fn recorded(ctx: &TracePointContext) -> Option<Self> {
        Some(Self {
            fd: argument::<u64>(ctx, &maps::CONNECT_FD)? as u32,
            address: argument(ctx, &maps::CONNECT_ADDR)?,
            address_len: argument::<u64>(ctx, &maps::CONNECT_LEN)? as u32,
        })
    }

    /// From the registers of the calling thread, the one argument of the kernel's own function.
    #[inline(always)]
    pub(crate) fn passed(ctx: &FEntryContext) -> Option<Self> {
        let registers = ctx.arg(0);
        Some(Self {
            fd: field::<u64>(registers, &maps::CALL_FIRST)? as u32,
            address: field(registers, &maps::CALL_SECOND)?,
            address_len: field::<u64>(registers, &maps::CALL_THIRD)? as u32,
        })
    }
}

/// Remembers where a gateway's thread wants to go until the call returns.
#[inline(always)]
pub(crate) fn entered(arguments: &Arguments) -> Option<()> {
    let (family, addr, port) = destination(arguments.address)?;
    // A stream to a name server is no hop, and most of these are datagram sockets.
    if port == dns::PORT {
        return None;
    }
    // A unix path is no upstream of the table: its gateways are known by name or cgroup.
    if !is_gateway(&ctx::comm(), &addr, port) {
        return None;
    }
    let pending = Pending {
        cookie: 0,
        remote_addr: addr,
        remote_port: port,
        family,
        fd: arguments.fd,
        address: arguments.address,
        address_len: arguments.address_len,
        reserved: 0,
    };
    if CONNECTS
        .insert(bpf_get_current_pid_tgid(), pending, 0)
        .is_err()
    {
        count(Counter::ConnectMapFull);
    }
    Some(())
}

/// Family, address and port in user memory; a unix address has the last two all zero. A call with an address of another family is none of ours, and one with
/// an unreadable address fails by itself.
#[inline(always)]
fn destination(address: u64) -> Option<(u16, [u8; 16], u16)> {
    // SAFETY: the helper checks the address, and every bit pattern is valid for these types.
    unsafe {
        match bpf_probe_read_user(address as *const u16).ok()? {
            AF_INET => {
                let v4: SockaddrIn = bpf_probe_read_user(address as *const _).ok()?;
                Some((AF_INET, mapped(v4.addr), u16::from_be(v4.port_be)))
            }
            AF_INET6 => {
                let v6: SockaddrIn6 = bpf_probe_read_user(address as *const _).ok()?;
                Some((AF_INET6, v6.addr, u16::from_be(v6.port_be)))
            }
            AF_UNIX => Some((AF_UNIX, [0; 16], 0)),
            _ => None,
        }
    }
}

/// Reports the call where `result` says that it failed.
#[inline(always)]
pub(crate) fn returned(ctx: &impl EbpfContext, result: i64) -> Option<()> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the value is copied out at once, and the entry is this thread's own.
    let pending = *unsafe { CONNECTS.get(thread) }?;
    let _ = CONNECTS.remove(thread);
    let errno = result.checked_neg()?;
    if !is_failure(errno) {
        return None;
    }
    if pending.family == AF_UNIX {
        return unix_failed(ctx, &pending, errno);
    }
    let netns = if pending.cookie == 0 {
        tcp_netns(pending.fd)?
    } else {
        0
    };
    debug!(
        ctx,
        "connect to port {} returned {}", pending.remote_port, errno
    );
    let record = ConnectRecord {
        header: header::<ConnectRecord>(kind::CONNECT, pending.cookie),
        ends: Endpoints {
            local_addr: [0; 16],
            remote_addr: pending.remote_addr,
            local_port: 0,
            remote_port: pending.remote_port,
            netns,
        },
        caller: ctx::caller(ctx::comm()),
        goroutine: Goroutine::NONE,
        errno: errno as i32,
        reserved: 0,
    };
    emit_with(record, |room| {
        // SAFETY: the room of that record.
        let _ = unsafe { goroutine::tell(&raw mut (*room).goroutine) };
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

/// Reports a failed connect to a stream socket of the unix family.
#[inline(always)]
fn unix_failed(ctx: &impl EbpfContext, pending: &Pending, errno: i64) -> Option<()> {
    /// `sun_path` lies behind the family.
    const FAMILY_LEN: u64 = 2;
    let sk = socket_of(pending.fd)?;
    if sk.field::<u16>(&maps::SK_TYPE)? != STREAM || sk.field::<u16>(&maps::SKC_FAMILY)? != AF_UNIX
    {
        return None;
    }
    let len = bounded(
        pending.address_len.saturating_sub(FAMILY_LEN as u32),
        UNIX_PATH_LEN as u32,
    )?;
    let mut path = [0; UNIX_PATH_LEN];
    // The kernel read the same bytes a moment ago. Another thread that changes them meanwhile confuses
    // its own process more than us.
    // SAFETY: the helper checks the address, and `path` has room for `len` bytes.
    let read = unsafe {
        generated::bpf_probe_read_user(
            path.as_mut_ptr().cast(),
            len,
            (pending.address + FAMILY_LEN) as *const _,
        )
    };
    if read != 0 {
        count(Counter::ReadFailed);
        return None;
    }
    debug!(ctx, "connect to a unix socket returned {}", errno);
    let record = UnixConnectRecord {
        header: header::<UnixConnectRecord>(kind::UNIX_CONNECT, 0),
        caller: ctx::caller(ctx::comm()),
        goroutine: Goroutine::NONE,
        errno: errno as i32,
        netns: sk.netns(),
        path_len: len,
        path,
    };
    emit_with(record, |room| {
        // SAFETY: the room of that record.
        let _ = unsafe { goroutine::tell(&raw mut (*room).goroutine) };
    })
}

/// The network namespace of file descriptor `fd` of the current process where that is a TCP socket that
/// never sent a SYN: resolvers connect datagram sockets, which is no hop.
#[inline(always)]
fn tcp_netns(fd: u32) -> Option<u32> {
    let sk = socket_of(fd)?;
    let stream = sk.field::<u16>(&maps::SK_TYPE)? == STREAM;
    let tcp = sk.field::<u16>(&maps::SK_PROTOCOL)? == TCP;
    // A hop sent its SYN in an earlier call, and this one only asks how that went, as HAProxy does: the
    // hop's own records tell.
    let known = HOPS.get_ptr(sk.field::<u64>(&maps::SKC_COOKIE)?).is_some();
    (stream && tcp && !known).then(|| sk.netns())
}

/// The socket behind file descriptor `fd` of the current process. The call must not have failed with
/// ENOTSOCK.
#[inline(always)]
fn socket_of(fd: u32) -> Option<Sock> {
    let files: u64 = field(ctx::task(), &maps::TASK_FILES)?;
    let table: u64 = field(files, &maps::FILES_FDT)?;
    if fd >= field::<u32>(table, &maps::FDT_MAX)? {
        return None;
    }
    let array: u64 = field(table, &maps::FDT_FD)?;
    let slot = array + u64::from(fd) * 8;
    // SAFETY: the helper checks the address, and every bit pattern is a number.
    let file = unsafe { aya_ebpf::helpers::bpf_probe_read_kernel(slot as *const u64) }.ok()?;
    // Behind a socket's descriptor, `private_data` is a `struct socket`.
    let socket: u64 = field(file, &maps::FILE_PRIVATE)?;
    Some(Sock::at(field(socket, &maps::SOCKET_SK)?))
}
