//! The recent packets of every hop, in memory, until it is known whether anybody wants them.
//!
//! Of a hop it keeps the handshake (its SYN and SYN-ACK), and the packets of the exchange that runs and
//! of the one before: a verdict may come a moment after the next request. An exchange begins when the
//! gateway sends payload after the upstream did. Where an exchange is long, its first packets are kept
//! whole, and of the later ones the newest, without payload. So a hop takes 16 KiB at most, and what
//! went well is overwritten by what comes next.
//!
//! All hops together are bounded too: the packets of the hop that was silent longest go first. Packets
//! that come after the verdict are not part of its capture.

use core::net::SocketAddr;
use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::capture::CapturedPacket;
use crate::input::pdu::{self, Pdu};
use crate::model::{
    Direction, HopId, Input, Plaintext, Segment, Signal, TcpFlags, TcpState, Timestamp,
};

/// How long the packets of a closed hop are kept: verdicts take 150 ms at most.
const LINGER: Duration = Duration::from_secs(1);

/// Packets of the handshake that are kept for as long as the hop is.
const OPENING: usize = 2;

/// Caps of what is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Packet bytes kept of one hop.
    pub hop_bytes: usize,
    /// Payload bytes kept of one packet.
    pub packet_bytes: usize,
    /// Memory of all hops together.
    pub total_bytes: usize,
}

impl Default for RecordLimits {
    fn default() -> Self {
        Self {
            hop_bytes: 16 * 1024,
            packet_bytes: 2048,
            total_bytes: 32 << 20,
        }
    }
}

/// A packet among the bytes of its hop.
#[derive(Clone, Copy, Debug)]
struct Kept {
    at: Timestamp,
    len: u32,
    wire_len: u32,
    /// Which exchange it belongs to; the handshake to none.
    exchange: u32,
    direction: Direction,
    /// Without its payload, and to be dropped for newer ones.
    bare: bool,
}

/// The packets of one hop.
#[derive(Debug, Default)]
struct Packets {
    bytes: Vec<u8>,
    kept: VecDeque<Kept>,
    exchange: u32,
    /// Whether the upstream sent payload since the exchange began.
    answered: bool,
    last_seen: Timestamp,
    /// The gateway's end and the upstream's.
    ends: Option<(SocketAddr, SocketAddr)>,
    /// When it was put into the order of eviction last.
    queued: Timestamp,
    closing: bool,
    /// Which sides have sent a FIN: gateway, upstream.
    fins: [bool; 2],
    /// What of the total is its own.
    accounted: usize,
}

/// Memory of a hop beside its bytes: its entry and its places in the queues, each with room to grow.
const HOP_BYTES: usize = 2
    * (size_of::<(HopId, Box<Packets>)>() + 2 * size_of::<(Timestamp, HopId)>())
    + size_of::<Packets>();

/// The recent packets of all hops.
#[derive(Debug)]
pub struct Flight {
    limits: RecordLimits,
    hops: HashMap<HopId, Box<Packets>, RandomState>,
    eviction: VecDeque<(Timestamp, HopId)>,
    closing: VecDeque<(Timestamp, HopId)>,
    bytes: usize,
    packets: u64,
    evicted: u64,
    shortened: u64,
}

impl Flight {
    /// A buffer that holds nothing yet.
    pub fn new(limits: RecordLimits) -> Self {
        Self {
            limits,
            hops: HashMap::default(),
            eviction: VecDeque::new(),
            closing: VecDeque::new(),
            bytes: 0,
            packets: 0,
            evicted: 0,
            shortened: 0,
        }
    }

    /// Takes what the engine is about to be told.
    pub fn see(&mut self, at: Timestamp, input: &Input<'_>) {
        match input {
            Input::Segment { hop, segment } if !segment.packet.is_empty() => {
                self.segment(at, *hop, segment);
            }
            Input::Plaintext { hop, text } if text.len > 0 => self.text(at, *hop, text),
            Input::Signal {
                hop,
                signal:
                    Signal::State {
                        new: TcpState::Close,
                        ..
                    },
            } => self.close(at, *hop),
            _ => {}
        }
        while self.bytes > self.limits.total_bytes && self.evict_oldest() {}
    }

