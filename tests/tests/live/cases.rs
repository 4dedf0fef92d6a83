//! Every 5xx that real gateways hand out is joined to exactly one explanation, which agrees with what the gateway
//! itself logged: which upstreams it asked, in which order, and how it ended.

use std::collections::HashSet;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use hopscope_tests::access::{Asked, Logged};
use hopscope_tests::agent::{Agent, Answer, Event};
use hopscope_tests::case::tally::{self, Tally};
use hopscope_tests::case::{
    Account, Bench, Case, Gateway, Reply, Setting, Told, apache_cases, caddy_cases, haproxy_alone,
    haproxy_behind_nginx, haproxy_cases, nginx_alone, nginx_cases, nginx_in_front_of_haproxy,
    settle,
};
use hopscope_tests::cgroup::Cgroup;
use hopscope_tests::socket::Target;
use hopscope_tests::status;

/// One bench with what was played on it.
struct Played {
    bench: Bench,
    replies: Vec<Reply>,
}

/// The gateways of a bench with their cases.
type Gateways = Vec<(Gateway, Vec<Case>)>;

/// Every bench: the cases that can share a gateway, and those that cannot.
fn start_all(cgroup: &Cgroup) -> Result<Vec<Bench>> {
    let mut wanted: Vec<(Setting, Gateways)> = vec![
        (
            Setting::default(),
            vec![
                (Gateway::Haproxy, vec![haproxy_behind_nginx()]),
                (Gateway::Nginx, vec![nginx_in_front_of_haproxy()]),
            ],
        ),
        (Setting::default(), vec![(Gateway::Nginx, nginx_cases())]),
        (
            Setting::default(),
            vec![(Gateway::Haproxy, haproxy_cases())],
        ),
        (Setting::default(), vec![(Gateway::Apache, apache_cases())]),
        (Setting::default(), vec![(Gateway::Caddy, caddy_cases())]),
        (
            Setting {
                current_caddy: true,
                ..Setting::default()
            },
            vec![(Gateway::Caddy, caddy_cases())],
        ),
    ];
    for (setting, case) in nginx_alone() {
        wanted.push((setting, vec![(Gateway::Nginx, vec![case])]));
    }
    for (setting, case) in haproxy_alone() {
        wanted.push((setting, vec![(Gateway::Haproxy, vec![case])]));
    }
    // However long the log keeps them waiting in between. Apache and Caddy log a hundred lines for each attempt here.
    let is_slow = |kind: &Gateway| matches!(kind, Gateway::Nginx | Gateway::Haproxy);
    let slow: Vec<_> = wanted
        .iter()
        .filter(|(_, gateways)| gateways.iter().all(|(kind, _)| is_slow(kind)))
        .map(|(setting, gateways)| {
            let slow_log = true;
            (
                Setting {
                    slow_log,
                    ..*setting
                },
                gateways.clone(),
            )
        })
        .collect();
    wanted.extend(slow);
    let benches = wanted
        .iter()
        .map(|(setting, cases)| Bench::start(*setting, cases, cgroup));
    benches.collect()
}

fn play(bench: Bench) -> Result<Played> {
    let mut replies = Vec::new();
    // The one behind is not asked by clients.
    let front: Vec<Gateway> = bench.gateways().collect();
    let front = front.last().context("a bench without a gateway")?;
    replies.extend(bench.play(*front)?);
    Ok(Played { bench, replies })
}

/// What is wrong with what the agent says of the requests that a gateway logged.
fn check_log(logged: &[Logged], events: &[&Event]) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in logged {
        let of_client = |event: &&&Event| {
            event
                .gateway_answer
                .as_ref()
                .is_some_and(|answer| answer.client.port == line.client)
        };
        let told: Vec<_> = events.iter().filter(of_client).collect();
        let fault = match (told.as_slice(), line.status >= 500) {
            ([], false) => continue,
            ([event], true) => {
                let Some(answer) = &event.gateway_answer else {
                    continue;
                };
                disagreement(line, event, answer)
            }
            (told, _) => {
                let said: Vec<String> = told.iter().map(ToString::to_string).collect();
                Some(format!("{} events: {said:?}", told.len()))
            }
        };
        wrong.extend(fault.map(|fault| format!("{line:?}: {fault}")));
    }
    for event in events {
        let Some(answer) = &event.gateway_answer else {
            continue;
        };
        let line = logged.iter().find(|line| line.client == answer.client.port);
        if answer.status.is_some() && line.is_none() {
            wrong.push(format!("nothing is logged of {answer:?}: {event}"));
        }
    }
    wrong
}

