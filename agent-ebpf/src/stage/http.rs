//! HTTP/1: the first segment of a request, that of its response, and a few acknowledgements. A response that
//! is no HTTP/1 or not 2xx to 4xx is sent up, and so is one of several segments, or with more
//! acknowledgements than there is room for.

use hopscope_ebpf::{Hop, MAX_HEAD_LEN, SEGMENT_TIERS, hop_flag};

use super::{
    ANSWERED, ASKED, Fate, HEAD_CAP, Opening, PASSING, Stage, drop_exchange, is_late, output,
    release, report, set,
};
use crate::heads;
use crate::maps::{REQUEST_HEAD, RESPONSE_HEAD};
use crate::segment::{START_LEN, Segment, SegmentRecord, Shape, now};

/// Room for a request or response, headers included: what is sent up of a segment by default.
const CAP: usize = SEGMENT_TIERS[2] as usize;
/// Segments without payload that are held of one exchange.
const ACKS: usize = 4;

/// What is held of an exchange.
#[repr(C)]
pub(super) struct Http {
    /// Segments without payload that are held, and how many of them came before the response.
    acks: u32,
    early_acks: u32,
    /// Class of the status that is held: zero for 2xx.
    class: u32,
    reserved: u32,
    request: SegmentRecord<CAP>,
    response: SegmentRecord<CAP>,
    ack: [SegmentRecord<HEAD_CAP>; ACKS],
}

/// A segment with payload of a hop of which nothing was held so far.
#[inline(always)]
pub(super) fn opening(segment: &Segment, shape: &Shape, hop: *mut Hop) -> Opening {
    // SAFETY: as in the caller.
    let answered = unsafe { (*hop).flags } & hop_flag::ANSWERED != 0;
    if segment.egress == 0 {
        if !answered && segment.start(shape).is_some_and(|bytes| is_final(&bytes)) {
            set(hop, hop_flag::ANSWERED);
        }
    } else if answered {
        return Opening::Used { is_tls: false };
    }
    Opening::Goes(Fate::Up)
}

/// Offers a segment to be held; `out` says that everything is to be sent up.
#[inline(always)]
pub(super) fn offer(segment: &Segment, stage: &mut Stage, out: bool) -> Fate {
    let Some(shape) = segment.shape().filter(|shape| shape.plain) else {
        release(stage);
        return Fate::Up;
    };
    let mut kept = !out && is_kept(segment, &shape, stage);
    let answered = segment.egress == 0 && shape.payload > 0 && stage.state == ANSWERED;
    if answered && (!kept || segment.is_cut()) {
        let head = head_of(stage);
        if !kept {
            // More of the response that is held.
            stage.head = head;
        } else if head != 0 {
            // Its head is cut off: it goes up instead, and says so itself.
            stage.state = ASKED;
            kept = false;
        }
    }
    if !kept {
        release(stage);
    }
    if shape.payload > 0 && stage.state == PASSING {
        // What is under way is seen to its end.
        if segment.egress != 0 {
            stage.answered = 0;
        } else if segment.start(&shape).is_some_and(|start| is_final(&start)) {
            stage.answered = 1;
        }
    }
    if kept { Fate::Kept } else { Fate::Up }
}

/// Holds a segment where it need not be seen.
#[inline(always)]
fn is_kept(segment: &Segment, shape: &Shape, stage: &mut Stage) -> bool {
    if shape.payload == 0 {
        return stage.state != PASSING && http(stage).hold_ack(segment);
    }
    if segment.egress == 0 {
        return stage.state == ASKED && hold_response(segment, shape, stage);
    }
    (stage.state == ANSWERED || stage.state == PASSING && stage.answered != 0)
        && segment.start(shape).is_some_and(|start| is_request(&start))
        && begin(segment, shape, stage)
}

#[inline(always)]
fn http(stage: &mut Stage) -> &mut Http {
    // SAFETY: the hop carries HTTP/1, and every bit pattern is valid.
    unsafe { &mut stage.room.http }
}

