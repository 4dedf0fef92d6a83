//! Records that the kernel programs hand to user space, declared once so that the two sides cannot
//! drift.
//!
//! Rules: `repr(C)`, explicit widths, explicit padding, no `bool` and no enum. A record starts with
//! [`Header`], whose `kind` and `len` the reader checks before it looks at anything else. Numbers are
//! in host byte order; addresses are in network byte order, IPv4 mapped into IPv6 (RFC 4291 section
//! 2.5.5.2). Times are `CLOCK_MONOTONIC` nanoseconds.

#![no_std]

/// Version of everything in this file. The object carries it in its [`ABI_SECTION`]; a loader built
/// for another version refuses the object.
pub const ABI_VERSION: u32 = 11;

/// ELF section of the object that holds [`ABI_VERSION`] as a little-endian `u32`.
pub const ABI_SECTION: &str = "hopscope_abi";

/// Length of a kernel command name with its final NUL (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// Name of the processes whose threads run tasks in an order of their own, and need not sleep between their turns.
pub const TASKS_COMM: [u8; COMM_LEN] = *b"haproxy\0\0\0\0\0\0\0\0\0";

/// Room for the path in a `sockaddr_un`.
pub const UNIX_PATH_LEN: usize = 108;

/// Record kinds, in [`Header::kind`].
pub mod kind {
    /// A [`super::StateRecord`].
    pub const STATE: u16 = 1;
    /// A [`super::OpenRecord`].
    pub const OPEN: u16 = 2;
    /// A [`super::SocketRecord`] for a reset that arrived.
    pub const RESET_IN: u16 = 3;
    /// A [`super::SocketRecord`] for a reset that the gateway's kernel sent; `value` is the reason. Where
    /// the hop's socket has given up, it is the answer to a SYN-ACK that came too late.
    pub const RESET_OUT: u16 = 4;
    /// A [`super::SocketRecord`] for a reset that an upstream on this same host sent; `value` is the
    /// reason.
    pub const RESET_PEER: u16 = 5;
    /// A [`super::SocketRecord`] for a retransmission; `value` is the socket's state.
    pub const RETRANSMIT: u16 = 6;
    /// A [`super::SocketRecord`] for a reported error; `value` is the errno.
    pub const ERROR: u16 = 7;
    /// A [`super::ConnectRecord`].
    pub const CONNECT: u16 = 8;
    /// An [`super::OpenRecord`] about a client's connection, not a hop: a gateway closed it after the
    /// client had, in order or by a reset, and had sent nothing on it lately. Whether the client waited for
    /// an answer is not known.
    pub const CLIENT_LEFT: u16 = 10;
    /// The same of a client that waited for an answer, however long.
    pub const CLIENT_LEFT_WAITING: u16 = 16;
    /// The same of a client that had nothing to wait for, or whose answer had begun.
    pub const CLIENT_LEFT_ANSWERED: u16 = 17;
    /// A [`super::UnixConnectRecord`].
    pub const UNIX_CONNECT: u16 = 11;
    /// A [`super::HeldRecord`].
    pub const HELD: u16 = 12;
    /// A [`super::DnsHeader`] and the packet's bytes from the IP header on.
    pub const DNS: u16 = 15;
    /// A [`super::ClientRecord`].
    pub const CLIENT: u16 = 20;
    /// An [`super::OpenRecord`] about a socket on which a gateway begins to listen.
    pub const LISTEN: u16 = 21;
    /// An [`super::EndsRecord`] about the first client of a listener that cannot be read.
    pub const UNREADABLE: u16 = 24;
    /// A [`super::SocketCallRecord`].
    pub const SOCKET_CALL: u16 = 22;
    /// An [`super::ArrivalRecord`], in the ring of those.
    pub const ARRIVAL: u16 = 23;
    /// A [`super::LibraryRecord`].
    pub const LIBRARY: u16 = 13;
    /// A [`super::PlainHeader`] and the first of the bytes.
    pub const PLAIN: u16 = 14;
    /// A [`super::SegmentHeader`] and the packet's bytes from the IP header on.
    pub const SEGMENT: u16 = 9;
}

