//! Real traffic that looks like a failure, or like another one: what the rules must not be fooled by.

use super::sim::{GET, OK, Sim, both};
use crate::model::{Cause, Direction, Proof, TcpFlags};

const ACK: TcpFlags = TcpFlags::ACK;
const ERROR: &[u8] = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
const PART: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\nhello";
/// Payload of a full-size segment.
const FULL: usize = 1448;

fn told(sim: &mut Sim) -> Vec<(Cause, Proof)> {
    let events = sim.events();
    events.iter().map(|it| (it.cause, it.proof)).collect()
}

fn post(body: usize) -> (Vec<u8>, Vec<u8>) {
    let head = format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {body}\r\n\r\n");
    (head.into_bytes(), vec![b'x'; body])
}

impl Sim {
    fn pool(&mut self, number: u64) -> &mut Self {
        self.on(number).open().request().reply(OK)
    }

    /// A probe of an idle connection, with a byte of garbage or without.
    fn probe(&mut self, direction: Direction, garbage: &[u8]) -> &mut Self {
        let seq = self.next_seq(direction).wrapping_sub(1);
        self.segment(direction, ACK, seq, garbage, garbage.len() as u32);
        let answer = match direction {
            Direction::ToUpstream => Direction::FromUpstream,
            Direction::FromUpstream => Direction::ToUpstream,
        };
        let seq = self.next_seq(answer);
        self.segment(answer, ACK, seq, &[], 0);
        self
    }
}

// Segments that a network card cuts.

#[test]
fn a_large_record_of_which_a_part_arrived_says_that_full_size_passes() {
    both(|sim| {
        let (head, body) = post(2 * FULL);
        sim.open()
            .send(&head)
            .ack()
            .send(&body)
            .ack_but(FULL as u32);
        let seq = sim.next_seq(Direction::ToUpstream);
        for pause in [200, 400, 800, 1600] {
            sim.ms(pause);
            let seq = seq.wrapping_sub(FULL as u32);
            sim.segment(Direction::ToUpstream, ACK, seq, &body[FULL..], FULL as u32);
        }
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpRequestUnacknowledged, Proof::Inferred);
    });
}

#[test]
fn one_lost_segment_is_no_black_hole() {
    both(|sim| {
        sim.open().request().reply(PART);
        let seq = sim
            .next_seq(Direction::FromUpstream)
            .wrapping_add(FULL as u32);
        sim.segment(Direction::FromUpstream, ACK, seq, b"the tail", 8);
        // Its client leaves before the segment is sent again.
        sim.ms(300).gateway_fin().expect_none();
    });
}

// Times to live.

#[test]
fn a_way_that_changed_while_the_connection_was_idle_is_no_device() {
    both(|sim| {
        sim.pool(1).ms(30_000);
        sim.ttl = 60;
        sim.pool(2).ms(1000);
        sim.ttl = 64;
        sim.on(1).send(GET);
        sim.ttl = 60;
        sim.ack().ms(100).upstream_rst();
        sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
    });
    both(|sim| {
        sim.pool(1).ms(30_000);
        sim.ttl = 60;
        sim.pool(2).ms(1000);
        sim.on(1).send(GET).upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Inferred);
    });
}

/// A capture on all interfaces of a host that forwards.
fn twice(run: impl Fn(&mut Sim)) {
    both(|sim| {
        sim.twice = true;
        run(sim);
    });
}

#[test]
fn each_segment_seen_twice_on_its_way() {
    twice(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .request()
            .reply(OK)
            .expect_none()
    });
    twice(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .ms(70_000)
            .request()
            .reply(OK);
        sim.ms(70_000).upstream_fin().gateway_fin().expect_none();
    });
    twice(|sim| {
        sim.open().request().reply(ERROR);
        let event = sim.expect(Cause::UpstreamOwnError, Proof::Proven);
        assert_eq!(event.connection.retransmits, 0);
    });
    twice(|sim| {
        sim.open().request().ms(30).upstream_fin().gateway_fin();
        sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
    });
    twice(|sim| {
        sim.open().request().ms(30).upstream_rst();
        sim.expect(Cause::TcpResetNoResponse, Proof::Proven);
    });
    twice(|sim| {
        sim.open().request().reply(PART).ms(30).upstream_rst();
        sim.expect(Cause::Http1BodyTruncated, Proof::Proven);
    });
    twice(|sim| {
        sim.syn().refuse();
        sim.expect(Cause::TcpConnectRefused, Proof::Proven);
    });
    twice(|sim| {
        sim.pool(1).ms(500);
        sim.on(2).syn().refuse();
        let told = told(sim);
        assert_eq!(told, [(Cause::TcpConnectRefused, Proof::Proven)]);
    });
    twice(|sim| {
        sim.open().request().ms(2000).gateway_fin();
        sim.expect(Cause::UpstreamSlowFirstByte, Proof::Underdetermined);
    });
    twice(|sim| {
        sim.open().request().reply(OK).ms(5000);
        sim.upstream_fin().send(GET).ms(1).upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Proven);
    });
    // A path that swallows nothing, and a request whose acknowledgement is only late.
    twice(|sim| {
        let (head, body) = post(FULL);
        sim.open().send(&head).ack().send(&body).ms(150).ack();
        sim.reply(OK).gateway_fin().expect_none();
    });
}

