//! Clients that speak TLS to real gateways: where the agent reads inside, what they get is told as that of any other
//! client, and where it does not, of no failure is said that nobody was told.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hopscope_tests::agent::{Agent, Event};
use hopscope_tests::apache;
use hopscope_tests::cleanup::{Directory, Program};
use hopscope_tests::clock::wait_for;
use hopscope_tests::gateway::Kind;
use hopscope_tests::netns::Netns;
use hopscope_tests::status::counters;
use hopscope_tests::tls::pki::{Chain, NAME, Pki};
use hopscope_tests::upstream::{Behaviour, End, HEALTHY, Upstreams};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

/// Time that a gateway gets to listen, the agent for its verdicts, and a client for its answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// What an upstream does, by path; nobody listens behind the first.
const UPSTREAMS: [(&str, Option<Behaviour>); 5] = [
    ("refused", None),
    ("closed", Some(Behaviour::Reply(b"", End::Fin))),
    (
        "head",
        Some(Behaviour::Reply(b"HTTP/1.1 200 OK\r\nConte", End::Fin)),
    ),
    (
        "own",
        Some(Behaviour::Answer(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        )),
    ),
    ("good", Some(Behaviour::Answer(HEALTHY))),
];

fn upstream(index: usize) -> SocketAddr {
    let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
    SocketAddr::new(Ipv4Addr::new(127, 0, 1, last).into(), 21_000)
}

pub(crate) fn listener(kind: Kind) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), kind.address().port() + 440)
}

/// Where the gateways listen without TLS.
pub(crate) fn bare(kind: Kind) -> SocketAddr {
    let at = listener(kind);
    SocketAddr::new(at.ip(), at.port() + 1000)
}

/// A gateway that speaks TLS with its clients and none with its upstreams.
pub(crate) struct Front {
    pub(crate) kind: Kind,
    _process: Program,
    _files: Directory,
}

impl Front {
    fn start(kind: Kind, namespace: &Netns, pki: &Pki, proxied: bool) -> Result<Self> {
        let files = Directory::new()?;
        let pem = files.path().join("pem");
        let chain = fs::read_to_string(pki.leaf(Chain::Good))?
            + &fs::read_to_string(pki.above(Chain::Good))?
            + &fs::read_to_string(pki.key(Chain::Good))?;
        fs::write(&pem, chain)?;
        let config = files.path().join("config");
        fs::write(&config, text(kind, files.path(), &pem, proxied))?;
        let mut command = Command::new(kind.program());
        match kind {
            Kind::Nginx => command.arg("-p").arg(files.path()).arg("-c"),
            Kind::Haproxy => command.args(["-db", "-f"]),
            Kind::Apache => command.args(["-DFOREGROUND", "-f"]),
        };
        let log = files.path().join("log");
        command.arg(&config).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = namespace.enter(|| Ok(command.spawn()?))?;
        let mut process = Program::new(child);
        wait_for("a gateway to listen", PATIENCE, || {
            if let Some(status) = process.child().try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("{kind} ended with {status}: {}", said.trim());
            }
            namespace.enter(|| Ok(TcpStream::connect(listener(kind)).ok()))
        })?;
        Ok(Self {
            kind,
            _process: process,
            _files: files,
        })
    }
}

