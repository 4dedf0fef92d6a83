//! The client side of gateways, as user space knows it: where they listen, which connections were accepted
//! before hopscope looked, and who answered.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError, ProgramArray};
use aya::programs::CgroupSkb;
use hopscope_ebpf::{Client, Endpoints, ListenerKey, NO_EXIST, client_flag};

use super::error::{LiveError, reason};
use super::load::{self, Table};
use crate::model::{Input, Process};

/// Listeners remembered.
const MAX_LISTENERS: usize = 4096;

/// The tables of the client side and what must be held for it to work.
pub(super) struct Clients {
    ports: Array<MapData, u8>,
    listeners: Table<[u8; size_of::<ListenerKey>()], u8>,
    connections: Table<u64, [u8; size_of::<Client>()]>,
    /// The kernel empties them when they are dropped.
    _jumps: Vec<ProgramArray<MapData>>,
}

impl Clients {
    /// Takes the tables out of the object and lets the segment programs jump to the programs of this side.
    /// Beside it, why they cannot where they cannot.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<(Self, Result<(), String>), LiveError> {
        let mut jumps = Vec::new();
        let mut result = Ok(());
        for (map, program) in [
            ("CLIENT_INGRESS", "client_ingress"),
            ("CLIENT_EGRESS", "client_egress"),
        ] {
            let mut jump: ProgramArray<MapData> = load::take_map(ebpf, map)?;
            if let Err(problem) = connect(ebpf, program, &mut jump) {
                result = Err(problem);
            }
            jumps.push(jump);
        }
        let clients = Self {
            ports: load::take_map(ebpf, "CLIENT_PORTS")?,
            listeners: load::take_map(ebpf, "LISTENERS")?,
            connections: load::take_map(ebpf, "CLIENTS")?,
            _jumps: jumps,
        };
        Ok((clients, result))
    }

    /// Watches the connections that are accepted at `local` from now on.
    pub(super) fn listen(&mut self, netns: u64, local: SocketAddr) {
        let entered = self
            .listeners
            .insert(listener_key(netns, local.port()), 1, 0)
            .and_then(|()| self.ports.set(u32::from(local.port()), 1, 0));
        if let Err(error) = entered {
            tracing::debug!(%error, %local, "the clients of a listener are not watched");
        }
    }

    /// Watches a connection that was accepted already. Returns false where it cannot be watched.
    pub(super) fn seed(
        &mut self,
        cookie: u64,
        netns: u64,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> bool {
        let value = entry(netns, local, remote);
        match self.connections.insert(cookie, value, NO_EXIST) {
            Ok(()) => true,
            // It was accepted since, and is watched from its beginning on.
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                true
            }
            Err(error) => {
                tracing::debug!(%error, cookie, "a client was not seeded");
                false
            }
        }
    }
}

impl Clients {
    /// The oldest request that waits for its answer, by network namespace, in kernel time.
    pub(super) fn waiting(&self) -> HashMap<u64, u64> {
        let mut oldest = HashMap::new();
        // An entry that goes meanwhile is one that does not wait.
        for (_, value) in self.connections.iter().flatten() {
            if let Some((netns, since)) = pending(&value) {
                oldest
                    .entry(netns)
                    .and_modify(|known: &mut u64| *known = since.min(*known))
                    .or_insert(since);
            }
        }
        oldest
    }
}

