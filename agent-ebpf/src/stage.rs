//! Exchanges that are held back: whatever passes a hop from a request on stays here until it is known
//! whether anyone needs to see it.
//!
//! A gateway that sends its next request on a connection has taken the response before it for complete
//! and good. Then what is held of that exchange is dropped and counted, and the next request takes its
//! place. Everything else that can happen sends up what is held, in order and with its own times, and
//! the rest of the exchange as it passes: a segment that opens, ends or resets, a change of state, a
//! retransmission, an error, a response that is late, no HTTP/1 or not 2xx to 4xx, one of several
//! segments, or more acknowledgements than there is room for. So nothing is judged here, and nothing is
//! missing where something is to be judged.
//!
//! The first exchange of a connection is never held back: a connection for one exchange is worth no
//! entry.

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_ringbuf_output;
use aya_ebpf::maps::lpm_trie::Key;
use hopscope_ebpf::{
    Counter, FIRST_BYTE_LEN, Held, HeldRecord, Hop, SEGMENT_TIERS, SegmentHeader, UpstreamKey,
    hop_flag, kind,
};

use crate::ctx::{AF_INET, mapped};
use crate::emit::{emit, header};
use crate::gateway::KEY_BITS;
use crate::maps::{BOOSTING, BOOSTS, EMPTY_STAGE, EVENTS, HOPS, SAMPLE, SLOW_MS, STAGES, count};
use crate::segment::{START_LEN, Segment, SegmentRecord, Shape, bounded, now};
use crate::tls;

/// Room for a request or response, headers included: what is sent up of a segment by default.
const CAP: usize = SEGMENT_TIERS[2] as usize;
/// Room for a segment without payload.
const ACK_CAP: usize = SEGMENT_TIERS[0] as usize;
/// Segments without payload that are held of one exchange.
const ACKS: usize = 4;
/// What was counted is told this often while a hop is in use: sooner than any verdict waits for word of
/// how the upstream's other connections do.
const REPORT_NS: u64 = 250_000_000;
/// Exchanges between two marks that a hop is in use.
const TOUCH: u32 = 64;
/// How often a processor looks whether another one is done: a few microseconds.
const TRIES: u32 = 64;
/// Segments of a hop that carries no HTTP/1 that are sent up before only its end is: a TLS handshake.
const OPAQUE_SEGMENTS: u32 = 16;

/// Nothing is held.
const PASSING: u32 = 0;
/// A request is held.
const ASKED: u32 = 1;
/// A request and its response are held.
const ANSWERED: u32 = 2;

/// What is held back of one hop.
#[repr(C)]
pub(crate) struct Stage {
    /// Not zero while a processor is at it.
    lock: u64,
    /// Not zero where a processor could not wait for another one.
    overtaken: u64,
    /// When the counts were sent up last.
    reported_ns: u64,
    /// When the last exchange that was dropped had ended.
    last_end_ns: u64,
    /// One of the three constants.
    state: u32,
    /// While nothing is held: whether a final response has begun since the last request.
    answered: u32,
    /// Exchanges begun.
    begun: u32,
    /// Segments without payload that are held, and how many of them came before the response.
    acks: u32,
    early_acks: u32,
    /// Class of the status that is held: zero for 2xx.
    class: u32,
    /// Bytes of the request and of the response that are held.
    request_bytes: u32,
    response_bytes: u32,
    /// What was dropped and not told yet.
    held: Held,
    request: SegmentRecord<CAP>,
    response: SegmentRecord<CAP>,
    ack: [SegmentRecord<ACK_CAP>; ACKS],
}

/// Whether a segment stays in the kernel, for now or for good; `None` where it belongs to no hop.
#[inline(always)]
pub(crate) fn is_kept(segment: &Segment) -> Option<bool> {
    if let Some(stage) = STAGES.get_ptr_mut(segment.cookie) {
        return Some(offer(segment, stage));
    }
    let hop = HOPS.get_ptr_mut(segment.cookie)?;
    let Some(shape) = segment.shape().filter(|shape| shape.payload > 0) else {
        return Some(false);
    };
    // SAFETY: an entry of a live map. Flags that two processors set at once may get lost; then what
    // they stand for is found by the next segment.
    let flags = unsafe { (*hop).flags };
    let kept = if flags & hop_flag::OPAQUE != 0 {
        is_unreadable(&shape, hop)
    } else if segment.egress == 0 {
        if flags & hop_flag::ANSWERED == 0 && segment.start(&shape).is_some_and(|b| is_final(&b)) {
            set(hop, flags | hop_flag::ANSWERED);
        }
        false
    } else if flags & hop_flag::SPOKE == 0 {
        let start = segment.start(&shape);
        if start.is_some_and(|bytes| tls::is_hello(&bytes)) {
            // SAFETY: as above; the process never changes.
            let _ = tls::hello(segment.cookie, unsafe { (*hop).pid });
        }
        let opaque = start.is_some_and(|bytes| !is_request(&bytes));
        let opaque = if opaque { hop_flag::OPAQUE } else { 0 };
        set(hop, flags | hop_flag::SPOKE | opaque);
        false
    } else if flags & hop_flag::ANSWERED != 0 {
        match make(segment.cookie) {
            Some(stage) => offer(segment, stage),
            None => false,
        }
    } else {
        false
    };
    Some(kept)
}