/// Drops the exchange that is held, and holds the request that shows it to be good. Returns false where
/// the new exchange is to be sent up; nothing is held then.
#[inline(always)]
fn begin(segment: &Segment, shape: &Shape, stage: &mut Stage) -> bool {
    if stage.state == ANSWERED {
        let room = http(stage);
        let (asked, ended) = (room.request.time_ns(), room.response.time_ns());
        let class = room.class;
        drop_exchange(stage, asked, ended, ended);
        match class {
            0 => stage.held.classes[0] += 1,
            1 => stage.held.classes[1] += 1,
            _ => stage.held.classes[2] += 1,
        }
    }
    let Some(now) = super::begin(segment, stage) else {
        return false;
    };
    let room = http(stage);
    let head = segment.cut(shape.start + REQUEST_HEAD.load());
    // SAFETY: the entry's own room.
    if !unsafe { head.write(&raw mut room.request, now) } {
        report(stage);
        return false;
    }
    room.acks = 0;
    stage.head = 0;
    stage.request_bytes = shape.payload;
    stage.state = ASKED;
    true
}

/// Holds the first segment of a response, where it is one that need not be seen.
#[inline(always)]
fn hold_response(segment: &Segment, shape: &Shape, stage: &mut Stage) -> bool {
    let room = http(stage);
    let head = segment.cut(shape.start + RESPONSE_HEAD.load());
    // SAFETY: the entry's own room.
    if !unsafe { head.write(&raw mut room.response, now()) } {
        return false;
    }
    let Some(start) = room.response.start(shape) else {
        return false;
    };
    // 2xx to 4xx.
    let class = u32::from(start[9]).wrapping_sub(u32::from(b'2'));
    if !is_final(&start) || class > 2 || is_late(room.request.time_ns(), room.response.time_ns()) {
        return false;
    }
    room.class = class;
    room.early_acks = room.acks;
    stage.response_bytes = shape.payload;
    stage.state = ANSWERED;
    true
}

/// What is known of the head of the response that is held. Where less is to be held of it than is captured of a
/// segment, it may be cut off.
#[inline(always)]
fn head_of(stage: &mut Stage) -> u32 {
    if RESPONSE_HEAD.load() < MAX_HEAD_LEN {
        return 0;
    }
    let payload = stage.response_bytes;
    let Some((held, len)) = http(stage).response.payload(payload) else {
        return 0;
    };
    heads::state_of(held, len)
}

impl Http {
    /// Holds a segment without payload.
    #[inline(always)]
    fn hold_ack(&mut self, segment: &Segment) -> bool {
        let room = match self.acks {
            0 => &raw mut self.ack[0],
            1 => &raw mut self.ack[1],
            2 => &raw mut self.ack[2],
            3 => &raw mut self.ack[3],
            _ => return false,
        };
        // SAFETY: the entry's own room.
        if !unsafe { segment.write(room, now()) } {
            return false;
        }
        self.acks += 1;
        true
    }

    /// Sends up what is held of an exchange in this state.
    #[inline(always)]
    pub(super) fn output(&self, state: u32) {
        let early = if state == ANSWERED {
            self.early_acks
        } else {
            self.acks
        };
        output(&raw const self.request);
        for (place, ack) in (0..).zip(&self.ack) {
            if place < early {
                output(ack);
            }
        }
        if state == ANSWERED {
            output(&raw const self.response);
            for (place, ack) in (0..).zip(&self.ack) {
                if place >= early && place < self.acks {
                    output(ack);
                }
            }
        }
    }
}

/// Whether a payload begins a final response of HTTP/1.
#[inline(always)]
fn is_final(start: &[u8; START_LEN]) -> bool {
    start[..7] == *b"HTTP/1." && start[8] == b' ' && start[9] >= b'2' && start[9] <= b'5'
}

/// Whether a payload may begin a request of HTTP/1: methods begin with three capital letters.
#[inline(always)]
pub(super) fn is_request(start: &[u8; START_LEN]) -> bool {
    start[0].is_ascii_uppercase() && start[1].is_ascii_uppercase() && start[2].is_ascii_uppercase()
}
