//! The short way of the segments that healthy traffic consists of: bare acknowledgements, bodies, requests
//! and responses whose heads are whole in one segment, and the FINs behind them. It does what
//! [`Hop::segment`] would do, and leaves to that whatever is not certain to be one of these.

use super::{Context, Hop, Outcome, Phase};
use crate::engine::peers::Exchanged;
use crate::engine::traffic::AllFinished;
use crate::model::{Direction, Segment, TcpFlags, Timestamp};
use crate::tcp::Flow;

impl Hop {
    /// Takes a segment of the kinds above; `now` is the engine's time. Returns false for any other, which
    /// then belongs to [`Hop::segment`]; nothing that this one did before is wrong there.
    pub(in crate::engine) fn pass(
        &mut self,
        at: Timestamp,
        now: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        let TcpFlags(flags) = segment.flags;
        let plain = flags & !TcpFlags::PSH.0 == TcpFlags::ACK.0
            && self.phase == Phase::Established
            && (!self.half_open || segment.direction == Direction::ToUpstream)
            && self.exchanges.is_settled()
            && !self.to.is_closing()
            && !self.from.is_closing()
            && segment.payload.len() == segment.wire_len as usize;
        if !plain {
            return false;
        }
        let passed = match (segment.direction, segment.payload) {
            (direction, []) => {
                let (own, other) = self.flows(direction);
                let passed = own.passes_empty()
                    && other.pass_acknowledged(segment.ack)
                    && own.pass(at, segment);
                if passed {
                    self.heard(at);
                }
                passed
            }
            (Direction::ToUpstream, _) => self.pass_request(at, segment, cx),
            (Direction::FromUpstream, _) if self.exchanges.awaits_body(segment.wire_len) => {
                self.pass_body(at, segment)
            }
            (Direction::FromUpstream, _) => self.pass_response(at, now, segment, cx),
        };
        if passed && segment.direction == Direction::ToUpstream {
            // The acknowledgement of the SYN-ACK, if it was not there before.
            self.half_open = false;
            self.exchanges.missed |= self.lost() > 0;
        }
        passed
    }

    /// Takes the first FIN of a side, without payload and while no exchange is open. Returns `None`, with
    /// nothing done, for any other segment.
    pub(in crate::engine) fn pass_fin(
        &mut self,
        at: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> Option<Outcome> {
        let TcpFlags(flags) = segment.flags;
        let to = segment.direction == Direction::ToUpstream;
        let (own, other) = self.flows(segment.direction);
        let plain = flags & !TcpFlags::PSH.0 == TcpFlags::FIN.union(TcpFlags::ACK).0
            && segment.wire_len == 0
            && !own.is_closing()
            && other.reset().is_none()
            && own.passes_empty();
        let free = self.phase == Phase::Established
            && (!self.half_open || to)
            && self.exchanges.open.is_empty();
        if !plain || !free {
            return None;
        }
        let seen = at.max(self.last_seen);
        let (own, other) = self.flows(segment.direction);
        if !other.pass_acknowledged(segment.ack) || !own.pass_fin(seen, segment) {
            return None;
        }
        self.heard(at);
        if to {
            self.half_open = false;
            self.exchanges.missed |= self.lost() > 0;
        }
        let mut out = Outcome::default();
        self.after_close(seen, cx, &mut out);
        self.arm(&mut out);
        Some(out)
    }

    /// The direction of a segment, and the other one.
    const fn flows(&mut self, direction: Direction) -> (&mut Flow, &mut Flow) {
        match direction {
            Direction::ToUpstream => (&mut self.to, &mut self.from),
            Direction::FromUpstream => (&mut self.from, &mut self.to),
        }
    }

    /// Bytes inside a body of known length.
    fn pass_body(&mut self, at: Timestamp, segment: &Segment<'_>) -> bool {
        let seen = at.max(self.last_seen);
        let passed = self.to.pass_acknowledged(segment.ack)
            && self.from.pass(seen, segment)
            && self.exchanges.pass(seen, segment.wire_len);
        if passed {
            self.heard(at);
        }
        passed
    }

    /// A request without a body.
    fn pass_request(&mut self, at: Timestamp, segment: &Segment<'_>, cx: &Context<'_>) -> bool {
        if self.lost() > 0 || !self.from.pass_acknowledged(segment.ack) {
            return false;
        }
        let Some(head) = self.exchanges.whole_request(segment.payload, cx.limits) else {
            return false;
        };
        let seen = at.max(self.last_seen);
        if !self.to.pass(seen, segment) {
            self.exchanges.give_back(head);
            return false;
        }
        self.quiet = at.since(self.last_seen);
        self.heard(at);
        self.exchanges.ask(seen, segment.wire_len, head);
        self.from.watch_windows();
        true
    }

    /// The head of a response of known length with what of its body is behind it.
    fn pass_response(
        &mut self,
        at: Timestamp,
        now: Timestamp,
        segment: &Segment<'_>,
        cx: &mut Context<'_>,
    ) -> bool {
        if cx.tell_healthy || !self.to.pass_acknowledged(segment.ack) {
            return false;
        }
        let acked = self.to.acked();
        let Some(head) = self.exchanges.sized_answer(segment.payload, acked) else {
            return false;
        };
        let seen = at.max(self.last_seen);
        if !self.from.pass(seen, segment) {
            return false;
        }
        self.heard(at);
        if let Some(finished) = self.exchanges.answer(seen, &head, acked) {
            self.forget_losses(cx.stats.records_lost);
            cx.stats.exchanges += 1;
            let ended = Exchanged {
                count: 1,
                complete: true,
                repeated: self.retransmits() > 0,
                ttl: self.ttl(),
                finished: AllFinished::from(finished),
            };
            cx.peers.exchanged(self.place(), now, &ended);
        }
        true
    }
}