    /// Copies of the packets of a hop, oldest first.
    pub fn packets(&self, hop: HopId) -> Vec<CapturedPacket> {
        let Some(packets) = self.hops.get(&hop) else {
            return Vec::new();
        };
        let mut from = 0;
        let mut copies = Vec::with_capacity(packets.kept.len());
        for kept in &packets.kept {
            let to = from + kept.len as usize;
            copies.push(CapturedPacket {
                at: kept.at,
                direction: kept.direction,
                bytes: packets.bytes.get(from..to).unwrap_or_default().to_vec(),
                wire_len: kept.wire_len,
            });
            from = to;
        }
        // Processors hand over their records a little out of order.
        copies.sort_by_key(|copy| copy.at);
        copies
    }

    /// What is kept, and what had to go.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("flight_hops", self.hops.len() as u64),
            ("flight_bytes", self.bytes as u64),
            ("flight_packets", self.packets),
            ("flight_hops_evicted", self.evicted),
            ("flight_packets_shortened", self.shortened),
        ]
    }

    fn segment(&mut self, at: Timestamp, hop: HopId, segment: &Segment<'_>) {
        self.packets += 1;
        let packets = self.hops.entry(hop).or_insert_with(|| {
            self.eviction.push_back((at, hop));
            Box::new(Packets {
                queued: at,
                ..Packets::default()
            })
        });
        packets.last_seen = packets.last_seen.max(at);
        packets.ends = Some((segment.local, segment.upstream));
        self.shortened += u64::from(packets.take(at, segment, &self.limits));
        let ended = packets.ends(segment);
        let accounted = packets.memory();
        self.bytes = self.bytes - packets.accounted + accounted;
        packets.accounted = accounted;
        if ended {
            self.close(at, hop);
        }
    }

    /// Keeps what was inside TLS as a packet of its own kind.
    fn text(&mut self, at: Timestamp, hop: HopId, text: &Plaintext<'_>) {
        let Some((local, upstream)) = self.hops.get(&hop).and_then(|packets| packets.ends) else {
            return;
        };
        let (src, dst) = match text.direction {
            Direction::ToUpstream => (local, upstream),
            Direction::FromUpstream => (upstream, local),
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is told modulo 2^32")]
        let offset = text.offset as u32;
        let packet = pdu::write(&Pdu {
            src,
            dst,
            offset,
            payload: text.payload,
            len: text.len,
        });
        let segment = Segment {
            direction: text.direction,
            local,
            upstream,
            seq: offset,
            ack: 0,
            flags: TcpFlags::ACK,
            window: 0,
            payload: text.payload,
            wire_len: text.len,
            packet: &packet,
            ttl: 0,
            ip_id: None,
        };
        self.segment(at, hop, &segment);
    }

    /// Notes that a hop has ended.
    fn close(&mut self, at: Timestamp, hop: HopId) {
        if let Some(packets) = self.hops.get_mut(&hop)
            && !packets.closing
        {
            packets.closing = true;
            self.closing.push_back((at, hop));
        }
    }

    /// Forgets hops that closed a while ago. To be called once everything that happened until `now` was
    /// seen and judged.
    pub fn tick(&mut self, now: Timestamp) {
        while let Some((since, hop)) = self.closing.front().copied() {
            if now.since(since) < LINGER {
                break;
            }
            self.closing.pop_front();
            if let Some(packets) = self.hops.get_mut(&hop) {
                if packets.last_seen > since {
                    self.closing.push_back((packets.last_seen.max(since), hop));
                } else {
                    self.forget(hop);
                }
            }
        }
    }

    fn forget(&mut self, hop: HopId) {
        if let Some(packets) = self.hops.remove(&hop) {
            self.bytes -= packets.accounted;
        }
        // Hops that were forgotten leave their places in the queues behind: clear those now and then.
        if self.eviction.len() > 64 + 2 * self.hops.len() {
            let hops = &self.hops;
            self.eviction
                .retain(|(at, hop)| hops.get(hop).is_some_and(|held| held.queued == *at));
        }
    }

    /// Gives up the hop that was silent longest. Returns false where there is none.
    fn evict_oldest(&mut self) -> bool {
        while let Some((queued, oldest)) = self.eviction.pop_front() {
            match self.hops.get_mut(&oldest) {
                Some(packets) if packets.queued != queued => {}
                Some(packets) if packets.last_seen > queued => {
                    packets.queued = packets.last_seen;
                    self.eviction.push_back((packets.queued, oldest));
                }
                Some(_) => {
                    self.forget(oldest);
                    self.evicted += 1;
                    return true;
                }
                None => {}
            }
        }
        false
    }
}

