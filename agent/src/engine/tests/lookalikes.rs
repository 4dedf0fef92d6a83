//! Failures that look alike, both sides of each pair, and their healthy neighbours.

use super::sim::{GET, OK, Sim, TURN, both};
use crate::model::{Cause, Departure, Direction, Input, Phase, Proof, ResetReason, TcpFlags};

const ACK: TcpFlags = TcpFlags::ACK;
const PART: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nhello";
/// Payload of a full-size segment.
const FULL: usize = 1448;

/// A request with a body that makes it so long.
fn post(len: usize) -> Vec<u8> {
    let head = format!("POST /a HTTP/1.1\r\nContent-Length: {:05}\r\n\r\n", 0);
    let body = len - head.len();
    let head = format!("POST /a HTTP/1.1\r\nContent-Length: {body:05}\r\n\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(len, b'x');
    bytes
}

impl Sim {
    /// The gateway sends again what it sent last, after a while each time.
    fn send_again(&mut self, bytes: &[u8], pauses: &[u64]) -> &mut Self {
        let seq = self.next_seq(Direction::ToUpstream);
        let seq = seq.wrapping_sub(bytes.len() as u32);
        self.send_again_at(seq, bytes, pauses)
    }

    fn send_again_at(&mut self, seq: u32, bytes: &[u8], pauses: &[u64]) -> &mut Self {
        for pause in pauses {
            self.ms(*pause);
            self.segment(Direction::ToUpstream, ACK, seq, bytes, bytes.len() as u32);
        }
        self
    }

    /// The upstream sends, so far ahead of its next byte; nothing acknowledges it.
    fn upstream_sends(&mut self, ahead: u32, bytes: &[u8]) -> &mut Self {
        let seq = self.next_seq(Direction::FromUpstream).wrapping_add(ahead);
        self.segment(Direction::FromUpstream, ACK, seq, bytes, bytes.len() as u32);
        self
    }

    fn used(&mut self, idle_ms: u64) -> &mut Self {
        self.open().request().reply(OK).ms(idle_ms)
    }
}

const AGAIN: &[u64] = &[200, 400, 800, 1600];

#[test]
fn a_reset_with_another_ttl_is_somebody_elses() {
    both(|sim| {
        sim.open().request().ms(30);
        sim.ttl = 57;
        let event = sim.upstream_rst();
        let event = event.expect(Cause::TcpResetInjected, Proof::Inferred);
        let text = &event.evidence[0].text;
        assert!(text.contains("ttl 57") && text.contains("ttl 64"), "{text}");
    });
    // The other side of the pair.
    both(|sim| {
        sim.open().request().ms(30).upstream_rst();
        sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
    });
    // Inside the response, and on a connection used before.
    both(|sim| {
        sim.used(5000).request().reply(PART);
        sim.ttl = 57;
        let event = sim.upstream_rst();
        let event = event.expect(Cause::TcpResetInjected, Proof::Inferred);
        assert_eq!(event.phase, Phase::ResponseBody);
    });
}

#[test]
fn where_paths_differ_the_ttl_tells_nothing() {
    both(|sim| {
        sim.open().request();
        sim.ttl = 57;
        sim.reply(OK).ms(100);
        sim.ttl = 64;
        sim.request().ms(30);
        sim.ttl = 57;
        sim.upstream_rst();
        sim.expect(Cause::TcpResetNoResponse, Proof::Underdetermined);
    });
}

#[test]
fn an_upstream_that_goes_on_did_not_reset() {
    both(|sim| {
        sim.open().request().upstream_rst();
        sim.ms(5).upstream_sends(0, OK);
        sim.expect(Cause::TcpResetInjected, Proof::Inferred);
    });
    // It acknowledges what it would know nothing of.
    both(|sim| {
        sim.open().send(GET).upstream_rst().ms(5).ack();
        sim.expect(Cause::TcpResetInjected, Proof::Inferred);
    });
    // Or it closes in order.
    both(|sim| {
        sim.open().request().reply(PART).upstream_rst().ms(5);
        let seq = sim.next_seq(Direction::FromUpstream);
        sim.segment(
            Direction::FromUpstream,
            TcpFlags::FIN.union(ACK),
            seq,
            &[],
            0,
        );
        sim.expect(Cause::TcpResetInjected, Proof::Inferred);
    });
    // The same reset again, and bytes that were known before it.
    both(|sim| {
        sim.open().request().reply(PART).upstream_rst().ms(5);
        let seq = sim.next_seq(Direction::FromUpstream);
        sim.segment(Direction::FromUpstream, TcpFlags::RST, seq, &[], 0);
        sim.upstream_sends((PART.len() as u32).wrapping_neg(), PART);
        sim.expect(Cause::Http1BodyTruncated, Proof::Proven);
    });
}

#[test]
fn segments_beside_a_reset_may_have_been_ahead_of_it() {
    both(|sim| {
        sim.open().request().upstream_rst().upstream_sends(0, OK);
        sim.expect_none();
    });
    both(|sim| {
        sim.open().request().upstream_rst().ack();
        sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
    });
}

#[test]
fn the_upstreams_own_kernel_excludes_others() {
    let mut sim = Sim::live("nginx");
    sim.open().request().ms(30);
    sim.ttl = 57;
    sim.upstream_rst().reason(ResetReason::AbortOnLinger);
    sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
}

#[test]
fn a_sequence_number_that_is_off_leaves_a_rival() {
    both(|sim| {
        sim.open().request().ms(30);
        sim.skip_upstream(3000);
        sim.upstream_rst();
        let event = sim.expect(Cause::TcpResetNoResponse, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpResetInjected]);
    });
}

