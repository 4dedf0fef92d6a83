//! Which attempts an answer is joined to, beside those that look like its own: health checks, retries, other
//! clients of the same moment, and the gateway itself.

use super::answers::{Asked, CLIENT, process, watched, watched_as};
use super::sim::{GET, Sim, TURN};
use crate::model::{
    AnswerEnd, Cause, ClientAnswer, Errno, HopEvent, Input, Proof, Read, SocketCall, TcpState,
    Timestamp, Turn,
};
use core::net::SocketAddr;
use std::time::Duration;

/// A turn of the same thread behind [`TURN`].
const LATER: Turn = Turn {
    thread: TURN.thread,
    number: TURN.number + 1,
};

/// Requests for paths that no upstream is asked for here.
const OTHER: &str = "GET /other HTTP/1.1\r\nHost: shop\r\n\r\n";
const THIRD: &str = "GET /third HTTP/1.1\r\nHost: shop\r\n\r\n";

const BUSY: &[u8] = b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno";

fn haproxy() -> Sim {
    watched_as("haproxy", 41)
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
        sim.syn().refuse();
        asked.with(&mut sim, 503);
        sim.state(TcpState::Close, TcpState::Close, None, 0);
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
        asked.with(&mut sim, 503);
        sim.state(TcpState::Close, TcpState::Close, None, 0);
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
        if status == 500 {
            asked.with(&mut sim, status);
        }
        sim.gateway_fin();
        refused(sim.on(2));
        if status != 500 {
            asked.with(&mut sim, status);
        }
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
    sim.sleep(Duration::from_micros(100));
    Asked::get(&sim, CLIENT).with(&mut sim, 502);
    assert_eq!(attempts(&sim.events()), []);
}