/// Set in [`SocketRecord::flags`] and [`StateRecord::flags`] where a value could not be read, so that
/// zero is never mistaken for a fact.
pub mod flag {
    /// `value` of a [`super::SocketRecord`] is known.
    pub const VALUE: u32 = 1;
    /// `sk_err` of a [`super::StateRecord`] is known.
    pub const SK_ERR: u32 = 2;
    /// `bytes_acked` of a [`super::StateRecord`] is known.
    pub const BYTES_ACKED: u32 = 4;
    /// `srtt_us` of a [`super::StateRecord`] is known.
    pub const SRTT: u32 = 8;
}

/// What every record starts with.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u16,
    /// Zero.
    pub reserved: u16,
    /// Bytes of the record that carry meaning, this header included.
    pub len: u32,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// Socket cookie, or zero where there is no socket.
    pub cookie: u64,
}

/// A socket's two ends, as the socket itself sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Local address.
    pub local_addr: [u8; 16],
    /// Remote address.
    pub remote_addr: [u8; 16],
    /// Local port in host byte order, zero where none is bound yet.
    pub local_port: u16,
    /// Remote port in host byte order.
    pub remote_port: u16,
    /// Inode of the network namespace, zero where unknown.
    pub netns: u32,
}

/// The process that made the call, valid in process context only.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// Process id (tgid).
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Which turn of the thread's loop it is: how often it went to sleep so far, or came back from `epoll_wait()`
    /// where the process is called [`TASKS_COMM`].
    pub turn: u32,
    /// Microseconds since that turn began, and one more; zero where that is not known.
    pub turn_age_us: u32,
    /// Name of the process, or of the thread where the process's could not be read.
    pub comm: [u8; COMM_LEN],
}

/// What a thread of a program written in Go runs: zeros where that is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Goroutine {
    /// Its number, which no other goroutine of the process ever has (`runtime.g.goid`). Zero for what belongs to
    /// no goroutine.
    pub id: u64,
    /// The number of the one that started it (`runtime.g.parentGoid`).
    pub parent: u64,
}

impl Goroutine {
    /// Not known.
    pub const NONE: Self = Self { id: 0, parent: 0 };
}

/// Where a process keeps that; value of the `GOROUTINES` map, whose key is the process id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoroutinePlace {
    /// Bytes from the pointer to the running `runtime.g` up to the thread pointer (the FS base of `x86_64`).
    pub below: u32,
    /// Offset of `goid` in a `runtime.g`.
    pub id_at: u32,
    /// Offset of `parentGoid`.
    pub parent_at: u32,
}

/// A gateway process entered `SYN_SENT`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OpenRecord {
    /// Header, [`kind::OPEN`].
    pub header: Header,
    /// Both ends; the local port may be zero still.
    pub ends: Endpoints,
    /// The connecting process.
    pub caller: Caller,
    /// The goroutine that connects; of any other record than [`kind::OPEN`] zeros.
    pub goroutine: Goroutine,
}

/// A tracked socket changed state.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StateRecord {
    /// Header, [`kind::STATE`].
    pub header: Header,
    /// `tcp_sock.bytes_acked`.
    pub bytes_acked: u64,
    /// State before.
    pub old_state: u32,
    /// State after.
    pub new_state: u32,
    /// `sock.sk_err`.
    pub sk_err: i32,
    /// `tcp_sock.srtt_us`, already shifted to microseconds.
    pub srtt_us: u32,
    /// Which values are known: bits of [`flag`].
    pub flags: u32,
    /// Thread that ran when the state changed: the one that closed the socket where a close changed
    /// it, any other where a segment did.
    pub tid: u32,
    /// That thread's turn, as in [`Caller::turn`].
    pub turn: u32,
    /// Zero.
    pub reserved: u32,
}

/// A fact about a tracked socket with one number.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketRecord {
    /// Header; the kind says what `value` is.
    pub header: Header,
    /// The number.
    pub value: i32,
    /// Which values are known: bits of [`flag`].
    pub flags: u32,
}

