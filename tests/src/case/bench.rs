//! A bench: two namespaces of its own, one gateway or two on one side, upstreams and clients on the other.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use super::{Case, Drive, Gateway, apache, caddy, haproxy, nginx};
use crate::access::{self, ByClient, Logged};
use crate::agent::{Event, Process};
use crate::cgroup::Cgroup;
use crate::cleanup::{Directory, Program};
use crate::client::{Request, Seen, Session};
use crate::clock::wait_for;
use crate::command::run_with_input;
use crate::gateway::children;
use crate::lab::{connect, ruleset};
use crate::netns::Netns;
use crate::resolver::Resolver;
use crate::scenario::{Trick, UPSTREAM};
use crate::socket::Target;
use crate::upstream::Upstreams;

/// More than a line of a log has.
const LINE_ROOM: usize = 4096;

/// Time that a gateway gets to listen, to log, or to pass a request on.
const SOON: Duration = Duration::from_secs(10);

/// First port of the upstreams.
const FIRST_PORT: u16 = 20_000;

/// What a gateway may use of its host.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Connections of a worker of nginx.
    pub connections: u32,
    /// First and last port from which connections may be made.
    pub ports: Option<(u16, u16)>,
    /// Workers of nginx, threads of `HAProxy`.
    pub workers: u32,
    /// Whether it is the Caddy that `cargo xtask setup` installs beside Debian's, which Go 1.26 built.
    pub current_caddy: bool,
    /// Whether it has to wait for a moment for each line that it logs.
    pub slow_log: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            connections: 1024,
            ports: None,
            workers: 1,
            current_caddy: false,
            slow_log: false,
        }
    }
}

/// What a client got.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The gateway that was asked.
    pub gateway: Gateway,
    /// Whose path was asked for.
    pub case: Case,
    /// Its upstreams.
    pub upstreams: Vec<SocketAddr>,
    /// The client's port.
    pub client: u16,
    /// What it saw.
    pub seen: Seen,
    /// Whether it is the last one, which the case is about.
    pub last: bool,
}

/// Running gateways with their upstreams. Dropping it removes everything.
#[derive(Debug)]
pub struct Bench {
    // In this order: the gateways end before what they depend on.
    gateways: Vec<Running>,
    upstreams: Upstreams,
    _resolver: Resolver,
    near: Netns,
    far: Netns,
    /// Path of the gateways' cgroup.
    cgroup: String,
}

#[derive(Debug)]
struct Running {
    kind: Gateway,
    process: Program,
    cases: Vec<(Case, Vec<SocketAddr>)>,
    files: Directory,
    /// Where it sends its log, unless it writes that itself.
    log: Option<UdpSocket>,
}

impl Bench {
    /// Starts these gateways side by side in a cgroup, each with its cases.
    pub fn start(
        setting: Setting,
        wanted: &[(Gateway, Vec<Case>)],
        cgroup: &Cgroup,
    ) -> Result<Self> {
        let near = Netns::new("gateway")?;
        let far = Netns::new("upstream")?;
        connect(&near, &far).context("could not join the namespaces")?;
        if let Some((first, last)) = setting.ports {
            near.sysctl("ipv4/ip_local_port_range", &format!("{first} {last}"))?;
        }
        let mut ports = FIRST_PORT..;
        let mut served = Vec::new();
        let mut tricks: HashMap<Trick, Vec<u16>> = HashMap::new();
        let mut address = |up: &super::Up| {
            let port = ports.next().context("too many upstreams")?;
            let ip = up.at.unwrap_or(UPSTREAM);
            let address = SocketAddr::new(IpAddr::V4(ip), port);
            served.extend(up.behaviour.map(|behaviour| (address, behaviour)));
            if let Some(trick) = up.trick {
                tricks.entry(trick).or_default().push(port);
            }
            Ok::<_, anyhow::Error>(address)
        };
        let mut placed = Vec::new();
        for (kind, cases) in wanted {
            let cases = cases.iter().map(|case| {
                let addresses = case.upstreams.iter().map(&mut address);
                Ok((*case, addresses.collect::<Result<_>>()?))
            });
            placed.push((*kind, cases.collect::<Result<Vec<_>>>()?));
        }
        far.enter(|| run_with_input("nft", &["-f", "-"], &ruleset(&tricks)?))?;
        let resolver = Resolver::start(&near)?;
        let upstreams = far.enter(|| Upstreams::start(served))?;
        let gateways = placed
            .into_iter()
            .map(|(kind, cases)| Running::start(kind, setting, cases, cgroup, [&near, &far]));
        Ok(Self {
            gateways: gateways.collect::<Result<_>>()?,
            upstreams,
            _resolver: resolver,
            near,
            far,
            cgroup: cgroup.path().to_owned(),
        })
    }

