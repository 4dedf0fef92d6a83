//! Hostile input, caps and determinism.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;

use super::sim::{GET, OK, Sim};
use crate::engine::exchange::{EXCHANGE_BYTES, Exchange};
use crate::engine::{Slot, Tracked};
use crate::http1::Finding;
use crate::limits::Limits;
use crate::model::{
    Cause, Direction, Errno, HopId, IcmpError, IcmpKind, Input, Proof, TcpFlags, TcpState,
    Timestamp,
};

#[test]
fn the_hop_table_is_capped_and_evicts_the_silent_ones() {
    let limits = Limits {
        hops: 10,
        ..Limits::default()
    };
    let mut sim = Sim::with(Some("nginx"), limits);
    for _ in 0..100 {
        sim.open();
        sim.next_hop();
    }
    assert_eq!(sim.engine.open_hops(), 10);
    assert_eq!(sim.engine.stats().hops_evicted, 90);
}

#[test]
fn a_hop_that_is_over_makes_room_before_any_other() {
    let limits = Limits {
        hops: 10,
        ..Limits::default()
    };
    let mut sim = Sim::with(None, limits);
    sim.open();
    for _ in 0..100 {
        sim.next_hop();
        sim.open().request().reply(OK).gateway_fin().upstream_fin();
    }
    let stats = sim.engine.stats();
    assert_eq!((stats.hops, stats.hops_evicted), (101, 0));
    assert_eq!(sim.engine.open_hops(), 1, "only the first is not over");
}

#[test]
fn what_waits_behind_holes_is_bounded_over_all_hops() {
    let limits = Limits {
        kept_bytes: 100_000,
        ..Limits::default()
    };
    let mut sim = Sim::with(None, limits);
    for _ in 0..100 {
        sim.next_hop();
        sim.open();
        for seq in [50_000, 60_000] {
            let bytes = [b'x'; 5_000];
            sim.segment(Direction::FromUpstream, TcpFlags::ACK, seq, &bytes, 5_000);
        }
        assert!(sim.engine.kept_bytes <= limits.kept_bytes);
    }
    let stats = sim.engine.stats();
    assert!((80..=95).contains(&stats.hops_evicted), "{stats:?}");
}

#[test]
fn a_hop_takes_no_more_than_the_limits_say() {
    let findings = 8 * (size_of::<Finding>() + 128);
    let queues = size_of::<(Timestamp, HopId)>() * (4 + 2);
    let places =
        2 * size_of::<(HopId, Slot)>() + 2 * size_of::<((SocketAddr, SocketAddr), HopId)>();
    let hop = size_of::<Tracked>() + EXCHANGE_BYTES + findings + queues + places;
    assert!(hop <= Limits::HOP_BYTES, "{hop}");
    assert!(size_of::<Exchange>() + 5 * 512 <= EXCHANGE_BYTES);
    assert!(size_of::<Tracked>() <= 1536, "{}", size_of::<Tracked>());
    let default = Limits::default();
    assert!(default.memory_bound() > default.hops * hop);
}

#[test]
fn upstreams_are_tallied() {
    let mut sim = Sim::packets();
    sim.open().request().reply(OK).request().upstream_rst();
    sim.next_hop();
    sim.syn().refuse();
    sim.ms(5000);
    let tallies = sim.engine.upstreams();
    let tally = tallies.values().next().unwrap();
    assert_eq!((tallies.len(), tally.exchanges, tally.failures), (1, 2, 2));
    assert_eq!(tally.causes[&Cause::TcpConnectRefused], 1);
    assert!(tally.first < tally.last);
}

#[test]
fn a_flood_of_syns_leaves_nothing_behind() {
    let limits = Limits {
        hops: 10,
        ..Limits::default()
    };
    let mut sim = Sim::with(None, limits);
    for _ in 0..20_000 {
        sim.syn();
        sim.next_hop();
    }
    let [ends, places, deadlines] = sim.engine.remembered();
    assert!(ends <= 10, "{ends}");
    assert!(places <= 21, "{places}");
    assert!(deadlines <= 1100, "{deadlines}");
}