/// In what an event says otherwise than the log.
fn disagreement(line: &Logged, event: &Event, answer: &Answer) -> Option<String> {
    if answer.status != Some(line.status) || answer.path.as_deref() != Some(&*line.path) {
        return Some(format!("told as {answer:?}"));
    }
    if answer.contested || !answer.candidates.is_empty() {
        return Some(format!("ambiguous: {answer:?}"));
    }
    if event.hidden_from_client {
        return Some("told as hidden".to_owned());
    }
    let told: Vec<_> = answer
        .attempts
        .iter()
        .map(|attempt| &attempt.upstream)
        .collect();
    let own = event.cause == "upstream.own_error";
    let asked = line.asked.passed_on(line.status);
    if asked.is_some_and(|passed_on| passed_on != own) && event.cause != "gw.loop" {
        return Some(format!("passed on: {asked:?}, not {event}"));
    }
    let by_name = answer
        .attempts
        .iter()
        .all(|attempt| attempt.cause.starts_with("dns."));
    let agrees = match &line.asked {
        _ if by_name && !told.is_empty() => true,
        Asked::All(asked) => asked
            .iter()
            .map(|(upstream, _)| upstream)
            .eq(told.iter().copied()),
        Asked::Last { server, count, .. } => {
            told.len() == *count && told.last().copied() == server.as_ref()
        }
    };
    // What never left the gateway is an attempt in its log and not on the wire.
    let within = matches!(
        event.cause.as_str(),
        "gw.fd_exhausted" | "gw.source_bind_failed"
    );
    let never_left = answer.attempts.is_empty() && within;
    (!agrees && !never_left).then(|| format!("attempts {told:?}: {event}"))
}

/// What is wrong with what the agent says of a case.
fn check_case(reply: &Reply, events: &[&Event], said: &str) -> Vec<String> {
    let case = &reply.case;
    let mut wrong = Vec::new();
    if reply.seen != case.seen {
        wrong.push(format!("the client saw {}, not {}", reply.seen, case.seen));
    }
    let path = format!("/{}", case.name);
    let mut marks = vec![
        path,
        format!(":{}]", reply.client),
        "exited on signal".to_owned(),
    ];
    marks.extend(reply.upstreams.iter().map(ToString::to_string));
    let lines = said
        .lines()
        .filter(|line| marks.iter().any(|mark| line.contains(mark)));
    let lines: Vec<&str> = lines.collect();
    if !lines.iter().any(|line| line.contains(case.said)) {
        wrong.push(format!("the log says {lines:#?}, not `{}`", case.said));
    }
    let answered = events.iter().find(|event| {
        event
            .gateway_answer
            .as_ref()
            .is_some_and(|answer| answer.client.port == reply.client)
    });
    match (case.told, answered) {
        // Whether what is hidden is told is seen in the account of all events.
        (Told::Nothing | Told::Hidden(_), None) => {}
        (
            Told::Answer {
                cause,
                proofs,
                attempts,
                with,
            },
            Some(event),
        ) => {
            let open =
                event.proof == "underdetermined" && event.rivals.iter().any(|one| one == cause);
            if event.cause != cause && !open {
                wrong.push(format!("{event}, not {cause}"));
            }
            if !proofs.contains(&event.proof.as_str()) {
                wrong.push(format!("{event}, not {proofs:?}"));
            }
            let told = event
                .gateway_answer
                .iter()
                .flat_map(|answer| &answer.attempts);
            let told: Vec<&str> = told.map(|attempt| attempt.cause.as_str()).collect();
            if told != attempts {
                wrong.push(format!("attempts {told:?}, not {attempts:?}"));
            }
            if !event.to_string().contains(with) {
                wrong.push(format!("{event} says nothing of `{with}`"));
            }
        }
        (told, event) => wrong.push(format!(
            "{:?}, not {told:?}",
            event.map(ToString::to_string)
        )),
    }
    if !wrong.is_empty() {
        // What was told of its upstreams instead.
        for event in events.iter().filter(|event| of_case(event, reply)) {
            let (hidden, answer) = (event.hidden_from_client, &event.gateway_answer);
            wrong.push(format!("there is {event}, hidden: {hidden}, {answer:?}"));
        }
    }
    let fault = |what| format!("{} through {}: {what}", case.name, reply.gateway);
    wrong.into_iter().map(fault).collect()
}

/// Whether an event is about one of the upstreams of a case.
fn of_case(event: &Event, reply: &Reply) -> bool {
    reply
        .upstreams
        .iter()
        .any(|upstream| event.upstream == Target::Inet(*upstream))
}

/// Plays every case through every gateway.
fn play_all(agent: &Agent, cgroup: &Cgroup) -> Result<Vec<Played>> {
    let benches = start_all(cgroup)?;
    super::status::counts_turns(agent)?;
    thread::scope(|scope| {
        let playing: Vec<_> = benches
            .into_iter()
            .map(|bench| scope.spawn(move || play(bench)))
            .collect();
        let played = playing.into_iter().map(|playing| {
            playing
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client panicked")))
        });
        played.collect()
    })
}

