//! Segments of hops, from the IP header on. Nothing is parsed here beyond where the payload begins.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::programs::SkBuffContext;
use hopscope_ebpf::{
    Counter, HEADER_ROOM, Header, MAX_SNAP_LEN, SEGMENT_TIERS, SegmentHeader, kind,
};

use crate::client;
use crate::dns;
use crate::emit::{reserve, submit};
use crate::heads;
use crate::maps::{SNAP_LEN, count, is_hop_port};
use crate::records;
use crate::stage::{self, Fate, Record};

/// What the programs always return: the packet goes on as if nothing had looked at it.
pub(crate) const ALLOW: i32 = 1;

/// Bytes of the start of a payload that tell what it begins.
pub(crate) const START_LEN: usize = 12;

/// A segment with room for `CAP` bytes.
#[repr(C)]
pub(crate) struct SegmentRecord<const CAP: usize> {
    pub(crate) header: SegmentHeader,
    bytes: [u8; CAP],
}

/// A packet passed a socket.
#[inline(always)]
pub(crate) fn seen(ctx: &SkBuffContext, egress: u32) -> Option<()> {
    let skb = ctx.skb.skb;
    // SAFETY: the program's own context.
    let port = u32::from_be(unsafe { (*skb).remote_port });
    let to_resolver = dns::may_pass(skb, port as u16, egress);
    let goes_out = to_resolver || is_hop_port(port as u16);
    let wire_len = ctx.len();
    let wanted = SNAP_LEN.load() + HEADER_ROOM;
    client::passed(ctx, egress, goes_out);
    if !goes_out {
        return None;
    }
    let segment = Segment {
        skb,
        // SAFETY: the program's own context.
        cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
        wire_len,
        captured: wire_len,
        egress,
    };
    if to_resolver {
        return dns::seen(&segment);
    }
    let (fate, head) = stage::fate(&segment.cut(wanted))?;
    let most = match fate {
        Fate::Kept => return Some(()),
        Fate::Marked => return records::send_up(&segment),
        Fate::Head => HEADER_ROOM,
        Fate::Whole => MAX_SNAP_LEN + HEADER_ROOM,
        Fate::Up if egress == 0 => {
            heads::send_up(skb, head);
            return Some(());
        }
        Fate::Up => {
            if wire_len > wanted {
                count(Counter::Truncated);
            }
            wanted
        }
    };
    segment.cut(most).send_up()
}

/// A segment of a hop, perhaps.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) skb: *mut __sk_buff,
    pub(crate) cookie: u64,
    /// Length from the IP header on.
    pub(crate) wire_len: u32,
    captured: u32,
    /// One towards the upstream, else zero.
    pub(crate) egress: u32,
}

/// What a TCP segment is.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Where its payload begins, from the IP header on.
    pub(crate) start: u32,
    /// Bytes of payload.
    pub(crate) payload: u32,
    /// Its sequence and acknowledgement numbers.
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// It neither opens nor ends a direction.
    pub(crate) plain: bool,
}

impl Shape {
    /// The sequence number behind its payload.
    #[inline(always)]
    pub(crate) fn end(&self) -> u32 {
        self.seq.wrapping_add(self.payload)
    }
}

impl Segment {
    /// The same with `most` bytes captured at most.
    #[inline(always)]
    pub(crate) fn cut(&self, most: u32) -> Self {
        Self {
            captured: if self.captured < most {
                self.captured
            } else {
                most
            },
            ..*self
        }
    }

    /// The whole packet of `ctx`.
    #[inline(always)]
    pub(crate) fn of(ctx: &SkBuffContext, egress: u32) -> Self {
        Self::from_skb(ctx.skb.skb, egress)
    }

    /// The same, of the context's own pointer.
    #[inline(always)]
    pub(crate) fn from_skb(skb: *mut __sk_buff, egress: u32) -> Self {
        // SAFETY: the program's own context.
        let (cookie, len) = unsafe { (bpf_get_socket_cookie(skb.cast()), (*skb).len) };
        Self {
            skb,
            cookie,
            wire_len: len,
            captured: len,
            egress,
        }
    }