#[test]
fn a_hop_that_comes_back_leaves_no_second_place() {
    let limits = Limits {
        hops: 3,
        ..Limits::default()
    };
    let mut sim = Sim::with(None, limits);
    sim.open().gateway_fin().upstream_fin();
    for _ in 0..50 {
        // Forgotten by now, and then a late segment.
        sim.ms(3000).ack();
        sim.gateway_fin().upstream_fin();
    }
    let [_, places, _] = sim.engine.remembered();
    assert!(places <= 7, "{places}");
}

#[test]
fn translated_addresses_leave_nothing_behind() {
    // The socket names the service, its segments the backend that it was translated to.
    let mut sim = Sim::live("nginx");
    for _ in 0..10 {
        sim.syn();
        sim.translated(9000);
        sim.seeded();
        sim.translated(8080);
        sim.next_hop();
    }
    assert!(sim.engine.remembered()[0] <= 10);
    sim.engine.finish(Timestamp::MAX);
    assert_eq!(sim.engine.remembered()[0], 0);
}

#[test]
fn closed_hops_are_forgotten() {
    let mut sim = Sim::live("nginx");
    sim.open().request().reply(OK).gateway_fin().upstream_fin();
    sim.state(TcpState::FinWait2, TcpState::Close, None, 100);
    sim.ms(5000);
    assert_eq!(sim.engine.open_hops(), 0);
}

#[test]
fn lost_records_make_a_verdict_less_firm() {
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.input(Input::Lost { records: 3 });
    sim.ms(30).upstream_fin();
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Inferred);
    assert_eq!(event.completeness.lost_segments, 3);
}

