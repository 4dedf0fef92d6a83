//! TLS on a hop: what both sides say goes to a [`Session`], and behind the handshake runs of records
//! stand for requests and responses.
//!
//! The framing of what is inside is hidden, so that a response counts as begun with its first record and
//! is never judged behind that. Where HTTP/2 is or may be inside, only the first run means something.

use std::time::Duration;

use super::plain::{Inside, Unread};
use super::{Completed, Done, Exchange, Exchanges};
use crate::http1::Stage;
use crate::model::{Actor, LibraryFact, Timestamp};
use crate::tcp::Chunk;
use crate::tls::{Session, Side, Step, Version};

/// What a library says beyond this is more of the same.
const MAX_HEARD: usize = 16;

const RECORD_HEADER: u64 = 5;
const APPLICATION_DATA: u8 = 23;

/// The shortest HTTP/1 request, `GET / HTTP/1.0` with an empty line, has 18 bytes, and a record of TLS 1.3
/// adds 17. With a Host it has ten more. What is shorter is a farewell or a probe: alerts, key updates,
/// small frames of HTTP/2 and web sockets, `QUIT`.
const LEAST_REQUEST: u64 = 44;

/// The longest alert: an explicit vector, padding to a block, and the longest digest.
const LONGEST_ALERT: u64 = 96;

/// OpenSSL sends two tickets of one length behind a handshake of TLS 1.3. A ticket is a multiple of 16
/// bytes, and with everything around it its record is 42 bytes longer (`tls_construct_new_session_ticket`).
const TICKETS: u32 = 2;
const TICKET_REST: u16 = 42 % 16;
const TICKET_LENGTHS: std::ops::RangeInclusive<u16> = 74..=4096;

/// Tickets follow the gateway's Finished at once.
const TICKETS_WITHIN: Duration = Duration::from_secs(1);

/// A connection that the gateway began with TLS.
#[derive(Debug)]
pub(in crate::engine) struct Tls {
    pub(in crate::engine) session: Session,
    /// What the gateway's library said.
    pub(in crate::engine) heard: Vec<LibraryFact>,
    /// When it began.
    pub(in crate::engine) began: Timestamp,
    /// Where the gateway's last bytes end that are no alert, and when they were sent.
    pub(in crate::engine) said: (u64, Timestamp),
    /// Whether the upstream sent what may be a response.
    pub(in crate::engine) answered: bool,
    /// Whether the connection was judged.
    pub(in crate::engine) judged: bool,
    /// The run whose response began.
    pub(super) under_way: Option<Exchange>,
    pub(super) tickets: Tickets,
    /// What the gateway's library told of the inside.
    pub(super) inside: Inside,
}

/// Records that are or may be tickets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tickets {
    /// How many came ahead of the first request.
    ahead: u32,
    /// How many came with it.
    with: u32,
    /// The length of each.
    length: u16,
}

/// What a piece of a stream carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    /// A part of the handshake, a ticket, or a piece of a record too short to tell.
    Other,
    /// An alert, or something as short.
    Little,
    /// Data: so many records of this length, zero where that is not known.
    Data { records: u32, length: u16 },
}

impl Tls {
    fn new(at: Timestamp) -> Self {
        Self {
            session: Session::new(),
            heard: Vec::new(),
            began: at,
            said: (0, at),
            answered: false,
            judged: false,
            under_way: None,
            tickets: Tickets::default(),
            inside: Inside::default(),
        }
    }

    /// Takes what the library says.
    pub(in crate::engine) fn hear(&mut self, fact: LibraryFact) {
        if self.heard.len() < MAX_HEARD {
            self.heard.push(fact);
        } else if let Some(last) = self.heard.last_mut() {
            *last = fact;
        }
    }

    /// Whether a record came with the first request that is as likely a ticket as a response.
    pub(in crate::engine) const fn is_doubtful(&self) -> bool {
        let Tickets { ahead, with, .. } = self.tickets;
        with > 0 && ahead + with < TICKETS
    }

    /// Whether a piece of a record came, which may be one of a response.
    pub(in crate::engine) const fn has_piece(&self) -> bool {
        self.session.facts().from.partial > 0 && !matches!(self.inside, Inside::Seen(_))
    }

    /// Whether HTTP/2 may be inside: runs of records are no requests then.
    fn may_be_h2(&self) -> bool {
        let facts = self.session.facts();
        let server = facts.server.as_ref();
        if let Some(chosen) = server.and_then(|server| server.alpn.as_deref()) {
            return chosen == "h2";
        }
        let hidden = server.is_none_or(|server| server.version.hides_handshake());
        let offers = |alpn: &String| alpn == "h2";
        let client = facts.client.as_ref();
        hidden && client.is_none_or(|client| client.cut || client.alpn.iter().any(offers))
    }

