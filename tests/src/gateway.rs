//! Real gateways: nginx, HAProxy and Apache, each with a route for every scenario, run in the foreground
//! inside the lab's namespace with files of their own.

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::apache;
use crate::cleanup::{Directory, Program};
use crate::clock::wait_for;
use crate::netns::Netns;
use crate::scenario::Check;
use crate::socket::Target;
use crate::tls::gateway::Secure;

/// Time-out of the gateways for connecting, sending and reading, unless a route says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Time that a gateway gets to listen.
const START: Duration = Duration::from_secs(10);

/// Which gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// nginx with one worker.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Apache httpd, with one process that serves.
    Apache,
}

impl Kind {
    /// The gateways of the scenarios without TLS.
    pub const ALL: [Self; 2] = [Self::Nginx, Self::Haproxy];

    /// The gateways of the scenarios with TLS.
    pub const TLS: [Self; 3] = [Self::Nginx, Self::Haproxy, Self::Apache];

    /// Its program, and the name of its processes.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Apache => "apache2",
        }
    }

    /// Where its clients reach it, inside the lab's namespace.
    pub const fn address(self) -> SocketAddr {
        let port = match self {
            Self::Nginx => 8001,
            Self::Haproxy => 8002,
            Self::Apache => 8003,
        };
        SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// One path of a gateway and the upstream behind it.
#[derive(Clone, Debug)]
pub struct Route {
    /// The path without its slash, also the name of the backend.
    pub name: String,
    /// The one upstream.
    pub upstream: Target,
    /// Whether connections are pooled for the next request.
    pub keep_alive: bool,
    /// Time-out for connecting.
    pub connect_timeout: Duration,
    /// Time-out for the answer.
    pub read_timeout: Duration,
    /// How long nginx keeps a pooled connection for its next request.
    pub idle_timeout: Duration,
    /// The checks that HAProxy makes.
    pub check: Option<Check>,
    /// Source address and port of connections to the upstream, where it must not be the kernel's choice.
    pub source: Option<SocketAddr>,
    /// TLS to the upstream.
    pub tls: Option<Secure>,
}

/// A running gateway. Dropping it ends it.
#[derive(Debug)]
pub struct Gateway {
    kind: Kind,
    process: Program,
    workers: Vec<u32>,
    log: PathBuf,
    _files: Directory,
}

impl Gateway {
    /// Starts a gateway inside `namespace` and waits until it listens.
    pub fn start(kind: Kind, namespace: &Netns, routes: &[Route]) -> Result<Self> {
        let files = Directory::new()?;
        let config = files.path().join("config");
        let log = files.path().join("log");
        let text = match kind {
            Kind::Nginx => nginx_config(files.path(), routes),
            Kind::Haproxy => haproxy_config(routes),
            Kind::Apache => apache::config(files.path(), routes),
        };
        fs::write(&config, text?)
            .with_context(|| format!("could not write {}", config.display()))?;
        let mut command = Command::new(kind.program());
        match kind {
            Kind::Nginx => command
                .arg("-p")
                .arg(files.path())
                .arg("-e")
                .arg(&log)
                .arg("-c"),
            // In the foreground, without a master process.
            Kind::Haproxy => command.args(["-db", "-f"]),
            Kind::Apache => command.args(["-DFOREGROUND", "-f"]),
        };
        command
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = namespace.enter(|| {
            command
                .spawn()
                .with_context(|| format!("could not start {kind}: installed?"))
        })?;
        let mut process = Program::new(child);
        wait_for("a gateway to listen", START, || {
            if let Some(status) = process.child().try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("{kind} ended with {status}: {}", said.trim());
            }
            namespace.enter(|| Ok(TcpStream::connect(kind.address()).ok()))
        })?;
        let workers = match kind {
            Kind::Haproxy => vec![process.pid()],
            Kind::Nginx | Kind::Apache => {
                let master = process.pid();
                wait_for("a gateway's worker", START, || {
                    Ok(Some(children(master)).filter(|workers| !workers.is_empty()))
                })?
            }
        };
        Ok(Self {
            kind,
            process,
            workers,
            log,
            _files: files,
        })
    }

    /// Which gateway it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it logged: the lines in which one of `words` stands.
    pub fn log(&self, words: &[&str]) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines()
            .filter(|line| words.iter().any(|word| line.contains(word)))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The processes that talk to upstreams.
    pub fn workers(&self) -> &[u32] {
        &self.workers
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.end(Signal::TERM);
    }
}

