//! What OpenSSL says inside a gateway: real gateways towards `openssl s_server`.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use hopscope::live::LiveConfig;
use hopscope::model::{HopId, LibraryFact, Signal};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::support::{DEADLINE, Seen, Watch, now};

/// `ERR_LIB_SSL`.
const SSL: u32 = 20;

const fn raised(reason: u32) -> LibraryFact {
    LibraryFact::Raised {
        library: SSL,
        reason,
    }
}

const fn refused(code: u32) -> LibraryFact {
    LibraryFact::Verified { code, asked: false }
}

const fn asked(code: u32) -> LibraryFact {
    LibraryFact::Verified { code, asked: true }
}

/// What it raises after a refusal.
const VERIFY_FAILED: LibraryFact = raised(134);
/// The name in the certificates.
const NAME: &str = "upstream.test";

/// A process that ends with the test.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `openssl s_server` with one of the certificates, and how a gateway is to reach it.
pub(super) struct Upstream {
    pub(super) port: u16,
    version: &'static str,
    name: &'static str,
    _server: Option<Running>,
}

/// Certificates, and the servers that show them.
pub(super) struct Bed {
    files: TempDir,
    pub(super) upstreams: Vec<Upstream>,
}

impl Bed {
    pub(super) fn new() -> Self {
        let bed = Self {
            files: TempDir::new().unwrap(),
            upstreams: Vec::new(),
        };
        let (ca, pem) = authority("known");
        bed.write("ca.pem", &pem);
        bed.leaf("good", 2999, Some(&ca));
        bed.leaf("expired", 2001, Some(&ca));
        bed.leaf("self", 2999, None);
        bed.leaf("untrusted", 2999, Some(&authority("unknown").0));
        bed
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Makes a program called `name` of a source beside this one, with a static OpenSSL in it.
    pub(super) fn compile(&self, source: &str, name: &str) {
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel");
        let compiled = Command::new("cc")
            .args(["-static", "-w", "-o"])
            .arg(self.path(name))
            .arg(Path::new(sources).join(source))
            .args(["-lssl", "-lcrypto"])
            .status()
            .unwrap();
        assert!(compiled.success(), "cc with a static OpenSSL is needed");
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn leaf(&self, name: &str, until: i32, issuer: Option<&Issuer<'_, KeyPair>>) {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        leaf.not_before = date_time_ymd(2000, 1, 1);
        leaf.not_after = date_time_ymd(until, 1, 1);
        let leaf = match issuer {
            Some(issuer) => leaf.signed_by(&key, issuer),
            None => leaf.self_signed(&key),
        };
        let text = leaf.unwrap().pem() + &key.serialize_pem();
        self.write(&format!("{name}.pem"), &text);
    }

    /// Starts a server and returns its number, which is its path at the gateway.
    pub(super) fn serve(
        &mut self,
        certificate: &str,
        version: &'static str,
        flags: &[&str],
    ) -> usize {
        let pem = self.path(&format!("{certificate}.pem"));
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"])
            .arg(&pem)
            .arg("-key")
            .arg(&pem)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines
            .find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(ToOwned::to_owned))
            .unwrap();
        let port = line.rsplit(':').next().unwrap().trim().parse().unwrap();
        thread::spawn(move || lines.for_each(drop));
        self.add(port, version, Some(Running(child)))
    }

    fn add(&mut self, port: u16, version: &'static str, server: Option<Running>) -> usize {
        self.upstreams.push(Upstream {
            port,
            version,
            name: NAME,
            _server: server,
        });
        self.upstreams.len() - 1
    }
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, name);
    let pem = ca.self_signed(&key).unwrap().pem();
    (Issuer::new(ca, key), pem)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
}

/// A gateway with a name of its own and a path for each upstream.
pub(super) struct Gateway {
    name: String,
    port: u16,
    _process: Running,
}