#[inline(always)]
fn set(hop: *mut Hop, flags: u32) {
    // SAFETY: as in the caller.
    unsafe { (*hop).flags = flags };
}

/// Whether a segment with payload of a hop that carries no HTTP/1 is one of too many.
#[inline(always)]
fn is_unreadable(shape: &Shape, hop: *mut Hop) -> bool {
    // SAFETY: as in the caller.
    let flags = unsafe { (*hop).flags };
    if !shape.plain {
        false
    } else if flags >> hop_flag::SEGMENTS_SHIFT < OPAQUE_SEGMENTS {
        set(hop, flags + (1 << hop_flag::SEGMENTS_SHIFT));
        false
    } else {
        count(Counter::Opaque);
        true
    }
}

/// A new entry, for a hop that has been answered.
#[inline(always)]
fn make(cookie: u64) -> Option<*mut Stage> {
    let empty = EMPTY_STAGE.get(0)?;
    if STAGES.insert(cookie, empty, 0).is_err() {
        count(Counter::NotHeld);
        return None;
    }
    let stage = STAGES.get_ptr_mut(cookie)?;
    // SAFETY: an entry of a live map.
    unsafe { (*stage).answered = 1 };
    Some(stage)
}

/// Sends up what is held of a hop, if anything: something is told about it that may matter.
#[inline(always)]
pub(crate) fn flush(cookie: u64) {
    if let Some(stage) = STAGES.get_ptr_mut(cookie)
        && lock(stage)
    {
        release(stage);
        unlock(stage);
    }
}

/// Offers a segment of a hop to be held.
#[inline(always)]
fn offer(segment: &Segment, stage: *mut Stage) -> bool {
    if !lock(stage) {
        // Interrupted, or the other one takes long: this one goes up at once, and the other one's after
        // it.
        return false;
    }
    // SAFETY: an entry of a live map, which the lock makes this processor's own.
    let stage = unsafe { &mut *stage };
    let shape = segment.shape();
    let mut kept = false;
    let mut out = core::mem::replace(&mut stage.overtaken, 0) != 0;
    let mut start = None;
    match shape {
        Some(shape) if shape.plain => {
            if shape.payload == 0 {
                if stage.state != PASSING {
                    kept = hold_ack(segment, stage);
                    out |= !kept;
                }
            } else if segment.egress == 0 && stage.state == ASKED && !out {
                start = load_response(segment, &shape, stage);
                kept = start.is_some_and(|start| hold_response(&shape, &start, stage));
                out = !kept;
            } else {
                start = segment.start(&shape);
                let begun = if segment.egress == 0 { ANSWERED } else { ASKED };
                out |= stage.state == begun;
            }
        }
        _ => out = true,
    }
    if out {
        release(stage);
        kept = false;
    }
    if let (Some(shape), Some(start)) = (shape, start)
        && !kept
    {
        if segment.egress == 0 {
            if is_final(&start) {
                stage.answered = 1;
            }
        } else if stage.state == ANSWERED || stage.answered != 0 {
            kept = is_request(&start) && begin(segment, &shape, stage);
            if !kept {
                release(stage);
                stage.answered = 0;
            }
        }
    }
    unlock(stage);
    kept
}

/// Copies the first segment of a response and gives back its first bytes.
#[inline(always)]
fn load_response(segment: &Segment, shape: &Shape, stage: &mut Stage) -> Option<[u8; START_LEN]> {
    // SAFETY: the entry's own room.
    if unsafe { segment.write(&raw mut stage.response, now()) } {
        stage.response.start(shape)
    } else {
        segment.start(shape)
    }
}

