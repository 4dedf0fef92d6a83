//! Puts the payload of one direction in order.
//!
//! Policy for overlaps, as Linux has it (`tcp_data_queue_ofo` in `net/ipv4/tcp_input.c`), since what
//! the receiver's kernel handed to its process is what counts: a byte that was handed over stays as it
//! is. Of the copies of a byte that wait behind a hole, the one in the segment that begins first
//! counts; of segments that begin together the longest, then the first. A hole is given up as soon as
//! the receiver acknowledges beyond it: the bytes did arrive, only the observer missed them. Until
//! then a hole is waited for.

use std::collections::BTreeMap;

use crate::limits::Limits;

/// A run of the stream, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// Bytes that exist but were not captured: cut by the snap length, or missed.
    Gap(u64),
}

/// What a piece costs beside its bytes: its place in the tree and its allocation.
const PIECE_BYTES: usize = 128;

/// A sequence number this far from the expected one belongs to no window (RFC 7323 section 2.2: a
/// window is below 2^30) and is ignored.
const MAX_DISTANCE: i64 = 1 << 30;

/// Puts the payload of one direction in order. Offsets count from the first byte after the SYN, or
/// from the first byte seen when joined mid-stream.
#[derive(Debug, Default)]
pub struct Reassembler {
    /// Sequence number of the byte at `offset`; none before the direction was seen.
    next: Option<u32>,
    /// Bytes handed over, gaps included. Every piece starts above it.
    offset: u64,
    /// Out-of-order pieces by offset.
    pieces: BTreeMap<u64, Piece>,
    /// Sum of the lengths of `pieces`' bytes.
    kept_bytes: usize,
    /// Offset just past the last byte, once a FIN was seen.
    fin: Option<u64>,
    /// Pieces dropped because the caps were reached.
    dropped: u64,
    /// Holes given up.
    lost: u64,
    /// Whether some payload was captured short.
    truncated: bool,
}

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    wire_len: u64,
}

impl Reassembler {
    /// Sets the sequence number of the first byte, unless it is known.
    pub fn start(&mut self, seq: u32) {
        self.next.get_or_insert(seq);
    }

    /// Corrects the sequence number of the first byte, before any was taken.
    pub const fn start_again(&mut self, seq: u32) {
        self.next = Some(seq);
    }

    /// Whether the direction was seen at all.
    pub const fn started(&self) -> bool {
        self.next.is_some()
    }

    /// Bytes handed over, gaps included.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Holes given up.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Pieces dropped because the caps were reached.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether some payload was captured short.
    pub const fn truncated(&self) -> bool {
        self.truncated
    }

    /// Whether a FIN was seen, bytes before it missing or not.
    pub const fn is_ending(&self) -> bool {
        self.fin.is_some()
    }