/// The configuration of a gateway. Where clients are `proxied`, it takes the header of the PROXY protocol, and listens
/// without TLS as well.
fn text(kind: Kind, files: &Path, pem: &Path, proxied: bool) -> String {
    let (files, pem, at) = (files.display(), pem.display(), listener(kind));
    let bare = bare(kind);
    let routes = |line: &dyn Fn(&str, SocketAddr) -> String| -> String {
        let paths = UPSTREAMS.iter().enumerate();
        paths
            .map(|(index, (path, _))| line(path, upstream(index)))
            .collect()
    };
    match kind {
        Kind::Nginx => {
            let (more, listen) = if proxied {
                let trusted = "set_real_ip_from 127.0.0.0/8; real_ip_header proxy_protocol;";
                let listen = format!("listen {bare} proxy_protocol; {trusted}");
                ("proxy_protocol", listen)
            } else {
                ("", String::new())
            };
            let locations =
                routes(&|path, to| format!("location = /{path} {{ proxy_pass http://{to}; }}\n"));
            format!(
                "daemon off; user root; worker_processes 2; pid {files}/pid; error_log {files}/log;\n\
                 events {{}}\nhttp {{ access_log off; client_body_temp_path {files}/body;\n\
                 proxy_temp_path {files}/proxy; fastcgi_temp_path {files}/fastcgi;\n\
                 uwsgi_temp_path {files}/uwsgi; scgi_temp_path {files}/scgi;\n\
                 server {{ {listen} listen {at} ssl http2 {more}; ssl_certificate {pem}; ssl_certificate_key {pem};\n\
                 ssl_protocols TLSv1.2 TLSv1.3;\n\
                 {locations} }} }}\n"
            )
        }
        Kind::Haproxy => {
            let (more, listen) = if proxied {
                ("accept-proxy", format!("  bind {bare} accept-proxy\n"))
            } else {
                ("", String::new())
            };
            let uses = routes(&|path, _| format!("  use_backend {path} if {{ path /{path} }}\n"));
            let backends = routes(&|path, to| format!("backend {path}\n  server one {to}\n"));
            format!(
                "defaults\n  mode http\n  retries 0\n  timeout connect 2s\n  timeout client 60s\n  \
                 timeout server 2s\nfrontend lab\n  bind {at} ssl crt {pem} alpn h2,http/1.1 {more}\n{listen}{uses}{backends}"
            )
        }
        Kind::Apache => {
            let modules = apache::load(&[
                "mpm_event",
                "authz_core",
                "ssl",
                "http2",
                "proxy",
                "proxy_http",
                "remoteip",
            ]);
            let (more, listen) = if proxied {
                let more = "RemoteIPProxyProtocol On\n";
                let listen = format!("Listen {bare}\n<VirtualHost {bare}>\n{more}</VirtualHost>\n");
                (more, listen)
            } else {
                ("", String::new())
            };
            let locations =
                routes(&|path, to| format!("ProxyPass \"/{path}\" \"http://{to}/\" retry=0\n"));
            format!(
                "ServerRoot {files}\nDefaultRuntimeDir {files}\nPidFile {files}/pid\nErrorLog {files}/log\n\
                 ServerName lab\nListen {at}\nUser www-data\nGroup www-data\n{modules}KeepAlive On\n\
                 Protocols h2 http/1.1\n{locations}{listen}<VirtualHost {at}>\n{more}SSLEngine on\n\
                 SSLCertificateFile {pem}\n</VirtualHost>\n"
            )
        }
    }
}

/// A client's connection.
pub(crate) struct Client<S> {
    stream: S,
    port: u16,
    /// Whether the gateway said that it would close it.
    closing: bool,
}

/// A client that speaks TLS.
pub(crate) type Secure = Client<StreamOwned<ClientConnection, TcpStream>>;

impl Secure {
    fn connect(
        kind: Kind,
        roots: &Path,
        version: &'static SupportedProtocolVersion,
        alpn: &[u8],
    ) -> Result<Self> {
        let tcp = TcpStream::connect_timeout(&listener(kind), PATIENCE)?;
        Self::over(tcp, roots, version, alpn)
    }

    /// A client on a connection that is there.
    pub(crate) fn over(
        tcp: TcpStream,
        roots: &Path,
        version: &'static SupportedProtocolVersion,
        alpn: &[u8],
    ) -> Result<Self> {
        let mut trusted = RootCertStore::empty();
        let pem = BufReader::new(File::open(roots)?);
        for certificate in rustls::pki_types::CertificateDer::pem_reader_iter(pem) {
            trusted.add(certificate?)?;
        }
        let provider = rustls::crypto::ring::default_provider();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        tcp.set_read_timeout(Some(PATIENCE))?;
        let port = tcp.local_addr()?.port();
        let name = ServerName::try_from(NAME)?;
        let session = ClientConnection::new(Arc::new(config), name)?;
        Ok(Self::new(StreamOwned::new(session, tcp), port))
    }

