//! What one connection said so far: the records and messages of both directions, put together.

use super::certificate::{self, Chain};
use super::hello::{self, Answer};
use super::messages::{Message, Messages, kind};
use super::record::{Piece, Records, content};
use super::sealed::{Sealed, Suite, Told};
use super::{Alert, Facts, Foreign, Side, Step, Version};
use crate::model::{Actor, Timestamp};
use crate::tcp::Chunk;

/// Alerts kept. After that many the last is replaced: it is what ended the connection.
const MAX_ALERTS: usize = 8;

/// Bytes kept of what is no record.
const MAX_FOREIGN: usize = 64;

/// What one connection said so far. It is fed with the bytes of both directions in order and holds no
/// more than its facts and one incomplete message of each direction.
#[derive(Debug)]
pub struct Session {
    facts: Facts,
    to: Wire,
    from: Wire,
    /// The session id that the gateway offered.
    offered: Vec<u8>,
    /// Memory of the facts.
    facts_bytes: usize,
}

/// One direction.
#[derive(Debug)]
struct Wire {
    records: Records,
    messages: Messages,
    /// Place of the next byte.
    offset: u64,
    /// What becomes of the body of the record at hand.
    reading: Reading,
    /// Whether a ChangeCipherSpec was seen.
    changed: bool,
    /// Whether the last alert of this direction was told from its length alone.
    guessed: bool,
    /// Encrypted records of TLS 1.3.
    sealed: Sealed,
}

/// What becomes of the body of a record.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// It is not read.
    Nothing,
    /// It is not read, and it is an encrypted handshake message.
    Encrypted,
    /// It has handshake messages.
    Messages,
    /// It is an alert.
    Alert { bytes: [u8; 2], have: usize },
}

