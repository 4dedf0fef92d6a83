//! Assigns packets to hops: which connection, and which of its ends is the gateway.
//!
//! Decides by the SYN (its sender is the gateway), and without one, in this order: by an end that
//! `--gateway` names or a hop before showed to be an upstream, by a payload that begins a request or
//! a response, by ports (one end below the ephemeral range is the upstream). Where none of these
//! tells, a few segments wait for a payload that does. A guess from ports that a later payload
//! contradicts is corrected by a new hop, since the engine cannot turn one around.
//!
//! A SYN with another initial sequence number is a new hop: ports are used again.
//! Memory is bounded: closed connections are forgotten first, then those that were idle longest, which
//! are counted.

use core::net::SocketAddr;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::hints::direction_of;
use super::options::Options;
use super::table::Table;
use crate::input::packet::TcpPacket;
use crate::model::{Direction, HopId, Segment, TcpFlags, Timestamp};
use crate::tcp::Ends;

/// Connections that may wait for a payload that shows the roles.
const MAX_WAITING: usize = 1024;
/// Segments and payload bytes that one of them may hold meanwhile.
const MAX_HELD_SEGMENTS: usize = 8;
const MAX_HELD_BYTES: usize = 16 * 1024;
/// Upstreams that are counted one by one.
const MAX_UPSTREAMS: u32 = 4096;
/// An engine remembers a hop that was reset for longer than this.
const RESET_LINGER: Duration = Duration::from_secs(1);
/// Linux takes ephemeral ports from here by default; services below it are the rule.
const FIRST_EPHEMERAL: u16 = 32_768;

/// Seeded at random as the standard hasher, and several times as fast.
type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// What was seen of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamTally {
    /// Its end.
    pub upstream: SocketAddr,
    /// Connections to it.
    pub hops: u64,
    /// When the first packet was seen.
    pub first: Timestamp,
    /// When the last packet was seen.
    pub last: Timestamp,
}

/// What the table did that a reader of the verdicts may want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HopCounters {
    /// Connections seen.
    pub hops: u64,
    /// Of these, those whose gateway was guessed from ports.
    pub guessed: u64,
    /// Guesses that a later payload contradicted; the connection was counted once more.
    pub corrected: u64,
    /// Segments of connections that `--gateway` or `--upstream` exclude.
    pub filtered: u64,
    /// Connections forgotten, while still open, to bound memory.
    pub evicted: u64,
    /// Segments forgotten with them before it was known who the gateway is.
    pub dropped: u64,
    /// Hops to upstreams beyond the number that is counted one by one.
    pub untallied: u64,
}

/// Where the gateway's end lies in the key of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gateway {
    Low,
    High,
}

impl Gateway {
    const fn sender(from_low: bool) -> Self {
        if from_low { Self::Low } else { Self::High }
    }

    const fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }

    const fn direction(self, from_low: bool) -> Direction {
        if matches!(self, Self::Low) == from_low {
            Direction::ToUpstream
        } else {
            Direction::FromUpstream
        }
    }
}

/// A connection. There are many, so that what it holds is small.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Tracked {
    hop: HopId,
    /// When it was reset, or [`NEVER`].
    reset: Timestamp,
    /// Initial sequence number of the gateway's side, if `begun`.
    isn: u32,
    /// Its place among the tallies, or [`UNTALLIED`].
    tally: u32,
    gateway: Gateway,
    /// Whether the role is known, not guessed.
    sure: bool,
    /// Excluded by the options.
    filtered: bool,
    /// Whether its SYN was seen.
    begun: bool,
    /// Whether the upstream sent anything.
    answered: bool,
    /// FIN from the low end, FIN from the high end.
    ended: [bool; 2],
}

const NEVER: Timestamp = Timestamp::MAX;
const UNTALLIED: u32 = u32::MAX;

impl Tracked {
    fn closed(&self) -> bool {
        matches!(self.ended, [true, true]) || self.reset != NEVER
    }

    /// Whether an engine knows no more of it, or cares no more for a bare acknowledgement. Soon after a
    /// reset one shows whether that was taken.
    fn forgotten(&self, at: Timestamp) -> bool {
        if self.reset == NEVER {
            self.closed()
        } else {
            at.since(self.reset) > RESET_LINGER
        }
    }

    /// Whether a segment can neither begin another connection nor tell the roles.
    const fn keeps(&self, tcp: &TcpPacket<'_>) -> bool {
        self.sure && !is_syn(tcp)
    }
}

