//! Reads from kernel memory at offsets that the loader resolved. All unsafe reading is here.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str_bytes, generated,
};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use aya_ebpf::{EbpfContext as _, Global};
use hopscope_ebpf::{COMM_LEN, Caller, Counter, Endpoints, NO_OFFSET};

use crate::maps::{self, count};
use crate::segment::behind;
use crate::turns;

/// `AF_UNIX` of `include/linux/socket.h`.
pub(crate) const AF_UNIX: u16 = 1;
/// `AF_INET` of the same file.
pub(crate) const AF_INET: u16 = 2;
/// `AF_INET6` of the same file.
pub(crate) const AF_INET6: u16 = 10;

/// First twelve bytes of an IPv4 address mapped into IPv6.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// IPv4 `addr` as RFC 4291 section 2.5.5.2 maps it.
#[inline(always)]
pub(crate) fn mapped(addr: [u8; 4]) -> [u8; 16] {
    let mut out = [0; 16];
    out[..12].copy_from_slice(&MAPPED);
    out[12..].copy_from_slice(&addr);
    out
}

/// The value at `offset` of the kernel object at `base`: `None` where this kernel has no such field or
/// it cannot be read.
#[inline(always)]
pub(crate) fn field<T: Copy>(base: u64, offset: &Global<u32>) -> Option<T> {
    let offset = offset.load();
    if offset == NO_OFFSET {
        return None;
    }
    let address = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails where it is not mapped; every `T` used here is
    // an integer or an array of bytes, for which each bit pattern is valid.
    let value = unsafe { bpf_probe_read_kernel(address) };
    if value.is_err() {
        count(Counter::ReadFailed);
    }
    value.ok()
}

/// The number at `offset` of a kernel object whose type the verifier knows, as its pointer came from there: it
/// checks that there is one. An address that is not mapped reads as zero.
#[inline(always)]
pub(crate) fn direct<T: Copy>(base: u64, offset: &Global<u32>) -> Option<T> {
    let offset = offset.load();
    if offset == NO_OFFSET {
        return None;
    }
    let address = behind(base as usize, offset as usize) as *const T;
    // SAFETY: as above.
    Some(unsafe { address.read_volatile() })
}

/// A `struct sock`, or a `struct sock_common` that has only the `skc_` fields.
#[derive(Clone, Copy)]
pub(crate) struct Sock {
    address: u64,
    /// Whether the verifier knows what is there, as it does of a tracepoint's argument.
    typed: bool,
}

impl Sock {
    /// Argument `n` of a tracepoint; `None` where it is the null pointer.
    #[inline(always)]
    pub(crate) fn arg(ctx: &BtfTracePointContext, n: usize) -> Option<Self> {
        let address: u64 = ctx.arg(n);
        if address == 0 {
            None
        } else {
            Some(Self {
                address,
                typed: true,
            })
        }
    }