/// Namespace and time of the request of a connection that waits for its answer.
fn pending(value: &[u8; size_of::<Client>()]) -> Option<(u64, u64)> {
    let word = |at: usize| {
        let bytes = value.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let flags = word(core::mem::offset_of!(Client, flags))?;
    let netns =
        word(core::mem::offset_of!(Client, ends) + core::mem::offset_of!(Endpoints, netns))?;
    let at = core::mem::offset_of!(Client, requested_ns);
    let since = u64::from_ne_bytes(*value.get(at..)?.first_chunk()?);
    (flags & client_flag::ASKED != 0).then_some((u64::from(netns), since))
}

/// Loads a program and makes it the first entry of `jump`.
fn connect(ebpf: &mut Ebpf, name: &str, jump: &mut ProgramArray<MapData>) -> Result<(), String> {
    let program: &mut CgroupSkb = load::program(ebpf, name)?;
    program.load().map_err(|error| reason(&error))?;
    let fd = program.fd().map_err(|error| reason(&error))?;
    jump.set(0, fd, 0).map_err(|error| error.to_string())
}

fn listener_key(netns: u64, port: u16) -> [u8; size_of::<ListenerKey>()] {
    let mut key = [0; size_of::<ListenerKey>()];
    // Inode numbers of namespaces have 32 bits (`proc_alloc_inum`).
    let netns = u32::try_from(netns).unwrap_or(0);
    key[..4].copy_from_slice(&netns.to_ne_bytes());
    key[4..6].copy_from_slice(&port.to_ne_bytes());
    key
}

/// An entry of the table of clients of which it is not known what was asked before.
fn entry(netns: u64, local: SocketAddr, remote: SocketAddr) -> [u8; size_of::<Client>()] {
    let mut value = [0; size_of::<Client>()];
    let at = core::mem::offset_of!(Client, ends);
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(room) = value.get_mut(at + offset..at + offset + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    put(
        core::mem::offset_of!(Endpoints, local_addr),
        &mapped(local.ip()),
    );
    put(
        core::mem::offset_of!(Endpoints, remote_addr),
        &mapped(remote.ip()),
    );
    put(
        core::mem::offset_of!(Endpoints, local_port),
        &local.port().to_ne_bytes(),
    );
    put(
        core::mem::offset_of!(Endpoints, remote_port),
        &remote.port().to_ne_bytes(),
    );
    let netns = u32::try_from(netns).unwrap_or(0);
    put(
        core::mem::offset_of!(Endpoints, netns),
        &netns.to_ne_bytes(),
    );
    let flags = core::mem::offset_of!(Client, flags) - at;
    put(flags, &client_flag::UNREAD.to_ne_bytes());
    value
}

/// Who listens where.
#[derive(Debug, Default)]
pub(super) struct Listeners(HashMap<(u32, SocketAddr), Arc<Process>>);

impl Listeners {
    /// Notes who listens; the input that tells the engine of it, the first time and where another program
    /// took the place.
    pub(super) fn add(
        &mut self,
        process: Arc<Process>,
        local: SocketAddr,
    ) -> Option<Input<'static>> {
        let netns = u32::try_from(process.netns).unwrap_or(0);
        let known = match self.0.get(&(netns, local)) {
            Some(before) => before.comm == process.comm,
            None => self.0.len() >= MAX_LISTENERS,
        };
        if known {
            return None;
        }
        self.0.insert((netns, local), Arc::clone(&process));
        Some(Input::Listening {
            process,
            local,
            readable: true,
        })
    }

    /// The input that tells that what clients get at this address cannot all be read.
    pub(super) fn unreadable(&self, netns: u32, local: SocketAddr) -> Input<'static> {
        let process = self.at(netns, local).cloned().unwrap_or_else(|| {
            Arc::new(Process {
                netns: netns.into(),
                ..Process::default()
            })
        });
        tracing::info!(%local, gateway = %process.comm, "what clients get there cannot be read");
        Input::Listening {
            process,
            local,
            readable: false,
        }
    }

    /// Who accepts connections to this address.
    pub(super) fn at(&self, netns: u32, local: SocketAddr) -> Option<&Arc<Process>> {
        let any = |ip: IpAddr| self.0.get(&(netns, SocketAddr::new(ip, local.port())));
        any(local.ip())
            .or_else(|| any(Ipv4Addr::UNSPECIFIED.into()))
            .or_else(|| any(Ipv6Addr::UNSPECIFIED.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_entries_are_laid_out_as_the_kernel_reads_them() {
        let key = listener_key(0x0102_0304, 80);
        assert_eq!(key[..4], 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(key[4..], [80_u16.to_ne_bytes(), [0, 0]].concat());
        let value = entry(
            7,
            "10.0.0.1:80".parse().unwrap(),
            "[2001:db8::1]:50000".parse().unwrap(),
        );
        assert_eq!(value[10..16], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(value[16..18], [0x20, 0x01]);
        assert_eq!(value[32..34], 80_u16.to_ne_bytes());
        assert_eq!(value[34..36], 50_000_u16.to_ne_bytes());
        assert_eq!(value[36..40], 7_u32.to_ne_bytes());
        let flags = core::mem::offset_of!(Client, flags);
        assert_eq!(value[flags..flags + 4], client_flag::UNREAD.to_ne_bytes());
        let rest = value[40..flags].iter().chain(&value[flags + 4..]);
        assert!(rest.copied().all(|byte| byte == 0));
    }

    #[test]
    fn a_listener_is_told_once_and_by_its_address() {
        let mut listeners = Listeners::default();
        let process = |comm: &str| {
            Arc::new(Process {
                netns: 7,
                comm: Arc::from(comm),
                ..Process::default()
            })
        };
        let every = "0.0.0.0:80".parse().unwrap();
        let one: SocketAddr = "10.0.0.2:80".parse().unwrap();
        assert!(listeners.add(process("nginx"), every).is_some());
        assert!(listeners.add(process("nginx"), every).is_none());
        assert!(listeners.add(process("haproxy"), one).is_some());
        let comm = |netns, local| Some(listeners.at(netns, local)?.comm.to_string());
        assert_eq!(comm(7, one).as_deref(), Some("haproxy"));
        let other = "10.0.0.3:80".parse().unwrap();
        assert_eq!(comm(7, other).as_deref(), Some("nginx"));
        assert_eq!(comm(8, one), None);
        // Another program took the place.
        assert!(listeners.add(process("caddy"), every).is_some());
        assert_eq!(&*listeners.at(7, other).unwrap().comm, "caddy");
    }
}