/// Processes whose parent is `parent`.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything, but its closing bracket is the last one.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn nginx_config(directory: &Path, routes: &[Route]) -> Result<String> {
    let mut text = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {0}/pid;\nerror_log {0}/log info;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 1000000;\n",
        directory.display()
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "{kind}_temp_path {}/{kind};", directory.display())?;
    }
    let seconds = TIMEOUT.as_secs();
    writeln!(
        text,
        "proxy_http_version 1.1;\nproxy_next_upstream off;\n\
         proxy_send_timeout {seconds}s;\n\
         map $http_upgrade $hop_connection {{ default upgrade; '' close; }}"
    )?;
    for route in routes {
        let Route { name, upstream, .. } = route;
        let pool = if route.keep_alive {
            format!(
                "keepalive 8; keepalive_requests 1000000; keepalive_timeout {}ms;",
                route.idle_timeout.as_millis()
            )
        } else {
            String::new()
        };
        writeln!(text, "upstream {name} {{ server {upstream}; {pool} }}")?;
    }
    writeln!(text, "server {{ listen {};", Kind::Nginx.address())?;
    for route in routes {
        let Route {
            name,
            connect_timeout,
            read_timeout,
            ..
        } = route;
        let connection = if route.keep_alive {
            "\"\""
        } else {
            "$hop_connection"
        };
        let source = route
            .source
            .map_or_else(String::new, |source| format!("proxy_bind {source}; "));
        let pass = match &route.tls {
            None => format!("proxy_pass http://{name}; "),
            Some(tls) if tls.http2() => format!("grpc_pass grpcs://{name}; {}", tls.nginx()?),
            Some(tls) => format!("proxy_pass https://{name}; {}", tls.nginx()?),
        };
        writeln!(
            text,
            "location = /{name} {{ {pass}{source}\
             proxy_connect_timeout {}s; proxy_read_timeout {}s; proxy_set_header Connection {connection}; \
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host; }}",
            connect_timeout.as_secs(),
            read_timeout.as_secs()
        )?;
    }
    text.push_str("}\n}\n");
    Ok(text)
}

fn haproxy_config(routes: &[Route]) -> Result<String> {
    let mut text = format!(
        "global\n  maxconn 1000\n  nbthread 1\n\
         defaults\n  mode http\n  retries 0\n  option abortonclose\n  timeout client 60s\n\
         frontend lab\n  bind {}\n",
        Kind::Haproxy.address()
    );
    for Route { name, .. } in routes {
        writeln!(text, "  use_backend {name} if {{ path /{name} }}")?;
    }
    for route in routes {
        let Route { name, upstream, .. } = route;
        let reuse = if route.keep_alive { "always" } else { "never" };
        let close = if route.keep_alive {
            ""
        } else {
            "  option httpclose\n"
        };
        let source = route.source.map_or_else(String::new, |source| {
            // HAProxy wants a range, and takes one of a single port.
            format!(
                " source {}:{}-{}",
                source.ip(),
                source.port(),
                source.port()
            )
        });
        // A check may take as long as the time between two.
        let often = if route.tls.is_some() { "1s" } else { "50ms" };
        let (probe, check) = match route.check {
            None => ("", String::new()),
            Some(Check::Tcp) => ("", format!(" check inter {often} no-check-ssl")),
            Some(Check::Tls) => ("", format!(" check inter {often}")),
            Some(Check::Http) => (
                "  option httpchk GET /check\n",
                format!(" check inter {often}"),
            ),
        };
        let tls = route.tls.as_ref().map(Secure::haproxy).transpose()?;
        let tls = tls.unwrap_or_default();
        let upstream = match upstream {
            Target::Inet(address) => address.to_string(),
            Target::Unix(path) => format!("unix@{}", path.display()),
            Target::Name(name) => name.clone(),
        };
        // How long a check may take is not what the lab is about.
        writeln!(
            text,
            "backend {name}\n  http-reuse {reuse}\n{close}{probe}  timeout connect {}ms\n  \
             timeout server {}ms\n  timeout check 20s\n  server upstream {upstream}{source}{tls}{check}",
            route.connect_timeout.as_millis(),
            route.read_timeout.as_millis()
        )?;
    }
    Ok(text)
}
