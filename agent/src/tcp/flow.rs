//! One direction of a hop: its bytes, what the other side acknowledged of them, and how it closed.

use super::{Chunk, Reassembler};
use crate::limits::Limits;
use crate::model::{Segment, TcpFlags, Timestamp};

/// How a direction closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// In order, by a FIN.
    Fin,
    /// By a reset.
    Rst,
}

/// One direction of a hop.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: Reassembler,
    /// Highest stream offset that the other side acknowledged.
    acked: u64,
    /// When the FIN or RST was seen, and which.
    closed: Option<(Close, Timestamp)>,
    /// Time to live of the last segment, which tells one sender from another.
    ttl: u8,
    /// Whether the last advertised window was zero.
    window_closed: bool,
    /// Segments that carried nothing new.
    repeated: u32,
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
        self.ttl = segment.ttl;
        let syn = segment.flags.contains(TcpFlags::SYN);
        let first = segment.seq.wrapping_add(u32::from(syn));
        if segment.flags.contains(TcpFlags::RST) {
            // Its sequence number is often not in order and its payload, if any, is a diagnostic
            // (RFC 9293 section 3.5.3).
            self.closed = Some((Close::Rst, at));
            return;
        }
        self.window_closed = segment.window == 0;
        if !self.bytes.started() {
            self.bytes.start(first);
        }
        if !self
            .bytes
            .push(first, segment.payload, segment.wire_len, limits, sink)
            && segment.wire_len > 0
        {
            self.repeated += 1;
        }
        if segment.flags.contains(TcpFlags::FIN) {
            self.bytes.fin(first.wrapping_add(segment.wire_len));
            if self.closed.is_none() {
                self.closed = Some((Close::Fin, at));
            }
        }
    }

    /// Takes a segment with neither SYN, FIN nor RST that is empty, or whose bytes are next in order
    /// and of no interest. Returns false, with nothing done, for any other.
    pub fn pass(&mut self, segment: &Segment<'_>) -> bool {
        let passed = if segment.wire_len == 0 {
            self.bytes.started()
        } else {
            self.bytes.pass(segment.seq, segment.wire_len)
        };
        if passed {
            self.ttl = segment.ttl;
            self.window_closed = segment.window == 0;
        }
        passed
    }

    /// Takes an acknowledgement of bytes that were all seen. Returns false, with nothing done, for any
    /// other.
    pub fn pass_acknowledged(&mut self, ack: u32) -> bool {
        match self.bytes.offset_of(ack) {
            Some(offset) if offset <= self.bytes.offset() => {
                self.acked = self.acked.max(offset);
                true
            }
            _ => false,
        }
    }

    /// Goes on behind bytes that nobody needs and that passed unseen.
    pub fn resume(&mut self) {
        self.bytes.resume();
        self.acked = self.bytes.offset();
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
        }
        self.bytes.acknowledged(ack, sink);
        if let Some(offset) = self.bytes.offset_of(ack) {
            self.acked = self.acked.max(offset.min(self.bytes.offset()));
        }
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

    /// Time to live of the last segment.
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Whether the sender's last advertised window was zero: it does not take more.
    pub const fn window_closed(&self) -> bool {
        self.window_closed
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