/// Holds the response that was copied, where it is one that need not be seen.
#[inline(always)]
fn hold_response(shape: &Shape, start: &[u8; START_LEN], stage: &mut Stage) -> bool {
    // 2xx to 4xx.
    let class = u32::from(start[9]).wrapping_sub(u32::from(b'2'));
    if !is_final(start) || class > 2 {
        return false;
    }
    let header = &stage.response.header.header;
    let took = header
        .time_ns
        .saturating_sub(stage.request.header.header.time_ns);
    if took > u64::from(SLOW_MS.load()) * 1_000_000 {
        return false;
    }
    stage.class = class;
    stage.response_bytes = shape.payload;
    stage.early_acks = stage.acks;
    stage.state = ANSWERED;
    true
}

/// Holds a segment without payload.
#[inline(always)]
fn hold_ack(segment: &Segment, stage: &mut Stage) -> bool {
    let room = match stage.acks {
        0 => &raw mut stage.ack[0],
        1 => &raw mut stage.ack[1],
        2 => &raw mut stage.ack[2],
        3 => &raw mut stage.ack[3],
        _ => return false,
    };
    // SAFETY: the entry's own room.
    if !unsafe { segment.write(room, now()) } {
        return false;
    }
    stage.acks += 1;
    true
}

/// Drops the exchange that is held, and holds the request that shows it to be good. Returns false where
/// the new exchange is to be sent up; nothing is held then.
#[inline(always)]
fn begin(segment: &Segment, shape: &Shape, stage: &mut Stage) -> bool {
    if stage.state == ANSWERED {
        drop_exchange(stage);
    }
    stage.state = PASSING;
    stage.begun = stage.begun.wrapping_add(1);
    if stage.begun.is_multiple_of(TOUCH) {
        // The table of hops forgets who is not asked for.
        let _ = HOPS.get_ptr(segment.cookie);
    }
    let sample = SAMPLE.load();
    let sampled = sample != 0 && stage.begun.is_multiple_of(sample);
    let now = now();
    let show = sampled || is_boosted(segment, now);
    if show || now.wrapping_sub(stage.reported_ns) > REPORT_NS {
        report(stage);
        stage.reported_ns = now;
    }
    if show {
        return false;
    }
    // SAFETY: the entry's own room.
    if !unsafe { segment.write(&raw mut stage.request, now) } {
        report(stage);
        return false;
    }
    stage.request_bytes = shape.payload;
    stage.acks = 0;
    stage.state = ASKED;
    true
}

/// Counts the exchange that is held as one that need not be seen.
#[inline(always)]
fn drop_exchange(stage: &mut Stage) {
    let end_ns = stage.response.header.header.time_ns;
    let took = end_ns.saturating_sub(stage.request.header.header.time_ns) / 1_000;
    stage.last_end_ns = end_ns;
    let held = &mut stage.held;
    held.request_bytes += u64::from(stage.request_bytes);
    held.response_bytes += u64::from(stage.response_bytes);
    held.exchanges += 1;
    match stage.class {
        0 => held.classes[0] += 1,
        1 => held.classes[1] += 1,
        _ => held.classes[2] += 1,
    }
    let place = u64::BITS - (took >> 1).leading_zeros();
    if let Some(place) = bounded(place + 1, FIRST_BYTE_LEN as u32) {
        // SAFETY: `place` is from one to the length.
        unsafe {
            let first = (&raw mut held.first_byte).cast::<u32>();
            *first.add(place as usize - 1) += 1;
        }
    } else {
        held.first_byte[FIRST_BYTE_LEN - 1] += 1;
    }
}

/// Sends up what was counted, if anything.
#[inline(always)]
fn report(stage: &mut Stage) {
    if stage.held.exchanges == 0 {
        return;
    }
    let mut record = HeldRecord {
        header: header::<HeldRecord>(kind::HELD, stage.request.header.header.cookie),
        held: stage.held,
    };
    record.header.time_ns = stage.last_end_ns;
    // What does not fit is lost with the ring's own count, and tried again with the next.
    if emit(record).is_some() {
        stage.held = Held {
            request_bytes: 0,
            response_bytes: 0,
            exchanges: 0,
            classes: [0; 3],
            first_byte: [0; FIRST_BYTE_LEN],
        };
    }
}

/// Sends up everything that is held, in order. The lock must be held.
#[inline(always)]
fn release(stage: *mut Stage) {
    // SAFETY: an entry of a live map, which the lock makes this processor's own.
    let stage = unsafe { &mut *stage };
    let before = core::mem::replace(&mut stage.state, PASSING);
    if before == PASSING {
        return;
    }
    let (acks, early) = (stage.acks, stage.early_acks);
    stage.answered = u32::from(before == ANSWERED);
    stage.acks = 0;
    report(stage);
    output(&raw const stage.request);
    let early = if before == ANSWERED { early } else { acks };
    for (place, ack) in (0..).zip(&stage.ack) {
        if place < early {
            output(ack);
        }
    }
    if before == ANSWERED {
        output(&raw const stage.response);
        for (place, ack) in (0..).zip(&stage.ack) {
            if place >= early && place < acks {
                output(ack);
            }
        }
    }
}

