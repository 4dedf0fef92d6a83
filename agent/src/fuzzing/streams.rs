//! One direction's bytes: reassembly against a naive model, requests and responses in any split.

use super::Bytes;
use crate::http1::{
    Finding, RequestEvent, RequestKind, RequestParser, ResponseEvent, ResponseParser,
};
use crate::limits::Limits;
use crate::tcp::{Chunk, Reassembler};

/// Operations of one input that are looked at: the model is quadratic.
const MAX_OPERATIONS: usize = 300;

/// A byte of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Seen(u8),
    Missed,
}

/// A segment's payload: its first position, its length on the wire, and what was captured of it.
struct Copied {
    start: u64,
    length: u64,
    bytes: Vec<u8>,
}

/// What a reassembler has to do, byte by byte: nothing is merged, nothing is clever.
#[derive(Default)]
struct Model {
    /// Everything that was ever pushed and not refused.
    pieces: Vec<Copied>,
    out: Vec<Slot>,
    fin: Option<u64>,
    holes: u64,
}

impl Model {
    fn offset(&self) -> u64 {
        self.out.len() as u64
    }

    /// The byte at the offset: of the pieces that cover it the one that begins first, of those the
    /// longest, of those the first. A byte that was handed over is never looked at again.
    fn covered(&self) -> Option<Slot> {
        let at = self.offset();
        let mut best: Option<&Copied> = None;
        for piece in &self.pieces {
            let covers = (piece.start..piece.start + piece.length).contains(&at);
            let better = |best: &Copied| {
                piece.start < best.start
                    || (piece.start == best.start && piece.length > best.length)
            };
            if covers && best.is_none_or(better) {
                best = Some(piece);
            }
        }
        best.map(|piece| {
            let index = usize::try_from(at - piece.start).unwrap_or(usize::MAX);
            let seen = piece.bytes.get(index);
            seen.map_or(Slot::Missed, |byte| Slot::Seen(*byte))
        })
    }

    fn hand_over(&mut self) {
        while let Some(slot) = self.covered() {
            self.out.push(slot);
        }
    }

    fn push(&mut self, at: u64, length: u64, bytes: &[u8]) -> bool {
        let known = |piece: &Copied| piece.start == at && piece.length >= length;
        let waits = at > self.offset();
        if length == 0 || (waits && self.pieces.iter().any(known)) {
            return false;
        }
        let before = self.offset();
        if waits || at + length > before {
            self.pieces.push(Copied {
                start: at,
                length,
                bytes: bytes.to_vec(),
            });
        }
        self.hand_over();
        waits || self.offset() > before
    }

    fn acknowledged(&mut self, to: u64) {
        let to = self.fin.map_or(to, |fin| to.min(fin));
        let mut in_hole = false;
        while self.offset() < to {
            if self.covered().is_some() {
                self.hand_over();
                in_hole = false;
            } else {
                self.holes += u64::from(!in_hole);
                in_hole = true;
                self.out.push(Slot::Missed);
            }
        }
        self.hand_over();
    }
}

/// Notes what a reassembler hands over.
fn note(out: &mut Vec<Slot>, chunk: Chunk<'_>) {
    match chunk {
        Chunk::Data(bytes) => out.extend(bytes.iter().copied().map(Slot::Seen)),
        Chunk::Gap(bytes) => out.extend((0..bytes).map(|_| Slot::Missed)),
    }
}

