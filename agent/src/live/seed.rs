//! Connections that were open before hopscope looked: asks the kernel for the sockets of a network
//! namespace (sock_diag), cookies included.
//!
//! Which of them are hops is decided here by ports alone: an accepted connection has a local port that
//! somebody in its namespace listens on. Whose they are is the caller's business.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_LISTEN,
};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use super::netns;
use crate::dns::PORT;

/// An open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) cookie: u64,
    pub(super) inode: u64,
    /// The cgroup in which its socket was made, zero where unknown.
    pub(super) cgroup: u64,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Room for one answer of the kernel, which makes them at most this large.
const ANSWER_BYTES: usize = 64 * 1024;

/// The sockets of a network namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Sockets {
    /// Connections that were opened from inside it.
    pub(super) outgoing: Vec<Connection>,
    /// Connections that were accepted in it.
    pub(super) accepted: Vec<Connection>,
    /// Sockets that listen; the remote end means nothing.
    pub(super) listening: Vec<Connection>,
}

/// The sockets inside the network namespace at `path`.
pub(super) fn sockets(path: &Path) -> io::Result<Sockets> {
    let sockets = netns::inside(path, || {
        let mut all = dump(AF_INET, IPPROTO_TCP, SocketId::new_v4())?;
        // A kernel without IPv6 has no such family.
        all.extend(dump(AF_INET6, IPPROTO_TCP, SocketId::new_v6()).unwrap_or_default());
        Ok(all)
    })?;
    Ok(sort(&sockets))
}

/// The sockets for datagrams inside the network namespace at `path` from which names may be looked up:
/// those that are connected to a name server, or to nobody.
pub(super) fn resolver_sockets(path: &Path) -> io::Result<Vec<Connection>> {
    let sockets = netns::inside(path, || {
        let mut all = dump(AF_INET, IPPROTO_UDP, SocketId::new_v4())?;
        all.extend(dump(AF_INET6, IPPROTO_UDP, SocketId::new_v6()).unwrap_or_default());
        Ok(all)
    })?;
    let all = sockets.iter().map(|socket| socket.connection);
    Ok(all
        .filter(|socket| [0, PORT].contains(&socket.remote.port()))
        .collect())
}

/// A socket as the kernel describes it.
#[derive(Clone, Copy, Debug)]
struct Described {
    listening: bool,
    connection: Connection,
}

/// Tells apart who opened a connection: whose local port nobody listens on opened it.
fn sort(sockets: &[Described]) -> Sockets {
    let ports: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.listening)
        .map(|socket| socket.connection.local.port())
        .collect();
    let mut sorted = Sockets::default();
    for socket in sockets {
        let kind = if socket.listening {
            &mut sorted.listening
        } else if ports.contains(&socket.connection.local.port()) {
            &mut sorted.accepted
        } else {
            &mut sorted.outgoing
        };
        kind.push(socket.connection);
    }
    sorted
}

fn dump(family: u8, protocol: u8, any: SocketId) -> io::Result<Vec<Described>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::ESTABLISHED
            | StateFlags::SYN_SENT
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT
            | StateFlags::LAST_ACK
            | StateFlags::CLOSING
            // Datagram sockets that are not connected.
            | match protocol {
                IPPROTO_UDP => StateFlags::CLOSE,
                _ => StateFlags::LISTEN,
            },
        socket_id: any,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut found = Vec::new();
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    loop {
        answer.clear();
        socket.recv(&mut answer, 0)?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::other(format!("sock_diag: {error}")))?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(describe(&response));
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let len = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            // Messages are aligned to four bytes; a length of zero would never end.
            let next = len.max(16).next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
}

fn describe(response: &InetResponse) -> Described {
    let id = &response.header.socket_id;
    // Two 32-bit halves, the low one first (`struct inet_diag_sockid`).
    let half = |at: usize| {
        let bytes = id.cookie.get(at..).and_then(|rest| rest.first_chunk());
        u64::from(bytes.copied().map_or(0, u32::from_ne_bytes))
    };
    Described {
        listening: response.header.state == TCP_LISTEN,
        connection: Connection {
            cookie: half(4) << 32 | half(0),
            inode: u64::from(response.header.inode),
            cgroup: response.nlas.iter().find_map(cgroup).unwrap_or(0),
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        },
    }
}

/// The id of a socket's cgroup, where the attribute is that. Kernels before Linux 5.8 do not tell.
fn cgroup(attribute: &Nla) -> Option<u64> {
    /// `INET_DIAG_CGROUP_ID` of `include/uapi/linux/inet_diag.h`.
    const CGROUP_ID: u16 = 21;
    let mut id = [0; size_of::<u64>()];
    if attribute.kind() != CGROUP_ID || attribute.value_len() != id.len() {
        return None;
    }
    attribute.emit_value(&mut id);
    Some(u64::from_ne_bytes(id))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::live::{cgroup, process};

    fn socket(listening: bool, cookie: u64, local: u16, remote: u16) -> Described {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let connection = Connection {
            cookie,
            inode: 0,
            cgroup: 0,
            local: at(local),
            remote: at(remote),
        };
        Described {
            listening,
            connection,
        }
    }

    #[test]
    fn connections_are_told_apart_by_who_listens() {
        let sockets = [
            socket(true, 1, 80, 0),
            socket(false, 2, 80, 40_000),
            socket(false, 3, 50_000, 8080),
        ];
        let sorted = sort(&sockets);
        let cookies =
            |found: &[Connection]| -> Vec<u64> { found.iter().map(|found| found.cookie).collect() };
        assert_eq!(cookies(&sorted.listening), [1]);
        assert_eq!(cookies(&sorted.accepted), [2]);
        assert_eq!(cookies(&sorted.outgoing), [3]);
    }

    #[test]
    fn an_open_connection_is_found_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let mut all = dump(AF_INET, IPPROTO_TCP, SocketId::new_v4()).unwrap();
        all.extend(dump(AF_INET6, IPPROTO_TCP, SocketId::new_v6()).unwrap());
        let found: Vec<_> = sort(&all)
            .outgoing
            .into_iter()
            .filter(|found| found.remote == listener.local_addr().unwrap())
            .collect();
        let [found] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(found.local, stream.local_addr().unwrap());
        assert_ne!(found.cookie, 0);
        // That of this process, wherever the tree is mounted.
        if let (Ok(root), Ok(Some(path))) = (cgroup::root(), process::cgroup_of(std::process::id()))
        {
            let own = cgroup::id(&root.join(path.trim_start_matches('/'))).unwrap();
            assert_eq!(found.cgroup, own);
        }
    }
}
