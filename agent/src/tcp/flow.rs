//! One direction of a hop: its bytes, what the other side acknowledged of them, and how it closed.

use std::time::Duration;

use super::{Chunk, Reassembler};
use crate::limits::Limits;
use crate::model::{Segment, TcpFlags, Timestamp};

/// Payload of a segment that a path of small MTU swallows. Every link of IPv6 carries 1280 bytes
/// (RFC 8200 section 5) and tunnels keep to that for IPv4 too: less payload than this does not vanish
/// for its size.
const FULL_SIZE: u32 = 1200;

/// More bytes than this are not missed right behind a SYN.
const MOST_UNSEEN: i64 = 1 << 20;

/// Segments of one sender this close together may change their order, or were captured twice. A
/// retransmission takes longer: 200 ms on Linux, a few round trips at least.
const IN_FLIGHT: Duration = Duration::from_millis(1);
const CAPTURED_TWICE: Duration = Duration::from_millis(10);

/// How a direction closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// In order, by a FIN.
    Fin,
    /// By a reset.
    Rst,
}

/// A reset, beside what its direction showed before and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// When it was seen.
    pub at: Timestamp,
    /// Its time to live.
    pub ttl: u8,
    /// Time to live of the segments before it, where all had the same.
    pub usual_ttl: Option<u8>,
    /// Whether the handshake is all that was seen before it.
    pub after_handshake: bool,
    /// By how many bytes its sequence number is off what the sender had come to; none where it fits, or
    /// where segments are missing.
    pub off: Option<i64>,
    /// How long after it the sender went on as if it had not sent it.
    pub went_on: Option<Duration>,
}

/// The oldest bytes that are not acknowledged, sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Their place in the stream.
    at: u64,
    /// Payload of the smallest segment that carried them again.
    pub len: u32,
    /// How often.
    pub times: u32,
}

impl Reset {
    /// The time to live of the segments before it, where its own is another.
    pub fn other_ttl(&self) -> Option<u8> {
        self.usual_ttl.filter(|usual| *usual != self.ttl)
    }
}

impl Stuck {
    /// Whether the segment is large enough to vanish for its size.
    pub const fn full_size(&self) -> bool {
        self.len >= FULL_SIZE
    }
}

/// Bytes that did not come although later ones did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// How many.
    pub bytes: u64,
    /// Whether they fill a segment, and nothing of that size ever came.
    pub full_size: bool,
}

/// What a side advertised since its peer began a request, unscaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// The last.
    pub last: u16,
    /// The largest; zero before any was seen.
    pub widest: u16,
    /// The smallest.
    pub narrowest: u16,
}

/// One direction of a hop.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: Reassembler,
    /// Highest stream offset that the other side acknowledged.
    acked: u64,
    /// When the FIN or RST was seen, and which.
    closed: Option<(Close, Timestamp)>,
    /// Boxed, as most directions never see one.
    reset: Option<Box<Reset>>,
    /// Time to live of the last segment that was no reset, which tells one sender from another.
    ttl: u8,
    /// Whether that was ever another one.
    ttl_varies: bool,
    /// Whether anything but the handshake and resets was seen.
    under_way: bool,
    windows: Windows,
    /// When its window was last opened again after it had been closed.
    reopened: Timestamp,
    /// Segments that carried nothing new.
    repeated: u32,
    stuck: Option<Stuck>,
    /// When bytes were sent last, again or not.
    sent: Timestamp,
    /// Whether the other side acknowledged once more what it had, although there is more.
    passes_some: bool,
    /// Where the first full-size piece ended. A record of more is cut into such pieces on its way out.
    full_size: Option<u64>,
}

