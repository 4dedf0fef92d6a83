//! Answers to the gateway's clients, joined to the attempts behind them.

use super::sim::{GET, OK, Sim, TURN};
use crate::model::{
    AnswerEnd, Cause, ClientAnswer, Errno, Exit, HopEvent, Input, Process, Proof, SocketCall,
    TcpState, Timestamp, Turn,
};
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) const NETNS: u64 = 7;
const OTHER: Turn = Turn {
    thread: 99,
    number: 1,
};

/// What the client asked and got.
pub(super) struct Asked {
    pub(super) at: Timestamp,
    pub(super) head: &'static str,
    pub(super) pid: u32,
    pub(super) turn: Option<Turn>,
    pub(super) on_behalf_of: Option<SocketAddr>,
}

impl Asked {
    pub(super) fn get(sim: &Sim, head: &'static str) -> Self {
        Self {
            at: sim.now(),
            head,
            pid: 42,
            turn: Some(TURN),
            on_behalf_of: None,
        }
    }

    pub(super) fn answered(&self, sim: &mut Sim, end: AnswerEnd<'_>) {
        let waited = sim.now().since(self.at);
        let comm = sim.comm().unwrap_or("nginx");
        sim.input(Input::Answer(ClientAnswer {
            process: process(comm, self.pid),
            turn: self.turn,
            listener: "10.0.0.1:80".parse().unwrap(),
            client: "198.51.100.7:50000".parse().unwrap(),
            on_behalf_of: self.on_behalf_of,
            waited,
            read: None,
            ordinal: 1,
            request: self.head.as_bytes(),
            end,
            goroutine: None,
        }));
    }

    pub(super) fn with(&self, sim: &mut Sim, status: u16) {
        let head = format!("HTTP/1.1 {status} No\r\nServer: nginx\r\n\r\n");
        self.answered(sim, AnswerEnd::Response(head.as_bytes()));
    }
}

pub(super) const CLIENT: &str = "GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";

pub(super) fn process(comm: &str, pid: u32) -> Arc<Process> {
    Arc::new(Process {
        pid,
        comm: Arc::from(comm),
        netns: NETNS,
        ..Process::default()
    })
}

pub(super) fn watched() -> Sim {
    watched_as("nginx", 41)
}

/// A gateway of this name and process id, whose clients' answers are seen.
pub(super) fn watched_as(comm: &'static str, pid: u32) -> Sim {
    let mut sim = Sim::live(comm);
    sim.netns = NETNS;
    sim.input(Input::Listening {
        process: process(comm, pid),
        local: "0.0.0.0:80".parse().unwrap(),
        readable: true,
    });
    sim
}

#[expect(clippy::option_option, reason = "an answer may have no status")]
fn told(events: &[HopEvent]) -> Vec<(Cause, Option<Option<u16>>, bool)> {
    events
        .iter()
        .map(|event| {
            let status = event.gateway_answer.as_ref().map(|answer| answer.status);
            (event.cause, status, event.hidden_from_client)
        })
        .collect()
}

#[test]
fn an_answer_goes_onto_the_event_of_its_attempt() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.open().request().upstream_fin();
    sim.state(TcpState::CloseWait, TcpState::LastAck, None, 100);
    asked.with(&mut sim, 502);
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
    let answer = event.gateway_answer.as_ref().unwrap();
    assert_eq!(answer.status, Some(502));
    assert_eq!(answer.path.as_deref(), Some("/a"));
    assert_eq!(answer.client.port, 50_000);
    assert_eq!(answer.attempts.len(), 1);
    assert_eq!(answer.attempts[0].event, event.id);
    assert_eq!(answer.candidates, [""; 0]);
    let stats = sim.engine.stats();
    assert_eq!((stats.answers_502, stats.answers_explained), (1, 1));
    assert_eq!((stats.answers_ambiguous, stats.answers_unexplained), (0, 0));
}

#[test]
fn an_answer_to_a_client_of_a_balancer_is_told_under_its_address() {
    let mut sim = watched();
    let mut asked = Asked::get(&sim, CLIENT);
    asked.on_behalf_of = Some("192.0.2.7:40000".parse().unwrap());
    sim.open().request().upstream_fin();
    sim.state(TcpState::CloseWait, TcpState::LastAck, None, 100);
    asked.with(&mut sim, 502);
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
    let answer = event.gateway_answer.as_ref().unwrap();
    assert_eq!(answer.client.address.to_string(), "192.0.2.7");
    assert_eq!(answer.client.port, 40_000);
}