    /// Asks for a path in HTTP/2 (RFC 9113), and waits for the first frame of its answer.
    fn get_in_frames(&mut self, path: &str) -> Result<()> {
        const HEADERS: u8 = 1;
        const SETTINGS: u8 = 4;
        /// `END_STREAM` and `END_HEADERS`.
        const ENDS: u8 = 5;
        let path = format!("/{path}");
        // Fields of the static table (RFC 7541 appendix A): GET, https, and literals for path and authority.
        let mut fields = vec![0x82, 0x87, 0x04, u8::try_from(path.len())?];
        fields.extend(path.as_bytes());
        fields.extend([0x01, u8::try_from(NAME.len())?]);
        fields.extend(NAME.as_bytes());
        let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| -> Result<Vec<u8>> {
            let length = u8::try_from(payload.len())?;
            let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
            Ok([&head, payload].concat())
        };
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[])?);
        bytes.extend(frame(HEADERS, ENDS, 1, &fields)?);
        self.stream.write_all(&bytes)?;
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let [a, b, c, kind, ..] = head;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload)?;
            if kind == HEADERS {
                return Ok(());
            }
        }
    }
}

impl<S: Read + Write> Client<S> {
    /// A client with this port.
    pub(crate) const fn new(stream: S, port: u16) -> Self {
        Self {
            stream,
            port,
            closing: false,
        }
    }

    /// Asks for a path, and returns the status once the answer is whole; none where the connection is closed instead.
    pub(crate) fn get(&mut self, path: &str) -> Result<Option<u16>> {
        self.get_behind(b"", path)
    }

    /// The same with these bytes in front of the request.
    pub(crate) fn get_behind(&mut self, header: &[u8], path: &str) -> Result<Option<u16>> {
        let request = format!("GET /{path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        self.stream
            .write_all(&[header, request.as_bytes()].concat())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.stream.read(&mut byte)? {
                0 if head.is_empty() => return Ok(None),
                0 => bail!("closed inside a head"),
                _ => head.push(byte[0]),
            }
        }
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        self.closing = head.contains("\r\nconnection: close\r\n");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let length = length.context("no length")?.trim().parse()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let status = head.split_whitespace().nth(1).context("no status")?;
        Ok(Some(status.parse()?))
    }
}

/// A gateway of each kind in one namespace, with its upstreams.
pub(crate) struct Bed {
    pub(crate) namespace: Netns,
    pub(crate) fronts: Vec<Front>,
    pub(crate) roots: PathBuf,
    _pki: Pki,
    _upstreams: Upstreams,
}

impl Bed {
    fn start() -> Result<Self> {
        Self::with(&Kind::TLS, false)
    }

    /// With gateways of these kinds, whose clients are `proxied`.
    pub(crate) fn with(kinds: &[Kind], proxied: bool) -> Result<Self> {
        let namespace = Netns::new("clients")?;
        namespace.ip("link set lo up")?;
        let pki = Pki::new()?;
        let served = UPSTREAMS.iter().enumerate();
        let served = served.filter_map(|(index, (_, what))| Some((upstream(index), (*what)?)));
        let upstreams = namespace.enter(|| Upstreams::start(served))?;
        let fronts = kinds.iter();
        let fronts: Result<_> = fronts
            .map(|kind| Front::start(*kind, &namespace, &pki, proxied))
            .collect();
        Ok(Self {
            namespace,
            fronts: fronts?,
            roots: pki.roots(),
            _pki: pki,
            _upstreams: upstreams,
        })
    }

    /// Waits for as many events of the gateways as `count`.
    pub(crate) fn events(&self, agent: &Agent, count: usize) -> Result<Vec<Event>> {
        let namespace = self.namespace.inode()?;
        wait_for("the events", PATIENCE, || {
            let mut events = agent.recent_events()?;
            events.retain(|event| {
                let gateway = event.gateway.as_ref();
                gateway.is_some_and(|gateway| gateway.netns == namespace)
            });
            Ok((events.len() >= count).then_some(events))
        })
    }
}