    fn is_full_handshake_of_13(&self) -> bool {
        let server = self.session.facts().server.as_ref();
        server.is_some_and(|server| server.version == Version::TLS13 && !server.resumed)
    }

    fn kept_bytes(&self) -> usize {
        let heard = self.heard.capacity() * size_of::<LibraryFact>();
        size_of::<Self>() + self.session.kept_bytes() + heard
    }

    /// Takes bytes of the gateway and tells what they carry.
    fn sent(&mut self, at: Timestamp, chunk: Chunk<'_>) -> Carried {
        let before = self.session.facts().to;
        self.session.sent(at, chunk);
        let after = self.session.facts().to;
        let alert = self.is_last_alert(Actor::Gateway, at);
        let carried = carried(&before, &after, length(chunk), alert);
        match carried {
            Carried::Data { records, length } => {
                let short = records > 0 && u64::from(length) < LEAST_REQUEST;
                if short { Carried::Little } else { carried }
            }
            carried => carried,
        }
    }

    /// Takes bytes of the upstream and tells what they carry.
    fn received(&mut self, at: Timestamp, chunk: Chunk<'_>) -> Carried {
        let before = self.session.facts().from;
        self.session.received(at, chunk);
        let after = self.session.facts().from;
        let alert = self.is_last_alert(Actor::Upstream, at);
        match carried(&before, &after, length(chunk), alert) {
            // Which record it belongs to shows with its end.
            Carried::Data { records: 0, .. } if after.records == before.records && !after.gap => {
                Carried::Other
            }
            carried => carried,
        }
    }

    fn is_last_alert(&self, by: Actor, at: Timestamp) -> bool {
        let alerts = &self.session.facts().alerts;
        alerts
            .last()
            .is_some_and(|last| last.by == by && last.at == at)
    }

    /// Whether these records of the upstream are tickets for all that is known: they came ahead of the first
    /// request of a full handshake or with it, and nothing else did.
    fn takes_for_tickets(
        &mut self,
        at: Timestamp,
        run: Option<&Exchange>,
        records: u32,
        length: u16,
    ) -> bool {
        let Tickets {
            ahead,
            with,
            length: before,
        } = self.tickets;
        let fits = run.is_none_or(|run| run.ordinal == 1)
            && records > 0
            && ahead + with + records <= TICKETS
            && TICKET_LENGTHS.contains(&length)
            && length % 16 == TICKET_REST
            && (before == 0 || before == length)
            && run.is_none_or(|run| at.since(run.began) <= TICKETS_WITHIN)
            && self.is_full_handshake_of_13();
        if fits {
            self.tickets.length = length;
            *match run {
                Some(_) => &mut self.tickets.with,
                None => &mut self.tickets.ahead,
            } += records;
        }
        fits
    }
}

pub(super) const fn length(chunk: Chunk<'_>) -> u64 {
    match chunk {
        Chunk::Data(bytes) => bytes.len() as u64,
        Chunk::Gap(bytes) => bytes,
    }
}

/// What `length` bytes carried that brought a side from `before` to `after`.
fn carried(before: &Side, after: &Side, length: u64, alert: bool) -> Carried {
    let unknown = Carried::Data {
        records: 0,
        length: 0,
    };
    if after.gap {
        // Records are not followed any more, or not all of them.
        return if length > LONGEST_ALERT {
            unknown
        } else {
            Carried::Little
        };
    }
    let records = after.since_finished.saturating_sub(before.since_finished);
    if records == 0 {
        let partial = u64::from(after.partial) >= RECORD_HEADER + LEAST_REQUEST;
        return match after.last {
            _ if alert => Carried::Little,
            // Of a record that is not complete the type is not told.
            _ if after.step == Step::Finished && partial => unknown,
            _ => Carried::Other,
        };
    }
    if alert && records == 1 && matches!(after.last, Some((APPLICATION_DATA, _))) {
        return Carried::Little;
    }
    let bytes = after.application_bytes - before.application_bytes;
    match after.last {
        // All of one length, or not comparable.
        Some((APPLICATION_DATA, last)) => {
            let same = bytes == u64::from(last) * u64::from(records);
            let others = bytes.saturating_sub(last.into()) / u64::from(records - 1).max(1);
            if others.max(last.into()) < LEAST_REQUEST {
                return Carried::Data {
                    records,
                    length: last,
                };
            }
            Carried::Data {
                records: if same { records } else { 0 },
                length: last,
            }
        }
        _ => unknown,
    }
}

