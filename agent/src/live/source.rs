//! The running source: drains the ring and everything beside it into the sink, in one place and on the
//! caller's thread.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Array, MapData, MapError, PerCpuArray, RingBuf};
use hopscope_ebpf::{COMM_LEN, Caller, Counter, DnsSocket, HOPS_CAP, NO_EXIST, dns_role, hop_flag};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::Timespec;

use super::arrivals::Arrivals;
use super::boost::Boosts;
use super::clients::Clients;
use super::clock::{Clock, monotonic_ns};
use super::config::LiveConfig;
use super::decode::{Body, decode};
use super::goroutines::Goroutines;
use super::icmp::{self, Namespaces};
use super::load::{self, Loaded, Table};
use super::log::KernelLog;
use super::missed::Missed;
use super::names::Names;
use super::occupancy::Occupancy;
use super::offsets::ResetReasons;
use super::places::Places;
use super::process::Processes;
use super::scout::{self, Found, Patrol, Scout};
use super::tls::Libraries;
use super::turns::Turns;
use super::{LiveError, translate};
use crate::model::{Errno, HopId, Input, Process, Signal, TcpState, Timestamp, UpstreamPattern};
use crate::stats::ProbeStatus;

/// How long a record may take from its time stamp to the ring: a few microseconds, unless the host
/// takes the processor away from its guest meanwhile.
const SETTLE_NS: u64 = 2_000_000;

/// How long a hop stays tracked after it closed: with unread data the kernel closes the socket before it
/// sends the reset, and the segments after a close belong to the picture.
const LINGER_NS: u64 = 1_000_000_000;

/// Time between two looks at the loss counters. Each look costs a system call a counter.
const LOSS_PERIOD_NS: u64 = 100_000_000;

/// How long records gather once the first is there. While nobody takes them out, the kernel wakes nobody
/// for the next: waking and going to sleep again costs more than a record does.
const GATHER: Duration = Duration::from_millis(10);

/// The longest wait without looking after anything but the ring.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Size of an entry of the table of sockets to name servers.
const DNS_SOCKET_BYTES: usize = size_of::<DnsSocket>();

/// Wakes a [`LiveSource::pump`] that waits, from any thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?)))
    }

    /// Ends the current wait, or the next one where none is under way.
    pub fn wake(&self) {
        // It fails only where the counter is full, and then the pump is awake already.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

/// The kernel programs of this host, attached for as long as this value lives.
pub struct LiveSource {
    ring: RingBuf<MapData>,
    hops: Table<u64, [u32; 3]>,
    ports: Array<MapData, u8>,
    boosts: Boosts,
    /// None where the client side is not wanted.
    clients: Option<Clients>,
    places: Places,
    turns: Turns,
    goroutines: Goroutines,
    missed: Missed,
    counts: PerCpuArray<MapData, u64>,
    clock: Clock,
    processes: Processes,
    names: Names,
    dns_sockets: Table<u64, [u8; DNS_SOCKET_BYTES]>,
    reset_reasons: ResetReasons,
    probes: Vec<ProbeStatus>,
    libraries: Vec<ProbeStatus>,
    log: Option<KernelLog>,
    waker: Waker,
    /// Holds the kernel programs and their links as well.
    patrol: Patrol,
    _arrivals: Arrivals,
    icmp: Namespaces,
    /// Hops that were seeded and not handed over yet.
    waiting: Vec<(HopId, Signal)>,
    /// Word of listeners that was not handed over yet.
    listening: Vec<Input<'static>>,
    /// Hops that closed, with the time at which they are forgotten.
    closed: Closed,
    occupancy: Occupancy,
    malformed: u64,
    seeded: u64,
    /// Clients' connections that were there before and found no room.
    unseeded_clients: u64,
    not_tcp: u64,
    not_dns: u64,
    /// Hops that were opened where their packets are not seen.
    unwatched: u64,
    /// The most that [`Self::runs_missing`] came to.
    runs_missed: u64,
    lost: u64,
    lost_checked_ns: u64,
}

impl std::fmt::Debug for LiveSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSource")
            .field("probes", &self.probes)
            .finish_non_exhaustive()
    }
}

impl LiveSource {
    /// Loads and attaches the kernel programs and takes up the connections that are open already.
    pub fn start(config: &LiveConfig) -> Result<Self, LiveError> {
        Self::start_with(load::PROGRAMS, config)
    }

