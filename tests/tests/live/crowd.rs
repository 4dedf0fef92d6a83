//! Many clients at once, who get failures of all kinds beside each other: each 5xx that the gateway logged is explained
//! once, nearly all for sure, and none by another client's failure.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use hopscope_tests::access::{Asked, Logged};
use hopscope_tests::agent::{Agent, Answer, Event};
use hopscope_tests::case::{Account, Bench, Gateway, Reply, Setting, Told, crowd, settle, tally};
use hopscope_tests::cgroup::Cgroup;
use hopscope_tests::socket::Target;

/// Requests of each client.
const EACH: u16 = 32;

/// What the agent says of the failures that a gateway logged.
#[derive(Debug, Default)]
struct Outcome {
    /// Behind attempts, and beyond doubt.
    explained: usize,
    /// Behind attempts, where something else may be meant.
    ambiguous: Vec<String>,
    /// Made with no upstream asked, told with the rivals that packets cannot exclude.
    local: usize,
    passed_on: usize,
    /// Counted by the agent, with nothing said.
    unexplained: Vec<String>,
    wrong: Vec<String>,
}

impl Outcome {
    /// Whether at least 99 of 100 failures are explained, and but for so many of 100 those behind attempts for sure.
    fn is_clear(&self, ambiguous: usize) -> bool {
        let behind_attempts = self.explained + self.ambiguous.len();
        let all = behind_attempts + self.local + self.passed_on + self.unexplained.len();
        behind_attempts > 200
            && self.local > 0
            && self.passed_on > 0
            && self.ambiguous.len() * 100 <= ambiguous * behind_attempts
            && self.unexplained.len() * 100 <= all
    }
}

/// What a gateway logged and what the agent says of it.
struct Crowd<'a> {
    replies: &'a [Reply],
    /// Why requests to each upstream fail.
    causes: HashMap<SocketAddr, &'static str>,
    /// Every event of the gateway.
    events: Vec<&'a Event>,
    logged: Vec<Logged>,
}

impl Crowd<'_> {
    fn judge(&self) -> Outcome {
        let mut outcome = Outcome::default();
        for line in &self.logged {
            let asked = self
                .replies
                .iter()
                .find(|reply| reply.client == line.client);
            // What waits for the gateway to listen asks for nothing.
            let Some(reply) = asked else {
                continue;
            };
            let told = self.events.iter().filter_map(|event| {
                let answer = event.gateway_answer.as_ref()?;
                (answer.client.port == line.client).then_some((*event, answer))
            });
            let told: Vec<_> = told.collect();
            let fault = match (told.as_slice(), line.status >= 500) {
                ([], false) => continue,
                ([], true) => {
                    outcome.unexplained.push(format!("{line:?}"));
                    continue;
                }
                ([(event, answer)], true) => {
                    self.judge_one(line, reply, event, answer, &mut outcome)
                }
                (told, _) => Err(format!("{} events", told.len())),
            };
            if let Err(fault) = fault {
                let told: Vec<_> = told
                    .iter()
                    .map(|(event, answer)| format!("{event}, {answer:?}"))
                    .collect();
                outcome.wrong.push(format!("{line:?}: {fault}: {told:?}"));
            }
        }
        outcome.wrong.extend(self.others());
        outcome
    }

    /// The same of one request that failed.
    fn judge_one(
        &self,
        line: &Logged,
        reply: &Reply,
        event: &Event,
        answer: &Answer,
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        if (answer.status, answer.path.as_deref()) != (Some(line.status), Some(&*line.path)) {
            return Err("another answer".to_owned());
        }
        if answer.contested || !answer.candidates.is_empty() {
            let candidates = self
                .events
                .iter()
                .filter(|event| answer.candidates.contains(&event.id));
            let mut named = candidates.chain([&event]);
            let right = named.any(|event| is_of(reply, &event.upstream));
            if !(right || (answer.contested && is_local(reply))) {
                return Err("not among what may be meant".to_owned());
            }
            outcome
                .ambiguous
                .push(format!("{line:?}: {event}, {answer:?}"));
            return Ok(());
        }
        let told: Vec<&Target> = answer
            .attempts
            .iter()
            .map(|attempt| &attempt.upstream)
            .collect();
        let agrees = match &line.asked {
            Asked::All(asked) => asked
                .iter()
                .map(|(upstream, _)| upstream)
                .eq(told.iter().copied()),
            Asked::Last { server, count, .. } => {
                told.len() == *count && told.last().copied() == server.as_ref()
            }
        };
        let right = answer.attempts.iter().all(|attempt| {
            is_of(reply, &attempt.upstream)
                && self.cause_of(&attempt.upstream) == Some(&*attempt.cause)
        });
        if !agrees || !right {
            return Err("other attempts".to_owned());
        }
        let own = event.cause == "upstream.own_error";
        let passed_on = line.asked.passed_on(line.status);
        if passed_on.is_some_and(|passed_on| passed_on != own) {
            return Err(format!("passed on: {passed_on:?}"));
        }
        match reply.case.told {
            Told::Answer { cause, .. } if answer.attempts.is_empty() => {
                let open = event.proof == "underdetermined"
                    && event.rivals.iter().any(|rival| rival == cause);
                if event.cause != cause && !open {
                    return Err(format!("not {cause}"));
                }
                outcome.local += 1;
            }
            _ if own => outcome.passed_on += 1,
            _ => outcome.explained += 1,
        }
        Ok(())
    }

    /// Why requests to an upstream fail.
    fn cause_of(&self, upstream: &Target) -> Option<&'static str> {
        match upstream {
            Target::Inet(address) => self.causes.get(address).copied(),
            Target::Unix(_) | Target::Name(_) => None,
        }
    }

    /// Events that say something untrue of an upstream.
    fn others(&self) -> Vec<String> {
        let none = Target::Inet(([0, 0, 0, 0], 0).into());
        let untrue = self.events.iter().filter(|event| {
            event.upstream != none && self.cause_of(&event.upstream) != Some(&*event.cause)
        });
        untrue
            .map(|event| format!("{} is told as {event}", event.upstream))
            .collect()
    }
}

