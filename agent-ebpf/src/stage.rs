//! Exchanges that are held back: whatever passes a hop from a request on stays here until it is known
//! whether anyone needs to see it.
//!
//! A gateway that sends its next request on a connection has taken the response before it for complete
//! and good. Then what is held of that exchange is dropped and counted, and the next request takes its
//! place. Everything else that can happen sends up what is held, in order and with its own times, and
//! the rest of the exchange as it passes: a segment that opens, ends or resets, a change of state, a
//! retransmission, an error, a response that is late, or whatever else the protocol's own part minds. So
//! nothing is judged here, and nothing is missing where something is to be judged.
//!
//! The first exchange of a connection is never held back: a connection for one exchange is worth no
//! entry.

mod http;
mod tls;

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_ringbuf_output;
use aya_ebpf::maps::lpm_trie::Key;
use hopscope_ebpf::{
    Counter, FIRST_BYTE_LEN, HeldRecord, Hop, SEGMENT_TIERS, SegmentHeader, UpstreamKey, hop_flag,
    kind,
};

use self::http::Http;
pub(crate) use self::tls::Record;
use self::tls::Tls;
use crate::ctx::{AF_INET, mapped};
use crate::emit::{header, reserve, submit};
use crate::gateway::KEY_BITS;
use crate::heads;
use crate::maps::{BOOSTING, BOOSTS, EMPTY_STAGE, EVENTS, HOPS, SAMPLE, SLOW_MS, STAGES, count};
use crate::segment::{Segment, SegmentRecord, Shape, bounded, now};
use crate::tls::{hello, is_client_hello};

/// Room for a segment of which only the headers and the first bytes are held.
const HEAD_CAP: usize = SEGMENT_TIERS[0] as usize;
/// What was counted is told this often while a hop is in use: sooner than any verdict waits for word of
/// how the upstream's other connections do.
const REPORT_NS: u64 = 250_000_000;
/// Exchanges between two marks that a hop is in use.
const TOUCH: u32 = 64;
/// How often a processor looks whether another one is done: a few microseconds.
const TRIES: u32 = 64;
/// Segments of a hop that carries neither HTTP/1 nor TLS that are sent up before only its end is.
const OPAQUE_SEGMENTS: u32 = 16;

/// Nothing is held.
const PASSING: u32 = 0;
/// A request is held.
const ASKED: u32 = 1;
/// A request and its response are held.
const ANSWERED: u32 = 2;

/// What is to be done with a segment of a hop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays in the kernel, for now or for good.
    Kept,
    /// It goes up, as much of it as the snap length says.
    Up,
    /// Its headers and first bytes go up: nothing behind them can be read.
    Head,
    /// The same, and the headers of the TLS records in it.
    Marked,
    /// All of it goes up, as far as a record can hold it.
    Whole,
}

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
    /// The hop.
    cookie: u64,
    /// One of the three constants.
    state: u32,
    /// While nothing is held: whether a response has begun since the last request.
    answered: u32,
    /// Exchanges begun.
    begun: u32,
    /// Not zero where the hop carries TLS.
    is_tls: u32,
    /// The head of a response that is sent up, as `heads` knows it.
    head: u32,
    reserved: u32,
    /// Bytes of the request and of the response that are held.
    request_bytes: u32,
    response_bytes: u32,
    /// What was dropped and not told yet.
    held: hopscope_ebpf::Held,
    /// The segments, as the protocol holds them.
    room: Room,
}

/// The segments that are held. Every bit pattern of both is valid, and lengths are checked where they are
/// used.
#[repr(C)]
union Room {
    http: core::mem::ManuallyDrop<Http>,
    tls: core::mem::ManuallyDrop<Tls>,
}

/// What is to be done with a segment, and where it is kept what is known of the head that it may belong to;
/// `None` where it belongs to no hop.
#[inline(always)]
pub(crate) fn fate(segment: &Segment) -> Option<(Fate, *mut u32)> {
    let stage = if let Some(stage) = STAGES.get_ptr_mut(segment.cookie) {
        stage
    } else {
        let hop = HOPS.get_ptr_mut(segment.cookie)?;
        // SAFETY: an entry of a live map.
        let head = unsafe { &raw mut (*hop).head };
        match opening(segment, hop) {
            Opening::Goes(fate) => return Some((fate, head)),
            Opening::Used { is_tls } => match make(segment.cookie, is_tls) {
                Some(stage) => stage,
                None if is_tls => return Some((Fate::Head, head)),
                None => return Some((Fate::Up, head)),
            },
        }
    };
    // SAFETY: as above.
    let head = unsafe { &raw mut (*stage).head };
    Some((offer(segment, stage), head))
}

/// What a segment is of a hop of which nothing was held so far.
enum Opening {
    /// It goes up, or is left alone.
    Goes(Fate),
    /// It begins another exchange, which may be held.
    Used { is_tls: bool },
}

