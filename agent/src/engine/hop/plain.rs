//! What the gateway reads and writes inside TLS.

use super::{Context, Hop, Outcome};
use crate::engine::exchange::Done;
use crate::engine::traffic::Finished;
use crate::model::{Plaintext, Timestamp};

impl Hop {
    /// Takes what the gateway's TLS library took from it for the upstream, or gave to it.
    pub(in crate::engine) fn plaintext(
        &mut self,
        at: Timestamp,
        text: &Plaintext<'_>,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let mut out = Outcome::default();
        // The word of a write comes when it ends: the upstream may have answered it by then, and closed.
        let closed = self.from.closed().is_some_and(|(_, closed)| closed < at);
        let (told, at) = (at, self.heard(at));
        let mut done = Done::default();
        self.exchanges.acked = self.to.acked();
        let taken =
            self.exchanges
                .plaintext((told, at), text, closed, cx.limits, cx.stats, &mut done);
        if taken {
            self.after_bytes(at, &mut done, cx, &mut out);
            if self.from.closed().is_some() {
                self.after_close(at, cx, &mut out);
            }
        }
        self.arm(&mut out);
        out
    }

    /// The connection ended, and how the response ends is not known: what the upstream sent was not read to
    /// its end, or its text was lost.
    pub(super) fn leave_unjudged(&mut self, cx: &mut Context<'_>, out: &mut Outcome) {
        let mut status = self.exchanges.response.status();
        for open in &mut self.exchanges.open {
            let status = status.take();
            if !std::mem::replace(&mut open.judged, true) {
                cx.stats.unjudged_gateway_closed += 1;
                out.news().finished.push(Finished::of(open, status));
            }
        }
    }
}
