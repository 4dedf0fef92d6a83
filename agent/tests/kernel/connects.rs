//! Connections that open, fail and close, and the exact order of what is seen of them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use hopscope::live::LiveConfig;
use hopscope::model::{Actor, Direction, Errno, ResetReason, Signal, Target, TcpFlags, TcpState};

use crate::support::{Cgroup, Gateway, Seen, Watch};

const TO: Direction = Direction::ToUpstream;
const FROM: Direction = Direction::FromUpstream;

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    let listener = TcpListener::bind(loopback(0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn is_close(seen: &Seen) -> bool {
    matches!(
        seen,
        Seen::Signal(Signal::State {
            new: TcpState::Close,
            ..
        })
    )
}

#[test]
fn a_refused_connect_is_seen_whole() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&gateway.config());
    let upstream = loopback(closed_port());
    assert_ne!(gateway.connect(upstream), "0");
    watch.until("returned connect", |watch| {
        watch.has(|seen| matches!(seen, Seen::Signal(Signal::ConnectReturned { .. })))
    });
    watch.settle();

    let hop = watch.hop();
    assert!(
        watch.seen.iter().all(|(own, _)| *own == Some(hop)),
        "{:#?}",
        watch.seen
    );
    let opened = watch.position("opened", |seen| {
        matches!(seen, Seen::Signal(Signal::Opened { process, upstream: to, .. })
            if process.pid == gateway.pid() && *process.comm == *gateway.name && *to == upstream && process.netns != 0)
    });
    let syn = watch.position("SYN", |seen| seen.is_segment(TO, TcpFlags::SYN));
    let rst = watch.position("RST", |seen| {
        seen.is_segment(FROM, TcpFlags::RST.union(TcpFlags::ACK))
    });
    let reset = watch.position("reset", |seen| {
        matches!(seen, Seen::Signal(Signal::ResetReceived))
    });
    let error = watch.position("error", |seen| {
        matches!(
            seen,
            Seen::Signal(Signal::SocketError {
                errno: Errno::ECONNREFUSED
            })
        )
    });
    let state = watch.position("close", |seen| {
        matches!(
            seen,
            Seen::Signal(Signal::State {
                old: TcpState::SynSent,
                new: TcpState::Close,
                errno: Some(Errno::ECONNREFUSED),
                bytes_acked: Some(0),
                ..
            })
        )
    });
    let returned = watch.position("return", |seen| {
        matches!(
            seen,
            Seen::Signal(Signal::ConnectReturned {
                errno: Errno::ECONNREFUSED
            })
        )
    });
    assert!(opened < syn && syn < rst && rst < reset && reset < returned);
    assert!(error < returned && state < returned);
    watch.assert_no_loss();
}

#[test]
fn a_refused_ipv6_connect_is_seen() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&gateway.config());
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    drop(listener);
    assert_ne!(gateway.connect(upstream), "0");
    watch.until("close", |watch| watch.has(is_close));
    watch.settle();
    watch.position(
        "opened",
        |seen| matches!(seen, Seen::Signal(Signal::Opened { upstream: to, .. }) if *to == upstream),
    );
    watch.position("SYN", |seen| seen.is_segment(TO, TcpFlags::SYN));
    watch.position("RST", |seen| {
        seen.is_segment(FROM, TcpFlags::RST.union(TcpFlags::ACK))
    });
    watch.assert_no_loss();
}