    /// Sends the segment up.
    #[inline(always)]
    pub(crate) fn send_up(&self) -> Option<()> {
        if self.captured <= SEGMENT_TIERS[0] {
            self.send::<{ SEGMENT_TIERS[0] as usize }>()
        } else if self.captured <= SEGMENT_TIERS[1] {
            self.send::<{ SEGMENT_TIERS[1] as usize }>()
        } else if self.captured <= SEGMENT_TIERS[2] {
            self.send::<{ SEGMENT_TIERS[2] as usize }>()
        } else if self.captured <= SEGMENT_TIERS[3] {
            self.send::<{ SEGMENT_TIERS[3] as usize }>()
        } else {
            self.send::<{ SEGMENT_TIERS[4] as usize }>()
        }
    }

    /// Sends the segment in a record with room for `CAP` bytes. What lies behind the captured bytes
    /// is left as it was: ring pages start out zeroed and only ever held records.
    #[inline(always)]
    fn send<const CAP: usize>(&self) -> Option<()> {
        let mut room = reserve::<SegmentRecord<CAP>>()?;
        // SAFETY: `room` is room for one such record.
        if !unsafe { self.write(room.as_mut_ptr(), now()) } {
            room.discard(0);
            return None;
        }
        submit(room);
        Some(())
    }

    /// Writes the segment to `record`. Returns false where it does not fit or could not be loaded; the
    /// record's bytes are of no use then.
    ///
    /// # Safety
    ///
    /// `record` must be valid for writes.
    #[inline(always)]
    pub(crate) unsafe fn write<const CAP: usize>(
        &self,
        record: *mut SegmentRecord<CAP>,
        time_ns: u64,
    ) -> bool {
        let Some(captured) = bounded(self.captured, CAP as u32) else {
            return false;
        };
        // SAFETY: `record` has room for `CAP` bytes, and `captured` is at most `CAP`.
        let loaded = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                0,
                (&raw mut (*record).bytes).cast(),
                captured,
            )
        };
        if loaded != 0 {
            count(Counter::LoadFailed);
            return false;
        }
        let header = SegmentHeader {
            header: Header {
                kind: kind::SEGMENT,
                reserved: 0,
                len: size_of::<SegmentHeader>() as u32 + captured,
                time_ns,
                cookie: self.cookie,
            },
            wire_len: self.wire_len,
            captured,
            egress: self.egress,
            marks: 0,
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*record).header).write(header) };
        true
    }

    /// Where the payload is; `None` for what is no TCP segment, or a part of one, or has extension
    /// headers.
    #[inline(always)]
    pub(crate) fn shape(&self) -> Option<Shape> {
        /// Shortest IPv4, IPv6 and TCP header.
        const V4_LEN: usize = 20;
        const V6_LEN: usize = 40;
        const TCP_LEN: usize = 20;
        const TCP: u8 = 6;
        /// FIN, SYN and RST.
        const ENDS: u8 = 0x07;

        // SAFETY: the program's own context.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        // SAFETY: the caller checks the end before each read, as the verifier demands.
        let byte = |at: usize| unsafe { *(at as *const u8) };
        if data + V4_LEN > end {
            return None;
        }
        let ip_len = match byte(data) >> 4 {
            4 => {
                // Any fragment offset, or more fragments.
                let fragment = byte(data + 6) & 0x3f | byte(data + 7);
                if byte(data + 9) != TCP || fragment != 0 {
                    return None;
                }
                usize::from(byte(data) & 0x0f) << 2
            }
            6 if byte(data + 6) == TCP => V6_LEN,
            _ => return None,
        };
        let tcp = behind(data, ip_len);
        if tcp + TCP_LEN > end {
            return None;
        }
        let tcp_len = usize::from(byte(tcp + 12) >> 4) << 2;
        let word = |at| [byte(at), byte(at + 1), byte(at + 2), byte(at + 3)];
        let start = (ip_len + tcp_len) as u32;
        Some(Shape {
            start,
            payload: self.wire_len.checked_sub(start)?,
            seq: u32::from_be_bytes(word(tcp + 4)),
            ack: u32::from_be_bytes(word(tcp + 8)),
            plain: byte(tcp + 13) & ENDS == 0,
        })
    }

    /// The first bytes of the payload, where there are as many.
    #[inline(always)]
    pub(crate) fn start(&self, shape: &Shape) -> Option<[u8; START_LEN]> {
        self.bytes(shape.start)
    }

    /// The header of a TLS record that the payload begins with, perhaps.
    #[inline(always)]
    pub(crate) fn record(&self, shape: &Shape) -> Option<Record> {
        self.bytes(shape.start).map(Record::read)
    }

    /// The header of a TLS record that begins at this place of the payload, perhaps.
    #[inline(always)]
    pub(crate) fn record_at(&self, shape: &Shape, at: u32) -> Option<Record> {
        self.bytes(shape.start + at).map(Record::read)
    }

    /// The header of a TLS record that began in the segment before, perhaps: the `before` last bytes of `tail`,
    /// one to four of them, and the first of the payload.
    #[inline(always)]
    pub(crate) fn record_behind(
        &self,
        shape: &Shape,
        tail: [u8; 4],
        before: u32,
    ) -> Option<Record> {
        let first: [u8; Record::LEN] = self.bytes(shape.start)?;
        let begins = u64::from(u32::from_be_bytes(tail));
        let ends = first
            .iter()
            .fold(0, |ends, byte| ends << 8 | u64::from(*byte));
        let bits = 8 * before;
        let header = begins << (8 * Record::LEN as u32 - bits) | ends >> bits;
        // Of the first, bytes ahead of the header are in front.
        let [_, _, _, header @ ..] = header.to_be_bytes();
        Some(Record::read(header))
    }

    /// Whether less of it is captured than there is.
    #[inline(always)]
    pub(crate) fn is_cut(&self) -> bool {
        self.captured < self.wire_len
    }

    /// The `N` bytes from `at` on, where there are as many.
    #[inline(always)]
    pub(crate) fn bytes<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: `bytes` has room for as many. It fails where the packet is shorter.
        let loaded =
            unsafe { bpf_skb_load_bytes(self.skb.cast(), at, bytes.as_mut_ptr().cast(), N as u32) };
        (loaded == 0).then_some(bytes)
    }
}