/// What a client asked for and got.
struct Got {
    kind: Kind,
    port: u16,
    path: &'static str,
    /// None where the connection was closed instead.
    status: Option<u16>,
}

pub(crate) fn count(agent: &Agent, wanted: &str) -> Result<u64> {
    let counters = counters(agent)?;
    let found = counters.iter().find(|(name, _)| name == wanted);
    Ok(found.map_or(0, |(_, count)| *count))
}

#[test]
fn what_clients_get_over_tls_is_told_where_it_is_read() {
    let bed = Bed::start().unwrap();
    let agent = Agent::start_with(&["--tls-plaintext"]).unwrap();
    let mut all = Vec::new();
    for front in &bed.fronts {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let got = bed.namespace.enter(|| {
                let connect = || Secure::connect(front.kind, &bed.roots, version, b"http/1.1");
                // Good and bad beside each other, on one connection as long as the gateway keeps it.
                let mut client = connect()?;
                let mut got = Vec::new();
                for (path, _) in UPSTREAMS.iter().chain(&UPSTREAMS) {
                    let status = client.get(path)?;
                    let good = status == Some(200);
                    ensure!(good == (*path == "good"), "{path}: {status:?}");
                    got.push(Got {
                        kind: front.kind,
                        port: client.port,
                        path,
                        status,
                    });
                    if status.is_none() || client.closing {
                        client = connect()?;
                    }
                }
                Ok(got)
            });
            all.extend(got.unwrap());
        }
    }
    all.retain(|got| got.status != Some(200));
    let events = bed.events(&agent, all.len()).unwrap();
    let mut counted = counters(&agent).unwrap();
    counted.retain(|(name, _)| name.contains("answers") || name.contains("client"));
    let gateway = |event: &Event| {
        let gateway = event.gateway.as_ref();
        gateway.map_or_else(String::new, |gateway| gateway.comm.clone())
    };
    let answered = events.iter().filter_map(|event| {
        let answer = event.gateway_answer.as_ref()?;
        assert!(
            !answer.contested && answer.candidates.is_empty() && !event.hidden_from_client,
            "{answer:?}"
        );
        let path = answer.path.clone().unwrap_or_default();
        Some((gateway(event), answer.client.port, path, answer.status))
    });
    let mut told: Vec<_> = answered.collect();
    told.sort();
    let mut expected: Vec<_> = all
        .iter()
        .map(|got| {
            let path = format!("/{}", got.path);
            (got.kind.program().to_owned(), got.port, path, got.status)
        })
        .collect();
    expected.sort();
    let unjoined: Vec<String> = events
        .iter()
        .filter(|event| event.gateway_answer.is_none())
        .map(Event::to_string)
        .collect();
    assert_eq!(told, expected, "{counted:?}, {unjoined:?}");
    assert_eq!(events.len(), all.len());
}

#[test]
fn of_clients_that_cannot_be_read_nothing_is_said() {
    for (arguments, alpn) in [
        (&[] as &[&str], b"http/1.1" as &[u8]),
        (&["--tls-plaintext"], b"h2"),
    ] {
        let bed = Bed::start().unwrap();
        let agent = Agent::start_with(arguments).unwrap();
        for front in &bed.fronts {
            bed.namespace
                .enter(|| {
                    let version = &rustls::version::TLS13;
                    let mut client = Secure::connect(front.kind, &bed.roots, version, alpn)?;
                    if alpn == b"h2" {
                        client.get_in_frames("refused")
                    } else {
                        client.get("refused").map(|_| ())
                    }
                })
                .unwrap();
        }
        let fronts = bed.fronts.len();
        let events = bed.events(&agent, fronts).unwrap();
        assert_eq!(events.len(), fronts);
        for event in &events {
            assert!(event.gateway_answer.is_none(), "{event}");
            assert!(!event.hidden_from_client, "{event}");
        }
        let opaque = count(&agent, "kernel_clients_opaque").unwrap();
        // Others on this host may be counted as well.
        let log = agent.log();
        assert!(opaque >= u64::try_from(fronts).unwrap(), "{opaque}: {log}");
        assert!(log.matches("cannot be read").count() >= fronts, "{log}");
    }
}
