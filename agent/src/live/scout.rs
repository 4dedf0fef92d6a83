//! Looks for gateway processes again and again, and for what belongs to them: connections that are
//! open already, a place to hear ICMP errors in their network namespaces, and their TLS libraries.
//!
//! Runs on a thread of its own, since reading `/proc` and entering namespaces would keep the ring
//! waiting.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::config::LiveConfig;
use super::goroutines::Goroutines;
use super::names::RESOLVERS;
use super::places::Places;
use super::process::{self, Matcher};
use super::source::Waker;
use super::tls::Libraries;
use super::turns::Turns;
use super::{LiveError, icmp, seed};
use crate::dns::PORT;
use crate::model::{Process, UpstreamPattern};
use crate::stats::ProbeStatus;

/// Time between two looks. A gateway that starts in between has its connections seen as they open;
/// only sockets that it inherited wait this long.
const PERIOD: Duration = Duration::from_secs(2);

/// Findings under way to the pump; the scout waits where it is full.
const QUEUE: usize = 4096;

/// What a look found.
#[derive(Debug)]
pub(super) enum Found {
    /// A connection that was open already.
    Hop {
        cookie: u64,
        process: Arc<Process>,
        local: SocketAddr,
        upstream: SocketAddr,
    },
    /// A datagram socket of a gateway or a resolver that was open already.
    DnsSocket {
        cookie: u64,
        process: Arc<Process>,
        /// Whether a resolver of this host holds it.
        on_behalf: bool,
    },
    /// A gateway listens.
    Listener {
        process: Arc<Process>,
        local: SocketAddr,
    },
    /// A connection that a gateway had accepted already.
    Client {
        cookie: u64,
        netns: u64,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// A network namespace with a gateway in it.
    Namespace { netns: u64, sockets: icmp::Sockets },
    /// The last gateway of a namespace is gone. Its sockets have to go too: they keep it alive.
    NamespaceGone { netns: u64 },
    /// What is heard of TLS libraries has changed.
    Libraries { rows: Vec<ProbeStatus> },
}

/// The looking itself, without its thread.
#[derive(Debug)]
pub(super) struct Scout {
    matcher: Matcher,
    upstreams: Vec<UpstreamPattern>,
    libraries: Libraries,
    places: Places,
    turns: Turns,
    goroutines: Goroutines,
    /// Gateways of the last look, with their namespaces.
    gateways: HashMap<u32, u64>,
    /// The same of resolvers, which ask on behalf of others.
    resolvers: HashMap<u32, u64>,
    /// Namespaces that we listen for ICMP errors in, or could not.
    namespaces: HashSet<u64>,
    /// Whether the connections of other processes to configured upstreams were asked for.
    looked_everywhere: bool,
}

impl Scout {
    pub(super) fn new(
        config: &LiveConfig,
        libraries: Libraries,
        places: Places,
        turns: Turns,
        goroutines: Goroutines,
    ) -> Result<Self, LiveError> {
        Ok(Self {
            matcher: Matcher::new(config)?,
            upstreams: config.upstreams.clone(),
            libraries,
            places,
            turns,
            goroutines,
            gateways: HashMap::new(),
            resolvers: HashMap::new(),
            namespaces: HashSet::new(),
            looked_everywhere: false,
        })
    }

    /// Looks once, and hands over what was not there the last time.
    pub(super) fn look(&mut self, mut found: impl FnMut(Found)) {
        let everywhere = !self.upstreams.is_empty() && !self.looked_everywhere;
        self.looked_everywhere = true;
        let mut gateways = HashMap::new();
        let mut resolvers = HashMap::new();
        let mut names = HashMap::new();
        let mut others = HashMap::new();
        for pid in process::pids() {
            let Some(comm) = process::comm_of(pid) else {
                continue;
            };
            let is_gateway = self.matcher.is_gateway(pid, &comm);
            let is_resolver = !is_gateway && RESOLVERS.contains(&comm.as_str());
            if !is_gateway && !is_resolver && !everywhere {
                continue;
            }
            let Some(netns) = process::netns_of(pid) else {
                continue;
            };
            if is_gateway {
                self.turns.meet(comm.as_bytes());
            }
            names.insert(pid, comm);
            if is_resolver {
                resolvers.insert(pid, netns);
            }
            if is_gateway {
                gateways.insert(pid, netns);
            } else if everywhere {
                others.insert(pid, netns);
            }
        }

        // First of all: what opens from now on is to be seen whole.
        let present: Vec<u32> = gateways.keys().chain(resolvers.keys()).copied().collect();
        self.places.present(&present);
        // Before what takes its time, such as reading libraries: of an error that nobody hears there is no other word.
        self.listen(&gateways, &mut found);

        let mut to_seed: HashMap<u64, u32> = HashMap::new();
        for (pid, netns) in &gateways {
            if self.gateways.get(pid) != Some(netns) {
                to_seed.insert(*netns, *pid);
            }
        }
        for (pid, netns) in &others {
            to_seed.entry(*netns).or_insert(*pid);
        }
        let with_names = gateways
            .keys()
            .map(|pid| (*pid, names.get(pid).map_or("", String::as_str)));
        self.goroutines.present(with_names.clone());
        if self.libraries.look(with_names) {
            found(Found::Libraries {
                rows: self.libraries.rows().to_vec(),
            });
        }
        for (netns, pid) in to_seed {
            let owners = owners(netns, &gateways, &others);
            match seed::sockets(&process::netns_path(pid)) {
                Ok(sockets) => {
                    self.whereabouts(&sockets, &owners);
                    clients(netns, &sockets, &owners, &names, &mut found);
                    for connection in sockets.outgoing {
                        self.seeded(netns, &connection, &owners, &names, &mut found);
                    }
                }
                // The process may have ended since.
                Err(error) => {
                    tracing::debug!(netns, %error, "cannot ask for open connections");
                }
            }
        }
        self.look_for_resolvers(&gateways, &resolvers, &names, &mut found);
        self.gateways = gateways;
        self.resolvers = resolvers;
    }

