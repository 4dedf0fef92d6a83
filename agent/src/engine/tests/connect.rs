//! Failed connects, and what must not be taken for one.

use std::sync::Arc;

use super::sim::{GET, OK, Sim, TURN, both};
use crate::model::{Cause, Errno, Input, Phase, Process, Proof, Signal, Target, TcpState};

#[test]
fn refused() {
    both(|sim| {
        let event = sim.syn().refuse().expect_refused();
        assert_eq!(event.phase, Phase::Connect);
        assert_eq!(event.recommended_status, Some(502));
        assert_eq!(event.proxy_error.as_deref(), Some("connection_refused"));
    });
}

impl Sim {
    #[track_caller]
    fn expect_refused(&mut self) -> crate::model::HopEvent {
        self.expect(Cause::TcpConnectRefused, Proof::Proven)
    }
}

#[test]
fn refused_without_packets() {
    let mut sim = Sim::live("nginx");
    let upstream = "10.0.0.2:8080".parse().unwrap();
    let process = Arc::new(Process {
        pid: 42,
        comm: Arc::from("nginx"),
        ..Process::default()
    });
    sim.signal(Signal::Opened {
        process,
        local: None,
        upstream,
        turn: TURN,
        turn_age: None,
        goroutine: None,
    });
    sim.signal(Signal::ResetReceived);
    sim.state(
        TcpState::SynSent,
        TcpState::Close,
        Some(Errno::ECONNREFUSED),
        0,
    );
    sim.expect_refused();
}

#[test]
fn blackholed_when_the_gateway_gives_up() {
    let mut sim = Sim::live("nginx");
    sim.syn()
        .ms(1000)
        .syn_again()
        .ms(1000)
        .state(TcpState::SynSent, TcpState::Close, None, 0);
    let event = sim.expect(Cause::TcpConnectBlackholed, Proof::Inferred);
    assert_eq!(event.connection.syn_retransmits, 1);
}

#[test]
fn blackholed_when_the_gateway_aborts_its_socket() {
    let mut sim = Sim::live("haproxy");
    sim.syn().ms(1000).syn_again().ms(1000);
    sim.state(
        TcpState::SynSent,
        TcpState::Close,
        Some(Errno::ECONNRESET),
        0,
    );
    sim.expect(Cause::TcpConnectBlackholed, Proof::Inferred);
}

#[test]
fn blackholed_from_packets_alone() {
    let mut sim = Sim::packets();
    sim.syn().ms(1000).syn_again();
    sim.expect(Cause::TcpConnectBlackholed, Proof::Inferred);
}

#[test]
fn one_unanswered_syn_at_the_end_of_a_capture_is_no_failure() {
    let mut sim = Sim::packets();
    sim.syn().ms(900);
    sim.engine.finish(crate::model::Timestamp::from_nanos(
        1_700_000_001_000_000_000,
    ));
    sim.expect_none();
}

#[test]
fn a_syn_that_was_captured_twice_is_not_sent_again() {
    let mut sim = Sim::packets();
    sim.syn().syn_again();
    sim.engine.finish(crate::model::Timestamp::from_nanos(
        1_700_000_001_000_000_000,
    ));
    sim.expect_none();
}

#[test]
fn silence_beside_working_connections_may_be_a_full_backlog() {
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(OK).gateway_fin().upstream_fin();
    sim.next_hop();
    sim.syn()
        .ms(1000)
        .syn_again()
        .ms(1000)
        .state(TcpState::SynSent, TcpState::Close, None, 0);
    let event = sim.expect(Cause::TcpConnectBlackholed, Proof::Underdetermined);
    assert_eq!(event.rivals, [Cause::TcpConnectBacklogFull]);
    // The same address in another network namespace is another host.
    sim = Sim::live("nginx");
    sim.netns = 1;
    sim.open().request().reply(OK).gateway_fin().upstream_fin();
    sim.next_hop();
    sim.netns = 2;
    sim.syn()
        .ms(2000)
        .state(TcpState::SynSent, TcpState::Close, None, 0);
    sim.expect(Cause::TcpConnectBlackholed, Proof::Inferred);
    assert!(event.splitter.is_some());
}

#[test]
fn a_gateway_that_gives_up_at_once_lost_its_client() {
    let mut sim = Sim::live("nginx");
    sim.syn()
        .ms(50)
        .state(TcpState::SynSent, TcpState::Close, None, 0);
    sim.expect_none();
    assert_eq!(sim.engine.stats().connect_abandoned, 1);
}