#[test]
fn a_reset_that_the_gateway_does_not_take_ends_nothing() {
    let mut sim = Sim::packets();
    sim.open().request();
    let seq = sim.next_seq(Direction::FromUpstream).wrapping_add(90_000);
    sim.segment(Direction::FromUpstream, TcpFlags::RST, seq, &[], 0);
    sim.ms(5)
        .upstream_sends(0, OK)
        .sent(Direction::FromUpstream, OK.len() as u32);
    sim.ms(100)
        .request()
        .reply(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let event = sim.expect(Cause::UpstreamOwnError, Proof::Inferred);
    assert_eq!(event.exchange.unwrap().ordinal, 2);
}

#[test]
fn behind_a_handshake_alone_another_ttl_leaves_a_rival() {
    both(|sim| {
        sim.open().send(GET);
        sim.ttl = 57;
        let event = sim.upstream_rst();
        let event = event.expect(Cause::TcpResetInjected, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpClosedOnAccept]);
    });
}

#[test]
fn before_any_request_another_ttl_leaves_a_rival() {
    both(|sim| {
        sim.open();
        sim.ttl = 57;
        let event = sim.upstream_rst();
        let event = event.expect(Cause::TcpClosedOnAccept, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpResetInjected]);
    });
}

#[test]
fn a_reset_of_another_while_the_request_is_sent() {
    both(|sim| {
        let request = post(9000);
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..2000]);
        sim.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n");
        sim.ttl = 57;
        sim.upstream_rst();
        sim.expect(Cause::TcpResetInjected, Proof::Inferred);
    });
}

#[test]
fn nobody_fails_by_the_reset_of_an_idle_connection() {
    both(|sim| {
        sim.used(90_000);
        sim.ttl = 57;
        sim.upstream_rst()
            .ms(5)
            .upstream_sends(0, b"x")
            .expect_none();
    });
}

