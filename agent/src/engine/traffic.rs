//! What passed between a gateway and an upstream, summed up: what healthy and failed exchanges have in
//! common, so that rates have something to be rates of.

use std::time::Duration;

use super::exchange::Exchange;
use crate::model::{FIRST_BYTE_CLASSES, HeldExchanges, first_byte_class};

/// What passed between gateways and one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections that were established.
    pub connects: u64,
    /// Exchanges by the class of their final status, from 1xx to 5xx; those without one are in none.
    pub statuses: [u64; 5],
    /// Bytes of requests.
    pub request_bytes: u64,
    /// Bytes of responses.
    pub response_bytes: u64,
    /// Exchanges by the time from the last byte of the request to the first of the response:
    /// [`first_byte_class`].
    pub first_byte: [u64; FIRST_BYTE_CLASSES],
}

/// What an exchange that ended adds.
#[derive(Debug)]
pub(super) struct Finished {
    status: Option<u16>,
    request_bytes: u64,
    response_bytes: u64,
    first_byte: Option<Duration>,
}

impl Finished {
    pub(super) fn of(exchange: &Exchange, status: Option<u16>) -> Self {
        Self {
            status,
            request_bytes: exchange.end_offset - exchange.offset,
            response_bytes: exchange.response_bytes,
            first_byte: exchange
                .first_response
                .map(|first| first.since(exchange.last_request)),
        }
    }
}

/// Exchanges that ended with one input: hardly ever more than one, which needs no allocation.
#[derive(Debug, Default)]
pub(super) struct AllFinished {
    first: Option<Finished>,
    more: Vec<Finished>,
}

impl From<Finished> for AllFinished {
    fn from(finished: Finished) -> Self {
        Self {
            first: Some(finished),
            more: Vec::new(),
        }
    }
}

impl AllFinished {
    pub(super) fn push(&mut self, finished: Finished) {
        if self.first.is_none() {
            self.first = Some(finished);
        } else {
            self.more.push(finished);
        }
    }

    pub(super) const fn count(&self) -> u64 {
        self.first.is_some() as u64 + self.more.len() as u64
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Finished> {
        self.first.iter().chain(&self.more)
    }
}

impl Traffic {
    /// Adds what passed elsewhere.
    pub(super) fn join(&mut self, other: &Self) {
        self.connects += other.connects;
        for (count, more) in self.statuses.iter_mut().zip(other.statuses) {
            *count += more;
        }
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        for (count, more) in self.first_byte.iter_mut().zip(other.first_byte) {
            *count += more;
        }
    }

    pub(super) fn add(&mut self, finished: &Finished) {
        let class = finished.status.map(|status| usize::from(status / 100));
        if let Some(count) = class.and_then(|class| self.statuses.get_mut(class.checked_sub(1)?)) {
            *count += 1;
        }
        self.request_bytes += finished.request_bytes;
        self.response_bytes += finished.response_bytes;
        let class = finished.first_byte.map(first_byte_class);
        if let Some(count) = class.and_then(|class| self.first_byte.get_mut(class)) {
            *count += 1;
        }
    }

    pub(super) fn add_unseen(&mut self, held: &HeldExchanges) {
        for (count, more) in self.statuses.iter_mut().skip(1).zip(held.classes) {
            *count += u64::from(more);
        }
        self.request_bytes += held.request_bytes;
        self.response_bytes += held.response_bytes;
        for (count, more) in self.first_byte.iter_mut().zip(held.first_byte) {
            *count += u64::from(more);
        }
    }
}