#[test]
fn no_neighbour_and_unreachable_host_are_split_by_who_complains() {
    for (from, own, code, cause) in [
        ([10, 0, 0, 1], true, 1, Cause::TcpConnectNoNeighbour),
        ([10, 0, 0, 254], false, 1, Cause::TcpConnectHostUnreachable),
        ([10, 0, 0, 254], false, 0, Cause::TcpConnectHostUnreachable),
        (
            [10, 0, 0, 254],
            false,
            13,
            Cause::TcpConnectRejectedByFilter,
        ),
        ([10, 0, 0, 254], false, 3, Cause::TcpConnectRejectedByFilter),
    ] {
        let close = |sim: &mut Sim| {
            sim.state(
                TcpState::SynSent,
                TcpState::Close,
                Some(Errno::EHOSTUNREACH),
                0,
            );
        };
        // The raw socket and the ring are two ways: either may be first.
        let mut sim = Sim::live("nginx");
        close(sim.syn().ms(3000).icmp(from, own, code));
        sim.expect(cause, Proof::Proven);
        let mut sim = Sim::live("nginx");
        close(sim.syn().ms(3000));
        sim.ms(30)
            .icmp(from, own, code)
            .expect(cause, Proof::Proven);
        let mut sim = Sim::packets();
        sim.syn()
            .ms(10)
            .icmp(from, own, code)
            .expect(cause, Proof::Proven);
    }
}

#[test]
fn an_icmp_error_may_be_ahead_of_its_syn() {
    // The gateway asks for the error and closes at once: nothing but the ICMP error tells.
    let mut sim = Sim::live("nginx");
    sim.icmp([10, 0, 0, 254], false, 1).syn();
    sim.state(TcpState::SynSent, TcpState::Close, None, 0);
    sim.expect(Cause::TcpConnectHostUnreachable, Proof::Proven);
}

#[test]
fn an_icmp_error_stays_in_its_namespace() {
    let mut sim = Sim::live("nginx");
    sim.namespace(1).syn().namespace(2).syn();
    // Another namespace, where nobody connected, may use the same addresses as well.
    sim.namespace(3).icmp([10, 0, 0, 254], false, 13);
    sim.namespace(1).icmp([10, 0, 0, 254], false, 1);
    for netns in [2, 1] {
        sim.namespace(netns).ms(2000);
        sim.state(TcpState::SynSent, TcpState::Close, None, 0);
    }
    let events = sim.events();
    let mut causes: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.gateway.as_ref().map(|gateway| gateway.netns),
                event.cause,
            )
        })
        .collect();
    causes.sort_unstable_by_key(|(netns, _)| *netns);
    assert_eq!(
        causes,
        [
            (Some(1), Cause::TcpConnectHostUnreachable),
            (Some(2), Cause::TcpConnectBlackholed),
        ]
    );
}

#[test]
fn an_icmp_error_explains_the_silence_after_it() {
    // Routers limit the rate of their errors: the second SYN drew none.
    both(|sim| {
        sim.syn().icmp([10, 0, 0, 254], false, 1);
        sim.ms(1000).syn_again().ms(1000);
        sim.state(TcpState::SynSent, TcpState::Close, None, 0);
        sim.expect(Cause::TcpConnectHostUnreachable, Proof::Proven);
    });
}

#[test]
fn an_unseen_icmp_error_leaves_rivals() {
    let mut sim = Sim::live("nginx");
    sim.syn().ms(3000).state(
        TcpState::SynSent,
        TcpState::Close,
        Some(Errno::EHOSTUNREACH),
        0,
    );
    let event = sim.expect(Cause::TcpConnectHostUnreachable, Proof::Underdetermined);
    assert!(event.rivals.contains(&Cause::TcpConnectNoNeighbour));
}

#[test]
fn a_soft_icmp_error_is_forgotten_when_the_connect_succeeds() {
    both(|sim| {
        sim.syn().icmp([10, 0, 0, 254], false, 1);
        sim.ms(1000).syn_again();
        sim.open()
            .request()
            .reply(OK)
            .gateway_fin()
            .upstream_fin()
            .expect_none();
    });
}

#[test]
fn refused_by_the_own_kernel_before_any_packet() {
    for (errno, cause) in [
        (101, Cause::TcpConnectNoRoute),
        (113, Cause::TcpConnectNoRoute),
        (13, Cause::TcpConnectLocalPolicy),
        (1, Cause::TcpConnectLocalPolicy),
        (22, Cause::TcpConnectLocalPolicy),
        (99, Cause::GwPortExhausted),
    ] {
        let mut sim = Sim::live("nginx");
        let process = Arc::new(Process {
            pid: 42,
            comm: Arc::from("nginx"),
            ..Process::default()
        });
        let upstream = "10.0.0.2:8080".parse().unwrap();
        sim.input(Input::ConnectFailed {
            process,
            upstream: Target::Inet(upstream),
            errno: Errno(errno),
            turn: None,
            goroutine: None,
        });
        sim.expect(cause, Proof::Proven);
    }
}

