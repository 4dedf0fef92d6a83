//! Exchanges that stayed in the kernel: what follows them is judged as if they had been seen.

use std::time::Duration;

use super::sim::{GET, OK, Sim, TURN};
use crate::model::{Cause, Departure, Direction, HopEvent, Input, Proof, ResetReason, TcpFlags};

const SOON: Duration = Duration::from_millis(5);

/// A hop on which so many exchanges stayed in the kernel after the first one.
fn used(held: u32, idle: Duration) -> Sim {
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(OK).ms(1).held(held, idle);
    sim
}

/// The same hop with every exchange seen.
fn seen(exchanges: u32, idle: Duration) -> Sim {
    let mut sim = Sim::live("nginx");
    sim.open();
    for _ in 0..=exchanges {
        sim.request().reply(OK);
    }
    sim.sleep(idle);
    sim
}

/// Runs what follows on both, and gives back what was said about it: one event, the same both times.
#[track_caller]
fn same(idle: Duration, cause: Cause, run: impl Fn(&mut Sim)) -> HopEvent {
    let [held, seen] = [used(8, idle), seen(8, idle)].map(|mut sim| {
        run(&mut sim);
        let events = sim.events();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(sim.engine.stats().exchanges, 10);
        events.into_iter().next().unwrap()
    });
    let facts = |event: &HopEvent| {
        let exchange = event.exchange.as_ref().unwrap();
        (
            event.proof,
            event.rivals.clone(),
            exchange.ordinal,
            exchange.status,
            event.connection.reused,
            event.completeness,
        )
    };
    assert_eq!((held.cause, seen.cause), (cause, cause));
    assert_eq!(facts(&held), facts(&seen));
    let what = |event: &HopEvent| {
        let evidence = event.evidence.iter();
        evidence
            .map(|piece| (piece.what.clone(), piece.bytes.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(what(&held), what(&seen));
    held
}

#[test]
fn a_close_after_them_is_healthy() {
    let mut sim = used(40, Duration::from_secs(5));
    sim.request().reply(OK).upstream_fin().gateway_fin();
    sim.expect_none();
    assert_eq!(sim.engine.stats().exchanges, 42);
    assert_eq!(sim.engine.stats().exchanges_held, 40);
}

#[test]
fn the_upstreams_traffic_is_the_same_seen_or_not() {
    let traffic = |mut sim: Sim| {
        sim.request()
            .reply(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
        let tallies = sim.engine.upstreams();
        tallies.into_values().next().unwrap().traffic
    };
    let (held, seen) = (traffic(used(8, SOON)), traffic(seen(8, SOON)));
    assert_eq!(held.statuses, [0, 8, 0, 1, 1]);
    assert_eq!(seen.statuses, [0, 9, 0, 0, 1]);
    assert_eq!(held.connects, 1);
    assert_eq!(held.request_bytes, 10 * GET.len() as u64);
    assert_eq!(
        (held.request_bytes, held.response_bytes, held.connects),
        (seen.request_bytes, seen.response_bytes, seen.connects)
    );
    assert_eq!(held.first_byte.iter().sum::<u64>(), 10);
    assert_eq!(seen.first_byte.iter().sum::<u64>(), 10);
}

#[test]
fn a_close_without_a_request_after_them_is_healthy() {
    let mut sim = used(3, Duration::from_secs(5));
    sim.upstream_fin().gateway_fin();
    sim.expect_none();
    assert_eq!(sim.engine.stats().exchanges, 4);
}

#[test]
fn stale_reuse_knows_its_place_and_idle_time() {
    let idle = Duration::from_secs(75);
    let event = same(idle, Cause::PoolStaleReuse, |sim| {
        sim.upstream_fin().send(GET).upstream_rst();
    });
    assert_eq!(event.proof, Proof::Proven);
    assert_eq!(event.exchange.unwrap().ordinal, 10);
    let idle = event.connection.idle_ms.unwrap();
    assert!((75_000.0..75_010.0).contains(&idle), "{idle} ms");
}

#[test]
fn ends_without_a_response() {
    same(SOON, Cause::TcpClosedNoResponse, |sim| {
        sim.request().ms(30).upstream_fin().gateway_fin().ms(200);
    });
    same(SOON, Cause::TcpResetNoResponse, |sim| {
        let reason = ResetReason::AbortOnClose;
        sim.request().ms(60).reason(reason).upstream_rst().ms(200);
    });
    same(SOON, Cause::UpstreamSlowFirstByte, |sim| {
        sim.request().ms(2_000).gateway_fin().ms(200);
    });
    same(SOON, Cause::TcpRequestUnacknowledged, |sim| {
        let direction = Direction::ToUpstream;
        let seq = sim.next_seq(direction);
        sim.send(GET).ms(300);
        sim.segment(direction, TcpFlags::ACK, seq, GET, GET.len() as u32);
        sim.ms(2_000).gateway_fin().ms(200);
    });
}

#[test]
fn what_the_upstream_answers_is_read() {
    for (answer, cause) in [
        (
            &b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"[..],
            Cause::UpstreamOwnError,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            Cause::Http1ChunkSyntax,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Cause::Http1LastChunkMissing,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            Cause::Http1BodyTruncated,
        ),
    ] {
        same(SOON, cause, |sim| {
            sim.request().reply(answer).upstream_fin().gateway_fin();
            sim.ms(1_000);
        });
    }
}

#[test]
fn a_client_that_leaves() {
    let mut sim = used(2, SOON);
    sim.request().ms(2_000);
    sim.input(Input::ClientLeft {
        turn: TURN,
        departure: Departure::Waiting,
    });
    sim.gateway_fin().ms(100).expect_none();
}

#[test]
fn they_may_come_in_several_words() {
    let mut sim = used(2, SOON);
    sim.held(7, SOON);
    sim.request().ms(30).upstream_fin().gateway_fin();
    let events = sim.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].exchange.as_ref().unwrap().ordinal, 11);
}

#[test]
fn an_exchange_that_could_not_be_followed_is_over() {
    let mut sim = Sim::live("nginx");
    // Of the body's chunks, some were not captured.
    sim.open().request();
    let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    sim.reply_short(chunks, chunks.len() - 8);
    sim.held(1, SOON);
    sim.request().reply(OK).upstream_fin().gateway_fin();
    sim.expect_none();
    let stats = sim.engine.stats();
    assert_eq!((stats.exchanges, stats.unjudged_gap), (3, 1));
}

#[test]
fn a_hop_that_was_joined_with_them() {
    let mut sim = Sim::live("nginx");
    sim.seeded().held(3, SOON);
    sim.request().ms(30).upstream_fin().gateway_fin();
    let events = sim.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].connection.reused);
    assert!(events[0].completeness.mid_stream);
}