#[test]
fn a_refused_connect_has_no_path_and_is_joined_by_turn_and_time() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.syn().refuse();
    sim.state(TcpState::Close, TcpState::Close, None, 0);
    asked.with(&mut sim, 502);
    let events = sim.events();
    assert_eq!(
        told(&events),
        [(Cause::TcpConnectRefused, Some(Some(502)), false)]
    );
}

#[test]
fn a_failure_without_an_answer_is_hidden_only_where_clients_are_watched() {
    let mut sim = watched();
    sim.syn().refuse();
    assert_eq!(
        told(&sim.events()),
        [(Cause::TcpConnectRefused, None, true)]
    );
    assert_eq!(sim.engine.stats().events_hidden, 1);

    let mut sim = Sim::live("nginx");
    sim.netns = NETNS;
    sim.syn().refuse();
    assert_eq!(
        told(&sim.events()),
        [(Cause::TcpConnectRefused, None, false)]
    );

    let mut sim = watched();
    sim.input(Input::Listening {
        process: process("nginx", 41),
        local: "0.0.0.0:443".parse().unwrap(),
        readable: false,
    });
    sim.syn().refuse();
    assert_eq!(
        told(&sim.events()),
        [(Cause::TcpConnectRefused, None, false)]
    );
}

#[test]
fn a_client_that_still_waits_may_be_told_yet() {
    let mut sim = watched();
    sim.waiting = vec![(NETNS, sim.now())];
    sim.syn().refuse();
    sim.ms(2500);
    assert_eq!(sim.engine.stats().events_hidden, 0);
    // It was answered well in the end.
    assert_eq!(
        told(&sim.events()),
        [(Cause::TcpConnectRefused, None, true)]
    );

    // Another namespace's clients are none of ours.
    let mut sim = watched();
    sim.waiting = vec![(NETNS + 1, sim.now())];
    sim.syn().refuse();
    sim.ms(2500);
    assert_eq!(sim.engine.stats().events_hidden, 1);
}

#[test]
fn retries_are_one_answer_with_all_attempts_in_order() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.on(1).syn().refuse();
    sim.on(2).syn().refuse();
    sim.state(TcpState::Close, TcpState::Close, None, 0);
    asked.with(&mut sim, 502);
    let events = sim.events();
    let with: Vec<_> = events
        .iter()
        .filter_map(|event| Some((event, event.gateway_answer.as_ref()?)))
        .collect();
    let [(event, answer)] = with.as_slice() else {
        panic!("{events:#?}")
    };
    assert_eq!(events.len(), 2);
    assert_eq!(answer.attempts.len(), 2);
    assert_eq!(answer.attempts[1].event, event.id);
    assert_ne!(answer.attempts[0].event, event.id);
    // The client was told of neither as such, but it was told.
    assert!(events.iter().all(|event| !event.hidden_from_client));
}

#[test]
fn a_passed_on_status_is_told_apart() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.open().request();
    asked_passes(&mut sim, &asked, 503);
    let events = sim.events();
    assert_eq!(
        told(&events),
        [(Cause::UpstreamOwnError, Some(Some(503)), false)]
    );
    let stats = sim.engine.stats();
    assert_eq!((stats.answers_passed_on, stats.answers_503), (1, 0));

    // Another status than the upstream's was not passed on from it.
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.open().request();
    asked_passes(&mut sim, &asked, 504);
    let events = sim.events();
    assert!(
        events
            .iter()
            .filter(|event| event.cause == Cause::UpstreamOwnError)
            .all(|event| event.gateway_answer.is_none()),
        "{events:#?}"
    );
}