/// A `connect()` of a gateway process returned an error. `header.cookie` is zero where the socket
/// never entered `SYN_SENT`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConnectRecord {
    /// Header, [`kind::CONNECT`].
    pub header: Header,
    /// Where it wanted to go; the local end is zero.
    pub ends: Endpoints,
    /// The caller.
    pub caller: Caller,
    /// The goroutine that called.
    pub goroutine: Goroutine,
    /// The error, positive.
    pub errno: i32,
    /// Zero.
    pub reserved: u32,
}

/// A `connect()` of a gateway process to a stream socket of the unix family returned an error.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnixConnectRecord {
    /// Header, [`kind::UNIX_CONNECT`], without a cookie.
    pub header: Header,
    /// The caller.
    pub caller: Caller,
    /// The goroutine that called.
    pub goroutine: Goroutine,
    /// The error, positive.
    pub errno: i32,
    /// Inode of the network namespace, zero where unknown: abstract names belong to one.
    pub netns: u32,
    /// Bytes of `path` that the caller gave.
    pub path_len: u32,
    /// `sun_path`: a path, which a NUL may end early, or behind a first NUL an abstract name. Zeros
    /// behind `path_len`.
    pub path: [u8; UNIX_PATH_LEN],
}

/// Segment of a tracked socket. The bytes from the IP header on follow, `captured` of them. Where there are
/// `marks`, as many [`RecordMark`]s follow behind room for [`HEADER_ROOM`] of them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SegmentHeader {
    /// Header, [`kind::SEGMENT`]; `len` covers this struct and the captured bytes, or the room for both.
    pub header: Header,
    /// Length of the packet from the IP header on, as the socket saw it: segmentation offload makes
    /// packets longer than the IP total length field.
    pub wire_len: u32,
    /// Bytes that follow.
    pub captured: u32,
    /// One for egress (to the upstream), zero for ingress.
    pub egress: u32,
    /// How many headers of TLS records are told.
    pub marks: u32,
}

/// Header of a TLS record inside a segment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecordMark {
    /// Its place in the payload.
    pub at: u32,
    /// The header (RFC 8446 section 5.1). Where it goes on in the next segment, what is in this one, and zeros.
    pub header: [u8; 5],
    /// Zero.
    pub reserved: [u8; 3],
}

/// A socket that asks name servers; value of the `DNS_SOCKETS` map, whose key is the socket cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DnsSocket {
    /// The process that made it.
    pub caller: Caller,
    /// Inode of that one's network namespace, zero where unknown.
    pub netns: u32,
    /// One of [`dns_role`].
    pub role: u32,
}

/// Who asks, in [`DnsSocket::role`].
pub mod dns_role {
    /// A gateway.
    pub const GATEWAY: u32 = 0;
    /// A resolver of this host, on behalf of whoever asked it.
    pub const RESOLVER: u32 = 1;
}

/// Packet between such a socket and a name server. The bytes from the IP header on follow, `captured` of
/// them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DnsHeader {
    /// Header, [`kind::DNS`]; `len` covers this struct and the captured bytes.
    pub header: Header,
    /// The socket.
    pub socket: DnsSocket,
    /// Length of the packet from the IP header on.
    pub wire_len: u32,
    /// Bytes that follow.
    pub captured: u32,
    /// One for egress (to the name server), zero for ingress.
    pub egress: u32,
    /// Zero.
    pub reserved: u32,
}

/// Capacities of the records of such packets: what fits into the datagrams of RFC 1035, and more than
/// servers send in one today.
pub const DNS_TIERS: [u32; 2] = [512 + HEADER_ROOM, 4096 + HEADER_ROOM];

/// Healthy exchanges of a hop that were held back in the kernel and are over. The segments of the hop that
/// follow belong to a later exchange.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeldRecord {
    /// Header, [`kind::HELD`]; the time is that of the last byte of the last of them.
    pub header: Header,
    /// What they were.
    pub held: Held,
}

/// Bytes kept of a client's request, and sent up of the answer to it.
pub const CLIENT_REQUEST_LEN: usize = 1024;
/// The same of an answer.
pub const CLIENT_RESPONSE_LEN: usize = 256;
/// Bytes kept of the header of the PROXY protocol in front of a connection's first request: one of version 1 whole,
/// and of version 2 what names addresses of IP.
pub const CLIENT_PROXIED_LEN: usize = 108;