impl Flow {
    /// Takes what a segment says about its own direction.
    pub fn segment(
        &mut self,
        at: Timestamp,
        segment: &Segment<'_>,
        limits: &Limits,
        sink: impl FnMut(Chunk<'_>),
    ) {
        let syn = segment.flags.contains(TcpFlags::SYN);
        let first = segment.seq.wrapping_add(u32::from(syn));
        if segment.flags.contains(TcpFlags::RST) {
            // Its sequence number is often not in order and its payload, if any, is a diagnostic
            // (RFC 9293 section 3.5.3).
            if self.reset.is_none() {
                self.reset = Some(Box::new(self.reset_by(at, segment)));
                self.closed = Some((Close::Rst, at));
            }
            return;
        }
        if self.is_past_reset(at) {
            // Nobody reads it any more; that it was sent is what counts.
            let end = first.wrapping_add(segment.wire_len);
            let new = self.bytes.distance(end).is_some_and(|ahead| ahead > 0);
            let fin = segment.flags.contains(TcpFlags::FIN) && !self.bytes.is_ending();
            if new || fin {
                self.goes_on(at);
            }
            return;
        }
        self.sent_by(segment.ttl);
        if !syn {
            if self.window_closed() && segment.window > 0 {
                self.reopened = at;
            }
            self.under_way = true;
            self.advertised(segment.window);
        }
        if !self.bytes.started() {
            self.bytes.start(first);
        }
        if segment.wire_len > 0 {
            self.note_size(first, segment.wire_len);
            let again = self.is_again(at, first, segment.wire_len);
            if !self.push(first, segment, limits, sink) && !again {
                self.repeated += 1;
                self.note_repeat(at, first, segment.wire_len);
            }
            self.sent = at;
        }
        if segment.flags.contains(TcpFlags::FIN) {
            self.fin(at, first.wrapping_add(segment.wire_len));
        }
    }

    /// Takes the bytes of a segment: what was captured at its beginning, and what is known of the rest.
    /// Returns whether any is new.
    fn push(
        &mut self,
        first: u32,
        segment: &Segment<'_>,
        limits: &Limits,
        mut sink: impl FnMut(Chunk<'_>),
    ) -> bool {
        let mut new = false;
        let (mut from, mut bytes) = (0, segment.payload);
        for (at, head) in segment.records.iter() {
            // What was captured may end inside a header.
            let known = (from as usize).saturating_add(bytes.len());
            let skip = known.saturating_sub(at as usize);
            let head = head.get(skip..).unwrap_or_default();
            let Some(at) = u32::try_from(skip)
                .ok()
                .and_then(|skip| at.checked_add(skip))
            else {
                continue;
            };
            // What is told may end in the next segment.
            let rest = segment.wire_len.saturating_sub(at) as usize;
            let head = head.get(..rest).unwrap_or(head);
            if head.is_empty() {
                continue;
            }
            let start = first.wrapping_add(from);
            new |= self.bytes.push(start, bytes, at - from, limits, &mut sink);
            (from, bytes) = (at, head);
        }
        let len = segment.wire_len - from;
        let first = first.wrapping_add(from);
        self.bytes.push(first, bytes, len, limits, sink) || new
    }

    /// Takes a FIN of this sequence number.
    fn fin(&mut self, at: Timestamp, seq: u32) {
        self.bytes.fin(seq);
        if self.closed.is_none() {
            self.closed = Some((Close::Fin, at));
        }
    }

    /// Holds a reset against what was seen before it.
    fn reset_by(&self, at: Timestamp, segment: &Segment<'_>) -> Reset {
        // A socket sends the number that it has come to; a host without one takes the number that the
        // segment it answers acknowledged. With a FIN the sender is one further.
        let behind = self.bytes.offset() - self.acked.min(self.bytes.offset());
        let fits = |ahead: i64| ahead <= 1 && ahead.saturating_neg() <= behind.cast_signed();
        let complete = self.lost() == 0 && self.bytes.hole().is_none();
        Reset {
            at,
            ttl: segment.ttl,
            usual_ttl: (self.ttl > 0 && !self.ttl_varies).then_some(self.ttl),
            after_handshake: !self.under_way,
            off: self
                .bytes
                .distance(segment.seq)
                .filter(|&ahead| complete && !fits(ahead)),
            went_on: None,
        }
    }

    /// Whether a reset is too long ago for a segment to have been under way beside it.
    pub fn is_past_reset(&self, at: Timestamp) -> bool {
        self.reset()
            .is_some_and(|reset| at.since(reset.at) > IN_FLIGHT)
    }

    /// Notes that the sender of a reset does not know of it.
    pub fn goes_on(&mut self, at: Timestamp) {
        if let Some(reset) = &mut self.reset {
            let after = at.since(reset.at);
            reset.went_on = reset.went_on.or(Some(after));
        }
    }

    /// Whether a segment of the other side shows that its kernel did not take the reset of this one: it
    /// acknowledges what came later.
    pub fn survived_reset(&self, at: Timestamp, other: &Segment<'_>) -> bool {
        self.is_past_reset(at)
            && other.flags.contains(TcpFlags::ACK)
            && !other.flags.contains(TcpFlags::RST)
            && self.reset().is_some_and(|reset| reset.went_on.is_some())
            && self
                .bytes
                .distance(other.ack)
                .is_some_and(|ahead| ahead > 0)
    }

    /// Goes on as if there had been no reset.
    pub fn forget_reset(&mut self) {
        self.reset = None;
        self.closed = None;
    }

    /// Whether a segment tells nothing but, at most, what it acknowledges. The window of a handshake is
    /// not comparable with later ones.
    pub fn only_acknowledges(&self, segment: &Segment<'_>) -> bool {
        let same_window = !self.under_way || segment.window == self.windows.last;
        let TcpFlags(flags) = segment.flags;
        let telling = TcpFlags::SYN.0 | TcpFlags::FIN.0 | TcpFlags::RST.0;
        // A probe of a connection repeats the number before the next, whatever arrived.
        let probe = self.bytes.distance(segment.seq).is_some_and(|at| at < 0);
        flags & telling == 0 && segment.wire_len == 0 && same_window && !probe
    }

    /// The first reset of this direction.
    pub fn reset(&self) -> Option<&Reset> {
        self.reset.as_deref()
    }

    const fn sent_by(&mut self, ttl: u8) {
        self.ttl_varies |= self.ttl != ttl && self.ttl != 0;
        self.ttl = ttl;
    }

    fn advertised(&mut self, window: u16) {
        let Windows {
            last,
            widest,
            narrowest,
        } = &mut self.windows;
        *narrowest = if *widest == 0 {
            window
        } else {
            window.min(*narrowest)
        };
        *widest = window.max(*widest);
        *last = window;
    }

    /// Remembers windows from now on: the other side begins a request.
    pub const fn watch_windows(&mut self) {
        let Windows { last, .. } = self.windows;
        self.windows = Windows {
            last,
            widest: last,
            narrowest: last,
        };
    }

    fn note_size(&mut self, seq: u32, len: u32) {
        if len >= FULL_SIZE && self.full_size.is_none() {
            self.full_size = self.bytes.offset_of(seq.wrapping_add(FULL_SIZE));
        }
    }

    /// Whether the segment is the last one seen, captured twice.
    fn is_again(&self, at: Timestamp, seq: u32, len: u32) -> bool {
        at.since(self.sent) < CAPTURED_TWICE
            && self.bytes.distance(seq.wrapping_add(len)) == Some(0)
    }

    fn note_repeat(&mut self, at: Timestamp, seq: u32, len: u32) {
        if at.since(self.sent) < CAPTURED_TWICE || self.bytes.offset_of(seq) != Some(self.acked) {
            return;
        }
        let before = self.stuck.filter(|stuck| stuck.at == self.acked);
        self.stuck = Some(Stuck {
            at: self.acked,
            len: before.map_or(len, |stuck| stuck.len.min(len)),
            times: before.map_or(1, |stuck| stuck.times + 1),
        });
    }

    /// Takes what a segment with neither SYN nor RST says beside a FIN, if it is empty, or its bytes are next in order
    /// and need not be handed over. Returns false, with nothing done, for any other.
    pub fn pass(&mut self, at: Timestamp, segment: &Segment<'_>) -> bool {
        let passed = if segment.wire_len == 0 {
            self.passes_empty()
        } else {
            !self.window_closed() && self.bytes.pass(segment.seq, segment.wire_len)
        };
        if passed {
            if segment.ttl != self.ttl {
                self.sent_by(segment.ttl);
            }
            if segment.window != self.windows.last {
                self.advertised(segment.window);
            }
            if segment.wire_len > 0 {
                self.sent = at;
            }
            if segment.wire_len >= FULL_SIZE && self.full_size.is_none() {
                let more = segment.wire_len - FULL_SIZE;
                self.full_size = Some(self.bytes.offset() - u64::from(more));
            }
            self.under_way = true;
        }
        passed
    }

    /// Whether [`Flow::pass`] takes a segment without payload.
    #[inline]
    pub const fn passes_empty(&self) -> bool {
        self.bytes.started() && !self.window_closed()
    }

    /// Takes a FIN without payload, the first. Returns false, with nothing done, where
    /// [`Flow::passes_empty`] does.
    pub fn pass_fin(&mut self, at: Timestamp, segment: &Segment<'_>) -> bool {
        let passed = self.pass(at, segment);
        if passed {
            self.fin(at, segment.seq);
        }
        passed
    }

    /// Takes an acknowledgement of bytes that were all seen, and of a FIN behind them, unless it repeats
    /// an earlier one although there is more. Returns false, with nothing done, for any other.
    pub fn pass_acknowledged(&mut self, ack: u32) -> bool {
        match self.bytes.offset_of(ack) {
            Some(offset) if offset == self.bytes.offset() || self.acked < offset => {
                let known = self.bytes.is_complete_to(offset) && !self.began_with_probe(ack);
                if known {
                    self.acknowledge(offset);
                }
                known
            }
            _ => false,
        }
    }

    /// Notes that the other side acknowledged what was seen up to this place.
    fn acknowledge(&mut self, offset: u64) {
        let offset = offset.min(self.bytes.offset());
        if self.acked < offset {
            self.acked = offset;
            self.passes_some = false;
        }
    }

    /// Goes on behind bytes that nobody needs and that passed unseen.
    pub fn resume(&mut self) {
        self.bytes.resume();
        self.acked = self.bytes.offset();
        self.stuck = None;
    }

    /// Whether a FIN or RST was seen, bytes before it missing or not.
    pub const fn is_closing(&self) -> bool {
        self.closed.is_some()
    }

    /// Memory for payload kept out of order.
    pub fn kept_bytes(&self) -> usize {
        self.bytes.kept_bytes()
    }

    /// Takes what a segment of the other direction acknowledges of this one.
    pub fn acknowledged(&mut self, ack: u32, sink: impl FnMut(Chunk<'_>)) {
        if !self.bytes.started() {
            // Joined mid-stream: what the receiver expects next is where this direction begins.
            self.bytes.start(ack);
        } else if self.began_with_probe(ack) {
            self.bytes.start_again(ack);
        }
        self.bytes.acknowledged(ack, sink);
        if let Some(offset) = self.bytes.offset_of(ack) {
            self.acknowledge(offset);
        }
    }

    /// Whether the direction was joined at a probe of an idle connection, which repeats the sequence number
    /// before the next (RFC 9293 section 3.8.4): no byte was missed.
    fn began_with_probe(&self, ack: u32) -> bool {
        self.offset() == 0
            && self.sent == Timestamp::default()
            && !self.is_closing()
            && self.bytes.distance(ack) == Some(1)
    }

    /// Whether the other side may acknowledge this number, as far as is known, or a filter that does not
    /// count the SYN; it is one of an earlier connection on the same ports if not.
    pub fn may_reach(&self, ack: u32) -> bool {
        let ahead = self.bytes.distance(ack);
        ahead.is_none_or(|ahead| (-1..MOST_UNSEEN).contains(&ahead))
    }

    /// Takes an acknowledgement that carries nothing else and leaves the window as it was: a receiver
    /// repeats one when something arrives behind a hole (RFC 5681 section 2).
    pub fn acknowledged_again(&mut self, ack: u32) {
        let again = self.bytes.offset_of(ack) == Some(self.acked);
        self.passes_some |= again && self.acked < self.bytes.offset();
    }

    /// Bytes handed over so far.
    pub const fn offset(&self) -> u64 {
        self.bytes.offset()
    }

    /// Highest stream offset that the other side acknowledged.
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether the direction was seen at all.
    pub const fn started(&self) -> bool {
        self.bytes.started()
    }

    /// How and when the direction closed. A FIN counts once everything before it was handed over.
    pub fn closed(&self) -> Option<(Close, Timestamp)> {
        self.closed
            .filter(|(close, _)| *close == Close::Rst || self.bytes.finished())
    }

    /// Whether a FIN was seen and everything before it was handed over, whatever came behind.
    pub fn has_fin(&self) -> bool {
        self.bytes.finished()
    }

    /// Time to live of the last segment that was no reset.
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Whether the sender's last advertised window was zero: it does not take more.
    pub const fn window_closed(&self) -> bool {
        self.under_way && self.windows.last == 0
    }

    /// When the sender last opened its window again, to take more; the epoch if it never did.
    pub const fn reopened(&self) -> Timestamp {
        self.reopened
    }

    /// The windows that the sender advertised since the other side began a request.
    pub const fn windows(&self) -> Windows {
        self.windows
    }

    /// The bytes that were sent again and never acknowledged, and that keep all later ones waiting.
    pub fn stuck(&self) -> Option<Stuck> {
        self.stuck.filter(|stuck| stuck.at == self.acked)
    }

    /// Whether the other side repeated its acknowledgement: something arrives, and the oldest bytes do
    /// not.
    pub const fn passes_some(&self) -> bool {
        self.passes_some
    }

    /// Whether a full-size segment was acknowledged.
    pub fn passed_full_size(&self) -> bool {
        self.full_size.is_some_and(|end| end <= self.acked)
    }

    /// The bytes that did not come although later ones did.
    pub fn hole(&self) -> Option<Hole> {
        let bytes = self.bytes.hole()?;
        Some(Hole {
            bytes,
            full_size: bytes >= u64::from(FULL_SIZE) && self.full_size.is_none(),
        })
    }

    /// Segments that carried nothing new: retransmissions.
    pub const fn repeated(&self) -> u32 {
        self.repeated
    }

    /// Runs of bytes that were missed.
    pub const fn lost(&self) -> u64 {
        self.bytes.lost() + self.bytes.dropped()
    }

    /// Whether some payload was captured short.
    pub const fn truncated(&self) -> bool {
        self.bytes.truncated()
    }
}