/// A segment kept until the roles are known.
struct Held {
    at: Timestamp,
    from_low: bool,
    src: SocketAddr,
    dst: SocketAddr,
    segment: Segment<'static>,
    payload: Vec<u8>,
}

enum Connection {
    Tracked(Tracked),
    Waiting(Vec<Held>),
}

const _: () = assert!(size_of::<Option<Connection>>() <= 32);

impl Connection {
    /// Whether it was closed: what comes late of it says nothing that matters.
    fn is_over(&self) -> bool {
        match self {
            Self::Tracked(tracked) => tracked.closed(),
            Self::Waiting(_) => false,
        }
    }
}

/// Where a segment belongs.
pub(super) enum Route {
    /// To this hop, going this way.
    Hop(HopId, Direction),
    /// To none that is analysed, or it says nothing.
    Nowhere,
    /// That takes more than a look: [`Hops::settle`].
    Open(Open),
}

/// What one look showed of a segment whose place is open.
pub(super) struct Open {
    key: Ends,
    from_low: bool,
    /// Whether its connection is in the table.
    known: bool,
}

/// The table of connections.
pub(super) struct Hops {
    options: Options,
    connections: Table<Connection>,
    next: u64,
    waiting: usize,
    tallies: Vec<UpstreamTally>,
    tally_of: HashMap<SocketAddr, u32>,
    counters: HopCounters,
}

/// Takes the segments of hops.
pub(super) type Sink<'s> = dyn FnMut(Timestamp, HopId, &Segment<'_>) + 's;