impl Exchanges {
    /// The gateway began with TLS: `bytes` are what was taken of it.
    pub(super) fn begin_tls(&mut self, at: Timestamp, bytes: &[u8]) {
        let mut tls = Box::new(Tls::new(at));
        tls.session.sent(at, Chunk::Data(bytes));
        tls.said = (self.sent, at);
        self.tls = Some(tls);
        // An upstream that speaks first does not speak TLS.
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() {
            self.tls_received(at, Chunk::Data(&early));
        }
    }

    /// Takes bytes of the gateway on a hop that speaks TLS.
    pub(super) fn tls_sent(
        &mut self,
        at: Timestamp,
        chunk: Chunk<'_>,
        upstream_closed: bool,
        done: &mut Done,
    ) {
        let Some(tls) = self.tls.as_mut().filter(|_| length(chunk) > 0) else {
            return;
        };
        let offset = self.sent;
        self.sent += length(chunk);
        let carried = tls.sent(at, chunk);
        if let Inside::Seen(seen) = &mut tls.inside {
            if carried != Carried::Little {
                tls.said = (self.sent, at);
            }
            if !matches!(carried, Carried::Data { .. }) {
                if !self.sending {
                    seen.mark = self.sent;
                }
            } else if let Some(newest) = self.open.back_mut()
                && newest.first_response.is_none()
            {
                // What a congested connection kept back.
                newest.end_offset = newest.end_offset.max(self.sent);
            }
            return;
        }
        if carried == Carried::Little {
            return;
        }
        tls.said = (self.sent, at);
        let finished = tls.session.facts().to.step == Step::Finished;
        if !finished || !matches!(carried, Carried::Data { .. }) {
            return;
        }
        if let Some(run) = self.open.back_mut() {
            run.end_offset = self.sent;
            run.last_request = at;
            return;
        }
        self.tls_answered(done);
        let runs_mean_nothing =
            self.begun > 0 && self.tls.as_ref().is_some_and(|tls| tls.may_be_h2());
        if !runs_mean_nothing {
            self.begin(at, offset, upstream_closed);
            if let Some(run) = self.open.back_mut() {
                run.end_offset = self.sent;
                // Its end is hidden: what was sent is taken for all of it.
                run.complete = true;
            }
        }
    }

    /// Takes bytes of the upstream on a hop that speaks TLS.
    pub(super) fn tls_received(&mut self, at: Timestamp, chunk: Chunk<'_>) {
        let Some(tls) = &mut self.tls else { return };
        let carried = tls.received(at, chunk);
        if let Inside::Seen(seen) = &mut tls.inside {
            let gap = tls.session.facts().from.gap;
            let came = match carried {
                _ if length(chunk) == 0 => Unread::Nothing,
                Carried::Little if !gap => Unread::Farewell,
                _ => Unread::Text,
            };
            seen.unread = seen.unread.max(came);
            return;
        }
        let Carried::Data {
            records,
            length: each,
        } = carried
        else {
            return;
        };
        self.last_end = Some(at);
        if let Some(run) = &mut tls.under_way {
            run.response_bytes += length(chunk);
            run.last_response = Some(at);
        }
        let Some(run) = self.open.front() else {
            if self.begun == 0 {
                tls.takes_for_tickets(at, None, records, each);
            }
            return;
        };
        // What left before the request came is no response to it.
        let ahead = run.ordinal == 1 && self.acked <= run.offset;
        let run = Some(run).filter(|_| !ahead);
        if tls.takes_for_tickets(at, run, records, each) || ahead {
            return;
        }
        tls.answered = true;
        tls.session.forget_certificates();
        tls.tickets = Tickets::default();
        if let Some(mut run) = self.open.pop_front() {
            run.first_response = Some(at);
            run.last_response = Some(at);
            run.response_bytes += length(chunk);
            if run.judged {
                return;
            }
            tls.under_way = Some(run);
        }
    }

    /// The response that is under way is over, or as good as that: another request began, or the
    /// connection ends.
    pub(in crate::engine) fn tls_answered(&mut self, done: &mut Done) {
        let run = self.tls.as_mut().and_then(|tls| tls.under_way.take());
        if let Some(exchange) = run {
            done.push(Completed {
                exchange,
                status: None,
                findings: Vec::new(),
                stage: Stage::Tunnel,
            });
        }
    }

    /// Goes on behind healthy exchanges that passed unseen: what was open was over before.
    pub(super) fn tls_resume(&mut self, done: &mut Done) {
        if let Some(tls) = &mut self.tls {
            tls.session.resume();
            tls.answered = true;
            tls.under_way = tls.under_way.take().or_else(|| self.open.pop_front());
            self.tls_answered(done);
        }
    }

    pub(super) fn tls_kept_bytes(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.kept_bytes())
    }
}