    /// The same with another object than the embedded one.
    pub fn start_with(programs: &[u8], config: &LiveConfig) -> Result<Self, LiveError> {
        let Loaded {
            object,
            mut probes,
            clients,
            places,
            turns,
            goroutines,
            reset_reasons,
        } = load::load(programs, config)?;
        let mut ebpf = object.lock();
        let ring = load::take_map(&mut ebpf, "EVENTS")?;
        let arrivals = load::take_map(&mut ebpf, "ARRIVALS")?;
        let hops = load::take_map(&mut ebpf, "HOPS")?;
        let ports = load::take_map(&mut ebpf, "PORTS")?;
        let dns_sockets = load::take_map(&mut ebpf, "DNS_SOCKETS")?;
        let boosts = Boosts::take(&mut ebpf)?;
        let counts = load::take_map(&mut ebpf, "COUNTERS")?;
        let log = if config.kernel_log {
            KernelLog::open(&mut ebpf)
        } else {
            None
        };
        let waker = Waker::new().map_err(|source| LiveError::Io {
            what: "make an event descriptor",
            source,
        })?;

        probes.extend(scout::rows());
        let missed = Missed::of(&ebpf);
        drop(ebpf);
        let libraries = Libraries::new(object, config.tls_plaintext);
        let rows = libraries.rows().to_vec();
        // What arrives from now on is heard of, and what is there already is found.
        let arrivals = Arrivals::start(arrivals, places.clone(), turns.clone(), goroutines.clone())
            .map_err(no_thread)?;
        let mut scout = Scout::new(
            config,
            libraries,
            places.clone(),
            turns.clone(),
            goroutines.clone(),
        )?;
        let mut first = Vec::new();
        scout.look(|found| first.push(found));
        let patrol = Patrol::start(scout, waker.clone()).map_err(no_thread)?;
        let mut source = Self {
            ring,
            hops,
            ports,
            boosts,
            clients,
            places,
            turns,
            goroutines,
            missed,
            counts,
            clock: Clock::new(),
            processes: Processes::default(),
            names: Names::default(),
            dns_sockets,
            reset_reasons,
            probes,
            libraries: rows,
            log,
            waker,
            patrol,
            _arrivals: arrivals,
            icmp: Namespaces::default(),
            waiting: Vec::new(),
            listening: Vec::new(),
            closed: Closed::default(),
            occupancy: Occupancy::new(HOPS_CAP.into()),
            malformed: 0,
            seeded: 0,
            unseeded_clients: 0,
            not_tcp: 0,
            not_dns: 0,
            unwatched: 0,
            runs_missed: 0,
            lost: 0,
            lost_checked_ns: 0,
        };
        for found in first {
            source.take_up(found);
        }
        Ok(source)
    }

    /// Waits up to `timeout` for records, hands over everything that is there, and returns a time up to
    /// which everything was handed over.
    pub fn pump(
        &mut self,
        timeout: Duration,
        sink: &mut dyn FnMut(Timestamp, Input<'_>),
    ) -> Result<Timestamp, LiveError> {
        let mut heard = true;
        if self.waiting.is_empty() && self.listening.is_empty() {
            heard = self.wait(timeout.min(HOUSEKEEPING))?;
        }
        self.clock.refresh();
        let now_ns = monotonic_ns();
        let now = self.clock.wall(now_ns);

        while let Ok(found) = self.patrol.found.try_recv() {
            self.take_up(found);
        }
        for (hop, signal) in self.waiting.drain(..) {
            sink(now, Input::Signal { hop, signal });
        }
        for input in self.listening.drain(..) {
            sink(now, input);
        }
        self.drain_ring(now_ns, sink);
        if heard {
            hear(&self.icmp, &self.clock, sink);
        }
        if let Some(records) = self.newly_lost(now_ns)? {
            sink(now, Input::Lost { records });
        }
        self.forget_closed(now_ns);
        self.boosts.expire(now_ns)?;
        if let Some(log) = &mut self.log {
            log.flush();
        }
        Ok(self.clock.wall(now_ns.saturating_sub(SETTLE_NS)))
    }

    /// Something that wakes [`pump`](Self::pump) from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Has every exchange with `upstreams` sent up for as long as `time` from now; zero ends it. Those on
    /// connections that are open begin with their next request.
    pub fn boost(&mut self, upstreams: &UpstreamPattern, time: Duration) -> Result<(), LiveError> {
        self.boosts.set(upstreams, time, monotonic_ns())
    }

    /// Since when the client has waited for its answer that has waited longest, in each network namespace
    /// where one does. Looks at every client's connection: not for every record.
    pub fn waiting(&self) -> Vec<(u64, Timestamp)> {
        let oldest = self.clients.as_ref().map(Clients::waiting);
        let oldest = oldest.unwrap_or_default();
        let wall = |(netns, ns)| (netns, self.clock.wall(ns));
        oldest.into_iter().map(wall).collect()
    }

    /// What is attached and what is not, and what is lost by that.
    pub fn probes(&self) -> Vec<ProbeStatus> {
        let libraries = self.libraries.iter().cloned();
        let places = self.places.rows();
        let probes = self.probes.iter().cloned();
        let kept_up = [self.turns.row(), self.goroutines.row()];
        let rows = probes.chain(places).chain(kept_up);
        rows.chain(libraries).collect()
    }

    /// Every counter of the kernel programs and of this source.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all: Vec<(&'static str, u64)> = Counter::ALL
            .iter()
            .map(|(counter, name)| (*name, self.count(*counter).unwrap_or(0)))
            .collect();
        all.extend([
            ("live_malformed", self.malformed),
            ("live_not_tcp", self.not_tcp),
            ("live_not_dns", self.not_dns),
            ("live_seeded", self.seeded),
            ("live_clients_unseeded", self.unseeded_clients),
            ("live_hops_unwatched", self.unwatched),
            (
                "kernel_runs_missed",
                self.runs_missed.max(self.runs_missing().unwrap_or(0)),
            ),
            ("live_hops_evicted", self.occupancy.evicted()),
        ]);
        all
    }