impl Hops {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            connections: Table::new(Connection::is_over),
            next: 0,
            waiting: 0,
            tallies: Vec::new(),
            tally_of: HashMap::default(),
            counters: HopCounters::default(),
        }
    }

    pub(super) const fn counters(&self) -> HopCounters {
        self.counters
    }

    pub(super) fn tallies(&self) -> &[UpstreamTally] {
        &self.tallies
    }

    /// Where a segment belongs, if its connection is known and it tells nothing new of that: one look into
    /// the table is enough for by far the most.
    #[expect(
        clippy::inline_always,
        reason = "where the address family is known, far fewer instructions remain"
    )]
    #[inline(always)]
    pub(super) fn route(&mut self, at: Timestamp, tcp: &TcpPacket<'_>) -> Route {
        let (key, from_low) = Ends::sorted(tcp.src, tcp.dst);
        match self.connections.find(&key) {
            Some(Connection::Tracked(tracked)) if tracked.keeps(tcp) => {
                let (tallies, counters) = (&mut self.tallies, &mut self.counters);
                let route = match admit(tracked, tallies, counters, at, tcp, from_low) {
                    Some(direction) => Route::Hop(tracked.hop, direction),
                    None => Route::Nowhere,
                };
                self.age();
                route
            }
            Some(_) => Route::Open(Open {
                key,
                from_low,
                known: true,
            }),
            None => Route::Open(Open {
                key,
                from_low,
                known: false,
            }),
        }
    }

    /// Gives a segment whose place is open, and any that waited for it, to `sink` as part of its hop.
    pub(super) fn settle(
        &mut self,
        Open {
            key,
            from_low,
            known,
        }: Open,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        sink: &mut Sink<'_>,
    ) {
        if known {
            self.seldom(key, at, tcp, from_low, sink);
        } else {
            self.stranger(key, at, tcp, from_low, sink);
        }
        self.age();
    }

    /// Takes a segment of a connection that is not in the table.
    fn stranger(
        &mut self,
        key: Ends,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        from_low: bool,
        sink: &mut Sink<'_>,
    ) {
        let Some((gateway, sure)) = self.role(tcp, from_low) else {
            self.wait(key, at, tcp, from_low, sink);
            self.deliver_tracked(key, at, tcp, from_low, sink);
            return;
        };
        let mut tracked = self.begin(at, tcp, from_low, gateway, sure);
        let (tallies, counters) = (&mut self.tallies, &mut self.counters);
        deliver(&mut tracked, tallies, counters, at, tcp, from_low, sink);
        self.connections
            .insert_new(key, Connection::Tracked(tracked));
    }

    /// Takes a segment that begins a connection or may tell more about one.
    fn seldom(
        &mut self,
        key: Ends,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        from_low: bool,
        sink: &mut Sink<'_>,
    ) {
        match self.connections.find(&key) {
            Some(Connection::Tracked(tracked)) if !begins_anew(tracked, tcp, from_low) => {
                if !tracked.sure
                    && let Some(direction) = direction_of(tcp.payload)
                {
                    tracked.sure = direction == tracked.gateway.direction(from_low);
                    if !tracked.sure {
                        let gateway = tracked.gateway.other();
                        self.counters.corrected += 1;
                        self.track(key, at, tcp, from_low, gateway, true);
                    }
                }
            }
            Some(Connection::Waiting(_)) => {
                self.wait(key, at, tcp, from_low, sink);
            }
            _ => match self.role(tcp, from_low) {
                Some((gateway, sure)) => self.track(key, at, tcp, from_low, gateway, sure),
                None => self.wait(key, at, tcp, from_low, sink),
            },
        }
        self.deliver_tracked(key, at, tcp, from_low, sink);
    }

    /// Gives a segment to `sink`, if its connection is tracked by now.
    fn deliver_tracked(
        &mut self,
        key: Ends,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        from_low: bool,
        sink: &mut Sink<'_>,
    ) {
        if let Some(Connection::Tracked(tracked)) = self.connections.find(&key) {
            let (tallies, counters) = (&mut self.tallies, &mut self.counters);
            deliver(tracked, tallies, counters, at, tcp, from_low, sink);
        }
    }

    /// The roles of the ends of a segment that an ICMP error quotes: whether its sender is the
    /// gateway of a hop that the options include.
    pub(super) fn is_from_gateway(&self, src: SocketAddr, dst: SocketAddr) -> bool {
        let (key, from_low) = Ends::sorted(src, dst);
        match self.connections.peek(&key) {
            Some(Connection::Tracked(tracked)) => {
                !tracked.filtered && tracked.gateway.direction(from_low) == Direction::ToUpstream
            }
            _ => {
                self.options.admit(src, dst)
                    && self
                        .guess(src, dst, from_low)
                        .is_none_or(|gateway| gateway == Gateway::sender(from_low))
            }
        }
    }

    /// Lets the segments go that still wait, with the roles guessed.
    pub(super) fn finish(&mut self, sink: &mut Sink<'_>) {
        let mut waiting: Vec<_> = self
            .connections
            .iter()
            .filter_map(|(key, connection)| match connection {
                Connection::Waiting(held) => Some((held.first()?.at, *key)),
                Connection::Tracked(_) => None,
            })
            .collect();
        // The table has no order of its own, and the same input must give the same events.
        waiting.sort_unstable();
        for (_, key) in waiting {
            self.release(key, None, sink);
        }
    }

    /// Who is the gateway, and whether that is more than a guess; `None` where nothing tells yet.
    fn role(&self, tcp: &TcpPacket<'_>, from_low: bool) -> Option<(Gateway, bool)> {
        let sender = Gateway::sender(from_low);
        let receiver = Gateway::sender(!from_low);
        if tcp.flags.contains(TcpFlags::SYN) {
            let answer = tcp.flags.contains(TcpFlags::ACK);
            return Some((if answer { receiver } else { sender }, true));
        }
        if let Some(sender_named) = self.options.names_gateway(tcp.src, tcp.dst) {
            return Some((if sender_named { sender } else { receiver }, true));
        }
        if let Some(direction) = direction_of(tcp.payload) {
            return Some(match direction {
                Direction::ToUpstream => (sender, true),
                Direction::FromUpstream => (receiver, true),
            });
        }
        self.guess(tcp.src, tcp.dst, from_low)
            .map(|gateway| (gateway, false))
    }

    /// The gateway by what was seen of its ends before, then by ports.
    fn guess(&self, src: SocketAddr, dst: SocketAddr, from_low: bool) -> Option<Gateway> {
        let known = |end: &SocketAddr| self.tally_of.contains_key(end);
        let service = |end: &SocketAddr| end.port() < FIRST_EPHEMERAL;
        match (known(&src), known(&dst), service(&src), service(&dst)) {
            (false, true, ..) | (false, false, false, true) | (true, true, false, true) => {
                Some(Gateway::sender(from_low))
            }
            (true, false, ..) | (false, false, true, false) | (true, true, true, false) => {
                Some(Gateway::sender(!from_low))
            }
            _ => None,
        }
    }

    /// Begins a hop in the place of what is known of these ends.
    fn track(
        &mut self,
        key: Ends,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        from_low: bool,
        gateway: Gateway,
        sure: bool,
    ) {
        let tracked = self.begin(at, tcp, from_low, gateway, sure);
        self.connections.insert(key, Connection::Tracked(tracked));
    }

    /// Begins a hop.
    fn begin(
        &mut self,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        from_low: bool,
        gateway: Gateway,
        sure: bool,
    ) -> Tracked {
        let (local, upstream) = match gateway.direction(from_low) {
            Direction::ToUpstream => (tcp.src, tcp.dst),
            Direction::FromUpstream => (tcp.dst, tcp.src),
        };
        let filtered = !self.options.admit(local, upstream);
        let mut tally = UNTALLIED;
        if !filtered {
            self.next += 1;
            self.counters.hops += 1;
            self.counters.guessed += u64::from(!sure);
            tally = self.tally(upstream, at);
        }
        Tracked {
            hop: HopId(self.next),
            reset: NEVER,
            isn: match gateway.direction(from_low) {
                Direction::ToUpstream => tcp.seq,
                Direction::FromUpstream => tcp.ack.wrapping_sub(1),
            },
            tally,
            gateway,
            sure,
            filtered,
            begun: tcp.flags.contains(TcpFlags::SYN),
            answered: false,
            ended: [false; 2],
        }
    }

    /// Counts a connection to `upstream`. Returns the place of its tally.
    fn tally(&mut self, upstream: SocketAddr, at: Timestamp) -> u32 {
        let next = u32::try_from(self.tallies.len()).unwrap_or(u32::MAX);
        let index = match self.tally_of.get(&upstream) {
            Some(index) => *index,
            None if next < MAX_UPSTREAMS => {
                self.tally_of.insert(upstream, next);
                self.tallies.push(UpstreamTally {
                    upstream,
                    hops: 0,
                    first: at,
                    last: at,
                });
                next
            }
            None => {
                self.counters.untallied += 1;
                return UNTALLIED;
            }
        };
        if let Some(tally) = self.tallies.get_mut(index as usize) {
            tally.hops += 1;
        }
        index
    }

    /// Keeps a segment, unless it tells the roles or there is no more room to wait.
    fn wait(
        &mut self,
        key: Ends,
        at: Timestamp,
        tcp: &TcpPacket<'_>,
        from_low: bool,
        sink: &mut Sink<'_>,
    ) {
        let role = self.role(tcp, from_low);
        let held = match self.connections.peek(&key) {
            Some(Connection::Waiting(held)) => held.as_slice(),
            _ => &[],
        };
        let bytes = tcp.payload.len() + held.iter().map(|held| held.payload.len()).sum::<usize>();
        let full = held.len() >= MAX_HELD_SEGMENTS
            || bytes > MAX_HELD_BYTES
            || (held.is_empty() && self.waiting >= MAX_WAITING);
        if role.is_some() || full {
            self.release(key, role, sink);
            if is_syn(tcp) || !matches!(self.connections.peek(&key), Some(Connection::Tracked(_))) {
                let guess = || (lower_port(tcp.src, tcp.dst, from_low), false);
                let (gateway, sure) = role.unwrap_or_else(guess);
                self.track(key, at, tcp, from_low, gateway, sure);
            }
            return;
        }
        if held.is_empty() {
            self.waiting += 1;
            self.connections
                .insert(key, Connection::Waiting(Vec::new()));
        }
        if let Some(Connection::Waiting(held)) = self.connections.find(&key) {
            held.push(Held {
                at,
                from_low,
                src: tcp.src,
                dst: tcp.dst,
                segment: TcpPacket {
                    payload: &[],
                    ..*tcp
                }
                .segment(Direction::ToUpstream),
                payload: tcp.payload.to_vec(),
            });
        }
    }

    /// Begins the hop of the segments that wait, in the role that was found or else is guessed, and
    /// lets them go.
    fn release(&mut self, key: Ends, role: Option<(Gateway, bool)>, sink: &mut Sink<'_>) {
        let Some(Connection::Waiting(held)) = self.connections.remove(&key) else {
            return;
        };
        self.waiting = self.waiting.saturating_sub(1);
        for (index, held) in held.iter().enumerate() {
            let tcp = TcpPacket {
                src: held.src,
                dst: held.dst,
                seq: held.segment.seq,
                ack: held.segment.ack,
                flags: held.segment.flags,
                window: held.segment.window,
                payload: &held.payload,
                wire_len: held.segment.wire_len,
                ttl: held.segment.ttl,
                ip_id: held.segment.ip_id,
            };
            if index == 0 {
                let (gateway, sure) =
                    role.unwrap_or_else(|| (lower_port(tcp.src, tcp.dst, held.from_low), false));
                self.track(key, held.at, &tcp, held.from_low, gateway, sure);
            }
            if let Some(Connection::Tracked(tracked)) = self.connections.find(&key) {
                let (tallies, counters) = (&mut self.tallies, &mut self.counters);
                deliver(
                    tracked,
                    tallies,
                    counters,
                    held.at,
                    &tcp,
                    held.from_low,
                    sink,
                );
            }
        }
    }

    /// Forgets the connections that were not seen since the last time, closed ones without counting.
    fn age(&mut self) {
        let Some(forgotten) = self.connections.age() else {
            return;
        };
        for connection in forgotten {
            match connection {
                Connection::Tracked(tracked) => {
                    self.counters.evicted += u64::from(!tracked.closed() && !tracked.filtered);
                }
                Connection::Waiting(held) => {
                    self.waiting = self.waiting.saturating_sub(1);
                    self.counters.evicted += 1;
                    self.counters.dropped += held.len() as u64;
                }
            }
        }
    }
}