#[test]
fn every_answer_is_explained_as_the_gateway_logged_it() {
    // Gateways of other tests answer as well, which is not to be counted.
    let cgroup = Cgroup::new("cases").unwrap();
    let (agent, played) = super::status::rounds(|| {
        let agent = Agent::start_with(&["--packets-of", cgroup.path()])?;
        let played = play_all(&agent, &cgroup)?;
        settle(&agent, &cgroup)?;
        let whole = !super::status::runs_left_out(&agent)?;
        Ok(whole.then_some((agent, played)))
    })
    .unwrap();

    let events = agent.recent_events().unwrap();
    let (wrong, tally) = judge(&played, &events).unwrap();
    let mut counters = status::counters(&agent).unwrap();
    counters.retain(|(_, value)| *value > 0);
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}\n{counters:?}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(tally::counted(&agent).unwrap(), tally);
    assert_eq!(tally.get("engine_answers_unexplained"), Some(&0));
    one_screen_says_why(&agent).unwrap();
    assert_eq!(super::status::losses(&agent).unwrap(), []);
}

/// `explain --last` answers for three of them: behind three attempts, behind none, and in a loop.
fn one_screen_says_why(agent: &Agent) -> Result<()> {
    /// A terminal window of usual size on a screen of today.
    const LINES: usize = 50;
    let all = [
        "client got",
        "because",
        "proof",
        "fault side",
        "next step",
        "wrong fix",
        "event",
    ];
    for (words, own) in [
        (
            &["502", "/three_fail"][..],
            &[
                "502 for GET lab.test/three_fail",
                "attempt 1",
                "tcp.reset_no_response",
                "attempt 2",
                "http1.header_syntax",
                "attempt 3",
                "tcp.connect_refused",
                "capture",
            ][..],
        ),
        (
            &["503", "/queued"],
            &[
                "503 for GET lab.test/queued",
                "pick.queue_timeout",
                "or else",
                "gw.local_answer",
                "to tell",
            ],
        ),
        (
            &["/loop", "502"],
            &["502 for GET lab.test/loop", "gw.loop", "capture"],
        ),
    ] {
        let said = agent.explain_last(words)?;
        for piece in all.iter().chain(own) {
            assert!(
                said.contains(piece),
                "{words:?} says nothing of `{piece}`:\n{said}"
            );
        }
        assert!(said.lines().count() <= LINES, "{said}");
    }
    let none = agent.explain_last(&["504", "/three_fail"]);
    let none = none
        .err()
        .context("an answer that nobody got was explained")?;
    assert!(
        none.to_string().contains("no answer of that kind"),
        "{none:#}"
    );
    Ok(())
}

/// What is wrong with what the agent says, and what its counters must say.
fn judge(played: &[Played], events: &[Event]) -> Result<(Vec<String>, Tally)> {
    let mut wrong = Vec::new();
    let mut counts = Tally::new();
    for Played { bench, replies } in played {
        let mut all = Vec::new();
        for gateway in bench.gateways() {
            let own = bench.about(gateway, events)?;
            let logged = bench.logged(gateway, replies)?;
            let said = bench.said(gateway)?;
            let faults = check_log(&logged, &own);
            wrong.extend(faults.into_iter().map(|what| format!("{gateway}: {what}")));
            for reply in replies
                .iter()
                .filter(|reply| reply.last && reply.gateway == gateway)
            {
                wrong.extend(check_case(reply, &own, &said));
            }
            counts = tally::sum(counts, &tally::expected(&logged, &own));
            all.extend(logged);
        }
        let own = bench.own(events)?;
        wrong.extend(Account::new(replies, &all).faults(&own));
    }
    Ok((wrong, counts))
}

/// A kind of failure is what must be said of it, through whichever gateway: the cause, or those of all attempts.
#[test]
fn the_table_holds_at_least_forty_kinds() {
    let alone = nginx_alone().into_iter().chain(haproxy_alone());
    let alone: Vec<Case> = alone.map(|(_, case)| case).collect();
    let all = [
        nginx_cases(),
        haproxy_cases(),
        apache_cases(),
        caddy_cases(),
        alone,
    ]
    .concat();
    let kinds: HashSet<Vec<&str>> = all
        .iter()
        .filter_map(|case| match case.told {
            Told::Answer {
                cause,
                attempts: [],
                ..
            } => Some(vec![cause]),
            Told::Answer { attempts, .. } => Some(attempts.to_vec()),
            Told::Hidden(_) | Told::Nothing => None,
        })
        .collect();
    assert!(kinds.len() >= 40, "{}: {kinds:?}", kinds.len());
}