#[test]
fn a_loss_does_not_touch_what_follows_a_healthy_exchange() {
    let mut sim = Sim::live("nginx");
    sim.open().request();
    sim.input(Input::Lost { records: 3 });
    sim.ms(5).reply(OK).ms(5).request();
    sim.reply(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let event = sim.expect(Cause::UpstreamOwnError, Proof::Proven);
    assert_eq!(event.completeness.lost_segments, 0);
}

#[test]
fn the_same_inputs_give_the_same_events() {
    let run = || {
        let mut sim = Sim::live("nginx");
        sim.syn().refuse();
        sim.next_hop();
        sim.open().request().upstream_fin();
        serde_json::to_string(&sim.events()).unwrap()
    };
    assert_eq!(run(), run());
}

/// One step of a made-up life of a hop.
#[derive(Clone, Debug)]
enum Step {
    Segment {
        to: bool,
        flags: u8,
        seq: u32,
        bytes: Vec<u8>,
        longer: u32,
    },
    State(u32, u32, i32, u64),
    Good(u8),
    Sleep(u16),
    Icmp(u8),
    NextHop,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        Just(GET.to_vec()),
        Just(OK.to_vec()),
        Just(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n".to_vec()),
    ];
    let seq = prop_oneof![any::<u32>(), 4990_u32..5200, u32::MAX - 30..u32::MAX];
    prop_oneof![
        4 => (any::<bool>(), any::<u8>(), seq, bytes, prop_oneof![Just(0), any::<u32>()])
            .prop_map(|(to, flags, seq, bytes, longer)| Step::Segment { to, flags, seq, bytes, longer }),
        1 => (1_u32..13, 1_u32..13, 0_i32..120, 0_u64..3)
            .prop_map(|(old, new, errno, acked)| Step::State(old, new, errno, acked)),
        4 => (0_u8..8).prop_map(Step::Good),
        1 => any::<u16>().prop_map(Step::Sleep),
        1 => any::<u8>().prop_map(Step::Icmp),
        1 => Just(Step::NextHop),
    ]
}

proptest! {
    /// No sequence of observations panics, and memory stays within the caps.
    #[test]
    fn any_life_of_a_hop(steps in prop::collection::vec(step(), 0..80), live in any::<bool>()) {
        let limits = Limits { hops: 4, events: 16, pipelined: 3, ..Limits::default() };
        let mut sim = Sim::with(live.then_some("nginx"), limits);
        for step in steps {
            match step {
                Step::Segment { to, flags, seq, bytes, longer } => {
                    let direction = if to { Direction::ToUpstream } else { Direction::FromUpstream };
                    let wire_len = (bytes.len() as u32).saturating_add(longer);
                    sim.segment(direction, TcpFlags(flags), seq, &bytes, wire_len);
                }
                Step::State(old, new, errno, acked) => {
                    let state = |number| TcpState::from_kernel(number).unwrap();
                    let errno = (errno > 0).then_some(Errno(errno));
                    sim.state(state(old), state(new), errno, acked);
                }
                Step::Good(0) => { sim.open(); }
                Step::Good(1) => { sim.request(); }
                Step::Good(2) => { sim.reply(OK); }
                Step::Good(3) => { sim.upstream_fin(); }
                Step::Good(4) => { sim.gateway_fin(); }
                Step::Good(5) => { sim.upstream_rst(); }
                Step::Good(6) => { sim.refuse(); }
                Step::Good(_) => { sim.seeded(); }
                Step::Sleep(ms) => { sim.sleep(Duration::from_millis(u64::from(ms))); }
                Step::Icmp(code) => { sim.icmp([10, 0, 0, 9], false, code); }
                Step::NextHop => sim.next_hop(),
            }
            prop_assert!(sim.engine.open_hops() <= 4);
        }
        sim.engine.finish(Timestamp::MAX);
        prop_assert_eq!(sim.engine.open_hops(), 0);
    }
}

#[test]
fn a_request_behind_a_hole_was_sent_all_the_same() {
    // The first segment of the request was missed, so nothing of it is in order.
    let mut sim = Sim::packets();
    sim.open();
    let seq = sim.next_seq(Direction::ToUpstream).wrapping_add(20);
    sim.segment(Direction::ToUpstream, TcpFlags::ACK, seq, b"rest", 4);
    sim.ms(30).upstream_rst();
    sim.expect_none();
}

#[test]
fn a_reset_after_a_fin_out_of_order_is_not_the_upstreams_close() {
    let mut sim = Sim::packets();
    sim.open();
    // A FIN at the place of the SYN.
    let seq = sim.next_seq(Direction::ToUpstream).wrapping_sub(1);
    let flags = TcpFlags::ACK.union(TcpFlags::FIN);
    sim.segment(Direction::ToUpstream, flags, seq, b"", 0);
    sim.ms(30).upstream_rst();
    sim.expect_none();
}

#[test]
fn a_clock_that_is_set_fails_nothing() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let hour = Duration::from_hours(1);
    // Set back: everything that follows is earlier than what the engine has seen.
    let mut sim = Sim::live("nginx");
    let later = sim.now().after(hour);
    sim.engine.handle(later, Input::Lost { records: 0 });
    sim.open().request().ms(3000).reply(OK);
    sim.ms(500)
        .request()
        .ms(1500)
        .reply(b"HTTP/1.1 200 OK\r\nContent-");
    sim.ms(1500).reply(b"Length: 2\r\n\r\nok").ms(100);
    sim.gateway_fin().ms(10).upstream_fin();
    sim.expect_none();
    // Set forward, while a request waits for its response.
    let mut sim = Sim::live("nginx");
    sim.open().request().sleep(hour).reply(OK);
    sim.ms(10)
        .request()
        .ms(10)
        .reply(b"HTTP/1.1 200 OK\r\nContent-");
    sim.sleep(hour).reply(b"Length: 2\r\n\r\nok").ms(100);
    sim.gateway_fin().ms(10).upstream_fin();
    sim.expect_none();
}

#[test]
fn time_of_another_hop_does_not_stretch_this_one() {
    let mut sim = Sim::live("nginx");
    // An error that is read late carries a later time than the records behind it.
    let late = sim.now().after(Duration::from_secs(5));
    let stray = IcmpError {
        netns: 0,
        from: IpAddr::V4(Ipv4Addr::LOCALHOST),
        from_self: true,
        kind: IcmpKind::Unreachable,
        code: 1,
        local: "10.0.0.1:1".parse().unwrap(),
        upstream: "10.0.0.3:80".parse().unwrap(),
    };
    let input = Input::Icmp {
        error: stray,
        packet: &[],
    };
    sim.engine.handle(late, input);
    sim.open().request().ms(30).upstream_fin();
    let event = sim.expect(Cause::TcpClosedNoResponse, Proof::Proven);
    let duration = event.exchange.unwrap().duration_ms;
    assert!((30.0..31.0).contains(&duration), "{duration}");
}