/// A gateway answered a client with a 5xx, or closed its connection without an answer. What runs then is
/// the thread that writes or closes, unless the kernel sends later by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ClientRecord {
    /// Header, [`kind::CLIENT`].
    pub header: Header,
    /// Both ends of the client's connection; the gateway's is the local one.
    pub ends: Endpoints,
    /// When the first byte of the request arrived.
    pub requested_ns: u64,
    /// When the first of it was read; zero where that is not known.
    pub read_ns: u64,
    /// The goroutine of what ran.
    pub goroutine: Goroutine,
    /// Requests that began on the connection.
    pub ordinal: u32,
    /// Bytes of `request` that count.
    pub request_len: u32,
    /// Bytes of `response` that count; zero where the connection was closed without one.
    pub response_len: u32,
    /// Process id (tgid) of what ran, zero where unknown.
    pub pid: u32,
    /// Its thread.
    pub tid: u32,
    /// Its turn, as in [`Caller::turn`].
    pub turn: u32,
    /// The thread that read it then.
    pub read_tid: u32,
    /// The turn of that thread.
    pub read_turn: u32,
    /// Its `task_struct.flags`: [`PF_EXITING`] where it is about to end.
    pub task_flags: u32,
    /// Its `task_struct.exit_code`, in the form of wait(2).
    pub exit_code: u32,
    /// Name of its process.
    pub comm: [u8; COMM_LEN],
    /// The first bytes of the request.
    pub request: [u8; CLIENT_REQUEST_LEN],
    /// The first bytes of the answer.
    pub response: [u8; CLIENT_RESPONSE_LEN],
    /// Bytes of `proxied` that count; zero where the connection began without such a header.
    pub proxied_len: u32,
    /// The first bytes of the header of the PROXY protocol with which the connection began.
    pub proxied: [u8; CLIENT_PROXIED_LEN],
}

/// A fact about a connection of which no more is told than its ends.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EndsRecord {
    /// Header.
    pub header: Header,
    /// Both ends; the gateway's is the local one.
    pub ends: Endpoints,
}

/// Room for two times the bytes that tell what an answer is.
pub const CLIENT_ANSWER_ROOM: usize = 28;

/// The task is getting shut down (`include/linux/sched.h`).
pub const PF_EXITING: u32 = 4;

/// A client's connection in the `CLIENTS` map; its key is the socket cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Both ends; the gateway's is the local one.
    pub ends: Endpoints,
    /// When the request began that was not answered yet.
    pub requested_ns: u64,
    /// When the first of it was read by a thread whose turns are counted; zero where none was.
    pub read_ns: u64,
    /// That thread.
    pub read_tid: u32,
    /// Its turn then.
    pub read_turn: u32,
    /// Requests begun.
    pub ordinal: u32,
    /// Bytes of `request` that count.
    pub request_len: u32,
    /// Bits of [`client_flag`].
    pub flags: u32,
    /// Bytes of `answer` that count.
    pub answer_len: u32,
    /// Sequence number of the first byte of `request`.
    pub asked_seq: u32,
    /// Sequence number behind what the gateway had received as it answered last.
    pub next_in: u32,
    /// The least sequence number that what comes next of the answer can have.
    pub next_out: u32,
    /// The first bytes of the answer, until there are enough of them to tell what it is.
    pub answer: [u8; CLIENT_ANSWER_ROOM],
    /// The first bytes of that request.
    pub request: [u8; CLIENT_REQUEST_LEN],
    /// Bytes of `proxied` that count; zero where the connection began without such a header.
    pub proxied_len: u32,
    /// The first bytes of the header of the PROXY protocol with which the connection began.
    pub proxied: [u8; CLIENT_PROXIED_LEN],
}

