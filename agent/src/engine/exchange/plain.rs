//! What is inside TLS, where the gateway's library tells: it takes the same way as HTTP/1 on a bare
//! connection. The records outside still tell of the handshake, of alerts, and of what was acknowledged.
//!
//! A place in the gateway's stream is one of the stream of records, since that is what the upstream
//! acknowledges. What is written leaves as records before its text is told, or later where the connection
//! is congested; it is never shorter than the text.

use super::{Done, Exchange, Exchanges};
use crate::http1::{Protocol, RequestEvent, RequestParser};
use crate::limits::Limits;
use crate::model::{Actor, Direction, Plaintext, Timestamp};
use crate::stats::Stats;
use crate::tcp::Chunk;

/// What is known of the inside of a connection.
#[derive(Debug, Default)]
pub(super) enum Inside {
    /// Nothing yet.
    #[default]
    Hidden,
    /// It is HTTP/1.
    Seen(Seen),
    /// It is something else, or its beginning was missed: only the records count.
    Left,
}

/// What records hold that the gateway has not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unread {
    /// There are none.
    Nothing,
    /// There is one by itself that looks like the upstream's farewell.
    Farewell,
    /// Text, perhaps.
    Text,
}

/// How far the inside was followed.
#[derive(Debug)]
pub(super) struct Seen {
    /// Place up to which nothing was sent of the next request.
    pub(super) mark: u64,
    /// Bytes taken of each direction.
    sent: u64,
    received: u64,
    /// What came since the gateway had read everything, or since it began its request.
    pub(super) unread: Unread,
    /// When the last text was written, and read, that is no longer than an alert.
    short_write: Option<Timestamp>,
    short_read: Option<Timestamp>,
}

/// Bytes of an alert (RFC 8446 section 6). A read gives the text of one record at most, and a write makes
/// records of its own.
const ALERT_LEN: u32 = 2;

/// The way of a text through the parsers: a gap before it, itself, and what was not captured of it.
fn chunks<'a>(text: &Plaintext<'a>, taken: u64) -> impl Iterator<Item = Chunk<'a>> {
    let captured = text.payload.len() as u64;
    let rest = u64::from(text.len).saturating_sub(captured);
    [
        Chunk::Gap(text.offset.saturating_sub(taken)),
        Chunk::Data(text.payload),
        Chunk::Gap(rest),
    ]
    .into_iter()
    .filter(|chunk| super::tls::length(*chunk) > 0)
}

impl Exchanges {
    /// Whether TLS hides the exchanges.
    pub(in crate::engine) fn is_hidden(&self) -> bool {
        let tls = self.tls.as_deref();
        tls.is_some_and(|tls| !matches!(tls.inside, Inside::Seen(_)))
    }

    pub(super) fn seen(&self) -> Option<&Seen> {
        match &self.tls.as_deref()?.inside {
            Inside::Seen(seen) => Some(seen),
            Inside::Hidden | Inside::Left => None,
        }
    }

    pub(super) fn seen_mut(&mut self) -> Option<&mut Seen> {
        match &mut self.tls.as_deref_mut()?.inside {
            Inside::Seen(seen) => Some(seen),
            Inside::Hidden | Inside::Left => None,
        }
    }

    /// Whether the upstream has sent something inside TLS that the gateway has not read yet, as far as that
    /// is known.
    pub(in crate::engine) fn is_unread(&self) -> bool {
        self.seen()
            .is_some_and(|seen| seen.unread != Unread::Nothing)
    }

    /// Whether that is more than a farewell, which a gateway that closes has no need to read.
    pub(in crate::engine) fn is_text_unread(&self) -> bool {
        self.seen().is_some_and(|seen| seen.unread == Unread::Text)
    }

    /// Whether a record of this side that was seen at `at`, and is as short as an alert, was one of text: its
    /// text came with it or later.
    pub(in crate::engine) fn was_text(&self, by: Actor, at: Timestamp) -> bool {
        let short = self.seen().and_then(|seen| match by {
            Actor::Gateway => seen.short_write,
            Actor::Upstream => seen.short_read,
        });
        short.is_some_and(|short| short >= at)
    }

    /// Takes the run out whose response is under way, where what the upstream sent ends inside a record.
    pub(in crate::engine) fn take_cut_run(&mut self) -> Option<Exchange> {
        let tls = self.tls.as_deref_mut()?;
        let from = &tls.session.facts().from;
        let cut = from.partial > 0 && !from.gap && tls.session.is_sure();
        if cut { tls.under_way.take() } else { None }
    }

    /// Whether what the gateway sends now is the next request, the text of which follows.
    pub(in crate::engine) fn awaits_text(&self) -> bool {
        self.open.is_empty() && self.seen().is_some()
    }

