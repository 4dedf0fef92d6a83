//! Maps and read-only globals. User space fills the filters and offsets before the programs load; the
//! verifier then removes every path that they rule out.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use hopscope_ebpf::{
    COMM_LEN, COUNTERS_LEN, Counter, DnsSocket, HOPS_CAP, Hop, MAX_SNAP_LEN, NO_OFFSET, Tuple,
    UpstreamKey,
};

use crate::plain::Call;
use crate::records::Next;
use crate::stage::Stage;
use crate::tls::{Handshake, Raised, Session, Ssl};

/// Calls of `connect()` under way: one a thread. They all return, that of a thread that is killed inside as well.
const CONNECTS_CAP: u32 = 16_384;

/// Hops with something held back, of about five KiB each.
const STAGES_CAP: u32 = 4_096;

/// `BPF_F_NO_PREALLOC` of `include/uapi/linux/bpf.h`.
pub(crate) const NO_PREALLOC: u32 = 1;

/// Sockets that were reset and not closed yet, which their owners do within moments.
const RESETS_CAP: u32 = 16_384;

/// Directions of hops with TLS of which exchanges are seen, not held.
const RECORDS_CAP: u32 = 32_768;

/// Datagram sockets of gateways and resolvers: libraries make one for each name that they look up.
const DNS_SOCKETS_CAP: u32 = 16_384;

/// Names of resolvers.
const RESOLVERS_CAP: u32 = 32;

/// Every TCP port.
pub(crate) const PORTS_LEN: u32 = 1 << 16;

/// Processes that open hops, as long as they run.
const GATEWAYS_CAP: u32 = 4_096;

/// `SSL` objects, of either end each, which leave when they are freed.
const SESSIONS_CAP: u32 = 65_536;

/// Threads that handshake or raise errors: what is kept of them is worth one turn.
const THREADS_CAP: u32 = 4_096;

/// Names, cgroups and upstreams that can be configured.
const FILTER_CAP: u32 = 4_096;

/// Records for user space. The loader sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// The hops, by socket cookie. LRU: the kernel says nothing when a hop closes (its last segments come after
/// that), so an entry that user space missed leaves by age. Evicting a live hop ends its tracking.
#[map]
pub(crate) static HOPS: LruHashMap<u64, Hop> = LruHashMap::with_max_entries(HOPS_CAP, 0);

/// One at the index of every port that a hop was ever opened to. What passes the socket of another port
/// is told by that from what passes a hop, without a search for its cookie.
#[map]
pub(crate) static PORTS: Array<u8> = Array::with_max_entries(PORTS_LEN, 0);

/// Hops as their upstreams' sockets see them.
#[map]
pub(crate) static TUPLES: LruHashMap<Tuple, Known> = LruHashMap::with_max_entries(HOPS_CAP, 0);

/// Calls of `connect()` under way, by thread.
#[map]
pub(crate) static CONNECTS: HashMap<u64, Pending> = HashMap::with_max_entries(CONNECTS_CAP, 0);

/// Sockets that are no hops and that the other side reset while they were open.
#[map]
pub(crate) static RESETS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(RESETS_CAP, 0);

/// Where the next TLS record of a direction of a hop begins, by its cookie and direction. Who falls out has a
/// gap.
#[map]
pub(crate) static RECORDS: LruHashMap<u64, Next> = LruHashMap::with_max_entries(RECORDS_CAP, 0);

/// What is held back of hops, by socket cookie. Entries are made when a hop is used again and go with its
/// socket, so that hops for one exchange never have one. Where there is no room, nothing is held back.
#[map]
pub(crate) static STAGES: HashMap<u64, Stage> = HashMap::with_max_entries(STAGES_CAP, NO_PREALLOC);

/// An empty [`Stage`]: too large for a program's stack.
#[map]
pub(crate) static EMPTY_STAGE: Array<Stage> = Array::with_max_entries(1, 0);

/// Upstreams of which nothing is held back for a while, and until when, in nanoseconds.
#[map]
pub(crate) static BOOSTS: LpmTrie<UpstreamKey, u64> = LpmTrie::with_max_entries(FILTER_CAP, 0);