/// Bits of [`Client::flags`].
pub mod client_flag {
    /// A request began and was not answered yet.
    pub const ASKED: u32 = 1;
    /// The client closed its side, or reset it.
    pub const GONE: u32 = 2;
    /// Its requests cannot be read, or which answer belongs to which.
    pub const OPAQUE: u32 = 4;
    /// When it closed its side, it waited for an answer.
    pub const LEFT: u32 = 8;
    /// An interim response (1xx) began, and no final one yet.
    pub const INTERIM: u32 = 16;
    /// Another request began before the answer to this one.
    pub const PIPELINED: u32 = 32;
    /// Bytes passed behind the last request that was read, or before the first, of which it is not known what
    /// they ask.
    pub const UNREAD: u32 = 64;
    /// Of an opaque one: the gateway has sent its first bytes.
    pub const HEARD: u32 = 128;
    /// Of an opaque one: the gateway's TLS library tells what is asked and answered.
    pub const INSIDE: u32 = 256;
}

/// Key of the `LISTENERS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ListenerKey {
    /// Inode of the network namespace.
    pub netns: u32,
    /// Port in host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// System calls of a [`SocketCallRecord`].
pub mod call {
    /// `socket()`.
    pub const SOCKET: u32 = 1;
    /// `accept4()`.
    pub const ACCEPT: u32 = 2;
    /// `bind()`.
    pub const BIND: u32 = 3;
}

/// A system call of a gateway about a socket failed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketCallRecord {
    /// Header, [`kind::SOCKET_CALL`], without a cookie.
    pub header: Header,
    /// The caller.
    pub caller: Caller,
    /// One of [`call`].
    pub call: u32,
    /// The error, positive.
    pub errno: i32,
}

/// A gateway, or a resolver of this host, began to run as the program that it is. These records have the
/// `ARRIVALS` ring to themselves.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ArrivalRecord {
    /// Header, [`kind::ARRIVAL`], without a cookie.
    pub header: Header,
    /// The process.
    pub caller: Caller,
}

/// Exchanges that were held back, summed up.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Bytes of their requests.
    pub request_bytes: u64,
    /// Bytes of their responses.
    pub response_bytes: u64,
    /// How many there were.
    pub exchanges: u32,
    /// How many of them had a status of each class from 2xx to 4xx. Others are never held back.
    pub classes: [u32; 3],
    /// How many of them waited how long for their first response byte: less than 2^(n + 1) microseconds
    /// at index n, or longer at the last.
    pub first_byte: [u32; FIRST_BYTE_LEN],
}

/// What the TLS library of a gateway's process said about a hop.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LibraryRecord {
    /// Header, [`kind::LIBRARY`].
    pub header: Header,
    /// One of [`library`].
    pub what: u32,
    /// Of an error: number of the part of the library that raised it.
    pub library: u32,
    /// The error's reason, or an `X509_V_` code.
    pub value: u32,
    /// Zero.
    pub reserved: u32,
}

/// What a gateway wrote to a hop through its TLS library, or read from it. The first bytes of it follow,
/// `captured` of them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PlainHeader {
    /// Header, [`kind::PLAIN`]; `len` covers this struct and the captured bytes. The time is that at which
    /// a write, or a read that found nothing, began, and any other read ended.
    pub header: Header,
    /// Bytes of the same direction before it, and [`PLAIN_MISSED`] for each time that an unknown number of
    /// bytes was not seen.
    pub offset: u64,
    /// Bytes that were read or written; zero where there was nothing more to read by then, and of a write
    /// where more is written in a way that is not seen.
    pub len: u32,
    /// Bytes that follow.
    pub captured: u32,
    /// One for a write (to the upstream), zero for a read.
    pub egress: u32,
    /// Zero.
    pub reserved: u32,
}

/// More bytes than one call reads or writes: how far [`PlainHeader::offset`] goes on where it is not known how
/// many there were. So a record that is lost does not hide it: the next one shows it as well.
pub const PLAIN_MISSED: u64 = 1 << 32;

/// Capacities of the records of these bytes; the largest is [`MAX_SNAP_LEN`].
pub const PLAIN_TIERS: [u32; 3] = [512, 2048, 8192];

/// Which function of a TLS library is probed: bits of an attachment's cookie.
pub mod plain_call {
    /// It writes; else it reads.
    pub const WRITE: u64 = 1;
    /// Its fourth argument points to where the number of bytes goes.
    pub const EX: u64 = 2;
    /// Its fifth argument does.
    pub const EX2: u64 = 4;
}

