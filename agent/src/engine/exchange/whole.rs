//! Requests without a body and responses of known length, where the head is whole in one piece: what
//! [`Exchanges::sent`] and [`Exchanges::received`] make of them in several steps is done at once.

use super::{Exchanges, kind};
use crate::engine::traffic::Finished;
use crate::http1::{Protocol, RequestHead, SizedHead};
use crate::limits::Limits;
use crate::model::Timestamp;

impl Exchanges {
    /// The head of the request that `bytes` are, where nothing is open that it has to wait for.
    pub(in crate::engine) fn whole_request(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
    ) -> Option<RequestHead> {
        let free = self.open.is_empty()
            && self.tls.is_none()
            && !self.overflowed
            && limits.pipelined > 0
            && self.response.is_fresh();
        self.request.whole(bytes).filter(|_| free)
    }

    /// Gives back a head of [`Exchanges::whole_request`] that was not used.
    pub(in crate::engine) fn give_back(&mut self, head: RequestHead) {
        self.request.recycle(head);
    }

    /// Begins an exchange with such a request.
    pub(in crate::engine) fn ask(&mut self, at: Timestamp, bytes: u32, head: RequestHead) {
        self.begin(at, self.sent, false);
        self.sent += u64::from(bytes);
        self.protocol = Some(Protocol::Http1);
        if let Some(exchange) = self.open.back_mut() {
            exchange.end_offset = self.sent;
            exchange.head = Some(head);
            exchange.complete = true;
        }
    }

    /// What the head says that `bytes` begin with, if they answer the only open exchange and nothing is
    /// wrong with it so far, its request being acknowledged up to `acked`.
    pub(in crate::engine) fn sized_answer(
        &mut self,
        bytes: &[u8],
        acked: u64,
    ) -> Option<SizedHead> {
        if !self.sized
            || self.tls.is_some()
            || self.open.len() != 1
            || self.protocol != Some(Protocol::Http1)
        {
            return None;
        }
        let exchange = self.open.front()?;
        let unasked = exchange.unasked || exchange.ordinal > 1 && acked <= exchange.offset;
        let web_socket = exchange.head.as_ref().is_some_and(|head| head.web_socket);
        if unasked || web_socket || exchange.judged || !exchange.complete {
            return None;
        }
        let head = self.response.sized(bytes, kind(exchange));
        // An upstream that answered in another way is likely to do so again.
        self.sized = head.is_some();
        head.filter(|head| !head.is_whole() || head.status < 500)
    }

    /// Takes such an answer. Returns what it adds, if it is the whole response.
    pub(in crate::engine) fn answer(
        &mut self,
        at: Timestamp,
        head: &SizedHead,
        acked: u64,
    ) -> Option<Finished> {
        self.acked = acked;
        let exchange = self.open.front_mut()?;
        exchange.first_response = Some(at);
        exchange.last_response = Some(at);
        exchange.response_bytes += head.taken;
        if !head.is_whole() {
            self.response.begin_sized(head);
            return None;
        }
        let finished = Finished::of(exchange, Some(head.status));
        if let Some(exchange) = self.open.pop_front() {
            self.forget(exchange);
        }
        self.sending = false;
        self.last_end = Some(at);
        Some(finished)
    }
}
