//! TLS: its handshakes go up whole, and behind them of each segment the headers and the first bytes, with the
//! headers of its records (RFC 8446 section 5.1) until exchanges are held. Nothing else can be read.
//!
//! An exchange is a run of application data to the upstream and a run back. It is held until the gateway
//! begins the next run, and sent up where anything but application data begins a run, where a segment is
//! shaped like an alert, where the first byte is late, and where there are more segments than there is
//! room for.

use hopscope_ebpf::{HEADER_ROOM, Hop, hop_flag};

use super::{
    ANSWERED, ASKED, Fate, HEAD_CAP, Opening, PASSING, Stage, begin, drop_exchange, is_late,
    output, release, report, set, spend,
};
use crate::records;
use crate::segment::{Segment, SegmentRecord, Shape, bounded, now};

/// Segments that are held of one exchange.
const SEGMENTS: usize = 24;
/// What goes up of a handshake: 64 KiB, where no segment counts for less than 1 KiB. A chain of
/// certificates has a few.
const UNIT: u32 = 16;
const LEAST: u32 = 1024 / UNIT;
const HANDSHAKE: u32 = 65_536 / UNIT;

/// Types of records.
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// Length of a record of TLS 1.3 with an alert: two bytes, the type, and sixteen bytes that protect them.
const ALERT_LEN: u16 = 19;
/// Records of earlier versions with an alert are shorter than this, whatever protects them.
const OLD_ALERT_LEN: u16 = 128;

/// The header of a record.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    kind: u8,
    major: u8,
    minor: u8,
    len: u16,
}

impl Record {
    /// Bytes of it.
    pub(crate) const LEN: usize = 5;

    #[inline(always)]
    pub(crate) fn read([kind, major, minor, high, low]: [u8; Self::LEN]) -> Self {
        let len = u16::from_be_bytes([high, low]);
        Self {
            kind,
            major,
            minor,
            len,
        }
    }

    /// Whether it may be the header of a record of any version since SSL 3.0.
    #[inline(always)]
    pub(crate) fn is_valid(self) -> bool {
        self.kind >= 20 && self.kind <= APPLICATION_DATA && self.major == 3 && self.minor <= 4
    }

    /// Bytes of it and its body.
    #[inline(always)]
    pub(crate) fn wire_len(self) -> u32 {
        Self::LEN as u32 + u32::from(self.len)
    }

    /// Whether it may be that of an alert.
    #[inline(always)]
    fn is_alert(self) -> bool {
        self.is_valid()
            && (self.kind == ALERT && self.len < OLD_ALERT_LEN
                || self.kind == APPLICATION_DATA && self.len == ALERT_LEN)
    }

    /// Whether it is that of application data, and of no alert.
    #[inline(always)]
    fn is_data(self) -> bool {
        self.is_valid() && self.kind == APPLICATION_DATA && self.len != ALERT_LEN
    }
}

/// What is held of an exchange.
#[repr(C)]
pub(super) struct Tls {
    /// When the last segment of the request passed, the first of the response, and the last of it.
    asked_ns: u64,
    answered_ns: u64,
    end_ns: u64,
    /// Segments that are held.
    len: u32,
    /// Sequence numbers behind what came of the request and of the response.
    request_end: u32,
    response_end: u32,
    reserved: u32,
    segments: [SegmentRecord<HEAD_CAP>; SEGMENTS],
}

/// A segment with payload of a hop of which nothing was held so far.
#[inline(always)]
pub(super) fn opening(segment: &Segment, shape: &Shape, hop: *mut Hop) -> Opening {
    // SAFETY: as in the caller.
    let flags = unsafe { (*hop).flags };
    let marked = flags & hop_flag::DATA != 0;
    if !shape.plain {
        let fate = if marked && segment.is_cut() {
            Fate::Marked
        } else {
            Fate::Up
        };
        return Opening::Goes(fate);
    }
    let is_data = segment.record(shape).is_some_and(Record::is_data);
    if segment.egress == 0 {
        if is_data && flags & hop_flag::DATA != 0 {
            set(hop, hop_flag::ANSWERED);
        }
    } else if is_data {
        if flags & (hop_flag::ANSWERED | hop_flag::PLAIN) == hop_flag::ANSWERED {
            return Opening::Used { is_tls: true };
        }
        set(hop, hop_flag::DATA);
        return Opening::Goes(Fate::Marked);
    }
    if marked {
        return Opening::Goes(Fate::Marked);
    }
    let _ = records::pass(segment, shape);
    let cost = shape.payload / UNIT;
    let cost = if cost < LEAST { LEAST } else { cost };
    // The last one may be larger than what there is left.
    Opening::Goes(if spend(hop, cost, HANDSHAKE) {
        Fate::Whole
    } else {
        Fate::Head
    })
}