    /// A socket at an address that was read from memory; only its fields can be used, not its cookie.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self {
            address,
            typed: false,
        }
    }

    /// The socket's cookie. Only for a tracepoint's own argument.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        // SAFETY: the verifier admits this call for a socket that came as a tracepoint argument only;
        // the cookie lies in `sock_common`, so that request and time-wait sockets have one as well.
        unsafe { bpf_get_socket_cookie(self.address as *mut _) }
    }

    /// A field of `struct sock`, a number. Where the verifier knows the type it is read like memory of the program,
    /// at a tenth of the cost of a helper.
    #[inline(always)]
    pub(crate) fn field<T: Copy>(self, offset: &Global<u32>) -> Option<T> {
        if self.typed {
            direct(self.address, offset)
        } else {
            self.probed(offset)
        }
    }

    /// A field of what a `struct sock` is the beginning of, or one of several numbers: the verifier knows those
    /// of no argument.
    #[inline(always)]
    pub(crate) fn probed<T: Copy>(self, offset: &Global<u32>) -> Option<T> {
        field(self.address, offset)
    }

    /// The `struct tcp_sock` that it is the beginning of, for [`direct`]; `None` where it is none. Only for a
    /// tracepoint's own argument.
    #[inline(always)]
    pub(crate) fn tcp(self) -> Option<u64> {
        // SAFETY: the verifier admits this call for such a socket only.
        let tcp = unsafe { generated::bpf_skc_to_tcp_sock(self.address as *mut _) };
        (!tcp.is_null()).then_some(tcp as u64)
    }

    /// An IPv4 address.
    #[inline(always)]
    fn v4(self, offset: &Global<u32>) -> [u8; 16] {
        mapped(self.field::<u32>(offset).unwrap_or(0).to_ne_bytes())
    }

    /// Inode of its network namespace, zero where unknown.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        self.field::<u64>(&maps::SKC_NET)
            .and_then(|net| {
                if self.typed {
                    direct(net, &maps::NET_INUM)
                } else {
                    field(net, &maps::NET_INUM)
                }
            })
            .unwrap_or(0)
    }

    /// The local port in host byte order, zero where none is bound.
    ///
    /// A socket that enters `TCP_CLOSE` gives its port back first (`__inet_put_port`), and sends its
    /// reset after that. The source port of its segments stays, in full sockets only.
    #[inline(always)]
    fn local_port(self) -> u16 {
        const TIME_WAIT: u8 = 6;
        const NEW_SYN_RECV: u8 = 12;
        let bound = self.field(&maps::SKC_NUM).unwrap_or(0);
        if bound != 0 {
            return bound;
        }
        match self.field::<u8>(&maps::SKC_STATE) {
            Some(TIME_WAIT | NEW_SYN_RECV) | None => 0,
            Some(_) => u16::from_be(self.probed(&maps::INET_SPORT).unwrap_or(0)),
        }
    }

    /// Both ends; zeros where a field cannot be read.
    #[inline(always)]
    pub(crate) fn ends(self) -> Endpoints {
        let (local_addr, remote_addr) = match self.field::<u16>(&maps::SKC_FAMILY) {
            Some(AF_INET) => (self.v4(&maps::SKC_RCV_SADDR), self.v4(&maps::SKC_DADDR)),
            Some(AF_INET6) => (
                self.probed(&maps::SKC_V6_RCV_SADDR).unwrap_or_default(),
                self.probed(&maps::SKC_V6_DADDR).unwrap_or_default(),
            ),
            _ => ([0; 16], [0; 16]),
        };
        Endpoints {
            local_addr,
            remote_addr,
            local_port: self.local_port(),
            remote_port: u16::from_be(self.field(&maps::SKC_DPORT).unwrap_or(0)),
            netns: self.netns(),
        }
    }
}

/// The ends, as its sender has them, of the segment in argument `n` of a tracepoint, where it can be
/// read and `wanted` wants its control bits.
#[inline(always)]
pub(crate) fn segment_ends(
    ctx: &BtfTracePointContext,
    n: usize,
    wanted: impl Fn(u8) -> bool,
) -> Option<Endpoints> {
    /// Places in a TCP header (RFC 9293 section 3.1) and in the two IP headers (RFC 791 section 3.1,
    /// RFC 8200 section 3).
    const FLAGS: u64 = 13;
    const SOURCE_V4: u64 = 12;
    const SOURCE_V6: u64 = 8;

    let skb: u64 = ctx.arg(n);
    if skb == 0 {
        return None;
    }
    let head: u64 = field(skb, &maps::SKB_HEAD)?;
    let tcp = head + u64::from(field::<u16>(skb, &maps::SKB_TRANSPORT)?);
    let flags: u8 = read(tcp + FLAGS)?;
    if !wanted(flags) {
        return None;
    }
    let ip = head + u64::from(field::<u16>(skb, &maps::SKB_NETWORK)?);
    let (source, destination) = if read::<u8>(ip)? >> 4 == 4 {
        let [source, destination]: [[u8; 4]; 2] = read(ip + SOURCE_V4)?;
        (mapped(source), mapped(destination))
    } else {
        let [source, destination]: [[u8; 16]; 2] = read(ip + SOURCE_V6)?;
        (source, destination)
    };
    let [from, to]: [u16; 2] = read(tcp)?;
    let netns = field::<u64>(skb, &maps::SKB_DEV)
        .and_then(|dev| field::<u64>(dev, &maps::DEV_NET))
        .and_then(|net| field(net, &maps::NET_INUM));
    Some(Endpoints {
        local_addr: source,
        remote_addr: destination,
        local_port: u16::from_be(from),
        remote_port: u16::from_be(to),
        netns: netns.unwrap_or(0),
    })
}

