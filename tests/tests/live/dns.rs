//! Names that real gateways look up: each that gives no address is named once, with the gateway's own
//! process, and names that are resolved are told with what fails behind them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hopscope_tests::agent::{Agent, Event, Events};
use hopscope_tests::cleanup::{Directory, Program};
use hopscope_tests::client::{Request, Seen, request};
use hopscope_tests::clock::{Deadline, wait_for};
use hopscope_tests::netns::Netns;
use hopscope_tests::resolver::Resolver;
use rustix::process::Signal;

const NGINX: ([u8; 4], u16) = ([127, 0, 0, 1], 8001);
const HAPROXY: ([u8; 4], u16) = ([127, 0, 0, 1], 8002);
/// Where names lead to; nothing listens on the second port.
const UPSTREAM: ([u8; 4], u16) = ([127, 0, 0, 2], 9000);
const CLOSED: u16 = 9001;

/// A verdict takes this long where it is silence that is judged, and longer on a busy machine.
const VERDICT: Duration = Duration::from_secs(30);

/// A namespace with a name server, an upstream, and a gateway in front of it.
struct Bench {
    // In this order: the gateway ends before what it depends on.
    gateway: Program,
    _resolver: Resolver,
    namespace: Netns,
    files: Directory,
}

impl Bench {
    fn start(program: &str, config: &str, listens: ([u8; 4], u16)) -> Result<Self> {
        let namespace = Netns::new("dns")?;
        let resolver = Resolver::start(&namespace)?;
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
            _resolver: resolver,
            namespace,
            files,
        };
        wait_for("the gateway to listen", Duration::from_secs(10), || {
            bench
                .namespace
                .enter(|| Ok(TcpStream::connect(SocketAddr::from(listens)).ok()))
        })
        .with_context(|| fs::read_to_string(bench.files.path().join("stderr")).unwrap_or_default())?;
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

    /// The events about gateways in this namespace, until `done` has seen enough of them.
    fn events(&self, events: &Events, done: impl Fn(&[Event]) -> bool) -> Result<Vec<Event>> {
        let netns = self.namespace.inode()?;
        let deadline = Deadline::after(VERDICT);
        let mut seen = Vec::new();
        while !done(&seen)
            && let Some(event) = events.next(deadline)?
        {
            if event.gateway.as_ref().is_some_and(|gateway| gateway.netns == netns) {
                seen.push(event);
            }
        }
        Ok(seen)
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

#[test]
fn every_name_that_nginx_cannot_resolve_is_named_once() {
    let bench = Bench::start("nginx", NGINX_CONFIG, NGINX).unwrap();
    let mut agent = Agent::start().unwrap();
    let events = agent.follow().unwrap();
    // The subscription begins some time after the command was started.
    let ready = Deadline::after(VERDICT);
    let netns = bench.namespace.inode().unwrap();
    let is_canary = |event: &Event| {
        let own = event.gateway.as_ref().is_some_and(|own| own.netns == netns);
        own && event.upstream.name() == Some("canary.nxdomain.test")
    };
    loop {
        assert!(!ready.passed(), "nothing is told; {}", agent.log());
        bench.get(NGINX, "/nxdomain.canary.test/80").unwrap();
        let soon = Deadline::after(Duration::from_secs(3));
        if let Some(event) = events.next(soon).unwrap()
            && event.upstream.name() == Some("nxdomain.canary.test")
        {
            break;
        }
    }
    let seen = thread::scope(|scope| {
        let requests = FAILURES.map(|(name, _)| {
            let bench = &bench;
            scope.spawn(move || bench.get(NGINX, &format!("/{name}/80")))
        });
        requests.map(|request| request.join().unwrap().unwrap())
    });
    assert_eq!(seen, [Seen::Status(502); FAILURES.len()]);
    for path in ["/healthy.test/9000", "/truncated.test/9000"] {
        assert_eq!(bench.get(NGINX, path).unwrap(), Seen::Status(200), "{path}");
    }
    assert_eq!(
        bench.get(NGINX, &format!("/named.test/{CLOSED}")).unwrap(),
        Seen::Status(502)
    );
    let told = |all: &[Event]| {
        let others = all.iter().filter(|event| !is_canary(event));
        others.count() > FAILURES.len()
    };
    let mut all = bench.events(&events, told).unwrap();
    // What comes behind the last expected one is one too many.
    all.extend(bench.events_for(&events, Duration::from_secs(3)).unwrap());
    all.retain(|event| event.upstream.name() != Some("nxdomain.canary.test"));
    let mut found: Vec<(String, String)> = all
        .iter()
        .map(|event| (event.upstream.name().unwrap_or("?").to_owned(), event.cause.clone()))
        .collect();
    found.sort();
    let mut expected: Vec<(String, String)> = FAILURES
        .iter()
        .chain(&[("named.test", "tcp.connect_refused")])
        .map(|(name, cause)| ((*name).to_owned(), (*cause).to_owned()))
        .collect();
    expected.sort();
    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{}", text.join("\n"));
    for event in &all {
        let gateway = event.gateway.as_ref().unwrap();
        assert_eq!(gateway.comm, "nginx", "{event}");
    }
    let servfail = all.iter().find(|event| event.cause == "dns.servfail").unwrap();
    assert!(servfail.to_string().contains("No Reachable Authority"), "{servfail}");
    agent.end(Signal::TERM).unwrap();
}