/// Offers a segment to be held; `out` says that everything is to be sent up.
#[inline(always)]
pub(super) fn offer(segment: &Segment, stage: &mut Stage, out: bool) -> Fate {
    let shape = segment.shape().filter(|shape| shape.plain);
    let record = shape.and_then(|shape| segment.record(&shape));
    let is_data = record.is_some_and(Record::is_data);
    let is_alert = record.is_some_and(Record::is_alert);
    let kept =
        !out && !is_alert && shape.is_some_and(|shape| is_kept(segment, &shape, is_data, stage));
    if !kept {
        release(stage);
    }
    let Some(shape) = shape else {
        return Fate::Up;
    };
    if shape.payload > 0 && stage.state == PASSING {
        // What is under way is seen to its end.
        if segment.egress != 0 {
            stage.answered = 0;
        } else if is_data {
            stage.answered = 1;
        }
    }
    if kept { Fate::Kept } else { Fate::Head }
}

/// Holds a segment where it need not be seen. A run begins with a record; what follows may begin anywhere
/// in one.
#[inline(always)]
fn is_kept(segment: &Segment, shape: &Shape, is_data: bool, stage: &mut Stage) -> bool {
    if shape.payload == 0 {
        return stage.state != PASSING && hold(segment, stage, now());
    }
    if stage.state != PASSING && news(segment, shape, stage) == 0 {
        return hold(segment, stage, now());
    }
    let begins = segment.egress != 0
        && (stage.state == ANSWERED || stage.state == PASSING && stage.answered != 0);
    let answers = segment.egress == 0 && stage.state == ASKED;
    if (begins || answers) && !is_data {
        return false;
    }
    if begins {
        ask(segment, shape, stage)
    } else {
        stage.state != PASSING && go_on(segment, shape, stage)
    }
}

#[inline(always)]
fn tls(stage: &mut Stage) -> &mut Tls {
    // SAFETY: the hop carries TLS, and every bit pattern is valid.
    unsafe { &mut stage.room.tls }
}

/// How many bytes of a segment, and of gaps before it, no other one had: none of a segment that came again.
#[inline(always)]
fn news(segment: &Segment, shape: &Shape, stage: &mut Stage) -> u32 {
    let room = tls(stage);
    let before = if segment.egress != 0 {
        room.request_end
    } else {
        room.response_end
    };
    let news = shape.end().wrapping_sub(before);
    if news > u32::MAX / 2 { 0 } else { news }
}

/// Drops the exchange that is held, and holds the beginning of the request that shows it to be good.
#[inline(always)]
fn ask(segment: &Segment, shape: &Shape, stage: &mut Stage) -> bool {
    if stage.state == ANSWERED {
        let room = tls(stage);
        let (asked, answered, end) = (room.asked_ns, room.answered_ns, room.end_ns);
        drop_exchange(stage, asked, answered, end);
    }
    let Some(now) = begin(segment, stage) else {
        return false;
    };
    tls(stage).len = 0;
    if !hold(segment, stage, now) {
        report(stage);
        return false;
    }
    let room = tls(stage);
    room.asked_ns = now;
    room.request_end = shape.end();
    room.response_end = shape.ack;
    stage.request_bytes = shape.payload;
    stage.response_bytes = 0;
    stage.state = ASKED;
    true
}

/// Holds more of a request or response, or the beginning of a response. Returns false where there is no
/// room, or where the response is late.
#[inline(always)]
fn go_on(segment: &Segment, shape: &Shape, stage: &mut Stage) -> bool {
    let now = now();
    let news = news(segment, shape, stage);
    let room = tls(stage);
    if segment.egress != 0 {
        room.asked_ns = now;
        room.request_end = shape.end();
        stage.request_bytes = stage.request_bytes.saturating_add(news);
    } else {
        room.end_ns = now;
        room.response_end = shape.end();
        stage.response_bytes = stage.response_bytes.saturating_add(news);
        if stage.state == ASKED {
            let room = tls(stage);
            room.answered_ns = now;
            if is_late(room.asked_ns, now) {
                return false;
            }
            stage.state = ANSWERED;
        }
    }
    hold(segment, stage, now)
}

/// Holds the headers and first bytes of a segment.
#[inline(always)]
fn hold(segment: &Segment, stage: &mut Stage, now: u64) -> bool {
    let room = tls(stage);
    let Some(place) = bounded(room.len + 1, SEGMENTS as u32) else {
        return false;
    };
    let head = segment.cut(HEADER_ROOM);
    // SAFETY: `place` is from one to the number of segments, and the room is the entry's own.
    let kept = unsafe {
        let first = (&raw mut room.segments).cast::<SegmentRecord<HEAD_CAP>>();
        head.write(first.add(place as usize - 1), now)
    };
    if kept {
        room.len = place;
    }
    kept
}

impl Tls {
    /// Sends up what is held.
    #[inline(always)]
    pub(super) fn output(&self) {
        for (place, segment) in (0..).zip(&self.segments) {
            if place < self.len {
                output(segment);
            }
        }
    }
}
