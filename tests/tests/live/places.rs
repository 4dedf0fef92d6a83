//! Gateways in cgroups of their own, as units and containers have them: they are watched there, from their
//! first exchange on, and nobody else is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use hopscope_tests::agent::{Agent, Event};
use hopscope_tests::cgroup::Cgroup;
use hopscope_tests::cleanup::{Directory, Program};
use hopscope_tests::client::{Request, Seen, request};
use hopscope_tests::clock::wait_for;
use hopscope_tests::netns::Netns;
use hopscope_tests::socket::Target;
use hopscope_tests::status;
use hopscope_tests::upstream::{Behaviour, End, Upstreams};

use super::attached;

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);
const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 20_000);

/// What only the bytes of a response can tell.
const BROKEN: &[u8] = b"HTTP/1.1 200 OK\r\nX-Cache : miss\r\nContent-Length: 3\r\n\r\nok\n";
const CAUSE: &str = "http1.header_syntax";

/// Time that the agent and nginx get.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exchanges of others.
const OUTSIDE: u32 = 200;

/// nginx by a name that no other gateway on this host has, in a cgroup and a network namespace of its own, in
/// front of an upstream that answers with a malformed head.
struct Gateway {
    _process: Program,
    _upstreams: Upstreams,
    namespace: Netns,
    cgroup: Cgroup,
    _files: Directory,
}

impl Gateway {
    fn start(name: &str) -> Result<Self> {
        let files = Directory::new()?;
        let cgroup = Cgroup::new(name)?;
        let namespace = Netns::new(name)?;
        let upstreams = namespace
            .enter(|| Upstreams::start([(UPSTREAM, Behaviour::Reply(BROKEN, End::Fin))]))?;
        let directory = files.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {directory}/{kind};"))
            .join(" ");
        let config = files.path().join("config");
        fs::write(
            &config,
            format!(
                "daemon off; user root; worker_processes 1; pid {directory}/pid; error_log {directory}/log;\n\
                 events {{}}\nhttp {{ access_log off; {temporary}\n\
                 server {{ listen {LISTEN}; location / {{ proxy_pass http://{UPSTREAM}; }} }} }}\n"
            ),
        )?;
        let program = files.path().join(name);
        symlink("/usr/sbin/nginx", &program)?;
        let mut command = cgroup.command(&program);
        command
            .arg("-p")
            .arg(files.path())
            .arg("-e")
            .arg(files.path().join("log"))
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = namespace.enter(|| command.spawn().context("could not start nginx"))?;
        Ok(Self {
            _process: Program::new(child),
            _upstreams: upstreams,
            namespace,
            cgroup,
            _files: files,
        })
    }

    /// The first exchange that can be had.
    fn fail(&self) -> Result<Seen> {
        let get = Request {
            method: "GET",
            path: "/",
            body: "",
        };
        wait_for("nginx to answer", PATIENCE, || {
            self.namespace.enter(|| Ok(request(LISTEN, &get).ok()))
        })
    }
}

/// A name for gateways of one test: the kernel keeps fifteen bytes.
fn name(role: &str) -> String {
    format!("p{}{role}", std::process::id())
}

/// The agent's only event, once it is there.
fn only_event(agent: &Agent) -> Result<Event> {
    let events = wait_for("the event", PATIENCE, || {
        let events = agent.recent_events()?;
        Ok((!events.is_empty()).then_some(events))
    })?;
    let [event] = <[Event; 1]>::try_from(events).map_err(|all| anyhow::anyhow!("{all:?}"))?;
    Ok(event)
}

/// Checks that the failure was seen whole.
fn judge(agent: &Agent) -> Result<()> {
    let event = only_event(agent)?;
    ensure!(
        event.cause == CAUSE && event.proof == "proven",
        "{event}, {:?}",
        event.completeness
    );
    ensure!(
        event.upstream == Target::Inet(UPSTREAM),
        "{}",
        event.upstream
    );
    ensure!(!event.completeness.mid_stream, "{:?}", event.completeness);
    // What the client got is seen in the same place.
    ensure!(
        event.gateway_answer.is_some() || event.hidden_from_client,
        "no answer"
    );
    let counters = status::counters(agent)?;
    let unwatched = counters
        .iter()
        .find(|(name, _)| name == "live_hops_unwatched");
    ensure!(
        unwatched.is_some_and(|(_, value)| *value == 0),
        "{unwatched:?}"
    );
    Ok(())
}

#[test]
fn a_gateway_that_starts_later_in_a_fresh_cgroup_is_seen_whole() {
    let name = name("later");
    let agent = Agent::start_with(&["--gateway", &name]).unwrap();
    let place = status::probe(&agent, "segment_egress").unwrap();
    assert!(place.contains("none now"), "{place}");
    let gateway = Gateway::start(&name).unwrap();
    gateway.fail().unwrap();
    judge(&agent).unwrap();
    let place = status::probe(&agent, "segment_ingress").unwrap();
    assert_eq!(place, format!("to cgroup {}", gateway.cgroup.path()));
}

#[test]
fn packets_of_others_never_reach_the_programs() {
    let name = name("alone");
    let gateway = Gateway::start(&name).unwrap();
    let agent = Agent::start_with(&["--gateway", &name]).unwrap();
    let place = wait_for("the agent to attach", PATIENCE, || {
        Ok(status::probe(&agent, "segment_egress").ok())
    });
    assert_eq!(
        place.unwrap(),
        format!("to cgroup {}", gateway.cgroup.path())
    );
    // Nothing but this makes the kernel count runs.
    let counting = enable_stats(Stats::RunTime).unwrap();
    let before = runs(&agent).unwrap();
    for _ in 0..OUTSIDE {
        chat().unwrap();
    }
    // Health checks and the like of the gateway: none.
    assert_eq!(runs(&agent).unwrap(), before);
    gateway.fail().unwrap();
    assert!(runs(&agent).unwrap() > before);
    drop(counting);
    judge(&agent).unwrap();
}

/// How often the agent's segment programs ran so far.
fn runs(agent: &Agent) -> Result<u64> {
    let held = attached::of_process(agent.pid())?.programs;
    let mut all = 0;
    for program in loaded_programs() {
        let program = program?;
        let segments = program
            .name_as_str()
            .is_some_and(|name| name.starts_with("segment_"));
        if segments && held.contains(&program.id()) {
            all += program.run_count();
        }
    }
    Ok(all)
}

/// An exchange of this process with itself.
fn chat() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"ping")?;
    server.read_exact(&mut [0; 4])?;
    Ok(())
}
