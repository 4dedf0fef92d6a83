//! Closes and resets of established connections.

use super::sim::{GET, OK, Sim, TURN, both};
use crate::model::{Actor, Cause, Departure, Input, Phase, Proof, ResetReason, Signal, Turn};

#[test]
fn closed_on_accept_fin_before_the_request() {
    both(|sim| {
        let event = sim.open().upstream_fin().send(GET).upstream_rst();
        let event = event.expect(Cause::TcpClosedOnAccept, Proof::Proven);
        assert_eq!(event.phase, Phase::Request);
        assert!(!event.connection.reused);
    });
}

#[test]
fn closed_on_accept_fin_crosses_the_request() {
    both(|sim| {
        sim.open().send(GET).upstream_fin().upstream_rst();
        sim.expect(Cause::TcpClosedOnAccept, Proof::Proven);
    });
}

#[test]
fn closed_on_accept_without_the_reset() {
    both(|sim| {
        sim.open().upstream_fin().send(GET).ms(500);
        sim.expect(Cause::TcpClosedOnAccept, Proof::Proven);
    });
}

#[test]
fn closed_on_accept_before_the_gateway_sent_anything() {
    both(|sim| {
        sim.open().upstream_rst();
        sim.expect(Cause::TcpClosedOnAccept, Proof::Inferred);
    });
    both(|sim| {
        sim.open().upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedOnAccept, Proof::Inferred);
    });
    // An unused connection that the upstream closes after a while was not needed.
    both(|sim| {
        sim.open()
            .ms(60_000)
            .upstream_fin()
            .gateway_fin()
            .expect_none()
    });
}

#[test]
fn reset_with_the_request_unread_on_this_host() {
    let mut sim = Sim::live("nginx");
    sim.open()
        .request()
        .reason(ResetReason::AbortOnClose)
        .upstream_rst();
    sim.expect(Cause::TcpClosedOnAccept, Proof::Proven);
}

#[test]
fn closed_no_response() {
    both(|sim| {
        let event = sim.open().request().ms(30).upstream_fin();
        let event = event.expect(Cause::TcpClosedNoResponse, Proof::Proven);
        let exchange = event.exchange.unwrap();
        assert_eq!(exchange.path.as_deref(), Some("/a"));
        assert_eq!(exchange.host.as_deref(), Some("shop"));
        assert_eq!(
            (exchange.request_bytes, exchange.response_bytes),
            (GET.len() as u64, 0)
        );
    });
}

#[test]
fn closed_no_response_on_a_reused_connection_is_less_firm() {
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(100)
            .request()
            .ms(30)
            .upstream_fin();
        let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
        assert!(event.connection.reused);
        assert_eq!(event.exchange.unwrap().ordinal, 2);
    });
}

#[test]
fn reset_no_response() {
    both(|sim| {
        sim.open().request().ms(30).upstream_rst();
        sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
    });
    let mut sim = Sim::live("nginx");
    sim.open()
        .request()
        .reason(ResetReason::AbortOnLinger)
        .upstream_rst();
    sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
}

#[test]
fn reset_at_once_on_a_reused_connection_leaves_rivals() {
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(5000)
            .request()
            .upstream_rst();
        let event = sim.expect(Cause::TcpResetNoResponse, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::PoolStaleReuse]);
    });
}

#[test]
fn stale_reuse_fin_seen_before_the_request() {
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(5000)
            .upstream_fin()
            .send(GET)
            .upstream_rst();
        let event = sim.expect(Cause::PoolStaleReuse, Proof::Proven);
        assert!(event.connection.reused);
        assert!(event.connection.idle_ms.unwrap() >= 5000.0);
    });
}

#[test]
fn stale_reuse_fin_crosses_the_request() {
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(5000)
            .send(GET)
            .upstream_fin()
            .upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Proven);
    });
}

#[test]
fn stale_reuse_only_the_reset_is_seen() {
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(5000)
            .send(GET)
            .upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Inferred);
    });
}

#[test]
fn stale_reuse_of_a_request_that_was_acknowledged_and_never_read() {
    let end = |request: &[u8], reason| {
        let mut sim = Sim::live("nginx");
        sim.open().request().reply(OK).ms(5000);
        sim.send(request).ack().ms(1).upstream_rst().reason(reason);
        sim
    };
    let mut read_in_part = b"GET / HTTP/1.1\r\nCookie: ".to_vec();
    read_in_part.extend([b'c'; 1200]);
    read_in_part.extend(b"\r\n\r\n");
    end(GET, ResetReason::AbortOnClose).expect(Cause::PoolStaleReuse, Proof::Inferred);
    end(&read_in_part, ResetReason::AbortOnClose)
        .expect(Cause::TcpResetNoResponse, Proof::Underdetermined);
    end(GET, ResetReason::AbortOnLinger).expect(Cause::TcpResetNoResponse, Proof::Proven);
}

