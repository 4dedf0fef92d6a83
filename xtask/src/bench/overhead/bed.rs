//! The test bed: nginx as gateway in one network namespace, nginx as upstream in another, a veth pair
//! between them, and wrk as client beside the gateway. One request in a hundred fails at the upstream.
//!
//! Each of the three has a cgroup of its own, as units of systemd and containers do. The upstream has another name
//! than nginx: upstreams are no gateways, and run on other hosts.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use hopscope_tests::cgroup::Cgroup;
use hopscope_tests::cleanup::{Directory, Program};
use hopscope_tests::clock::wait_for;
use hopscope_tests::command::run;
use hopscope_tests::netns::Netns;
use wait4::Wait4 as _;

use super::usage;
use crate::exec::find_program;

/// The two ends of the veth pair.
const GATEWAY: &str = "10.78.0.1";
const UPSTREAM: &str = "10.78.0.2";

/// Ports of the upstream: answers, closes without an answer, answers over TLS, refuses.
const PLAIN: u16 = 8080;
const CLOSES: u16 = 8081;
const TLS: u16 = 8443;
const REFUSES: u16 = 9;

/// Time that nginx gets to listen.
const START: Duration = Duration::from_secs(10);

/// Connections of the client.
const CONNECTIONS: u32 = 64;

/// Connections of the client where it paces itself, and the pause of each before a request, in
/// milliseconds: ten thousand requests a second as long as an answer takes a millisecond.
const PACED: (u32, u32) = (120, 11);

/// What wrk's script prints before the numbers.
const RESULT: &str = "hopscope-bench";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Case {
    /// Connections to the upstream are kept; as fast as the machine can.
    KeepAlive,
    /// A connection for each request, ten thousand a second.
    NewConnections,
    /// The upstream speaks TLS, and its connections are kept.
    Tls,
}

impl Case {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep_alive",
            Self::NewConnections => "new_connections",
            Self::Tls => "tls",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::KeepAlive => "connections are kept, as fast as it goes",
            Self::NewConnections => "a connection for each request, 10,000 a second",
            Self::Tls => "TLS upstream, connections are kept, as fast as it goes",
        }
    }

    /// Where the gateway listens for it.
    const fn port(self) -> u16 {
        match self {
            Self::KeepAlive => 8001,
            Self::NewConnections => 8002,
            Self::Tls => 8003,
        }
    }
}

/// What one run of the load gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) requests: f64,
    pub(super) seconds: f64,
    pub(super) p99_us: f64,
    /// Processor time of gateway, upstream and client.
    pub(super) cpu_us: f64,
    /// Processor time of the gateway.
    pub(super) gateway_us: f64,
    /// Requests that failed at the upstream, by the gateway's own log.
    pub(super) failures: u64,
}

impl Load {
    pub(super) fn per_second(&self) -> f64 {
        self.requests / self.seconds
    }
}

/// The running test bed. Dropping it ends it.
pub(super) struct Bed {
    // The gateway first, so that it does not see its upstream end.
    gateway: Program,
    upstream: Program,
    near: Netns,
    _far: Netns,
    client: Cgroup,
    // Behind the processes that are in them.
    _cgroups: [Cgroup; 2],
    files: Directory,
}