    /// Tells where the sockets of gateways were made: not always where the gateways are.
    fn whereabouts(&self, sockets: &seed::Sockets, owners: &HashMap<u64, (u32, bool)>) {
        let seed::Sockets {
            outgoing,
            accepted,
            listening,
        } = sockets;
        let mut told = HashSet::new();
        for socket in outgoing.iter().chain(accepted).chain(listening) {
            if let Some((pid, true)) = owners.get(&socket.inode)
                && told.insert((*pid, socket.cgroup))
            {
                self.places.admit_socket(*pid, socket.cgroup);
            }
        }
    }

    /// Hands over the datagram sockets of gateways and resolvers that were not there the last time.
    fn look_for_resolvers(
        &self,
        gateways: &HashMap<u32, u64>,
        resolvers: &HashMap<u32, u64>,
        names: &HashMap<u32, String>,
        found: &mut impl FnMut(Found),
    ) {
        let new = |now: &HashMap<u32, u64>, before: &HashMap<u32, u64>| -> HashMap<u64, u32> {
            let new = now
                .iter()
                .filter(|(pid, netns)| before.get(pid) != Some(netns));
            new.map(|(pid, netns)| (*netns, *pid)).collect()
        };
        let mut to_seed = new(gateways, &self.gateways);
        to_seed.extend(new(resolvers, &self.resolvers));
        for (netns, pid) in to_seed {
            let owners = owners(netns, gateways, resolvers);
            let sockets = match seed::resolver_sockets(&process::netns_path(pid)) {
                Ok(sockets) => sockets,
                Err(error) => {
                    tracing::debug!(netns, %error, "cannot ask for open datagram sockets");
                    continue;
                }
            };
            for socket in sockets {
                let Some((pid, is_gateway)) = owners.get(&socket.inode) else {
                    continue;
                };
                let comm = names.get(pid).map_or("", String::as_str);
                found(Found::DnsSocket {
                    cookie: socket.cookie,
                    process: Arc::new(process::describe(*pid, comm, netns)),
                    on_behalf: !is_gateway,
                });
            }
        }
    }

    /// Opens and closes the raw sockets so that each namespace with a gateway has its own.
    fn listen(&mut self, gateways: &HashMap<u32, u64>, found: &mut impl FnMut(Found)) {
        let present: HashMap<u64, u32> =
            gateways.iter().map(|(pid, netns)| (*netns, *pid)).collect();
        self.namespaces.retain(|netns| {
            let stays = present.contains_key(netns);
            if !stays {
                found(Found::NamespaceGone { netns: *netns });
            }
            stays
        });
        for (netns, pid) in present {
            if !self.namespaces.insert(netns) {
                continue;
            }
            match icmp::open(pid) {
                Ok(sockets) => found(Found::Namespace { netns, sockets }),
                Err(error) => {
                    tracing::warn!(netns, %error, "cannot hear ICMP errors in a network namespace");
                }
            }
        }
    }