// Several hosts behind one address.

#[test]
fn a_cut_beside_connections_that_stay_open_may_be_its_own_failure() {
    both(|sim| {
        sim.pool(1);
        sim.pool(3).ms(1500);
        sim.on(2).syn().refuse().ms(2000);
        sim.on(1).request().reply(OK);
        sim.on(3)
            .request()
            .ms(3000)
            .upstream_fin()
            .gateway_fin()
            .ms(200);
        sim.on(1).request().reply(OK).ms(100);
        let events = sim.events();
        let cut = events.iter().find(|event| event.exchange.is_some());
        let cut = cut.expect("an event of the cut");
        assert_eq!(cut.cause, Cause::UpstreamDraining, "{events:#?}");
        assert_eq!(cut.rivals, [Cause::TcpClosedNoResponse]);
    });
}

#[test]
fn a_connection_that_reached_its_limit_is_no_drain() {
    both(|sim| {
        sim.pool(1);
        sim.pool(3).ms(2000);
        sim.on(2).syn().refuse();
        // The connection was used as often as the upstream allows.
        sim.on(1)
            .ms(100)
            .request()
            .reply(OK)
            .upstream_fin()
            .gateway_fin();
        sim.on(3)
            .ms(100)
            .request()
            .reply(OK)
            .ms(2000)
            .request()
            .reply(OK);
        let events = sim.events();
        assert_eq!(events.len(), 1, "{events:#?}");
        assert_eq!(events[0].cause, Cause::UpstreamDraining);
        assert_eq!(events[0].rivals, [Cause::TcpConnectRefused]);
    });
}

#[test]
fn workers_that_are_replaced_are_healthy() {
    both(|sim| {
        for number in 1..6 {
            sim.pool(number);
        }
        sim.ms(2000);
        for number in 1..6 {
            sim.on(number).upstream_fin().gateway_fin();
        }
        sim.pool(7).ms(100).expect_none();
    });
}

// Handshakes.

#[test]
fn an_upstream_that_remembers_an_earlier_connection_is_asked_again() {
    let challenged = |sim: &mut Sim| {
        sim.syn();
        let old = sim.next_seq(Direction::ToUpstream).wrapping_sub(500_000);
        let seq = sim.next_seq(Direction::FromUpstream).wrapping_sub(70_000);
        sim.segment_acking(Direction::FromUpstream, ACK, seq, old);
        sim.segment(Direction::ToUpstream, TcpFlags::RST, old, &[], 0);
        sim.ms(1000).syn_again().established();
    };
    both(|sim| {
        challenged(sim);
        sim.request()
            .reply(OK)
            .ms(5000)
            .request()
            .reply(OK)
            .expect_none();
    });
    both(|sim| {
        challenged(sim);
        sim.request().reply(OK).ms(5000).request().reply(ERROR);
        let event = sim.expect(Cause::UpstreamOwnError, Proof::Proven);
        assert_eq!(event.exchange.unwrap().ordinal, 2);
    });
}

#[test]
fn a_late_reset_of_an_earlier_connection_refuses_nothing() {
    both(|sim| {
        sim.syn();
        let old = sim.next_seq(Direction::ToUpstream).wrapping_sub(500_000);
        let flags = TcpFlags::RST.union(ACK);
        sim.segment_acking(Direction::FromUpstream, flags, 77, old);
        sim.ms(50).established().request().reply(OK).expect_none();
    });
}

#[test]
fn one_syn_that_nobody_answers_is_not_yet_a_black_hole() {
    let mut sim = Sim::live("envoy");
    sim.syn().ms(250).give_up();
    let event = sim.expect(Cause::TcpConnectBlackholed, Proof::Underdetermined);
    assert_eq!(event.rivals, [Cause::TcpConnectBacklogFull]);
    let mut sim = Sim::live("envoy");
    sim.syn().ms(1000).syn_again().ms(2000).give_up();
    sim.expect(Cause::TcpConnectBlackholed, Proof::Inferred);
}

#[test]
fn a_check_that_resets_its_connection_is_healthy() {
    let rst = TcpFlags::RST;
    for flags in [rst, rst.union(ACK)] {
        both(|sim| {
            sim.syn().syn_ack_reset(flags).expect_none();
        });
    }
    both(|sim| sim.open().gateway_rst().expect_none());
    both(|sim| sim.open().gateway_fin().upstream_rst().expect_none());
}