impl Bed {
    pub(super) fn start() -> Result<Self> {
        hopscope_tests::cleanup::leftovers();
        let files = Directory::new()?;
        let near = Netns::new("bench-gateway")?;
        let far = Netns::new("bench-upstream")?;
        near.ip(&format!(
            "link add hop0 type veth peer name peer0 netns {}",
            far.name()
        ))?;
        for (namespace, interface, address) in [(&near, "hop0", GATEWAY), (&far, "peer0", UPSTREAM)]
        {
            namespace.ip(&format!("address add {address}/24 dev {interface}"))?;
            namespace.ip(&format!("link set {interface} up"))?;
            // A connection for each request uses many ports.
            namespace.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
            namespace.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        certificate(files.path())?;
        fs::write(files.path().join("load.lua"), script(None))?;
        fs::write(files.path().join("paced.lua"), script(Some(PACED.1)))?;
        let nginx_program = find_program("nginx").context("nginx is not installed")?;
        let other_name = files.path().join("backend");
        symlink(&nginx_program, &other_name)?;
        let cgroups = [Cgroup::new("upstream")?, Cgroup::new("gateway")?];
        let upstream = nginx(
            "upstream",
            cgroups[0].command(&other_name),
            &upstream_config(files.path()),
            files.path(),
            &far,
        )?;
        let gateway = nginx(
            "gateway",
            cgroups[1].command(&nginx_program),
            &gateway_config(files.path())?,
            files.path(),
            &near,
        )?;
        let bed = Self {
            gateway,
            upstream,
            near,
            _far: far,
            client: Cgroup::new("client")?,
            _cgroups: cgroups,
            files,
        };
        wait_for("nginx to answer", START, || {
            Ok(bed.load(Case::KeepAlive, 1).ok())
        })?;
        Ok(bed)
    }

    /// The namespace of gateway and client.
    pub(super) fn namespace(&self) -> &Netns {
        &self.near
    }

    /// Where files can be put.
    pub(super) fn files(&self) -> &Path {
        self.files.path()
    }

    /// Runs the load of `case`.
    pub(super) fn load(&self, case: Case, seconds: u64) -> Result<Load> {
        let (script, connections) = match case {
            Case::NewConnections => ("paced.lua", PACED.0),
            Case::KeepAlive | Case::Tls => ("load.lua", CONNECTIONS),
        };
        let output = self.files.path().join("wrk");
        let mut command = self.client.command("wrk");
        command
            .args(["--threads", "1", "--connections", &connections.to_string()])
            .args(["--duration", &format!("{seconds}s"), "--script"])
            .arg(self.files.path().join(script))
            .arg(format!("http://127.0.0.1:{}/", case.port()))
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(Stdio::null());
        let failed = self.failures(case)?;
        let gateway = usage::cpu_us(self.gateway.pid())?;
        let upstream = usage::cpu_us(self.upstream.pid())?;
        let client = self.near.enter(|| {
            let child = command
                .spawn()
                .context("could not start wrk: is it installed?")?;
            // The load ends by itself after its duration.
            Ok(child.wait4()?)
        })?;
        ensure!(client.status.success(), "wrk ended with {}", client.status);
        let client = client.rusage.utime + client.rusage.stime;
        let gateway_us = usage::cpu_us(self.gateway.pid())? - gateway;
        let upstream_us = usage::cpu_us(self.upstream.pid())? - upstream;
        let text = fs::read_to_string(&output)?;
        let numbers = result(&text)
            .with_context(|| format!("wrk gave no result but said: {}", text.trim()))?;
        let [requests, micros, p99_us, broken, other] = numbers;
        if requests < 1.0 || broken > 0.0 {
            bail!(
                "of {requests} requests {broken} broke on the client's side: {}",
                text.trim()
            );
        }
        let failures = self.failures(case)? - failed;
        ensure!(
            other > 0.0 && failures > 0,
            "no request failed, and one in a hundred was to: {}",
            text.trim()
        );
        Ok(Load {
            requests,
            seconds: micros / 1e6,
            p99_us,
            cpu_us: gateway_us + upstream_us + client.as_secs_f64() * 1e6,
            gateway_us,
            failures,
        })
    }

    /// Requests that failed at the upstream so far.
    fn failures(&self, case: Case) -> Result<u64> {
        let log = self.files.path().join(case.name());
        let text = fs::read_to_string(&log)
            .with_context(|| format!("could not read {}", log.display()))?;
        // A client that leaves at the end of a run gets 499, and no failure of an upstream.
        Ok(text.lines().filter(|line| *line == "502").count() as u64)
    }
}

/// The numbers that the script printed.
fn result(text: &str) -> Option<[f64; 5]> {
    let line = text.lines().find_map(|line| line.strip_prefix(RESULT))?;
    let numbers: Vec<f64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    numbers.try_into().ok()
}

/// The script of wrk: one request in a hundred goes to the path that fails.
fn script(pause: Option<u32>) -> String {
    let mut text = format!(
        r#"local good, bad
local count = 0
wrk.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
wrk.headers["Accept"] = "application/json, text/plain, */*"
wrk.headers["Accept-Language"] = "en-GB,en;q=0.5"
wrk.headers["Accept-Encoding"] = "gzip, deflate, br"
function init(args)
  good = wrk.format("GET", "/orders/4711?fields=id,state,total")
  bad = wrk.format("GET", "/fail")
end
function request()
  count = count + 1
  if count % 100 == 0 then return bad end
  return good
end
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("\n{RESULT} %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(99), errors.connect + errors.read + errors.write + errors.timeout, errors.status))
end
"#
    );
    if let Some(pause) = pause {
        let _ = writeln!(text, "function delay() return {pause} end");
    }
    text
}

fn nginx(
    role: &str,
    mut command: Command,
    config: &str,
    files: &Path,
    namespace: &Netns,
) -> Result<Program> {
    let path = files.join(format!("{role}.conf"));
    fs::write(&path, config)?;
    let log = files.join(format!("{role}.log"));
    command
        .arg("-p")
        .arg(files)
        .arg("-e")
        .arg(&log)
        .arg("-c")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = namespace.enter(|| {
        command
            .spawn()
            .context("could not start nginx: is it installed?")
    })?;
    let mut program = Program::new(child);
    let pid: PathBuf = files.join(format!("{role}.pid"));
    wait_for("nginx to start", START, || {
        if let Some(status) = program.child().try_wait()? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("nginx ended with {status}: {}", said.trim());
        }
        Ok(pid.exists().then_some(()))
    })?;
    Ok(program)
}

/// What both configurations begin with.
fn common(role: &str, files: &Path) -> String {
    let files = files.display();
    let mut text = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {files}/{role}.pid;\n\
         error_log {files}/{role}.log crit;\nevents {{ worker_connections 4096; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 1000000000;\nkeepalive_timeout 300s;\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "{kind}_temp_path {files}/{role}-{kind};");
    }
    text
}

fn upstream_config(files: &Path) -> String {
    let body = r#"{"id":4711,"state":"paid","total":129.90,"currency":"EUR"}"#.repeat(8);
    let mut text = common("upstream", files);
    let answer = format!("default_type application/json; location / {{ return 200 '{body}'; }}");
    let _ = write!(
        text,
        "server {{ listen {UPSTREAM}:{PLAIN} backlog=4096; {answer} }}\n\
         server {{ listen {UPSTREAM}:{CLOSES} backlog=4096; location / {{ return 444; }} }}\n\
         server {{ listen {UPSTREAM}:{TLS} ssl backlog=4096; ssl_certificate {0}/cert.pem; \
         ssl_certificate_key {0}/key.pem; {answer} }}\n}}\n",
        files.display()
    );
    text
}

fn gateway_config(files: &Path) -> Result<String> {
    let mut text = common("gateway", files);
    writeln!(
        text,
        "log_format status '$status';\nproxy_http_version 1.1;\nproxy_next_upstream off;\n\
         upstream plain {{ server {UPSTREAM}:{PLAIN}; keepalive {CONNECTIONS}; keepalive_requests 1000000000; }}\n\
         upstream tls {{ server {UPSTREAM}:{TLS}; keepalive {CONNECTIONS}; keepalive_requests 1000000000; }}"
    )?;
    for case in Case::value_variants() {
        let kept = r#"proxy_set_header Connection "";"#;
        let (good, bad) = match case {
            Case::KeepAlive => (
                format!("{kept} proxy_pass http://plain;"),
                format!("proxy_pass http://{UPSTREAM}:{CLOSES};"),
            ),
            Case::NewConnections => (
                format!("proxy_pass http://{UPSTREAM}:{PLAIN};"),
                format!("proxy_pass http://{UPSTREAM}:{CLOSES};"),
            ),
            // What fails inside TLS cannot be seen from outside: here the upstream refuses.
            Case::Tls => (
                format!("{kept} proxy_pass https://tls;"),
                format!("proxy_pass https://{UPSTREAM}:{REFUSES};"),
            ),
        };
        writeln!(
            text,
            "server {{ listen 127.0.0.1:{} backlog=4096; location / {{ {good} }} \
             location = /fail {{ access_log {}/{} status; {bad} }} }}",
            case.port(),
            files.display(),
            case.name()
        )?;
    }
    text.push_str("}\n");
    Ok(text)
}

/// A certificate that nobody verifies, for the upstream that speaks TLS.
fn certificate(files: &Path) -> Result<()> {
    let path = |name: &str| files.join(name).display().to_string();
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=upstream.test",
            "-days",
            "2",
            "-keyout",
            &path("key.pem"),
            "-out",
            &path("cert.pem"),
        ],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_script_are_read() {
        let text = format!("Running 3s test\n\n{RESULT} 100 3000000 2500 0 1\n");
        assert_eq!(result(&text), Some([100.0, 3_000_000.0, 2500.0, 0.0, 1.0]));
        assert_eq!(result("Running 3s test"), None);
    }

    #[test]
    fn the_paced_script_pauses() {
        assert!(script(Some(7)).contains("function delay() return 7 end"));
        assert!(!script(None).contains("delay"));
    }
}