impl Packets {
    /// Whether a segment ends the connection. A FIN of one side does not: the gateway may use what its
    /// upstream closed long ago, and then the old FIN is what matters.
    fn ends(&mut self, segment: &Segment<'_>) -> bool {
        if segment.flags.contains(TcpFlags::FIN) {
            self.fins[usize::from(segment.direction == Direction::FromUpstream)] = true;
        }
        segment.flags.contains(TcpFlags::RST) || self.fins == [true; 2]
    }

    /// Adds a packet, and drops what it makes useless. Returns whether it was cut short for want of
    /// room.
    fn take(&mut self, at: Timestamp, segment: &Segment<'_>, limits: &RecordLimits) -> bool {
        let has_payload = segment.wire_len > 0;
        match segment.direction {
            Direction::ToUpstream if has_payload && self.answered => {
                self.answered = false;
                self.exchange = self.exchange.wrapping_add(1);
                let before = self.exchange.wrapping_sub(1);
                self.drop_where(|kept| kept.exchange != 0 && kept.exchange < before);
            }
            Direction::FromUpstream if has_payload => self.answered = true,
            _ => {}
        }
        let opening = segment.flags.contains(TcpFlags::SYN) && self.kept.len() < OPENING;
        let head = segment.packet.len() - segment.payload.len().min(segment.packet.len());
        let whole = head + segment.payload.len().min(limits.packet_bytes);
        // The last quarter is for packets without payload.
        let most = limits.hop_bytes - limits.hop_bytes / 4;
        let bare = self.bytes.len() + whole > most;
        let len = if bare { head } else { whole };
        while self.bytes.len() + len > limits.hop_bytes {
            let oldest = self.kept.iter().position(|kept| kept.bare);
            match oldest {
                Some(oldest) => self.drop_at(oldest),
                // The packets of the exchange before, rather than none of this one.
                None if self.kept.len() > OPENING => self.drop_at(OPENING),
                None => return true,
            }
        }
        let bytes = segment.packet.get(..len).unwrap_or(segment.packet);
        let wanted = self.bytes.len() + bytes.len();
        if wanted > self.bytes.capacity() {
            // In small steps: most hops need little.
            self.bytes
                .reserve_exact(wanted.next_multiple_of(2048) - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        let wire_len = u32::try_from(head).unwrap_or(u32::MAX);
        self.kept.push_back(Kept {
            at,
            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            wire_len: wire_len.saturating_add(segment.wire_len),
            exchange: if opening { 0 } else { self.exchange.max(1) },
            direction: segment.direction,
            bare,
        });
        self.exchange = self.exchange.max(1);
        bare && has_payload
    }

    fn drop_at(&mut self, index: usize) {
        let before = self.kept.iter().take(index);
        let from: usize = before.map(|kept| kept.len as usize).sum();
        if let Some(kept) = self.kept.remove(index) {
            self.bytes.drain(from..from + kept.len as usize);
        }
    }

    fn drop_where(&mut self, useless: impl Fn(&Kept) -> bool) {
        let (mut from, mut to) = (0, 0);
        let bytes = &mut self.bytes;
        self.kept.retain(|kept| {
            let len = kept.len as usize;
            let keep = !useless(kept);
            if keep {
                bytes.copy_within(from..from + len, to);
                to += len;
            }
            from += len;
            keep
        });
        bytes.truncate(to);
    }

    /// Everything that it takes, with room that is not used.
    fn memory(&self) -> usize {
        HOP_BYTES + self.bytes.capacity() + self.kept.capacity() * size_of::<Kept>()
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
