//! DNS over TCP: each message behind its length as two bytes (RFC 1035 section 4.2.2, RFC 7766).
//!
//! Streams are short and come from the resolver nearby, so that only what follows in order is read: behind
//! a gap nobody knows where a message begins, and the rest of that direction is left alone.

use core::net::SocketAddr;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::model::{Direction, TcpFlags, Timestamp};

/// Streams followed at once. Resolvers are asked over TCP only where an answer did not fit.
const MAX_STREAMS: usize = 256;

/// Bytes of a message that are kept: more than any answer about addresses has.
const MAX_KEPT: usize = 4096;

/// Length of the length.
const PREFIX: usize = 2;

/// One segment of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which way it went: `ToUpstream` is towards the resolver.
    pub direction: Direction,
    /// Sequence number of the first payload byte, or of the SYN.
    pub seq: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// The captured payload bytes.
    pub payload: &'a [u8],
    /// Payload bytes on the wire.
    pub wire_len: u32,
}

/// The two ends of a stream, and the network namespace or socket that tells it from another one.
type Key = (u64, SocketAddr, SocketAddr);

/// The streams between askers and their resolvers.
#[derive(Debug, Default)]
pub struct Streams {
    open: HashMap<Key, Stream, RandomState>,
}

#[derive(Debug)]
struct Stream {
    last: Timestamp,
    to: Half,
    from: Half,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// The sequence number that comes next, once one was seen.
    next: Option<u32>,
    /// Bytes were missed: nothing can be read any more.
    lost: bool,
    /// Length and begin of the message under way.
    bytes: Vec<u8>,
    /// Its bytes that were passed over.
    passed: usize,
}

impl Streams {
    /// Takes a segment of the stream between `local`, the end that asks, and `resolver`, and hands each
    /// message that it completes to `message`: direction, bytes, and its length on the wire. An empty one
    /// says that bytes of this direction were missed, and that nothing more is read of it.
    pub fn segment(
        &mut self,
        at: Timestamp,
        (place, local, resolver): (u64, SocketAddr, SocketAddr),
        piece: &Piece<'_>,
        mut message: impl FnMut(Direction, &[u8], u32),
    ) {
        let key = (place, local, resolver);
        let opens = piece.flags.contains(TcpFlags::SYN);
        if !self.open.contains_key(&key) && self.open.len() >= MAX_STREAMS {
            self.forget_oldest();
        }
        let stream = self.open.entry(key).or_insert_with(|| Stream {
            last: at,
            to: Half::default(),
            from: Half::default(),
        });
        stream.last = at;
        let half = match piece.direction {
            Direction::ToUpstream => &mut stream.to,
            Direction::FromUpstream => &mut stream.from,
        };
        if opens {
            *half = Half {
                next: Some(piece.seq.wrapping_add(1)),
                ..Half::default()
            };
        }
        half.take(piece, opens, |bytes, wire_len| {
            message(piece.direction, bytes, wire_len);
        });
        if piece.flags.contains(TcpFlags::RST) {
            self.open.remove(&key);
        }
    }

    /// Streams that are followed.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn forget_oldest(&mut self) {
        let oldest = self
            .open
            .iter()
            .min_by_key(|(key, stream)| (stream.last, **key));
        if let Some(key) = oldest.map(|(key, _)| *key) {
            self.open.remove(&key);
        }
    }
}

impl Half {
    fn take(&mut self, piece: &Piece<'_>, opens: bool, mut message: impl FnMut(&[u8], u32)) {
        if self.lost || (piece.wire_len == 0 && self.next.is_none()) {
            return;
        }
        let seq = piece.seq.wrapping_add(u32::from(opens));
        let next = *self.next.get_or_insert(seq);
        // How far the segment begins before what comes next; a gap is a huge number.
        let known = next.wrapping_sub(seq);
        if known > u32::MAX / 2 {
            self.lost = true;
            message(&[], 0);
            return;
        }
        if known >= piece.wire_len {
            return;
        }
        self.next = Some(seq.wrapping_add(piece.wire_len));
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        self.read(piece.payload.get(known..).unwrap_or_default(), &mut message);
        // What was captured short hides where the next message begins.
        self.lost = usize::try_from(piece.wire_len) != Ok(piece.payload.len());
        if self.lost {
            message(&[], 0);
        }
    }

