//! A record's bytes to its values. Kind, length and every number with a meaning are checked; no bytes
//! are ever taken for a struct.

use core::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hopscope_ebpf::{
    ArrivalRecord, CLIENT_PROXIED_LEN, CLIENT_REQUEST_LEN, CLIENT_RESPONSE_LEN, COMM_LEN, Caller,
    ClientRecord, ConnectRecord, DnsHeader, DnsSocket, Endpoints, EndsRecord, FIRST_BYTE_LEN,
    HEADER_ROOM, Header, Held, HeldRecord, LibraryRecord, OpenRecord, PF_EXITING, PlainHeader,
    RecordMark, SegmentHeader, SocketCallRecord, SocketRecord, StateRecord, UnixConnectRecord,
    call, dns_role, flag, kind, library,
};
use thiserror::Error;

use crate::model::{Departure, Goroutine, LibraryFact, RecordHeads, SocketCall, TcpState, Turn};

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Malformed {
    /// Shorter than its kind needs, or than it says.
    #[error("a kernel record of kind {kind} is cut short")]
    Short {
        /// What it says that it is; zero where that is missing as well.
        kind: u16,
    },
    /// Another length than its kind has.
    #[error("a kernel record of kind {kind} says that it has {len} bytes")]
    Length {
        /// What it says that it is.
        kind: u16,
        /// The length that it says.
        len: u32,
    },
    /// A kind that this version does not know.
    #[error("a kernel record has unknown kind {0}")]
    Kind(u16),
    /// A system call that this version does not know.
    #[error("a kernel record has unknown system call {0}")]
    Call(u32),
    /// A TCP state that this version does not know.
    #[error("a kernel record has unknown TCP state {0}")]
    State(u32),
    /// A role of a socket that this version does not know.
    #[error("a kernel record has a DNS socket of unknown role {0}")]
    Role(u32),
    /// Something of a TLS library that this version does not know.
    #[error("a kernel record tells unknown fact {0} of a TLS library")]
    Library(u32),
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub(super) time_ns: u64,
    /// Socket cookie, zero where there is no socket.
    pub(super) cookie: u64,
    /// What it says.
    pub(super) body: Body<'a>,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Open {
        ends: Ends,
        caller: Process,
        turn: Turn,
        /// Microseconds since it began, and one more; zero where that is not known.
        turn_age_us: u32,
        goroutine: Option<Goroutine>,
    },
    State {
        old: TcpState,
        new: TcpState,
        sk_err: Option<i32>,
        bytes_acked: Option<u64>,
        srtt_us: Option<u32>,
        turn: Turn,
    },
    ClientLeft {
        turn: Turn,
        departure: Departure,
    },
    Held(HeldBack),
    Client(ClientSaw<'a>),
    Listen {
        ends: Ends,
        caller: Process,
    },
    Unreadable {
        ends: Ends,
    },
    SocketCall {
        caller: Process,
        turn: Turn,
        call: SocketCall,
        errno: i32,
    },
    Library(LibraryFact),
    Connect {
        ends: Ends,
        caller: Process,
        turn: Turn,
        goroutine: Option<Goroutine>,
        errno: i32,
    },
    UnixConnect {
        /// `sun_path`, as far as it was given.
        path: &'a [u8],
        netns: u32,
        caller: Process,
        turn: Turn,
        goroutine: Option<Goroutine>,
        errno: i32,
    },
    ResetIn,
    ResetOut {
        reason: Option<i32>,
    },
    ResetPeer {
        reason: Option<i32>,
    },
    Retransmit {
        state: Option<i32>,
    },
    Error {
        errno: Option<i32>,
    },
    Segment {
        egress: bool,
        wire_len: u32,
        bytes: &'a [u8],
        records: RecordHeads<'a>,
    },
    Plain {
        egress: bool,
        offset: u64,
        len: u32,
        bytes: &'a [u8],
    },
    Dns(DnsPacket<'a>),
}

/// A packet between this host and a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DnsPacket<'a> {
    pub(super) caller: Process,
    pub(super) netns: u32,
    pub(super) on_behalf: bool,
    pub(super) egress: bool,
    pub(super) wire_len: u32,
    pub(super) bytes: &'a [u8],
}