/// Segments, acknowledgements and a FIN in any order, against a naive model.
///
/// # Panics
///
/// Where reassembler and model disagree.
pub fn reassembly(data: &[u8]) {
    let mut data = Bytes(data);
    let isn = data.u32();
    let roomy = Limits {
        reassembly_pieces: usize::MAX,
        reassembly_bytes: usize::MAX,
        ..Limits::default()
    };
    let tight = Limits {
        reassembly_pieces: 3,
        reassembly_bytes: 64,
        ..Limits::default()
    };
    let mut subject = Reassembler::default();
    let mut capped = Reassembler::default();
    // Takes the short way wherever it is offered.
    let mut quick = Reassembler::default();
    subject.start(isn);
    quick.start(isn);
    capped.start(isn);
    let (mut out, mut capped_out) = (Vec::new(), Vec::new());
    let mut model = Model::default();
    for number in 0..MAX_OPERATIONS {
        if data.is_empty() {
            break;
        }
        let operation = data.u8();
        // Around the offset, where the interesting places are.
        let at = (model.offset() + u64::from(data.u8())).saturating_sub(32);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "sequence numbers count modulo 2^32"
        )]
        let seq = isn.wrapping_add(at as u32);
        match operation % 8 {
            0..=4 => {
                let length = u32::from(data.u8() % 80);
                let kept = match operation % 8 {
                    4 => length / 2,
                    _ => length,
                };
                // Every copy of a byte is another one, so that the model sees which was taken.
                let bytes: Vec<_> = (0..kept)
                    .map(|index| (number as u64 * 37 + at + u64::from(index)).to_le_bytes()[0])
                    .collect();
                let fresh = subject.push(seq, &bytes, length, &roomy, |chunk| {
                    note(&mut out, chunk);
                });
                let expected = model.push(at, u64::from(length), &bytes);
                assert_eq!(fresh, expected, "whether operation {number} was new");
                capped.push(seq, &bytes, length, &tight, |chunk| {
                    note(&mut capped_out, chunk);
                });
                let before = quick.offset();
                if length > 0 && kept == length && quick.pass(seq, length) {
                    let whole = before == at && subject.offset() == before + u64::from(length);
                    assert!(fresh && whole, "operation {number} was passed");
                } else {
                    let new = quick.push(seq, &bytes, length, &roomy, |_| {});
                    assert_eq!(new, fresh, "whether operation {number} was new");
                }
            }
            5 | 6 => {
                subject.acknowledged(seq, |chunk| note(&mut out, chunk));
                quick.acknowledged(seq, |_| {});
                capped.acknowledged(seq, |chunk| note(&mut capped_out, chunk));
                model.acknowledged(at);
            }
            _ => {
                subject.fin(seq);
                quick.fin(seq);
                capped.fin(seq);
                model.fin = model.fin.or(Some(at));
            }
        }
        assert_eq!(out, model.out, "after operation {number}");
        assert_eq!(subject.offset(), model.offset());
        let seen = |one: &Reassembler| (one.offset(), one.lost(), one.kept_bytes(), one.finished());
        assert_eq!(seen(&quick), seen(&subject), "after operation {number}");
        assert_eq!(subject.lost(), model.holes);
        let finished = model.fin.is_some_and(|fin| model.offset() >= fin);
        assert_eq!(subject.finished(), finished);
        assert_eq!(capped.offset(), capped_out.len() as u64);
    }
}

/// A piece of a stream as the parsers get it.
#[derive(Clone, Copy)]
enum Piece<'a> {
    Data(&'a [u8]),
    Gap(u64),
}

/// A stream with one gap at most, and where it is to be cut.
struct Stream {
    before: Vec<u8>,
    gap: u64,
    after: Vec<u8>,
    cuts: Vec<u8>,
}

impl Stream {
    /// Whether it goes with HEAD, and the stream itself.
    fn read(data: &[u8]) -> (bool, Self) {
        let mut data = Bytes(data);
        let flags = data.u8();
        let count = data.index(32);
        let cuts = data.slice(count).to_vec();
        let (mut at, mut gap) = (0, 0);
        if flags & 2 != 0 {
            at = usize::from(data.u16());
            gap = u64::from(data.u16());
        }
        let padding = if flags & 4 == 0 {
            0
        } else {
            usize::from(data.u8()) * 512
        };
        let (before, after) = data.0.split_at(at.min(data.0.len()));
        let mut before = before.to_vec();
        before.resize(before.len() + padding, b'a');
        let stream = Self {
            before,
            gap,
            after: after.to_vec(),
            cuts,
        };
        (flags & 1 != 0, stream)
    }

    fn whole(&self) -> Vec<Piece<'_>> {
        let parts = [
            Piece::Data(&self.before),
            Piece::Gap(self.gap),
            Piece::Data(&self.after),
        ];
        if self.gap == 0 {
            // Nothing lies between the two, so it is a split too.
            return vec![parts[0], parts[2]];
        }
        parts.to_vec()
    }

    /// The same stream in pieces, byte by byte where no cut is given.
    fn split(&self) -> Vec<Piece<'_>> {
        let mut lengths = self.cuts.iter().copied().chain([1]).cycle();
        let mut length = || match lengths.next() {
            Some(255) => 4096,
            Some(length) => usize::from(length).max(1),
            None => 1,
        };
        let mut pieces = Vec::new();
        for part in self.whole() {
            match part {
                Piece::Data(mut rest) => {
                    while !rest.is_empty() {
                        let (piece, behind) = rest.split_at(length().min(rest.len()));
                        pieces.push(Piece::Data(piece));
                        rest = behind;
                    }
                }
                Piece::Gap(mut rest) => {
                    while rest > 0 {
                        let piece = (length() as u64 * 16).min(rest);
                        pieces.push(Piece::Gap(piece));
                        rest -= piece;
                    }
                }
            }
        }
        pieces
    }
}

