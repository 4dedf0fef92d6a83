//! One resolution: what was asked and what came back.

use core::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{AT_ONCE, Asker, Exchanged, LEAST_TIMEOUT, LONGEST, Learned, MAX_ASKED, QUIET, SETTLE};
use crate::dns::{Ede, Message, Name, Question, rcode};
use crate::model::{Process, Timestamp};

/// What an answer comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Addresses.
    Addresses,
    /// Perhaps: the answer was captured short.
    Unknown,
    /// The name exists and has no address of that family.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// The server could not get an answer.
    ServFail,
    /// The server will not answer.
    Refused,
    /// Nothing that a program could use.
    Unusable(Unusable),
}

/// Why an answer could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unusable {
    /// The server says that it could not read the query.
    FormErr,
    /// The server says that it does not know such queries.
    NotImp,
    /// A response code that no resolver should give.
    Code(u16),
    /// Its id is not that of the query.
    WrongId,
    /// It answers another question.
    WrongQuestion,
    /// It did not fit, holds no address, and none came over TCP.
    Truncated,
    /// Its records do not fit into the message.
    Damaged,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// When it came.
    pub at: Timestamp,
    /// Who sent it.
    pub from: SocketAddr,
    /// What it comes to.
    pub outcome: Outcome,
    /// Its extended errors.
    pub ede: Vec<Ede>,
    /// Its header.
    pub header: [u8; 12],
    /// Where the name leads, if it is an alias.
    pub alias: Option<Name>,
}

/// A query with its repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name: that of the resolution, or what that is an alias of.
    pub name: Name,
    /// The record type.
    pub kind: u16,
    /// Its id.
    pub id: u16,
    /// The end that asked.
    pub local: SocketAddr,
    /// Who was asked.
    pub resolver: SocketAddr,
    /// Whether over TCP.
    pub tcp: bool,
    /// When first.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
    /// How often.
    pub times: u32,
    /// The answer.
    pub reply: Option<Reply>,
    /// What came that was no answer to it.
    pub ignored: Option<Reply>,
}

/// A resolution that gave no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The name.
    pub name: Name,
    /// The process that asked, where the kernel told it.
    pub process: Option<Arc<Process>>,
    /// Whether that is a resolver of the gateway's host, which asked on behalf of others.
    pub on_behalf: bool,
    /// The end that asked first.
    pub local: SocketAddr,
    /// Records that the source had lost when it began.
    pub lost_before: u64,
    /// When it began.
    pub began: Timestamp,
    /// When its last query or answer was seen.
    pub ended: Timestamp,
    /// When it was taken to be over.
    pub decided: Timestamp,
    /// What was asked, in order.
    pub asked: Vec<Asked>,
    /// The same of the names that search domains made of it.
    pub expansions: Vec<Asked>,
}

/// How a resolution stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// An answer is to come.
    Waiting,
    /// It gave addresses.
    Resolved,
    /// Every question was answered, without an address.
    Failed,
}

/// A resolution.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) asker: Asker,
    pub(super) process: Option<Arc<Process>>,
    pub(super) on_behalf: bool,
    pub(super) name: Name,
    pub(super) lost_before: u64,
    pub(super) began: Timestamp,
    pub(super) ended: Timestamp,
    pub(super) asked: Vec<Asked>,
    pub(super) expansions: Vec<Asked>,
    /// The program connects to an address of the name.
    pub(super) used: bool,
    /// When the program began anew although no answer had come.
    pub(super) given_up: Option<Timestamp>,
    /// The other one that has to be decided before it.
    pub(super) waits_for: Option<u64>,
    /// Its entry among the deadlines.
    pub(super) due: Timestamp,
}

impl Lookup {
    pub(super) fn new(at: Timestamp, with: &Exchanged<'_>, name: Name) -> Self {
        Self {
            asker: with.asker,
            process: with.process.cloned(),
            on_behalf: with.on_behalf,
            name,
            lost_before: with.lost,
            began: at,
            ended: at,
            asked: Vec::new(),
            expansions: Vec::new(),
            used: false,
            given_up: None,
            waits_for: None,
            due: at,
        }
    }

    pub(super) fn asked_from(&self, local: SocketAddr) -> bool {
        self.asked.iter().any(|asked| asked.local == local)
    }

