//! What OpenSSL says inside a gateway, with OpenSSL's own client as the gateway.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use hopscope::model::{HopId, LibraryFact, Signal};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::support::{Gateway, Seen, Watch};

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

const VERIFY_FAILED: LibraryFact = raised(134);

/// A TLS client called like a gateway, and certificates.
struct Bed {
    gateway: Gateway,
    files: TempDir,
}

impl Bed {
    fn new() -> Self {
        let gateway = Gateway::start();
        let files = TempDir::new().unwrap();
        let bed = Self { gateway, files };
        fs::copy(openssl(), bed.client()).unwrap();

        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        bed.write("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
        let ca = Issuer::new(ca, ca_key);
        bed.leaf("good", 2999, Some(&ca));
        bed.leaf("expired", 2001, Some(&ca));
        bed.leaf("self", 2999, None);
        let mut other = CertificateParams::new(vec![]).unwrap();
        other.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let other = Issuer::new(other, KeyPair::generate().unwrap());
        bed.leaf("untrusted", 2999, Some(&other));
        bed
    }

    fn client(&self) -> std::path::PathBuf {
        self.files.path().join(&self.gateway.name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.files.path().join(name), text).unwrap();
    }

    fn leaf(&self, name: &str, until: i32, issuer: Option<&Issuer<'_, KeyPair>>) {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec!["upstream.test".to_owned()]).unwrap();
        leaf.not_before = date_time_ymd(2000, 1, 1);
        leaf.not_after = date_time_ymd(until, 1, 1);
        let leaf = match issuer {
            Some(issuer) => leaf.signed_by(&key, issuer),
            None => leaf.self_signed(&key),
        };
        let text = leaf.unwrap().pem() + &key.serialize_pem();
        self.write(&format!("{name}.pem"), &text);
    }

    /// Runs the client once against `port`, to its end.
    fn connect(&mut self, port: u16, flags: &str) {
        let client = self.client();
        let ca = self.files.path().join("ca.pem");
        let command = format!(
            "echo | {} s_client -connect 127.0.0.1:{port} -CAfile {} -verify_return_error -ign_eof {flags} >/dev/null 2>&1",
            client.display(),
            ca.display()
        );
        self.gateway.run(&command);
    }
}

fn openssl() -> &'static Path {
    Path::new("/usr/bin/openssl")
}

/// `openssl s_server` with one of the certificates, which answers a line and closes.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(bed: &Bed, certificate: &str, flags: &[&str]) -> Self {
        let certificate = bed.files.path().join(format!("{certificate}.pem"));
        let mut child = Command::new(openssl())
            .args(["s_server", "-accept", "127.0.0.1:0", "-rev", "-cert"])
            .arg(&certificate)
            .arg("-key")
            .arg(&certificate)
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
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A watch that has found the client's library. Another client keeps it mapped meanwhile.
fn watch(bed: &mut Bed) -> (Watch, Child) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let holder = Command::new(bed.client())
        .args(["s_client", "-connect"])
        .arg(silent.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let watch = {
        let name = bed.gateway.name.clone();
        let mut watch = Watch::start(&bed.gateway.config());
        watch.until("library", |watch| {
            let rows = watch.source.probes();
            ["libssl", "libcrypto"].iter().all(|library| {
                rows.iter().any(|row| {
                    row.name == "tls_library"
                        && row.attached
                        && row.reason.contains(&name)
                        && row.reason.contains(library)
                })
            })
        });
        watch
    };
    // The holder's connection stays in the backlog: nobody ever answers it.
    std::mem::forget(silent);
    (watch, holder)
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
fn hop_to(watch: &Watch, from: usize, port: u16) -> HopId {
    watch.seen[from..]
        .iter()
        .find_map(|(hop, seen)| match seen {
            Seen::Signal(Signal::Opened { upstream, .. }) if upstream.port() == port => *hop,
            _ => None,
        })
        .unwrap_or_else(|| panic!("no hop to {port} in\n{}", watch.trace()))
}

#[test]
fn a_refused_chain_comes_with_its_code_on_its_hop() {
    let mut bed = Bed::new();
    let (mut watch, mut holder) = watch(&mut bed);
    let named = "-verify_hostname upstream.test";
    for version in ["-tls1_2", "-tls1_3"] {
        for (certificate, name, code) in [
            ("expired", named, 10),
            ("self", named, 18),
            ("untrusted", named, 20),
            ("good", "-verify_hostname other.test", 62),
        ] {
            let server = Server::start(&bed, certificate, &[]);
            let from = watch.seen.len();
            bed.connect(server.port, &format!("{version} {name}"));
            watch.settle();
            let hop = hop_to(&watch, from, server.port);
            let facts = facts(&watch, from);
            assert_eq!(
                facts.get(..2),
                Some(&[(hop, refused(code)), (hop, VERIFY_FAILED)][..]),
                "{certificate} {version}: {facts:?}"
            );
        }
    }
    watch.assert_no_loss();
    let _ = holder.kill();
    let _ = holder.wait();
}

#[test]
fn an_alert_and_a_foreign_protocol_come_as_they_are() {
    let mut bed = Bed::new();
    let (mut watch, mut holder) = watch(&mut bed);
    for (version, reason) in [("-tls1_2", 1040), ("-tls1_3", 1116)] {
        let server = Server::start(&bed, "good", &["-Verify", "1"]);
        let from = watch.seen.len();
        bed.connect(server.port, version);
        watch.settle();
        let hop = hop_to(&watch, from, server.port);
        let facts = facts(&watch, from);
        assert!(
            facts.contains(&(hop, raised(reason))),
            "{version}: {facts:?}"
        );
    }

    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    let answer = thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let from = watch.seen.len();
    bed.connect(port, "");
    answer.join().unwrap();
    watch.settle();
    let hop = hop_to(&watch, from, port);
    assert_eq!(facts(&watch, from), [(hop, raised(267))]);
    watch.assert_no_loss();
    let _ = holder.kill();
    let _ = holder.wait();
}

#[test]
fn a_good_connection_has_nothing_but_the_answer_to_a_question() {
    let mut bed = Bed::new();
    let (mut watch, mut holder) = watch(&mut bed);
    for version in ["-tls1_2", "-tls1_3"] {
        let server = Server::start(&bed, "good", &[]);
        let from = watch.seen.len();
        bed.connect(
            server.port,
            &format!("{version} -verify_hostname upstream.test"),
        );
        watch.settle();
        let hop = hop_to(&watch, from, server.port);
        let asked = LibraryFact::Verified {
            code: 0,
            asked: true,
        };
        let facts = facts(&watch, from);
        assert!(
            facts.iter().all(|fact| *fact == (hop, asked)),
            "{version}: {facts:?}"
        );
    }
    watch.assert_no_loss();
    let _ = holder.kill();
    let _ = holder.wait();
}