#[test]
fn an_exchange_and_its_close_are_seen_whole() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&gateway.config());
    let listener = TcpListener::bind(loopback(0)).unwrap();
    assert_eq!(gateway.connect(listener.local_addr().unwrap()), "0");
    let (mut upstream, _) = listener.accept().unwrap();
    for _ in 0..2 {
        assert_eq!(gateway.run("echo request >&3"), "0");
        let mut request = [0; 8];
        upstream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"request\n");
        upstream.write_all(b"response\n").unwrap();
        assert_eq!(gateway.run("read -r line <&3"), "0");
    }
    drop(upstream);
    assert_ne!(
        gateway.run("read -r line <&3"),
        "0",
        "the end of the stream"
    );
    assert_eq!(gateway.run("exec 3>&-"), "0");
    watch.until("close", |watch| watch.has(is_close));
    watch.settle();

    let payloads = |towards: Direction| {
        let mut all = Vec::new();
        for (_, seen) in &watch.seen {
            if let Seen::Segment {
                direction,
                payload,
                wire_len,
                ..
            } = seen
                && *direction == towards
            {
                assert_eq!(u32::try_from(payload.len()).unwrap(), *wire_len);
                all.extend_from_slice(payload);
            }
        }
        String::from_utf8(all).unwrap()
    };
    assert_eq!(payloads(TO), "request\nrequest\n");
    assert_eq!(payloads(FROM), "response\nresponse\n");
    let established = watch.position("established", |seen| {
        matches!(
            seen,
            Seen::Signal(Signal::State {
                old: TcpState::SynSent,
                new: TcpState::Established,
                errno: None,
                ..
            })
        )
    });
    let close_wait = watch.position("close wait", |seen| {
        matches!(
            seen,
            Seen::Signal(Signal::State {
                new: TcpState::CloseWait,
                ..
            })
        )
    });
    let closed = watch.position("close", |seen| {
        matches!(seen, Seen::Signal(Signal::State { new: TcpState::Close, bytes_acked: Some(acked), rtt_us: Some(_), .. })
            if *acked >= 16)
    });
    assert!(established < close_wait && close_wait < closed);
    watch.assert_no_loss();
}

#[test]
fn an_upstream_on_this_host_says_why_it_reset() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&gateway.config());
    let listener = TcpListener::bind(loopback(0)).unwrap();
    assert_eq!(gateway.connect(listener.local_addr().unwrap()), "0");
    let (upstream, _) = listener.accept().unwrap();
    assert_eq!(gateway.run("echo request >&3"), "0");
    // Closed with the request unread.
    let mut peeked = [0; 1];
    assert_eq!(upstream.peek(&mut peeked).unwrap(), 1);
    drop(upstream);
    watch.until("both ends of the reset", |watch| {
        watch.has(is_close)
            && watch.has(|seen| matches!(seen, Seen::Signal(Signal::ResetSent { .. })))
    });
    watch.settle();
    // The kernel tells of a reset after sending it, and loopback delivers at once: it may be last.
    watch.position("reset sent", |seen| {
        matches!(seen, Seen::Signal(Signal::ResetSent { by: Actor::Upstream, reason })
            if reason.as_ref().is_none_or(|reason| *reason == ResetReason::AbortOnClose))
    });
    watch.position("reset", |seen| {
        matches!(seen, Seen::Signal(Signal::ResetReceived))
    });
}

#[test]
fn a_gateway_that_closes_with_unread_bytes_resets_after_its_close() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&gateway.config());
    let listener = TcpListener::bind(loopback(0)).unwrap();
    assert_eq!(gateway.connect(listener.local_addr().unwrap()), "0");
    let (mut upstream, _) = listener.accept().unwrap();
    upstream.write_all(b"unread").unwrap();
    watch.until("payload", |watch| {
        watch.has(|seen| matches!(seen, Seen::Segment { payload, .. } if payload == b"unread"))
    });
    assert_eq!(gateway.run("exec 3>&-"), "0");
    watch.until("reset", |watch| {
        watch.has(|seen| {
            matches!(
                seen,
                Seen::Signal(Signal::ResetSent {
                    by: Actor::Gateway,
                    ..
                })
            )
        })
    });
    watch.settle();
    let closed = watch.position("close", is_close);
    let reset = watch.position("reset", |seen| {
        matches!(
            seen,
            Seen::Signal(Signal::ResetSent {
                by: Actor::Gateway,
                ..
            })
        )
    });
    assert!(closed < reset);
    assert!(watch.has(|seen| matches!(seen, Seen::Segment { direction: TO, flags, .. } if flags.contains(TcpFlags::RST))));
}

