//! When a hop's TLS is judged, and with which facts.

use super::{Context, Hop, Judged, Outcome};
use crate::classify::{
    Ended, ExchangeFacts, TlsFacts, TlsRun, Verdict, cut_record, inside_tls, on_farewell,
    seen_inside_tls, tls,
};
use crate::engine::exchange::{Done, Exchange};
use crate::engine::traffic::Finished;
use crate::http1::TlsPortText;
use crate::model::{Actor, EvidenceSource, LibraryFact, Timestamp, TlsInfo};
use crate::tls::cipher_name;

impl Hop {
    /// Takes what the gateway's TLS library says.
    pub(super) fn hear(&mut self, fact: LibraryFact) {
        if let Some(tls) = &mut self.exchanges.tls {
            tls.hear(fact);
        }
    }

    /// Whether the gateway speaks TLS.
    pub(super) const fn speaks_tls(&self) -> bool {
        self.exchanges.tls.is_some()
    }

    /// What ended the connection at `at`, where one side had taken leave inside TLS before: whoever closes
    /// then only answers that. But a gateway that was sent what it must not take has a reason of its own.
    pub(super) fn ended_by_leave(&self, ended: Ended, at: Timestamp) -> Ended {
        match self.took_leave(at) {
            Some(Actor::Gateway) => Ended::Gateway,
            // The FIN that belongs to it comes behind.
            Some(Actor::Upstream)
                if ended == Ended::Gateway
                    && !self.exchanges.is_text_unread()
                    && !self.exchanges.response.is_broken() =>
            {
                Ended::UpstreamFin
            }
            // What it left unread resets the connection that it closed.
            Some(Actor::Upstream) if ended == Ended::UpstreamRst && !self.exchanges.is_hidden() => {
                Ended::UpstreamFin
            }
            _ => ended,
        }
    }

    /// Who said first inside TLS, until `at`, that it is done, where nothing worse was said.
    fn took_leave(&self, at: Timestamp) -> Option<Actor> {
        let connection = self.exchanges.tls.as_deref()?;
        let farewell = connection.session.facts().farewell()?;
        let is_text = farewell.may_be_text() && self.exchanges.was_text(farewell.by, farewell.at);
        let leaves = farewell.at <= at
            && !is_text
            && (farewell.by == Actor::Gateway || farewell.is_close_notify());
        leaves.then_some(farewell.by)
    }

    /// Judges the TLS connection on what ended it; `left` where the gateway let go of its client in the
    /// same moment. Returns whether TLS is to blame: the exchanges are not judged then.
    pub(super) fn judge_tls(
        &mut self,
        at: Timestamp,
        ended: Ended,
        left: bool,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) -> bool {
        let Some(connection) = self.exchanges.tls.as_deref() else {
            return false;
        };
        if connection.judged || self.setup_judged {
            return true;
        }
        let wire = connection.session.facts();
        let (end_offset, said_at) = connection.said;
        let heard_of = wire.from.records > 0 || wire.from.partial > 0;
        // What the gateway said of the handshake, taken for a request.
        let handshake = Exchange {
            ordinal: 1,
            began: connection.began,
            offset: 0,
            end_offset,
            complete: true,
            head: None,
            last_request: said_at,
            idle: None,
            closed_before: self
                .from
                .closed()
                .is_some_and(|(_, closed)| closed < connection.began),
            first_response: None,
            last_response: heard_of.then(|| wire.from.last_at.max(said_at)),
            response_bytes: 0,
            unasked: false,
            tls_port: TlsPortText::default(),
            judged: false,
        };
        let requested = self.exchanges.begun() > 0;
        // What comes before a request is no answer to it: tickets.
        let answered = connection.answered
            || self.exchanges.is_unread()
            || requested && connection.is_doubtful();
        let verdict = tls(&TlsFacts {
            hop: ExchangeFacts {
                fresh: !self.mid_stream,
                ..self.facts(at, ended, &handshake, &[], cx)
            },
            wire,
            heard: &connection.heard,
            now: at,
            address: self.upstream.ip(),
            requested,
            answered,
            lost: self.lost() > 0 || self.mid_stream,
            left,
        });
        cx.stats.tls_sources_disagree += u64::from(verdict.disagree);
        let Some(verdict) = verdict.verdict else {
            return false;
        };
        if let Some(connection) = &mut self.exchanges.tls {
            connection.judged = true;
        }
        let mut exchange = None;
        for open in &mut self.exchanges.open {
            if !std::mem::replace(&mut open.judged, true) {
                out.news().finished.push(Finished::of(open, None));
                exchange.get_or_insert_with(|| open.snapshot());
            }
        }
        let judged = Judged {
            at,
            verdict,
            exchange,
            status: None,
        };
        self.tell(judged, cx, out);
        true
    }

