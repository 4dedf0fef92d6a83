//! Names that real gateways look up: each that gives no address is named once, with the gateway's own
//! process, and names that are resolved are told with what fails behind them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hopscope_tests::agent::{Agent, Event, Events};
use hopscope_tests::cleanup::{Directory, Program};
use hopscope_tests::client::{Request, Seen, request};
use hopscope_tests::clock::{Deadline, wait_for};
use hopscope_tests::netns::Netns;
use hopscope_tests::resolver::Resolver;
use hopscope_tests::socket::Target;
use rustix::process::Signal;

const NGINX: ([u8; 4], u16) = ([127, 0, 0, 1], 8001);
const HAPROXY: ([u8; 4], u16) = ([127, 0, 0, 1], 8002);
/// The name server, and where it is where a stub resolver is in front of it.
const RESOLVER: Ipv4Addr = Ipv4Addr::LOCALHOST;
const BEHIND_STUB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Where names lead to; nothing listens on the second port.
const UPSTREAM: ([u8; 4], u16) = ([127, 0, 0, 2], 9000);
const CLOSED: u16 = 9001;

/// A name that does not exist, to see whether the agent tells.
const CANARY: &str = "nxdomain.canary.test";

/// A verdict takes this long where it is silence that is judged, and longer on a busy machine.
const VERDICT: Duration = Duration::from_secs(30);

/// A namespace with a name server, an upstream, and a gateway in front of it.
struct Bench {
    // In this order: the gateway ends before what it depends on.
    gateway: Program,
    stub: Option<Program>,
    _resolver: Resolver,
    namespace: Netns,
    files: Directory,
}

impl Bench {
    fn start(program: &str, config: &str, listens: ([u8; 4], u16)) -> Result<Self> {
        let namespace = Netns::new("dns")?;
        let resolver = Resolver::start(&namespace)?;
        Self::start_with(namespace, resolver, None, program, config, listens)
    }

    /// The same with a caching stub resolver in between: the gateway asks that, and it the name server.
    fn start_behind_stub(program: &str, config: &str, listens: ([u8; 4], u16)) -> Result<Self> {
        let namespace = Netns::new("stub")?;
        let resolver = Resolver::start_at(&namespace, BEHIND_STUB)?;
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
            ])
            .args(["--user=root", "--no-resolv", "--no-hosts"])
            .arg(format!("--server={BEHIND_STUB}"))
            .arg(format!("--listen-address={RESOLVER}"))
            .arg("--bind-interfaces")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = namespace.enter(|| command.spawn().context("could not start dnsmasq"))?;
        let stub = Program::new(child);
        wait_for("the stub to listen", Duration::from_secs(10), || {
            namespace.enter(|| Ok(TcpStream::connect((RESOLVER, 53)).ok()))
        })?;
        Self::start_with(namespace, resolver, Some(stub), program, config, listens)
    }

    fn start_with(
        namespace: Netns,
        resolver: Resolver,
        stub: Option<Program>,
        program: &str,
        config: &str,
        listens: ([u8; 4], u16),
    ) -> Result<Self> {
        let upstream = namespace.enter(|| Ok(TcpListener::bind(SocketAddr::from(UPSTREAM))?))?;
        // It ends with the test.
        thread::spawn(move || {
            for stream in upstream.incoming().flatten() {
                let _ = greet(stream);
            }
        });
        let files = Directory::new()?;
        let path = files.path().join("config");
        let directory = files.path().display().to_string();
        fs::write(&path, config.replace("DIRECTORY", &directory))?;
        let mut command = Command::new(program);
        match program {
            "nginx" => command.arg("-p").arg(files.path()).arg("-c"),
            _ => command.args(["-db", "-f"]),
        };
        command
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(files.path().join("stderr"))?);
        let child = namespace.enter(|| {
            let started = command.spawn();
            started.with_context(|| format!("could not start {program}: installed?"))
        })?;
        let bench = Self {
            gateway: Program::new(child),
            stub,
            _resolver: resolver,
            namespace,
            files,
        };
        wait_for("the gateway to listen", Duration::from_secs(10), || {
            bench
                .namespace
                .enter(|| Ok(TcpStream::connect(SocketAddr::from(listens)).ok()))
        })
        .with_context(|| {
            fs::read_to_string(bench.files.path().join("stderr")).unwrap_or_default()
        })?;
        Ok(bench)
    }

    fn get(&self, gateway: ([u8; 4], u16), path: &str) -> Result<Seen> {
        let get = Request {
            method: "GET",
            path,
            body: "",
        };
        self.namespace.enter(|| request(gateway.into(), &get))
    }

    /// The events about gateways in this namespace until `deadline`, or until `done` has seen enough.
    fn events(
        &self,
        events: &Events,
        deadline: Deadline,
        done: impl Fn(&[Event]) -> bool,
    ) -> Result<Vec<Event>> {
        let netns = self.namespace.inode()?;
        let mut seen = Vec::new();
        while !done(&seen)
            && let Some(event) = events.next(deadline)?
        {
            let own = event.gateway.as_ref().is_some_and(|own| own.netns == netns);
            if own && event.upstream != Target::Name(CANARY.to_owned()) {
                seen.push(event);
            }
        }
        Ok(seen)
    }

    /// Returns once the agent tells what happens here: a subscription begins some time after the command
    /// was started.
    fn watched(&self, agent: &Agent, events: &Events, gateway: ([u8; 4], u16)) -> Result<()> {
        let deadline = Deadline::after(VERDICT);
        while !deadline.passed() {
            self.get(gateway, &format!("/{CANARY}/80"))?;
            let soon = Deadline::after(Duration::from_secs(3));
            while let Some(event) = events.next(soon)? {
                if event.upstream == Target::Name(CANARY.to_owned()) {
                    return Ok(());
                }
            }
        }
        bail!("the agent tells nothing; it logged:\n{}", agent.log())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.gateway.end(Signal::TERM);
    }
}

