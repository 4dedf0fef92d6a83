//! Handshake messages out of the records of one direction (RFC 8446 section 4, RFC 5246 section 7.4):
//! several in one record, one over several, or only what was captured of one.

/// What is kept of a message. Chains of certificates are the longest ones: ten KiB and seldom twenty.
const MAX_KEPT: usize = 32 * 1024;

/// Length of a message header: type and length.
const HEADER: usize = 4;

/// Types of handshake messages that are read or that say how far a side is.
pub(super) mod kind {
    pub(in crate::tls) const CLIENT_HELLO: u8 = 1;
    pub(in crate::tls) const SERVER_HELLO: u8 = 2;
    /// Of drafts of TLS 1.3.
    pub(in crate::tls) const HELLO_RETRY_REQUEST: u8 = 6;
    pub(in crate::tls) const CERTIFICATE: u8 = 11;
    pub(in crate::tls) const CERTIFICATE_REQUEST: u8 = 13;
    pub(in crate::tls) const SERVER_HELLO_DONE: u8 = 14;
}

/// Whether the body of a message of this type is read.
const fn is_read(kind: u8) -> bool {
    matches!(
        kind,
        kind::CLIENT_HELLO | kind::SERVER_HELLO | kind::CERTIFICATE
    )
}

/// Whether four bytes at the beginning of a record are likely to begin a message.
#[derive(Clone, Copy, Debug)]
enum Doubt {
    /// The record may also go on with a message that began before, or be encrypted.
    Lost,
    /// The record is encrypted, unless it is a hello.
    Changed,
}

impl Doubt {
    /// Types that are sent in the clear: RFC 5246 section 7.4, RFC 5077 section 3.3, RFC 6066 section 8.
    /// HelloRequest is none of them, since zeros may be anything.
    fn allows(self, kind: u8, left: u32, record: u16) -> bool {
        let len = u64::from(left) + HEADER as u64;
        match self {
            Self::Lost => matches!(kind, 1 | 2 | 4 | 11..=16 | 22) && len <= record.into(),
            Self::Changed => matches!(kind, 1 | 2) && len == u64::from(record),
        }
    }
}

/// A message that is over.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: u8,
    /// Length with its header.
    pub(super) len: u32,
    /// Its body, as far as it was kept; empty for one that is not read.
    pub(super) body: Vec<u8>,
    /// Whether the body was longer than what was kept.
    pub(super) cut: bool,
}

/// The messages of one direction.
#[derive(Debug, Default)]
pub(super) struct Messages {
    state: State,
    kept: Vec<u8>,
    /// Whether nothing more of this message is kept: bytes are missing, or the cap is reached.
    cut: bool,
    /// Whether bytes are missing that would have been read.
    missed: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Between two messages, or in a header.
    Header {
        bytes: [u8; HEADER],
        have: usize,
        /// Why it is not certain to be one, and the length of the record that it has to lie in.
        doubt: Option<(Doubt, u16)>,
    },
    /// In a body.
    Body { kind: u8, len: u32, left: u32 },
    /// Where a message begins is not known; the next record may begin one.
    Lost,
}

impl Default for State {
    fn default() -> Self {
        Self::Header {
            bytes: [0; HEADER],
            have: 0,
            doubt: None,
        }
    }
}

impl Messages {
    /// Memory that is kept.
    pub(super) const fn kept_bytes(&self) -> usize {
        self.kept.capacity()
    }

    /// Whether it is not known where a message begins.
    pub(super) const fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// Tells once that bytes are missing that would have been read.
    pub(super) const fn take_missed(&mut self) -> bool {
        core::mem::replace(&mut self.missed, false)
    }

    /// Forgets where messages begin.
    pub(super) fn lose(&mut self) {
        *self = Self {
            state: State::Lost,
            missed: self.missed,
            ..Self::default()
        };
    }

    /// Begins a record of `len` bytes: the place where messages may be found again.
    pub(super) const fn begin_record(&mut self, len: u16) {
        let found = matches!(
            self.state,
            State::Lost | State::Header { doubt: Some(_), .. }
        );
        if found {
            self.doubt(Doubt::Lost, len);
        }
    }

    /// Begins a record of `len` bytes that is most likely encrypted.
    pub(super) fn begin_changed(&mut self, len: u16) {
        self.lose();
        self.doubt(Doubt::Changed, len);
    }

    const fn doubt(&mut self, why: Doubt, len: u16) {
        self.state = State::Header {
            bytes: [0; HEADER],
            have: 0,
            doubt: Some((why, len)),
        };
    }

    /// Takes bytes up to the end of a message. Returns how many, and the message that is over.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Option<Message>) {
        match &mut self.state {
            State::Lost => (bytes.len(), None),
            State::Header {
                bytes: header,
                have,
                doubt,
            } => {
                let room = header.get_mut(*have..).unwrap_or_default();
                let taken = room.len().min(bytes.len());
                for (slot, byte) in room.iter_mut().zip(bytes) {
                    *slot = *byte;
                }
                *have += taken;
                if *have < HEADER {
                    return (taken, None);
                }
                let [kind, high, middle, low] = *header;
                let left = u32::from_be_bytes([0, high, middle, low]);
                if doubt.is_some_and(|(doubt, record)| !doubt.allows(kind, left, record)) {
                    self.lose();
                    return (taken, None);
                }
                self.cut = false;
                self.state = State::Body {
                    kind,
                    len: left,
                    left,
                };
                (taken, self.ended())
            }
            State::Body { kind, left, .. } => {
                let taken = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                let (part, _) = bytes.split_at(taken);
                *left = left.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                if is_read(*kind) && !self.cut {
                    let room = MAX_KEPT - self.kept.len();
                    self.cut = taken > room;
                    self.kept
                        .extend_from_slice(part.get(..room).unwrap_or(part));
                }
                (taken, self.ended())
            }
        }
    }

    /// Takes bytes that were not captured, up to the end of a message or to where it is lost.
    pub(super) fn skip(&mut self, gap: u64) -> (u64, Option<Message>) {
        match &mut self.state {
            State::Body { kind, left, .. } => {
                let taken = gap.min(u64::from(*left));
                *left = left.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                self.cut |= taken > 0;
                self.missed |= taken > 0 && is_read(*kind);
                (taken, self.ended())
            }
            State::Header { .. } | State::Lost => {
                if gap > 0 {
                    self.lose();
                    self.missed = true;
                }
                (gap, None)
            }
        }
    }

    fn ended(&mut self) -> Option<Message> {
        let State::Body { kind, len, left: 0 } = self.state else {
            return None;
        };
        self.state = State::default();
        Some(Message {
            kind,
            len: len.saturating_add(4),
            body: core::mem::take(&mut self.kept),
            cut: core::mem::take(&mut self.cut),
        })
    }
}