/// What a [`LibraryRecord`] tells, in [`LibraryRecord::what`].
pub mod library {
    /// An error was raised.
    pub const RAISED: u32 = 1;
    /// How the verification of the chain ended that the library now gives up on.
    pub const REFUSED: u32 = 2;
    /// How the verification of the chain ended, for the program that asked.
    pub const ASKED: u32 = 3;
}

/// Classes of the time to the first response byte: up to half a second, and longer.
pub const FIRST_BYTE_LEN: usize = 20;

/// Room for IP and TCP headers on top of the payload snap length: 40 + 60 bytes and some IPv6
/// extension headers.
pub const HEADER_ROOM: u32 = 128;

/// Capacities of the segment records, by captured bytes. A packet takes the smallest that holds what
/// is to be kept of it, so that an acknowledgement never reserves room for a full head.
pub const SEGMENT_TIERS: [u32; 5] = [
    HEADER_ROOM,
    512,
    2048 + HEADER_ROOM,
    8192 + HEADER_ROOM,
    32768 + HEADER_ROOM,
];

/// Largest payload snap length that can be asked for.
pub const MAX_SNAP_LEN: u32 = 32768;

/// From this payload snap length on, the heads of responses go up even where they are longer.
pub const HEADS_FROM: u32 = 2048;

/// The fewest and the most payload bytes that can be held back of a request or a response.
pub const MIN_HEAD_LEN: u32 = 64;
/// See [`MIN_HEAD_LEN`].
pub const MAX_HEAD_LEN: u32 = SEGMENT_TIERS[2] - HEADER_ROOM;

/// Reasons that something was not seen or not sent up; index of the per-processor `COUNTERS` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Records sent up.
    Records = 0,
    /// Records lost because the ring was full.
    RingFull = 1,
    /// Hops lost because the hop table took no entry.
    HopMapFull = 2,
    /// Values that could not be read from kernel or user memory.
    ReadFailed = 3,
    /// Segments whose payload was captured short.
    Truncated = 4,
    /// Segments of tracked hops whose bytes could not be loaded.
    LoadFailed = 5,
    /// `connect()` calls lost because the table of calls under way took no entry.
    ConnectMapFull = 6,
    /// Sockets of other processes that were looked at and left alone when they connected.
    Filtered = 7,
    /// Exchanges that were not held back because the table of held exchanges took no entry. Nothing is
    /// lost by that.
    NotHeld = 8,
    /// Segments of hops that carry neither HTTP/1 nor TLS, not sent up because nothing in them can be
    /// read.
    Opaque = 9,
    /// Clients' connections that are not watched because a table took no entry.
    ClientMapFull = 10,
    /// Clients' connections whose requests cannot be read, as with HTTP/2 and TLS that no library tells of, or are
    /// pipelined. Their answers are not seen.
    ClientOpaque = 11,
    /// Answers to clients that begin no HTTP/1 response, such as bytes that a gateway passes on raw.
    ClientRaw = 12,
    /// Errors and results of a TLS library that may belong to either of two connections.
    LibraryUnjoined = 13,
    /// Sockets to name servers lost because their table took no entry.
    DnsMapFull = 14,
    /// Processes, and calls about connections, whose TLS library was not heard because a table took no
    /// entry.
    LibraryMapFull = 15,
    /// Calls that read or write inside TLS whose end was not seen: what they read or wrote is not known.
    TextMissed = 16,
    /// Runs that an interrupt would have begun inside another run, made up for by the program behind.
    RunsRepeated = 17,
}

/// Number of [`Counter`]s.
pub const COUNTERS_LEN: u32 = 18;