/// Whether a segment is the SYN of a new connection between the same ends.
fn begins_anew(tracked: &Tracked, tcp: &TcpPacket<'_>, from_low: bool) -> bool {
    if !is_syn(tcp) {
        return false;
    }
    match tracked.gateway.direction(from_low) {
        Direction::ToUpstream => !tracked.begun || tracked.isn != tcp.seq,
        // Both ends may open at the same time; otherwise the roles are the other way round now.
        Direction::FromUpstream => tracked.answered || tracked.closed(),
    }
}

/// Whether a segment asks for a connection.
const fn is_syn(tcp: &TcpPacket<'_>) -> bool {
    tcp.flags.contains(TcpFlags::SYN) && !tcp.flags.contains(TcpFlags::ACK)
}

/// Whether a segment does nothing but acknowledge.
const fn is_bare_ack(tcp: &TcpPacket<'_>) -> bool {
    let TcpFlags(flags) = tcp.flags;
    let telling = TcpFlags::FIN.0 | TcpFlags::SYN.0 | TcpFlags::RST.0;
    tcp.wire_len == 0 && flags & telling == 0
}

/// The last resort: the lower port is the upstream's, and the first to be seen sending is the gateway.
fn lower_port(src: SocketAddr, dst: SocketAddr, from_low: bool) -> Gateway {
    Gateway::sender(if src.port() < dst.port() {
        !from_low
    } else {
        from_low
    })
}