/// The value at `address` of kernel memory.
#[inline(always)]
pub(crate) fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address; every `T` used here is an integer or an array of them.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// The kernel's tick count, as sockets keep it.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: no arguments.
    unsafe { generated::bpf_jiffies64() as u32 }
}

/// The current task.
#[inline(always)]
pub(crate) fn task() -> u64 {
    // SAFETY: no arguments; the result is only ever given to `field`.
    unsafe { generated::bpf_get_current_task() }
}

/// Name of the current process: of its thread group leader where that can be read, since threads of
/// many gateways carry names of their own.
#[inline(always)]
pub(crate) fn comm() -> [u8; COMM_LEN] {
    let offset = maps::TASK_COMM.load();
    if offset != NO_OFFSET
        && let Some(leader) = field::<u64>(task(), &maps::TASK_LEADER)
    {
        let mut name = [0; COMM_LEN];
        let from = (leader + u64::from(offset)) as *const u8;
        // SAFETY: the helper checks the address. It stops at the NUL, so that what an earlier, longer
        // name left behind it does not come along.
        if unsafe { bpf_probe_read_kernel_str_bytes(from, &mut name) }.is_ok() {
            return name;
        }
        count(Counter::ReadFailed);
    }
    bpf_get_current_comm().unwrap_or_default()
}

/// Inode of the network namespace of the current process, zero where unknown.
#[inline(always)]
pub(crate) fn netns() -> u32 {
    field::<u64>(task(), &maps::TASK_NSPROXY)
        .and_then(|proxy| field::<u64>(proxy, &maps::NSPROXY_NET))
        .and_then(|net| field(net, &maps::NET_INUM))
        .unwrap_or(0)
}

/// Which turn of its loop the current thread is in: how often it went to sleep of its own will, which
/// an event loop does once a turn. What it does between two sleeps belongs together, however long the
/// scheduler makes it wait. Of a thread that need not sleep between its turns they are counted themselves.
#[inline(always)]
pub(crate) fn turn() -> u32 {
    if let Some(number) = turns::number() {
        return number;
    }
    field::<u64>(task(), &maps::TASK_SLEEPS).unwrap_or(0) as u32
}

/// The current process, as a record carries it.
#[inline(always)]
pub(crate) fn caller(comm: [u8; COMM_LEN]) -> Caller {
    let id = bpf_get_current_pid_tgid();
    Caller {
        // SAFETY: no arguments.
        cgroup_id: unsafe { generated::bpf_get_current_cgroup_id() },
        pid: (id >> 32) as u32,
        tid: id as u32,
        turn: turn(),
        turn_age_us: turns::age_us().unwrap_or(0),
        comm,
    }
}

/// Field of a tracepoint record at an offset that tracefs names.
#[inline(always)]
pub(crate) fn argument<T: Copy>(ctx: &TracePointContext, offset: &Global<u32>) -> Option<T> {
    field(ctx.as_ptr() as u64, offset)
}

/// What a system call returned, from the record of its tracepoint.
#[inline(always)]
pub(crate) fn result(ctx: &TracePointContext) -> Option<i64> {
    argument(ctx, &maps::CONNECT_RET)
}