impl Counter {
    /// Every counter with its name in Status and metrics, in index order.
    pub const ALL: [(Self, &'static str); COUNTERS_LEN as usize] = [
        (Self::Records, "kernel_records"),
        (Self::RingFull, "kernel_ring_full"),
        (Self::HopMapFull, "kernel_hop_map_full"),
        (Self::ReadFailed, "kernel_read_failed"),
        (Self::Truncated, "kernel_truncated"),
        (Self::LoadFailed, "kernel_load_failed"),
        (Self::ConnectMapFull, "kernel_connect_map_full"),
        (Self::Filtered, "kernel_filtered"),
        (Self::NotHeld, "kernel_not_held"),
        (Self::Opaque, "kernel_opaque_segments"),
        (Self::ClientMapFull, "kernel_client_map_full"),
        (Self::ClientOpaque, "kernel_clients_opaque"),
        (Self::ClientRaw, "kernel_clients_raw"),
        (Self::LibraryUnjoined, "kernel_library_unjoined"),
        (Self::DnsMapFull, "kernel_dns_map_full"),
        (Self::LibraryMapFull, "kernel_library_map_full"),
        (Self::TextMissed, "kernel_text_missed"),
        (Self::RunsRepeated, "kernel_runs_repeated"),
    ];
}

/// Value of a tracked hop in the `HOPS` map; its key is the socket cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// Process id of the gateway, zero where seeded without one.
    pub pid: u32,
    /// Bits of [`hop_flag`].
    pub flags: u32,
    /// The head of a response that is sent up: other bits of [`hop_flag`], which only the packets of the upstream
    /// change. What others note in the flags meanwhile is not lost.
    pub head: u32,
}

/// Entries of the `HOPS` map.
pub const HOPS_CAP: u32 = 131_072;

/// Bits of the `FILTERS` global: which of the three ways to recognise a gateway are in use.
pub mod filter {
    /// Names of processes, in the `COMMS` map.
    pub const COMM: u32 = 1;
    /// cgroup ids, in the `CGROUPS` map.
    pub const CGROUP: u32 = 2;
    /// Upstream addresses and ports, in the `UPSTREAMS` map.
    pub const UPSTREAM: u32 = 4;
}