#[inline(always)]
fn opening(segment: &Segment, hop: *mut Hop) -> Opening {
    let Some(shape) = segment.shape().filter(|shape| shape.payload > 0) else {
        return Opening::Goes(Fate::Up);
    };
    // SAFETY: an entry of a live map. Flags that two processors set at once may get lost; then what
    // they stand for is found by the next segment.
    let mut flags = unsafe { (*hop).flags };
    if segment.egress != 0 && flags & hop_flag::SPOKE == 0 {
        flags |= spoke(segment, &shape);
        set(hop, flags);
        // SAFETY: as above.
        unsafe { (*hop).head = flags & heads::NO_HEADS };
        if flags & hop_flag::TLS != 0
            && segment
                .start(&shape)
                .is_some_and(|bytes| is_client_hello(&bytes))
        {
            // SAFETY: as above; the process never changes.
            let _ = hello(segment.cookie, unsafe { (*hop).pid });
        }
    }
    if flags & hop_flag::TLS != 0 {
        tls::opening(segment, &shape, hop)
    } else if flags & hop_flag::OPAQUE != 0 {
        Opening::Goes(opaque(&shape, hop))
    } else {
        http::opening(segment, &shape, hop)
    }
}

/// The gateway's first bytes tell what the hop carries.
#[inline(always)]
fn spoke(segment: &Segment, shape: &Shape) -> u32 {
    let carries = if segment.record(shape).is_some_and(Record::is_valid) {
        hop_flag::TLS
    } else if segment
        .start(shape)
        .is_none_or(|bytes| http::is_request(&bytes))
    {
        0
    } else {
        hop_flag::OPAQUE
    };
    hop_flag::SPOKE | carries
}

/// Sets flags of a hop.
#[inline(always)]
fn set(hop: *mut Hop, flags: u32) {
    // SAFETY: as in the caller.
    unsafe { (*hop).flags |= flags };
}

/// A segment with payload of a hop that carries what cannot be read: the first few go up, and those that
/// end something.
#[inline(always)]
fn opaque(shape: &Shape, hop: *mut Hop) -> Fate {
    if !shape.plain || spend(hop, 1, OPAQUE_SEGMENTS) {
        return Fate::Up;
    }
    count(Counter::Opaque);
    Fate::Kept
}

/// Takes `cost` out of what may be sent up of a hop's beginning. Returns false where there is no more.
#[inline(always)]
fn spend(hop: *mut Hop, cost: u32, most: u32) -> bool {
    // SAFETY: as in the caller.
    let flags = unsafe { &mut (*hop).flags };
    let room = *flags >> hop_flag::SPENT_SHIFT < most;
    if room {
        *flags += cost << hop_flag::SPENT_SHIFT;
    }
    room
}

/// A new entry, for a hop that has been answered.
#[inline(always)]
fn make(cookie: u64, is_tls: bool) -> Option<*mut Stage> {
    let empty = EMPTY_STAGE.get(0)?;
    if STAGES.insert(cookie, empty, 0).is_err() {
        count(Counter::NotHeld);
        return None;
    }
    let stage = STAGES.get_ptr_mut(cookie)?;
    // SAFETY: an entry of a live map.
    unsafe {
        (*stage).answered = 1;
        (*stage).is_tls = u32::from(is_tls);
        (*stage).cookie = cookie;
    }
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
fn offer(segment: &Segment, stage: *mut Stage) -> Fate {
    // SAFETY: an entry of a live map. What a hop carries never changes.
    let is_tls = unsafe { (*stage).is_tls } != 0;
    if !lock(stage) {
        // Interrupted, or the other one takes long: this one goes up at once, and the other one's after
        // it.
        return Fate::Up;
    }
    // SAFETY: an entry of a live map, which the lock makes this processor's own.
    let entry = unsafe { &mut *stage };
    let out = core::mem::replace(&mut entry.overtaken, 0) != 0;
    let fate = if is_tls {
        tls::offer(segment, entry, out)
    } else {
        http::offer(segment, entry, out)
    };
    unlock(stage);
    fate
}

/// Begins an exchange that is to be held. Returns the time, or `None` where it is to be sent up.
#[inline(always)]
fn begin(segment: &Segment, stage: &mut Stage) -> Option<u64> {
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
    (!show).then_some(now)
}

/// Whether a first response byte is late.
#[inline(always)]
fn is_late(asked_ns: u64, answered_ns: u64) -> bool {
    answered_ns.saturating_sub(asked_ns) > u64::from(SLOW_MS.load()) * 1_000_000
}

/// Counts the exchange that is held as one that need not be seen.
#[inline(always)]
fn drop_exchange(stage: &mut Stage, asked_ns: u64, answered_ns: u64, end_ns: u64) {
    let took = answered_ns.saturating_sub(asked_ns) / 1_000;
    stage.last_end_ns = end_ns;
    let held = &mut stage.held;
    held.request_bytes += u64::from(stage.request_bytes);
    held.response_bytes += u64::from(stage.response_bytes);
    held.exchanges += 1;
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
    let Some(mut room) = reserve::<HeldRecord>() else {
        // Tried again with the next.
        return;
    };
    let record = room.as_mut_ptr();
    // From place to place: on the way there is no stack for it.
    // SAFETY: `record` is room for one, and the counts are the entry's own.
    unsafe {
        let mut header = header::<HeldRecord>(kind::HELD, stage.cookie);
        header.time_ns = stage.last_end_ns;
        (&raw mut (*record).header).write(header);
        let held = &raw mut stage.held;
        (&raw mut (*record).held).copy_from_nonoverlapping(held, 1);
        held.write_bytes(0, 1);
    }
    submit(room);
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
    stage.answered = u32::from(before == ANSWERED);
    report(stage);
    // SAFETY: the part that is in use.
    unsafe {
        if stage.is_tls != 0 {
            stage.room.tls.output();
        } else {
            stage.room.http.output(before);
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
