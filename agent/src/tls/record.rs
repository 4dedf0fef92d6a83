//! Records of one direction (RFC 8446 section 5.1, RFC 5246 section 6.2.1): where each begins and ends.

/// Types of records.
pub(super) mod content {
    pub(in crate::tls) const CHANGE_CIPHER_SPEC: u8 = 20;
    pub(in crate::tls) const ALERT: u8 = 21;
    pub(in crate::tls) const HANDSHAKE: u8 = 22;
    pub(in crate::tls) const APPLICATION_DATA: u8 = 23;
    /// RFC 6520.
    pub(in crate::tls) const HEARTBEAT: u8 = 24;
}

/// Length of a record header.
const HEADER: usize = 5;

/// Longest record: RFC 5246 section 6.2.3.
const MAX_LEN: u16 = (1 << 14) + 2048;
/// Longest record of TLS 1.3 (RFC 8446 section 5.2); in older versions few are longer.
const MAX_LIKELY_LEN: u16 = (1 << 14) + 256;

/// Where a direction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two records, or in a header.
    Header { bytes: [u8; HEADER], have: usize },
    /// In a body.
    Body { kind: u8, len: u16, left: u16 },
    /// Bytes came that are no record.
    Foreign,
    /// Where a record begins is not known.
    Lost,
}

/// What bytes of a direction are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// A header is complete.
    Begin { kind: u8, len: u16 },
    /// Bytes of the body.
    Body(&'a [u8]),
    /// Bytes of the body that were not captured.
    Gap(u64),
    /// The record is over.
    End { kind: u8, len: u16 },
    /// These bytes, or those held back and these, are no record.
    Foreign { held: [u8; HEADER], count: usize },
    /// More of the same.
    More(&'a [u8]),
    /// It is not known any more where a record begins.
    Lost,
}

/// The records of one direction.
#[derive(Debug)]
pub(super) struct Records {
    state: State,
    /// Whether the place of every header followed from the one before, from the first byte on.
    sure: bool,
}

impl Records {
    /// Begins with the first byte of a direction.
    pub(super) const fn new() -> Self {
        Self {
            state: State::Header {
                bytes: [0; HEADER],
                have: 0,
            },
            sure: true,
        }
    }

    /// Begins anywhere.
    pub(super) const fn joined() -> Self {
        Self {
            state: State::Lost,
            sure: false,
        }
    }

    /// Whether the place of every header followed from the one before.
    pub(super) const fn is_sure(&self) -> bool {
        self.sure
    }

    /// Bytes of the record that is not complete.
    pub(super) fn partial(&self) -> u32 {
        match self.state {
            State::Header { have, .. } => u32::try_from(have).unwrap_or(u32::MAX),
            State::Body { len, left, .. } => 5 + u32::from(len - left),
            State::Foreign | State::Lost => 0,
        }
    }

    /// Looks at the beginning of a run of bytes: where the place is lost, a record may begin here. Returns
    /// whether the place is known.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> bool {
        if self.state == State::Lost && likely_records(bytes) {
            self.state = State::Header {
                bytes: [0; HEADER],
                have: 0,
            };
        }
        self.state != State::Lost || bytes.is_empty()
    }

    /// Takes bytes up to the next thing worth telling. It is to be called until it has nothing to tell
    /// and nothing is left.
    pub(super) fn take<'a>(&mut self, bytes: &'a [u8]) -> (usize, Option<Piece<'a>>) {
        match &mut self.state {
            State::Lost => (bytes.len(), None),
            State::Foreign if bytes.is_empty() => (0, None),
            State::Foreign => (bytes.len(), Some(Piece::More(bytes))),
            State::Body { kind, len, left: 0 } => {
                let piece = Piece::End {
                    kind: *kind,
                    len: *len,
                };
                self.state = State::Header {
                    bytes: [0; HEADER],
                    have: 0,
                };
                (0, Some(piece))
            }
            State::Body { .. } if bytes.is_empty() => (0, None),
            State::Body { left, .. } => {
                let taken = bytes.len().min(usize::from(*left));
                let (body, _) = bytes.split_at(taken);
                *left -= u16::try_from(taken).unwrap_or(*left);
                (taken, Some(Piece::Body(body)))
            }
            State::Header { .. } => self.header(bytes),
        }
    }

    fn header<'a>(&mut self, bytes: &[u8]) -> (usize, Option<Piece<'a>>) {
        let State::Header {
            bytes: header,
            have,
        } = &mut self.state
        else {
            return (0, None);
        };
        for (index, &byte) in bytes.iter().enumerate() {
            let Some(slot) = header.get_mut(*have) else {
                break;
            };
            *slot = byte;
            *have += 1;
            let seen = header.get(..*have).unwrap_or_default();
            if !begins_record(seen) {
                let (held, count) = (*header, *have);
                if self.sure {
                    self.state = State::Foreign;
                    return (index + 1, Some(Piece::Foreign { held, count }));
                }
                self.state = State::Lost;
                return (bytes.len(), Some(Piece::Lost));
            }
            if *have == HEADER {
                let [kind, _, _, high, low] = *header;
                let len = u16::from_be_bytes([high, low]);
                self.state = State::Body {
                    kind,
                    len,
                    left: len,
                };
                return (index + 1, Some(Piece::Begin { kind, len }));
            }
        }
        (bytes.len(), None)
    }

    /// Takes bytes that were not captured, up to the next thing worth telling.
    pub(super) fn skip<'a>(&mut self, gap: u64) -> (u64, Option<Piece<'a>>) {
        match &mut self.state {
            State::Body { left: 0, .. } => {
                let (_, piece) = self.take(&[]);
                match piece {
                    Some(Piece::End { kind, len }) => (0, Some(Piece::End { kind, len })),
                    _ => (0, None),
                }
            }
            State::Body { left, .. } if gap > 0 => {
                let taken = u16::try_from(gap).map_or(*left, |gap| gap.min(*left));
                *left -= taken;
                (taken.into(), Some(Piece::Gap(taken.into())))
            }
            State::Header { .. } | State::Foreign if gap > 0 => {
                self.state = State::Lost;
                self.sure = false;
                (gap, Some(Piece::Lost))
            }
            _ => (gap, None),
        }
    }
}

/// Whether bytes may begin a record.
fn begins_record(bytes: &[u8]) -> bool {
    match *bytes {
        [kind, ..] if !(content::CHANGE_CIPHER_SPEC..=content::HEARTBEAT).contains(&kind) => false,
        [_, major, ..] if major != 3 => false,
        [_, _, minor, ..] if minor > 4 => false,
        [_, _, _, high, low, ..] => u16::from_be_bytes([high, low]) <= MAX_LEN,
        _ => true,
    }
}

/// Whether bytes are records as far as they go, one header at the least.
fn likely_records(mut bytes: &[u8]) -> bool {
    let mut any = false;
    while let Some((&[kind, major, minor, high, low], rest)) = bytes.split_first_chunk::<HEADER>() {
        let len = u16::from_be_bytes([high, low]);
        let likely = (content::CHANGE_CIPHER_SPEC..=content::APPLICATION_DATA).contains(&kind)
            && major == 3
            && minor <= 4
            && (1..=MAX_LIKELY_LEN).contains(&len);
        if !likely {
            return false;
        }
        any = true;
        bytes = rest.get(len.into()..).unwrap_or_default();
    }
    any && begins_record(bytes)
}