/// What a client asked and got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientSaw<'a> {
    /// The gateway's end is the local one.
    pub(super) ends: Ends,
    /// Nanoseconds from the request to the answer.
    pub(super) waited_ns: u64,
    /// Nanoseconds from the request until the first of it was read, and in which turn; `None` where that is not known.
    pub(super) read: Option<(u64, Turn)>,
    pub(super) ordinal: u32,
    pub(super) request: &'a [u8],
    /// Empty where the connection was closed without an answer.
    pub(super) response: &'a [u8],
    /// What ran when the answer was sent.
    pub(super) pid: u32,
    pub(super) comm: [u8; COMM_LEN],
    pub(super) turn: Turn,
    pub(super) goroutine: Option<Goroutine>,
    /// Its exit code, where it was about to end.
    pub(super) exit_code: Option<u32>,
    /// The first bytes of the header of the PROXY protocol with which the connection began; empty where there was none.
    pub(super) proxied: &'a [u8],
}

/// Exchanges that were held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldBack {
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) exchanges: u32,
    pub(super) classes: [u32; 3],
    pub(super) first_byte: [u32; FIRST_BYTE_LEN],
}

/// A socket's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) netns: u32,
}

/// The calling process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) cgroup_id: u64,
    pub(super) comm: [u8; COMM_LEN],
}

