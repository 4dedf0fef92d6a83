//! Which attempts an answer is joined to, beside those that look like its own: health checks, retries, other
//! clients of the same moment, and the gateway itself.

use super::answers::{Asked, CLIENT, NETNS, process, watched};
use super::sim::{GET, Sim, TURN};
use crate::model::{
    AnswerEnd, Cause, ClientAnswer, Errno, HopEvent, Input, SocketCall, TcpState, Timestamp, Turn,
};
use core::net::SocketAddr;

/// A turn of the same thread behind [`TURN`].
const LATER: Turn = Turn {
    thread: TURN.thread,
    number: TURN.number + 1,
};

const BUSY: &[u8] = b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno";

fn haproxy() -> Sim {
    let mut sim = Sim::live("haproxy");
    sim.netns = NETNS;
    sim.input(Input::Listening {
        process: process("haproxy", 41),
        local: "0.0.0.0:80".parse().unwrap(),
        readable: true,
    });
    sim
}

/// The connect that is refused, and the gateway's letting go of it.
fn refused(sim: &mut Sim) {
    sim.syn().refuse();
    sim.state(TcpState::Close, TcpState::Close, None, 0);
}

/// The causes of the attempts of the one answer among `events`.
fn attempts(events: &[HopEvent]) -> Vec<Cause> {
    let mut answers = events
        .iter()
        .filter_map(|event| event.gateway_answer.as_ref());
    let answer = answers.next().unwrap_or_else(|| panic!("{events:#?}"));
    assert!(answers.next().is_none(), "{events:#?}");
    answer
        .attempts
        .iter()
        .map(|attempt| attempt.cause)
        .collect()
}

#[test]
fn a_connect_is_a_clients_only_in_the_turn_that_answers() {
    for (turn, expected) in [(TURN, vec![Cause::TcpConnectRefused]), (LATER, vec![])] {
        let mut sim = haproxy();
        let mut asked = Asked::get(&sim, CLIENT);
        asked.turn = Some(turn);
        refused(&mut sim);
        asked.with(&mut sim, 503);
        assert_eq!(attempts(&sim.events()), expected, "{turn:?}");
    }
}

#[test]
fn a_retry_is_connected_to_in_the_turn_that_gave_the_one_before_up() {
    let one = Cause::TcpConnectRefused;
    for (opened, expected) in [(TURN, vec![one, one]), (LATER, vec![one])] {
        let mut sim = haproxy();
        let mut asked = Asked::get(&sim, CLIENT);
        asked.turn = Some(LATER);
        refused(sim.on(1));
        sim.turn = opened;
        sim.on(2).syn();
        sim.turn = LATER;
        sim.on(2).refuse();
        sim.state(TcpState::Close, TcpState::Close, None, 0);
        asked.with(&mut sim, 503);
        assert_eq!(attempts(&sim.events()), expected, "{opened:?}");
    }
}

#[test]
fn a_connect_behind_an_exchange_of_the_same_path_is_the_last_attempt() {
    let mut sim = watched();
    let mut asked = Asked::get(&sim, CLIENT);
    asked.turn = Some(LATER);
    sim.on(1).open().request().ms(1000);
    sim.gateway_fin();
    sim.on(2).syn();
    sim.turn = LATER;
    sim.on(2).refuse();
    sim.state(TcpState::Close, TcpState::Close, None, 0);
    asked.with(&mut sim, 502);
    let events = sim.events();
    let expected = [Cause::UpstreamSlowFirstByte, Cause::TcpConnectRefused];
    assert_eq!(attempts(&events), expected);
    let last = events.iter().find(|event| event.gateway_answer.is_some());
    assert_eq!(last.unwrap().cause, Cause::TcpConnectRefused);
}

#[test]
fn a_status_that_was_tried_again_is_an_attempt_and_one_that_was_passed_on_is_not() {
    for (status, expected) in [
        (502, vec![Cause::UpstreamOwnError, Cause::TcpConnectRefused]),
        // The client of that one may be another.
        (500, vec![Cause::UpstreamOwnError]),
    ] {
        let mut sim = watched();
        let asked = Asked::get(&sim, CLIENT);
        sim.on(1).open().send(GET).ack();
        sim.reply(BUSY);
        refused(sim.on(2));
        asked.with(&mut sim, status);
        assert_eq!(attempts(&sim.events()), expected, "{status}");
    }
}

#[test]
fn what_fails_behind_an_answer_or_begins_ahead_of_its_request_is_another_clients() {
    let mut sim = watched();
    let asked = Asked::get(&sim, CLIENT);
    asked.with(&mut sim, 502);
    refused(&mut sim);
    assert_eq!(attempts(&sim.events()), []);

    let mut sim = watched();
    refused(&mut sim);
    sim.sleep(std::time::Duration::from_micros(100));
    Asked::get(&sim, CLIENT).with(&mut sim, 502);
    assert_eq!(attempts(&sim.events()), []);
}

