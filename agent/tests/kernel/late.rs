//! A SYN-ACK that comes after the gateway gave up draws a reset from a kernel without a socket. It belongs
//! to the hop that gave up; whatever else finds no socket belongs to nobody.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::thread;

use hopscope::model::{Actor, Direction, ResetReason, Signal, TcpFlags, TcpState};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::{Gateway, Seen, Watch};

/// Of the interface behind which the upstream seems to be.
const MAC: &str = "02:00:00:00:00:02";

/// Adds up 16-bit words with the carry put back (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [last] => u32::from(last) << 8,
        _ => 0,
    });
    words.sum()
}

/// A segment, IP header included.
pub(crate) fn packet(
    from: SocketAddr,
    to: SocketAddr,
    flags: TcpFlags,
    (seq, ack): (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags.0, 0x20, 0, 0, 0, 0, 0]);
    tcp.extend(payload);
    let len = u16::try_from(tcp.len()).unwrap();
    let (mut ip, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            // The kernel fills the length and the checksum of this header in.
            let header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
            (header, addresses)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let [high, low] = len.to_be_bytes();
            (vec![0x60, 0, 0, 0, high, low, 6, 64], addresses)
        }
        _ => panic!("two families"),
    };
    let mut total = sum(&addresses) + sum(&tcp) + 6 + u32::from(len);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let checksum = !u16::try_from(total).unwrap();
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    ip.extend(addresses);
    ip.extend(tcp);
    ip
}

/// Sends a segment from the network namespace of `other`.
fn send(other: &Gateway, from: SocketAddr, to: SocketAddr, flags: TcpFlags) {
    let namespace = File::open(format!("/proc/{}/ns/net", other.pid())).unwrap();
    let packet = packet(from, to, flags, (7, 9), &[]);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            let family = match to {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let raw = socket_with(
                family,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(ipproto::RAW),
            )
            .unwrap();
            let anywhere = SocketAddr::new(to.ip(), 0);
            sendto(&raw, &packet, SendFlags::empty(), &anywhere).unwrap();
        });
        sender.join().unwrap();
    });
}

fn is_reset(seen: &Seen) -> bool {
    matches!(seen, Seen::Signal(Signal::ResetSent { .. }))
}

fn gives_up_and_is_answered_late(upstream: SocketAddr) {
    let mut gateway = Gateway::start_isolated();
    let mut other = Gateway::start_isolated();
    gateway.link(&mut other);
    let commands = [
        format!("ip link set far address {MAC}"),
        "ip addr add fd77::2/64 dev far nodad".to_owned(),
    ];
    for command in commands {
        assert_eq!(other.run(&command), "0", "{command}");
    }
    let commands = [
        "ip addr add fd77::1/64 dev near nodad".to_owned(),
        // Whatever goes there is lost without a word.
        format!(
            "ip neigh add {} lladdr {MAC} dev near nud permanent",
            upstream.ip()
        ),
    ];
    for command in commands {
        assert_eq!(gateway.run(&command), "0", "{command}");
    }
    let mut watch = Watch::start(&gateway.config());
    gateway.launch_command(&format!(
        "(exec 3<>/dev/tcp/{}/{}) &",
        upstream.ip(),
        upstream.port()
    ));
    let syn = |seen: &Seen| seen.is_segment(Direction::ToUpstream, TcpFlags::SYN);
    watch.until("SYN", |watch| watch.has(syn));
    let (_, Seen::Segment { local, .. }) = watch.seen[watch.position("SYN", syn)] else {
        panic!("no segment");
    };
    gateway.run("kill $!");
    watch.until("end of the attempt", |watch| {
        watch.has(|seen| {
            matches!(
                seen,
                Seen::Signal(Signal::State {
                    old: TcpState::SynSent,
                    new: TcpState::Close,
                    ..
                })
            )
        })
    });
    watch.settle();
    let hop = watch.hop();
    let records = watch.counter("kernel_records");

    let syn_ack = TcpFlags::SYN.union(TcpFlags::ACK);
    let beside = |end: SocketAddr| SocketAddr::new(end.ip(), end.port() ^ 1);
    // A scan of ports, and SYN-ACKs that nobody waited for.
    send(&other, upstream, beside(local), TcpFlags::SYN);
    send(&other, upstream, local, TcpFlags::SYN);
    send(&other, upstream, local, TcpFlags::ACK);
    send(&other, upstream, beside(local), syn_ack);
    send(&other, beside(upstream), local, syn_ack);
    watch.settle();
    assert_eq!(watch.counter("kernel_records"), records);

    send(&other, upstream, local, syn_ack);
    watch.until("reset", |watch| watch.has(is_reset));
    watch.settle();
    let resets: Vec<_> = watch
        .seen
        .iter()
        .filter(|(_, seen)| is_reset(seen))
        .collect();
    let [(of, Seen::Signal(Signal::ResetSent { by, reason }))] = resets.as_slice() else {
        panic!("{resets:?}");
    };
    assert_eq!((*of, *by), (Some(hop), Actor::Gateway));
    assert!(
        matches!(reason, None | Some(ResetReason::NoSocket)),
        "{reason:?}"
    );
    watch.assert_no_loss();
}

#[test]
fn a_late_syn_ack_draws_a_reset_that_belongs_to_its_hop() {
    gives_up_and_is_answered_late("10.77.0.3:80".parse().unwrap());
}

#[test]
fn a_late_syn_ack_over_ipv6_does_as_well() {
    gives_up_and_is_answered_late("[fd77::3]:80".parse().unwrap());
}
