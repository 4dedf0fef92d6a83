//! Where TLS records begin inside segments. Of a segment only the first bytes go up, and offload puts many
//! records into one: so that user space can follow all of them, the headers of those further behind are
//! picked out here.
//!
//! What is picked is taken for bytes of the stream at their place and for nothing else. Where this loses its
//! way, behind a segment that was lost or in a header that two segments share, user space has a gap as it
//! would have without it.

use hopscope_ebpf::{Counter, HEADER_ROOM, RecordMark};

use crate::maps::{EVENTS, RECORDS, count};
use crate::segment::{Segment, SegmentRecord, Shape, now};
use crate::stage::Record;

/// Records that are followed inside one segment. Those of the greatest length fill the longest segment with
/// four; few servers send shorter ones than 4 KiB where they have more to say.
const MOST: usize = 24;

/// The headers and first bytes of a segment, and the headers of its records.
#[repr(C)]
struct MarkedRecord {
    segment: SegmentRecord<{ HEADER_ROOM as usize }>,
    marks: [RecordMark; MOST],
}

/// Where the next record of the segment's direction begins: the place to remember it, and the offset in the
/// payload. `None` where none begins in this segment, as far as is known.
#[inline(always)]
fn next(segment: &Segment, shape: &Shape) -> Option<(*mut u32, u32)> {
    let key = segment.cookie << 1 | u64::from(segment.egress);
    let place = if let Some(place) = RECORDS.get_ptr_mut(key) {
        place
    } else {
        if !segment.record(shape)?.is_valid() {
            return None;
        }
        RECORDS.insert(key, shape.seq, 0).ok()?;
        RECORDS.get_ptr_mut(key)?
    };
    // SAFETY: an entry of a live map. Two processors may be at one direction where packets overtake each
    // other; then the way is lost.
    let at = unsafe { *place }.wrapping_sub(shape.seq);
    (at < shape.payload).then_some((place, at))
}

/// Remembers where the next record begins.
#[inline(always)]
fn remember(place: *mut u32, shape: &Shape, at: u32) {
    // SAFETY: as in `next`.
    unsafe { *place = shape.seq.wrapping_add(at) };
}

/// Follows the records of a segment that goes up whole.
#[inline(always)]
pub(crate) fn pass(segment: &Segment, shape: &Shape) -> Option<()> {
    let (place, mut at) = next(segment, shape)?;
    for _ in 0..MOST {
        let record = segment.record_at(shape, at).filter(|one| one.is_valid())?;
        at += record.wire_len();
        if at >= shape.payload {
            break;
        }
    }
    remember(place, shape, at);
    Some(())
}

/// Sends up the headers and first bytes of a segment, and the headers of its records behind them.
#[inline(always)]
pub(crate) fn send_up(segment: &Segment) -> Option<()> {
    let head = segment.cut(HEADER_ROOM);
    let Some(shape) = segment.shape() else {
        return head.send_up();
    };
    let Some((place, at)) = next(segment, &shape) else {
        return head.send_up();
    };
    let first = segment.record_at(&shape, at).filter(|one| one.is_valid());
    let Some(first) = first else {
        return head.send_up();
    };
    let behind = at + first.wire_len();
    if behind >= shape.payload && shape.start + at + Record::LEN as u32 <= HEADER_ROOM {
        remember(place, &shape, behind);
        return head.send_up();
    }
    let Some(mut room) = EVENTS.reserve::<MarkedRecord>(0) else {
        count(Counter::RingFull);
        return None;
    };
    let record = room.as_mut_ptr();
    // SAFETY: `record` is room for one.
    if !unsafe { head.write(&raw mut (*record).segment, now()) } {
        room.discard(0);
        return None;
    }
    // SAFETY: as above.
    let marks = unsafe { (&raw mut (*record).marks).cast::<RecordMark>() };
    let (marked, at) = mark(segment, &shape, at, marks);
    remember(place, &shape, at);
    // SAFETY: as above; it was written.
    unsafe {
        let header = &raw mut (*record).segment.header;
        (*header).header.len = size_of::<MarkedRecord>() as u32;
        (*header).marks = marked;
    }
    room.submit(0);
    count(Counter::Records);
    Some(())
}

/// Writes the headers of the records from `at` on to `marks`. Returns how many, and where the next begins.
#[inline(always)]
fn mark(segment: &Segment, shape: &Shape, mut at: u32, marks: *mut RecordMark) -> (u32, u32) {
    let mut marked = 0;
    for place in 0..MOST {
        let Some(bytes) = segment.bytes::<{ Record::LEN }>(shape.start + at) else {
            break;
        };
        let record = Record::read(bytes);
        if !record.is_valid() {
            break;
        }
        let mark = RecordMark {
            at,
            header: bytes,
            reserved: [0; 3],
        };
        // SAFETY: there is room for `MOST`.
        unsafe { marks.add(place).write(mark) };
        marked += 1;
        at += record.wire_len();
        if at >= shape.payload {
            break;
        }
    }
    (marked, at)
}
