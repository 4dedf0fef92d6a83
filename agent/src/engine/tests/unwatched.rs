//! Hops that were opened where their packets are not seen: what the kernel says of them counts, and what is
//! seen later begins mid-stream.

use std::sync::Arc;

use super::sim::{OK, Sim, TURN};
use crate::model::{Cause, Errno, Process, Proof, Signal, TcpState};

impl Sim {
    /// A gateway opens a hop whose SYN is not seen.
    fn opened_unseen(&mut self) -> &mut Self {
        let process = Arc::new(Process {
            pid: 42,
            comm: Arc::from("nginx"),
            ..Process::default()
        });
        self.signal(Signal::Opened {
            process,
            local: None,
            upstream: "10.0.0.2:8080".parse().unwrap(),
            turn: TURN,
            turn_age: None,
            goroutine: None,
        });
        self.signal(Signal::Unwatched)
    }

    /// The handshake, none of it seen.
    fn established_unseen(&mut self) -> &mut Self {
        self.opened_unseen()
            .state(TcpState::SynSent, TcpState::Established, None, 1)
    }
}

#[test]
fn nothing_is_said_of_a_hop_that_is_not_seen() {
    // As if the upstream had closed a fresh connection, and then the gateway a silent one.
    let mut sim = Sim::live("nginx");
    sim.established_unseen()
        .ms(30)
        .state(TcpState::Established, TcpState::CloseWait, None, 100);
    sim.state(TcpState::CloseWait, TcpState::LastAck, None, 100);
    sim.expect_none();
    let mut sim = Sim::live("nginx");
    sim.established_unseen()
        .ms(3000)
        .state(TcpState::Established, TcpState::FinWait1, None, 100);
    sim.expect_none();
    assert_eq!(sim.engine.stats().hops_mid_stream, 1);
}

#[test]
fn a_connect_is_judged_by_what_the_kernel_says() {
    let mut sim = Sim::live("nginx");
    sim.opened_unseen().signal(Signal::ResetReceived);
    sim.state(
        TcpState::SynSent,
        TcpState::Close,
        Some(Errno::ECONNREFUSED),
        0,
    );
    let event = sim.expect(Cause::TcpConnectRefused, Proof::Proven);
    assert!(event.completeness.mid_stream);
}

#[test]
fn what_is_seen_from_the_middle_on_is_no_first_exchange() {
    let mut sim = Sim::live("nginx");
    sim.established_unseen();
    // The rest of a response to a request that was not seen.
    sim.ms(30).reply(b"rest of a body\r\n").ms(10);
    sim.request().ms(10).reply(OK);
    sim.request().ms(30).upstream_fin();
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    assert!(event.completeness.mid_stream);
}

#[test]
fn a_hop_whose_syn_is_seen_again_is_seen_whole() {
    let mut sim = Sim::live("nginx");
    sim.opened_unseen();
    sim.ms(1000).syn_again().established();
    sim.ms(30).request().ms(30).upstream_fin();
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
    assert!(!event.completeness.mid_stream);
}