/// How a header of version 2 of the PROXY protocol begins (HAProxy's `proxy-protocol.txt`, section 2.2).
pub const PROXY_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`: only where there is no such entry.
pub const NO_EXIST: u64 = 1;

/// Value of an offset global whose field this kernel does not have.
pub const NO_OFFSET: u32 = u32::MAX;

/// Bits of [`Hop::flags`], and of [`Hop::head`].
pub mod hop_flag {
    /// Put there by user space: the connection was already open.
    pub const SEEDED: u32 = 1;
    /// The head of a final response has passed since the last request; over TLS, application data of the
    /// upstream behind such of the gateway.
    pub const ANSWERED: u32 = 2;
    /// The gateway has sent bytes.
    pub const SPOKE: u32 = 4;
    /// The first of them began neither an HTTP/1 request nor a TLS record.
    pub const OPAQUE: u32 = 8;
    /// The first of them began a TLS record.
    pub const TLS: u32 = 16;
    /// The gateway has sent application data over TLS.
    pub const DATA: u32 = 32;
    /// What the gateway writes and reads inside TLS is sent up: nothing is held back.
    pub const PLAIN: u32 = 64;
    /// It was reset, or an error was reported on it.
    pub const FAILED: u32 = 128;
    /// The head of a response of HTTP/1 is under way.
    pub const HEAD: u32 = 256;
    /// Its last byte so far is LF.
    pub const HEAD_LAST: u32 = 512;
    /// The byte before that is.
    pub const HEAD_SECOND: u32 = 1024;
    /// From this bit on, how much of its beginning was sent up where it carries no HTTP/1, and how much of the head
    /// that is under way has passed.
    pub const SPENT_SHIFT: u32 = 16;
}

/// Key of the `TUPLES` map: a hop as its *upstream's* socket would see it. It joins to the hop a reset
/// that an upstream on this same host sent, and one that answers a segment of the upstream for which
/// the gateway's kernel has no socket any more.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tuple {
    /// The upstream's address.
    pub local_addr: [u8; 16],
    /// The gateway's address.
    pub remote_addr: [u8; 16],
    /// The upstream's port in host byte order.
    pub local_port: u16,
    /// The gateway's port in host byte order.
    pub remote_port: u16,
    /// Inode of the gateway's network namespace where the hop has given up, or where the address is a
    /// loopback one: every namespace has its own. Zero for any other hop, since the two ends may live
    /// in different namespaces.
    pub netns: u32,
}

/// Key of the `UPSTREAMS` longest-prefix map: port (network byte order, zero for any), then address.
/// The prefix length of an entry counts the sixteen bits of the port.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UpstreamKey {
    /// Port in network byte order, zero for any.
    pub port_be: [u8; 2],
    /// Address.
    pub addr: [u8; 16],
}

macro_rules! layout {
    ($($ty:ty { size: $size:literal, $($field:ident: $offset:literal),* $(,)? })*) => {
        $(const _: () = {
            assert!(core::mem::size_of::<$ty>() == $size);
            $(assert!(core::mem::offset_of!($ty, $field) == $offset);)*
        };)*
    };
}

layout! {
    Header { size: 24, kind: 0, reserved: 2, len: 4, time_ns: 8, cookie: 16 }
    Endpoints { size: 40, local_addr: 0, remote_addr: 16, local_port: 32, remote_port: 34, netns: 36 }
    Caller { size: 40, cgroup_id: 0, pid: 8, tid: 12, turn: 16, turn_age_us: 20, comm: 24 }
    EndsRecord { size: 64, header: 0, ends: 24 }
    OpenRecord { size: 120, header: 0, ends: 24, caller: 64, goroutine: 104 }
    Goroutine { size: 16, id: 0, parent: 8 }
    GoroutinePlace { size: 12, below: 0, id_at: 4, parent_at: 8 }
    StateRecord { size: 64, header: 0, bytes_acked: 24, old_state: 32, new_state: 36, sk_err: 40, srtt_us: 44, flags: 48, tid: 52, turn: 56, reserved: 60 }
    SocketRecord { size: 32, header: 0, value: 24, flags: 28 }
    ConnectRecord { size: 128, header: 0, ends: 24, caller: 64, goroutine: 104, errno: 120, reserved: 124 }
    UnixConnectRecord { size: 200, header: 0, caller: 24, goroutine: 64, errno: 80, netns: 84, path_len: 88, path: 92 }
    HeldRecord { size: 136, header: 0, held: 24 }
    Held { size: 112, request_bytes: 0, response_bytes: 8, exchanges: 16, classes: 20, first_byte: 32 }
    ClientRecord { size: 1544, header: 0, ends: 24, requested_ns: 64, read_ns: 72, goroutine: 80, ordinal: 96, request_len: 100, response_len: 104, pid: 108, tid: 112, turn: 116, read_tid: 120, read_turn: 124, task_flags: 128, exit_code: 132, comm: 136, request: 152, response: 1176, proxied_len: 1432, proxied: 1436 }
    Client { size: 1256, ends: 0, requested_ns: 40, read_ns: 48, read_tid: 56, read_turn: 60, ordinal: 64, request_len: 68, flags: 72, answer_len: 76, asked_seq: 80, next_in: 84, next_out: 88, answer: 92, request: 120, proxied_len: 1144, proxied: 1148 }
    ListenerKey { size: 8, netns: 0, port: 4, reserved: 6 }
    ArrivalRecord { size: 64, header: 0, caller: 24 }
    SocketCallRecord { size: 72, header: 0, caller: 24, call: 64, errno: 68 }
    LibraryRecord { size: 40, header: 0, what: 24, library: 28, value: 32, reserved: 36 }
    PlainHeader { size: 48, header: 0, offset: 24, len: 32, captured: 36, egress: 40, reserved: 44 }
    SegmentHeader { size: 40, header: 0, wire_len: 24, captured: 28, egress: 32, marks: 36 }
    RecordMark { size: 12, at: 0, header: 4, reserved: 9 }
    DnsSocket { size: 48, caller: 0, netns: 40, role: 44 }
    DnsHeader { size: 88, header: 0, socket: 24, wire_len: 72, captured: 76, egress: 80, reserved: 84 }
    Hop { size: 12, pid: 0, flags: 4, head: 8 }
    Tuple { size: 40, local_addr: 0, remote_addr: 16, local_port: 32, remote_port: 34, netns: 36 }
    UpstreamKey { size: 18, port_be: 0, addr: 2 }
}
