//! Whose a failed connect was, as goroutines tell.
//!
//! A gateway written in Go has a goroutine for each client's connection, which serves one request after another and
//! writes their answers (`net/http`, HTTP/1). For a request that needs a connection it starts another one to connect,
//! and the runtime remembers who started whom. No number is ever given twice:
//!
//! ```text
//!   goroutine 7 serves a client ─┬─ starts 8, which connects and fails ─ answers
//!                                └─ starts 9, which connects and fails ─┘
//! ```
//!
//! So a connect of a goroutine that the one that answers started, since the request came, was made for it. One that a
//! goroutine started that answers somebody else was not. Of any other nothing is said: goroutines in between, as where
//! two addresses are tried at once or where connections are queued for, hide who it was for.

use core::net::SocketAddr;
use std::collections::{HashMap, VecDeque};

use super::join::{self, Fit};
use super::{Answer, Answers, Attempt, MAX_REMEMBERED};
use crate::model::{Cause, Goroutine, Timestamp};

/// Whose a failed connect was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kin {
    /// That of the client who got the answer, beyond doubt.
    Own,
    /// Another client's, unless that one's goroutine started a connect that was queued for.
    Other,
    /// That is not known.
    Unknown,
}

/// A goroutine that answers clients.
#[derive(Debug)]
struct Server {
    /// When it did last.
    at: Timestamp,
    /// The client; none where there was more than one, so that it says nothing.
    client: Option<SocketAddr>,
}

/// A goroutine: its process and its number.
type Key = (u32, u64);

/// The goroutines that answered clients lately.
#[derive(Debug, Default)]
pub(super) struct Servers {
    all: HashMap<Key, Server>,
    /// Their keys, and when each was put there: oldest first.
    order: VecDeque<(Timestamp, Key)>,
}

impl Servers {
    /// Notes that a goroutine answered a client.
    ///
    /// What the kernel sends later by itself is sent as any goroutine runs: then one seems to have two clients.
    pub(super) fn answered(&mut self, at: Timestamp, pid: u32, goroutine: u64, client: SocketAddr) {
        let key = (pid, goroutine);
        if let Some(server) = self.all.get_mut(&key) {
            server.at = at;
            server.client = server.client.filter(|known| *known == client);
            return;
        }
        while self.all.len() >= MAX_REMEMBERED
            && let Some((since, oldest)) = self.order.pop_front()
        {
            // One that answered again since then goes behind the others.
            match self.all.get(&oldest) {
                Some(server) if server.at > since => self.order.push_back((server.at, oldest)),
                _ => drop(self.all.remove(&oldest)),
            }
        }
        let client = Some(client);
        self.all.insert(key, Server { at, client });
        self.order.push_back((at, key));
    }

    /// Whether a goroutine answers this client, and nobody else.
    fn serves(&self, pid: u32, goroutine: u64, client: SocketAddr) -> bool {
        let server = self.all.get(&(pid, goroutine));
        server.is_some_and(|server| server.client == Some(client))
    }

    /// Whether a goroutine answers another client than this one.
    fn serves_another(&self, pid: u32, goroutine: u64, client: SocketAddr) -> bool {
        let server = self.all.get(&(pid, goroutine));
        let known = server.and_then(|server| server.client);
        known.is_some_and(|known| known != client)
    }

    /// Whose a failed connect was. Times are not looked at.
    pub(super) fn kin(&self, answer: &Answer, attempt: &Attempt) -> Kin {
        match attempt.event.exchange {
            None => self.opened_for(answer, attempt),
            // A connection that is there may be used for whoever needs one.
            Some(_) => Kin::Unknown,
        }
    }

