//! Heads of HTTP/1 responses that are longer than what is captured of a segment. A head that is cut off says
//! neither how its response is framed nor that it is too large for its gateway, which is why many a gateway
//! fails. So such a head goes up as far as a record can hold it, with the segments that it goes on in.
//!
//! A head ends with an empty line: LF behind LF, or behind LF and CR (RFC 9112 section 2.2). LF behind LF and
//! any one byte is looked for, 64 bytes at a time: no field fits into that byte. What is held back of a response is
//! not looked at where its segment fits.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_user, bpf_skb_load_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use hopscope_ebpf::{Counter, HEADER_ROOM, HEADS_FROM, MAX_SNAP_LEN, SEGMENT_TIERS, hop_flag};

use crate::maps::{SNAP_LEN, count};
use crate::segment::{START_LEN, Segment, bounded};

/// Bytes that are looked at together, a bit of a word each.
const CHUNK: u32 = u64::BITS;
const WORDS: usize = (CHUNK / 8) as usize;

/// Most bytes in which the end of a head is looked for: what is captured of a segment by default, headers included. Of
/// what goes up no byte more is looked at, or a head that ends behind it would be taken for whole.
const SCANNED: u32 = SEGMENT_TIERS[2];

/// Room for these bytes, and a chunk of zeros behind them.
#[repr(C)]
struct Scratch {
    words: [u64; (SCANNED / 8) as usize + WORDS],
}

/// Where packets, and what is held of them, are copied to, and where texts are: a program that reads those may be
/// interrupted by one that looks at a packet. Where the kernel is preemptible, another thread on the same processor may
/// also read a text in between: programs in processes stay on their processor, but do not keep it. Then a head may be
/// taken for shorter or longer than it is.
#[map]
static PACKET: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static TEXT: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// A head of which no end is found goes up for 64 KiB.
const LONGEST: u32 = (64 << 10) / CHUNK;

/// What was found in a segment or text: nothing that matters, the end of a head, a head without an end, and what
/// is to go up like one.
const NONE: u32 = 0;
const ENDED: u32 = 1;
const LONG: u32 = 2;
const WHOLE: u32 = 3;

/// What is known of a hop with no heads to look for.
pub(crate) const NO_HEADS: u32 = hop_flag::TLS | hop_flag::OPAQUE;

/// What is known of a head: bits of [`hop_flag`], with the chunks seen of it from `SPENT_SHIFT` on.
const STATE: u32 = hop_flag::HEAD
    | hop_flag::HEAD_LAST
    | hop_flag::HEAD_SECOND
    | u32::MAX << hop_flag::SPENT_SHIFT;

/// Sends up a segment of an upstream: as much as the snap length says, or as the head in it takes. `state` tells
/// what is known of that from the segments before.
///
/// This and what it calls are functions of their own that are handed next to nothing: the verifier follows what
/// they do once, and not for all that is known where they are called.
#[inline(never)]
pub(crate) fn send_up(skb: *mut __sk_buff, state: *mut u32) -> u32 {
    let found = in_segment(skb, state);
    let segment = Segment::from_skb(skb, 0);
    let wanted = SNAP_LEN.load() + HEADER_ROOM;
    let most = if found == WHOLE || found == LONG {
        MAX_SNAP_LEN + HEADER_ROOM
    } else {
        wanted
    };
    if segment.wire_len > most {
        count(Counter::Truncated);
    }
    u32::from(segment.cut(most).send_up().is_some())
}

/// What is known of a head behind `len` bytes in which this was found, and ahead of which `before` was known of it. The
/// final head behind an interim one may go on as any other.
#[inline(always)]
fn after(found: u32, before: u32, len: u32, byte: impl Fn(u32) -> Option<[u8; 1]>) -> u32 {
    let seen = (before >> hop_flag::SPENT_SHIFT) + chunks(len);
    if found == ENDED || len > MAX_SNAP_LEN || seen >= LONGEST {
        return 0;
    }
    hop_flag::HEAD | lines(len, before, byte) | seen << hop_flag::SPENT_SHIFT
}

