//! One lab: two namespaces joined by a veth pair, real gateways on one side, upstreams on the other.
//! Every pair of scenario and gateway has an upstream port of its own, so all can run at once and every
//! event still says which it belongs to.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cleanup::{self, Directory, Program};
use crate::client::{Request, Seen, Session, request};
use crate::clock::wait_for;
use crate::command::run_with_input;
use crate::gateway::{Gateway, Kind, Route};
use crate::netns::Netns;
use crate::scenario::{
    Departure, Drive, GATEWAY, GATEWAY_V6, Place, Scenario, Trick, UPSTREAM, UPSTREAM_V6,
};
use crate::socket::{Sockets, Target};
use crate::tls::gateway::Secure;
use crate::tls::openssl;
use crate::tls::pki::Pki;
use crate::upstream::{Behaviour, Upstreams};

/// The gateways' end of the veth pair.
const INTERFACE: &str = "hop0";

/// First upstream port. Each scenario takes a block of ten.
const FIRST_PORT: u16 = 20_000;

/// First source port for scenarios that fix it; outside the range that Linux chooses from.
const FIRST_SOURCE_PORT: u16 = 10_000;

/// Time that an upstream gets to close a connection after its answer.
const CLOSE: Duration = Duration::from_secs(5);

/// How long a client makes its gateway wait: longer than the 200 ms below which the agent blames nobody.
const AWAY: Duration = Duration::from_millis(400);

/// A running lab. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    // In this order: the gateways end before their upstreams, and all of it before the namespaces.
    gateways: Vec<Gateway>,
    upstreams: Upstreams,
    _programs: Vec<Program>,
    targets: HashMap<(&'static str, Kind), Target>,
    near: Netns,
    _far: Netns,
    _sockets: Sockets,
    _files: Directory,
    _pki: Option<Pki>,
}

impl Lab {
    /// Builds the network and starts upstreams and gateways for `scenarios`.
    pub fn start(kinds: &[Kind], scenarios: &[Scenario]) -> Result<Self> {
        cleanup::leftovers();
        let near = Netns::new("gateway")?;
        let far = Netns::new("upstream")?;
        connect(&near, &far).context("could not join the lab's namespaces")?;

        let files = Directory::new()?;
        let speaks_tls = |one: &Scenario| {
            let serves = matches!(one.behaviour, Some(Behaviour::Tls(_)));
            one.tls.is_some() || one.openssl.is_some() || serves
        };
        let pki = scenarios.iter().any(speaks_tls).then(Pki::new);
        let pki = pki
            .transpose()
            .context("could not make the lab's certificates")?;
        let mut programs = Vec::new();
        let mut sockets = Vec::new();
        let mut targets = HashMap::new();
        let mut routes: HashMap<Kind, Vec<Route>> = HashMap::new();
        let mut served = Vec::new();
        let mut tricks: HashMap<Trick, Vec<u16>> = HashMap::new();
        for (index, scenario) in (0_u16..).zip(scenarios) {
            for (offset, kind) in (0_u16..).zip(Kind::TLS) {
                let upstream =
                    SocketAddr::new(scenario.place.address(), FIRST_PORT + 10 * index + offset);
                let source =
                    SocketAddr::new(IpAddr::V4(GATEWAY), FIRST_SOURCE_PORT + 10 * index + offset);
                let target = match scenario.socket {
                    None => upstream.into(),
                    Some(socket) => {
                        let path = files.path().join(format!("{}-{kind}", scenario.name));
                        sockets.push((path.clone(), socket));
                        Target::Unix(path)
                    }
                };
                targets.insert((scenario.name, kind), target.clone());
                routes.entry(kind).or_default().push(Route {
                    name: scenario.name.to_owned(),
                    upstream: target,
                    keep_alive: scenario.keep_alive(),
                    connect_timeout: scenario.connect_timeout(),
                    read_timeout: scenario.read_timeout(),
                    idle_timeout: scenario.idle_timeout(),
                    check: scenario.check,
                    source: scenario.fixed_source().then_some(source),
                    tls: scenario
                        .tls
                        .zip(pki.as_ref())
                        .map(|(client, pki)| Secure::new(client, pki)),
                });
                if kinds.contains(&kind) {
                    programs.extend(scenario.openssl.map(|server| (upstream, server)));
                }
                served.extend(scenario.behaviour.map(|behaviour| (upstream, behaviour)));
                if let Some(trick) = scenario.trick {
                    tricks.entry(trick).or_default().push(upstream.port());
                }
            }
        }
        far.enter(|| run_with_input("nft", &["-f", "-"], &ruleset(&tricks)?))
            .context("could not set up the lab's packet rules")?;
        let sockets = Sockets::start(&sockets)?;
        let upstreams = far.enter(|| Upstreams::start_with(served, pki.as_ref()))?;
        let programs = match &pki {
            Some(pki) => openssl::start(&programs, &far, pki, files.path())?,
            None => Vec::new(),
        };
        let gateways = kinds
            .iter()
            .map(|kind| Gateway::start(*kind, &near, routes.get(kind).map_or(&[], Vec::as_slice)))
            .collect::<Result<_>>()?;
        Ok(Self {
            gateways,
            upstreams,
            _programs: programs,
            targets,
            near,
            _far: far,
            _sockets: sockets,
            _files: files,
            _pki: pki,
        })
    }