    /// For whom the connection of `attempt` was opened, where it was the first on that.
    pub(super) fn opened_for(&self, answer: &Answer, attempt: &Attempt) -> Kin {
        let pid = answer.process.pid;
        let (Some(own), Some(Goroutine { id, parent })) = (answer.goroutine, attempt.goroutine)
        else {
            return Kin::Unknown;
        };
        let client = answer.ends.0;
        // Where connections live on, whoever finds one first leaves its own to another.
        let lives_on = attempt.event.cause == Cause::UpstreamOwnError;
        if lives_on || attempt.pid() != Some(pid) || !self.serves(pid, own, client) {
            return Kin::Unknown;
        }
        // Some gateways connect in the goroutine that serves the client.
        let another = |goroutine| self.serves_another(pid, goroutine, client);
        if parent == own || id == own {
            Kin::Own
        } else if another(parent) || another(id) {
            Kin::Other
        } else {
            Kin::Unknown
        }
    }
}

impl Answers {
    /// The attempt behind an answer beyond doubt: the last connect that was made for it, unless something was asked for
    /// the client meanwhile or right before.
    ///
    /// Then the connect may have outlived the need for it, since another connection became free. Or it was made for
    /// somebody else: where connections are limited, who closes one starts the connect of whoever waits for it.
    pub(super) fn last_of_kin(&self, answer: &Answer) -> Option<usize> {
        let fitting = |attempt: &Attempt| {
            let free = attempt.event.gateway_answer.is_none() && !attempt.listed;
            Fit::of(answer, attempt).filter(|_| free)
        };
        let own = self.attempts.iter().enumerate().filter(|(_, attempt)| {
            self.servers.kin(answer, attempt) == Kin::Own && fitting(attempt).is_some()
        });
        let (place, last) = own.max_by_key(|(_, attempt)| attempt.event.time)?;
        let asked = |attempt: &Attempt| {
            attempt.event.exchange.is_some()
                && self.servers.opened_for(answer, attempt) != Kin::Other
                && attempt.event.time.after(join::AT_ONCE) >= last.began
                && fitting(attempt).is_some_and(|fit| fit.is_by_request())
        };
        (!self.attempts.iter().any(asked)).then_some(place)
    }

    /// Of attempts that fit an answer alike, what tells them apart: the last one whose connection was opened for it, or
    /// those whose connections were not opened for others. Most are used for whom they were opened.
    pub(super) fn opened_for(&self, answer: &Answer, fitting: &mut Vec<(usize, Fit)>) {
        let Some((_, best)) = fitting.iter().max_by_key(|(_, fit)| *fit).copied() else {
            return;
        };
        let opened_for = |place: usize| {
            let attempt = self.attempts.get(place);
            attempt.map_or(Kin::Unknown, |attempt| {
                self.servers.opened_for(answer, attempt)
            })
        };
        let alike = fitting.iter().filter(|(_, fit)| fit.is_as_good_as(&best));
        let failed = |place: usize| self.attempts.get(place).map(|attempt| attempt.event.time);
        let own = alike
            .clone()
            .filter(|(place, _)| opened_for(*place) == Kin::Own);
        if let Some((own, _)) = own.max_by_key(|(place, _)| failed(*place)).copied() {
            fitting.retain(|(place, fit)| *place == own || !fit.is_as_good_as(&best));
        } else if alike
            .clone()
            .any(|(place, _)| opened_for(*place) != Kin::Other)
        {
            fitting.retain(|(place, fit)| {
                opened_for(*place) != Kin::Other || !fit.is_as_good_as(&best)
            });
        }
    }

    /// Connects that were made for an answer and are not listed as attempts for it.
    pub(super) fn unlisted_kin(&self, answer: &Answer, listed: &[usize]) -> Vec<usize> {
        let all = self.attempts.iter().enumerate();
        let own = all.filter(|(place, attempt)| {
            self.servers.kin(answer, attempt) == Kin::Own
                && !listed.contains(place)
                && !attempt.listed
                && attempt.event.gateway_answer.is_none()
                && Fit::of(answer, attempt).is_some()
        });
        own.map(|(place, _)| place).collect()
    }
}