/// How much of a text that the gateway read inside TLS has to go up, so that the head in it is whole; zero where
/// that is no matter.
#[inline(always)]
pub(crate) fn reach_inside(from: u64, len: u32, state: *mut u32) -> u32 {
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    let known = unsafe { *state };
    if SNAP_LEN.load() < HEADS_FROM {
        return 0;
    }
    let Some(head) = head(text(from, len, 0), known) else {
        return 0;
    };
    let found = if head == 0 {
        WHOLE
    } else {
        in_text(from, len, head)
    };
    let next = after(found, head, len, |at| text(from, len, at));
    // SAFETY: as above.
    unsafe { *state = known & !STATE | next };
    if found == ENDED {
        0
    } else if len < MAX_SNAP_LEN {
        len
    } else {
        MAX_SNAP_LEN
    }
}

/// What is known of the head that goes on in these bytes, or begins: `None` where there is none, and nothing where
/// it has to be whole whatever it looks like.
#[inline(always)]
fn head(first: Option<[u8; START_LEN]>, known: u32) -> Option<u32> {
    match first {
        Some(first) if first[..7] == *b"HTTP/1." => {
            // The head of the final response may be behind an interim one. What follows a change of protocols is
            // no head.
            let interim = first[9] == b'1' && first[11] != b'1';
            Some(if interim { 0 } else { hop_flag::HEAD })
        }
        _ if known & hop_flag::HEAD != 0 => Some(known & STATE),
        _ => None,
    }
}

/// The `N` bytes at a place of a text, where there are as many.
#[inline(always)]
fn text<const N: usize>(from: u64, len: u32, at: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if len.checked_sub(at)? < N as u32 {
        return None;
    }
    let from = (from + u64::from(at)) as *const _;
    // SAFETY: `bytes` has room for as many. It fails where they cannot be read.
    let failed = unsafe { bpf_probe_read_user(bytes.as_mut_ptr().cast(), N as u32, from) };
    (failed == 0).then_some(bytes)
}

/// What is known of the head of a response that begins with `len` bytes at `held`: zero where it has ended.
#[inline(always)]
pub(crate) fn state_of(held: u64, len: u32) -> u32 {
    if SNAP_LEN.load() < HEADS_FROM || in_table(held, len) == ENDED {
        return 0;
    }
    after(LONG, 0, len, |at| {
        let mut byte = [0; 1];
        let at = held + u64::from(at);
        // SAFETY: there is room for a byte, and the helper checks the address.
        let failed = unsafe { bpf_probe_read_kernel(byte.as_mut_ptr().cast(), 1, at as *const _) };
        (failed == 0).then_some(byte)
    })
}

/// Bytes of a head as its state counts them.
#[inline(always)]
fn chunks(bytes: u32) -> u32 {
    bytes.div_ceil(CHUNK) & 0xffff
}

/// Which of the last two bytes of a head end a line, `len` of which came now. Where one byte came alone, the other is the
/// last one before.
#[inline(always)]
fn lines(len: u32, before: u32, byte: impl Fn(u32) -> Option<[u8; 1]>) -> u32 {
    const LF: Option<[u8; 1]> = Some([b'\n']);
    let is_second = if len < 2 {
        before & hop_flag::HEAD_LAST != 0
    } else {
        byte(len - 2) == LF
    };
    let second = if is_second { hop_flag::HEAD_SECOND } else { 0 };
    let is_last = byte(len.wrapping_sub(1)) == LF;
    let last = if is_last { hop_flag::HEAD_LAST } else { 0 };
    second | last
}

/// Looks for the end of a head in a segment, and notes what is known of it then.
#[inline(never)]
fn in_segment(skb: *mut __sk_buff, state: *mut u32) -> u32 {
    // SAFETY: an entry of a live map. Where two processors are at it, a head may be taken for shorter.
    let known = unsafe { *state };
    if SNAP_LEN.load() < HEADS_FROM || known & NO_HEADS != 0 {
        return NONE;
    }
    let segment = Segment::from_skb(skb, 0);
    let Some(shape) = segment.shape().filter(|shape| shape.payload > 0) else {
        return NONE;
    };
    let Some(head) = head(segment.start(&shape), known) else {
        return NONE;
    };
    let start = veiled(shape.start, known);
    let found = if head == 0 {
        WHOLE
    } else {
        let captured = SCANNED - shape.start;
        let len = if shape.payload < captured {
            shape.payload
        } else {
            captured
        };
        in_payload(skb, start, veiled(len, known), veiled(head, known))
    };
    let next = after(found, head, shape.payload, |at| segment.bytes(start + at));
    // SAFETY: as above.
    unsafe { *state = known & !STATE | next };
    found
}