    /// Whether a query is part of it.
    pub(super) fn takes(&self, at: Timestamp, with: &Exchanged<'_>, id: u16, kind: u16) -> bool {
        if self.given_up.is_some() || at.since(self.began) > LONGEST {
            return false;
        }
        let mut earlier = self.of_kind(kind).peekable();
        if earlier.peek().is_none() {
            // The other family, at once or after the first has been answered.
            return self.state() == State::Waiting || at.since(self.ended) <= SETTLE;
        }
        earlier.all(|asked| {
            let another_port = asked.local != with.local;
            let same_id = asked.id == id;
            let Some(reply) = &asked.reply else {
                if same_id {
                    return true;
                }
                let waited = at.since(asked.last);
                let elsewhere = asked.resolver != with.resolver && waited <= AT_ONCE;
                return another_port && (elsewhere || waited >= LEAST_TIMEOUT);
            };
            let soon = at.since(reply.at) <= AT_ONCE;
            match reply.outcome {
                _ if same_id && soon => true,
                Outcome::ServFail | Outcome::Refused => another_port && soon,
                // Asked over TCP, or without extensions that the server minds.
                Outcome::Unusable(_) => same_id || with.tcp || soon,
                // An alias that the server did not follow.
                Outcome::NoData => reply.alias.is_some() && soon,
                Outcome::Addresses | Outcome::Unknown | Outcome::NxDomain => false,
            }
        })
    }

    /// Whether a query begins the same resolution anew: from a port that is kept, under a new id,
    /// though the one before was not answered.
    pub(super) fn is_given_up_by(
        &self,
        at: Timestamp,
        with: &Exchanged<'_>,
        id: u16,
        kind: u16,
    ) -> bool {
        self.state() == State::Waiting
            && self.of_kind(kind).any(|asked| {
                asked.id != id && asked.local == with.local && at.since(asked.last) >= LEAST_TIMEOUT
            })
    }

    /// Notes a query. Returns false where there is no more room for it.
    pub(super) fn ask(
        &mut self,
        at: Timestamp,
        with: &Exchanged<'_>,
        id: u16,
        name: Name,
        kind: u16,
    ) -> bool {
        self.ended = self.ended.max(at);
        let same = self.asked.iter_mut().find(|asked| {
            (asked.id, asked.kind, asked.tcp) == (id, kind, with.tcp)
                && (asked.local, asked.resolver) == (with.local, with.resolver)
                && asked.name == name
        });
        if let Some(asked) = same {
            asked.times = asked.times.saturating_add(1);
            asked.last = at;
            return true;
        }
        let room = self.asked.len() < MAX_ASKED;
        if room {
            self.asked.push(Asked {
                name,
                kind,
                id,
                local: with.local,
                resolver: with.resolver,
                tcp: with.tcp,
                first: at,
                last: at,
                times: 1,
                reply: None,
                ignored: None,
            });
        }
        room
    }

    /// Whether it waits for an answer to `question` at `local`.
    pub(super) fn expects(&self, local: SocketAddr, question: &Question) -> bool {
        self.asked.iter().any(|asked| {
            asked.reply.is_none()
                && asked.local == local
                && asked.kind == question.kind
                && asked.name == question.name
        })
    }

    /// Takes an answer under the id of one of its queries.
    pub(super) fn answer(
        &mut self,
        at: Timestamp,
        with: &Exchanged<'_>,
        message: &Message,
    ) -> Option<Learned> {
        let id = message.header.id;
        let question = message.question.as_ref();
        let own = |asked: &&mut Asked| {
            (asked.id, asked.tcp) == (id, with.tcp)
                && asked.local == with.local
                && question.is_none_or(|question| {
                    asked.kind == question.kind && asked.name == question.name
                })
        };
        // The same query may have gone to several resolvers from one port; a capture of translated
        // addresses shows other ones.
        let place = self
            .asked
            .iter_mut()
            .filter(own)
            .max_by_key(|asked| (asked.reply.is_none(), asked.resolver == with.resolver));
        let Some(asked) = place else {
            self.ignored(at, with, message, Unusable::WrongQuestion);
            return None;
        };
        if asked.reply.is_some() {
            return None;
        }
        let first = asked.first;
        let reply = reply(at, with, message, outcome(message));
        let resolved = reply.outcome == Outcome::Addresses;
        asked.reply = Some(reply);
        self.ended = self.ended.max(at);
        resolved.then(|| Learned {
            name: self.name.clone(),
            asked: first,
            addresses: message.body.addresses.clone(),
            ttl: message.body.ttl.unwrap_or(Duration::ZERO),
            cut: message.body.cut || message.header.truncated,
        })
    }

    /// Notes an answer that no program takes.
    pub(super) fn ignored(
        &mut self,
        at: Timestamp,
        with: &Exchanged<'_>,
        message: &Message,
        why: Unusable,
    ) {
        let kind = message.question.as_ref().map(|question| question.kind);
        let waiting = |asked: &&mut Asked| asked.reply.is_none() && asked.local == with.local;
        let place = self
            .asked
            .iter_mut()
            .filter(waiting)
            .max_by_key(|asked| kind == Some(asked.kind));
        if let Some(asked) = place {
            asked
                .ignored
                .get_or_insert_with(|| reply(at, with, message, Outcome::Unusable(why)));
        }
    }

