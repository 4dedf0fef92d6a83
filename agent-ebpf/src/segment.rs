//! Segments of hops, from the IP header on. Nothing is parsed here beyond what says "TCP".

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes};
use aya_ebpf::programs::SkBuffContext;
use hopscope_ebpf::{Counter, HEADER_ROOM, SEGMENT_TIERS, SegmentHeader, kind};

use crate::emit::header;
use crate::maps::{EVENTS, HOPS, SNAP_LEN, count, is_hop_port};

/// What the programs always return: the packet goes on as if nothing had looked at it.
pub(crate) const ALLOW: i32 = 1;

#[repr(C)]
struct SegmentRecord<const CAP: usize> {
    header: SegmentHeader,
    bytes: [u8; CAP],
}

/// A packet passed a socket.
#[inline(always)]
pub(crate) fn seen(ctx: &SkBuffContext, egress: u32) -> Option<()> {
    let skb = ctx.skb.skb;
    // SAFETY: the program's own context.
    let port = u32::from_be(unsafe { (*skb).remote_port });
    if !is_hop_port(port as u16) {
        return None;
    }
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    HOPS.get_ptr(cookie)?;

    let wire_len = ctx.len();
    let wanted = SNAP_LEN.load() + HEADER_ROOM;
    let captured = if wire_len < wanted { wire_len } else { wanted };
    if captured < wire_len {
        count(Counter::Truncated);
    }
    let segment = Segment {
        skb,
        cookie,
        wire_len,
        captured,
        egress,
    };
    if captured <= SEGMENT_TIERS[0] {
        segment.send::<{ SEGMENT_TIERS[0] as usize }>()
    } else if captured <= SEGMENT_TIERS[1] {
        segment.send::<{ SEGMENT_TIERS[1] as usize }>()
    } else if captured <= SEGMENT_TIERS[2] {
        segment.send::<{ SEGMENT_TIERS[2] as usize }>()
    } else if captured <= SEGMENT_TIERS[3] {
        segment.send::<{ SEGMENT_TIERS[3] as usize }>()
    } else {
        segment.send::<{ SEGMENT_TIERS[4] as usize }>()
    }
}

struct Segment {
    skb: *mut __sk_buff,
    cookie: u64,
    wire_len: u32,
    captured: u32,
    egress: u32,
}

impl Segment {
    /// Sends the segment in a record with room for `CAP` bytes. What lies behind the captured bytes
    /// is left as it was: ring pages start out zeroed and only ever held records.
    #[inline(always)]
    fn send<const CAP: usize>(&self) -> Option<()> {
        let captured = bounded(self.captured, CAP as u32)?;
        let Some(mut room) = EVENTS.reserve::<SegmentRecord<CAP>>(0) else {
            count(Counter::RingFull);
            return None;
        };
        let record = room.as_mut_ptr();
        // SAFETY: `record` is room for one `SegmentRecord<CAP>` and `captured` is at most `CAP`.
        let loaded = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                0,
                (&raw mut (*record).bytes).cast(),
                captured,
            )
        };
        if loaded != 0 {
            room.discard(0);
            count(Counter::LoadFailed);
            return None;
        }
        let mut header = header::<SegmentHeader>(kind::SEGMENT, self.cookie);
        header.len += captured;
        let header = SegmentHeader {
            header,
            wire_len: self.wire_len,
            captured,
            egress: self.egress,
            reserved: 0,
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*record).header).write(header) };
        room.submit(0);
        count(Counter::Records);
        Some(())
    }
}

/// `value` where it is from one to `most`.
///
/// The verifier has to see the bounds on the very register that goes to the helper. The compiler knows
/// them already and would drop the comparison or make it on a copy, so the register passes through
/// assembly, of whose result the compiler knows nothing.
#[inline(always)]
fn bounded(value: u32, most: u32) -> Option<u32> {
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
