//! Many clients at once, each of which asks for one path after another: failures of all kinds beside each other,
//! healthy requests in between, so that the gateway does several of them in one turn.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Barrier;
use std::thread;

use anyhow::{Context as _, Result, anyhow};

use super::bench::{Bench, Reply, Setting};
use super::{Case, Gateway, Told, apache_cases, caddy, caddy_cases, haproxy_cases, nginx_cases};
use crate::client::{Request, Session};
use crate::scenario::UPSTREAM;

/// Clients at once.
pub const CLIENTS: u16 = 32;

/// First port of the clients, which all have ports of their own: below those that the kernel chooses from.
const FIRST_PORT: u16 = 30_000;

/// Cases that can be asked for in any order, as often as one likes, with the same outcome.
const NAMES: &[&str] = &[
    "refused",
    "unrouted",
    "dropped",
    "closes",
    "resets",
    "silent",
    "stalls",
    "malformed",
    "half_head",
    "half_body",
    "busy",
    "fails",
    "both_fail",
    "both_fail_later",
    "three_fail",
    "slow_then_refused",
    "error_then_refused",
    "second_helps",
    "second_answers",
    "returns",
    "returned",
    "healthy",
];

/// The cases of a crowd. An old Caddy gets none of several attempts, whose goroutines do not say whose they are.
pub fn crowd(gateway: Gateway, setting: Setting) -> Vec<Case> {
    let mut cases = match gateway {
        Gateway::Nginx => nginx_cases(),
        Gateway::Haproxy => haproxy_cases(),
        Gateway::Apache => apache_cases(),
        Gateway::Caddy => caddy_cases(),
    };
    // Apache puts members aside, which then are asked no more.
    cases.retain(|case| {
        NAMES.contains(&case.name) && (gateway != Gateway::Apache || case.group.is_empty())
    });
    if setting.current_caddy {
        cases.extend(caddy::retries());
    }
    cases
}

impl Case {
    /// Why a request to each of these upstreams of its fails; of those that do not there is nothing.
    fn causes(&self) -> Vec<&'static str> {
        match self.told {
            Told::Answer { attempts, .. } => attempts.to_vec(),
            Told::Hidden(cause) => vec![cause],
            Told::Nothing => Vec::new(),
        }
    }
}

impl Bench {
    /// Why requests to its upstreams fail, by their addresses.
    pub fn causes(&self, gateway: Gateway) -> Result<HashMap<SocketAddr, &'static str>> {
        let all = self.cases(gateway)?.iter();
        let by_upstream = all.flat_map(|(case, upstreams)| {
            let upstreams = upstreams.iter().copied();
            upstreams.zip(case.causes())
        });
        Ok(by_upstream.collect())
    }

    /// Lets [`CLIENTS`] ask `gateway` for `each` paths, one after the other. Every second one is healthy.
    pub fn play_crowd(&self, gateway: Gateway, each: u16) -> Result<Vec<Reply>> {
        let cases = self.cases(gateway)?;
        let healthy = cases.iter().find(|(case, _)| case.name == "healthy");
        let healthy = healthy.context("no case is healthy")?;
        let begin = Barrier::new(usize::from(CLIENTS));
        let one = |client: u16| {
            begin.wait();
            let mut replies = Vec::new();
            for request in 0..each {
                // Coprime to most numbers of cases, so that clients come by each other in all combinations.
                let place = usize::from(client) * 5 + usize::from(request / 2) * 7;
                let (case, upstreams) = if request % 2 == 1 {
                    healthy
                } else {
                    let place = place.checked_rem(cases.len()).unwrap_or(0);
                    cases.get(place).context("no such case")?
                };
                let port = FIRST_PORT + client * each + request;
                let own = SocketAddr::new(IpAddr::V4(UPSTREAM), port);
                let mut session = Session::open_from(own, gateway.address())?;
                session.send(&Request {
                    method: "GET",
                    path: &format!("/{}", case.name),
                    body: "",
                })?;
                replies.push(Reply {
                    gateway,
                    case: *case,
                    upstreams: upstreams.clone(),
                    client: port,
                    seen: session.receive()?,
                    last: true,
                });
            }
            Ok(replies)
        };
        // Threads stay in the namespace of the one that starts them.
        let played = self.far_side(|| {
            thread::scope(|scope| {
                let one = &one;
                let playing: Vec<_> = (0..CLIENTS)
                    .map(|client| scope.spawn(move || one(client)))
                    .collect();
                let played = playing.into_iter().map(|playing| {
                    let panicked = |_| Err(anyhow!("a client panicked"));
                    playing.join().unwrap_or_else(panicked)
                });
                played.collect::<Result<Vec<_>>>()
            })
        })?;
        Ok(played.concat())
    }
}