    /// Notes that a message of `with` may have been missed. Returns whether that changes anything.
    pub(super) fn missed(&mut self, at: Timestamp, with: &Exchanged<'_>) -> bool {
        let mut changes = false;
        for asked in &mut self.asked {
            let cut = Outcome::Unusable(Unusable::Truncated);
            let waits = match &asked.reply {
                None => asked.tcp && asked.local == with.local,
                Some(reply) => reply.outcome == cut,
            };
            if waits && asked.resolver == with.resolver {
                asked.reply = Some(Reply {
                    at,
                    from: with.resolver,
                    outcome: Outcome::Unknown,
                    ede: Vec::new(),
                    header: [0; 12],
                    alias: None,
                });
                changes = true;
            }
        }
        changes
    }

    /// What the name is an alias of, by the last answer.
    pub(super) fn alias(&self) -> Option<&Name> {
        self.aliases().last()
    }

    pub(super) fn aliases(&self) -> impl Iterator<Item = &Name> {
        self.asked
            .iter()
            .filter_map(|asked| asked.reply.as_ref()?.alias.as_ref())
    }

    fn of_kind(&self, kind: u16) -> impl Iterator<Item = &Asked> {
        self.asked.iter().filter(move |asked| asked.kind == kind)
    }

    /// How it stands.
    pub(super) fn state(&self) -> State {
        let kinds = [crate::dns::kind::A, crate::dns::kind::AAAA];
        let mut all = State::Failed;
        for kind in kinds {
            match self.state_of(kind) {
                State::Resolved => return State::Resolved,
                State::Waiting => all = State::Waiting,
                State::Failed => {}
            }
        }
        all
    }

    /// How one family stands; one that was not asked for has failed.
    fn state_of(&self, kind: u16) -> State {
        let mut state = State::Failed;
        let mut answered = false;
        for asked in self.of_kind(kind) {
            let reply = asked.reply.as_ref();
            let alias = reply.and_then(|reply| reply.alias.as_ref());
            match reply.map(|reply| reply.outcome) {
                Some(Outcome::NoData) if self.is_followed(kind, alias) => {}
                Some(Outcome::Addresses | Outcome::Unknown) => return State::Resolved,
                Some(Outcome::NxDomain | Outcome::NoData) => answered = true,
                Some(
                    Outcome::ServFail | Outcome::Refused | Outcome::Unusable(Unusable::NotImp),
                ) => {}
                // Programs wait for a better answer.
                Some(Outcome::Unusable(_)) | None => state = State::Waiting,
            }
        }
        if answered { State::Failed } else { state }
    }

    /// Whether the program asked for what the name is an alias of.
    fn is_followed(&self, kind: u16, alias: Option<&Name>) -> bool {
        alias.is_some_and(|alias| self.of_kind(kind).any(|asked| asked.name == *alias))
    }

    /// When it wants to be looked at.
    pub(super) fn deadline(&self) -> Timestamp {
        let asked = self.asked.iter().map(|asked| asked.last).max();
        match (self.given_up, self.state()) {
            (Some(at), State::Waiting) => at.after(SETTLE),
            (None, State::Waiting) => {
                let quiet = asked.unwrap_or(self.began).after(QUIET);
                quiet.min(self.began.after(LONGEST))
            }
            (_, State::Resolved | State::Failed) => self.ended.after(SETTLE),
        }
    }
}

fn reply(at: Timestamp, with: &Exchanged<'_>, message: &Message, outcome: Outcome) -> Reply {
    Reply {
        at,
        from: with.resolver,
        outcome,
        ede: message.body.ede.clone(),
        header: message.header.bytes,
        alias: message.body.aliases.last().cloned(),
    }
}

/// What an answer to the right question comes to.
fn outcome(message: &Message) -> Outcome {
    let body = &message.body;
    match message.header.rcode {
        rcode::NOERROR if !body.addresses.is_empty() => Outcome::Addresses,
        rcode::NOERROR if message.header.truncated => Outcome::Unusable(Unusable::Truncated),
        rcode::NOERROR if body.cut => Outcome::Unknown,
        rcode::NOERROR if body.damaged => Outcome::Unusable(Unusable::Damaged),
        rcode::NOERROR => Outcome::NoData,
        rcode::NXDOMAIN => Outcome::NxDomain,
        rcode::SERVFAIL => Outcome::ServFail,
        rcode::REFUSED => Outcome::Refused,
        rcode::FORMERR => Outcome::Unusable(Unusable::FormErr),
        rcode::NOTIMP => Outcome::Unusable(Unusable::NotImp),
        other => Outcome::Unusable(Unusable::Code(other)),
    }
}