    /// Waits for anything to do. Returns whether there are ICMP errors.
    fn wait(&self, timeout: Duration) -> Result<bool, LiveError> {
        let wait = |fds: &mut [PollFd<'_>], timeout: Duration| {
            let timeout = Timespec::try_from(timeout).ok();
            match poll(fds, timeout.as_ref()) {
                // A signal is for whoever installed its handler; the pump just comes back.
                Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
                Err(source) => Err(LiveError::Io {
                    what: "wait for kernel records",
                    source: source.into(),
                }),
            }
        };
        let waker = || PollFd::new(&*self.waker.0, PollFlags::IN);
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN),
            waker(),
        ];
        let sockets = self.icmp.values().flat_map(|sockets| &sockets.fds);
        fds.extend(sockets.map(|(_, fd)| PollFd::new(fd, PollFlags::IN)));
        wait(&mut fds, timeout)?;
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut woken = fds.get(1).is_some_and(ready);
        if fds.first().is_some_and(ready) {
            let mut waker = [waker()];
            wait(&mut waker, GATHER)?;
            woken |= waker.iter().any(ready);
        }
        if woken {
            self.waker.clear();
        }
        Ok(fds.iter().skip(2).any(ready))
    }

    /// Takes everything out of the ring that was stamped before now. Later records stay for the next
    /// round, so that a busy host cannot keep the caller from its own deadlines.
    fn drain_ring(&mut self, now_ns: u64, sink: &mut dyn FnMut(Timestamp, Input<'_>)) {
        while let Some(item) = self.ring.next() {
            let record = match decode(&item) {
                Ok(record) => record,
                Err(error) => {
                    self.malformed += 1;
                    tracing::debug!(%error, "left a kernel record alone");
                    continue;
                }
            };
            let time = self.clock.wall(record.time_ns);
            match record.body {
                Body::State {
                    new: TcpState::Close,
                    ..
                } => {
                    self.closed
                        .insert(record.cookie, record.time_ns.saturating_add(LINGER_NS));
                }
                // A socket that connects again has its entry still.
                Body::Open { .. } => {
                    let again = self.closed.remove(record.cookie);
                    if !again {
                        self.occupancy.enter();
                    }
                }
                _ => {}
            }
            // The kernel hands an ICMP error to raw sockets before it fails the socket that it is
            // about, and so do we.
            if names_icmp(&record.body) {
                hear(&self.icmp, &self.clock, sink);
            }
            let later = record.time_ns > now_ns;
            if let Body::Dns(packet) = &record.body {
                let (names, processes) = (&mut self.names, &mut self.processes);
                let taken = names.packet(time, record.cookie, packet, processes, |message| {
                    sink(time, Input::Dns(message));
                });
                if let Err(error) = taken {
                    self.not_dns += 1;
                    tracing::debug!(%error, "left a packet of a name server alone");
                }
            }
            let unwatched = self.places.missed(&record, &mut self.processes);
            self.unwatched += u64::from(unwatched);
            match translate::input(&record, &mut self.processes, &self.reset_reasons) {
                Ok(Some(input)) => sink(time, input),
                Ok(None) => {}
                Err(error) => {
                    self.not_tcp += 1;
                    tracing::debug!(%error, "left a packet of a hop alone");
                }
            }
            if unwatched {
                let hop = HopId(record.cookie);
                let signal = Signal::Unwatched;
                sink(time, Input::Signal { hop, signal });
            }
            if later {
                break;
            }
        }
    }

    /// Acts on what the scout found.
    fn take_up(&mut self, found: Found) {
        match found {
            Found::Hop {
                cookie,
                process,
                local,
                upstream,
            } => {
                // Whoever opened after the programs were attached is in the table already.
                let entry = [process.pid, hop_flag::SEEDED, 0];
                let port = u32::from(upstream.port());
                if let Err(error) = self.ports.set(port, 1, 0) {
                    tracing::debug!(%error, port, "the port was not entered");
                }
                match self.hops.insert(cookie, entry, NO_EXIST) {
                    Ok(()) => {
                        self.seeded += 1;
                        self.occupancy.enter();
                        let signal = Signal::Seeded {
                            process,
                            local,
                            upstream,
                        };
                        self.waiting.push((HopId(cookie), signal));
                    }
                    Err(error) => tracing::debug!(%error, cookie, "not seeded"),
                }
            }
            Found::DnsSocket {
                cookie,
                process,
                on_behalf,
            } => {
                let entry = dns_socket(&process, on_behalf);
                match self.dns_sockets.insert(cookie, entry, NO_EXIST) {
                    Ok(()) => self.seeded += 1,
                    Err(error) => tracing::debug!(%error, cookie, "not seeded"),
                }
            }
            Found::Listener { process, local } => {
                if let Some(clients) = &mut self.clients {
                    clients.listen(process.netns, local);
                    let added = self.processes.listeners.add(process, local);
                    self.listening.extend(added);
                }
            }
            Found::Client {
                cookie,
                netns,
                local,
                remote,
            } => {
                if let Some(clients) = &mut self.clients
                    && !clients.seed(cookie, netns, local, remote)
                {
                    self.unseeded_clients += 1;
                    self.unreadable(netns, local);
                }
            }
            Found::Namespace { netns, sockets } => {
                self.icmp.insert(netns, sockets);
            }
            Found::NamespaceGone { netns } => {
                self.icmp.remove(&netns);
            }
            Found::Libraries { rows } => self.libraries = rows,
        }
    }

    fn count(&self, counter: Counter) -> Result<u64, MapError> {
        Ok(self.counts.get(&(counter as u32), 0)?.iter().sum())
    }

    /// Runs of kernel programs that did not take place and that nothing made up for; fewer than there are where one is
    /// made up for right now.
    fn runs_missing(&self) -> Result<u64, MapError> {
        // In this order, so that no run counts as missed while it is being made up for.
        let missed = self.missed.runs();
        Ok(missed.saturating_sub(self.count(Counter::RunsRepeated)?))
    }

    /// How many records were lost since the last look.
    fn newly_lost(&mut self, now_ns: u64) -> Result<Option<u64>, LiveError> {
        if now_ns.saturating_sub(self.lost_checked_ns) < LOSS_PERIOD_NS {
            return Ok(None);
        }
        self.lost_checked_ns = now_ns;
        let counts = |source| LiveError::Map {
            name: "COUNTERS",
            source,
        };
        let missing = self.runs_missing().map_err(counts)?;
        self.runs_missed = self.runs_missed.max(missing);
        let mut total = self.malformed + self.runs_missed;
        for counter in [Counter::RingFull, Counter::HopMapFull, Counter::LoadFailed] {
            total += self.count(counter).map_err(counts)?;
        }
        let new = total.saturating_sub(self.lost);
        self.lost = total;
        Ok((new > 0).then_some(new))
    }

    /// Notes that not every client is watched there. Those of one listener are found one behind the other.
    fn unreadable(&mut self, netns: u64, at: SocketAddr) {
        let is_known = |last: &Input<'_>| matches!(last, Input::Listening { local, readable: false, .. } if *local == at);
        if !self.listening.last().is_some_and(is_known) {
            let netns = u32::try_from(netns).unwrap_or(0);
            let unreadable = self.processes.listeners.unreadable(netns, at);
            self.listening.push(unreadable);
        }
    }

    /// Ends the tracking of hops that closed a while ago.
    fn forget_closed(&mut self, now_ns: u64) {
        while let Some(cookie) = self.closed.due(now_ns) {
            match self.hops.remove(&cookie) {
                Ok(()) => self.occupancy.leave(true),
                Err(MapError::SyscallError(error))
                    if error.io_error.kind() == io::ErrorKind::NotFound =>
                {
                    self.occupancy.leave(false);
                }
                Err(error) => tracing::debug!(%error, cookie, "a closed hop was not forgotten"),
            }
        }
    }
}

