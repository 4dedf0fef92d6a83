//! Why a name gave no address, and whether an address is still one of its name.

use std::sync::Arc;
use std::time::Duration;

use super::{Verdict, fact, human};
use crate::dns::{Asked, Ede, Name, Outcome, Reply, Resolution, Unusable, kind, rcode};
use crate::model::{Cause, Evidence, EvidenceSource, Phase, Process, Proof};

/// Facts of one kind that are told: more say no more.
const MAX_TOLD: usize = 4;

/// What a resolver of the gateway's own host was answered when it asked for the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The resolver.
    pub process: Option<Arc<Process>>,
    /// What it asked, and what came back.
    pub asked: Asked,
}

/// The cause of a failed resolution: what the answers, or their absence, say of it.
///
/// Where the families were answered differently, the answer that speaks for the whole name decides:
/// NXDOMAIN (RFC 8020), then what kept a resolver from answering, then silence, and that there is no
/// address of one family last. A search domain that was not answered decides over a bare name that does
/// not exist.
pub fn unresolved(resolution: &Resolution, behind: Option<&Behind>) -> Option<Verdict> {
    let own = decisive(&resolution.asked)?;
    let expansion = decisive(&resolution.expansions).filter(|asked| {
        let negative = |rank| matches!(rank, Rank::NxDomain | Rank::NoData);
        negative(rank(own)) && !negative(rank(asked))
    });
    let asked = expansion.unwrap_or(own);
    let (cause, why) = cause(asked);
    // Streams are read only as far as nothing is missing: silence there may be ours.
    let silent = |one: &Asked| one.tcp && one.reply.is_none();
    if rank(asked) == Rank::Silence
        && resolution
            .asked
            .iter()
            .chain(&resolution.expansions)
            .any(silent)
    {
        return None;
    }
    let agree = resolution.asked.iter().all(|other| {
        rank(other) == rank(asked) || (rank(asked) == Rank::NxDomain && rank(other) == Rank::NoData)
    });
    let seen = asked.reply.is_some() && why != Some(Unusable::Truncated) || asked.ignored.is_some();
    let proof = if seen && agree && expansion.is_none() {
        Proof::Proven
    } else {
        // Silence is known by what did not happen.
        Proof::Inferred
    };
    let verdict = Verdict::new(cause, proof, Phase::Resolve, told(resolution, asked));
    let others = resolution
        .asked
        .iter()
        .filter(|other| rank(other) != rank(asked) || other.resolver != asked.resolver)
        .take(MAX_TOLD)
        .map(|other| told(resolution, other));
    let alias = asked.reply.as_ref().and_then(|reply| {
        let alias = reply.alias.as_ref()?;
        let text = format!("{} is an alias of {alias}", asked.name);
        Some(fact(EvidenceSource::Packet, "dns_alias", text))
    });
    Some(
        verdict
            .with(asked.reply.iter().flat_map(extended))
            .with(alias)
            .with(others)
            .with(searched(resolution))
            .with(behind.map(behind_told)),
    )
}

/// What decides over what, the first over all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    NxDomain,
    ServFail,
    Refused,
    Unusable,
    Silence,
    NoData,
}

fn decisive(asked: &[Asked]) -> Option<&Asked> {
    asked.iter().min_by_key(|asked| rank(asked))
}

fn rank(asked: &Asked) -> Rank {
    match asked.reply.as_ref().map(|reply| reply.outcome) {
        Some(Outcome::NxDomain) => Rank::NxDomain,
        Some(Outcome::ServFail) => Rank::ServFail,
        Some(Outcome::Refused) => Rank::Refused,
        Some(Outcome::Unusable(_)) => Rank::Unusable,
        Some(Outcome::NoData | Outcome::Addresses | Outcome::Unknown) => Rank::NoData,
        None if asked.ignored.is_some() => Rank::Unusable,
        None => Rank::Silence,
    }
}

fn cause(asked: &Asked) -> (Cause, Option<Unusable>) {
    let reply = asked.reply.as_ref().or(asked.ignored.as_ref());
    let why = match reply.map(|reply| reply.outcome) {
        Some(Outcome::Unusable(why)) => Some(why),
        _ => None,
    };
    let cause = match rank(asked) {
        Rank::NxDomain => Cause::DnsNxdomain,
        Rank::ServFail => Cause::DnsServfail,
        Rank::Refused => Cause::DnsRefused,
        Rank::Unusable => Cause::DnsBadReply,
        Rank::Silence => Cause::DnsTimeout,
        Rank::NoData => Cause::DnsNodata,
    };
    (cause, why)
}

/// One query and what came of it.
fn told(resolution: &Resolution, asked: &Asked) -> Evidence {
    let question = format!("{} ({})", asked.name, kinds(resolution, asked));
    let over = if asked.tcp { " over TCP" } else { "" };
    let resolver = asked.resolver;
    let reply = asked.reply.as_ref().or(asked.ignored.as_ref());
    let Some(reply) = reply else {
        let times: u32 = same(resolution, asked).map(|other| other.times).sum();
        let silence = human(resolution.decided.since(asked.first));
        let text = format!(
            "no answer from {resolver}{over} for {question} in {silence}, asked {times} times"
        );
        return fact(
            EvidenceSource::Timer,
            "dns_unanswered",
            text.replace("1 times", "once"),
        );
    };
    let sent = if asked.last <= reply.at {
        asked.last
    } else {
        asked.first
    };
    let after = human(reply.at.since(sent));
    let what = outcome(asked, reply);
    let text = format!("{resolver} answered {what} for {question}{over} after {after}");
    let mut evidence = fact(EvidenceSource::Packet, "dns_answer", text);
    evidence.bytes = reply.header.to_vec();
    evidence
}