/// Answers one request.
fn greet(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}

/// Path `/NAME/PORT` leads to that name and port.
const NGINX_CONFIG: &str = "daemon off;\nuser root;\nworker_processes 1;\npid DIRECTORY/pid;\nerror_log DIRECTORY/log info;\n\
     events { worker_connections 256; }\n\
     http {\naccess_log off;\nclient_body_temp_path DIRECTORY/a; proxy_temp_path DIRECTORY/b;\n\
     fastcgi_temp_path DIRECTORY/c; uwsgi_temp_path DIRECTORY/d; scgi_temp_path DIRECTORY/e;\n\
     resolver 127.0.0.1; resolver_timeout 3s;\n\
     server { listen 127.0.0.1:8001;\n\
     location ~ ^/(?<name>[^/]+)/(?<port>[0-9]+)$ { proxy_pass http://$name:$port/; } }\n}\n";

/// The cause of each name of the test's name server.
const FAILURES: [(&str, &str); 8] = [
    ("nxdomain.test", "dns.nxdomain"),
    ("nodata.test", "dns.nodata"),
    ("servfail.test", "dns.servfail"),
    ("refused.test", "dns.refused"),
    ("silence.test", "dns.timeout"),
    ("wrongid.test", "dns.bad_reply"),
    ("formerr.test", "dns.bad_reply"),
    ("endless.test", "dns.bad_reply"),
];

/// What an event is about, and its cause.
fn outcome(event: &Event) -> (String, String) {
    (event.upstream.to_string(), event.cause.clone())
}

fn sorted<'a>(outcomes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    let owned = |(name, cause): (&str, &str)| (name.to_owned(), cause.to_owned());
    let mut all: Vec<_> = outcomes.into_iter().map(owned).collect();
    all.sort();
    all
}