/// Not zero where [`BOOSTS`] has entries.
#[map]
pub(crate) static BOOSTING: Array<u32> = Array::with_max_entries(1, 0);

/// Sockets from which gateways, and the resolvers of this host, ask name servers, by cookie. Entries go with
/// their sockets.
#[map]
pub(crate) static DNS_SOCKETS: HashMap<u64, DnsSocket> =
    HashMap::with_max_entries(DNS_SOCKETS_CAP, 0);

/// Names of resolvers, padded with zeros, that ask on behalf of other processes of the host.
#[map]
pub(crate) static RESOLVERS: HashMap<[u8; COMM_LEN], u8> =
    HashMap::with_max_entries(RESOLVERS_CAP, 0);

/// Names of gateway processes, padded with zeros.
#[map]
pub(crate) static COMMS: HashMap<[u8; COMM_LEN], u8> = HashMap::with_max_entries(FILTER_CAP, 0);

/// cgroup v2 ids of gateways.
#[map]
pub(crate) static CGROUPS: HashMap<u64, u8> = HashMap::with_max_entries(FILTER_CAP, 0);

/// Upstreams whose callers count as gateways.
#[map]
pub(crate) static UPSTREAMS: LpmTrie<UpstreamKey, u8> = LpmTrie::with_max_entries(FILTER_CAP, 0);

/// Processes that opened a hop. User space takes out those that have ended: if a full table forgot one that
/// runs, what is read inside its TLS would have a gap.
#[map]
pub(crate) static GATEWAYS: HashMap<u32, u8> = HashMap::with_max_entries(GATEWAYS_CAP, 0);

/// `SSL` objects of gateways. Those that a process leaves behind go with it. Not LRU, as [`GATEWAYS`].
#[map]
pub(crate) static SESSIONS: HashMap<Ssl, Session> = HashMap::with_max_entries(SESSIONS_CAP, 0);

/// `SSL` objects that are the server's end, which no hop is, and the cookie of the client's connection, zero while
/// that is not known. Not LRU either: of a client whose object is forgotten nothing more is read.
#[map]
pub(crate) static SERVERS: HashMap<Ssl, u64> = HashMap::with_max_entries(SESSIONS_CAP, 0);

/// The handshake call that a thread made last, by the address of its task.
#[map]
pub(crate) static HANDSHAKES: LruHashMap<u64, Handshake> =
    LruHashMap::with_max_entries(THREADS_CAP, 0);

/// The call that a thread is in that reads or writes inside TLS, by the address of its task. LRU, since a thread
/// may be killed inside; the session knows that a call is under way, so that one which is forgotten shows.
#[map]
pub(crate) static CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(THREADS_CAP, 0);

/// The last error of a thread that could not be joined, by the address of its task.
#[map]
pub(crate) static RAISED: LruHashMap<u64, Raised> = LruHashMap::with_max_entries(THREADS_CAP, 0);

/// One count per reason that something was not seen.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_LEN, 0);

/// A hop found by its ends.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// The hop's cookie.
    pub(crate) cookie: u64,
    /// When it gave up its SYN, in nanoseconds; zero where it was established.
    pub(crate) gave_up_ns: u64,
}

/// A `connect()` under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    /// Cookie of the socket once it entered `SYN_SENT`, else zero.
    pub(crate) cookie: u64,
    /// Where it wants to go.
    pub(crate) remote_addr: [u8; 16],
    /// Port in host byte order.
    pub(crate) remote_port: u16,
    /// `AF_INET`, `AF_INET6` or `AF_UNIX`.
    pub(crate) family: u16,
    /// The file descriptor.
    pub(crate) fd: u32,
    /// The address in user memory, of which a unix path is read where the call failed.
    pub(crate) address: u64,
    /// Its length in bytes.
    pub(crate) address_len: u32,
    /// Zero.
    pub(crate) reserved: u32,
}

