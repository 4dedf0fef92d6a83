//! Queries of gateways to name servers, with the process that asks.

use std::net::UdpSocket;

use hopscope::model::{Direction, Process};

use super::forgotten::tables;
use super::support::{Gateway, Seen, Watch};

/// Bytes of an entry of the table of sockets to name servers, and where it has the process.
const SOCKET: usize = 48;
const PID: usize = 8;

/// A query for the address of `a.b`, as a shell prints it.
const QUERY: &str = r"printf '\0\7\1\0\0\1\0\0\0\0\0\0\1a\1b\0\0\1\0\1' >&4";
const QUERY_BYTES: &[u8] = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\x01b\0\0\x01\0\x01";

/// The query as it was seen, once it was.
fn asked(watch: &Watch, over_tcp: bool) -> Option<&Process> {
    watch.seen.iter().find_map(|(_, seen)| match seen {
        Seen::Dns {
            process,
            direction: Direction::ToUpstream,
            on_behalf: false,
            tcp,
            payload,
        } if *tcp == over_tcp && payload == QUERY_BYTES => process.as_ref(),
        _ => None,
    })
}

#[test]
fn a_query_of_a_gateway_tells_its_process() {
    let mut gateway = Gateway::start_isolated();
    let mut watch = Watch::start(&gateway.config());
    assert_eq!(gateway.run("ip link set lo up"), "0");
    assert_eq!(gateway.run("exec 4<>/dev/udp/127.0.0.1/53"), "0");
    assert_eq!(gateway.run(QUERY), "0");
    watch.until("a query", |watch| asked(watch, false).is_some());
    let process = asked(&watch, false).unwrap();
    assert_eq!(
        (process.pid, &*process.comm),
        (gateway.pid(), &*gateway.name)
    );
    assert_ne!(process.netns, 0);
}

#[test]
fn a_socket_that_was_open_before_is_found() {
    let mut gateway = Gateway::start_isolated();
    assert_eq!(gateway.run("ip link set lo up"), "0");
    assert_eq!(gateway.run("exec 4<>/dev/udp/127.0.0.1/53"), "0");
    let mut watch = Watch::start(&gateway.config());
    assert_eq!(gateway.run(QUERY), "0");
    watch.until("a query", |watch| asked(watch, false).is_some());
    assert_eq!(asked(&watch, false).unwrap().pid, gateway.pid());
}

#[test]
fn other_datagrams_and_other_processes_are_left_alone() {
    let mut gateway = Gateway::start_isolated();
    let mut watch = Watch::start(&gateway.config());
    assert_eq!(gateway.run("ip link set lo up"), "0");
    // No gateway: this test itself.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(QUERY_BYTES, "127.0.0.1:53").unwrap();
    assert_eq!(gateway.run("exec 4<>/dev/udp/127.0.0.1/54"), "0");
    assert_eq!(gateway.run(QUERY), "0");
    assert_eq!(gateway.run("exec 4<>/dev/udp/127.0.0.1/53"), "0");
    assert_eq!(gateway.run(QUERY), "0");
    watch.until("a query", |watch| asked(watch, false).is_some());
    let messages = watch.seen.iter();
    let messages = messages.filter(|(_, seen)| matches!(seen, Seen::Dns { .. }));
    assert_eq!(messages.count(), 1);
}

#[test]
fn what_is_known_of_a_socket_goes_with_it() {
    let mut gateway = Gateway::start_isolated();
    let mut watch = Watch::start(&gateway.config());
    assert_eq!(gateway.run("ip link set lo up"), "0");
    assert_eq!(gateway.run("exec 4<>/dev/udp/127.0.0.1/53"), "0");
    assert_eq!(gateway.run(QUERY), "0");
    watch.until("a query", |watch| asked(watch, false).is_some());
    let pid = gateway.pid();
    assert_eq!(sockets(pid), 1);
    assert_eq!(gateway.run("exec 4<&-"), "0");
    assert_eq!(sockets(pid), 0);
    assert_eq!(watch.counter("kernel_dns_map_full"), 0);
}

/// Sockets of a process in the kernel's tables.
fn sockets(pid: u32) -> usize {
    let tables = tables::<u64, [u8; SOCKET]>("DNS_SOCKETS");
    let sockets = tables.iter().flat_map(|table| table.iter());
    let of_process = |socket: &[u8; SOCKET]| socket[PID..].starts_with(&pid.to_ne_bytes());
    sockets
        .filter(|entry| matches!(entry, Ok((_, socket)) if of_process(socket)))
        .count()
}