    /// Takes what the gateway wrote or read inside TLS: `told` is the time that came with it, `at` the same
    /// in the order of everything else. Returns whether the exchanges are followed by that.
    pub(in crate::engine) fn plaintext(
        &mut self,
        (told, at): (Timestamp, Timestamp),
        text: &Plaintext<'_>,
        upstream_closed: bool,
        limits: &Limits,
        stats: &mut Stats,
        done: &mut Done,
    ) -> bool {
        let to_upstream = text.direction == Direction::ToUpstream;
        // A write is told when it ends, and may be answered by then.
        let unread = self.came_last() >= Some(told);
        self.look_inside(text);
        let idle = self.open.is_empty();
        let end = text.offset.saturating_add(text.len.into());
        let short = (1..=ALERT_LEN).contains(&text.len).then_some(at);
        if to_upstream && text.len == 0 {
            self.leave_inside();
            return false;
        }
        let Some(seen) = self.seen_mut() else {
            return false;
        };
        let before = if to_upstream {
            if idle && !unread {
                seen.unread = Unread::Nothing;
            }
            seen.short_write = short.or(seen.short_write);
            std::mem::replace(&mut seen.sent, end)
        } else {
            if text.len == 0 && !unread {
                seen.unread = Unread::Nothing;
            }
            seen.short_read = short.or(seen.short_read);
            std::mem::replace(&mut seen.received, end)
        };
        if text.offset.saturating_sub(before) >= Plaintext::UNKNOWN {
            // Where the next message begins cannot be told any more.
            self.leave_inside();
            return false;
        }
        if !to_upstream && text.len > 0 && self.is_contradicted(end) {
            stats.tls_sources_disagree += 1;
            self.leave_inside();
            return false;
        }
        for chunk in chunks(text, before) {
            if to_upstream {
                self.http_sent(at, chunk, upstream_closed, limits, stats, done);
            } else {
                self.http_received(at, chunk, stats, done);
            }
        }
        let place = self.sent;
        if let Some(seen) = self.seen_mut() {
            seen.mark = place;
        }
        if let Some(tls) = self
            .tls
            .as_deref_mut()
            .filter(|_| !to_upstream && text.len > 0)
        {
            tls.answered = true;
            tls.session.forget_certificates();
        }
        true
    }

    /// When the upstream's last record came.
    fn came_last(&self) -> Option<Timestamp> {
        let from = self.tls.as_deref()?.session.facts().from;
        (from.records > 0 || from.partial > 0).then_some(from.last_at)
    }

    /// Whether so much of the upstream's text cannot have been inside the records that were seen.
    fn is_contradicted(&self, received: u64) -> bool {
        let from = self.tls.as_deref().map(|tls| tls.session.facts().from);
        from.is_some_and(|from| !from.gap && received > from.application_bytes)
    }

    /// The first text tells whether HTTP/1 is inside. What stood for its first request until then was the
    /// records of it.
    fn look_inside(&mut self, text: &Plaintext<'_>) {
        let Some(tls) = self.tls.as_deref_mut() else {
            return;
        };
        if !matches!(tls.inside, Inside::Hidden) || text.len == 0 {
            return;
        }
        let run = tls.under_way.take().or_else(|| self.open.pop_front());
        let judged = tls.judged || run.as_ref().is_some_and(|run| run.judged);
        let first = text.direction == Direction::ToUpstream && text.offset == 0;
        if judged || !first || self.begun > 1 || !begins_request(text.payload) {
            tls.inside = Inside::Left;
            if let Some(run) = run {
                self.open.push_front(run);
            }
            return;
        }
        tls.inside = Inside::Seen(Seen {
            mark: run.map_or(self.sent, |run| run.offset),
            sent: 0,
            received: 0,
            // The first text tells since when, if this is so.
            unread: Unread::Text,
            short_write: None,
            short_read: None,
        });
        tls.tickets = super::tls::Tickets::default();
        tls.answered = false;
        self.open.clear();
        self.begun = 0;
        self.sending = false;
        self.last_end = None;
        self.request = RequestParser::default();
    }

    /// Nothing of what is open is judged: it is not known whose it is.
    fn leave_inside(&mut self) {
        if self.seen().is_some() {
            for open in &mut self.open {
                open.judged = true;
            }
            self.protocol = Some(Protocol::Tls);
        }
        if let Some(tls) = self.tls.as_deref_mut() {
            tls.inside = Inside::Left;
        }
    }
}

/// Whether these bytes may begin an HTTP/1 request.
fn begins_request(bytes: &[u8]) -> bool {
    let mut parser = RequestParser::default();
    let mut rest = bytes;
    loop {
        let (taken, event) = parser.take(rest);
        rest = rest.get(taken..).unwrap_or_default();
        match event {
            Some(RequestEvent::Begin) => {}
            Some(RequestEvent::Head(_) | RequestEvent::End) => return true,
            Some(RequestEvent::Opaque(_)) => return false,
            None => return !bytes.is_empty(),
        }
    }
}
