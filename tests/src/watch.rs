//! A lab with an agent that watches it. Knows when the agent sees the lab, and when it has said all
//! that it has to say.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::agent::{Agent, Event, Events};
use crate::client::Seen;
use crate::clock::Deadline;
use crate::gateway::Kind;
use crate::lab::Lab;
use crate::scenario::{Scenario, Verdict, canary};
use crate::socket::Target;

/// Time between two canaries.
const CANARY: Duration = Duration::from_millis(500);

/// Time that the agent gets to report the first canary.
const FIRST: Duration = Duration::from_secs(20);

/// Time that the agent gets for its verdicts once the last client has its answer. A gateway may hold
/// a socket longer than its client: nobody is told before the last retransmission.
const VERDICTS: Duration = Duration::from_secs(15);

/// A watched lab.
#[derive(Debug)]
pub struct Watch {
    events: Events,
    agent: Agent,
    lab: Lab,
    namespace: u64,
}

/// One scenario played through one gateway.
#[derive(Debug)]
pub struct Played<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The gateway.
    pub kind: Kind,
    /// Where the gateway looked for its upstream.
    pub upstream: Target,
    /// What the client saw last.
    pub seen: Result<Seen>,
    /// The agent's events about it.
    pub events: Vec<Event>,
}

impl Played<'_> {
    /// Whether the agent must say anything of it.
    fn awaited(&self) -> bool {
        self.verdict().is_some_and(|verdict| verdict.shown.live())
    }

    /// What the agent must say of it.
    pub fn verdict(&self) -> Option<Verdict> {
        self.scenario.verdict(self.kind)
    }
}

impl Watch {
    /// Starts a lab and an agent, and returns once the agent reports a failure in that lab.
    pub fn start(kinds: &[Kind], scenarios: &[Scenario]) -> Result<Self> {
        Self::start_with(kinds, scenarios, &[])
    }

    /// The same with more arguments for the agent.
    pub fn start_with(kinds: &[Kind], scenarios: &[Scenario], arguments: &[&str]) -> Result<Self> {
        let mut all = scenarios.to_vec();
        all.push(canary());
        let lab = Lab::start(kinds, &all)?;
        let namespace = lab.namespace().inode()?;
        let agent = Agent::start_with(arguments)?;
        let events = agent.follow()?;
        let watch = Self {
            events,
            agent,
            lab,
            namespace,
        };
        // The subscription begins some time after the command was started: ask until it answers.
        let deadline = Deadline::after(FIRST);
        while !watch.canary_is_reported()? {
            if deadline.passed() {
                bail!(
                    "the agent reports nothing from the lab; it logged:\n{}",
                    watch.agent.log()
                );
            }
        }
        Ok(watch)
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The agent, to end it.
    pub fn agent_mut(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Plays every scenario through every gateway at once, then waits for the verdicts.
    pub fn play<'a>(&self, scenarios: &'a [Scenario]) -> Result<Vec<Played<'a>>> {
        let lab = &self.lab;
        let mut played = thread::scope(|scope| {
            let mut running = Vec::new();
            for scenario in scenarios {
                for gateway in lab.gateways() {
                    let kind = gateway.kind();
                    if !scenario.plays(kind) {
                        continue;
                    }
                    let upstream = lab.upstream(scenario, kind)?;
                    let play = scope.spawn(move || lab.play(scenario, kind));
                    running.push((scenario, kind, upstream, play));
                }
            }
            Ok::<_, anyhow::Error>(
                running
                    .into_iter()
                    .map(|(scenario, kind, upstream, play)| Played {
                        scenario,
                        kind,
                        upstream,
                        seen: play.join().unwrap_or_else(|_| bail!("the client panicked")),
                        events: Vec::new(),
                    })
                    .collect::<Vec<_>>(),
            )
        })?;

        let by_target: HashMap<Target, usize> = played
            .iter()
            .enumerate()
            .map(|(index, one)| (one.upstream.clone(), index))
            .collect();
        let mut wanted = played.iter().filter(|one| one.awaited()).count();
        let deadline = Deadline::after(VERDICTS);
        while wanted > 0 {
            let Some(event) = self.next(deadline)? else {
                break;
            };
            if let Some(one) = by_target
                .get(&event.upstream)
                .and_then(|at| played.get_mut(*at))
            {
                wanted -= usize::from(one.events.is_empty() && one.awaited());
                one.events.push(event);
            }
        }
        // What the agent has to say about the above, it says before it reports a later failure.
        let deadline = Deadline::after(VERDICTS);
        loop {
            self.lab.play(&canary(), self.first_kind()?)?;
            let mut reported = false;
            let until = Deadline::after(CANARY);
            while let Some(event) = self.next(until)? {
                if let Some(one) = by_target
                    .get(&event.upstream)
                    .and_then(|at| played.get_mut(*at))
                {
                    one.events.push(event);
                } else {
                    reported = true;
                }
            }
            if reported {
                return Ok(played);
            }
            if deadline.passed() {
                bail!("the agent fell silent; it logged:\n{}", self.agent.log());
            }
        }
    }

    /// The next event of this lab.
    fn next(&self, deadline: Deadline) -> Result<Option<Event>> {
        while let Some(event) = self.events.next(deadline)? {
            if event
                .gateway
                .as_ref()
                .is_some_and(|gateway| gateway.netns == self.namespace)
            {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn canary_is_reported(&self) -> Result<bool> {
        self.lab.play(&canary(), self.first_kind()?)?;
        Ok(self.next(Deadline::after(CANARY))?.is_some())
    }

    fn first_kind(&self) -> Result<Kind> {
        match self.lab.gateways().first() {
            Some(gateway) => Ok(gateway.kind()),
            None => bail!("a lab without gateways has nothing to watch"),
        }
    }
}