#[test]
fn every_name_that_nginx_cannot_resolve_is_named_once() {
    let bench = Bench::start("nginx", NGINX_CONFIG, NGINX).unwrap();
    let agent = Agent::start().unwrap();
    let events = agent.follow().unwrap();
    bench.watched(&agent, &events, NGINX).unwrap();

    for path in ["/healthy.test/9000", "/truncated.test/9000"] {
        assert_eq!(bench.get(NGINX, path).unwrap(), Seen::Status(200), "{path}");
    }
    let refused = bench.get(NGINX, &format!("/named.test/{CLOSED}")).unwrap();
    assert_eq!(refused, Seen::Status(502));

    let seen = thread::scope(|scope| {
        let bench = &bench;
        let ask = |(name, _)| scope.spawn(move || bench.get(NGINX, &format!("/{name}/80")));
        FAILURES
            .map(ask)
            .map(|asked| asked.join().unwrap().unwrap())
    });
    assert_eq!(seen, [Seen::Status(502); FAILURES.len()]);
    let wanted = FAILURES.len() + 1;
    let deadline = Deadline::after(VERDICT);
    let mut all = bench
        .events(&events, deadline, |all| all.len() >= wanted)
        .unwrap();
    // What comes behind the last one expected is one too many.
    let behind = Deadline::after(Duration::from_secs(3));
    all.extend(bench.events(&events, behind, |_| false).unwrap());

    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    let mut found: Vec<_> = all.iter().map(outcome).collect();
    found.sort();
    let upstream = format!("127.0.0.2:{CLOSED}");
    let expected = sorted(
        FAILURES
            .into_iter()
            .chain([(&*upstream, "tcp.connect_refused")]),
    );
    assert_eq!(
        found,
        expected,
        "{}\n{}",
        text.join("\n"),
        agent.recent().unwrap()
    );
    for event in &all {
        assert_eq!(event.gateway.as_ref().unwrap().comm, "nginx", "{event}");
    }
    let servfail = text.iter().find(|text| text.starts_with("dns.servfail"));
    assert!(
        servfail.unwrap().contains("No Reachable Authority"),
        "{servfail:?}"
    );
    let recent = agent.recent().unwrap();
    assert!(recent.contains("\"name\":\"named.test\""), "{recent}");
}

/// What nginx is told by a stub resolver, and what the stub was told by the name server behind it.
const BEHIND: [(&str, &str, &str, &str); 6] = [
    (
        "nxdomain.test",
        "dns.nxdomain",
        "answered NXDOMAIN",
        "answered NXDOMAIN",
    ),
    (
        "nodata.test",
        "dns.nodata",
        "answered NOERROR without an address",
        "answered NOERROR without an address",
    ),
    (
        "servfail.test",
        "dns.servfail",
        "answered SERVFAIL",
        "answered SERVFAIL, extended error 22",
    ),
    (
        "refused.test",
        "dns.refused",
        "answered REFUSED",
        "answered REFUSED",
    ),
    (
        "silence.test",
        "dns.timeout",
        "no answer from",
        "was not answered",
    ),
    // The stub takes no answer under another id, and goes on waiting.
    (
        "wrongid.test",
        "dns.timeout",
        "no answer from",
        "answered under id",
    ),
];