    /// The namespace of the gateways, by its inode.
    pub fn namespace(&self) -> Result<u64> {
        self.near.inode()
    }

    /// The gateways.
    pub fn gateways(&self) -> impl Iterator<Item = Gateway> {
        self.gateways.iter().map(|running| running.kind)
    }

    /// Plays every case of `gateway`, one after the other.
    pub fn play(&self, gateway: Gateway) -> Result<Vec<Reply>> {
        let running = self.running(gateway)?;
        let mut replies = Vec::new();
        for (case, upstreams) in &running.cases {
            let played = self.drive(running, case, upstreams);
            let played = played.with_context(|| format!("{} through {gateway}", case.name))?;
            let last = played.len();
            replies.extend((1..).zip(played).map(|(number, (client, seen))| Reply {
                gateway,
                case: *case,
                upstreams: upstreams.clone(),
                client,
                seen,
                last: number == last,
            }));
        }
        Ok(replies)
    }

    /// The requests that `gateway` has logged, once there are lines for all of these.
    pub fn logged(&self, gateway: Gateway, replies: &[Reply]) -> Result<Vec<Logged>> {
        let running = self.running(gateway)?;
        let answered = replies
            .iter()
            .filter(|reply| reply.gateway == gateway && reply.seen != Seen::Nothing);
        let answered: Vec<u16> = answered.map(|reply| reply.client).collect();
        wait_for("a gateway to log its requests", SOON, || {
            let logged = running.logged()?;
            let all = answered
                .iter()
                .all(|client| logged.iter().any(|line| line.client == *client));
            Ok(all.then_some(logged))
        })
    }

    /// What `gateway` has logged of a path, or of anything.
    pub fn said(&self, gateway: Gateway) -> Result<String> {
        Ok(self.running(gateway)?.said())
    }

    /// Those of `events` that are about any process here. The number of a namespace may have been that of another
    /// one before.
    pub fn own<'a>(&self, events: &'a [Event]) -> Result<Vec<&'a Event>> {
        let netns = self.namespace()?;
        let own = |event: &&Event| {
            let process = event.gateway.as_ref();
            process.is_some_and(
                |Process {
                     netns: of, cgroup, ..
                 }| {
                    *of == netns && (cgroup.is_empty() || *cgroup == self.cgroup)
                },
            )
        };
        Ok(events.iter().filter(own).collect())
    }

    /// Those of `events` that are about `gateway`.
    pub fn about<'a>(&self, gateway: Gateway, events: &'a [Event]) -> Result<Vec<&'a Event>> {
        let mut own = self.own(events)?;
        own.retain(|event| {
            let process = event.gateway.as_ref();
            process.is_some_and(|process| process.comm == gateway.program())
        });
        Ok(own)
    }

    /// The cases of `gateway`, with their upstreams.
    pub(super) fn cases(&self, gateway: Gateway) -> Result<&[(Case, Vec<SocketAddr>)]> {
        Ok(&self.running(gateway)?.cases)
    }

    /// Does something on the side of clients and upstreams.
    pub(super) fn far_side<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.far.enter(work)
    }

    fn running(&self, gateway: Gateway) -> Result<&Running> {
        let found = self.gateways.iter().find(|one| one.kind == gateway);
        found.with_context(|| format!("{gateway} does not run here"))
    }

    /// Plays one case: the ports of the clients, and what they saw.
    fn drive(
        &self,
        running: &Running,
        case: &Case,
        upstreams: &[SocketAddr],
    ) -> Result<Vec<(u16, Seen)>> {
        let ask = || self.ask(running.kind, case);
        let receive = |(client, mut session): (u16, Session)| Ok((client, session.receive()?));
        let first = || upstreams.first().context("the case has no upstream");
        match case.drive {
            Drive::Once | Drive::Post => Ok(vec![receive(ask()?)?]),
            Drive::Again => {
                let (one, upstream) = (receive(ask()?)?, Target::Inet(*first()?));
                wait_for("an upstream to close a connection", SOON, || {
                    Ok(self.upstreams.has_closed(&upstream).then_some(()))
                })?;
                Ok(vec![one, receive(ask()?)?])
            }
            Drive::Times(count) => (0..count).map(|_| receive(ask()?)).collect(),
            Drive::Busy(count) => {
                let waiting = (0..count).map(|_| ask()).collect::<Result<Vec<_>>>()?;
                self.wait_for_requests(*first()?, count)?;
                let last = receive(ask()?)?;
                let mut seen = waiting
                    .into_iter()
                    .map(receive)
                    .collect::<Result<Vec<_>>>()?;
                seen.push(last);
                Ok(seen)
            }
            Drive::Kill => {
                let waiting = ask()?;
                self.wait_for_requests(*first()?, 1)?;
                kill_process(running.worker()?, Signal::KILL)?;
                Ok(vec![receive(waiting)?])
            }
            Drive::Starve => {
                let worker = running.worker()?;
                running.wait_for_nobody(worker)?;
                let before = limit(worker, lowest_for(worker, 1)?)?;
                let seen = receive(ask()?);
                prlimit(Some(worker), Resource::Nofile, before)?;
                Ok(vec![seen?])
            }
            Drive::Until(words) => {
                let first = receive(ask()?)?;
                running.wait_for_log(words)?;
                Ok(vec![first, receive(ask()?)?])
            }
            Drive::After(words) => {
                running.wait_for_log(words)?;
                Ok(vec![receive(ask()?)?])
            }
        }
    }

    /// Sends a request for a case from the upstreams' side.
    fn ask(&self, gateway: Gateway, case: &Case) -> Result<(u16, Session)> {
        let mut session = self.far.enter(|| Session::open(gateway.address()))?;
        let posts = case.drive == Drive::Post;
        session.send(&Request {
            method: if posts { "POST" } else { "GET" },
            path: &format!("/{}", case.name),
            body: if posts { "order=1" } else { "" },
        })?;
        Ok((session.port()?, session))
    }

    fn wait_for_requests(&self, upstream: SocketAddr, count: usize) -> Result<()> {
        wait_for("requests to reach an upstream", SOON, || {
            Ok((self.upstreams.asked(upstream) >= count).then_some(()))
        })
    }
}