impl<const CAP: usize> SegmentRecord<CAP> {
    /// When the segment passed.
    #[inline(always)]
    pub(crate) fn time_ns(&self) -> u64 {
        self.header.header.time_ns
    }

    /// Where the payload is, and how much was captured of it, where that is of `wire_len` bytes.
    #[inline(always)]
    pub(crate) fn payload(&self, wire_len: u32) -> Option<(u64, u32)> {
        let start = bounded(self.header.wire_len.checked_sub(wire_len)?, HEADER_ROOM)?;
        let captured = bounded(self.header.captured.checked_sub(start)?, CAP as u32)?;
        Some(((&raw const self.bytes) as u64 + u64::from(start), captured))
    }

    /// The first bytes of the payload, where there are as many.
    #[inline(always)]
    pub(crate) fn start(&self, shape: &Shape) -> Option<[u8; START_LEN]> {
        if self.header.captured < shape.start + START_LEN as u32 {
            return None;
        }
        let at = bounded(shape.start, HEADER_ROOM - START_LEN as u32)?;
        // SAFETY: the bytes are at least as many as there is room for headers.
        Some(unsafe {
            (&raw const self.bytes)
                .byte_add(at as usize)
                .cast::<[u8; START_LEN]>()
                .read()
        })
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// `base + offset`, kept in one register: the verifier knows where a pointer points only if it sees the
/// end checked on the very sum that is read from, which the compiler would take apart.
#[inline(always)]
pub(crate) fn behind(base: usize, offset: usize) -> usize {
    let mut sum = base;
    // SAFETY: adds two registers, and touches nothing else.
    unsafe {
        asm!(
            "{sum} += {offset}",
            sum = inout(reg) sum,
            offset = in(reg) offset,
            options(pure, nomem, nostack),
        );
    }
    sum
}

/// `value` where it is from one to `most`.
///
/// The verifier has to see the bounds on the very register that goes to the helper. The compiler knows
/// them already and would drop the comparison or make it on a copy, so the register passes through
/// assembly, of whose result the compiler knows nothing.
#[inline(always)]
pub(crate) fn bounded(value: u32, most: u32) -> Option<u32> {
    let mut value = u64::from(value);
    let mut within = 0_u64;
    // SAFETY: compares and sets registers, and touches nothing else.
    unsafe {
        asm!(
            "if {value} < 1 goto +2",
            "if {value} > {most} goto +1",
            "{within} = 1",
            value = inout(reg) value,
            within = inout(reg) within,
            most = in(reg) u64::from(most),
            options(pure, nomem, nostack),
        );
    }
    (within == 1).then_some(value as u32)
}