    fn read(&mut self, mut bytes: &[u8], mut message: impl FnMut(&[u8], u32)) {
        while let Some((first, rest)) = bytes.split_first() {
            let Some(prefix) = self.bytes.first_chunk::<PREFIX>() else {
                self.bytes.push(*first);
                bytes = rest;
                // A message without bytes is none.
                if self.bytes == [0; PREFIX] {
                    self.bytes.clear();
                }
                continue;
            };
            let length = usize::from(u16::from_be_bytes(*prefix));
            let have = self.bytes.len() - PREFIX + self.passed;
            let (own, rest) = bytes.split_at(bytes.len().min(length.saturating_sub(have)));
            let room = (PREFIX + MAX_KEPT).saturating_sub(self.bytes.len());
            let (kept, passed) = own.split_at(own.len().min(room));
            self.bytes.extend_from_slice(kept);
            self.passed += passed.len();
            bytes = rest;
            if have + own.len() == length {
                let wire_len = u32::try_from(length).unwrap_or(u32::MAX);
                message(self.bytes.get(PREFIX..).unwrap_or_default(), wire_len);
                self.bytes.clear();
                self.passed = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends() -> (u64, SocketAddr, SocketAddr) {
        (
            0,
            ([10, 0, 0, 1], 40_000).into(),
            ([10, 0, 0, 53], 53).into(),
        )
    }

    fn piece(seq: u32, payload: &[u8]) -> Piece<'_> {
        Piece {
            direction: Direction::ToUpstream,
            seq,
            flags: TcpFlags::ACK,
            payload,
            wire_len: payload.len() as u32,
        }
    }

    fn feed<'a>(pieces: impl IntoIterator<Item = Piece<'a>>) -> Vec<(Vec<u8>, u32)> {
        let mut streams = Streams::default();
        let mut all = Vec::new();
        for piece in pieces {
            streams.segment(Timestamp::default(), ends(), &piece, |_, bytes, len| {
                all.push((bytes.to_vec(), len));
            });
        }
        all
    }

    #[test]
    fn what_comes_again_is_not_read_again() {
        let all = feed([
            piece(10, b"\0\x03ab"),
            piece(10, b"\0\x03ab"),
            piece(12, b"abc\0\x01x"),
        ]);
        assert_eq!(all, [(b"abc".to_vec(), 3), (b"x".to_vec(), 1)]);
    }

    #[test]
    fn behind_a_gap_nothing_is_read_until_the_next_connection() {
        let syn = Piece {
            flags: TcpFlags::SYN,
            ..piece(99, b"")
        };
        let all = feed([
            piece(10, b"\0\x03ab"),
            piece(15, b"\0\x01x"),
            syn,
            piece(100, b"\0\x01y"),
        ]);
        assert_eq!(all, [(vec![], 0), (b"y".to_vec(), 1)]);
    }

    #[test]
    fn a_long_message_is_cut() {
        let mut bytes = vec![0xff, 0xff];
        bytes.extend(vec![7; 65_535]);
        bytes.extend(b"\0\x01z");
        let all = feed(
            bytes
                .chunks(1400)
                .enumerate()
                .map(|(index, chunk)| piece(index as u32 * 1400, chunk)),
        );
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0.len(), all[0].1), (MAX_KEPT, 65_535));
        assert_eq!(all[1], (b"z".to_vec(), 1));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut streams = Streams::default();
        for port in 0..1000 {
            let (place, mut local, resolver) = ends();
            local.set_port(port);
            let at = Timestamp::from_nanos(u64::from(port));
            streams.segment(at, (place, local, resolver), &piece(0, b"a"), |_, _, _| {});
        }
        assert_eq!(streams.len(), MAX_STREAMS);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                bytes.extend((message.len() as u16).to_be_bytes());
                bytes.extend(message);
            }
            let mut pieces = Vec::new();
            let (mut at, mut cuts) = (0, cuts.into_iter().cycle());
            while at < bytes.len() {
                let end = bytes.len().min(at + cuts.next().unwrap());
                pieces.push(piece(at as u32, &bytes[at..end]));
                at = end;
            }
            let read: Vec<_> = feed(pieces).into_iter().map(|(bytes, _)| bytes).collect();
            let wanted: Vec<_> = messages.into_iter().filter(|bytes| !bytes.is_empty()).collect();
            prop_assert_eq!(wanted, read);
        }
    }
}