#[test]
fn a_connect_without_a_route_is_seen() {
    let mut gateway = Gateway::start_isolated();
    let mut watch = Watch::start(&gateway.config());
    let upstream: SocketAddr = "192.0.2.1:80".parse().unwrap();
    assert_ne!(gateway.connect(upstream), "0");
    watch.until("failed connect", |watch| {
        watch.has(|seen| matches!(seen, Seen::ConnectFailed { .. }))
    });
    watch.settle();
    let [
        (
            None,
            Seen::ConnectFailed {
                process,
                upstream: to,
                errno,
            },
        ),
    ] = watch.seen.as_slice()
    else {
        panic!("{}", watch.trace());
    };
    assert_eq!(
        (process.pid, &*process.comm),
        (gateway.pid(), &*gateway.name)
    );
    assert_eq!((to, *errno), (&Target::Inet(upstream), Errno::ENETUNREACH));
    let netns = std::fs::read_link(format!("/proc/{}/ns/net", gateway.pid())).unwrap();
    assert_eq!(netns.to_str().unwrap(), format!("net:[{}]", process.netns));
}

#[test]
fn datagram_sockets_are_none_of_ours() {
    let mut gateway = Gateway::start();
    let mut isolated = Gateway::start_isolated();
    let gateways = vec![gateway.name.clone(), isolated.name.clone()];
    let mut watch = Watch::start(&LiveConfig {
        gateways,
        ..LiveConfig::default()
    });
    let receiver = UdpSocket::bind(loopback(0)).unwrap();
    let port = receiver.local_addr().unwrap().port();
    assert_eq!(
        gateway.run(&format!("echo query >/dev/udp/127.0.0.1/{port}")),
        "0"
    );
    let mut query = [0; 16];
    assert_eq!(receiver.recv(&mut query).unwrap(), 6);
    // Fails with ENETUNREACH, as a TCP socket would.
    assert_ne!(isolated.run("echo query >/dev/udp/192.0.2.1/53"), "0");
    watch.settle();
    assert!(watch.seen.is_empty(), "{}", watch.trace());
}

#[test]
fn other_processes_are_left_alone() {
    let gateway = Gateway::start();
    let mut stranger = Gateway::start();
    let mut watch = Watch::start(&gateway.config());
    let listener = TcpListener::bind(loopback(0)).unwrap();
    assert_eq!(stranger.connect(listener.local_addr().unwrap()), "0");
    watch.settle();
    assert!(watch.seen.is_empty(), "{}", watch.trace());
    assert!(watch.counter("kernel_filtered") > 0);
}

#[test]
fn whoever_connects_to_a_configured_upstream_is_a_gateway() {
    let mut stranger = Gateway::start();
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    let mut watch = Watch::start(&LiveConfig {
        gateways: Vec::new(),
        upstreams: vec![format!("127.0.0.0/8:{}", upstream.port()).parse().unwrap()],
        ..LiveConfig::default()
    });
    assert_eq!(stranger.connect(upstream), "0");
    watch.until("opened", |watch| {
        watch.has(|seen| {
            matches!(seen, Seen::Signal(Signal::Opened { process, .. })
            if process.pid == stranger.pid())
        })
    });
}

#[test]
fn a_process_in_a_configured_cgroup_is_a_gateway() {
    let mut member = Gateway::start();
    let cgroup = Cgroup::create(&member.name);
    cgroup.add(member.pid());
    let mut watch = Watch::start(&LiveConfig {
        gateways: Vec::new(),
        cgroups: vec![format!("/{}", member.name).into()],
        ..LiveConfig::default()
    });
    assert_ne!(member.connect(loopback(closed_port())), "0");
    watch.until("opened", |watch| {
        watch.has(|seen| {
            matches!(seen, Seen::Signal(Signal::Opened { process, .. })
            if process.pid == member.pid() && *process.cgroup == *format!("/{}", member.name))
        })
    });
    drop(member);
}