#[test]
fn a_pool_that_closes_idle_is_healthy() {
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(60_000)
            .upstream_fin()
            .gateway_fin()
            .expect_none()
    });
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(60_000)
            .gateway_fin()
            .upstream_fin()
            .expect_none()
    });
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(60_000)
            .upstream_rst()
            .expect_none()
    });
}

#[test]
fn a_gateway_that_closes_with_unread_data_is_healthy() {
    both(|sim| {
        let mut extra = OK.to_vec();
        extra.extend_from_slice(b"unread");
        sim.open()
            .request()
            .reply(&extra)
            .gateway_rst()
            .expect_none();
    });
}

#[test]
fn a_port_used_again_is_another_hop() {
    both(|sim| {
        sim.open().request().reply(OK).gateway_fin().upstream_fin();
        sim.next_hop();
        sim.open()
            .request()
            .reply(OK)
            .gateway_fin()
            .upstream_fin()
            .expect_none();
    });
}

#[test]
fn the_gateways_own_reset_is_not_the_upstreams() {
    let mut sim = Sim::live("nginx");
    sim.open().request().ms(20);
    sim.signal(Signal::ResetSent {
        by: Actor::Gateway,
        reason: None,
    });
    sim.gateway_rst().upstream_rst().expect_none();
    assert_eq!(sim.engine.stats().unjudged_gateway_closed, 1);
}

#[test]
fn slow_first_byte() {
    both(|sim| {
        let event = sim.open().request().ms(2000).gateway_fin();
        let event = event.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::UpstreamNotReading]);
        assert_eq!(event.recommended_status, Some(504));
    });
}

#[test]
fn a_request_that_nobody_acknowledges_is_not_a_slow_upstream() {
    both(|sim| {
        sim.open().send(GET).ms(300);
        sim.resend(GET).ms(2000).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
}

impl Sim {
    fn resend(&mut self, bytes: &[u8]) -> &mut Self {
        let direction = crate::model::Direction::ToUpstream;
        let seq = u32::MAX - 19;
        self.segment(
            direction,
            crate::model::TcpFlags::ACK,
            seq,
            bytes,
            bytes.len() as u32,
        );
        self
    }
}

#[test]
fn a_connection_joined_mid_stream_is_taken_for_reused() {
    let mut sim = Sim::live("nginx");
    sim.seeded();
    sim.request().ms(30).upstream_fin();
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    assert!(event.completeness.mid_stream);
}

#[test]
fn a_client_that_left_is_not_a_slow_upstream() {
    // The order of nginx, then that of Envoy.
    let mut sim = Sim::live("nginx");
    sim.open().request().ms(2000).gateway_fin();
    sim.ms(15).input(Input::ClientLeft {
        turn: TURN,
        departure: Departure::Waiting,
    });
    sim.expect_none();
    assert_eq!(sim.engine.stats().client_left, 1);
    let mut sim = Sim::live("envoy");
    sim.open().request().ms(2000);
    sim.input(Input::ClientLeft {
        turn: TURN,
        departure: Departure::Waiting,
    });
    sim.ms(15).gateway_rst().expect_none();
    // A client of another thread, of another turn or of another time says nothing.
    let mut sim = Sim::live("nginx");
    sim.open().request().ms(2000).gateway_fin();
    for turn in [Turn { thread: 44, ..TURN }, Turn { number: 8, ..TURN }] {
        sim.input(Input::ClientLeft {
            turn,
            departure: Departure::Waiting,
        });
    }
    sim.ms(60).input(Input::ClientLeft {
        turn: TURN,
        departure: Departure::Waiting,
    });
    sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
}

#[test]
fn a_client_that_had_nothing_to_wait_for_hides_no_failure() {
    // A kept connection is closed in the very turn that runs out of patience.
    let idle = Input::ClientLeft {
        turn: TURN,
        departure: Departure::Answered,
    };
    let mut sim = Sim::live("nginx");
    sim.open().request().ms(2000).gateway_fin();
    sim.input(idle.clone());
    sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
    // Of a response that has begun the client may have had a part.
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome");
    sim.ms(2000).gateway_fin();
    sim.input(idle);
    sim.expect_none();
    assert_eq!(sim.engine.stats().client_left, 1);
}

#[test]
fn the_reason_of_a_reset_comes_after_it() {
    let mut sim = Sim::live("nginx");
    sim.open()
        .request()
        .upstream_rst()
        .reason(ResetReason::AbortOnClose);
    sim.expect(Cause::TcpClosedOnAccept, Proof::Proven);
}