macro_rules! globals {
    ($($(#[doc = $doc:literal])+ $name:ident: $ty:ty = $value:expr;)*) => {
        $($(#[doc = $doc])+ #[unsafe(no_mangle)] pub(crate) static $name: Global<$ty> = Global::new($value);)*
    };
}

globals! {
    /// Payload bytes kept of a segment.
    SNAP_LEN: u32 = 2048;
    /// Payload bytes held back of a request.
    REQUEST_HEAD: u32 = MAX_SNAP_LEN;
    /// Payload bytes held back of a response.
    RESPONSE_HEAD: u32 = MAX_SNAP_LEN;
    /// Of how many exchanges on a hop one is sent up; zero for none.
    SAMPLE: u32 = 0;
    /// Milliseconds after which a first response byte is late.
    SLOW_MS: u32 = 1000;
    /// Not zero where what is inside TLS is read.
    TLS_PLAINTEXT: u32 = 0;
    /// Not zero where the accepted connections of gateways are looked at.
    CLIENT_SIDE: u32 = 1;
    /// Bits of `hopscope_ebpf::filter`.
    FILTERS: u32 = 0;
    /// Offset in `pt_regs` of the first register that survives a call, and how many there are.
    SAVED_AT: u32 = 0;
    /// See `SAVED_AT`.
    SAVED_LEN: u32 = 0;
    /// Offset in `pt_regs` of the stack pointer, where a call leaves its return address there.
    STACK_AT: u32 = NO_OFFSET;
    /// Offset in `pt_regs` of the register with a function's result.
    RESULT_AT: u32 = 0;
    /// Not zero where `tcp_send_reset` has a third argument, the reason.
    RESET_HAS_REASON: u32 = 0;
    /// `sock_common.skc_family`, `u16`.
    SKC_FAMILY: u32 = NO_OFFSET;
    /// `sock_common.skc_state`, `u8`.
    SKC_STATE: u32 = NO_OFFSET;
    /// `sock_common.skc_num`, `u16`.
    SKC_NUM: u32 = NO_OFFSET;
    /// `inet_sock.inet_sport`, `u16`, network byte order.
    INET_SPORT: u32 = NO_OFFSET;
    /// `sock_common.skc_dport`, `u16`, network byte order.
    SKC_DPORT: u32 = NO_OFFSET;
    /// `sock_common.skc_rcv_saddr`, four bytes.
    SKC_RCV_SADDR: u32 = NO_OFFSET;
    /// `sock_common.skc_daddr`, four bytes.
    SKC_DADDR: u32 = NO_OFFSET;
    /// `sock_common.skc_v6_rcv_saddr`, sixteen bytes.
    SKC_V6_RCV_SADDR: u32 = NO_OFFSET;
    /// `sock_common.skc_v6_daddr`, sixteen bytes.
    SKC_V6_DADDR: u32 = NO_OFFSET;
    /// `sock_common.skc_cookie`, `u64`, zero until something asked for the cookie.
    SKC_COOKIE: u32 = NO_OFFSET;
    /// `sock_common.skc_net.net`, pointer.
    SKC_NET: u32 = NO_OFFSET;
    /// `net.ns.inum`, `u32`.
    NET_INUM: u32 = NO_OFFSET;
    /// `sock.sk_err`, `i32`.
    SK_ERR: u32 = NO_OFFSET;
    /// `sock.sk_type`, `u16`.
    SK_TYPE: u32 = NO_OFFSET;
    /// `sock.sk_protocol`, `u16`.
    SK_PROTOCOL: u32 = NO_OFFSET;
    /// `tcp_sock.bytes_acked`, `u64`.
    TCP_BYTES_ACKED: u32 = NO_OFFSET;
    /// `tcp_sock.srtt_us`, `u32`, eight times the value.
    TCP_SRTT: u32 = NO_OFFSET;
    /// `tcp_sock.lsndtime`, `u32`, in ticks.
    TCP_LSNDTIME: u32 = NO_OFFSET;
    /// `task_struct.group_leader`, pointer.
    TASK_LEADER: u32 = NO_OFFSET;
    /// `task_struct.comm`, sixteen bytes.
    TASK_COMM: u32 = NO_OFFSET;
    /// `task_struct.nvcsw`, `u64`.
    TASK_SLEEPS: u32 = NO_OFFSET;
    /// `task_struct.nsproxy`, pointer.
    TASK_NSPROXY: u32 = NO_OFFSET;
    /// `nsproxy.net_ns`, pointer.
    NSPROXY_NET: u32 = NO_OFFSET;
    /// `task_struct.tgid`, `i32`.
    TASK_TGID: u32 = NO_OFFSET;
    /// `task_struct.pid`, `i32`.
    TASK_PID: u32 = NO_OFFSET;
    /// `task_struct.flags`, `u32`.
    TASK_FLAGS: u32 = NO_OFFSET;
    /// `task_struct.exit_code`, `i32`.
    TASK_EXIT: u32 = NO_OFFSET;
    /// `task_struct.thread.fsbase`, `u64`: the thread pointer of user space.
    THREAD_FSBASE: u32 = NO_OFFSET;
    /// `task_struct.files`, pointer.
    TASK_FILES: u32 = NO_OFFSET;
    /// `files_struct.fdt`, pointer.
    FILES_FDT: u32 = NO_OFFSET;
    /// `fdtable.max_fds`, `u32`.
    FDT_MAX: u32 = NO_OFFSET;
    /// `fdtable.fd`, pointer to pointers.
    FDT_FD: u32 = NO_OFFSET;
    /// `file.private_data`, pointer.
    FILE_PRIVATE: u32 = NO_OFFSET;
    /// `socket.sk`, pointer.
    SOCKET_SK: u32 = NO_OFFSET;
    /// `sk_buff.head`, pointer.
    SKB_HEAD: u32 = NO_OFFSET;
    /// `sk_buff.network_header`, `u16`, from the head.
    SKB_NETWORK: u32 = NO_OFFSET;
    /// `sk_buff.transport_header`, `u16`, from the head.
    SKB_TRANSPORT: u32 = NO_OFFSET;
    /// `sk_buff.dev`, pointer.
    SKB_DEV: u32 = NO_OFFSET;
    /// `net_device.nd_net.net`, pointer.
    DEV_NET: u32 = NO_OFFSET;
    /// Offset of the file descriptor in a `sys_enter_connect` record, `u64`.
    CONNECT_FD: u32 = NO_OFFSET;
    /// Offset of the address pointer in a `sys_enter_connect` record.
    CONNECT_ADDR: u32 = NO_OFFSET;
    /// Offset of the address's length in a `sys_enter_connect` record, `u64`.
    CONNECT_LEN: u32 = NO_OFFSET;
    /// Offset of the result in a `sys_exit_connect` record, `i64`, and in that of every other call.
    CONNECT_RET: u32 = NO_OFFSET;
    /// `pt_regs`, first argument of a system call, `u64`.
    CALL_FIRST: u32 = NO_OFFSET;
    /// `pt_regs`, second argument of a system call, `u64`.
    CALL_SECOND: u32 = NO_OFFSET;
    /// `pt_regs`, third argument of a system call, `u64`.
    CALL_THIRD: u32 = NO_OFFSET;
}

/// Notes that hops lead to `port`.
#[inline(always)]
pub(crate) fn enter_port(port: u16) {
    if let Some(known) = PORTS.get_ptr_mut(u32::from(port)) {
        // SAFETY: the entry of a live array, which only ever changes to this value.
        unsafe { *known = 1 };
    }
}

/// Whether a hop may lead to `port`.
#[inline(always)]
pub(crate) fn is_hop_port(port: u16) -> bool {
    // SAFETY: an entry of a live array is one byte, which only ever changes from zero to one.
    PORTS
        .get_ptr(u32::from(port))
        .is_some_and(|known| unsafe { *known } != 0)
}

/// Counts one more of `counter`.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this processor's own slot of a live map, and a tracing or cgroup
        // program is not moved to another processor while it runs.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}
