//! The recent packets of every hop, in memory, until it is known whether anybody wants them.
//!
//! Of a hop it keeps the handshake (its SYN and SYN-ACK), and the packets of the exchange that runs and
//! of the one before: a verdict may come a moment after the next request. An exchange begins when the
//! gateway sends payload after the upstream did. Where an exchange is long, its first packets are kept
//! whole, and of the later ones the newest, without payload. So a hop takes 16 KiB at most, and what
//! went well is overwritten by what comes next. A head of a response that is longer than what is kept of a packet is
//! kept on top of that: it may be what its gateway refused.
//!
//! All hops together are bounded too: the packets of the hop that was silent longest go first.
//!
//! A verdict may wait for what the gateway's client gets. Then a copy of the packets is held until its event
//! goes out; while no other exchange begins, later packets of the hop still belong to the failure.

use core::net::SocketAddr;
use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::capture::CapturedPacket;
use crate::input::pdu::{self, Pdu};
use crate::model::{
    Direction, HopId, IcmpError, Input, Plaintext, RecordHeads, Segment, Signal, TcpFlags,
    TcpState, Timestamp,
};

/// How long the packets of a closed hop are kept where nothing more is to be said of it, and where a verdict
/// may come: within two seconds.
const GRACE: Duration = Duration::from_millis(200);
const LINGER: Duration = Duration::from_secs(2);

/// ICMP errors that are kept, each without the payload that it quotes, and for how long.
const ERRORS: usize = 256;
const ERROR_AGE: Duration = Duration::from_mins(1);

/// Bytes that a hop may have in store and not use.
const SPARE: usize = 16 * 1024;

/// Packets of the handshake that are kept for as long as the hop is.
const OPENING: usize = 2;

/// Caps of what is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Packet bytes kept of one hop.
    pub hop_bytes: usize,
    /// Payload bytes kept of one packet.
    pub packet_bytes: usize,
    /// Bytes kept beyond both of a hop's response heads.
    pub head_bytes: usize,
    /// Memory of all hops together.
    pub total_bytes: usize,
}