#[test]
fn idle_state_lost_and_nothing_comes_back() {
    both(|sim| {
        sim.used(120_000).send(GET).send_again(GET, AGAIN);
        sim.ms(500).gateway_fin();
        let event = sim.expect(Cause::TcpIdleStateLost, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpRequestUnacknowledged]);
    });
    both(|sim| {
        sim.used(120_000).send(GET).send_again(GET, AGAIN);
        sim.aside(|sim| {
            sim.open().request().reply(OK);
        });
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpIdleStateLost, Proof::Inferred);
    });
    // That it worked before the request says nothing, nor does it on a connection that was in use.
    both(|sim| {
        sim.used(120_000).aside(|sim| {
            sim.open().request().reply(OK);
        });
        sim.send(GET).send_again(GET, AGAIN).ms(500).gateway_fin();
        sim.expect(Cause::TcpIdleStateLost, Proof::Underdetermined);
    });
    both(|sim| {
        sim.used(5000).send(GET).send_again(GET, AGAIN);
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
    // Probes kept the state alive.
    both(|sim| {
        sim.used(50_000);
        let seq = sim.next_seq(Direction::ToUpstream).wrapping_sub(1);
        sim.segment(Direction::ToUpstream, ACK, seq, &[], 0);
        sim.ack().ms(50_000);
        sim.send(GET).send_again(GET, AGAIN).ms(500).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
    // Idle for long, and well.
    both(|sim| sim.used(120_000).request().reply(OK).expect_none());
}

#[test]
fn idle_state_lost_and_a_device_resets() {
    both(|sim| {
        sim.used(120_000).send(GET);
        sim.ttl = 63;
        sim.upstream_rst();
        let event = sim.expect(Cause::TcpIdleStateLost, Proof::Inferred);
        assert!(event.connection.idle_ms.unwrap() >= 120_000.0);
    });
    both(|sim| {
        sim.used(120_000).send(GET).upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Inferred);
    });
    both(|sim| {
        sim.used(5000).send(GET);
        sim.ttl = 63;
        sim.upstream_rst();
        sim.expect(Cause::TcpResetInjected, Proof::Inferred);
    });
}

/// A request of three segments, the last of them small, of which the first does not arrive.
fn first_lost(sim: &mut Sim) -> (u32, Vec<u8>) {
    let request = post(2 * FULL + 300);
    let seq = sim.next_seq(Direction::ToUpstream);
    sim.send(&request[..2 * FULL]).send(&request[2 * FULL..]);
    (seq, request)
}

#[test]
fn full_size_segments_vanish_on_the_way_there() {
    both(|sim| {
        sim.open();
        let (seq, request) = first_lost(sim);
        sim.upstream_sends(0, &[]).upstream_sends(0, &[]);
        sim.send_again_at(seq, &request[..FULL], AGAIN);
        sim.ms(500).gateway_fin();
        let event = sim.expect(Cause::TcpMtuBlackhole, Proof::Inferred);
        assert_eq!(event.phase, Phase::Request);
    });
    // The head arrives, the body does not.
    both(|sim| {
        let request = post(300 + FULL);
        sim.open().send(&request[..300]).ack();
        sim.send(&request[300..]).send_again(&request[300..], AGAIN);
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpMtuBlackhole, Proof::Inferred);
    });
}

#[test]
fn nothing_at_all_passes_any_more() {
    // That smaller segments pass was not seen.
    both(|sim| {
        sim.open();
        let (seq, request) = first_lost(sim);
        sim.send_again_at(seq, &request[..FULL], AGAIN);
        sim.ms(500).gateway_fin();
        let event = sim.expect(Cause::TcpRequestUnacknowledged, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpMtuBlackhole]);
    });
    // Others of that size did.
    both(|sim| {
        let request = post(2 * FULL);
        sim.open().send(&request[..FULL]).ack();
        sim.send(&request[FULL..])
            .send_again(&request[FULL..], AGAIN);
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
    // Small ones do not pass either.
    both(|sim| {
        let request = post(800);
        sim.open().send(&request[..300]).ack();
        sim.send(&request[300..]).send_again(&request[300..], AGAIN);
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
    // Lost once, sent again, and all is well.
    both(|sim| {
        sim.open();
        let (seq, request) = first_lost(sim);
        sim.upstream_sends(0, &[]);
        sim.send_again_at(seq, &request[..FULL], &[200]);
        sim.ack().reply(OK).expect_none();
    });
}

#[test]
fn full_size_segments_vanish_on_the_way_back() {
    both(|sim| {
        sim.open()
            .request()
            .upstream_sends(2 * FULL as u32, b"the tail");
        sim.ms(2000).gateway_fin();
        let event = sim.expect(Cause::TcpMtuBlackhole, Proof::Inferred);
        assert_eq!(event.phase, Phase::ResponseHead);
    });
    both(|sim| {
        sim.open().request().reply(PART);
        sim.upstream_sends(FULL as u32, b"the tail")
            .ms(2000)
            .gateway_fin();
        let event = sim.expect(Cause::TcpMtuBlackhole, Proof::Inferred);
        assert_eq!(event.phase, Phase::ResponseBody);
    });
    // A stall: nothing came behind.
    both(|sim| {
        sim.open().request().reply(PART).ms(2000).gateway_fin();
        sim.expect(Cause::UpstreamStalledInBody, Proof::Inferred);
    });
    // What is missing is small, or others of its size came: why it is missing is not known.
    both(|sim| {
        sim.open()
            .request()
            .reply(PART)
            .upstream_sends(100, b"the tail");
        sim.ms(2000).gateway_fin().expect_none();
    });
    both(|sim| {
        sim.open().request().reply(PART).reply(&[b'x'; FULL]);
        sim.upstream_sends(FULL as u32, b"the tail");
        sim.ms(2000).gateway_fin().expect_none();
    });
}

#[test]
fn a_reset_over_unread_request_bytes_inside_the_response() {
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(PART).upstream_rst();
    sim.reason(ResetReason::AbortOnClose);
    let event = sim.expect(Cause::TcpResetUnreadRequest, Proof::Proven);
    assert_eq!(event.phase, Phase::ResponseBody);
    both(|sim| {
        let request = post(4000);
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..]);
        sim.reply(b"HTTP/1.1 413 Too").upstream_rst();
        let event = sim.expect(Cause::TcpResetUnreadRequest, Proof::Inferred);
        assert_eq!(event.phase, Phase::ResponseHead);
    });
    // All of the request was acknowledged, or it was reset on purpose.
    both(|sim| {
        sim.open().request().reply(PART).upstream_rst();
        sim.expect(Cause::Http1BodyTruncated, Proof::Proven);
    });
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(PART).upstream_rst();
    sim.reason(ResetReason::AbortOnLinger);
    sim.expect(Cause::Http1BodyTruncated, Proof::Proven);
    // Not a byte of response: the close came first.
    both(|sim| {
        sim.open().request().ms(30).upstream_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
    });
    // The response was complete, and the gateway has its status.
    both(|sim| {
        let request = post(4000);
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..]);
        sim.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n");
        sim.upstream_rst().expect_none();
    });
}