#[test]
fn a_retry_that_helped_is_hidden_however_soon_the_next_answer_follows() {
    let mut sim = watched();
    refused(&mut sim);
    sim.sleep(std::time::Duration::from_micros(200));
    let other = "GET /other HTTP/1.1\r\nHost: shop\r\n\r\n";
    Asked::get(&sim, other).with(&mut sim, 503);
    let events = sim.events();
    let refused = events
        .iter()
        .find(|event| event.cause == Cause::TcpConnectRefused);
    assert!(refused.unwrap().hidden_from_client, "{events:#?}");
}

#[test]
fn a_failed_bind_of_another_turn_is_none_of_it() {
    for (turn, cause) in [
        (TURN, Cause::GwSourceBindFailed),
        (LATER, Cause::GwLocalAnswer),
    ] {
        let mut sim = watched();
        let asked = Asked::get(&sim, CLIENT);
        sim.input(Input::SocketFailed {
            process: process("nginx", 42),
            turn,
            call: SocketCall::Bind,
            errno: Errno::EADDRNOTAVAIL,
        });
        asked.with(&mut sim, 500);
        let events = sim.events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].cause, cause, "{turn:?}");
    }
}

#[test]
fn failures_behind_a_request_did_not_put_members_aside_for_it() {
    let mut sim = watched();
    let early = Asked::get(&sim, CLIENT);
    sim.sleep(std::time::Duration::from_micros(300));
    let asked = Asked::get(&sim, CLIENT);
    refused(&mut sim);
    asked.with(&mut sim, 502);
    sim.ms(1400);
    early.with(&mut sim, 502);
    let causes: Vec<Cause> = sim.events().iter().map(|event| event.cause).collect();
    assert!(!causes.contains(&Cause::PickPassivelyEjected), "{causes:?}");
}

/// A gateway at `10.0.0.2:8080` that sends what it is asked to itself, so many times, and then says 502.
fn sent_to_itself(sim: &mut Sim, first: u64, times: u64) {
    let outermost = sim.now();
    let mut asked = Vec::new();
    for hop in first..first + times {
        sim.on(hop).open().request();
        asked.push((hop, sim.local(), sim.now()));
    }
    for (hop, client, since) in asked.into_iter().rev() {
        bad_gateway(sim, client, since);
        sim.on(hop).reply(BAD);
    }
    bad_gateway(sim, "198.51.100.7:50000".parse().unwrap(), outermost);
}

const BAD: &[u8] = b"HTTP/1.1 502 Bad\r\nContent-Length: 2\r\n\r\nno";

/// That gateway answers a client.
fn bad_gateway(sim: &mut Sim, client: SocketAddr, since: Timestamp) {
    let waited = sim.now().since(since);
    sim.input(Input::Answer(ClientAnswer {
        process: process("nginx", 42),
        turn: Some(TURN),
        listener: "10.0.0.2:8080".parse().unwrap(),
        client,
        waited,
        ordinal: 1,
        request: GET,
        end: AnswerEnd::Response(BAD),
    }));
}

/// The causes of what clients were told that are none of the gateway's own.
fn causes_of_clients(sim: &mut Sim) -> Vec<Cause> {
    let events = sim.events();
    let of_client = |event: &&HopEvent| {
        let answer = event.gateway_answer.as_ref();
        answer.is_some_and(|answer| answer.client.port >= 50_000)
    };
    let causes = events.iter().filter(of_client).map(|event| event.cause);
    causes.collect()
}

#[test]
fn a_request_that_comes_back_again_and_again_is_in_a_loop() {
    let mut sim = watched();
    sent_to_itself(&mut sim, 1, 4);
    assert_eq!(causes_of_clients(&mut sim), [Cause::GwLoop]);
    // Once may be on purpose: from one virtual host to another.
    let mut sim = watched();
    sent_to_itself(&mut sim, 1, 1);
    assert_eq!(causes_of_clients(&mut sim), [Cause::UpstreamOwnError]);
}

#[test]
fn a_client_that_asks_again_and_again_is_in_no_loop() {
    let mut sim = watched();
    for hop in 1..=4 {
        sent_to_itself(&mut sim, hop, 1);
        sim.ms(10);
    }
    assert_eq!(causes_of_clients(&mut sim), [Cause::UpstreamOwnError; 4]);
}

#[test]
fn clients_that_ask_the_same_at_once_are_in_no_loop() {
    let mut sim = watched();
    let since = sim.now();
    let mut inner = Vec::new();
    for hop in 1..=4 {
        sim.on(hop).open().request();
        inner.push((hop, sim.local(), sim.now()));
    }
    for (hop, client, since) in inner.into_iter().rev() {
        bad_gateway(&mut sim, client, since);
        sim.on(hop).reply(BAD);
    }
    for port in 50_000..50_004 {
        bad_gateway(&mut sim, ([198, 51, 100, 7], port).into(), since);
    }
    let causes = causes_of_clients(&mut sim);
    assert_eq!(causes.len(), 4);
    assert!(!causes.contains(&Cause::GwLoop), "{causes:?}");
}