impl Running {
    fn start(
        kind: Gateway,
        setting: Setting,
        cases: Vec<(Case, Vec<SocketAddr>)>,
        cgroup: &Cgroup,
        [near, far]: [&Netns; 2],
    ) -> Result<Self> {
        let files = Directory::new()?;
        let directory = files.path();
        let config = directory.join("config");
        let log = (kind == Gateway::Haproxy && setting.workers > 1)
            .then(|| near.enter(receiver))
            .transpose()?;
        let log_to = match &log {
            Some(log) => log.local_addr()?.to_string(),
            None => "stdout".to_owned(),
        };
        let text = match kind {
            Gateway::Nginx => nginx::config(directory, setting, &cases),
            Gateway::Haproxy => haproxy::config(setting, &log_to, &cases),
            Gateway::Apache => apache::config(directory, &cases),
            Gateway::Caddy => caddy::config(directory, &cases),
        };
        fs::write(&config, text?)?;
        let mut command = match kind {
            Gateway::Caddy if setting.current_caddy => cgroup.command(caddy::current()?),
            _ => cgroup.command(kind.program()),
        };
        match kind {
            Gateway::Nginx => command.arg("-p").arg(directory).arg("-c"),
            // In the foreground, without a master process.
            Gateway::Haproxy => command.args(["-db", "-f"]),
            Gateway::Apache => command.args(["-DFOREGROUND", "-f"]),
            Gateway::Caddy => command
                .args(["run", "--adapter", "caddyfile", "--config"])
                .env("HOME", directory)
                .env("XDG_DATA_HOME", directory)
                .env("XDG_CONFIG_HOME", directory),
        };
        let output = |name| File::create(directory.join(name));
        if setting.slow_log {
            command.env("LD_PRELOAD", slow_log(directory)?);
        }
        // Workers and other children are ended with it.
        command.process_group(0);
        command
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output("stdout")?)
            .stderr(output("stderr")?);
        let child = near.enter(|| {
            let started = command.spawn();
            started.with_context(|| format!("could not start {kind}: installed?"))
        })?;
        let mut running = Self {
            kind,
            process: Program::of_group(child),
            cases,
            files,
            log,
        };
        wait_for("a gateway to listen", SOON, || {
            if let Some(status) = running.process.child().try_wait()? {
                bail!("{kind} ended with {status}: {}", running.said());
            }
            far.enter(|| Ok(TcpStream::connect(kind.address()).ok()))
        })?;
        Ok(running)
    }

    /// The process that serves.
    fn worker(&self) -> Result<Pid> {
        let pid = match self.kind {
            Gateway::Haproxy | Gateway::Caddy => self.process.pid(),
            Gateway::Nginx | Gateway::Apache => {
                let master = self.process.pid();
                wait_for("a worker", SOON, || Ok(children(master).pop()))?
            }
        };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.context("no process id")
    }

    /// Waits until a process has no client: a connection that it closes later would give it a descriptor back.
    fn wait_for_nobody(&self, process: Pid) -> Result<()> {
        let path = format!("/proc/{}/net/tcp", process.as_raw_nonzero());
        let port = format!(":{:04X}", self.kind.address().port());
        wait_for("a gateway to have no clients", SOON, || {
            let sockets = fs::read_to_string(&path)?;
            // Local address and state are the second and the fourth word. A process has closed what is in any other
            // state than ESTABLISHED and CLOSE_WAIT (`include/net/tcp_states.h`), or listens there.
            let is_open = |line: &str| {
                let mut words = line.split_whitespace();
                let local = words.nth(1).unwrap_or_default();
                local.ends_with(&port) && matches!(words.nth(1), Some("01" | "08"))
            };
            Ok((!sockets.lines().any(is_open)).then_some(()))
        })
    }

    fn logged(&self) -> Result<Vec<Logged>> {
        let file = match self.kind {
            Gateway::Haproxy => "stdout",
            Gateway::Nginx | Gateway::Apache | Gateway::Caddy => "access",
        };
        self.receive_log(file)?;
        let text = read_lines(&self.files, file);
        // Whom a gateway asked, it logs before it answers: what is read later holds it.
        let asked = match self.kind {
            Gateway::Nginx | Gateway::Haproxy => ByClient::new(),
            Gateway::Apache => access::apache_asked(&read_lines(&self.files, "errors")),
            Gateway::Caddy => access::caddy_asked(&read_lines(&self.files, "errors"))?,
        };
        let parse = |line: &str| match self.kind {
            Gateway::Nginx => Ok(access::nginx(line)),
            Gateway::Haproxy => Ok(access::haproxy(line, |name| self.server(name))),
            Gateway::Apache => Ok(access::apache(line, &asked)),
            Gateway::Caddy => access::caddy(line, &asked),
        };
        let logged = text.lines().map(parse);
        Ok(logged
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// Adds the lines that were sent since the last time to the file of this name.
    fn receive_log(&self, file: &str) -> Result<()> {
        let Some(log) = &self.log else {
            return Ok(());
        };
        let path = self.files.path().join(file);
        let mut file = OpenOptions::new().append(true).open(path)?;
        let mut room = [0; LINE_ROOM];
        loop {
            match log.recv(&mut room) {
                Ok(len) => {
                    let line = room.get(..len).unwrap_or_default();
                    file.write_all(line.trim_ascii_end())?;
                    file.write_all(b"\n")?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The server of this name: `s` and its port.
    fn server(&self, name: &str) -> Option<Target> {
        let port: u16 = name.strip_prefix('s')?.parse().ok()?;
        let mut all = self.cases.iter().flat_map(|(_, upstreams)| upstreams);
        all.find(|address| address.port() == port)
            .map(|address| Target::Inet(*address))
    }

    fn said(&self) -> String {
        ["stdout", "stderr", "errors", "access"]
            .map(|name| read(&self.files, name))
            .concat()
    }

    fn wait_for_log(&self, words: &str) -> Result<()> {
        wait_for("words in a gateway's log", SOON, || {
            Ok(self.said().contains(words).then_some(()))
        })
        .with_context(|| words.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.end(Signal::TERM);
    }
}

fn read(files: &Directory, name: &str) -> String {
    let path: &Path = files.path();
    fs::read(path.join(name))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The same without its last line, where that is half written.
fn read_lines(files: &Directory, name: &str) -> String {
    let mut text = read(files, name);
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    text
}

/// Limits the descriptors of a process; what the limit was.
fn limit(process: Pid, most: u64) -> Result<Rlimit> {
    let new = Rlimit {
        current: Some(most),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    prlimit(Some(process), Resource::Nofile, new).context("could not limit descriptors")
}

/// Takes the lines of a log: with threads, HAProxy leaves out lines of its standard output where several write at once.
fn receiver() -> Result<UdpSocket> {
    /// All that a crowd makes it log, with what the kernel needs for each line.
    const ROOM: usize = 8 << 20;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    set_socket_recv_buffer_size_force(&socket, ROOM)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Compiles the library that makes a gateway wait for its log.
fn slow_log(directory: &Path) -> Result<PathBuf> {
    const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/case/slow_log.c");
    let library = directory.join("slow_log.so");
    let compiled = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(SOURCE)
        .status()
        .context("could not start cc: installed?")?;
    ensure!(compiled.success(), "cc ended with {compiled}");
    Ok(library)
}

/// The limit under which a process can open `spare` more descriptors.
fn lowest_for(process: Pid, spare: usize) -> Result<u64> {
    let path = format!("/proc/{}/fd", process.as_raw_nonzero());
    let open: Vec<u64> = fs::read_dir(&path)
        .with_context(|| format!("could not read {path}"))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    (0..)
        .filter(|number| !open.contains(number))
        .nth(spare)
        .context("no free number")
}
