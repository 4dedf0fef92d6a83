//! Whether every event that an agent gave of a bench is accounted for. Each has to be called for by something
//! that happened there: an answer that a gateway logged, an attempt behind one, a failure that no client was to be
//! told of, or a health check. What is left was told of healthy traffic, or twice.

use std::collections::{HashMap, HashSet};

use super::{Case, Reply, Told};
use crate::access::Logged;
use crate::agent::Event;
use crate::client::Seen;
use crate::socket::Target;

/// What calls for events.
#[derive(Debug, Default)]
pub struct Account<'a> {
    /// Ports of the clients that got a 5xx, or nothing where that is the case, and the upstreams that were asked for them.
    failed: HashMap<u16, Vec<Target>>,
    /// Failures that no client was told of, by upstream and cause.
    hidden: HashMap<(Target, &'a str), usize>,
    /// Health checks that fail, likewise, however often.
    checked: HashSet<(Target, &'a str)>,
}

impl<'a> Account<'a> {
    /// What the requests to gateways call for, as these logged them and their clients saw them.
    pub fn new(replies: &'a [Reply], logged: &[Logged]) -> Self {
        let mut account = Self::default();
        let failed = logged.iter().filter(|line| line.status >= 500);
        let failed = failed.map(|line| (line.client, line.asked.upstreams().cloned().collect()));
        account.failed.extend(failed);
        for reply in replies {
            let Case { told, checks, .. } = reply.case;
            let upstreams = reply.upstreams.iter().copied().map(Target::Inet);
            if reply.seen == Seen::Nothing && matches!(told, Told::Answer { .. }) {
                account.failed.insert(reply.client, Vec::new());
            }
            // Where there is another upstream, this one may not have been asked.
            let line = logged.iter().find(|line| line.client == reply.client);
            let fails = upstreams.clone().next();
            if let (Told::Hidden(cause), Some(at)) = (told, fails)
                && line.is_some_and(|line| line.asked.includes(&at))
            {
                *account.hidden.entry((at, cause)).or_default() += 1;
            }
            if let Some(cause) = checks {
                let checks = upstreams.map(|upstream| (upstream, cause));
                account.checked.extend(checks);
            }
        }
        account
    }

    /// What is wrong with the events of the gateways: those that nothing calls for, and failures without one that no
    /// client was to be told of. What failed for an answer that nothing is said of is told for nobody.
    pub fn faults(mut self, events: &[&'a Event]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut listed: HashMap<&str, usize> = HashMap::new();
        for answer in events
            .iter()
            .filter_map(|event| event.gateway_answer.as_ref())
        {
            for attempt in &answer.attempts {
                *listed.entry(&attempt.event).or_default() += 1;
            }
        }
        let twice = listed.iter().filter(|(_, count)| **count > 1);
        wrong.extend(twice.map(|(id, count)| format!("{id} is listed {count} times")));
        let mut known = HashSet::new();
        let mut left = Vec::new();
        for event in events {
            if !known.insert(&*event.id) {
                wrong.push(format!("told twice: {}", shown(event)));
            }
            if !self.is_called_for(event, listed.contains_key(&*event.id)) {
                left.push(event);
            }
        }
        let mut untold: Vec<Target> = self.failed.into_values().flatten().collect();
        for event in left {
            let place = untold.iter().position(|target| *target == event.upstream);
            match place {
                Some(place) if event.gateway_answer.is_none() && !event.hidden_from_client => {
                    untold.swap_remove(place);
                }
                _ => wrong.push(format!("nothing calls for {}", shown(event))),
            }
        }
        let missing = listed.keys().filter(|id| !known.contains(**id));
        wrong.extend(missing.map(|id| format!("{id} is listed and was never told")));
        let unheard = self.hidden.iter().filter(|(_, count)| **count > 0);
        wrong.extend(unheard.map(|((upstream, cause), count)| {
            format!("{count} of {cause} at {upstream} were not told as hidden")
        }));
        wrong
    }

    /// Whether something calls for an event, which takes that away where it calls for one only.
    fn is_called_for(&mut self, event: &'a Event, listed: bool) -> bool {
        if let Some(answer) = &event.gateway_answer {
            return !event.hidden_from_client && self.failed.remove(&answer.client.port).is_some();
        }
        if listed {
            return !event.hidden_from_client;
        }
        let place = (event.upstream.clone(), &*event.cause);
        if self.checked.contains(&place) {
            return true;
        }
        match self.hidden.get_mut(&place) {
            Some(left) if *left > 0 && event.hidden_from_client => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}

fn shown(event: &Event) -> String {
    format!(
        "{} of {}: {event}, hidden: {}, {:?}",
        event.id, event.upstream, event.hidden_from_client, event.gateway_answer
    )
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::json;

    use super::*;
    use crate::access::Asked;
    use crate::case::{Gateway, HEALTHY, REFUSES};

    const UPSTREAM: &str = "10.77.0.2:20000";

    fn event(id: &str, cause: &str, more: &serde_json::Value) -> Event {
        let mut whole = json!({
            "id": id, "cause": cause, "proof": "proven", "fault_side": "upstream",
            "upstream": {"address": "10.77.0.2", "port": 20000}, "gateway": null,
            "evidence": [], "capture_id": null, "completeness": {}, "gateway_answer": null
        });
        for (key, value) in more.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    fn answer(client: u16, attempts: &[&str]) -> serde_json::Value {
        let attempts: Vec<_> = attempts
            .iter()
            .map(|id| json!({"event": id, "cause": "x", "upstream": {"address": "10.77.0.2", "port": 20000}}))
            .collect();
        json!({"gateway_answer": {
            "status": 502, "client": {"address": "10.77.0.1", "port": client}, "path": "/x", "latency_ms": 1.0, "attempts": attempts
        }})
    }

    fn reply(case: Case, client: u16) -> Reply {
        Reply {
            gateway: Gateway::Nginx,
            case,
            upstreams: vec![UPSTREAM.parse::<SocketAddr>().unwrap()],
            client,
            seen: case.seen,
            last: true,
        }
    }

    fn logged(client: u16, status: u16) -> Logged {
        Logged {
            client,
            status,
            path: "/x".to_owned(),
            asked: Asked::All(vec![(
                Target::Inet(UPSTREAM.parse().unwrap()),
                status.to_string(),
            )]),
        }
    }

    /// What is wrong with these events of one reply that failed, one that hides a failure, and a healthy one.
    fn faults(events: &[Event]) -> usize {
        let hides = Case::new("hides", &[REFUSES]).hides("tcp.connect_refused");
        let fails = Case::fails("fails", &[REFUSES], 502, "", &["tcp.closed_no_response"]);
        let replies = [
            reply(fails, 1),
            reply(hides, 2),
            reply(Case::new("healthy", &[HEALTHY]), 3),
        ];
        let logged = [logged(1, 502), logged(2, 200), logged(3, 200)];
        let events: Vec<_> = events.iter().collect();
        Account::new(&replies, &logged).faults(&events).len()
    }

    #[test]
    fn every_event_must_be_called_for_and_told_once() {
        let hidden = json!({"hidden_from_client": true});
        let of_one = event("b", "tcp.closed_no_response", &answer(1, &["a", "b"]));
        let before = event("a", "tcp.reset_no_response", &json!({}));
        let of_two = event("c", "tcp.connect_refused", &hidden);
        let good = [before, of_one, of_two];
        assert_eq!(faults(&good), 0);
        let with = |more: Event| faults(&[&good[..], &[more]].concat());
        // Of healthy traffic, told or not.
        assert_eq!(
            with(event("d", "upstream.own_error", &answer(3, &["d"]))),
            1
        );
        assert_eq!(with(event("d", "tcp.closed_no_response", &hidden)), 1);
        assert_eq!(with(event("d", "tcp.closed_no_response", &json!({}))), 1);
        // A second one of the same failure.
        assert_eq!(with(event("d", "tcp.connect_refused", &hidden)), 1);
        assert_eq!(
            with(event("d", "tcp.closed_no_response", &answer(1, &["d"]))),
            1
        );
        assert_eq!(with(good[0].clone()), 1);
        // An attempt that two answers list, and one that was never told.
        assert_eq!(
            with(event("d", "gw.local_answer", &answer(3, &["a", "e"]))),
            3
        );
        // What failed for the answer that is not told.
        let (before, of_two) = (good[0].clone(), good[2].clone());
        assert_eq!(faults(&[before.clone(), of_two.clone()]), 0);
        assert_eq!(
            faults(&[before.clone(), event("d", "x", &json!({})), of_two]),
            1
        );
        // What was to be told and is not.
        assert_eq!(faults(&good[..2]), 1);
        assert_eq!(faults(&good[1..]), 1);
    }

    #[test]
    fn health_checks_may_fail_as_often_as_they_like() {
        let case = Case::new("down", &[REFUSES]).checked("tcp.connect_refused");
        let replies = [reply(case, 1)];
        let check = event("a", "tcp.connect_refused", &json!({}));
        let other = event("b", "tcp.reset_no_response", &json!({}));
        let faults = |events: &[&Event]| Account::new(&replies, &[]).faults(events).len();
        assert_eq!(faults(&[&check]), 0);
        assert_eq!(faults(&[&check, &other]), 1);
    }
}