/// Reads one record.
pub(super) fn decode(bytes: &[u8]) -> Result<Record<'_>, Malformed> {
    let head = Fields { bytes, kind: 0 };
    let kind = head.u16(offset_of!(Header, kind))?;
    let head = Fields { bytes, kind };
    let len = head.u32(offset_of!(Header, len))?;
    let body = usize::try_from(len)
        .ok()
        .and_then(|len| bytes.get(..len))
        .ok_or(Malformed::Short { kind })?;
    let fields = Fields { bytes: body, kind };
    let exact = |size: usize| {
        if body.len() == size {
            Ok(())
        } else {
            Err(Malformed::Length { kind, len })
        }
    };
    let body = match kind {
        kind::OPEN => {
            exact(size_of::<OpenRecord>())?;
            Body::Open {
                ends: fields.ends(offset_of!(OpenRecord, ends))?,
                caller: fields.caller(offset_of!(OpenRecord, caller))?,
                turn: fields.caller_turn(offset_of!(OpenRecord, caller))?,
                turn_age_us: fields
                    .u32(offset_of!(OpenRecord, caller) + offset_of!(Caller, turn_age_us))?,
                goroutine: fields.goroutine(offset_of!(OpenRecord, goroutine))?,
            }
        }
        kind::CLIENT_LEFT | kind::CLIENT_LEFT_WAITING | kind::CLIENT_LEFT_ANSWERED => {
            exact(size_of::<OpenRecord>())?;
            Body::ClientLeft {
                departure: match kind {
                    kind::CLIENT_LEFT_WAITING => Departure::Waiting,
                    kind::CLIENT_LEFT_ANSWERED => Departure::Answered,
                    _ => Departure::Unknown,
                },
                turn: fields.caller_turn(offset_of!(OpenRecord, caller))?,
            }
        }
        kind::HELD => {
            exact(size_of::<HeldRecord>())?;
            Body::Held(fields.held(offset_of!(HeldRecord, held))?)
        }
        kind::CLIENT => {
            exact(size_of::<ClientRecord>())?;
            Body::Client(fields.client()?)
        }
        kind::LISTEN => {
            exact(size_of::<OpenRecord>())?;
            Body::Listen {
                ends: fields.ends(offset_of!(OpenRecord, ends))?,
                caller: fields.caller(offset_of!(OpenRecord, caller))?,
            }
        }
        kind::UNREADABLE => {
            exact(size_of::<EndsRecord>())?;
            Body::Unreadable {
                ends: fields.ends(offset_of!(EndsRecord, ends))?,
            }
        }
        kind::SOCKET_CALL => {
            exact(size_of::<SocketCallRecord>())?;
            let number = fields.u32(offset_of!(SocketCallRecord, call))?;
            Body::SocketCall {
                caller: fields.caller(offset_of!(SocketCallRecord, caller))?,
                turn: fields.caller_turn(offset_of!(SocketCallRecord, caller))?,
                call: socket_call(number).ok_or(Malformed::Call(number))?,
                errno: fields.i32(offset_of!(SocketCallRecord, errno))?,
            }
        }
        kind::LIBRARY => {
            exact(size_of::<LibraryRecord>())?;
            fields.library()?
        }
        kind::STATE => {
            exact(size_of::<StateRecord>())?;
            fields.state()?
        }
        kind::CONNECT => {
            exact(size_of::<ConnectRecord>())?;
            Body::Connect {
                ends: fields.ends(offset_of!(ConnectRecord, ends))?,
                caller: fields.caller(offset_of!(ConnectRecord, caller))?,
                turn: fields.caller_turn(offset_of!(ConnectRecord, caller))?,
                goroutine: fields.goroutine(offset_of!(ConnectRecord, goroutine))?,
                errno: fields.i32(offset_of!(ConnectRecord, errno))?,
            }
        }
        kind::UNIX_CONNECT => {
            exact(size_of::<UnixConnectRecord>())?;
            fields.unix_connect()?
        }
        kind::SEGMENT => fields.segment()?,
        kind::PLAIN => fields.plain()?,
        kind::DNS => fields.dns()?,
        kind::RESET_IN | kind::RESET_OUT | kind::RESET_PEER | kind::RETRANSMIT | kind::ERROR => {
            exact(size_of::<SocketRecord>())?;
            let known = fields.u32(offset_of!(SocketRecord, flags))? & flag::VALUE != 0;
            let value = fields.i32(offset_of!(SocketRecord, value))?;
            let value = known.then_some(value);
            match kind {
                kind::RESET_IN => Body::ResetIn,
                kind::RESET_OUT => Body::ResetOut { reason: value },
                kind::RESET_PEER => Body::ResetPeer { reason: value },
                kind::RETRANSMIT => Body::Retransmit { state: value },
                _ => Body::Error { errno: value },
            }
        }
        other => return Err(Malformed::Kind(other)),
    };
    Ok(Record {
        time_ns: fields.u64(offset_of!(Header, time_ns))?,
        cookie: fields.u64(offset_of!(Header, cookie))?,
        body,
    })
}

/// The process that an [`ArrivalRecord`] is about, which come through a ring of their own.
pub(super) fn arrival(bytes: &[u8]) -> Result<Process, Malformed> {
    let kind = kind::ARRIVAL;
    let fields = Fields { bytes, kind };
    let found = fields.u16(offset_of!(Header, kind))?;
    if found != kind {
        return Err(Malformed::Kind(found));
    }
    let len = fields.u32(offset_of!(Header, len))?;
    if usize::try_from(len) != Ok(bytes.len()) || bytes.len() != size_of::<ArrivalRecord>() {
        return Err(Malformed::Length { kind, len });
    }
    fields.caller(offset_of!(ArrivalRecord, caller))
}

/// The bytes of a record, read by offset.
struct Fields<'a> {
    bytes: &'a [u8],
    kind: u16,
}