fn asked_passes(sim: &mut Sim, asked: &Asked, status: u16) {
    sim.reply(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno");
    asked.with(sim, status);
}

#[test]
fn another_process_or_an_earlier_request_is_never_joined() {
    let mut sim = watched();
    let mut asked = Asked::get(&sim, CLIENT);
    asked.pid = 43;
    asked.turn = None;
    sim.syn().refuse();
    asked.with(&mut sim, 502);
    let events = sim.events();
    let refused = events
        .iter()
        .find(|event| event.cause == Cause::TcpConnectRefused);
    assert!(refused.unwrap().gateway_answer.is_none());

    let mut sim = watched();
    sim.syn().refuse();
    sim.ms(200);
    let asked = Asked::get(&sim, CLIENT);
    asked.with(&mut sim, 502);
    let events = sim.events();
    let refused = events
        .iter()
        .find(|event| event.cause == Cause::TcpConnectRefused);
    assert!(refused.unwrap().gateway_answer.is_none());
}

#[test]
fn another_path_is_joined_by_the_turn_alone() {
    let other: &str = "GET /other HTTP/1.1\r\nHost: shop\r\n\r\n";
    for (turn, joined) in [(Some(TURN), true), (Some(OTHER), false), (None, false)] {
        let mut sim = watched();
        let mut asked = Asked::get(&sim, other);
        asked.turn = turn;
        sim.open().request().upstream_fin();
        sim.state(TcpState::CloseWait, TcpState::LastAck, None, 100);
        asked.with(&mut sim, 502);
        let events = sim.events();
        let event = events
            .iter()
            .find(|event| event.cause == Cause::TcpClosedNoResponse);
        assert_eq!(event.unwrap().gateway_answer.is_some(), joined, "{turn:?}");
    }
}

#[test]
fn two_causes_that_fit_alike_are_ambiguous() {
    let mut sim = watched();
    let mut asked = Asked::get(&sim, CLIENT);
    asked.turn = None;
    sim.on(1).syn();
    sim.on(2).syn();
    sim.on(1).refuse();
    sim.on(2).icmp([10, 0, 0, 9], false, 1);
    sim.state(
        TcpState::SynSent,
        TcpState::Close,
        Some(Errno::EHOSTUNREACH),
        0,
    );
    asked.with(&mut sim, 502);
    let events = sim.events();
    let answers: Vec<_> = events
        .iter()
        .filter_map(|event| event.gateway_answer.as_ref())
        .collect();
    assert_eq!(answers.len(), 1, "{events:#?}");
    assert_eq!(answers[0].candidates.len(), 1);
    assert_eq!(sim.engine.stats().answers_ambiguous, 1);
}

#[test]
fn answers_of_one_turn_are_ambiguous_where_the_gateway_orders_it_as_it_likes() {
    // Two clients, two failures of different causes, all in one turn.
    let play = |comm: &'static str| {
        let mut sim = watched_as(comm, 42);
        let input = |sim: &Sim| (sim.now(), process(comm, 42));
        let (asked, process) = input(&sim);
        sim.on(1).syn().refuse();
        sim.state(TcpState::Close, TcpState::Close, None, 0);
        let first = Arc::clone(&process);
        let answer = |sim: &mut Sim, process: Arc<Process>, head: &'static [u8]| {
            let waited = sim.now().since(asked);
            sim.input(Input::Answer(ClientAnswer {
                process,
                turn: Some(TURN),
                listener: "10.0.0.1:80".parse().unwrap(),
                client: "198.51.100.7:50000".parse().unwrap(),
                on_behalf_of: None,
                waited,
                read: None,
                ordinal: 1,
                request: head,
                end: AnswerEnd::Response(b"HTTP/1.1 503 No"),
                goroutine: None,
            }));
        };
        if comm == "nginx" {
            answer(&mut sim, Arc::clone(&first), b"GET /one HTTP/1.1\r\n\r\n");
        }
        sim.input(Input::ConnectFailed {
            process: Arc::clone(&process),
            upstream: crate::model::Target::Inet("10.0.0.3:80".parse().unwrap()),
            errno: Errno::ENETUNREACH,
            turn: Some(TURN),
            goroutine: None,
        });
        answer(&mut sim, process, b"GET /two HTTP/1.1\r\n\r\n");
        if comm != "nginx" {
            answer(&mut sim, first, b"GET /one HTTP/1.1\r\n\r\n");
        }
        let events = sim.events();
        let stats = sim.engine.stats();
        (events, stats.answers_explained, stats.answers_ambiguous)
    };
    let (events, explained, ambiguous) = play("envoy");
    assert!(explained + ambiguous == 2, "{events:#?}");
    assert_eq!(explained, 0, "{events:#?}");
    let (events, explained, ambiguous) = play("nginx");
    assert_eq!((explained, ambiguous), (2, 0), "{events:#?}");
}