/// Whether the gateway answers by itself.
fn is_local(reply: &Reply) -> bool {
    matches!(reply.case.told, Told::Answer { attempts: [], .. })
}

fn is_of(reply: &Reply, upstream: &Target) -> bool {
    let mut own = reply.upstreams.iter().copied().map(Target::Inet);
    own.any(|own| own == *upstream)
}

/// Lets a crowd loose on a gateway, of which so many of 100 failures may be ambiguous. How
/// many of its answers are explained, in words.
fn play(gateway: Gateway, workers: u32, most: usize) -> Result<String> {
    let setting = Setting {
        workers,
        ..Setting::default()
    };
    play_in(gateway, setting, most)
}

/// The same with what the gateway may use of its host.
fn play_in(gateway: Gateway, setting: Setting, most: usize) -> Result<String> {
    // A program that an interrupt finds at work is left out by the kernel now and then, which the agent counts. Such a
    // round shows nothing of the order of things.
    super::status::rounds(|| play_once(gateway, setting, most))
}

/// The same, unless records were lost.
fn play_once(gateway: Gateway, setting: Setting, most: usize) -> Result<Option<String>> {
    // Gateways of other tests answer as well, which is not to be counted.
    let cgroup = Cgroup::new("crowd")?;
    let agent = Agent::start_with(&["--packets-of", cgroup.path()])?;
    let bench = Bench::start(setting, &[(gateway, crowd(gateway, setting))], &cgroup)?;
    if gateway == Gateway::Haproxy {
        super::status::counts_turns(&agent)?;
    }
    let replies = bench.play_crowd(gateway, EACH)?;
    settle(&agent, &cgroup)?;
    if !super::status::losses(&agent)?.is_empty() {
        return Ok(None);
    }
    let events = agent.recent_events()?;
    let (logged, own) = (bench.logged(gateway, &replies)?, bench.own(&events)?);
    let account = Account::new(&replies, &logged).faults(&own);
    let expected = tally::expected(&logged, &own);
    let crowd = Crowd {
        replies: &replies,
        causes: bench.causes(gateway)?,
        events: own,
        logged,
    };
    let outcome = crowd.judge();
    let Outcome {
        explained,
        ambiguous,
        local,
        passed_on,
        unexplained,
        wrong,
    } = &outcome;
    let said = format!(
        "{gateway}: {explained} explained, {} ambiguous, {local} local, {passed_on} passed on, {} unexplained, {} wrong\n{}\n{}\n{}",
        ambiguous.len(),
        unexplained.len(),
        wrong.len(),
        unexplained.join("\n"),
        wrong.join("\n"),
        ambiguous.join("\n"),
    );
    let summary = said.lines().next().unwrap_or_default().to_owned();
    ensure!(wrong.is_empty() && outcome.is_clear(most), said);
    // What several answers may have is called for by none of them.
    let all_certain = most <= 1;
    ensure!(!all_certain || account.is_empty(), "{}", account.join("\n"));
    let counted = tally::counted(&agent)?;
    ensure!(counted == expected, "{counted:?}, not {expected:?}");
    Ok(Some(summary))
}

#[test]
fn a_crowd_at_nginx_is_told_apart() {
    eprintln!("{}", play(Gateway::Nginx, 1, 1).unwrap());
}

#[test]
fn a_crowd_at_four_workers_of_nginx_is_told_apart() {
    eprintln!("{}", play(Gateway::Nginx, 4, 1).unwrap());
}

#[test]
fn a_crowd_at_apache_is_told_apart() {
    eprintln!("{}", play(Gateway::Apache, 1, 1).unwrap());
}

#[test]
fn a_crowd_at_haproxy_is_told_apart() {
    eprintln!("{}", play(Gateway::Haproxy, 1, 1).unwrap());
}

#[test]
fn a_crowd_at_four_threads_of_haproxy_is_told_apart() {
    eprintln!("{}", play(Gateway::Haproxy, 4, 1).unwrap());
}

/// Goroutines do things in no order that is seen, but remember who started them.
#[test]
fn a_crowd_at_caddy_is_told_apart_by_its_goroutines() {
    let setting = Setting {
        current_caddy: true,
        ..Setting::default()
    };
    eprintln!("{}", play_in(Gateway::Caddy, setting, 1).unwrap());
}

/// Those of Go before 1.21 do not: of connects that failed, nothing but times is left.
#[test]
fn of_a_crowd_at_an_old_caddy_it_is_said_what_is_not_certain() {
    eprintln!("{}", play(Gateway::Caddy, 1, 50).unwrap());
}