impl Default for RecordLimits {
    fn default() -> Self {
        Self {
            hop_bytes: 16 * 1024,
            packet_bytes: 2048,
            head_bytes: 64 * 1024,
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
    /// Bytes of a head that are kept beyond what is kept of any packet.
    more: u32,
}

/// How far the head of a response came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HeadEnd {
    /// There is none, or it has ended.
    #[default]
    Over,
    /// Inside a line, behind a line, and behind the CR that follows one.
    Line,
    Lf,
    LfCr,
}

impl HeadEnd {
    /// Takes what the upstream sent, and gives back how many of the bytes are of a head.
    fn take(&mut self, payload: &[u8]) -> usize {
        if payload.starts_with(b"HTTP/1.") {
            *self = Self::Line;
        }
        let mut at = 0;
        while let Some(&byte) = payload.get(at).filter(|_| *self != Self::Over) {
            *self = match (*self, byte) {
                (Self::Lf | Self::LfCr, b'\n') => Self::Over,
                (_, b'\n') => Self::Lf,
                (Self::Lf, b'\r') => Self::LfCr,
                _ => Self::Line,
            };
            at += 1;
            if *self == Self::Line {
                let rest = payload.get(at..).unwrap_or_default();
                at += memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            }
        }
        at
    }
}

/// The packets of one hop.
#[derive(Clone, Debug, Default)]
struct Packets {
    /// Which packet it was made for, counted over all hops: another one of the same hop has another number.
    born: u64,
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
    /// The head of the upstream's response, and what is kept of such beyond other bytes.
    head: HeadEnd,
    more: usize,
    /// What of the total is its own.
    accounted: usize,
}

/// An ICMP error as it came in.
#[derive(Debug)]
struct HeardError {
    at: Timestamp,
    error: IcmpError,
    packet: Box<[u8]>,
    wire_len: u32,
}

/// Whether so much time has passed. What is well ahead of now was seen before the clock was set back, which is
/// long ago: else it would be kept until the clock has come there again.
fn is_past(now: Timestamp, since: Timestamp, time: Duration) -> bool {
    now.since(since) >= time || since > now.after(LINGER)
}

/// Length of an IP packet by its own header.
fn wire_len(packet: &[u8]) -> u32 {
    let length = |at: usize| {
        let field = packet.get(at..)?.first_chunk()?;
        Some(u32::from(u16::from_be_bytes(*field)))
    };
    let length = match packet.first().map(|first| first >> 4) {
        Some(4) => length(2),
        _ => length(4).map(|payload| 40 + payload),
    };
    length.unwrap_or(0)
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
    /// Closed hops that may still be judged.
    lingering: VecDeque<(Timestamp, HopId)>,
    /// What is held for events that wait, by their ids, and those in the order in which they came. It takes
    /// half of the memory at most.
    held: HashMap<Box<str>, Box<Packets>>,
    held_order: VecDeque<Box<str>>,
    held_bytes: usize,
    errors: VecDeque<HeardError>,
    bytes: usize,
    errors_evicted: u64,
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
            lingering: VecDeque::new(),
            held: HashMap::new(),
            held_order: VecDeque::new(),
            held_bytes: 0,
            errors: VecDeque::new(),
            bytes: 0,
            errors_evicted: 0,
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
            Input::Icmp { error, packet } if !packet.is_empty() => self.error(at, error, packet),
            _ => {}
        }
        self.make_room();
    }

    /// Copies of the packets of a hop, oldest first.
    pub fn packets(&self, hop: HopId) -> Vec<CapturedPacket> {
        let packets = self.hops.get(&hop);
        packets.map_or_else(Vec::new, |packets| packets.captured())
    }

    /// Holds the packets of a hop as they are for the event called `event`.
    pub fn hold(&mut self, event: &str, hop: HopId) {
        let Some(packets) = self.hops.get(&hop) else {
            return;
        };
        let mut copy = packets.clone();
        copy.accounted = copy.memory() + 2 * event.len();
        self.held_bytes += copy.accounted;
        if let Some(before) = self.held.insert(event.into(), copy) {
            self.held_bytes -= before.accounted;
        } else {
            self.held_order.push_back(event.into());
        }
        while self.held_bytes > self.limits.total_bytes / 2
            && let Some(oldest) = self.held_order.pop_front()
        {
            self.evicted += u64::from(self.let_go(&oldest).is_some());
        }
        self.make_room();
    }

    /// The packets that were held for an event, with those that the hop had since as long as it began no
    /// other exchange. Where none are held, those of the hop as they are.
    pub fn release(&mut self, event: &str, hop: HopId) -> Vec<CapturedPacket> {
        let Some(held) = self.let_go(event) else {
            return self.packets(hop);
        };
        if self.held_order.len() > 64 + 2 * self.held.len() {
            let held = &self.held;
            self.held_order.retain(|event| held.contains_key(event));
        }
        match self.hops.get(&hop) {
            Some(now) if (now.born, now.exchange) == (held.born, held.exchange) => now.captured(),
            _ => held.captured(),
        }
    }

    fn let_go(&mut self, event: &str) -> Option<Box<Packets>> {
        let held = self.held.remove(event)?;
        self.held_bytes -= held.accounted;
        Some(held)
    }

    /// The ICMP errors since `since` that quote a segment from `local` to `upstream`. `netns` is zero where
    /// it is not known.
    pub fn errors(
        &self,
        since: Timestamp,
        netns: u64,
        local: SocketAddr,
        upstream: SocketAddr,
    ) -> impl Iterator<Item = CapturedPacket> {
        let about = move |heard: &&HeardError| {
            heard.at >= since
                && (heard.error.local, heard.error.upstream) == (local, upstream)
                && (netns == 0 || heard.error.netns == netns)
        };
        self.errors
            .iter()
            .filter(about)
            .map(|heard| CapturedPacket {
                at: heard.at,
                direction: Direction::FromUpstream,
                bytes: heard.packet.to_vec(),
                wire_len: heard.wire_len,
            })
    }

    /// What is kept, and what had to go.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("flight_hops", self.hops.len() as u64),
            ("flight_bytes", (self.bytes + self.held_bytes) as u64),
            ("flight_packets", self.packets),
            ("flight_events_held", self.held.len() as u64),
            ("flight_hops_evicted", self.evicted),
            ("flight_icmp_evicted", self.errors_evicted),
            ("flight_packets_shortened", self.shortened),
        ]
    }

    fn segment(&mut self, at: Timestamp, hop: HopId, segment: &Segment<'_>) {
        self.packets += 1;
        let packets = self.hops.entry(hop).or_insert_with(|| {
            self.eviction.push_back((at, hop));
            Box::new(Packets {
                born: self.packets,
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
            records: RecordHeads::NONE,
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

    /// Forgets hops that closed a while ago; `is_over` tells of which nothing more will be said. To be called
    /// once everything that happened until `now` was seen and judged.
    pub fn tick(&mut self, now: Timestamp, is_over: impl Fn(HopId) -> bool) {
        while let Some((since, hop)) = self.closing.front().copied() {
            if !is_past(now, since, GRACE) {
                break;
            }
            self.closing.pop_front();
            if is_over(hop) {
                self.forget(hop);
            } else {
                self.lingering.push_back((since, hop));
            }
        }
        while let Some((since, hop)) = self.lingering.front().copied() {
            if !is_past(now, since, LINGER) {
                break;
            }
            self.lingering.pop_front();
            if let Some(packets) = self.hops.get_mut(&hop) {
                if packets.last_seen > since && packets.last_seen <= now {
                    self.lingering.push_back((packets.last_seen, hop));
                } else {
                    self.forget(hop);
                }
            }
        }
        while let Some(heard) = self.errors.front()
            && is_past(now, heard.at, ERROR_AGE)
        {
            self.errors.pop_front();
        }
    }

    fn error(&mut self, at: Timestamp, error: &IcmpError, packet: &[u8]) {
        if self.errors.len() >= ERRORS {
            self.errors.pop_front();
            self.errors_evicted += 1;
        }
        self.errors.push_back(HeardError {
            at,
            error: *error,
            wire_len: wire_len(packet),
            packet: packet.into(),
        });
    }

    fn make_room(&mut self) {
        while self.bytes + self.held_bytes > self.limits.total_bytes && self.evict_oldest() {}
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
        let mut more = 0;
        if segment.direction == Direction::FromUpstream && has_payload {
            let taken = self.head.take(segment.payload);
            if segment.payload.len() < segment.wire_len as usize {
                // Where it ends is not known.
                self.head = HeadEnd::Over;
            }
            more = taken.saturating_sub(limits.packet_bytes);
        }
        let opening = segment.flags.contains(TcpFlags::SYN) && self.kept.len() < OPENING;
        let head = segment.packet.len() - segment.payload.len().min(segment.packet.len());
        let whole = head + segment.payload.len().min(limits.packet_bytes);
        // The last quarter is for packets without payload.
        let most = limits.hop_bytes - limits.hop_bytes / 4;
        let bare = self.bytes.len() - self.more + whole > most;
        if bare || self.more + more > limits.head_bytes {
            more = 0;
        }
        let len = if bare { head } else { whole };
        while self.bytes.len() - self.more + len > limits.hop_bytes {
            let oldest = self.kept.iter().position(|kept| kept.bare);
            match oldest {
                Some(oldest) => self.drop_at(oldest),
                // The packets of the exchange before, rather than none of this one.
                None if self.kept.len() > OPENING => self.drop_at(OPENING),
                None => return true,
            }
        }
        let bytes = segment.packet.get(..len + more).unwrap_or(segment.packet);
        self.more += more;
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
            more: u32::try_from(more).unwrap_or(u32::MAX),
        });
        self.exchange = self.exchange.max(1);
        bare && has_payload
    }

    fn drop_at(&mut self, index: usize) {
        let before = self.kept.iter().take(index);
        let from: usize = before.map(|kept| kept.len as usize).sum();
        if let Some(kept) = self.kept.remove(index) {
            self.more -= kept.more as usize;
            self.bytes.drain(from..from + kept.len as usize);
        }
    }

    fn drop_where(&mut self, useless: impl Fn(&Kept) -> bool) {
        let (mut from, mut to) = (0, 0);
        let (bytes, more) = (&mut self.bytes, &mut self.more);
        self.kept.retain(|kept| {
            let len = kept.len as usize;
            let keep = !useless(kept);
            if !keep {
                *more -= kept.more as usize;
            }
            if keep {
                bytes.copy_within(from..from + len, to);
                to += len;
            }
            from += len;
            keep
        });
        bytes.truncate(to);
        // A long head leaves more room behind than the next exchange is likely to take.
        if bytes.capacity() - to > SPARE {
            bytes.shrink_to(to);
        }
    }

    /// Copies of the packets, oldest first.
    fn captured(&self) -> Vec<CapturedPacket> {
        let mut from = 0;
        let mut copies = Vec::with_capacity(self.kept.len());
        for kept in &self.kept {
            let to = from + kept.len as usize;
            copies.push(CapturedPacket {
                at: kept.at,
                direction: kept.direction,
                bytes: self.bytes.get(from..to).unwrap_or_default().to_vec(),
                wire_len: kept.wire_len,
            });
            from = to;
        }
        // Processors hand over their records a little out of order.
        copies.sort_by_key(|copy| copy.at);
        copies
    }

    /// Everything that it takes, with room that is not used.
    fn memory(&self) -> usize {
        HOP_BYTES + self.bytes.capacity() + self.kept.capacity() * size_of::<Kept>()
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