/// What happened in a direction, with its position.
#[derive(Debug, PartialEq)]
enum Step {
    Request(u64, RequestEvent),
    Response(u64, ResponseEvent),
    /// A response ended.
    Over(Option<u16>, Vec<Finding>),
}

fn follow_responses(stream: &[Piece<'_>], kind: RequestKind) -> (Vec<Step>, ResponseParser) {
    let mut parser = ResponseParser::new(16 * 1024);
    let mut steps = Vec::new();
    let mut at = 0;
    for piece in stream {
        let (mut bytes, mut gap) = match *piece {
            Piece::Data(bytes) => (bytes, 0),
            Piece::Gap(gap) => (&[][..], gap),
        };
        loop {
            let missed = gap > 0;
            let (taken, event) = if missed {
                let (taken, event) = parser.skip(gap);
                assert!(taken <= gap);
                gap -= taken;
                (taken, event)
            } else {
                let (taken, event) = parser.take(bytes, kind);
                bytes = &bytes[taken..];
                (taken as u64, event)
            };
            at += taken;
            match event {
                // A gap that a response begins in is taken whole.
                Some(event @ ResponseEvent::Begin) if missed => {
                    steps.push(Step::Response(0, event));
                }
                Some(event) => steps.push(Step::Response(at, event)),
                None if bytes.is_empty() && gap == 0 => break,
                None => assert!(taken > 0, "no progress"),
            }
            if event == Some(ResponseEvent::End) {
                steps.push(Step::Over(parser.status(), parser.findings()));
                parser.reset();
            }
        }
    }
    (steps, parser)
}

/// Responses: the same bytes in any split give the same events, findings and stage.
///
/// # Panics
///
/// Where they do not.
pub fn response(data: &[u8]) {
    let (head, stream) = Stream::read(data);
    let kind = if head {
        RequestKind::Head
    } else {
        RequestKind::Plain
    };
    let (whole_steps, whole) = follow_responses(&stream.whole(), kind);
    let (split_steps, split) = follow_responses(&stream.split(), kind);
    assert_eq!(split_steps, whole_steps);
    assert_eq!(split.findings(), whole.findings());
    assert_eq!(split.stage(), whole.stage());
    assert_eq!(split.status(), whole.status());
    assert_eq!(split.missing(), whole.missing());
    assert_eq!(split.event_stream(), whole.event_stream());
    assert_eq!(split.partial_head(), whole.partial_head());
    assert_eq!(split.is_broken(), whole.is_broken());
}

fn follow_requests(stream: &[Piece<'_>]) -> (Vec<Step>, RequestParser) {
    let mut parser = RequestParser::default();
    let mut steps = Vec::new();
    let mut at = 0;
    for piece in stream {
        match *piece {
            Piece::Data(mut bytes) => loop {
                let (taken, event) = parser.take(bytes);
                bytes = &bytes[taken..];
                at += taken as u64;
                match event {
                    // Nothing more is read, so that it does not matter how much of it was.
                    Some(event @ RequestEvent::Opaque(_)) => steps.push(Step::Request(0, event)),
                    Some(event) => steps.push(Step::Request(at, event)),
                    None if bytes.is_empty() => break,
                    None => assert!(taken > 0, "no progress"),
                }
            },
            Piece::Gap(gap) => {
                if parser.skip(gap) {
                    steps.push(Step::Request(0, RequestEvent::End));
                }
                at += gap;
            }
        }
    }
    (steps, parser)
}

/// Requests: the same bytes in any split give the same events.
///
/// # Panics
///
/// Where they do not.
pub fn request(data: &[u8]) {
    let (_, stream) = Stream::read(data);
    let (whole_steps, whole) = follow_requests(&stream.whole());
    let (split_steps, split) = follow_requests(&stream.split());
    assert_eq!(split_steps, whole_steps);
    assert_eq!(split.is_lost(), whole.is_lost());
}