    /// What the verdict on an open exchange comes to where that is inside TLS.
    pub(super) fn through_tls(
        &self,
        ended: Ended,
        open: &Exchange,
        verdict: Option<Verdict>,
    ) -> Option<Verdict> {
        let Some(connection) = self.exchanges.tls.as_deref() else {
            return verdict;
        };
        if connection.judged {
            // A request that came too late for the refusal that was told of.
            return None;
        }
        let wire = connection.session.facts();
        let first = self.first_close.map(|(closer, _)| closer);
        let verdict = if ended == Ended::UpstreamFin && first == Some(Actor::Gateway) {
            verdict.map(on_farewell)
        } else {
            verdict
        };
        if !self.exchanges.is_hidden() {
            let fin = ended == Ended::UpstreamFin && self.lost() == 0;
            return verdict.map(|verdict| seen_inside_tls(verdict, wire, fin));
        }
        let run = TlsRun {
            wire,
            first: open.ordinal == 1,
            doubtful: connection.is_doubtful() || connection.has_piece(),
            sending: open.last_request.since(open.began),
        };
        verdict.and_then(|verdict| inside_tls(verdict, &run))
    }

    /// Judges a response that is cut off inside a record of TLS: whatever is inside, it is not complete.
    pub(super) fn judge_cut_record(
        &mut self,
        at: Timestamp,
        ended: Ended,
        cx: &mut Context<'_>,
        out: &mut Outcome,
    ) {
        // What the gateway's own close interrupted says nothing.
        let left = matches!(self.first_close, Some((Actor::Gateway, _)));
        if ended != Ended::UpstreamFin || left || self.lost() > 0 {
            return;
        }
        let Some(run) = self.exchanges.take_cut_run() else {
            return;
        };
        out.news().finished.push(Finished::of(&run, None));
        let judged = Judged {
            at,
            verdict: cut_record(run.response_bytes),
            exchange: Some(run),
            status: None,
        };
        self.tell(judged, cx, out);
    }

    /// Lets go of a run of records whose response was under way when the connection ended.
    pub(super) fn end_of_tls(&mut self, at: Timestamp, cx: &mut Context<'_>, out: &mut Outcome) {
        if self.speaks_tls() {
            let mut done = Done::default();
            self.exchanges.tls_answered(&mut done);
            self.after_bytes(at, &mut done, cx, out);
        }
    }

    /// What an event says of the hop's TLS; `source` proved its cause.
    pub(in crate::engine) fn tls_info(&self, source: EvidenceSource) -> Option<TlsInfo> {
        let facts = self.exchanges.tls.as_deref()?.session.facts();
        let client = facts.client.as_deref();
        let server = facts.server.as_ref();
        Some(TlsInfo {
            version: server.map(|server| server.version.to_string()),
            cipher: server.map(|server| cipher_name(server.cipher).into_owned()),
            sni: client.and_then(|client| client.sni.clone()),
            alpn: server.and_then(|server| server.alpn.clone()),
            source,
        })
    }
}
