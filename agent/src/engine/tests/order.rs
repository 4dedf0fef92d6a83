//! Captures of several queues show the segments of a burst in any order, and some of them twice: the
//! verdicts stay what they are.

use proptest::prelude::*;

use super::sim::{GET, OK, Sim};
use crate::model::{Cause, Direction, Phase, TcpFlags};

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Fin,
    Rst,
    Gateway,
    Open,
}

/// One run of bytes that a side sends without waiting.
#[derive(Clone, Debug)]
struct Burst {
    direction: Direction,
    bytes: Vec<u8>,
    /// Lengths of its segments.
    cuts: Vec<usize>,
    /// Sort keys of its segments, and which of them come twice.
    order: Vec<(u8, bool)>,
    fin: bool,
}

/// A life of a hop: requests, each with its response, and the end.
fn life() -> impl Strategy<Value = (Vec<Burst>, End)> {
    let request = prop::sample::select(vec![
        GET.to_vec(),
        b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
        GET.repeat(2),
    ]);
    let response = prop::sample::select(vec![
        OK.to_vec(),
        b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".to_vec(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX".to_vec(),
        b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        b"HTTP/1.0 200 OK\r\n\r\nuntil close".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        // Bytes that nobody asked for: a farewell, what is no response, and one response too many.
        [OK, b"HTTP/1.1 408 Bye\r\nContent-Length: 0\r\n\r\n"].concat(),
        [OK, b"junk"].concat(),
        OK.repeat(2),
        b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(),
        Vec::new(),
    ]);
    let shape = (
        prop::collection::vec(1_usize..30, 0..8),
        prop::collection::vec((any::<u8>(), any::<bool>()), 9),
    );
    let exchange = (request, shape.clone(), response, shape);
    let end = prop::sample::select(vec![End::Fin, End::Rst, End::Gateway, End::Open]);
    (prop::collection::vec(exchange, 1..4), end).prop_map(|(exchanges, end)| {
        let burst = |direction, bytes, (cuts, order)| Burst {
            direction,
            bytes,
            cuts,
            order,
            fin: false,
        };
        let mut bursts: Vec<_> = exchanges
            .into_iter()
            .flat_map(|(request, sent, response, received)| {
                [
                    burst(Direction::ToUpstream, request, sent),
                    burst(Direction::FromUpstream, response, received),
                ]
            })
            .collect();
        if let (End::Fin, Some(last)) = (end, bursts.last_mut()) {
            last.fin = true;
        }
        (bursts, end)
    })
}

impl Burst {
    /// Its segments: offset, bytes, and whether the FIN is on it.
    fn segments(&self) -> Vec<(usize, &[u8], bool)> {
        let mut segments = Vec::new();
        let (mut at, mut rest) = (0, &self.bytes[..]);
        for cut in self.cuts.iter().copied().chain([usize::MAX]) {
            let (segment, behind) = rest.split_at(cut.min(rest.len()));
            if segment.is_empty() {
                break;
            }
            segments.push((at, segment, false));
            at += segment.len();
            rest = behind;
        }
        match segments.last_mut() {
            Some(last) => last.2 = self.fin,
            None if self.fin => segments.push((at, &[], true)),
            None => {}
        }
        segments
    }

    /// The same out of order, with some of them twice.
    fn shuffled(&self) -> Vec<(usize, &[u8], bool)> {
        let mut keyed: Vec<_> = self
            .segments()
            .into_iter()
            .zip(&self.order)
            .flat_map(|(segment, &(key, twice))| {
                let again = twice.then_some((key.wrapping_mul(167), segment));
                [(key, segment)].into_iter().chain(again)
            })
            .collect();
        keyed.sort_by_key(|(key, _)| *key);
        keyed.into_iter().map(|(_, segment)| segment).collect()
    }
}

/// What is said of a life: cause, phase and place of each failure.
fn verdicts(bursts: &[Burst], end: End, shuffle: bool) -> Vec<(Cause, Phase, Option<u32>)> {
    let mut sim = Sim::packets();
    sim.open();
    for burst in bursts {
        let segments = if shuffle {
            burst.shuffled()
        } else {
            burst.segments()
        };
        sim.burst(burst.direction, &segments, burst.bytes.len(), burst.fin);
        sim.ms(30);
    }
    match end {
        End::Fin => sim.gateway_fin(),
        End::Rst => sim.upstream_rst(),
        End::Gateway => sim.ms(2000).gateway_fin(),
        End::Open => &mut sim,
    };
    let told = sim.events();
    told.into_iter()
        .map(|event| {
            let ordinal = event.exchange.map(|exchange| exchange.ordinal);
            (event.cause, event.phase, ordinal)
        })
        .collect()
}

impl Sim {
    /// Sends segments of the next bytes of a side, and lets the other acknowledge all of them.
    fn burst(
        &mut self,
        direction: Direction,
        segments: &[(usize, &[u8], bool)],
        length: usize,
        fin: bool,
    ) {
        let begin = self.next_seq(direction);
        for &(at, bytes, fin) in segments {
            let flags = if fin {
                TcpFlags::ACK.union(TcpFlags::FIN)
            } else {
                TcpFlags::ACK
            };
            let seq = begin.wrapping_add(at as u32);
            self.segment(direction, flags, seq, bytes, bytes.len() as u32);
        }
        self.sent(direction, length as u32 + u32::from(fin));
    }
}

proptest! {
    #[test]
    fn segments_of_a_burst_in_any_order_give_the_same_causes((bursts, end) in life()) {
        let in_order = verdicts(&bursts, end, false);
        prop_assert_eq!(verdicts(&bursts, end, true), in_order);
    }

    #[test]
    fn a_burst_in_any_segments_gives_the_same_causes((bursts, end) in life()) {
        let whole: Vec<_> = bursts
            .iter()
            .map(|burst| Burst { cuts: Vec::new(), ..burst.clone() })
            .collect();
        let at_once = verdicts(&whole, end, false);
        prop_assert_eq!(verdicts(&bursts, end, false), at_once);
    }
}
