//! Failed connects of gateways written in Go, joined to the answers of the goroutines that had them made.

use super::answers::{CLIENT, process, watched_as};
use super::sim::Sim;
use crate::model::{
    AnswerEnd, Cause, ClientAnswer, Errno, Goroutine, HopId, Input, Target, TcpState, Timestamp,
    Turn,
};

/// What the client at a port was told of.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    /// The hops of the attempts, in order.
    hops: Vec<Option<HopId>>,
    ambiguous: bool,
}

impl Told {
    fn clear(hops: &[u64]) -> Self {
        Self {
            hops: hops.iter().map(|hop| Some(HopId(*hop))).collect(),
            ambiguous: false,
        }
    }
}

fn caddy() -> Sim {
    watched_as("caddy", 42)
}

/// This goroutine, which that one started, connects on a hop.
fn connect(sim: &mut Sim, hop: u64, (id, parent): (u64, u64)) {
    sim.goroutine = Some(Goroutine { id, parent });
    sim.on(hop).syn();
}

/// That is refused, and the gateway lets go of it.
fn refuse(sim: &mut Sim, hop: u64) {
    sim.on(hop).refuse();
    sim.state(TcpState::Close, TcpState::Close, None, 0);
}

/// The client at a port, which asked then, is answered by this goroutine, on whatever thread.
fn answer(sim: &mut Sim, port: u16, since: Timestamp, by: Option<u64>) {
    let turn = Turn {
        thread: u32::from(port),
        number: 1,
    };
    sim.input(Input::Answer(ClientAnswer {
        process: process("caddy", 42),
        turn: Some(turn),
        goroutine: by,
        listener: "10.0.0.1:80".parse().unwrap(),
        client: ([198, 51, 100, 7], port).into(),
        on_behalf_of: None,
        waited: sim.now().since(since),
        read: None,
        ordinal: 1,
        request: CLIENT.as_bytes(),
        end: AnswerEnd::Response(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"),
    }));
}

/// What the clients at these ports were told of.
fn told<const N: usize>(sim: &mut Sim, ports: [u16; N]) -> [Told; N] {
    let events = sim.events();
    ports.map(|port| {
        let answers = events.iter().filter_map(|event| {
            let answer = event.gateway_answer.as_ref()?;
            (answer.client.port == port).then_some(answer)
        });
        let answers: Vec<_> = answers.collect();
        assert!(answers.len() <= 1, "{events:#?}");
        let mut told = Told {
            hops: Vec::new(),
            ambiguous: false,
        };
        if let Some(answer) = answers.first() {
            told.ambiguous = answer.is_ambiguous();
            for attempt in &answer.attempts {
                let event = events.iter().find(|event| event.id == attempt.event);
                told.hops.push(event.unwrap().hop);
            }
        }
        told
    })
}

#[test]
fn a_connect_is_for_the_client_whose_goroutine_had_it_made() {
    // Those that failed first are answered last.
    let mut sim = caddy();
    let since = sim.now();
    for hop in 1..=4 {
        connect(&mut sim, hop, (100 + hop, 10 + hop));
    }
    for hop in 1..=4 {
        refuse(&mut sim, hop);
    }
    for client in (1..=4).rev() {
        answer(
            &mut sim,
            50_000 + client,
            since,
            Some(10 + u64::from(client)),
        );
    }
    let found = told(&mut sim, [50_001, 50_002, 50_003, 50_004]);
    assert_eq!(found, [[1], [2], [3], [4]].map(|hops| Told::clear(&hops)));
    assert_eq!(sim.engine.stats().answers_explained, 4);
}

#[test]
fn where_goroutines_are_not_known_it_is_said_that_they_may_be_mixed_up() {
    let mut sim = caddy();
    let since = sim.now();
    for hop in 1..=2 {
        sim.goroutine = None;
        sim.on(hop).syn();
        refuse(&mut sim, hop);
    }
    for client in 1..=2 {
        answer(&mut sim, 50_000 + client, since, None);
    }
    let found = told(&mut sim, [50_001, 50_002]);
    assert!(found.iter().all(|told| told.ambiguous), "{found:?}");
}

#[test]
fn a_gateway_may_connect_in_the_goroutine_that_serves_the_client() {
    let mut sim = caddy();
    let since = sim.now();
    for hop in 1..=2 {
        connect(&mut sim, hop, (10 + hop, 1));
        refuse(&mut sim, hop);
    }
    answer(&mut sim, 50_002, since, Some(12));
    answer(&mut sim, 50_001, since, Some(11));
    let found = told(&mut sim, [50_001, 50_002]);
    assert_eq!(found, [[1], [2]].map(|hops| Told::clear(&hops)));
}

#[test]
fn the_connect_of_a_goroutine_that_answers_another_client_is_none_of_an_answer() {
    let mut sim = caddy();
    let since = sim.now();
    connect(&mut sim, 1, (101, 11));
    refuse(&mut sim, 1);
    // Answered by the gateway itself, right behind that.
    answer(&mut sim, 50_002, since, Some(12));
    sim.ms(1);
    answer(&mut sim, 50_001, since, Some(11));
    let found = told(&mut sim, [50_001, 50_002]);
    let [own, other] = found;
    assert_eq!(own, Told::clear(&[1]));
    assert!(other.hops.is_empty(), "{other:?}");
}

#[test]
fn retries_are_listed_in_order_whatever_was_tried_for_others_meanwhile() {
    let mut sim = caddy();
    let since = sim.now();
    for round in 0..3 {
        connect(&mut sim, 10 + round, (110 + round, 11));
        connect(&mut sim, 20 + round, (120 + round, 12));
        refuse(&mut sim, 20 + round);
        refuse(&mut sim, 10 + round);
        // Caddy's pause, or any other.
        sim.ms(250 + 100 * round);
    }
    connect(&mut sim, 13, (113, 11));
    refuse(&mut sim, 13);
    answer(&mut sim, 50_001, since, Some(11));
    answer(&mut sim, 50_002, since, Some(12));
    let found = told(&mut sim, [50_001, 50_002]);
    let expected = [vec![10, 11, 12, 13], vec![20, 21, 22]];
    assert_eq!(found, expected.map(|hops| Told::clear(&hops)));
}

#[test]
fn a_goroutine_serves_one_request_after_another() {
    let mut sim = caddy();
    for request in 1..=2_u64 {
        let since = sim.now();
        connect(&mut sim, request, (100 + request, 11));
        refuse(&mut sim, request);
        answer(&mut sim, 50_001, since, Some(11));
        sim.ms(1);
    }
    // One that began ahead of the request, and one that fails behind the answer.
    connect(&mut sim, 3, (103, 11));
    sim.ms(1);
    let since = sim.now();
    refuse(&mut sim, 3);
    connect(&mut sim, 4, (104, 11));
    sim.ms(1);
    answer(&mut sim, 50_001, since, Some(11));
    sim.ms(1);
    refuse(&mut sim, 4);
    let events = sim.events();
    let hops = events.iter().filter_map(|event| {
        let answer = event.gateway_answer.as_ref()?;
        Some((event.hop?.0, answer.attempts.len(), answer.is_ambiguous()))
    });
    let hops: Vec<_> = hops.collect();
    assert_eq!(hops, [(1, 1, false), (2, 1, false)], "{events:#?}");
}

/// A request on a hop is answered with a reset, so long behind it.
fn reset(sim: &mut Sim, hop: u64, after_ms: u64) {
    sim.on(hop).request();
    sim.ms(after_ms);
    sim.upstream_rst();
}

#[test]
fn a_connect_beside_what_was_asked_is_no_more_than_a_candidate() {
    // How long the connect begins behind the end of what was asked on another connection; negative where it is ahead.
    let play = |behind_ms: i64| {
        let mut sim = caddy();
        sim.on(1).open();
        sim.ms(10);
        let since = sim.now();
        if behind_ms < 0 {
            connect(&mut sim, 2, (101, 11));
        }
        reset(&mut sim, 1, 5);
        if let Ok(pause) = u64::try_from(behind_ms) {
            sim.ms(pause);
            connect(&mut sim, 2, (101, 11));
        }
        refuse(&mut sim, 2);
        answer(&mut sim, 50_001, since, Some(11));
        let [found] = told(&mut sim, [50_001]);
        found
    };
    // Caddy pauses before it tries again.
    assert_eq!(play(250), Told::clear(&[1, 2]));
    // It may have been queued by somebody else, or have outlived the need for it.
    for behind_ms in [0, -1] {
        let found = play(behind_ms);
        assert!(
            found.ambiguous && found.hops.contains(&Some(HopId(1))),
            "{found:?}"
        );
    }
}

#[test]
fn retries_on_connections_of_their_own_are_listed_whatever_others_asked_alike() {
    let mut sim = caddy();
    let since = sim.now();
    // One is reset twice; the other is refused twice.
    for round in 0..2 {
        for (hop, parent) in [(10 + round, 11), (20 + round, 12)] {
            connect(&mut sim, hop, (100 + hop, parent));
        }
        sim.on(10 + round).established();
        reset(&mut sim, 10 + round, 1);
        refuse(&mut sim, 20 + round);
        sim.ms(100);
    }
    connect(&mut sim, 22, (122, 12));
    refuse(&mut sim, 22);
    answer(&mut sim, 50_002, since, Some(12));
    answer(&mut sim, 50_001, since, Some(11));
    let found = told(&mut sim, [50_001, 50_002]);
    let expected = [vec![10, 11], vec![20, 21, 22]];
    assert_eq!(found, expected.map(|hops| Told::clear(&hops)));
}

#[test]
fn what_was_asked_alike_is_taken_by_whom_the_connection_was_opened_for() {
    let mut sim = caddy();
    let since = sim.now();
    for hop in 1..=2 {
        connect(&mut sim, hop, (100 + hop, 10 + hop));
        sim.on(hop).established();
    }
    // Each is let go of by the thread that answers the other client.
    for (hop, thread) in [(1, 50_002), (2, 50_001)] {
        sim.turn = Turn { thread, number: 1 };
        reset(&mut sim, hop, 5);
        sim.on(hop).state(TcpState::Close, TcpState::Close, None, 0);
    }
    answer(&mut sim, 50_002, since, Some(12));
    answer(&mut sim, 50_001, since, Some(11));
    let found = told(&mut sim, [50_001, 50_002]);
    assert_eq!(found, [[1], [2]].map(|hops| Told::clear(&hops)));
}

#[test]
fn a_goroutine_that_seems_to_answer_two_clients_says_nothing() {
    let mut sim = caddy();
    let since = sim.now();
    for hop in 1..=2 {
        connect(&mut sim, hop, (100 + hop, 10 + hop));
        refuse(&mut sim, hop);
    }
    answer(&mut sim, 50_001, since, Some(11));
    answer(&mut sim, 50_002, since, Some(11));
    let found = told(&mut sim, [50_001, 50_002]);
    assert!(found.iter().all(|told| told.ambiguous), "{found:?}");
}

#[test]
fn a_call_that_failed_at_once_is_joined_as_well() {
    let mut sim = caddy();
    let since = sim.now();
    for parent in [11, 12] {
        sim.input(Input::ConnectFailed {
            process: process("caddy", 42),
            upstream: Target::Inet("10.0.0.9:80".parse().unwrap()),
            errno: Errno(101),
            turn: None,
            goroutine: Some(Goroutine {
                id: 100 + parent,
                parent,
            }),
        });
    }
    for client in [2, 1] {
        answer(
            &mut sim,
            50_000 + client,
            since,
            Some(10 + u64::from(client)),
        );
    }
    let events = sim.events();
    let clients = events.iter().filter_map(|event| {
        let answer = event.gateway_answer.as_ref()?;
        assert!(!answer.is_ambiguous(), "{events:#?}");
        assert_eq!(event.cause, Cause::TcpConnectNoRoute);
        Some(answer.client.port)
    });
    let mut clients: Vec<_> = clients.collect();
    clients.sort_unstable();
    assert_eq!(clients, [50_001, 50_002]);
}