    fn seeded(
        &self,
        netns: u64,
        connection: &seed::Connection,
        owners: &HashMap<u64, (u32, bool)>,
        names: &HashMap<u32, String>,
        found: &mut impl FnMut(Found),
    ) {
        let seed::Connection {
            cookie,
            inode,
            local,
            remote,
            ..
        } = *connection;
        let owner = owners.get(&inode);
        let wanted = owner.is_some_and(|(_, is_gateway)| *is_gateway)
            || self
                .upstreams
                .iter()
                .any(|upstream| upstream.matches(remote));
        // A socket without an owner is closed by its process and only lives until the last byte.
        // Streams to name servers are no hops.
        let wanted = wanted && remote.port() != PORT;
        let (true, Some((pid, _))) = (wanted, owner) else {
            return;
        };
        let comm = names.get(pid).map_or("", String::as_str);
        let process = Arc::new(process::describe(*pid, comm, netns));
        found(Found::Hop {
            cookie,
            process,
            local,
            upstream: remote,
        });
    }
}

/// Hands over where gateways listen, and what they have accepted.
fn clients(
    netns: u64,
    sockets: &seed::Sockets,
    owners: &HashMap<u64, (u32, bool)>,
    names: &HashMap<u32, String>,
    found: &mut impl FnMut(Found),
) {
    let of_gateway = |connection: &&seed::Connection| {
        owners
            .get(&connection.inode)
            .is_some_and(|(_, is_gateway)| *is_gateway)
    };
    for listener in sockets.listening.iter().filter(of_gateway) {
        let Some((pid, _)) = owners.get(&listener.inode) else {
            continue;
        };
        let comm = names.get(pid).map_or("", String::as_str);
        found(Found::Listener {
            process: Arc::new(process::describe(*pid, comm, netns)),
            local: listener.local,
        });
    }
    for accepted in sockets.accepted.iter().filter(of_gateway) {
        found(Found::Client {
            cookie: accepted.cookie,
            netns,
            local: accepted.local,
            remote: accepted.remote,
        });
    }
}

/// Who holds which socket in a namespace, and whether that is a gateway. Gateways come last, so that
/// they win over a process that shares a socket with one.
fn owners(
    netns: u64,
    gateways: &HashMap<u32, u64>,
    others: &HashMap<u32, u64>,
) -> HashMap<u64, (u32, bool)> {
    let of = |processes: &HashMap<u32, u64>, is_gateway| {
        let pids: Vec<u32> = processes
            .iter()
            .filter(|(_, own)| **own == netns)
            .map(|(pid, _)| *pid)
            .collect();
        pids.into_iter().flat_map(move |pid| {
            process::sockets_of(pid)
                .into_iter()
                .map(move |inode| (inode, (pid, is_gateway)))
        })
    };
    of(others, false).chain(of(gateways, true)).collect()
}

/// The gateways that are there, with their names.
pub(super) fn gateways(config: &LiveConfig) -> Result<Vec<(u32, String)>, LiveError> {
    let matcher = Matcher::new(config)?;
    Ok(process::pids()
        .into_iter()
        .filter_map(|pid| Some((pid, process::comm_of(pid)?)))
        .filter(|(pid, comm)| matcher.is_gateway(*pid, comm))
        .collect())
}

/// Whether this host lets us look at all, tried on the network namespace that we are in.
pub(super) fn rows() -> [ProbeStatus; 3] {
    let own = std::process::id();
    let seeds = seed::sockets(&process::netns_path(own)).map(|_| ()).map_err(|error| {
        format!("cannot ask the kernel for open connections (sock_diag, module tcp_diag): {error}: connections that were open before are not seen")
    });
    let icmp = icmp::open(own).map(|_| ()).map_err(|error| {
        format!("cannot open raw ICMP sockets: {error}: who said that an upstream cannot be reached is not known")
    });
    let datagrams = seed::resolver_sockets(&process::netns_path(own)).map(|_| ()).map_err(|error| {
        format!("cannot ask the kernel for open datagram sockets (sock_diag, module udp_diag): {error}: names that gateways look up from sockets that were open before are not seen")
    });
    [("seed", seeds), ("seed_dns", datagrams), ("icmp", icmp)].map(|(name, result)| {
        let reason = result.err().unwrap_or_default();
        ProbeStatus {
            name,
            attached: reason.is_empty(),
            reason,
        }
    })
}

/// The thread that looks.
#[derive(Debug)]
pub(super) struct Patrol {
    /// What was found.
    pub(super) found: Receiver<Found>,
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Patrol {
    /// Starts looking every two seconds.
    pub(super) fn start(mut scout: Scout, waker: Waker) -> io::Result<Self> {
        let (findings, found) = sync_channel(QUEUE);
        let (stop, stopped) = sync_channel::<()>(0);
        let thread = Builder::new()
            .name("hopscope-scout".into())
            .spawn(move || {
                while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                    let mut any = false;
                    scout.look(|item| {
                        any = true;
                        // It fails only where the source is gone, and then we stop too.
                        let _ = findings.send(item);
                    });
                    if any {
                        waker.wake();
                    }
                }
            })?;
        Ok(Self {
            found,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Patrol {
    fn drop(&mut self) {
        self.stop = None;
        // A closed queue frees a scout that waits for room in it.
        let (_, closed) = sync_channel(0);
        self.found = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