impl Wire {
    const fn new(records: Records, messages: Messages) -> Self {
        Self {
            records,
            messages,
            offset: 0,
            reading: Reading::Nothing,
            changed: false,
            guessed: false,
            sealed: Sealed::NONE,
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// The most memory that it keeps beside the size of this type, whatever is sent.
    pub const MAX_KEPT_BYTES: usize = 256 * 1024;

    /// A connection from its first byte on.
    pub fn new() -> Self {
        Self::with(
            Facts::default(),
            Wire::new(Records::new(), Messages::default()),
            Wire::new(Records::new(), Messages::default()),
        )
    }

    /// A connection from anywhere on: records are looked for, and bytes that are none say nothing.
    pub fn joined() -> Self {
        let mut facts = Facts::default();
        facts.to.gap = true;
        facts.from.gap = true;
        let wire = || {
            let mut messages = Messages::default();
            messages.lose();
            Wire::new(Records::joined(), messages)
        };
        Self::with(facts, wire(), wire())
    }

    fn with(facts: Facts, to: Wire, from: Wire) -> Self {
        Self {
            facts,
            to,
            from,
            offered: Vec::new(),
            facts_bytes: 0,
        }
    }

    /// What it said.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Memory that is kept beside the size of this type.
    pub const fn kept_bytes(&self) -> usize {
        self.facts_bytes
            + self.facts.alerts.capacity() * size_of::<Alert>()
            + match &self.facts.foreign {
                Some(foreign) => foreign.bytes.capacity(),
                None => 0,
            }
            + self.offered.capacity()
            + self.to.messages.kept_bytes()
            + self.from.messages.kept_bytes()
    }

    /// Lets go of the certificates: the gateway took them, and nobody asks again.
    pub fn forget_certificates(&mut self) {
        if !self.facts.chain.is_empty() || self.facts.client_certificate.is_some() {
            self.facts.chain = Vec::new();
            self.facts.client_certificate = None;
            self.facts_bytes = self.facts.kept_bytes();
        }
    }

    /// Whether it was certain for every byte so far which record it belongs to.
    pub(crate) const fn is_sure(&self) -> bool {
        self.to.records.is_sure() && self.from.records.is_sure()
    }

    /// Goes on behind healthy exchanges that passed unseen. Most likely both directions begin a record
    /// next; where one does not, it is looked for, and that is a gap.
    pub fn resume(&mut self) {
        for by in [Actor::Gateway, Actor::Upstream] {
            self.retract(by);
            let wire = self.wire(by);
            wire.records = Records::joined();
            wire.messages.lose();
            self.side(by).partial = 0;
        }
    }

    /// Takes what the gateway sent, in order.
    pub fn sent(&mut self, at: Timestamp, chunk: Chunk<'_>) {
        self.feed(Actor::Gateway, at, chunk);
    }

    /// Takes what the upstream sent, in order.
    pub fn received(&mut self, at: Timestamp, chunk: Chunk<'_>) {
        self.feed(Actor::Upstream, at, chunk);
    }

    const fn wire(&mut self, by: Actor) -> &mut Wire {
        match by {
            Actor::Gateway => &mut self.to,
            Actor::Upstream => &mut self.from,
        }
    }

    const fn side(&mut self, by: Actor) -> &mut Side {
        match by {
            Actor::Gateway => &mut self.facts.to,
            Actor::Upstream => &mut self.facts.from,
        }
    }

    /// The version agreed on, where that is known.
    fn version(&self) -> Option<Version> {
        match &self.facts.server {
            Some(server) => Some(server.version),
            None if self.facts.retried => Some(Version::TLS13),
            None => None,
        }
    }

    fn feed(&mut self, by: Actor, at: Timestamp, chunk: Chunk<'_>) {
        match chunk {
            Chunk::Data(mut bytes) => {
                if !self.wire(by).records.begin(bytes) {
                    self.side(by).gap = true;
                }
                loop {
                    let wire = self.wire(by);
                    let (taken, piece) = wire.records.take(bytes);
                    let (_, rest) = bytes.split_at(taken);
                    wire.offset += taken as u64;
                    bytes = rest;
                    match piece {
                        Some(piece) => self.piece(by, at, piece),
                        None if bytes.is_empty() => break,
                        None => {}
                    }
                }
            }
            Chunk::Gap(mut gap) => loop {
                let wire = self.wire(by);
                let (taken, piece) = wire.records.skip(gap);
                wire.offset = wire.offset.saturating_add(taken);
                gap -= taken;
                match piece {
                    Some(piece) => self.piece(by, at, piece),
                    None if gap == 0 => break,
                    None => {}
                }
            },
        }
        let partial = self.wire(by).records.partial();
        let side = self.side(by);
        side.partial = partial;
        if partial > 0 {
            side.last_at = at;
        }
    }

    fn piece(&mut self, by: Actor, at: Timestamp, piece: Piece<'_>) {
        match piece {
            Piece::Begin { kind, len } => self.begin(by, kind, len),
            Piece::Body(bytes) => self.body(by, bytes),
            Piece::Gap(gap) => self.gap(by, gap),
            Piece::End { kind, len } => self.end(by, at, kind, len),
            Piece::Lost => {
                self.side(by).gap = true;
                self.wire(by).messages.lose();
            }
            Piece::Foreign { held, count } => {
                if self.facts.foreign.is_none() {
                    let bytes = held.get(..count).unwrap_or_default().to_vec();
                    self.facts.foreign = Some(Foreign {
                        by,
                        offset: self.wire(by).offset.saturating_sub(count as u64),
                        bytes,
                        own: self.side(by).step,
                    });
                }
            }
            Piece::More(bytes) => {
                let Some(foreign) = &mut self.facts.foreign else {
                    return;
                };
                if foreign.by == by {
                    let room = MAX_FOREIGN.saturating_sub(foreign.bytes.len());
                    let more = bytes.get(..room).unwrap_or(bytes);
                    foreign.bytes.extend_from_slice(more);
                }
            }
        }
    }

    fn begin(&mut self, by: Actor, content: u8, len: u16) {
        self.retract(by);
        let version = self.version();
        let wire = self.wire(by);
        wire.reading = match content {
            content::HANDSHAKE => match version {
                Some(version) if wire.changed && !version.hides_handshake() => Reading::Encrypted,
                None if wire.changed => {
                    // The Finished of TLS 1.2, or what follows a HelloRetryRequest that was missed.
                    wire.messages.begin_changed(len);
                    Reading::Messages
                }
                _ => {
                    wire.messages.begin_record(len);
                    Reading::Messages
                }
            },
            content::ALERT if len == 2 => Reading::Alert {
                bytes: [0; 2],
                have: 0,
            },
            _ => Reading::Nothing,
        };
    }

    fn body(&mut self, by: Actor, mut bytes: &[u8]) {
        match &mut self.wire(by).reading {
            Reading::Nothing | Reading::Encrypted => {}
            Reading::Alert { bytes: said, have } => {
                for (slot, byte) in said.iter_mut().skip(*have).zip(bytes) {
                    *slot = *byte;
                    *have += 1;
                }
            }
            Reading::Messages => loop {
                let (taken, message) = self.wire(by).messages.take(bytes);
                let (_, rest) = bytes.split_at(taken);
                bytes = rest;
                match message {
                    Some(message) => self.message(by, &message),
                    None if bytes.is_empty() => break,
                    None => {}
                }
            },
        }
    }

    fn gap(&mut self, by: Actor, mut gap: u64) {
        match self.wire(by).reading {
            Reading::Nothing | Reading::Encrypted => {}
            Reading::Alert { .. } => {
                self.wire(by).reading = Reading::Nothing;
                self.side(by).gap = true;
            }
            Reading::Messages => {
                loop {
                    let (taken, message) = self.wire(by).messages.skip(gap);
                    gap -= taken;
                    match message {
                        Some(message) => self.message(by, &message),
                        None if gap == 0 => break,
                        None => {}
                    }
                }
                if self.wire(by).messages.take_missed() {
                    self.side(by).gap = true;
                }
            }
        }
    }

    fn end(&mut self, by: Actor, at: Timestamp, content: u8, len: u16) {
        let side = self.side(by);
        side.records = side.records.saturating_add(1);
        side.last = Some((content, len));
        side.last_at = at;
        match (content, self.wire(by).reading) {
            (content::CHANGE_CIPHER_SPEC, _) => self.change(by),
            (
                content::ALERT,
                Reading::Alert {
                    bytes: [level, number],
                    have: 2,
                },
            ) => {
                self.alert(by, at, Some((level, number)), (content, len));
            }
            (content::ALERT, _) => self.alert(by, at, None, (content, len)),
            (content::HANDSHAKE, Reading::Encrypted) => self.reach(by, Step::Finished),
            (content::HANDSHAKE, _) => {
                let wire = self.wire(by);
                if wire.changed && wire.messages.is_lost() && self.version().is_none() {
                    self.reach(by, Step::Finished);
                }
            }
            (content::APPLICATION_DATA, _) => self.application(by, at, len),
            _ => {}
        }
        self.wire(by).reading = Reading::Nothing;
    }

    /// An alert is the last that a side says in TLS 1.3 (RFC 8446 section 6): what was taken for one was
    /// data, where something follows.
    fn retract(&mut self, by: Actor) {
        if !core::mem::take(&mut self.wire(by).guessed) {
            return;
        }
        let alerts = &mut self.facts.alerts;
        let guess = |alert: &Alert| alert.by == by && alert.record.0 == content::APPLICATION_DATA;
        if let Some(last) = alerts.iter().rposition(guess) {
            alerts.remove(last);
        }
    }

    fn reach(&mut self, by: Actor, step: Step) {
        let side = self.side(by);
        side.step = side.step.max(step);
    }

    /// A ChangeCipherSpec, which means nothing in TLS 1.3 (RFC 8446 appendix D.4).
    fn change(&mut self, by: Actor) {
        self.wire(by).changed = true;
        let version = self.version();
        if version.is_none_or(Version::hides_handshake) {
            return;
        }
        self.reach(by, Step::Encrypted);
        // The upstream goes first where a session is resumed (RFC 5246 section 7.3).
        let facts = &mut self.facts;
        let first = by == Actor::Upstream && !self.to.changed && !facts.to.gap && !facts.from.gap;
        if first
            && !facts.hello_done
            && facts.chain.is_empty()
            && let Some(server) = &mut facts.server
        {
            server.resumed = true;
        }
    }

    fn alert(&mut self, by: Actor, at: Timestamp, said: Option<(u8, u8)>, record: (u8, u16)) {
        let (own, other) = match by {
            Actor::Gateway => (self.facts.to.step, self.facts.from.step),
            Actor::Upstream => (self.facts.from.step, self.facts.to.step),
        };
        let alerts = &mut self.facts.alerts;
        alerts.truncate(MAX_ALERTS - 1);
        alerts.push(Alert {
            by,
            at,
            said,
            record,
            other,
            own,
        });
    }

    fn application(&mut self, by: Actor, at: Timestamp, len: u16) {
        let version = self.version();
        let side = self.side(by);
        side.application = side.application.saturating_add(1);
        side.application_bytes = side.application_bytes.saturating_add(len.into());
        if side.step == Step::Finished {
            side.since_finished = side.since_finished.saturating_add(1);
        }
        match version {
            // Data is sent after one's own Finished only (RFC 5246 section 7.3).
            Some(version) if !version.hides_handshake() => {
                if side.step < Step::Finished {
                    side.since_finished = side.since_finished.saturating_add(1);
                }
                self.reach(by, Step::Finished);
            }
            Some(_) => self.sealed(by, at, len),
            None => {
                self.wire(by).sealed.early();
                self.reach(by, Step::Encrypted);
            }
        }
    }

    /// A record of TLS 1.3 whose content is not known.
    fn sealed(&mut self, by: Actor, at: Timestamp, len: u16) {
        let Some(server) = &self.facts.server else {
            // Early data that was on its way when the upstream asked for another ClientHello.
            self.wire(by).sealed.early();
            self.reach(by, Step::Encrypted);
            return;
        };
        let suite = Suite::of(server.cipher);
        let resumed = server.resumed;
        let early_data = self
            .facts
            .client
            .as_ref()
            .is_none_or(|client| client.early_data || client.cut);
        let sure = self.is_sure();
        let wire = self.wire(by);
        let told = match (suite, by) {
            (Some(suite), Actor::Gateway) => wire.sealed.gateway(suite, len, early_data),
            (Some(suite), Actor::Upstream) => wire.sealed.upstream(suite, len, resumed),
            (None, _) => Told::Nothing,
        };
        let side = self.side(by);
        side.first_application.get_or_insert(len);
        if told == Told::Behind && sure && side.step < Step::Finished {
            side.since_finished = side.since_finished.saturating_add(1);
        }
        self.reach(by, Step::Encrypted);
        if told != Told::Nothing && sure {
            self.reach(by, Step::Finished);
            if by == Actor::Gateway {
                // It answers the upstream's (RFC 8446 section 2).
                self.reach(Actor::Upstream, Step::Finished);
            }
        }
        if suite.is_some_and(|suite| suite.alert() == len) {
            self.alert(by, at, None, (content::APPLICATION_DATA, len));
            self.wire(by).guessed = true;
        }
    }

    fn message(&mut self, by: Actor, message: &Message) {
        let Message {
            kind,
            len,
            ref body,
            cut,
        } = *message;
        match (by, kind) {
            (Actor::Gateway, kind::CLIENT_HELLO) => {
                if let Some(read) = hello::client(body, cut) {
                    let mut hello = read.hello;
                    hello.bytes = len;
                    self.facts.client = Some(Box::new(hello));
                    self.offered = read.session_id;
                }
                self.reach(by, Step::Hello);
            }
            (Actor::Upstream, kind::HELLO_RETRY_REQUEST) => self.facts.retried = true,
            (Actor::Upstream, kind::SERVER_HELLO) => match hello::server(body) {
                Some(Answer::Retry) if !cut => self.facts.retried = true,
                Some(Answer::Hello(mut read)) if !cut => {
                    // Before TLS 1.3 a server takes a session up by its id (RFC 5246 section 7.4.1.3).
                    read.hello.resumed |= !read.hello.version.hides_handshake()
                        && !read.session_id.is_empty()
                        && read.session_id == self.offered;
                    self.facts.server = Some(read.hello);
                    self.reach(by, Step::Hello);
                }
                _ => self.reach(by, Step::Hello),
            },
            (Actor::Upstream, kind::CERTIFICATE) if self.facts.chain.is_empty() => {
                let Chain { list, cut } = certificate::chain(body, cut);
                self.facts.chain = list;
                self.facts.chain_cut = cut;
            }
            (Actor::Upstream, kind::CERTIFICATE_REQUEST) => self.facts.asked = true,
            (Actor::Upstream, kind::SERVER_HELLO_DONE) => self.facts.hello_done = true,
            (Actor::Gateway, kind::CERTIFICATE) if self.facts.given.is_none() => {
                let (given, first) = certificate::given(body, cut);
                self.facts.given = given;
                self.facts.client_certificate = first.map(Box::new);
            }
            _ => return,
        }
        self.facts_bytes = self.facts.kept_bytes();
    }
}