#[test]
fn a_request_in_the_syn() {
    both(|sim| {
        let seq = sim.next_seq(Direction::ToUpstream);
        sim.syn();
        sim.segment(
            Direction::ToUpstream,
            TcpFlags::SYN,
            seq,
            GET,
            GET.len() as u32,
        );
        sim.established().request().reply(OK).expect_none();
    });
}

// Connections that wait in a pool before their first request: a transport that opened one and was then
// served by another keeps it.

#[test]
fn an_unused_connection_may_be_stale() {
    both(|sim| {
        sim.open()
            .ms(60_000)
            .upstream_fin()
            .ms(2)
            .send(GET)
            .upstream_rst();
        let event = sim.expect(Cause::PoolStaleReuse, Proof::Proven);
        assert!(
            event.evidence[0].text.contains("unused for 60.0"),
            "{event:#?}"
        );
    });
    both(|sim| {
        sim.open()
            .ms(60_000)
            .send(GET)
            .upstream_fin()
            .upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Proven);
    });
    both(|sim| {
        sim.open().ms(30_000).send(GET).upstream_rst();
        sim.expect(Cause::PoolStaleReuse, Proof::Inferred);
    });
    both(|sim| {
        sim.open().ms(120_000).send(GET);
        let seq = sim
            .next_seq(Direction::ToUpstream)
            .wrapping_sub(GET.len() as u32);
        for pause in [200, 400, 800] {
            sim.ms(pause);
            sim.segment(Direction::ToUpstream, ACK, seq, GET, GET.len() as u32);
        }
        sim.ms(500).gateway_fin();
        sim.expect(Cause::TcpIdleStateLost, Proof::Underdetermined);
    });
    // The upstream closes it, and nobody needs it.
    both(|sim| {
        sim.open()
            .ms(60_000)
            .upstream_fin()
            .gateway_fin()
            .expect_none()
    });
}

// Probes.

#[test]
fn probes_of_an_idle_connection_are_nothing() {
    for garbage in [&b""[..], b"\0"] {
        for direction in [Direction::ToUpstream, Direction::FromUpstream] {
            both(|sim| {
                sim.open().request().reply(OK).ms(15_000);
                sim.probe(direction, garbage)
                    .ms(15_000)
                    .probe(direction, garbage);
                sim.request().reply(OK).ms(15_000).probe(direction, garbage);
                sim.request().reply(ERROR);
                let event = sim.expect(Cause::UpstreamOwnError, Proof::Proven);
                assert_eq!(event.exchange.unwrap().ordinal, 3);
            });
        }
    }
}

#[test]
fn a_capture_that_begins_with_a_probe_has_missed_nothing() {
    for direction in [Direction::ToUpstream, Direction::FromUpstream] {
        both(|sim| {
            sim.seeded().probe(direction, b"").ms(15_000);
            sim.probe(direction, b"").ms(10);
            sim.request().reply(OK).ms(10).request().reply(ERROR);
            let event = sim.expect(Cause::UpstreamOwnError, Proof::Proven);
            assert_eq!(event.exchange.unwrap().ordinal, 2);
        });
    }
}

#[test]
fn a_gateway_that_does_not_read_for_long_is_healthy() {
    both(|sim| {
        sim.open().request().reply(PART);
        sim.window = 0;
        sim.reply(b"more");
        for _ in 0..5 {
            sim.ms(3000).probe(Direction::FromUpstream, b"");
        }
        sim.window = 500;
        sim.reply(&vec![b'x'; 49_991])
            .ms(10)
            .request()
            .reply(OK)
            .expect_none();
    });
}

#[test]
fn a_probe_of_the_upstream_is_no_sign_that_something_arrives() {
    both(|sim| {
        sim.open().request().reply(OK).ms(5000);
        let (mut request, body) = post(2 * FULL);
        request.extend(body);
        sim.send(&request);
        let seq = sim.next_seq(Direction::ToUpstream);
        let seq = seq.wrapping_sub(request.len() as u32);
        for pause in [200, 400, 800, 1600, 3200] {
            sim.ms(pause);
            let first = &request[..FULL];
            sim.segment(Direction::ToUpstream, ACK, seq, first, FULL as u32);
            let probe = sim.next_seq(Direction::FromUpstream).wrapping_sub(1);
            sim.segment(Direction::FromUpstream, ACK, probe, &[], 0);
        }
        sim.ms(500).gateway_fin();
        let event = sim.expect(Cause::TcpRequestUnacknowledged, Proof::Underdetermined);
        assert_eq!(event.rivals, [Cause::TcpMtuBlackhole]);
    });
}

// A request of which the observer missed a part.

