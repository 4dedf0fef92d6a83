//! Where TLS records begin inside segments. Of a segment only the first bytes go up, and offload puts many
//! records into one: so that user space can follow all of them, the headers of those further behind are
//! picked out here.
//!
//! What is picked is taken for bytes of the stream at their place and for nothing else. Where this loses its
//! way, behind a segment that was lost or in a header whose end is in one of less than five bytes, user space has
//! a gap as it would have without it. Of a header that two segments share, the first part is picked out of the first of
//! them; the rest is among the first bytes of the second, and those always go up.

use hopscope_ebpf::{HEADER_ROOM, RecordMark};

use crate::emit::{reserve, submit};
use crate::maps::RECORDS;
use crate::segment::{Segment, SegmentRecord, Shape, now};
use crate::stage::Record;

/// Records that are followed inside one segment. Those of the greatest length fill the longest segment with
/// four; few servers send shorter ones than 4 KiB where they have more to say.
const MOST: usize = 24;

/// More bytes than a header has in the first of two segments.
const TAIL: usize = Record::LEN - 1;

/// Where a direction of a hop goes on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Next {
    /// Sequence number at which the next record begins.
    seq: u32,
    /// The last four bytes before the next segment, where that record begins among them.
    tail: [u8; TAIL],
}

/// The headers and first bytes of a segment, and the headers of its records.
#[repr(C)]
struct MarkedRecord {
    segment: SegmentRecord<{ HEADER_ROOM as usize }>,
    marks: [RecordMark; MOST],
}

/// Where the next record of the segment's direction begins, the one whose header began in the segment before
/// left out: the place to remember it, and the offset in the payload, perhaps beyond it. `None` where no header
/// ends or begins in this segment, as far as is known.
#[inline(always)]
fn next(segment: &Segment, shape: &Shape) -> Option<(*mut Next, u32)> {
    let key = segment.cookie << 1 | u64::from(segment.egress);
    let place = if let Some(place) = RECORDS.get_ptr_mut(key) {
        place
    } else {
        if !segment.record(shape)?.is_valid() {
            return None;
        }
        let begun = Next {
            seq: shape.seq,
            tail: [0; TAIL],
        };
        RECORDS.insert(key, begun, 0).ok()?;
        RECORDS.get_ptr_mut(key)?
    };
    // SAFETY: an entry of a live map. Two processors may be at one direction where packets overtake each
    // other; then the way is lost.
    let Next { seq, tail } = unsafe { *place };
    let at = seq.wrapping_sub(shape.seq);
    if at < shape.payload {
        return Some((place, at));
    }
    let before = at.wrapping_neg();
    if before > TAIL as u32 {
        return None;
    }
    let record = segment.record_behind(shape, tail, before)?;
    // No record is shorter than its header.
    record
        .is_valid()
        .then(|| (place, record.wire_len() - before))
}

/// Remembers where the next record begins, and the beginning of its header where that is all there is.
#[inline(always)]
fn remember(place: *mut Next, segment: &Segment, shape: &Shape, at: u32) -> Option<()> {
    let tail = if at < shape.payload && is_split(shape, at) {
        last(segment)?
    } else {
        [0; TAIL]
    };
    let seq = shape.seq.wrapping_add(at);
    // SAFETY: as in `next`.
    unsafe { *place = Next { seq, tail } };
    Some(())
}

/// Whether a header that begins at this place of the payload goes on in the next segment.
#[inline(always)]
fn is_split(shape: &Shape, at: u32) -> bool {
    shape.payload - at < Record::LEN as u32
}

/// The last bytes of a segment.
#[inline(always)]
fn last(segment: &Segment) -> Option<[u8; TAIL]> {
    segment.bytes(segment.wire_len.checked_sub(TAIL as u32)?)
}

/// Follows the records of a segment that goes up whole.
#[inline(always)]
pub(crate) fn pass(segment: &Segment, shape: &Shape) -> Option<()> {
    let (place, mut at) = next(segment, shape)?;
    for _ in 0..MOST {
        if at >= shape.payload || is_split(shape, at) {
            break;
        }
        let record = segment.record_at(shape, at).filter(|one| one.is_valid())?;
        at += record.wire_len();
    }
    remember(place, segment, shape, at)
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
    if at >= shape.payload {
        let _ = remember(place, segment, &shape, at);
        return head.send_up();
    }
    let (end, behind) = if is_split(&shape, at) {
        (shape.payload, at)
    } else {
        let first = segment.record_at(&shape, at).filter(|one| one.is_valid());
        let Some(first) = first else {
            return head.send_up();
        };
        (at + Record::LEN as u32, at + first.wire_len())
    };
    // Where it is the last one, and goes up anyway.
    if (behind == at || behind >= shape.payload) && shape.start + end <= HEADER_ROOM {
        let _ = remember(place, segment, &shape, behind);
        return head.send_up();
    }
    let mut room = reserve::<MarkedRecord>()?;
    let record = room.as_mut_ptr();
    // SAFETY: `record` is room for one.
    if !unsafe { head.write(&raw mut (*record).segment, now()) } {
        room.discard(0);
        return None;
    }
    // SAFETY: as above.
    let marks = unsafe { (&raw mut (*record).marks).cast::<RecordMark>() };
    let (marked, at) = mark(segment, &shape, at, marks);
    if marked == 0 {
        room.discard(0);
        return head.send_up();
    }
    let _ = remember(place, segment, &shape, at);
    // SAFETY: as above; it was written.
    unsafe {
        let header = &raw mut (*record).segment.header;
        (*header).header.len = size_of::<MarkedRecord>() as u32;
        (*header).marks = marked;
    }
    submit(room);
    Some(())
}

/// Writes the headers of the records from `at` on to `marks`. Returns how many, and where the next begins.
#[inline(always)]
fn mark(segment: &Segment, shape: &Shape, mut at: u32, marks: *mut RecordMark) -> (u32, u32) {
    let mut marked = 0;
    for place in 0..MOST {
        if at >= shape.payload {
            break;
        }
        let split = is_split(shape, at);
        let bytes = if split {
            beginning(segment, shape.payload - at)
        } else {
            segment.bytes::<{ Record::LEN }>(shape.start + at)
        };
        let Some(header) = bytes else {
            break;
        };
        let record = Record::read(header);
        if !split && !record.is_valid() {
            break;
        }
        let mark = RecordMark {
            at,
            header,
            reserved: [0; 3],
        };
        // SAFETY: there is room for `MOST`.
        unsafe { marks.add(place).write(mark) };
        marked += 1;
        if split {
            break;
        }
        at += record.wire_len();
    }
    (marked, at)
}

/// The `left` last bytes of a segment, fewer than a header has, and zeros.
#[inline(always)]
fn beginning(segment: &Segment, left: u32) -> Option<[u8; Record::LEN]> {
    let tail = u32::from_be_bytes(last(segment)?);
    let [a, b, c, d] = (tail << (8 * (TAIL as u32 - left))).to_be_bytes();
    Some([a, b, c, d, 0])
}