#[test]
fn a_unix_socket_fails_by_its_number() {
    let fail = |errno| {
        let mut sim = Sim::live("nginx");
        sim.input(Input::ConnectFailed {
            process: Arc::default(),
            upstream: Target::Unix(Arc::from("/run/app.sock")),
            errno: Errno(errno),
            turn: None,
            goroutine: None,
        });
        sim.events()
    };
    for (errno, why) in [
        (2, "no such socket"),
        (13, "may not write"),
        (111, "nobody listens"),
        (11, "backlog is full"),
    ] {
        let events = fail(errno);
        let [event] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!(
            (event.cause, event.proof),
            (Cause::UnixUnavailable, Proof::Proven)
        );
        assert_eq!(event.upstream.target().to_string(), "unix:/run/app.sock");
        assert_eq!(event.upstream.port, 0);
        let text = &event.evidence[0].text;
        assert!(text.contains(why), "{text}");
    }
    // A datagram socket behind the path, and numbers that are of the internet family.
    for errno in [91, 113, 99] {
        assert_eq!(fail(errno), []);
    }
}

#[test]
fn no_free_port_is_not_silence() {
    let mut sim = Sim::live("nginx");
    let upstream = "10.0.0.2:8080".parse().unwrap();
    let process = Arc::new(Process {
        pid: 42,
        comm: Arc::from("nginx"),
        ..Process::default()
    });
    sim.signal(Signal::Opened {
        process,
        local: None,
        upstream,
        turn: TURN,
        turn_age: None,
        goroutine: None,
    });
    sim.state(TcpState::SynSent, TcpState::Close, None, 0);
    sim.signal(Signal::ConnectReturned {
        errno: Errno::EADDRNOTAVAIL,
    });
    sim.expect(Cause::GwPortExhausted, Proof::Proven);
}

#[test]
fn a_syn_behind_its_own_refusal_is_no_second_failure() {
    let mut sim = Sim::live("nginx");
    let upstream = "10.0.0.2:8080".parse().unwrap();
    let process = Arc::new(Process {
        pid: 42,
        comm: Arc::from("nginx"),
        ..Process::default()
    });
    sim.signal(Signal::Opened {
        process,
        local: None,
        upstream,
        turn: TURN,
        turn_age: None,
        goroutine: None,
    });
    sim.refuse().ms(500).syn_again();
    sim.expect_refused();
}

#[test]
fn a_socket_may_be_connected_again() {
    let mut sim = Sim::live("nginx");
    sim.syn().refuse().ms(500);
    sim.syn().ms(1000).syn_again().ms(1000);
    sim.state(TcpState::SynSent, TcpState::Close, None, 0);
    let events = sim.events();
    let causes: Vec<_> = events.iter().map(|event| event.cause).collect();
    assert_eq!(
        causes,
        [Cause::TcpConnectRefused, Cause::TcpConnectBlackholed]
    );
    assert_ne!(events[0].id, events[1].id);
    // And then it may succeed.
    let mut sim = Sim::live("nginx");
    sim.syn().refuse().ms(500);
    sim.open().request().reply(OK).gateway_fin().upstream_fin();
    sim.expect_refused();
    // Or fail once more, in another way.
    let mut sim = Sim::live("nginx");
    sim.syn().refuse().ms(500);
    sim.open().upstream_fin().gateway_fin().ms(1000);
    let causes: Vec<_> = sim.events().iter().map(|event| event.cause).collect();
    assert_eq!(causes, [Cause::TcpConnectRefused, Cause::TcpClosedOnAccept]);
}

#[test]
fn a_connection_that_succeeded_never_failed_to_connect() {
    // A fast success that carried nothing and is closed idle.
    both(|sim| sim.open().ms(9).gateway_fin().upstream_fin().expect_none());
    // The record of ESTABLISHED was lost, but the SYN was acknowledged.
    let mut sim = Sim::live("nginx");
    sim.syn()
        .ms(2000)
        .state(TcpState::SynSent, TcpState::Close, None, 1);
    sim.expect_none();
}

#[test]
fn a_late_syn_ack_succeeds() {
    both(|sim| {
        sim.syn().ms(1000).syn_again().ms(2000);
        sim.open()
            .send(GET)
            .ack()
            .reply(OK)
            .gateway_fin()
            .upstream_fin()
            .expect_none();
    });
}