/// Copies a held segment into the ring.
#[inline(always)]
fn output<const ROOM: usize>(record: *const SegmentRecord<ROOM>) {
    // SAFETY: the caller's own entry.
    let len = unsafe { (*record).header.header.len };
    let Some(len) = bounded(len, (size_of::<SegmentHeader>() + ROOM) as u32) else {
        return;
    };
    // SAFETY: the record has room for as many bytes.
    let failed = unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            record.cast_mut().cast(),
            u64::from(len),
            0,
        )
    };
    count(if failed == 0 {
        Counter::Records
    } else {
        Counter::RingFull
    });
}

/// Whether the upstream that a segment goes to is to be seen in full.
#[inline(always)]
fn is_boosted(segment: &Segment, now: u64) -> bool {
    // SAFETY: an entry of a live array.
    let boosting = BOOSTING.get_ptr(0).is_some_and(|on| unsafe { *on } != 0);
    if !boosting {
        return false;
    }
    // The compiler would make one read at a chosen place out of two; the kernel knows the places only.
    // SAFETY: the program's own context; addresses and port are in network byte order.
    let (v4, v6, port) = unsafe {
        let skb = segment.skb;
        let v6 = [
            (&raw const (*skb).remote_ip6[0]).read_volatile(),
            (&raw const (*skb).remote_ip6[1]).read_volatile(),
            (&raw const (*skb).remote_ip6[2]).read_volatile(),
            (&raw const (*skb).remote_ip6[3]).read_volatile(),
        ];
        let v4 = (&raw const (*skb).remote_ip4).read_volatile();
        let is_v4 = (*skb).family == u32::from(AF_INET);
        (
            is_v4.then_some(v4),
            v6,
            u32::from_be((*skb).remote_port) as u16,
        )
    };
    let addr = if let Some(v4) = v4 {
        mapped(v4.to_ne_bytes())
    } else {
        let [a, b, c, d] = v6.map(u32::to_ne_bytes);
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&a);
        addr[4..8].copy_from_slice(&b);
        addr[8..12].copy_from_slice(&c);
        addr[12..].copy_from_slice(&d);
        addr
    };
    let until = |port: u16| {
        let port_be = port.to_be_bytes();
        BOOSTS.get(Key::new(KEY_BITS, UpstreamKey { port_be, addr }))
    };
    // Zero stands for any port.
    until(port).is_some_and(|until| *until > now) || until(0).is_some_and(|until| *until > now)
}

/// Whether a payload begins a final response of HTTP/1.
#[inline(always)]
fn is_final(start: &[u8; START_LEN]) -> bool {
    start[..7] == *b"HTTP/1." && start[8] == b' ' && start[9] >= b'2' && start[9] <= b'5'
}

/// Whether a payload may begin a request of HTTP/1: methods begin with three capital letters.
#[inline(always)]
fn is_request(start: &[u8; START_LEN]) -> bool {
    start[0].is_ascii_uppercase() && start[1].is_ascii_uppercase() && start[2].is_ascii_uppercase()
}

/// Makes an entry this processor's own. It fails where another one keeps it for long, or where this very
/// processor was interrupted while it had it; whoever has it is told.
#[inline(always)]
fn lock(stage: *mut Stage) -> bool {
    for _ in 0..TRIES {
        if exchange(stage, 1) == 0 {
            return true;
        }
    }
    // SAFETY: an entry of a live map; whoever reads it only asks whether it is zero.
    unsafe { (&raw mut (*stage).overtaken).write_volatile(1) };
    false
}

#[inline(always)]
fn unlock(stage: *mut Stage) {
    exchange(stage, 0);
}

/// Puts `value` into the lock of an entry and gives back what was there, in one step. The compiler has no
/// such operation for this target, and the kernel has (since Linux 5.12, as much else that is used here).
#[inline(always)]
fn exchange(stage: *mut Stage, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the lock is eight aligned bytes of an entry of a live map.
    unsafe {
        asm!(
            "{value} = xchg_64({lock} + 0, {value})",
            value = inout(reg) value,
            lock = in(reg) &raw mut (*stage).lock,
            options(nostack),
        );
    }
    value
}