fn no_thread(source: io::Error) -> LiveError {
    LiveError::Io {
        what: "start a thread",
        source,
    }
}

/// A socket to name servers as the kernel programs remember it.
fn dns_socket(process: &Process, on_behalf: bool) -> [u8; DNS_SOCKET_BYTES] {
    const PID: usize = offset_of!(DnsSocket, caller) + offset_of!(Caller, pid);
    const COMM: usize = offset_of!(DnsSocket, caller) + offset_of!(Caller, comm);
    let mut entry = [0; DNS_SOCKET_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (room, byte) in entry.iter_mut().skip(at).zip(bytes) {
            *room = *byte;
        }
    };
    let netns = u32::try_from(process.netns).unwrap_or(0);
    let role = if on_behalf {
        dns_role::RESOLVER
    } else {
        dns_role::GATEWAY
    };
    put(PID, &process.pid.to_ne_bytes());
    // The last byte stays the NUL that ends it.
    put(
        COMM,
        process
            .comm
            .as_bytes()
            .get(..COMM_LEN - 1)
            .unwrap_or(process.comm.as_bytes()),
    );
    put(offset_of!(DnsSocket, netns), &netns.to_ne_bytes());
    put(offset_of!(DnsSocket, role), &role.to_ne_bytes());
    entry
}