    /// The running gateways.
    pub fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// The namespace of the gateways.
    pub fn namespace(&self) -> &Netns {
        &self.near
    }

    /// Where `kind` looks for the upstream of `scenario`.
    pub fn upstream(&self, scenario: &Scenario, kind: Kind) -> Result<Target> {
        self.targets
            .get(&(scenario.name, kind))
            .cloned()
            .with_context(|| format!("the lab was started without {}", scenario.name))
    }

    /// Plays `scenario` through `kind`, a pair for once, and returns what the client saw last.
    pub fn play(&self, scenario: &Scenario, kind: Kind) -> Result<Seen> {
        let path = format!("/{}", scenario.name);
        let upstream = self.upstream(scenario, kind)?;
        let closed = || Ok(self.upstreams.has_closed(&upstream).then_some(()));
        self.near
            .enter(|| drive(kind.address(), &path, scenario.drive, closed))
            .with_context(|| format!("{} through {kind}", scenario.name))
    }
}

fn drive(
    gateway: SocketAddr,
    path: &str,
    drive: Drive,
    closed: impl Fn() -> Result<Option<()>>,
) -> Result<Seen> {
    let get = Request {
        method: "GET",
        path,
        body: "",
    };
    match drive {
        Drive::Once => request(gateway, &get),
        Drive::Again => {
            let first = request(gateway, &get)?;
            if first != Seen::Status(200) {
                bail!("the first request was to succeed and gave {first}");
            }
            wait_for("the upstream to close", CLOSE, closed)?;
            // A POST, because gateways repeat a GET by themselves.
            request(
                gateway,
                &Request {
                    method: "POST",
                    path,
                    body: "order=1",
                },
            )
        }
        Drive::Idle => {
            let seen = request(gateway, &get)?;
            wait_for("the gateway to close an idle connection", CLOSE, closed)?;
            Ok(seen)
        }
        Drive::Twice => {
            let first = request(gateway, &get)?;
            if first != Seen::Status(200) {
                bail!("the first request was to succeed and gave {first}");
            }
            request(gateway, &get)
        }
        Drive::GoAway => {
            let mut session = Session::open(gateway)?;
            session.send(&get)?;
            let seen = session.receive_up_to(1)?;
            Ok(match seen {
                Seen::Cut(status) => Seen::Status(status),
                other => other,
            })
        }
        Drive::Leave(departure) => {
            let mut session = Session::open(gateway)?;
            session.send(&get)?;
            thread::sleep(AWAY);
            session.leave(departure == Departure::Reset)?;
            wait_for("the gateway to give the upstream up", CLOSE, closed)?;
            Ok(Seen::Nothing)
        }
        Drive::Crawl => {
            let mut session = Session::open(gateway)?;
            session.send(&get)?;
            thread::sleep(AWAY);
            session.receive()
        }
        Drive::Upgrade => Session::open(gateway)?.upgrade(path),
        Drive::Many(count) => {
            let mut session = Session::open(gateway)?;
            let mut last = Seen::Nothing;
            for number in 1..=count {
                session.send(&get)?;
                last = session.receive()?;
                if last != Seen::Status(200) {
                    bail!("request {number} of {count} gave {last}");
                }
            }
            Ok(last)
        }
    }
}