    /// Whether the stream was handed over up to its FIN.
    pub fn finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.offset >= fin)
    }

    /// Bytes that are missing before the first piece that waits.
    pub fn hole(&self) -> Option<u64> {
        let (at, _) = self.pieces.first_key_value()?;
        Some(at - self.offset)
    }

    /// How far a sequence number is ahead of the next byte, modulo 2^32.
    pub fn distance(&self, seq: u32) -> Option<i64> {
        Some(i64::from(seq.wrapping_sub(self.next?).cast_signed()))
    }

    /// The stream offset of a sequence number, or `None` before the start or far outside the window.
    pub fn offset_of(&self, seq: u32) -> Option<u64> {
        let distance = i64::from(seq.wrapping_sub(self.next?).cast_signed());
        if distance.abs() > MAX_DISTANCE {
            return None;
        }
        self.offset.checked_add_signed(distance)
    }

    /// Notes a FIN that takes the sequence number `seq`.
    pub fn fin(&mut self, seq: u32) {
        if self.fin.is_none() {
            self.fin = self.offset_of(seq);
        }
    }

    /// Takes a segment's payload and hands over what is in order now. Returns whether any of it was
    /// new.
    pub fn push(
        &mut self,
        seq: u32,
        payload: &[u8],
        wire_len: u32,
        limits: &Limits,
        mut sink: impl FnMut(Chunk<'_>),
    ) -> bool {
        if wire_len == 0 {
            return false;
        }
        self.start(seq);
        let Some(next) = self.next else { return false };
        let distance = i64::from(seq.wrapping_sub(next).cast_signed());
        if distance.abs() > MAX_DISTANCE {
            self.dropped += 1;
            return false;
        }
        let wire_len = u64::from(wire_len);
        if distance > 0 {
            let Some(at) = self.offset.checked_add_signed(distance) else {
                return false;
            };
            return self.keep(at, payload, wire_len, limits);
        }
        let seen = distance.unsigned_abs();
        if seen >= wire_len {
            return false;
        }
        self.hand_over(seen, payload, wire_len, &mut sink);
        self.drain(&mut sink);
        true
    }

    /// Moves past a segment that is next in order, where nothing waits behind a hole. Returns false,
    /// with nothing done, where it is not.
    pub fn pass(&mut self, seq: u32, wire_len: u32) -> bool {
        let next = self.next == Some(seq) && self.pieces.is_empty() && self.fin.is_none();
        if next {
            self.advance(u64::from(wire_len));
        }
        next
    }

    /// Forgets where the stream stands: bytes that nobody needs passed unseen, and the next segment says
    /// where it goes on. Offsets go on as if there had been none.
    pub fn resume(&mut self) {
        self.next = None;
        self.pieces.clear();
        self.kept_bytes = 0;
        self.fin = None;
    }

    /// Memory for pieces kept until what is before them comes.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes + self.pieces.len() * PIECE_BYTES
    }

    /// Notes that the receiver acknowledged everything before `ack`: holes below it are given up.
    pub fn acknowledged(&mut self, ack: u32, mut sink: impl FnMut(Chunk<'_>)) {
        let Some(to) = self.offset_of(ack).map(|to| self.before_fin(to)) else {
            return;
        };
        while self.offset < to {
            let hole_end = self
                .pieces
                .first_key_value()
                .map_or(to, |(&at, _)| at.min(to));
            let hole = hole_end - self.offset;
            self.lost += 1;
            self.advance(hole);
            sink(Chunk::Gap(hole));
            self.drain(&mut sink);
        }
    }

    /// Whether an acknowledgement up to this place is of bytes that were all handed over.
    pub fn is_complete_to(&self, offset: u64) -> bool {
        self.before_fin(offset) <= self.offset
    }

    /// The place, or that of the FIN where that is before: it takes a number and is no byte.
    fn before_fin(&self, offset: u64) -> u64 {
        self.fin.map_or(offset, |fin| offset.min(fin))
    }

    /// Hands over a segment whose first `seen` bytes are known already.
    fn hand_over(
        &mut self,
        seen: u64,
        payload: &[u8],
        wire_len: u64,
        sink: &mut impl FnMut(Chunk<'_>),
    ) {
        let fresh = usize::try_from(seen)
            .ok()
            .and_then(|seen| payload.get(seen..))
            .unwrap_or(&[]);
        let mut missing = wire_len - seen;
        if !fresh.is_empty() {
            // A payload longer than its wire length would be a source's mistake: cut it.
            let take = fresh
                .len()
                .min(usize::try_from(missing).unwrap_or(usize::MAX));
            let (fresh, _) = fresh.split_at(take);
            self.advance(fresh.len() as u64);
            missing -= fresh.len() as u64;
            sink(Chunk::Data(fresh));
        }
        if missing > 0 {
            self.truncated = true;
            self.advance(missing);
            sink(Chunk::Gap(missing));
        }
    }

    /// Hands over the kept pieces that are in order now.
    fn drain(&mut self, sink: &mut impl FnMut(Chunk<'_>)) {
        while let Some(entry) = self.pieces.first_entry() {
            let at = *entry.key();
            if at > self.offset {
                return;
            }
            let piece = entry.remove();
            self.kept_bytes -= piece.bytes.len();
            let seen = self.offset - at;
            if seen < piece.wire_len {
                self.hand_over(seen, &piece.bytes, piece.wire_len, sink);
            }
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "sequence numbers count modulo 2^32"
    )]
    fn advance(&mut self, bytes: u64) {
        self.offset += bytes;
        self.next = self.next.map(|next| next.wrapping_add(bytes as u32));
    }

    /// Keeps a piece for later. One that begins where a known one does replaces that only if it is
    /// longer.
    fn keep(&mut self, at: u64, payload: &[u8], wire_len: u64, limits: &Limits) -> bool {
        if self
            .pieces
            .get(&at)
            .is_some_and(|known| known.wire_len >= wire_len)
        {
            return false;
        }
        if self.pieces.len() >= limits.reassembly_pieces
            || self.kept_bytes + payload.len() > limits.reassembly_bytes
        {
            self.dropped += 1;
            return false;
        }
        self.kept_bytes += payload.len();
        if let Some(old) = self.pieces.insert(
            at,
            Piece {
                bytes: payload.to_vec(),
                wire_len,
            },
        ) {
            self.kept_bytes -= old.bytes.len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What came out: bytes as they are, gaps as runs of `?`.
    fn text(out: &mut Vec<u8>, chunk: Chunk<'_>) {
        match chunk {
            Chunk::Data(bytes) => out.extend_from_slice(bytes),
            Chunk::Gap(bytes) => out.extend(std::iter::repeat_n(b'?', bytes as usize)),
        }
    }

    struct Stream {
        reassembler: Reassembler,
        limits: Limits,
        out: Vec<u8>,
    }

    impl Stream {
        fn at(seq: u32) -> Self {
            let mut reassembler = Reassembler::default();
            reassembler.start(seq);
            Self {
                reassembler,
                limits: Limits::default(),
                out: Vec::new(),
            }
        }

        fn push(&mut self, seq: u32, bytes: &[u8]) -> bool {
            self.push_short(seq, bytes, bytes.len() as u32)
        }

        fn push_short(&mut self, seq: u32, bytes: &[u8], wire_len: u32) -> bool {
            let Self {
                reassembler,
                limits,
                out,
            } = self;
            reassembler.push(seq, bytes, wire_len, limits, |chunk| text(out, chunk))
        }

        fn ack(&mut self, seq: u32) {
            let Self {
                reassembler, out, ..
            } = self;
            reassembler.acknowledged(seq, |chunk| text(out, chunk));
        }
    }

    #[test]
    fn in_order_across_the_wrap() {
        let mut stream = Stream::at(u32::MAX - 1);
        assert!(stream.push(u32::MAX - 1, b"abc"));
        assert!(stream.push(1, b"def"));
        assert_eq!(stream.out, b"abcdef");
        assert_eq!(stream.reassembler.offset(), 6);
    }

    #[test]
    fn a_retransmission_is_not_new() {
        let mut stream = Stream::at(10);
        assert!(stream.push(10, b"abc"));
        assert!(!stream.push(10, b"abc"));
        assert!(
            !stream.push(9, b"x"),
            "a keep-alive probe repeats the last byte"
        );
        assert!(stream.push(10, b"abcde"), "one that carries more is");
        assert_eq!(stream.out, b"abcde");
    }

    #[test]
    fn what_was_handed_over_stays_and_what_begins_first_counts() {
        let mut stream = Stream::at(0);
        stream.push(2, b"CD");
        stream.push(0, b"abcdef");
        assert_eq!(
            stream.out, b"abcdef",
            "the kept piece was overtaken as a whole"
        );
        stream.push(4, b"XXgh");
        assert_eq!(stream.out, b"abcdefgh");
    }

    #[test]
    fn out_of_order_waits() {
        let mut stream = Stream::at(0);
        stream.push(3, b"def");
        assert_eq!(stream.out, b"");
        stream.push(0, b"abc");
        assert_eq!(stream.out, b"abcdef");
    }

    #[test]
    fn an_acknowledged_hole_is_given_up_and_counted() {
        let mut stream = Stream::at(0);
        stream.push(3, b"def");
        stream.ack(3);
        assert_eq!(stream.out, b"???def");
        stream.ack(6);
        assert_eq!(stream.reassembler.lost(), 1);
    }

    #[test]
    fn a_short_capture_leaves_a_gap_that_is_not_a_loss() {
        let mut stream = Stream::at(0);
        stream.push_short(0, b"ab", 5);
        stream.push(5, b"fg");
        assert_eq!(stream.out, b"ab???fg");
        assert_eq!(stream.reassembler.lost(), 0);
        assert!(stream.reassembler.truncated());
    }

    #[test]
    fn the_fin_is_not_a_byte() {
        let mut stream = Stream::at(0);
        stream.reassembler.fin(3);
        assert!(!stream.reassembler.finished());
        stream.push(0, b"abc");
        assert!(stream.reassembler.finished());
        stream.ack(4);
        assert_eq!(stream.out, b"abc");
    }

    #[test]
    fn caps_drop_and_count() {
        let mut stream = Stream::at(0);
        stream.limits.reassembly_pieces = 2;
        stream.push(2, b"c");
        stream.push(4, b"e");
        stream.push(6, b"g");
        assert_eq!(stream.reassembler.dropped(), 1);
        stream.push(0, b"ab");
        stream.ack(7);
        assert_eq!(stream.out, b"abc?e??");
    }

    #[test]
    fn far_away_sequence_numbers_are_ignored() {
        let mut stream = Stream::at(0);
        assert!(!stream.push(1 << 31, b"x"));
        assert_eq!(stream.reassembler.dropped(), 1);
        stream.ack(1 << 31);
        assert_eq!(stream.out, b"");
    }

    proptest! {
        /// Any order and any overlap of true segments gives the stream, once all have been pushed.
        #[test]
        fn any_order_gives_the_same_stream(
            seed in any::<u32>(),
            stream in proptest::collection::vec(any::<u8>(), 1..200),
            cuts in proptest::collection::vec((0_usize..200, 1_usize..40), 1..60),
        ) {
            let mut subject = Stream::at(seed);
            for (at, len) in cuts.iter().copied().chain([(0, stream.len())]) {
                let at = at.min(stream.len() - 1);
                let end = (at + len).min(stream.len());
                subject.push(seed.wrapping_add(at as u32), &stream[at..end]);
            }
            prop_assert_eq!(&subject.out, &stream);
            prop_assert_eq!(subject.reassembler.kept_bytes, 0);
        }
    }
}
