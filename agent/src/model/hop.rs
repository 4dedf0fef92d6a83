//! A hop, its ends, and the kernel's own words for its state.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// One TCP connection between a gateway and its upstream. Live it is the kernel's socket cookie,
/// which is never reused; from a file it is a running number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u64);

/// Which way bytes flow, named from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the gateway to its upstream.
    ToUpstream,
    /// From the upstream to the gateway.
    FromUpstream,
}

impl Direction {
    /// The opposite direction.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::ToUpstream => Self::FromUpstream,
            Self::FromUpstream => Self::ToUpstream,
        }
    }
}

/// The gateway process that owns a hop, as it was when the hop was opened or seeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id (the kernel's tgid) in the host's pid namespace.
    pub pid: u32,
    /// Name of the process (its thread group leader), at most 15 bytes.
    pub comm: Arc<str>,
    /// Inode of its network namespace.
    pub netns: u64,
    /// Path of its cgroup below the v2 root, empty where unknown.
    pub cgroup: Arc<str>,
    /// Container id read from the cgroup path, where it carries one.
    pub container_id: Option<Arc<str>>,
}

/// TCP states with the kernel's names (`include/net/tcp_states.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// The handshake is complete.
    Established,
    /// A SYN was sent.
    SynSent,
    /// A SYN was received.
    SynRecv,
    /// We closed first, our FIN is not acknowledged.
    FinWait1,
    /// We closed first, our FIN is acknowledged.
    FinWait2,
    /// Both sides have closed, old segments may still arrive.
    TimeWait,
    /// No connection.
    Close,
    /// The peer closed first, we have not.
    CloseWait,
    /// The peer closed first, then we did; our FIN is not acknowledged.
    LastAck,
    /// Waiting for connections.
    Listen,
    /// Both sides closed at the same time.
    Closing,
    /// A half-open connection in the kernel's request table.
    NewSynRecv,
}

impl TcpState {
    /// The state for the kernel's number, or `None` for a number this version does not know.
    pub const fn from_kernel(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            _ => return None,
        })
    }
}

/// A Linux error number, shown by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file or directory.
    pub const ENOENT: Self = Self(2);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// Permission denied.
    pub const EACCES: Self = Self(13);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// Too many open files in the system.
    pub const ENFILE: Self = Self(23);
    /// Too many open files in the process.
    pub const EMFILE: Self = Self(24);
    /// Broken pipe.
    pub const EPIPE: Self = Self(32);
    /// Cannot assign requested address.
    pub const EADDRNOTAVAIL: Self = Self(99);
    /// Network is unreachable.
    pub const ENETUNREACH: Self = Self(101);
    /// Connection reset by peer.
    pub const ECONNRESET: Self = Self(104);
    /// Connection timed out.
    pub const ETIMEDOUT: Self = Self(110);
    /// Connection refused.
    pub const ECONNREFUSED: Self = Self(111);
    /// No route to host.
    pub const EHOSTUNREACH: Self = Self(113);

    /// The symbolic name, where it is one that a socket can return.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "EPERM",
            2 => "ENOENT",
            4 => "EINTR",
            11 => "EAGAIN",
            12 => "ENOMEM",
            13 => "EACCES",
            14 => "EFAULT",
            22 => "EINVAL",
            23 => "ENFILE",
            24 => "EMFILE",
            32 => "EPIPE",
            71 => "EPROTO",
            90 => "EMSGSIZE",
            92 => "ENOPROTOOPT",
            97 => "EAFNOSUPPORT",
            98 => "EADDRINUSE",
            99 => "EADDRNOTAVAIL",
            100 => "ENETDOWN",
            101 => "ENETUNREACH",
            103 => "ECONNABORTED",
            104 => "ECONNRESET",
            105 => "ENOBUFS",
            107 => "ENOTCONN",
            110 => "ETIMEDOUT",
            111 => "ECONNREFUSED",
            112 => "EHOSTDOWN",
            113 => "EHOSTUNREACH",
            _ => return None,
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl Serialize for Errno {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a kernel sent a reset (`enum sk_rst_reason`), as far as it changes a verdict. The numbers
/// differ between kernels, so the source resolves them by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// Closed with unread bytes in the receive queue (`TCP_ABORT_ON_CLOSE`).
    AbortOnClose,
    /// Closed with `SO_LINGER` set to zero seconds (`TCP_ABORT_ON_LINGER`).
    AbortOnLinger,
    /// Data arrived for a socket that its process had already closed (`TCP_ABORT_ON_DATA`).
    AbortOnData,
    /// No socket for the segment (`NO_SOCKET`).
    NoSocket,
    /// Any other reason, by the kernel's name.
    Other(Arc<str>),
}

impl ResetReason {
    /// The reason for the kernel's enumerator name, without its `SK_RST_REASON_` prefix.
    pub fn from_kernel(name: &str) -> Self {
        match name {
            "TCP_ABORT_ON_CLOSE" => Self::AbortOnClose,
            "TCP_ABORT_ON_LINGER" => Self::AbortOnLinger,
            "TCP_ABORT_ON_DATA" => Self::AbortOnData,
            "NO_SOCKET" => Self::NoSocket,
            other => Self::Other(Arc::from(other)),
        }
    }
}

impl fmt::Display for ResetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AbortOnClose => "TCP_ABORT_ON_CLOSE",
            Self::AbortOnLinger => "TCP_ABORT_ON_LINGER",
            Self::AbortOnData => "TCP_ABORT_ON_DATA",
            Self::NoSocket => "NO_SOCKET",
            Self::Other(name) => name,
        })
    }
}

/// The control bits of a TCP header (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether every bit of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