/// Joins the two namespaces, and makes the places at which no upstream can be reached.
pub(crate) fn connect(near: &Netns, far: &Netns) -> Result<()> {
    near.ip(&format!(
        "link add {INTERFACE} type veth peer name peer0 netns {}",
        far.name()
    ))?;
    for (namespace, interface, v4, v6) in [
        (near, INTERFACE, GATEWAY, GATEWAY_V6),
        (far, "peer0", UPSTREAM, UPSTREAM_V6),
    ] {
        namespace.ip(&format!("address add {v4}/24 dev {interface}"))?;
        // Duplicate address detection would leave the address unusable for the first second.
        namespace.ip(&format!("address add {v6}/64 dev {interface} nodad"))?;
        namespace.ip(&format!("link set {interface} up"))?;
    }
    near.ip(&format!(
        "route add {}/24 via {UPSTREAM}",
        network(Place::BehindRouter)
    ))?;
    near.ip(&format!(
        "route add prohibit {}/24",
        network(Place::Prohibited)
    ))?;
    near.ip(&format!(
        "route add blackhole {}/24",
        network(Place::Blackholed)
    ))?;
    // The upstreams' side is also the router that answers for a network it cannot reach.
    far.sysctl("ipv4/ip_forward", "1")?;
    far.sysctl("ipv4/icmp_ratelimit", "0")?;
    far.ip(&format!(
        "route add unreachable {}/24",
        network(Place::BehindRouter)
    ))
}

/// The /24 around a place.
fn network(place: Place) -> IpAddr {
    match place.address() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, 0])
        }
        v6 @ IpAddr::V6(_) => v6,
    }
}

/// The packet rules of the upstreams' namespace.
pub(crate) fn ruleset(tricks: &HashMap<Trick, Vec<u16>>) -> Result<String> {
    let mut sets = String::new();
    let mut input = String::new();
    let mut output = String::new();
    for trick in Trick::ALL {
        let Some(ports) = tricks.get(&trick) else {
            continue;
        };
        let ports = ports
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        // A connection is known by its ports: there is one gateway address.
        let once = |name: &str| {
            format!("tcp dport . tcp sport != @{name} add @{name} {{ tcp dport . tcp sport }} drop")
        };
        match trick {
            Trick::DropAll => writeln!(input, "tcp dport {{ {ports} }} drop")?,
            Trick::DropFirstSyn => {
                writeln!(
                    sets,
                    "set syns {{ type inet_service . inet_service; flags dynamic; }}"
                )?;
                writeln!(
                    input,
                    "tcp dport {{ {ports} }} tcp flags & (syn | ack) == syn {}",
                    once("syns")
                )?;
            }
            Trick::DropFirstData => {
                writeln!(
                    sets,
                    "set data {{ type inet_service . inet_service; flags dynamic; }}"
                )?;
                // Longer than any bare acknowledgement, shorter than any request.
                writeln!(
                    input,
                    "tcp dport {{ {ports} }} meta length > 90 {}",
                    once("data")
                )?;
            }
            Trick::DropFin => {
                writeln!(
                    output,
                    "tcp sport {{ {ports} }} tcp flags & fin == fin drop"
                )?;
            }
        }
    }
    Ok(format!(
        "table inet lab {{\n{sets}\
         chain input {{ type filter hook input priority 0;\n{input}}}\n\
         chain output {{ type filter hook output priority 0;\n{output}}}\n}}\n"
    ))
}