#[test]
fn a_request_whose_end_was_missed_is_not_unfinished() {
    let chunked = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let upload = |sim: &mut Sim| {
        sim.open().send(chunked).ack();
        sim.sent(Direction::ToUpstream, 9000);
        sim.send(b"5\r\nhello\r\n0\r\n\r\n").ack();
    };
    both(|sim| {
        upload(sim);
        sim.reply(OK).ms(5).upstream_rst().expect_none();
    });
    both(|sim| {
        upload(sim);
        sim.reply(PART).ms(5).upstream_rst();
        let events = sim.events();
        assert_eq!(events.len(), 1, "{events:#?}");
        assert_eq!(events[0].cause, Cause::Http1BodyTruncated);
    });
    // The other side of the pair.
    both(|sim| {
        sim.open().send(chunked).ack().send(b"5\r\nhello\r\n").ack();
        sim.reply(OK).ms(5).upstream_rst();
        sim.expect(Cause::Http1EarlyResponse, Proof::Proven);
    });
}

#[test]
fn a_gateway_that_did_not_read_until_it_left_was_not_kept_waiting() {
    both(|sim| {
        sim.open().request().reply(PART);
        sim.window = 0;
        sim.reply(b"more").ms(30_000);
        sim.window = 500;
        sim.reply_unseen(0).ms(20).gateway_fin().expect_none();
    });
    // The other side of the pair.
    both(|sim| {
        sim.open().request().reply(PART);
        sim.window = 0;
        sim.reply(b"more").ms(3000);
        sim.window = 500;
        sim.reply_unseen(0).ms(5000).gateway_fin();
        let event = sim.expect(Cause::UpstreamStalledInBody, Proof::Inferred);
        assert!(
            event.evidence[0].text.contains("silent for 5.00 s"),
            "{event:#?}"
        );
    });
}

// One side of a conversation.

#[test]
fn one_direction_alone_tells_nothing() {
    let ways = [Direction::ToUpstream, Direction::FromUpstream];
    for only in ways {
        let mut sim = Sim::packets();
        sim.only = Some(only);
        sim.open()
            .request()
            .reply(OK)
            .ms(5000)
            .request()
            .reply(PART);
        sim.reply(&vec![b'x'; 49_995])
            .ms(5000)
            .upstream_fin()
            .gateway_fin();
        sim.expect_none();
        let mut sim = Sim::packets();
        sim.only = Some(only);
        sim.open()
            .request()
            .ms(3000)
            .reply(OK)
            .ms(3000)
            .gateway_fin();
        sim.expect_none();
        let mut sim = Sim::packets();
        sim.only = Some(only);
        sim.open().request().reply(OK).ms(70_000).upstream_fin();
        sim.gateway_rst().expect_none();
    }
}

// Ways to close.

#[test]
fn a_gateway_that_closes_its_half_waits_for_the_answer() {
    both(|sim| {
        sim.open()
            .request()
            .gateway_fin()
            .ms(100)
            .reply(OK)
            .upstream_fin()
            .expect_none()
    });
    both(|sim| {
        sim.open().request().gateway_fin().ms(3000).reply(OK);
        sim.upstream_fin().expect_none();
    });
}

#[test]
fn both_sides_close_an_idle_connection_at_once() {
    both(|sim| {
        sim.open().request().reply(OK).ms(60_000);
        sim.upstream_fin()
            .gateway_fin()
            .upstream_rst()
            .expect_none();
    });
    both(|sim| {
        sim.open().request().reply(OK).ms(60_000);
        sim.gateway_fin().upstream_fin().gateway_rst().expect_none();
    });
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .gateway_rst()
            .upstream_rst()
            .expect_none()
    });
    both(|sim| {
        sim.open()
            .request()
            .reply(OK)
            .upstream_fin()
            .upstream_rst()
            .expect_none()
    });
}

// Bodies and time-outs.

#[test]
fn a_part_of_a_compressed_body_may_begin_anywhere() {
    both(|sim| {
        let part = b"HTTP/1.1 206 Partial Content\r\nContent-Encoding: gzip\r\nContent-Range: bytes 5000-9999/10000\r\nContent-Length: 5000\r\n\r\nnot the beginning";
        sim.open()
            .request()
            .reply(part)
            .ms(20)
            .gateway_fin()
            .expect_none();
    });
}

#[test]
fn clients_with_a_time_out_behind_a_gateway_of_several_threads() {
    for comm in ["caddy", "traefik"] {
        let mut sim = Sim::live(comm);
        for _ in 0..5 {
            sim.ms(100).next_hop();
            sim.open().request().reply(PART);
            for _ in 0..30 {
                sim.ms(100).reply(b"some of it");
            }
            sim.gateway_rst();
        }
        sim.expect_none();
    }
}