#[test]
fn an_early_response_on_a_pooled_connection() {
    const ANSWER: &[u8] = b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n";
    for pooled in [false, true] {
        both(|sim| {
            sim.open();
            if pooled {
                sim.request().reply(OK).ms(500);
            }
            let request = post(9000);
            sim.send(&request[..1000]).ack().send(&request[1000..2000]);
            sim.reply(ANSWER).send(&request[2000..3000]).upstream_rst();
            let event = sim.expect(Cause::Http1EarlyResponse, Proof::Proven);
            assert_eq!(event.connection.reused, pooled);
        });
        // The answer comes inside the first segment's round trip and is cut.
        both(|sim| {
            sim.open();
            if pooled {
                sim.request().reply(OK).ms(500);
            }
            let request = post(9000);
            sim.send(&request[..1000]).ack().send(&request[1000..2000]);
            sim.reply(b"HTTP/1.1 413 Too large\r\nContent-Length: 9\r\n\r\nToo");
            sim.upstream_rst();
            sim.expect(Cause::Http1EarlyResponse, Proof::Proven);
        });
    }
}

#[test]
fn an_upstream_that_does_not_read_and_one_that_is_slow() {
    let request = post(60_000);
    // The window shrinks with the request and stays there.
    both(|sim| {
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..]);
        sim.window = 40;
        sim.ack().ms(2000).gateway_fin();
        let event = sim.expect(Cause::UpstreamNotReading, Proof::Inferred);
        assert_eq!(event.recommended_status, Some(504));
    });
    // It opens again.
    both(|sim| {
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..]);
        sim.window = 40;
        sim.ack();
        sim.window = 480;
        sim.ack().ms(2000).gateway_fin();
        sim.expect(Cause::UpstreamSlowFirstByte, Proof::Inferred);
    });
    // It opens a little: some of it was read. It closes with the last byte, and stays so.
    for (last, cause, proof) in [
        (200, Cause::UpstreamSlowFirstByte, Proof::Underdetermined),
        (0, Cause::UpstreamNotReading, Proof::Inferred),
    ] {
        both(|sim| {
            sim.open()
                .send(&request[..1000])
                .ack()
                .send(&request[1000..]);
            sim.window = 0;
            sim.ack();
            sim.window = last;
            sim.ack().ms(2000).gateway_fin();
            sim.expect(cause, proof);
        });
    }
    // What happened to the window in an earlier exchange says nothing.
    both(|sim| {
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..]);
        sim.window = 40;
        sim.ack();
        sim.window = 480;
        sim.ack().reply(OK).request().ms(2000).gateway_fin();
        sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
    });
    // It shrinks inside the request, the rest of which is not acknowledged.
    both(|sim| {
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..59_000]);
        sim.window = 0;
        sim.ack().send(&request[59_000..]).ms(2000).gateway_fin();
        sim.expect(Cause::TcpZeroWindow, Proof::Inferred);
    });
    // A large request that is answered.
    both(|sim| {
        sim.open()
            .send(&request[..1000])
            .ack()
            .send(&request[1000..]);
        sim.window = 40;
        sim.ack().ms(100).reply(OK).gateway_fin().expect_none();
    });
}