#[test]
fn packets_of_other_cgroups_are_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let (mut inside, mut outside) = (Gateway::start(), Gateway::start());
    let cgroup = Cgroup::create(&inside.name);
    cgroup.add(inside.pid());
    let mut watch = Watch::start(&LiveConfig {
        gateways: vec![inside.name.clone(), outside.name.clone()],
        packets_of: vec![format!("/{}", inside.name).into()],
        ..LiveConfig::default()
    });
    for gateway in [&mut outside, &mut inside] {
        assert_eq!(gateway.connect(upstream), "0");
    }
    watch.until("two connections", |watch| {
        let established = |seen: &Seen| {
            matches!(
                seen,
                Seen::Signal(Signal::State {
                    new: TcpState::Established,
                    ..
                })
            )
        };
        watch
            .seen
            .iter()
            .filter(|(_, seen)| established(seen))
            .count()
            == 2
    });
    watch.settle();
    let hop_of = |pid: u32| {
        let opened = |seen: &Seen| matches!(seen, Seen::Signal(Signal::Opened { process, .. }) if process.pid == pid);
        watch.seen.iter().find(|(_, seen)| opened(seen)).unwrap().0
    };
    let segments = |hop| {
        let of_hop = |(own, seen): &&(_, Seen)| *own == hop && matches!(seen, Seen::Segment { .. });
        watch.seen.iter().filter(of_hop).count()
    };
    assert_eq!(segments(hop_of(outside.pid())), 0);
    assert_eq!(segments(hop_of(inside.pid())), 3, "{}", watch.trace());
    drop(inside);
}

#[test]
fn an_open_connection_is_taken_up() {
    let mut gateway = Gateway::start();
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    assert_eq!(gateway.connect(upstream), "0");
    let (accepted, from) = listener.accept().unwrap();
    let mut watch = Watch::start(&gateway.config());
    assert_eq!(gateway.run("echo request >&3"), "0");
    watch.until("payload", |watch| {
        watch.has(|seen| matches!(seen, Seen::Segment { payload, .. } if payload == b"request\n"))
    });
    let (
        hop,
        Seen::Signal(Signal::Seeded {
            process,
            local,
            upstream: to,
        }),
    ) = &watch.seen[0]
    else {
        panic!("{}", watch.trace());
    };
    assert_eq!(
        (process.pid, &*process.comm),
        (gateway.pid(), &*gateway.name)
    );
    assert_eq!((*local, *to), (from, upstream));
    assert!(
        watch.seen.iter().all(|(own, _)| own == hop),
        "{:#?}",
        watch.seen
    );
    drop(accepted);
}

#[test]
fn a_gateway_that_inherits_a_connection_is_taken_up() {
    let mut before = Gateway::start();
    let after = Gateway::start();
    let listener = TcpListener::bind(loopback(0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    assert_eq!(before.connect(upstream), "0");
    let mut watch = Watch::start(&after.config());
    watch.settle();
    assert!(watch.seen.is_empty(), "{}", watch.trace());
    before.launch_command(&format!("exec {}", after.program().display()));
    watch.until("seeded", |watch| {
        watch.has(|seen| {
            matches!(seen, Seen::Signal(Signal::Seeded { process, upstream: to, .. })
                if process.pid == before.pid() && *process.comm == *after.name && *to == upstream)
        })
    });
}

#[test]
fn an_isolated_connection_is_taken_up_in_its_namespace() {
    let mut gateway = Gateway::start_isolated();
    assert_eq!(gateway.run("ip link set lo up"), "0");
    // The other end lives in the same namespace, started by the gateway itself, and ends with it.
    assert_eq!(gateway.run("coproc python3 -uc 'import socket as s, sys; l=s.create_server((\"127.0.0.1\",8099)); print(1); c=l.accept(); sys.stdin.read()'; read -r -u ${COPROC[0]} x"), "0");
    assert_eq!(gateway.connect(loopback(8099)), "0");
    let mut watch = Watch::start(&gateway.config());
    watch.until("seeded", |watch| {
        watch.has(|seen| {
            matches!(seen, Seen::Signal(Signal::Seeded { process, upstream, .. })
            if process.pid == gateway.pid() && *upstream == loopback(8099))
        })
    });
    assert_eq!(watch.counter("live_seeded"), 1);
}
