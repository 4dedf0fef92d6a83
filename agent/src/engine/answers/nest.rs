//! Gateways behind gateways: one that passes requests on to itself, and one whose upstream is another on this host.

use core::net::SocketAddr;

use super::{Answer, Answers, Past};
use crate::model::{Cause, HopEvent};

impl Answers {
    /// How many answers to the same request, by the same listener, lie one within the other from this one on: the
    /// next one was given on the very connection that `event` was on. Notes it for the answer around this one.
    ///
    /// Clients that ask the same at once look like that too where the gateway passes each on to itself once. So
    /// there must be more of them than the clients of that time account for.
    pub(super) fn nest(&mut self, answer: &Answer, event: &HopEvent) -> usize {
        let (method, host, path) = (
            answer.request.method(),
            answer.request.host(),
            answer.request.path(),
        );
        let local = event
            .local
            .map(|local| SocketAddr::new(local.address, local.port));
        let (mut clients, mut inner, mut next) = (0, 0, 1);
        let same = |past: &&Past| {
            past.ends.1 == answer.ends.1
                && past.process.netns == answer.process.netns
                && past.process.comm == answer.process.comm
                && past.method.as_deref() == method.as_deref()
                && past.host.as_deref() == host.as_deref()
                && past.path.as_deref() == path.as_deref()
        };
        for past in self.past.iter().filter(same) {
            let within = past.asked.at >= answer.asked.at && past.at <= answer.at;
            if !past.own {
                let meanwhile = past.asked.at <= answer.at && past.at >= answer.asked.at;
                clients += usize::from(meanwhile);
            } else if within && past.ends != answer.ends {
                inner += 1;
                if Some(past.ends.0) == local {
                    next = past.nested + 1;
                }
            }
        }
        let nested = if inner < next.saturating_sub(1) * clients {
            1
        } else {
            next
        };
        let itself = |past: &&mut Past| {
            past.ends == answer.ends && past.asked.at == answer.asked.at && past.at == answer.at
        };
        if let Some(past) = self.past.iter_mut().rev().find(itself) {
            past.nested = nested;
        }
        nested
    }

    /// Says where the upstream that made the status is a gateway on this host itself: its own answer to
    /// the first one was seen, on the very connection.
    pub(super) fn name_second_gateway(&self, event: &mut HopEvent) {
        let (Cause::UpstreamOwnError, Some(local), Some(upstream)) =
            (event.cause, event.local, event.upstream.socket_addr())
        else {
            return;
        };
        let ends = (SocketAddr::new(local.address, local.port), upstream);
        if let Some(past) = self.past.iter().rev().find(|past| past.ends == ends) {
            crate::classify::second_gateway(event, &past.process);
        }
    }
}
