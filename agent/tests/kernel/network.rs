//! What a network in between does: nobody answers, a router refuses, records are lost.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener};

use hopscope::live::LiveConfig;
use hopscope::model::{Errno, IcmpError, Signal, TcpState};

use crate::support::{Gateway, Seen, Watch};

fn icmp(watch: &Watch) -> Option<IcmpError> {
    watch.seen.iter().find_map(|(_, seen)| match seen {
        Seen::Icmp(error) => Some(*error),
        _ => None,
    })
}

fn is_unreachable(seen: &Seen) -> bool {
    matches!(
        seen,
        Seen::Signal(Signal::State {
            old: TcpState::SynSent,
            new: TcpState::Close,
            errno: Some(Errno::EHOSTUNREACH),
            bytes_acked: Some(0),
            ..
        })
    )
}

#[test]
fn a_missing_neighbour_is_told_by_the_host_itself() {
    let mut gateway = Gateway::start_isolated();
    let mut other = Gateway::start_isolated();
    gateway.link(&mut other);
    // One second instead of three.
    assert_eq!(
        gateway.run("echo 1 >/proc/sys/net/ipv4/neigh/near/mcast_solicit"),
        "0"
    );
    let mut watch = Watch::start(&gateway.config());
    gateway.launch_command("exec 3<>/dev/tcp/10.77.0.99/80");
    watch.until("ICMP error and close", |watch| {
        icmp(watch).is_some() && watch.has(is_unreachable)
    });
    let told = watch.position("ICMP error", |seen| matches!(seen, Seen::Icmp(_)));
    assert!(told < watch.position("close", is_unreachable));
    let error = icmp(&watch).unwrap();
    assert!(error.from_self, "{error:?}");
    assert_eq!((error.from, error.code), (IpAddr::from([10, 77, 0, 1]), 1));
    assert_eq!(error.upstream, "10.77.0.99:80".parse().unwrap());
    let netns = std::fs::read_link(format!("/proc/{}/ns/net", gateway.pid())).unwrap();
    assert_eq!(netns.to_str().unwrap(), format!("net:[{}]", error.netns));
}

#[test]
fn a_router_that_refuses_is_named() {
    let mut gateway = Gateway::start_isolated();
    let mut router = Gateway::start_isolated();
    gateway.link(&mut router);
    assert_eq!(gateway.run("ip route add default via 10.77.0.2"), "0");
    assert_eq!(router.run("echo 1 >/proc/sys/net/ipv4/ip_forward"), "0");
    assert_eq!(router.run("ip route add unreachable 192.0.2.0/24"), "0");
    let mut watch = Watch::start(&gateway.config());
    gateway.launch_command("exec 3<>/dev/tcp/192.0.2.1/80");
    watch.until("ICMP error", |watch| icmp(watch).is_some());
    let error = icmp(&watch).unwrap();
    assert!(!error.from_self, "{error:?}");
    assert_eq!(error.from, IpAddr::from([10, 77, 0, 2]));
    assert_eq!(error.upstream, "192.0.2.1:80".parse().unwrap());
    assert_eq!(error.local.ip(), IpAddr::from([10, 77, 0, 1]));
}

#[test]
fn a_repeated_syn_is_seen() {
    let mut gateway = Gateway::start_isolated();
    let mut router = Gateway::start_isolated();
    gateway.link(&mut router);
    assert_eq!(gateway.run("ip route add default via 10.77.0.2"), "0");
    assert_eq!(router.run("ip route add blackhole 192.0.2.0/24"), "0");
    let mut watch = Watch::start(&gateway.config());
    gateway.launch_command("exec 3<>/dev/tcp/192.0.2.1/80");
    watch.until("retransmission", |watch| {
        watch.has(|seen| {
            matches!(
                seen,
                Seen::Signal(Signal::Retransmitted {
                    state: Some(TcpState::SynSent)
                })
            )
        })
    });
}

#[test]
fn a_ring_that_overflows_is_told() {
    let mut gateway = Gateway::start();
    let mut watch = Watch::start(&LiveConfig {
        ring_bytes: 1,
        ..gateway.config()
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(gateway.connect(listener.local_addr().unwrap()), "0");
    let (mut upstream, _) = listener.accept().unwrap();
    // More than the smallest ring takes, in segments that each take a place of two kilobytes.
    let piece = [b'x'; 2000];
    for _ in 0..100 {
        upstream.write_all(&piece).unwrap();
        assert_eq!(gateway.run("read -r -N 2000 line <&3; echo -n y >&3"), "0");
        upstream.read_exact(&mut [0; 1]).unwrap();
    }
    watch.until("loss", |watch| {
        watch.has(|seen| matches!(seen, Seen::Lost(_)))
    });
    watch.settle();
    let lost: u64 = watch
        .seen
        .iter()
        .map(|(_, seen)| {
            if let Seen::Lost(records) = seen {
                *records
            } else {
                0
            }
        })
        .sum();
    assert_eq!(lost, watch.counter("kernel_ring_full"));
    assert_eq!(watch.counter("live_malformed"), 0);
}