/// Hands over the ICMP errors that have arrived, each as of when it is read: no earlier than the segment that it
/// quotes, however long this thread waited for its turn.
fn hear(namespaces: &Namespaces, clock: &Clock, sink: &mut dyn FnMut(Timestamp, Input<'_>)) {
    for (netns, sockets) in namespaces {
        icmp::drain(*netns, sockets, |error, packet| {
            sink(clock.wall(monotonic_ns()), Input::Icmp { error, packet });
        });
    }
}

/// Whether an ICMP error may be behind a record: it carries an error that no reset and no timer leaves.
/// A refusal can be either, since a filter may refuse with "port unreachable".
fn names_icmp(body: &Body<'_>) -> bool {
    let errno = match body {
        Body::State { sk_err, .. } => *sk_err,
        Body::Error { errno } => *errno,
        _ => None,
    };
    errno.is_some_and(|errno| {
        let others = [0, Errno::ECONNRESET.0, Errno::EPIPE.0, Errno::ETIMEDOUT.0];
        !others.contains(&errno)
    })
}

/// Closed hops in the order in which they are forgotten. A socket whose connect failed may connect
/// again, and is then no closed hop any more.
#[derive(Debug, Default)]
struct Closed {
    due: HashMap<u64, u64>,
    order: VecDeque<(u64, u64)>,
}

impl Closed {
    fn insert(&mut self, cookie: u64, due_ns: u64) {
        self.due.insert(cookie, due_ns);
        self.order.push_back((due_ns, cookie));
    }

    /// Returns whether it was there.
    fn remove(&mut self, cookie: u64) -> bool {
        self.due.remove(&cookie).is_some()
    }

    /// The next hop whose time has come.
    fn due(&mut self, now_ns: u64) -> Option<u64> {
        while let Some((due_ns, cookie)) = self.order.front().copied()
            && due_ns <= now_ns
        {
            self.order.pop_front();
            if self.due.get(&cookie) == Some(&due_ns) {
                self.due.remove(&cookie);
                return Some(cookie);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_hops_are_forgotten_once_and_in_time() {
        let mut closed = Closed::default();
        closed.insert(1, 10);
        closed.insert(2, 20);
        assert_eq!(closed.due(9), None);
        assert_eq!(closed.due(15), Some(1));
        assert_eq!(closed.due(15), None);
        assert_eq!(closed.due(20), Some(2));
        assert_eq!(closed.due(u64::MAX), None);
    }

    #[test]
    fn a_socket_that_connects_again_is_kept() {
        let mut closed = Closed::default();
        closed.insert(1, 10);
        assert!(closed.remove(1) && !closed.remove(1));
        assert_eq!(closed.due(15), None);
        closed.insert(1, 30);
        assert_eq!(closed.due(29), None);
        assert_eq!(closed.due(30), Some(1));
    }
}