#[test]
fn a_retry_that_helped_is_hidden_however_soon_the_next_answer_follows() {
    let mut sim = watched();
    refused(&mut sim);
    sim.sleep(Duration::from_micros(200));
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
    sim.sleep(Duration::from_micros(300));
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
        on_behalf_of: None,
        waited,
        read: None,
        ordinal: 1,
        request: GET,
        end: AnswerEnd::Response(BAD),
        goroutine: None,
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

#[test]
fn a_deliberate_answer_is_not_given_the_connect_that_another_client_got_over() {
    // Whether the attempt carries the answer, and how many answers are explained.
    let play = |comm, status, between: fn(&mut Sim)| {
        let mut sim = watched_as(comm, 41);
        let asked = Asked::get(&sim, OTHER);
        refused(sim.on(1));
        between(&mut sim);
        asked.with(&mut sim, status);
        let events = sim.events();
        let refused = events
            .iter()
            .find(|event| event.cause == Cause::TcpConnectRefused);
        let joined = refused.is_some_and(|event| event.gateway_answer.is_some());
        (joined, sim.engine.stats().answers_explained)
    };
    let second_helps = |sim: &mut Sim| {
        sim.on(2).syn();
    };
    let later = |sim: &mut Sim| {
        sim.ms(2);
    };
    let much_later = |sim: &mut Sim| {
        sim.ms(300);
    };
    for status in [502, 503] {
        assert_eq!(play("nginx", status, |_| ()), (true, 1));
        assert_eq!(play("nginx", status, second_helps), (false, 0));
        assert_eq!(play("nginx", status, much_later), (false, 0));
    }
    // nginx says 502 itself where it cannot connect; for 503 it takes a rule.
    assert_eq!(play("nginx", 503, later), (false, 0));
    assert_eq!(play("nginx", 502, later), (true, 1));
    // Threads that wait for one thing answer for it at once as well.
    assert_eq!(play("caddy", 502, later), (true, 1));
    assert_eq!(play("caddy", 502, much_later), (false, 0));
    // Caddy says 502 where it cannot connect, and 503 where it is told to, which is said to be doubtful.
    assert_eq!(play("caddy", 503, later), (true, 0));
}

/// The one answer of a simulation whose attempts are asked for: their causes, and whether they are contested.
fn contested(sim: &mut Sim, port: u16) -> (Vec<Cause>, bool) {
    let events = sim.events();
    let answers = events
        .iter()
        .filter_map(|event| event.gateway_answer.as_ref());
    let mut own = answers.filter(|answer| answer.client.port == port);
    let answer = own.next().unwrap_or_else(|| panic!("{events:#?}"));
    let causes = answer.attempts.iter().map(|attempt| attempt.cause);
    (causes.collect(), answer.contested)
}

#[test]
fn who_answers_before_it_lets_go_had_that_upstream_for_the_answer() {
    // From the beginning of the turn that connects to the connect, and from the request to that.
    let play = |turn_age: Option<u64>, asked_before| {
        let mut sim = haproxy();
        let since = sim.now();
        sim.ms(asked_before);
        sim.turn_age = turn_age.map(Duration::from_millis);
        sim.on(1).syn().refuse();
        sim.turn = LATER;
        answered(&mut sim, 50_000, since, OTHER, 503);
        sim.on(1).state(TcpState::Close, TcpState::Close, None, 0);
        // For the same request, or for another.
        sim.on(2).syn();
        contested(&mut sim, 50_000)
    };
    let refused = vec![Cause::TcpConnectRefused];
    assert_eq!(play(Some(1), 2), (refused.clone(), false));
    assert_eq!(play(Some(3), 2), (refused.clone(), true));
    assert_eq!(play(None, 2), (refused, true));
}

#[test]
fn what_a_turn_connects_to_is_for_what_was_read_by_then() {
    // The request comes in the course of a turn, and is read in that one or the next.
    let play = |at_once: bool| {
        let mut sim = haproxy();
        sim.turn_age = Some(Duration::from_millis(3));
        let since = sim.now();
        sim.ms(1);
        let read = |sim: &Sim, turn| Some((sim.now(), turn));
        let mut read_at = at_once.then(|| read(&sim, TURN)).flatten();
        sim.on(1).syn().refuse();
        sim.ms(1);
        read_at = read_at.or_else(|| read(&sim, LATER));
        sim.turn = LATER;
        answered_to(&mut sim, 50_000, since, read_at, (OTHER, 503));
        sim.on(1).state(TcpState::Close, TcpState::Close, None, 0);
        sim.on(2).syn();
        contested(&mut sim, 50_000)
    };
    assert_eq!(play(true), (vec![Cause::TcpConnectRefused], false));
    assert_eq!(play(false), (vec![], false));
}

#[test]
fn a_connect_of_the_turn_that_read_another_request_may_be_for_that() {
    // Which request the first upstream is tried for: the one that is answered, or the one whose attempt is next.
    let play = |first: Turn, second: Option<Turn>| {
        let mut sim = haproxy();
        let since = sim.now();
        let read = |turn| Some((since, turn));
        sim.on(1).syn().refuse();
        sim.turn = LATER;
        answered_to(&mut sim, 50_000, since, read(first), (OTHER, 503));
        sim.on(1).state(TcpState::Close, TcpState::Close, None, 0);
        sim.on(2).syn();
        // Who is not told of a failure may have been tried for as well.
        if let Some(second) = second {
            sim.on(2).refuse();
            answered_to(&mut sim, 50_001, since, read(second), (THIRD, 503));
            sim.on(2).state(TcpState::Close, TcpState::Close, None, 0);
        }
        contested(&mut sim, 50_000).1
    };
    let before = Turn { number: 0, ..TURN };
    assert!(!play(TURN, Some(before)));
    assert!(!play(TURN, None));
    assert!(play(before, Some(TURN)));
    assert!(!play(before, Some(before)));
    assert!(play(before, None));
}

#[test]
fn what_was_connected_before_a_client_asked_is_another_clients() {
    let mut sim = haproxy();
    sim.turn_age = Some(Duration::ZERO);
    let first = sim.now();
    sim.on(1).syn().refuse();
    sim.turn = LATER;
    sim.ms(1);
    let second = sim.now();
    answered(&mut sim, 50_001, second, THIRD, 503);
    sim.on(1).state(TcpState::Close, TcpState::Close, None, 0);
    sim.on(2).syn().refuse();
    answered(&mut sim, 50_000, first, OTHER, 503);
    sim.on(2).state(TcpState::Close, TcpState::Close, None, 0);
    let both = vec![Cause::TcpConnectRefused; 2];
    assert_eq!(contested(&mut sim, 50_000), (both, false));
}

#[test]
fn a_connect_that_two_clients_may_have_had_is_contested() {
    for (clients, ambiguous) in [(1, 0), (2, 1)] {
        let mut sim = watched_as("caddy", 41);
        let since = sim.now();
        sim.on(1).syn().refuse();
        sim.state(TcpState::Close, TcpState::Close, None, 0);
        for port in 0..clients {
            answered(&mut sim, 50_000 + port, since, OTHER, 502);
        }
        sim.events();
        let stats = sim.engine.stats();
        assert_eq!(stats.answers_explained, u64::from(clients == 1));
        assert!(stats.answers_ambiguous >= ambiguous, "{stats:?}");
    }
}

#[test]
fn caddy_pauses_before_it_tries_again() {
    let play = |pause| {
        let mut sim = watched_as("caddy", 41);
        let since = sim.now();
        refused(sim.on(1));
        sim.ms(pause);
        refused(sim.on(2));
        answered(&mut sim, 50_000, since, OTHER, 502);
        contested(&mut sim, 50_000).0.len()
    };
    assert_eq!((play(10), play(250), play(600)), (1, 2, 1));
}

/// A client at this port gets an answer, in the turn of the time.
fn answered(sim: &mut Sim, port: u16, since: Timestamp, head: &'static str, status: u16) {
    answered_to(sim, port, since, None, (head, status));
}

/// The same of a request that was read then, in this turn.
fn answered_to(
    sim: &mut Sim,
    port: u16,
    since: Timestamp,
    read: Option<(Timestamp, Turn)>,
    (head, status): (&'static str, u16),
) {
    let end = format!("HTTP/1.1 {status} No\r\n\r\n");
    let (waited, turn) = (sim.now().since(since), Some(sim.turn));
    let comm = sim.comm().unwrap();
    sim.input(Input::Answer(ClientAnswer {
        process: process(comm, 42),
        turn,
        listener: "10.0.0.1:80".parse().unwrap(),
        client: ([198, 51, 100, 7], port).into(),
        on_behalf_of: None,
        waited,
        read: read.map(|(at, turn)| Read {
            waited: at.since(since),
            turn,
        }),
        ordinal: 1,
        request: head.as_bytes(),
        end: AnswerEnd::Response(end.as_bytes()),
        goroutine: None,
    }));
}

#[test]
fn a_call_that_failed_is_told_to_the_first_who_is_answered_behind_it() {
    let play = |comm, status| {
        let mut sim = watched_as(comm, 41);
        let since = sim.now();
        sim.input(Input::SocketFailed {
            process: process(comm, 42),
            turn: TURN,
            call: SocketCall::Bind,
            errno: Errno::EADDRNOTAVAIL,
        });
        answered(&mut sim, 50_000, since, OTHER, status);
        answered(&mut sim, 50_001, since, THIRD, 503);
        let events = sim.events();
        let told = events.iter().map(|event| (event.cause, event.proof));
        told.collect::<Vec<_>>()
    };
    let open = Proof::Underdetermined;
    assert_eq!(
        play("nginx", 500),
        [
            (Cause::GwSourceBindFailed, Proof::Proven),
            (Cause::GwLocalAnswer, open)
        ]
    );
    // Whose it is, is not known where the turn has an order of its own.
    assert_eq!(play("haproxy", 503), [(Cause::GwSourceBindFailed, open); 2]);
}

#[test]
fn hops_that_failed_in_a_turn_of_several_answers_are_not_said_to_be_none() {
    let mut sim = haproxy();
    let since = sim.now();
    for hop in 1..=2 {
        sim.on(hop).open().request();
    }
    for hop in 1..=2 {
        sim.on(hop).upstream_rst();
        sim.state(TcpState::Close, TcpState::Close, None, 0);
    }
    answered(&mut sim, 50_000, since, OTHER, 502);
    answered(&mut sim, 50_001, since, THIRD, 502);
    let causes: Vec<Cause> = sim.events().iter().map(|event| event.cause).collect();
    assert!(!causes.contains(&Cause::GwLocalAnswer), "{causes:?}");
    assert_eq!(sim.engine.stats().answers_unexplained, 2, "{causes:?}");
}

#[test]
fn the_connect_of_a_client_that_waits_for_its_answer_is_no_health_check() {
    for (waits, cause) in [
        (true, Cause::GwLocalAnswer),
        (false, Cause::PickAllUnhealthy),
    ] {
        let mut sim = haproxy();
        let since = sim.now();
        refused(sim.on(1));
        sim.turn = LATER;
        answered(&mut sim, 50_000, since, OTHER, 503);
        sim.turn = TURN;
        if waits {
            answered(&mut sim, 50_001, since, THIRD, 503);
        }
        let events = sim.events();
        let told = events.iter().find(|event| {
            let answer = event.gateway_answer.as_ref();
            answer.is_some_and(|answer| answer.client.port == 50_000)
        });
        assert_eq!(told.map(|event| event.cause), Some(cause), "{events:#?}");
    }
}

#[test]
fn a_health_check_between_an_attempt_and_its_retry_is_not_listed() {
    for (check_after, ambiguous) in [(100, false), (10, true)] {
        let mut sim = haproxy();
        let since = sim.now();
        let turn = |number| Turn {
            thread: TURN.thread,
            number,
        };
        for (hop, pause) in [(1, check_after), (2, 1000 - check_after)] {
            sim.turn = turn(hop);
            refused(sim.on(hop.into()));
            sim.ms(pause);
        }
        sim.turn = turn(3);
        sim.on(3).syn().refuse();
        answered(&mut sim, 50_000, since, OTHER, 503);
        sim.state(TcpState::Close, TcpState::Close, None, 0);
        let events = sim.events();
        let answer = events
            .iter()
            .find_map(|event| event.gateway_answer.as_ref())
            .unwrap();
        let of_hop = |hop| {
            let event = events
                .iter()
                .find(|event| event.hop == Some(crate::model::HopId(hop)));
            event.unwrap().id.clone()
        };
        let ids: Vec<String> = answer
            .attempts
            .iter()
            .map(|one| one.event.clone())
            .collect();
        if ambiguous {
            assert_eq!(ids.len(), 2);
            assert_eq!(answer.candidates.len(), 1);
        } else {
            assert_eq!(ids, [of_hop(1), of_hop(3)]);
            assert!(answer.candidates.is_empty());
        }
    }
}

/// The request of a gateway that takes the path off, as it passes it on.
const BARE: &[u8] = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

#[test]
fn what_a_thread_passes_on_behind_an_answer_is_none_of_that() {
    let mut sim = watched_as("apache2", 41);
    let since = sim.now();
    answered(&mut sim, 50_000, since, OTHER, 503);
    sim.ms(10);
    let since = sim.now();
    sim.turn = LATER;
    sim.open().send(BARE).ack();
    sim.reply(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno");
    answered(&mut sim, 50_001, since, THIRD, 503);
    sim.gateway_fin();
    let causes = causes_of_clients(&mut sim);
    assert_eq!(causes, [Cause::GwLocalAnswer, Cause::UpstreamOwnError]);
    assert_eq!(sim.engine.stats().answers_unexplained, 0);
}

#[test]
fn a_thread_of_its_own_tells_whose_attempt_it_was_where_the_order_is_lost() {
    let other = Turn {
        thread: TURN.thread + 1,
        number: 1,
    };
    let mut sim = watched_as("apache2", 41);
    let since = sim.now();
    sim.ms(1);
    sim.open().send(BARE).ack().upstream_fin();
    sim.state(TcpState::CloseWait, TcpState::LastAck, None, 100);
    sim.turn = other;
    answered(&mut sim, 50_001, since, OTHER, 503);
    sim.turn = TURN;
    answered(&mut sim, 50_000, since, THIRD, 502);
    sim.input(Input::Lost { records: 1 });
    let events = sim.events();
    let of_attempt = events.iter().find(|event| event.hop.is_some()).unwrap();
    let answer = of_attempt.gateway_answer.as_ref().unwrap();
    assert_eq!(answer.client.port, 50_000);
    assert_eq!(
        attempts(std::slice::from_ref(of_attempt)),
        [of_attempt.cause]
    );
}