#[test]
fn the_phase_is_that_of_the_broken_rule() {
    for body in [
        &b"5;\x01=1\nhello\r\n0\r\n\r\n"[..],
        b"5\nhello\r\n0\r\n\r\n",
        b"ZZ\r\nhello",
    ] {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut sim = Sim::packets();
        sim.open()
            .request()
            .reply(&[&head[..], body].concat())
            .upstream_fin();
        let events = sim.events();
        let phases: Vec<_> = events
            .iter()
            .map(|event| (event.cause, event.phase))
            .collect();
        assert_eq!(phases, [(Cause::Http1ChunkSyntax, Phase::ResponseBody)]);
    }
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.reply(b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 50\r\n\r\nhello");
    let event = sim.ms(600).expect(Cause::Http1HeaderSyntax, Proof::Proven);
    assert_eq!(event.phase, Phase::ResponseHead);
}

/// A response that flows until the gateway closes after this time.
fn flows_until(sim: &mut Sim, ms: u64) {
    sim.ms(100).next_hop();
    sim.open().request();
    sim.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n");
    for _ in 0..ms / 100 {
        sim.ms(100).reply(b"some of it");
    }
    sim.ms(ms % 100).gateway_fin();
}

#[test]
fn a_limit_for_the_whole_exchange_shows_when_it_repeats() {
    let mut sim = Sim::live("envoy");
    for _ in 0..3 {
        flows_until(&mut sim, 3000);
    }
    let events = sim.events();
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.cause, event.proof))
        .collect();
    assert_eq!(told, [(Cause::UpstreamDeadline, Proof::Underdetermined)]);
    assert_eq!(events[0].rivals, [Cause::GwWorkerDied]);
    // Readers that leave when they like.
    let mut sim = Sim::live("envoy");
    for ms in [3000, 4000, 3500, 3530, 5000, 700] {
        flows_until(&mut sim, ms);
    }
    sim.expect_none();
    // Gateways without such a limit, and packets, behind which may be a client with a limit.
    for mut sim in [Sim::live("nginx"), Sim::live("haproxy"), Sim::packets()] {
        for _ in 0..5 {
            flows_until(&mut sim, 3000);
        }
        sim.expect_none();
    }
}

#[test]
fn a_stall_ends_with_the_gateways_patience() {
    let mut sim = Sim::live("envoy");
    for _ in 0..3 {
        sim.next_hop();
        sim.open().request().reply(PART).ms(3000).gateway_fin();
        sim.ms(100);
    }
    let events = sim.events();
    assert_eq!(events.len(), 3);
    assert!(
        events
            .iter()
            .all(|event| event.cause == Cause::UpstreamStalledInBody)
    );
}

#[test]
fn a_client_that_left_is_no_limit() {
    let mut sim = Sim::live("envoy");
    for _ in 0..4 {
        flows_until(&mut sim, 3000);
        sim.input(Input::ClientLeft {
            turn: TURN,
            departure: Departure::Waiting,
        });
    }
    sim.expect_none();
}