impl<'a> Fields<'a> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Malformed> {
        self.bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or(Malformed::Short { kind: self.kind })
    }

    fn u16(&self, at: usize) -> Result<u16, Malformed> {
        self.array(at).map(u16::from_ne_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, Malformed> {
        self.array(at).map(u32::from_ne_bytes)
    }

    fn i32(&self, at: usize) -> Result<i32, Malformed> {
        self.array(at).map(i32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Malformed> {
        self.array(at).map(u64::from_ne_bytes)
    }

    fn address(&self, addr: usize, port: usize) -> Result<SocketAddr, Malformed> {
        let addr = IpAddr::V6(Ipv6Addr::from(self.array::<16>(addr)?)).to_canonical();
        Ok(SocketAddr::new(addr, self.u16(port)?))
    }

    fn ends(&self, at: usize) -> Result<Ends, Malformed> {
        Ok(Ends {
            local: self.address(
                at + offset_of!(Endpoints, local_addr),
                at + offset_of!(Endpoints, local_port),
            )?,
            remote: self.address(
                at + offset_of!(Endpoints, remote_addr),
                at + offset_of!(Endpoints, remote_port),
            )?,
            netns: self.u32(at + offset_of!(Endpoints, netns))?,
        })
    }

    fn caller(&self, at: usize) -> Result<Process, Malformed> {
        Ok(Process {
            pid: self.u32(at + offset_of!(Caller, pid))?,
            cgroup_id: self.u64(at + offset_of!(Caller, cgroup_id))?,
            comm: self.array(at + offset_of!(Caller, comm))?,
        })
    }

    fn caller_turn(&self, at: usize) -> Result<Turn, Malformed> {
        self.turn(at + offset_of!(Caller, tid), at + offset_of!(Caller, turn))
    }

    fn turn(&self, tid: usize, turn: usize) -> Result<Turn, Malformed> {
        Ok(Turn {
            thread: self.u32(tid)?,
            number: self.u32(turn)?,
        })
    }

    fn goroutine(&self, at: usize) -> Result<Option<Goroutine>, Malformed> {
        let id = self.u64(at + offset_of!(hopscope_ebpf::Goroutine, id))?;
        let parent = self.u64(at + offset_of!(hopscope_ebpf::Goroutine, parent))?;
        // Zero is of no goroutine: what the runtime does for itself.
        Ok((id != 0).then_some(Goroutine { id, parent }))
    }

    fn held(&self, at: usize) -> Result<HeldBack, Malformed> {
        let mut classes = [0; 3];
        for (index, count) in classes.iter_mut().enumerate() {
            *count = self.u32(at + offset_of!(Held, classes) + 4 * index)?;
        }
        let mut first_byte = [0; FIRST_BYTE_LEN];
        for (index, count) in first_byte.iter_mut().enumerate() {
            *count = self.u32(at + offset_of!(Held, first_byte) + 4 * index)?;
        }
        Ok(HeldBack {
            request_bytes: self.u64(at + offset_of!(Held, request_bytes))?,
            response_bytes: self.u64(at + offset_of!(Held, response_bytes))?,
            exchanges: self.u32(at + offset_of!(Held, exchanges))?,
            classes,
            first_byte,
        })
    }

    fn library(&self) -> Result<Body<'a>, Malformed> {
        let value = self.u32(offset_of!(LibraryRecord, value))?;
        let verified = |asked| LibraryFact::Verified { code: value, asked };
        let fact = match self.u32(offset_of!(LibraryRecord, what))? {
            library::RAISED => LibraryFact::Raised {
                library: self.u32(offset_of!(LibraryRecord, library))?,
                reason: value,
            },
            library::REFUSED => verified(false),
            library::ASKED => verified(true),
            other => return Err(Malformed::Library(other)),
        };
        Ok(Body::Library(fact))
    }

    fn state(&self) -> Result<Body<'a>, Malformed> {
        let state = |at| {
            let number = self.u32(at)?;
            TcpState::from_kernel(number).ok_or(Malformed::State(number))
        };
        let flags = self.u32(offset_of!(StateRecord, flags))?;
        let known = |bit: u32| flags & bit != 0;
        let sk_err = self.i32(offset_of!(StateRecord, sk_err))?;
        let bytes_acked = self.u64(offset_of!(StateRecord, bytes_acked))?;
        let srtt_us = self.u32(offset_of!(StateRecord, srtt_us))?;
        Ok(Body::State {
            old: state(offset_of!(StateRecord, old_state))?,
            new: state(offset_of!(StateRecord, new_state))?,
            sk_err: known(flag::SK_ERR).then_some(sk_err),
            bytes_acked: known(flag::BYTES_ACKED).then_some(bytes_acked),
            srtt_us: known(flag::SRTT).then_some(srtt_us),
            turn: self.turn(offset_of!(StateRecord, tid), offset_of!(StateRecord, turn))?,
        })
    }

    fn client(&self) -> Result<ClientSaw<'a>, Malformed> {
        let text = |at: usize, room: usize, len: usize| {
            let len = self.u32(len)?;
            usize::try_from(len)
                .ok()
                .filter(|len| *len <= room)
                .and_then(|len| self.bytes.get(at..)?.get(..len))
                .ok_or(Malformed::Length {
                    kind: self.kind,
                    len,
                })
        };
        let asked = self.u64(offset_of!(ClientRecord, requested_ns))?;
        let answered = self.u64(offset_of!(Header, time_ns))?;
        let read = self.u64(offset_of!(ClientRecord, read_ns))?;
        let reader = self.turn(
            offset_of!(ClientRecord, read_tid),
            offset_of!(ClientRecord, read_turn),
        )?;
        let exiting = self.u32(offset_of!(ClientRecord, task_flags))? & PF_EXITING != 0;
        let exit_code = self.u32(offset_of!(ClientRecord, exit_code))?;
        Ok(ClientSaw {
            ends: self.ends(offset_of!(ClientRecord, ends))?,
            waited_ns: answered.saturating_sub(asked),
            read: (read != 0).then(|| (read.saturating_sub(asked), reader)),
            ordinal: self.u32(offset_of!(ClientRecord, ordinal))?,
            request: text(
                offset_of!(ClientRecord, request),
                CLIENT_REQUEST_LEN,
                offset_of!(ClientRecord, request_len),
            )?,
            response: text(
                offset_of!(ClientRecord, response),
                CLIENT_RESPONSE_LEN,
                offset_of!(ClientRecord, response_len),
            )?,
            pid: self.u32(offset_of!(ClientRecord, pid))?,
            comm: self.array(offset_of!(ClientRecord, comm))?,
            turn: self.turn(
                offset_of!(ClientRecord, tid),
                offset_of!(ClientRecord, turn),
            )?,
            goroutine: self.goroutine(offset_of!(ClientRecord, goroutine))?,
            exit_code: exiting.then_some(exit_code),
            proxied: text(
                offset_of!(ClientRecord, proxied),
                CLIENT_PROXIED_LEN,
                offset_of!(ClientRecord, proxied_len),
            )?,
        })
    }

    fn unix_connect(&self) -> Result<Body<'a>, Malformed> {
        let len = self.u32(offset_of!(UnixConnectRecord, path_len))?;
        let path = usize::try_from(len)
            .ok()
            .and_then(|len| {
                let room = self.bytes.get(offset_of!(UnixConnectRecord, path)..)?;
                room.get(..len)
            })
            .ok_or(Malformed::Length {
                kind: self.kind,
                len,
            })?;
        Ok(Body::UnixConnect {
            path,
            netns: self.u32(offset_of!(UnixConnectRecord, netns))?,
            caller: self.caller(offset_of!(UnixConnectRecord, caller))?,
            turn: self.caller_turn(offset_of!(UnixConnectRecord, caller))?,
            goroutine: self.goroutine(offset_of!(UnixConnectRecord, goroutine))?,
            errno: self.i32(offset_of!(UnixConnectRecord, errno))?,
        })
    }

    fn segment(&self) -> Result<Body<'a>, Malformed> {
        let captured = self.u32(offset_of!(SegmentHeader, captured))?;
        let marks = self.u32(offset_of!(SegmentHeader, marks))?;
        let (bytes, records) = match marks {
            0 => (
                self.captured(size_of::<SegmentHeader>(), captured)?,
                RecordHeads::NONE,
            ),
            _ => self.marked(captured, marks)?,
        };
        Ok(Body::Segment {
            egress: self.u32(offset_of!(SegmentHeader, egress))? != 0,
            wire_len: self.u32(offset_of!(SegmentHeader, wire_len))?,
            bytes,
            records,
        })
    }

    /// The bytes of a segment, and behind the room for them the headers of records.
    fn marked(&self, captured: u32, marks: u32) -> Result<(&'a [u8], RecordHeads<'a>), Malformed> {
        const MARKS: usize = size_of::<SegmentHeader>() + HEADER_ROOM as usize;
        const { assert!(size_of::<RecordMark>() == RecordHeads::BYTES) };
        let part = |from: usize, len: u32, of: usize| {
            let len = usize::try_from(len).ok()?.checked_mul(of)?;
            self.bytes.get(from..from.checked_add(len)?)
        };
        let room =
            part(size_of::<SegmentHeader>(), captured, 1).filter(|_| captured <= HEADER_ROOM);
        let marks = part(MARKS, marks, RecordHeads::BYTES);
        let short = Malformed::Short { kind: self.kind };
        Ok((room.ok_or(short)?, RecordHeads::new(marks.ok_or(short)?)))
    }

    fn plain(&self) -> Result<Body<'a>, Malformed> {
        let len = self.u32(offset_of!(PlainHeader, len))?;
        let captured = self.u32(offset_of!(PlainHeader, captured))?;
        if captured > len {
            return Err(Malformed::Length {
                kind: self.kind,
                len: captured,
            });
        }
        Ok(Body::Plain {
            egress: self.u32(offset_of!(PlainHeader, egress))? != 0,
            offset: self.u64(offset_of!(PlainHeader, offset))?,
            len,
            bytes: self.captured(size_of::<PlainHeader>(), captured)?,
        })
    }

    /// The bytes from `at` on, which must be `len`.
    fn captured(&self, at: usize, len: u32) -> Result<&'a [u8], Malformed> {
        let short = Malformed::Short { kind: self.kind };
        let bytes = self.bytes.get(at..).ok_or(short)?;
        if usize::try_from(len) == Ok(bytes.len()) {
            Ok(bytes)
        } else {
            Err(Malformed::Length {
                kind: self.kind,
                len,
            })
        }
    }

    fn dns(&self) -> Result<Body<'a>, Malformed> {
        const SOCKET: usize = offset_of!(DnsHeader, socket);
        let captured = self.u32(offset_of!(DnsHeader, captured))?;
        Ok(Body::Dns(DnsPacket {
            caller: self.caller(SOCKET + offset_of!(DnsSocket, caller))?,
            netns: self.u32(SOCKET + offset_of!(DnsSocket, netns))?,
            on_behalf: match self.u32(SOCKET + offset_of!(DnsSocket, role))? {
                dns_role::GATEWAY => false,
                dns_role::RESOLVER => true,
                other => return Err(Malformed::Role(other)),
            },
            egress: self.u32(offset_of!(DnsHeader, egress))? != 0,
            wire_len: self.u32(offset_of!(DnsHeader, wire_len))?,
            bytes: self.captured(size_of::<DnsHeader>(), captured)?,
        }))
    }
}

fn socket_call(number: u32) -> Option<SocketCall> {
    Some(match number {
        call::SOCKET => SocketCall::Socket,
        call::ACCEPT => SocketCall::Accept,
        call::BIND => SocketCall::Bind,
        _ => return None,
    })
}

/// A kernel name as text: up to its NUL, whatever is no UTF-8 replaced.
pub(super) fn comm_text(comm: &[u8; COMM_LEN]) -> std::borrow::Cow<'_, str> {
    let len = comm.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&comm[..len])
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