#[test]
fn a_name_that_the_hosts_stub_resolver_cannot_resolve_is_named_once() {
    let bench = Bench::start_behind_stub("nginx", NGINX_CONFIG, NGINX).unwrap();
    let agent = Agent::start().unwrap();
    let events = agent.follow().unwrap();
    bench.watched(&agent, &events, NGINX).unwrap();

    // Once from the name server, once from what the stub keeps, and once over TCP.
    for path in [
        "/healthy.test/9000",
        "/healthy.test/9000",
        "/truncated.test/9000",
    ] {
        assert_eq!(bench.get(NGINX, path).unwrap(), Seen::Status(200), "{path}");
    }
    let refused = bench.get(NGINX, &format!("/named.test/{CLOSED}")).unwrap();
    assert_eq!(refused, Seen::Status(502));
    let seen = thread::scope(|scope| {
        let bench = &bench;
        let ask = |name: &str| bench.get(NGINX, &format!("/{name}/80"));
        BEHIND
            .map(|(name, ..)| scope.spawn(move || ask(name)))
            .map(|asked| asked.join().unwrap().unwrap())
    });
    assert_eq!(seen, [Seen::Status(502); BEHIND.len()]);

    let wanted = BEHIND.len() + 1;
    let deadline = Deadline::after(VERDICT);
    let mut all = bench
        .events(&events, deadline, |all| all.len() >= wanted)
        .unwrap();
    // What comes behind the last one expected is one too many.
    let behind = Deadline::after(Duration::from_secs(3));
    all.extend(bench.events(&events, behind, |_| false).unwrap());

    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    let mut found: Vec<_> = all.iter().map(outcome).collect();
    found.sort();
    let upstream = format!("127.0.0.2:{CLOSED}");
    let causes = BEHIND.map(|(name, cause, ..)| (name, cause));
    let connect = [(&*upstream, "tcp.connect_refused")];
    let expected = sorted(causes.into_iter().chain(connect));
    assert_eq!(found, expected, "{}", text.join("\n"));
    let stub = bench.stub.as_ref().unwrap().pid();
    let asked = format!("dnsmasq[{stub}] had asked {BEHIND_STUB}:53 and was ");
    for event in &all {
        assert_eq!(event.gateway.as_ref().unwrap().comm, "nginx", "{event}");
        let name = event.upstream.to_string();
        let Some((.., told, behind)) = BEHIND.iter().find(|(known, ..)| *known == name) else {
            continue;
        };
        let decisive = &event.evidence[0].text;
        assert!(decisive.contains(told), "{event}");
        assert!(decisive.contains("127.0.0.1:53"), "{event}");
        let chain = event.evidence.iter().find(|one| one.what == "dns_behind");
        let chain = chain.unwrap_or_else(|| panic!("nothing of the stub's own: {event}"));
        assert!(chain.text.starts_with(&*asked), "{event}");
        assert!(chain.text.contains(behind), "{event}");
    }
    let recent = agent.recent().unwrap();
    assert!(recent.contains("\"name\":\"named.test\""), "{recent}");
}

/// HAProxy looks its servers' names up by itself, again and again.
const HAPROXY_CONFIG: &str = "global\n  maxconn 100\n  nbthread 1\n\
     resolvers lab\n  nameserver one 127.0.0.1:53\n  resolve_retries 1\n  timeout resolve 1s\n  timeout retry 1s\n\
     hold nx 1s\n  hold refused 1s\n  hold other 1s\n  hold obsolete 1s\n\
     defaults\n  mode http\n  timeout connect 2s\n  timeout client 5s\n  timeout server 2s\n\
     default-server resolvers lab init-addr none resolve-prefer ipv4\n\
     frontend lab\n  bind 127.0.0.1:8002\n  use_backend %[path,field(2,/)]\n\
     backend healthy.test\n  server one healthy.test:9000\n\
     backend nxdomain.test\n  server one nxdomain.test:9000\n\
     backend refused.test\n  server one refused.test:9000\n\
     backend nodata.test\n  server one nodata.test:9000\n";

#[test]
fn names_that_haproxy_looks_up_from_sockets_of_its_own_are_told() {
    let bench = Bench::start("haproxy", HAPROXY_CONFIG, HAPROXY).unwrap();
    // Its sockets are open by now.
    let agent = Agent::start().unwrap();
    let events = agent.follow().unwrap();
    let wanted = sorted([
        ("nxdomain.test", "dns.nxdomain"),
        ("nodata.test", "dns.nodata"),
        ("refused.test", "dns.refused"),
    ]);
    let deadline = Deadline::after(VERDICT);
    let covers = |all: &[Event]| {
        let mut outcomes: Vec<_> = all.iter().map(outcome).collect();
        outcomes.sort();
        outcomes.dedup();
        outcomes.len() >= wanted.len()
    };
    let all = bench.events(&events, deadline, covers).unwrap();
    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    let mut found: Vec<_> = all.iter().map(outcome).collect();
    found.sort();
    found.dedup();
    assert_eq!(found, wanted, "{}\n{}", text.join("\n"), agent.log());
    for event in &all {
        let gateway = event.gateway.as_ref().unwrap();
        assert_eq!(
            (gateway.pid, &*gateway.comm),
            (bench.gateway.pid(), "haproxy")
        );
    }
}
