//! One hop whose segments are made as they are needed.

use std::net::SocketAddr;
use std::time::Duration;

use hopscope::engine::{Config, Engine};
use hopscope::limits::Limits;
use hopscope::model::{
    Cause, Direction, HopEvent, HopId, Input, RecordHeads, Segment, TcpFlags, Timestamp,
};
use hopscope::stats::Stats;

pub(crate) const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Payload of a full segment.
pub(crate) const SEGMENT: usize = 1460;

pub(crate) struct Feed {
    pub(crate) engine: Engine,
    pub(crate) events: Vec<HopEvent>,
    now: Timestamp,
    hop: u64,
    local: SocketAddr,
    /// Next sequence numbers of the gateway and of the upstream.
    sent: u32,
    received: u32,
}

impl Feed {
    /// A hop that is open.
    pub(crate) fn open() -> Self {
        let mut feed = Self::new(Limits::default());
        feed.segment(Direction::ToUpstream, TcpFlags::SYN, 0, b"");
        feed.sent = 1;
        feed.segment(
            Direction::FromUpstream,
            TcpFlags::SYN.union(TcpFlags::ACK),
            0,
            b"",
        );
        feed.received = 1;
        feed.segment(Direction::ToUpstream, TcpFlags::ACK, 1, b"");
        feed
    }

    /// A hop of which nothing was seen.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            engine: Engine::new(Config::default(), limits),
            events: Vec::new(),
            now: Timestamp::from_nanos(1_700_000_000_000_000_000),
            hop: 1,
            local: "10.0.0.1:40000".parse().unwrap(),
            sent: 0,
            received: 0,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Turns to another hop.
    pub(crate) fn next_hop(&mut self, local: SocketAddr) {
        self.hop += 1;
        self.local = local;
        (self.sent, self.received) = (0, 0);
    }

    pub(crate) fn sleep(&mut self, time: Duration) -> &mut Self {
        self.now = self.now.after(time);
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= self.now) {
            self.engine.handle_timeout(due);
        }
        self.drain();
        self
    }

    fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
    }

    /// A segment at any place.
    pub(crate) fn segment(
        &mut self,
        direction: Direction,
        flags: TcpFlags,
        seq: u32,
        payload: &[u8],
    ) {
        self.now = self.now.after(Duration::from_micros(2));
        let segment = Segment {
            direction,
            local: self.local,
            upstream: "10.0.0.2:8080".parse().unwrap(),
            seq,
            ack: match direction {
                Direction::ToUpstream => self.received,
                Direction::FromUpstream => self.sent,
            },
            flags,
            window: 500,
            payload,
            packet: &[],
            wire_len: u32::try_from(payload.len()).unwrap(),
            ttl: 64,
            ip_id: None,
            records: RecordHeads::NONE,
        };
        let hop = HopId(self.hop);
        self.engine
            .handle(self.now, Input::Segment { hop, segment });
        self.sleep(Duration::ZERO);
    }

    /// The next bytes of the gateway in one segment.
    pub(crate) fn up(&mut self, payload: &[u8]) -> &mut Self {
        self.segment(Direction::ToUpstream, TcpFlags::ACK, self.sent, payload);
        self.sent = self
            .sent
            .wrapping_add(u32::try_from(payload.len()).unwrap());
        self
    }

    /// The next bytes of the upstream in one segment.
    pub(crate) fn down(&mut self, payload: &[u8]) -> &mut Self {
        self.segment(
            Direction::FromUpstream,
            TcpFlags::ACK,
            self.received,
            payload,
        );
        self.received = self
            .received
            .wrapping_add(u32::try_from(payload.len()).unwrap());
        self
    }

    /// So many bytes of the upstream from a text that is repeated, in full segments.
    pub(crate) fn down_repeated(&mut self, text: &[u8], bytes: usize) -> &mut Self {
        let runs = repeated(text);
        let mut at = 0;
        while at < bytes {
            let run = &runs[at % text.len()..][..SEGMENT.min(bytes - at)];
            self.down(run);
            at += run.len();
        }
        self
    }

    /// The same of the gateway.
    pub(crate) fn up_repeated(&mut self, text: &[u8], bytes: usize) -> &mut Self {
        let runs = repeated(text);
        let mut at = 0;
        while at < bytes {
            let run = &runs[at % text.len()..][..SEGMENT.min(bytes - at)];
            self.up(run);
            at += run.len();
        }
        self
    }

    pub(crate) fn upstream_fin(&mut self) -> &mut Self {
        let flags = TcpFlags::FIN.union(TcpFlags::ACK);
        self.segment(Direction::FromUpstream, flags, self.received, b"");
        self.received = self.received.wrapping_add(1);
        self
    }

    pub(crate) fn gateway_fin(&mut self) -> &mut Self {
        let flags = TcpFlags::FIN.union(TcpFlags::ACK);
        self.segment(Direction::ToUpstream, flags, self.sent, b"");
        self.sent = self.sent.wrapping_add(1);
        self
    }

    /// Ends the observation and gives the causes told.
    pub(crate) fn causes(&mut self) -> Vec<Cause> {
        self.sleep(Duration::from_secs(5));
        self.engine.finish(self.now);
        self.drain();
        self.events.iter().map(|event| event.cause).collect()
    }
}

/// Enough of a text for a full segment from any place of it.
fn repeated(text: &[u8]) -> Vec<u8> {
    text.iter()
        .copied()
        .cycle()
        .take(text.len() + SEGMENT)
        .collect()
}