#[test]
fn an_answer_without_an_attempt_is_judged_by_its_own_rules() {
    // A rule of nginx.
    let mut sim = watched();
    Asked::get(&sim, CLIENT).with(&mut sim, 503);
    let events = sim.events();
    assert_eq!(
        told(&events),
        [(Cause::GwLocalAnswer, Some(Some(503)), false)]
    );
    assert_eq!(events[0].proof, Proof::Underdetermined);
    assert_eq!(events[0].upstream.target().to_string(), "none");

    // No live upstreams, behind failures of the same request.
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.syn().refuse();
    sim.state(TcpState::Close, TcpState::Close, None, 0);
    asked.with(&mut sim, 502);
    sim.ms(5000);
    Asked::get(&sim, CLIENT).with(&mut sim, 502);
    let events = sim.events();
    assert_eq!(
        told(&events),
        [
            (Cause::TcpConnectRefused, Some(Some(502)), false),
            (Cause::PickPassivelyEjected, Some(Some(502)), false)
        ]
    );
    assert!(
        events[1]
            .evidence
            .iter()
            .any(|fact| fact.text.contains(&events[0].id))
    );
    // A rule may say the same.
    assert_eq!(events[1].proof, Proof::Underdetermined);
    assert!(events[1].rivals.contains(&Cause::GwLocalAnswer));

    // No descriptor left.
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.input(Input::SocketFailed {
        process: process("nginx", 42),
        turn: TURN,
        call: SocketCall::Socket,
        errno: Errno::EMFILE,
    });
    asked.with(&mut sim, 500);
    let events = sim.events();
    assert_eq!(
        told(&events),
        [(Cause::GwFdExhausted, Some(Some(500)), false)]
    );
    assert_eq!(events[0].proof, Proof::Proven);
}

/// A call that failed in `turn` while a client waited, who is answered `ms` later.
fn starved(comm: &'static str, turn: Turn, ms: u64) -> Vec<(Cause, Proof)> {
    let mut sim = watched_as(comm, 41);
    let asked = Asked::get(&sim, CLIENT);
    sim.input(Input::SocketFailed {
        process: process(comm, 42),
        turn,
        call: SocketCall::Socket,
        errno: Errno::EMFILE,
    });
    sim.ms(ms);
    asked.with(&mut sim, 500);
    let events = sim.events();
    let told = events.iter().map(|event| (event.cause, event.proof));
    told.collect()
}

#[test]
fn a_gateway_may_wait_for_its_log_before_it_answers_for_a_call_that_failed() {
    let earlier = Turn {
        number: TURN.number - 1,
        ..TURN
    };
    // It may have had no processor for a while, and it may have slept, which ends a turn.
    let proven = [(Cause::GwFdExhausted, Proof::Proven)];
    let no_attempt = [(Cause::GwLocalAnswer, Proof::Underdetermined)];
    assert_eq!(starved("nginx", TURN, 7), proven);
    assert_eq!(starved("nginx", earlier, 7), proven);
    // Not for as long as that, not another thread, and not where a turn does several requests in any order.
    assert_eq!(starved("nginx", earlier, 700), no_attempt);
    assert_eq!(starved("nginx", OTHER, 0), no_attempt);
    assert_eq!(starved("haproxy", TURN, 7), proven);
    assert_eq!(starved("haproxy", earlier, 7), no_attempt);

    // Another one was answered for it.
    let mut sim = watched();
    let asked =
        [CLIENT, "GET /b HTTP/1.1\r\nHost: shop\r\n\r\n"].map(|head| Asked::get(&sim, head));
    sim.input(Input::SocketFailed {
        process: process("nginx", 42),
        turn: earlier,
        call: SocketCall::Socket,
        errno: Errno::EMFILE,
    });
    for asked in &asked {
        sim.ms(1);
        asked.with(&mut sim, 500);
    }
    let causes: Vec<Cause> = sim.events().iter().map(|event| event.cause).collect();
    assert_eq!(causes, [Cause::GwFdExhausted, Cause::GwLocalAnswer]);
}

#[test]
fn nothing_is_said_where_an_upstream_may_have_been_asked() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.open().request();
    asked.with(&mut sim, 502);
    sim.ms(3000);
    sim.reply(OK);
    assert_eq!(told(&sim.events()), []);
    let stats = sim.engine.stats();
    assert_eq!((stats.answers_502, stats.answers_unexplained), (1, 1));
}

#[test]
fn a_worker_that_died_is_not_the_upstreams_fault() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    sim.open().request().ms(900).gateway_fin();
    asked.answered(
        &mut sim,
        AnswerEnd::Closed {
            exit: Some(Exit { signal: 11 }),
        },
    );
    let events = sim.events();
    assert_eq!(told(&events), [(Cause::GwWorkerDied, Some(None), false)]);
    assert_eq!(events[0].proof, Proof::Proven);
    assert!(events[0].evidence[0].text.contains("signal 11"));
}

#[test]
fn requests_are_read_however_short_they_were_captured() {
    for cut in GET.len() - 4..=GET.len() {
        let head = crate::http1::RequestHead::of_start(&GET[..cut]).unwrap();
        assert_eq!(head.path().as_deref(), Some("/a"));
    }
    assert_eq!(crate::http1::RequestHead::of_start(b"GET /a"), None);
    assert_eq!(crate::http1::RequestHead::of_start(b"\x16\x03\x01"), None);
}