/// Gives a segment to `sink`, unless nothing is to be made of it.
fn deliver(
    tracked: &mut Tracked,
    tallies: &mut [UpstreamTally],
    counters: &mut HopCounters,
    at: Timestamp,
    tcp: &TcpPacket<'_>,
    from_low: bool,
    sink: &mut Sink<'_>,
) {
    if let Some(direction) = admit(tracked, tallies, counters, at, tcp, from_low) {
        sink(at, tracked.hop, &tcp.segment(direction));
    }
}

/// Notes a segment of a connection. Returns which way it goes, unless nothing is to be made of it.
#[inline]
fn admit(
    tracked: &mut Tracked,
    tallies: &mut [UpstreamTally],
    counters: &mut HopCounters,
    at: Timestamp,
    tcp: &TcpPacket<'_>,
    from_low: bool,
) -> Option<Direction> {
    if tracked.filtered {
        counters.filtered += 1;
        return None;
    }
    if is_bare_ack(tcp) && tracked.forgotten(at) {
        // Says nothing, and an engine that has forgotten the hop would begin it once more.
        return None;
    }
    let direction = tracked.gateway.direction(from_low);
    tracked.answered |= direction == Direction::FromUpstream;
    let [low, high] = &mut tracked.ended;
    *(if from_low { low } else { high }) |= tcp.flags.contains(TcpFlags::FIN);
    if tcp.flags.contains(TcpFlags::RST) {
        tracked.reset = tracked.reset.min(at);
    }
    if let Some(tally) = tallies.get_mut(tracked.tally as usize) {
        tally.first = tally.first.min(at);
        tally.last = tally.last.max(at);
    }
    Some(direction)
}

#[cfg(test)]
mod tests;