impl Gateway {
    pub(super) fn start(kind: Kind, bed: &Bed) -> Self {
        let (program, short) = match kind {
            Kind::Nginx => ("/usr/sbin/nginx", "ng"),
            Kind::Haproxy => ("/usr/sbin/haproxy", "ha"),
        };
        let name = format!("{short}{}-{}", std::process::id(), bed.upstreams[0].port);
        fs::copy(program, bed.path(&name)).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let config = match kind {
            Kind::Nginx => nginx(bed, port),
            Kind::Haproxy => haproxy(bed, port),
        };
        bed.write("config", &config);
        let mut command = Command::new(bed.path(&name));
        match kind {
            Kind::Nginx => command.args(["-e", "stderr", "-c"]),
            Kind::Haproxy => command.args(["-db", "-f"]),
        };
        let process = command
            .arg(bed.path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let gateway = Self {
            name,
            port,
            _process: Running(process),
        };
        let start = now();
        while TcpStream::connect(gateway.address()).is_err() {
            assert!(start.elapsed() < DEADLINE, "{kind:?} does not listen");
            thread::yield_now();
        }
        gateway
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Asks for what is behind an upstream; the status of the answer comes back.
    pub(super) fn get(&self, upstream: usize) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!("GET /{upstream}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// A watch that has found the gateway's libraries.
    fn watch(&self) -> Watch {
        self.watch_with(false)
    }

    /// The same, perhaps one that reads what is inside TLS.
    pub(super) fn watch_with(&self, tls_plaintext: bool) -> Watch {
        let mut watch = Watch::start(&LiveConfig {
            gateways: vec![self.name.clone()],
            tls_plaintext,
            ..LiveConfig::default()
        });
        watch.until("libraries", |watch| {
            let rows = watch.source.probes();
            ["libssl", "libcrypto"].iter().all(|library| {
                rows.iter().any(|row| {
                    row.name == "tls_library"
                        && row.attached
                        && row.reason.contains(&self.name)
                        && row.reason.contains(library)
                })
            })
        });
        watch
    }
}

fn nginx(bed: &Bed, port: u16) -> String {
    let mut text = format!(
        "daemon off;\nmaster_process off;\npid {}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
         proxy_http_version 1.1;\nserver {{\nlisten 127.0.0.1:{port};\nproxy_ssl_verify on;\nproxy_ssl_trusted_certificate {};\n",
        bed.files.path().display(),
        bed.path("ca.pem").display()
    );
    for (n, upstream) in bed.upstreams.iter().enumerate() {
        let Upstream {
            port,
            version,
            name,
            ..
        } = upstream;
        let _ = writeln!(
            text,
            "location /{n}/ {{ proxy_pass https://127.0.0.1:{port}/; proxy_ssl_protocols {version}; proxy_ssl_name {name}; }}"
        );
    }
    text + "}\n}\n"
}

fn haproxy(bed: &Bed, port: u16) -> String {
    let ca = bed.path("ca.pem");
    let mut text = format!(
        "global\n ssl-server-verify required\ndefaults\n mode http\n retries 0\n timeout connect 5s\n timeout client 5s\n \
         timeout server 5s\nfrontend f\n bind 127.0.0.1:{port}\n"
    );
    for n in 0..bed.upstreams.len() {
        let _ = writeln!(text, " use_backend b{n} if {{ path_beg /{n}/ }}");
    }
    for (n, upstream) in bed.upstreams.iter().enumerate() {
        let Upstream {
            port,
            version,
            name,
            ..
        } = upstream;
        let _ = writeln!(
            text,
            "backend b{n}\n server s 127.0.0.1:{port} ssl verify required ca-file {} verifyhost {name} force-{}",
            ca.display(),
            version.to_lowercase().replace('.', ""),
        );
    }
    text
}

/// What the library said since `from`, by hop.
fn facts(watch: &Watch, from: usize) -> Vec<(HopId, LibraryFact)> {
    watch.seen[from..]
        .iter()
        .filter_map(|(hop, seen)| match seen {
            Seen::Signal(Signal::Library(fact)) => Some((hop.unwrap(), *fact)),
            _ => None,
        })
        .collect()
}

/// The hop to `port` that was opened since `from`.
pub(super) fn hop_to(watch: &Watch, from: usize, port: u16) -> HopId {
    watch.seen[from..]
        .iter()
        .find_map(|(hop, seen)| match seen {
            Seen::Signal(Signal::Opened { upstream, .. }) if upstream.port() == port => *hop,
            _ => None,
        })
        .unwrap_or_else(|| panic!("no hop to {port} in\n{}", watch.trace()))
}

/// What a case is called, its upstream, the status that the client sees, and what the library says.
type Case = (String, usize, &'static str, Vec<LibraryFact>);

fn play(kind: Kind, bed: &Bed, cases: &[Case]) {
    let gateway = Gateway::start(kind, bed);
    let mut watch = gateway.watch();
    let mut wrong = String::new();
    for (name, upstream, status, expected) in cases {
        let from = watch.seen.len();
        let seen = gateway.get(*upstream);
        watch.settle();
        let hop = hop_to(&watch, from, bed.upstreams[*upstream].port);
        let facts = facts(&watch, from);
        let expected: Vec<(HopId, LibraryFact)> =
            expected.iter().map(|fact| (hop, *fact)).collect();
        // What follows a fatal error is its echo.
        let echoes = expected.contains(&(hop, raised(1116)));
        let same = if echoes {
            facts.starts_with(&expected)
        } else {
            facts == expected
        };
        // HAProxy hears of a missing client certificate in TLS 1.3 before it has sent its request or behind it.
        let either = echoes && ["502", "503"].contains(&seen.as_str());
        if !(seen == *status || either) || !same {
            let _ = writeln!(
                wrong,
                "{kind:?}, {name}: {seen}, {facts:?}, not {status}, {expected:?}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    watch.assert_no_loss();
}

/// Every failure that the library knows more about than the wire, and good connections.
fn table(bed: &mut Bed, kind: Kind) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let failed = match kind {
        Kind::Nginx => "502",
        Kind::Haproxy => "503",
    };
    let chain = |code| match kind {
        Kind::Nginx => vec![asked(code)],
        Kind::Haproxy => vec![refused(code), VERIFY_FAILED],
    };
    let good = match kind {
        Kind::Nginx => vec![asked(0)],
        Kind::Haproxy => vec![],
    };
    for version in ["TLSv1.2", "TLSv1.3"] {
        let named = |what: &str| format!("{what} with {version}");
        for (certificate, code) in [("expired", 10), ("self", 18), ("untrusted", 20)] {
            // nginx lets verification go on to the end.
            let code = if (certificate, kind) == ("untrusted", Kind::Nginx) {
                21
            } else {
                code
            };
            let upstream = bed.serve(certificate, version, &[]);
            cases.push((named(certificate), upstream, failed, chain(code)));
        }
        let upstream = bed.serve("good", version, &[]);
        bed.upstreams[upstream].name = "other.test";
        let wrong_name = match kind {
            Kind::Nginx => vec![asked(0)],
            Kind::Haproxy => vec![refused(1), VERIFY_FAILED],
        };
        cases.push((named("another name"), upstream, failed, wrong_name));
        let upstream = bed.serve("good", version, &[]);
        cases.push((named("good"), upstream, "200", good.clone()));
        let upstream = bed.serve("good", version, &["-Verify", "1", "-verify_return_error"]);
        let mut no_certificate = good.clone();
        let (status, alert) = match version {
            "TLSv1.2" => {
                no_certificate.clear();
                (failed, 1040)
            }
            _ => ("502", 1116),
        };
        no_certificate.push(raised(alert));
        cases.push((
            named("no certificate of the client"),
            upstream,
            status,
            no_certificate,
        ));
    }
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = bed.add(plain.local_addr().unwrap().port(), "TLSv1.3", None);
    thread::spawn(move || {
        for stream in plain.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    cases.push(("no TLS".to_owned(), upstream, failed, vec![raised(267)]));
    cases
}

#[test]
fn nginx_tells_its_reasons_on_the_right_hop() {
    let mut bed = Bed::new();
    let cases = table(&mut bed, Kind::Nginx);
    play(Kind::Nginx, &bed, &cases);
}

#[test]
fn haproxy_tells_its_reasons_on_the_right_hop() {
    let mut bed = Bed::new();
    let cases = table(&mut bed, Kind::Haproxy);
    play(Kind::Haproxy, &bed, &cases);
}
