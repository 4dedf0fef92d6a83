//! Which cgroups the segment programs are attached to, and what is said of connections elsewhere.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use hopscope::live::LiveConfig;
use hopscope::model::{Direction, HopId, Signal, TcpFlags};

use crate::support::{Cgroup, Gateway, Seen, Watch, now};

/// How often something is tried that the look at all processes, every two seconds, may come before.
const TRIES: usize = 5;

/// A name for the gateways of one test, and its cgroups.
fn name(role: &str) -> String {
    // The kernel keeps fifteen bytes of it.
    format!("p{}{role}", std::process::id())
}

fn place(watch: &Watch) -> String {
    let rows = watch.source.probes();
    let row = rows.iter().find(|row| row.name == "segment_egress");
    row.unwrap().reason.clone()
}

/// The hops that `pid` opened, in order.
fn hops(watch: &Watch, pid: u32) -> Vec<HopId> {
    let opened = |seen: &Seen| matches!(seen, Seen::Signal(Signal::Opened { process, .. }) if process.pid == pid);
    let of_pid = watch.seen.iter().filter(|(_, seen)| opened(seen));
    of_pid.filter_map(|(hop, _)| *hop).collect()
}

fn is_unwatched(watch: &Watch, hop: HopId) -> bool {
    let said = |(own, seen): &(Option<HopId>, Seen)| {
        *own == Some(hop) && matches!(seen, Seen::Signal(Signal::Unwatched))
    };
    watch.seen.iter().any(said)
}

fn has_syn(watch: &Watch, hop: HopId) -> bool {
    let is_syn = |(own, seen): &(Option<HopId>, Seen)| {
        *own == Some(hop) && seen.is_segment(Direction::ToUpstream, TcpFlags::SYN)
    };
    watch.seen.iter().any(is_syn)
}

/// Pumps until `pid` has opened `count` hops and everything about them is there.
fn opened(watch: &mut Watch, pid: u32, count: usize) -> Vec<HopId> {
    watch.until("hops", |watch| hops(watch, pid).len() == count);
    watch.settle();
    hops(watch, pid)
}

#[test]
fn a_gateway_is_watched_in_its_cgroup_and_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let cgroup = Cgroup::create(&name("in"));
    let mut gateway = Gateway::start_in(&cgroup);
    let mut watch = Watch::start(&gateway.config());
    assert_eq!(place(&watch), format!("to cgroup /{}", cgroup.name()));
    assert_eq!(gateway.connect(upstream), "0");
    let [hop] = opened(&mut watch, gateway.pid(), 1)[..] else {
        panic!("{}", watch.trace());
    };
    assert!(
        has_syn(&watch, hop) && !is_unwatched(&watch, hop),
        "{}",
        watch.trace()
    );
    assert_eq!(watch.counter("live_hops_unwatched"), 0);
    drop(gateway);
}

#[test]
fn a_gateway_that_starts_later_is_watched_from_its_first_syn() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let comm = name("new");
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![comm.clone()],
        ..LiveConfig::default()
    });
    assert!(place(&watch).contains("none now"), "{}", place(&watch));
    let cgroup = Cgroup::create(&comm);
    let mut gateway = Gateway::start_as(&comm, &cgroup);
    // The shell has run one command since it started: that takes longer than it took to attach.
    let start = now();
    while !place(&watch).contains(cgroup.name()) {
        assert!(start.elapsed().as_secs() < 1, "not within a second");
    }
    assert_eq!(gateway.connect(upstream), "0");
    let [hop] = opened(&mut watch, gateway.pid(), 1)[..] else {
        panic!("{}", watch.trace());
    };
    assert!(
        has_syn(&watch, hop) && !is_unwatched(&watch, hop),
        "{}",
        watch.trace()
    );
    drop(gateway);
}

#[test]
fn a_connection_from_elsewhere_is_mid_stream_and_the_next_is_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let first = Cgroup::create(&name("m"));
    let mut gateway = Gateway::start_in(&first);
    let mut watch = Watch::start(&gateway.config());
    for number in 0..TRIES {
        // By hand, without becoming another program: nothing tells of it.
        let other = Cgroup::create(&name(&format!("m{number}")));
        other.add(gateway.pid());
        assert_eq!(gateway.connect(upstream), "0");
        let before = hops(&watch, gateway.pid()).len();
        let hop = *opened(&mut watch, gateway.pid(), before + 1)
            .last()
            .unwrap();
        assert_eq!(
            is_unwatched(&watch, hop),
            !has_syn(&watch, hop),
            "{}",
            watch.trace()
        );
        let unwatched = is_unwatched(&watch, hop);
        assert_eq!(watch.counter("live_hops_unwatched"), u64::from(unwatched));
        assert!(place(&watch).contains(other.name()), "{}", place(&watch));
        assert_eq!(gateway.connect(upstream), "0");
        let hop = *opened(&mut watch, gateway.pid(), before + 2)
            .last()
            .unwrap();
        assert!(
            has_syn(&watch, hop) && !is_unwatched(&watch, hop),
            "{}",
            watch.trace()
        );
        first.add(gateway.pid());
        if unwatched {
            return;
        }
    }
    panic!("the gateway was found before its first connect each time");
}

#[test]
fn a_place_goes_with_its_cgroup() {
    let cgroup = Cgroup::create(&name("gone"));
    let gateway = Gateway::start_in(&cgroup);
    let mut watch = Watch::start(&gateway.config());
    assert!(place(&watch).contains(cgroup.name()));
    drop(gateway);
    drop(cgroup);
    watch.until("the end of the place", |watch| {
        place(watch).contains("none now")
    });
}

#[test]
fn configured_upstreams_are_watched_everywhere() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![],
        upstreams: vec![upstream.to_string().parse().unwrap()],
        ..LiveConfig::default()
    });
    assert_eq!(place(&watch), "to cgroup /");
    let mut child = Command::new("bash")
        .args([
            "-c",
            &format!("exec 3<>/dev/tcp/{}/{}", upstream.ip(), upstream.port()),
        ])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let [hop] = opened(&mut watch, pid, 1)[..] else {
        panic!("{}", watch.trace());
    };
    assert!(has_syn(&watch, hop), "{}", watch.trace());
}

#[test]
fn a_socket_is_watched_where_it_was_made() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let (elsewhere, home) = (Cgroup::create(&name("else")), Cgroup::create(&name("home")));
    let mut before = Gateway::start_in(&elsewhere);
    let after = Gateway::start_in(&home);
    assert_eq!(before.connect(upstream), "0");
    home.add(before.pid());
    let mut watch = Watch::start(&after.config());
    assert_eq!(place(&watch), format!("to cgroup /{}", home.name()));
    before.launch_command(&format!("exec {}", after.program().display()));
    watch.until("the socket's cgroup", |watch| {
        place(watch).contains(elsewhere.name())
    });
    // The connection itself is found beside that.
    watch.until("the open hop", |watch| {
        watch.has(|seen| matches!(seen, Seen::Signal(Signal::Seeded { .. })))
    });
    before.launch_command("echo request >&3");
    watch.until("payload", |watch| {
        watch.has(|seen| matches!(seen, Seen::Segment { payload, .. } if payload == b"request\n"))
    });
    drop((before, after));
}
