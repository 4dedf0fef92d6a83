//! Drives the engine through its public interface: one exchange on a fresh connection.

use core::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hopscope::engine::{Config, Engine};
use hopscope::limits::Limits;
use hopscope::model::{
    Direction, HopEvent, HopId, Input, Process, RecordHeads, Segment, Signal, TcpFlags, TcpState,
    Timestamp, Turn,
};

use crate::fixture::Then;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";

/// A gateway gives up after this long without a byte.
const PATIENCE: Duration = Duration::from_secs(2);

/// Segments hold no more than this.
const SEGMENT_BYTES: usize = 32_000;

/// What the gateway does about the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gateway {
    /// Reads it to its end.
    Takes,
    /// Closes at once, with bytes unread.
    Rejects,
}

struct Hop {
    engine: Engine,
    now: Timestamp,
    local: SocketAddr,
    upstream: SocketAddr,
    /// Next sequence numbers.
    gateway: u32,
    server: u32,
    live: bool,
    events: Vec<HopEvent>,
}

impl Hop {
    fn input(&mut self, input: Input<'_>) {
        self.engine.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now.after(time);
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= until) {
            self.engine.handle_timeout(due);
            self.drain();
        }
        self.now = until;
    }

    fn signal(&mut self, signal: Signal) {
        if self.live {
            let hop = HopId(1);
            self.input(Input::Signal { hop, signal });
        }
    }

    fn state(&mut self, old: TcpState, new: TcpState) {
        self.signal(Signal::State {
            old,
            new,
            errno: None,
            bytes_acked: Some(1),
            rtt_us: None,
            turn: Turn::default(),
        });
    }

    fn segment(&mut self, direction: Direction, flags: TcpFlags, payload: &[u8]) {
        let (seq, ack) = match direction {
            Direction::ToUpstream => (self.gateway, self.server),
            Direction::FromUpstream => (self.server, self.gateway),
        };
        let len = payload.len() as u32;
        let segment = Segment {
            direction,
            local: self.local,
            upstream: self.upstream,
            seq,
            ack,
            flags,
            window: 500,
            payload,
            wire_len: len,
            ttl: 64,
            ip_id: None,
            records: RecordHeads::NONE,
            packet: &[],
        };
        self.input(Input::Segment {
            hop: HopId(1),
            segment,
        });
        let ends = flags.contains(TcpFlags::SYN) || flags.contains(TcpFlags::FIN);
        let next = match direction {
            Direction::ToUpstream => &mut self.gateway,
            Direction::FromUpstream => &mut self.server,
        };
        *next = next.wrapping_add(len + u32::from(ends));
    }

    fn sends(&mut self, direction: Direction, flags: TcpFlags) {
        self.segment(direction, flags.union(TcpFlags::ACK), &[]);
    }

    fn open(&mut self, comm: Option<&str>) {
        let upstream = self.upstream;
        if let Some(comm) = comm {
            let process = Arc::new(Process {
                pid: 42,
                comm: Arc::from(comm),
                ..Process::default()
            });
            self.signal(Signal::Opened {
                process,
                local: None,
                upstream,
                turn: Turn::default(),
                turn_age: None,
                goroutine: None,
            });
        }
        self.segment(Direction::ToUpstream, TcpFlags::SYN, &[]);
        self.sends(Direction::FromUpstream, TcpFlags::SYN);
        self.state(TcpState::SynSent, TcpState::Established);
        self.sends(Direction::ToUpstream, TcpFlags::ACK);
    }

    fn gateway_closes(&mut self, how: TcpFlags) {
        let new = if how == TcpFlags::RST {
            TcpState::Close
        } else {
            TcpState::FinWait1
        };
        self.state(TcpState::Established, new);
        self.sends(Direction::ToUpstream, how);
    }
}

/// Every event of a hop whose upstream answers with `bytes`, cut into segments at `cuts`.
pub(crate) fn exchange(
    comm: Option<&str>,
    bytes: &[u8],
    cuts: &[usize],
    then: Then,
    gateway: Gateway,
) -> Vec<HopEvent> {
    let mut hop = Hop {
        engine: Engine::new(Config::default(), Limits::default()),
        now: Timestamp::from_nanos(1_700_000_000_000_000_000),
        local: "10.0.0.1:40000".parse().unwrap(),
        upstream: "10.0.0.2:8080".parse().unwrap(),
        gateway: 100,
        // The response wraps.
        server: u32::MAX - 30,
        live: comm.is_some(),
        events: Vec::new(),
    };
    hop.open(comm);
    hop.segment(Direction::ToUpstream, TcpFlags::ACK, GET);
    hop.wait(Duration::from_millis(1));
    hop.sends(Direction::FromUpstream, TcpFlags::ACK);
    let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    edges.extend((0..bytes.len()).step_by(SEGMENT_BYTES));
    edges.extend([0, bytes.len()]);
    edges.sort_unstable();
    edges.dedup();
    for pair in edges.windows(2) {
        hop.segment(
            Direction::FromUpstream,
            TcpFlags::ACK,
            &bytes[pair[0]..pair[1]],
        );
    }
    hop.sends(Direction::ToUpstream, TcpFlags::ACK);
    match then {
        Then::Fin => {
            hop.sends(Direction::FromUpstream, TcpFlags::FIN);
            hop.gateway_closes(TcpFlags::FIN);
        }
        Then::Rst => {
            hop.sends(Direction::FromUpstream, TcpFlags::RST);
            hop.state(TcpState::Established, TcpState::Close);
        }
        Then::Hold(_) if gateway == Gateway::Rejects => hop.gateway_closes(TcpFlags::RST),
        Then::Hold(millis) if Duration::from_millis(millis) > PATIENCE => {
            hop.wait(PATIENCE);
            hop.gateway_closes(TcpFlags::FIN);
        }
        Then::Hold(millis) => {
            hop.wait(Duration::from_millis(millis));
            hop.sends(Direction::FromUpstream, TcpFlags::FIN);
            hop.gateway_closes(TcpFlags::FIN);
        }
    }
    hop.wait(Duration::from_mins(5));
    hop.events
}
