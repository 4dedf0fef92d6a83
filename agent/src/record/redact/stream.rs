//! The packets of a capture as two streams of bytes, and what was found in those back into the packets.

use super::{Class, mask};
use crate::input::packet::{IpPacket, parse_ip};
use crate::input::pdu::{is_pdu, parse as parse_pdu};
use crate::model::{Direction, TcpFlags};
use crate::record::capture::CapturedPacket;

/// Bytes of a stream without a gap.
#[derive(Debug)]
pub(super) struct Run {
    /// Offset of the first byte from where the stream begins to be known.
    pub(super) start: i64,
    pub(super) bytes: Vec<u8>,
    /// One for each byte.
    pub(super) classes: Vec<Class>,
    /// Whether it begins with the first byte of the connection.
    pub(super) first: bool,
    /// Index of the first byte of which there are two versions.
    pub(super) conflict: Option<usize>,
}

/// Where the payload of a packet lies in it and in its stream.
#[derive(Clone, Copy, Debug)]
struct Piece {
    direction: Direction,
    packet: usize,
    /// Offset of the payload in the packet, and its length there.
    at: usize,
    len: usize,
    offset: i64,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    to: Vec<Run>,
    from: Vec<Run>,
    pieces: Vec<Piece>,
}

/// What one direction's offsets are counted from.
#[derive(Clone, Copy, Default)]
struct Base {
    syn: Option<u32>,
    first: Option<u32>,
}

impl Streams {
    /// Puts the packets of one hop together; what is no segment is taken out.
    pub(super) fn gather(packets: &mut Vec<CapturedPacket>) -> Self {
        let mut bases = [Base::default(); 2];
        let mut segments = Vec::new();
        packets.retain(|kept| {
            let Some((seq, syn, payload)) = place(kept) else {
                return false;
            };
            let base = &mut bases[usize::from(kept.direction == Direction::FromUpstream)];
            if syn {
                base.syn.get_or_insert(seq);
            }
            base.first.get_or_insert(seq);
            // Padding may follow the payload: it is not taken for some.
            let at = payload.as_ptr().addr() - kept.bytes.as_ptr().addr();
            let (at, len) = if payload.is_empty() {
                (kept.bytes.len(), 0)
            } else {
                (at, payload.len())
            };
            segments.push((kept.direction, seq, at, len));
            true
        });
        let mut streams = Self::default();
        for (packet, (direction, seq, at, len)) in segments.into_iter().enumerate() {
            let base = bases[usize::from(direction == Direction::FromUpstream)];
            let base = base.syn.or(base.first).unwrap_or_default();
            #[expect(
                clippy::cast_possible_wrap,
                reason = "sequence numbers are compared modulo 2^32"
            )]
            let offset = i64::from(seq.wrapping_sub(base) as i32);
            let piece = Piece {
                direction,
                packet,
                at,
                len,
                offset,
            };
            streams.pieces.push(piece);
        }
        for (direction, base) in [Direction::ToUpstream, Direction::FromUpstream]
            .into_iter()
            .zip(bases)
        {
            let runs = streams.put_together(direction, base.syn.is_some(), packets);
            *streams.of(direction) = runs;
        }
        streams
    }

    fn put_together(
        &self,
        direction: Direction,
        syn: bool,
        packets: &[CapturedPacket],
    ) -> Vec<Run> {
        let own = |piece: &&Piece| piece.direction == direction && piece.len > 0;
        let mut pieces: Vec<_> = self.pieces.iter().filter(own).collect();
        // Of copies the longest first, or a short one would tear a hole.
        pieces.sort_by_key(|piece| (piece.offset, std::cmp::Reverse(piece.len), piece.packet));
        let mut runs: Vec<Run> = Vec::new();
        for piece in pieces {
            let payload = packets
                .get(piece.packet)
                .and_then(|kept| kept.bytes.get(piece.at..piece.at + piece.len))
                .unwrap_or_default();
            let fits = |run: &&mut Run| piece.offset <= end(run);
            let Some(run) = runs.last_mut().filter(fits) else {
                runs.push(Run {
                    start: piece.offset,
                    bytes: payload.to_vec(),
                    classes: Vec::new(),
                    first: syn && piece.offset == 0,
                    conflict: None,
                });
                continue;
            };
            let at = usize::try_from(piece.offset - run.start).unwrap_or_default();
            let held = run.bytes.get(at..).unwrap_or_default();
            let differ = held.iter().zip(payload).position(|(a, b)| a != b);
            if let Some(differ) = differ {
                let first = run.conflict.unwrap_or(usize::MAX);
                run.conflict = Some(first.min(at + differ));
            }
            let new = payload.get(held.len()..).unwrap_or_default();
            run.bytes.extend(new);
        }
        for run in &mut runs {
            run.classes = vec![Class::Keep; run.bytes.len()];
        }
        runs
    }

    fn of(&mut self, direction: Direction) -> &mut Vec<Run> {
        match direction {
            Direction::ToUpstream => &mut self.to,
            Direction::FromUpstream => &mut self.from,
        }
    }

    pub(super) fn runs(&self, direction: Direction) -> &[Run] {
        match direction {
            Direction::ToUpstream => &self.to,
            Direction::FromUpstream => &self.from,
        }
    }

    pub(super) fn runs_mut(&mut self, direction: Direction) -> &mut [Run] {
        self.of(direction)
    }

    /// Masks and cuts the packets.
    pub(super) fn apply(&self, packets: &mut [CapturedPacket]) {
        for piece in &self.pieces {
            let Some(kept) = packets.get_mut(piece.packet) else {
                continue;
            };
            // What follows the payload is padding, or of no known meaning.
            kept.bytes.truncate(piece.at + piece.len);
            let runs = self.runs(piece.direction).iter();
            let Some(run) = runs.rev().find(|run| run.start <= piece.offset) else {
                continue;
            };
            let from = usize::try_from(piece.offset - run.start).unwrap_or_default();
            let classes = run.classes.get(from..).unwrap_or_default();
            let classes = classes.get(..piece.len).unwrap_or(classes);
            let payload = kept.bytes.get_mut(piece.at..).unwrap_or_default();
            for (byte, class) in payload.iter_mut().zip(classes) {
                *byte = mask(*byte, *class != Class::Keep);
            }
            let whole = classes.iter().rposition(|class| *class != Class::Body);
            kept.bytes
                .truncate(piece.at + whole.map_or(0, |last| last + 1));
        }
    }
}

/// The place of a packet in its stream, whether that is where the stream begins, and its payload.
fn place(kept: &CapturedPacket) -> Option<(u32, bool, &[u8])> {
    if is_pdu(&kept.bytes) {
        let pdu = parse_pdu(&kept.bytes, kept.wire_len)?;
        return Some((pdu.offset, pdu.offset == 0, pdu.payload));
    }
    let Ok(IpPacket::Tcp(tcp)) = parse_ip(&kept.bytes, kept.wire_len) else {
        return None;
    };
    let syn = tcp.flags.contains(TcpFlags::SYN);
    Some((tcp.seq.wrapping_add(u32::from(syn)), syn, tcp.payload))
}

fn end(run: &Run) -> i64 {
    run.start + i64::try_from(run.bytes.len()).unwrap_or(i64::MAX)
}