/// The same in its payload.
#[inline(never)]
fn in_payload(skb: *mut __sk_buff, start: u32, len: u32, state: u32) -> u32 {
    look(&PACKET, len, state, |room, len| {
        // SAFETY: there is room for `len` bytes. It fails where the packet is shorter.
        unsafe { bpf_skb_load_bytes(skb.cast(), start, room.cast(), len) }
    })
}

/// The same in a text.
#[inline(never)]
fn in_text(from: u64, len: u32, state: u32) -> u32 {
    // A text has no headers.
    let len = if len < HEADS_FROM { len } else { HEADS_FROM };
    look(&TEXT, len, state, |room, len| {
        // SAFETY: there is room for `len` bytes. It fails where they cannot be read.
        unsafe { bpf_probe_read_user(room.cast(), len, from as *const _) }
    })
}

/// The same in bytes of a table of this program.
#[inline(never)]
fn in_table(from: u64, len: u32) -> u32 {
    look(&PACKET, len, 0, |room, len| {
        // SAFETY: there is room for `len` bytes, and the helper checks the address.
        unsafe { bpf_probe_read_kernel(room.cast(), len, from as *const _) }
    })
}

/// Looks for the end of a head in `len` bytes, [`SCANNED`] at most, which `load` brings into the room that it is
/// handed. Returns [`ENDED`] or [`LONG`], and the former where they cannot be read.
///
/// The loop is never left: the verifier would follow what comes behind it from each chunk on.
#[inline(always)]
fn look(
    table: &PerCpuArray<Scratch>,
    len: u32,
    state: u32,
    load: impl FnOnce(*mut u8, u32) -> i64,
) -> u32 {
    const LOW: u64 = u64::from_ne_bytes([0x7f; 8]);
    const LF: u64 = u64::from_ne_bytes([b'\n'; 8]);
    let Some(scratch) = table.get_ptr_mut(0) else {
        return ENDED;
    };
    let len = if len < SCANNED { len } else { SCANNED };
    let Some(wanted) = bounded(len, SCANNED) else {
        return ENDED;
    };
    // SAFETY: an entry of a live map, with room for a chunk behind the bytes. It is this processor's own; what another
    // thread's program writes to it in between (see the table) are bytes as good, and every bit pattern is valid.
    let words = unsafe {
        let room = scratch.cast::<u8>();
        if load(room, wanted) != 0 {
            return ENDED;
        }
        // What is older is no end of a line.
        let behind = room
            .byte_add(wanted as usize)
            .cast::<[u8; CHUNK as usize]>();
        behind.write([0; CHUNK as usize]);
        &(*scratch).words
    };
    // What is learned of it from chunk to chunk is not to be known of the caller's.
    let len = veiled(wanted, wanted);
    // The ends of lines before this word: the highest bit of each byte.
    let mut before = u64::from(state & hop_flag::HEAD_LAST) << (63 - hop_flag::HEAD_LAST.ilog2())
        | u64::from(state & hop_flag::HEAD_SECOND) << (55 - hop_flag::HEAD_SECOND.ilog2());
    let mut found = 0;
    for chunk in 0..(SCANNED / CHUNK) as usize {
        if found != 0 || (chunk * WORDS * 8) as u32 >= len {
            continue;
        }
        for word in 0..WORDS {
            let other = u64::from_le(words[chunk * WORDS + word]) ^ LF;
            let lines = !(((other & LOW) + LOW) | other | LOW);
            let next = lines << 8 | before >> 56;
            let next_but_one = lines << 16 | before >> 48;
            found |= lines & (next | next_but_one);
            before = lines;
        }
    }
    if found == 0 { LONG } else { ENDED }
}

/// `value`, of which the verifier knows no more than of `by`: else it would follow what comes of every chunk.
#[inline(always)]
fn veiled(value: u32, by: u32) -> u32 {
    let mut value = u64::from(value);
    // SAFETY: changes a register and changes it back, and touches nothing else.
    unsafe {
        asm!(
            "{value} ^= {by}",
            "{value} ^= {by}",
            value = inout(reg) value,
            by = in(reg) u64::from(by),
            options(pure, nomem, nostack),
        );
    }
    value as u32
}