fn unusable(why: Unusable, asked: &Asked, reply: &Reply) -> String {
    let [high, low, ..] = reply.header;
    match why {
        Unusable::FormErr => format!("{}, which gateways ignore,", code(rcode::FORMERR)),
        Unusable::NotImp => code(rcode::NOTIMP),
        Unusable::Code(other) => code(other),
        Unusable::WrongId => format!(
            "under id {:#06x} where {:#06x} was asked",
            u16::from_be_bytes([high, low]),
            asked.id
        ),
        Unusable::WrongQuestion => "another question than the one".to_owned(),
        Unusable::Truncated => {
            "truncated, without an address and without more over TCP,".to_owned()
        }
        Unusable::Damaged => "a message whose records do not fit into it".to_owned(),
    }
}

fn code(code: u16) -> String {
    rcode::name(code).map_or_else(|| format!("response code {code}"), str::to_owned)
}

/// The queries of the same name and resolver with the same end.
fn same<'a>(resolution: &'a Resolution, asked: &'a Asked) -> impl Iterator<Item = &'a Asked> {
    let all = resolution.asked.iter().chain(&resolution.expansions);
    all.filter(move |other| {
        (&other.name, other.resolver, other.tcp) == (&asked.name, asked.resolver, asked.tcp)
            && rank(other) == rank(asked)
    })
}

/// The families that were asked for alike.
fn kinds(resolution: &Resolution, asked: &Asked) -> String {
    let asked_for = |kind| same(resolution, asked).any(|other| other.kind == kind);
    match (asked_for(kind::A), asked_for(kind::AAAA)) {
        (true, true) => "A and AAAA",
        (true, false) => "A",
        _ => "AAAA",
    }
    .to_owned()
}

fn extended(reply: &Reply) -> impl Iterator<Item = Evidence> {
    reply.ede.iter().map(|ede| {
        let text = format!("the answer carries {}", ede_text(ede));
        fact(EvidenceSource::Packet, "dns_extended_error", text)
    })
}

fn ede_text(ede: &Ede) -> String {
    let purpose = ede.purpose().unwrap_or("unknown");
    let code = ede.code;
    if ede.text.is_empty() {
        format!("extended error {code} ({purpose})")
    } else {
        format!("extended error {code} ({purpose}): {}", ede.text)
    }
}

/// What search domains made of the name, and what came of that.
fn searched(resolution: &Resolution) -> Option<Evidence> {
    let mut names: Vec<&Name> = resolution
        .expansions
        .iter()
        .map(|asked| &asked.name)
        .collect();
    names.dedup();
    let first = names.first()?;
    let more = match names.len() {
        1 => String::new(),
        more => format!(" and {} more", more - 1),
    };
    let text = format!("search domains were tried as well: {first}{more} gave no address either");
    Some(fact(EvidenceSource::Packet, "dns_search", text))
}

/// What a reply came to, in words.
fn outcome(asked: &Asked, reply: &Reply) -> String {
    match reply.outcome {
        Outcome::NoData => "NOERROR without an address".to_owned(),
        Outcome::NxDomain => code(rcode::NXDOMAIN),
        Outcome::ServFail => code(rcode::SERVFAIL),
        Outcome::Refused => code(rcode::REFUSED),
        Outcome::Addresses | Outcome::Unknown => "addresses".to_owned(),
        Outcome::Unusable(why) => unusable(why, asked, reply),
    }
}

fn behind_told(behind: &Behind) -> Evidence {
    let who = behind.process.as_ref().map_or_else(
        || "a resolver of this host".to_owned(),
        |process| format!("{}[{}]", process.comm, process.pid),
    );
    let asked = &behind.asked;
    let text = match asked.reply.as_ref().or(asked.ignored.as_ref()) {
        Some(reply) => {
            let what = outcome(asked, reply);
            let ede = reply.ede.first().map(ede_text);
            let ede = ede.map_or_else(String::new, |ede| format!(", {ede}"));
            format!(
                "{who} had asked {} and was answered {what}{ede}",
                asked.resolver
            )
        }
        None => format!("{who} had asked {} and was not answered", asked.resolver),
    };
    fact(EvidenceSource::Packet, "dns_behind", text)
}

/// What is known of an address that a connect failed to.
#[derive(Clone, Copy, Debug)]
pub struct StaleFacts<'a> {
    /// The name that the gateway had it from.
    pub name: &'a Name,
    /// How long before the connect an answer held the address last, whoever asked.
    pub last_held: Duration,
    /// How long that answer held good.
    pub ttl: Duration,
    /// How long before the connect the name gave other addresses last.
    pub moved: Duration,
    /// One of those.
    pub now: core::net::IpAddr,
    /// How many there are.
    pub count: usize,
}

/// Whether a failed connect may come of an address that its name no longer has: nothing of use is there.
pub const fn may_be_stale(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::TcpConnectRefused
            | Cause::TcpConnectBlackholed
            | Cause::TcpConnectHostUnreachable
            | Cause::TcpConnectNoNeighbour
    )
}

/// The verdict on a failed connect to an address that its name no longer has. What the connect itself
/// showed goes along.
pub fn stale_address(connect: Verdict, facts: &StaleFacts<'_>) -> Verdict {
    let more = match facts.count {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let text = format!(
        "{} was {}{more} in its last answer, {} before; it was this address last {} before, for {} s",
        facts.name,
        facts.now,
        human(facts.moved),
        human(facts.last_held),
        facts.ttl.as_secs()
    );
    let decisive = fact(EvidenceSource::Packet, "dns_moved", text);
    Verdict::new(
        Cause::DnsStaleAddress,
        Proof::Inferred,
        connect.phase,
        decisive,
    )
    .with(connect.evidence)
}
