//! Clients behind a balancer that speaks the PROXY protocol with real gateways: what they get is told as that of any
//! other client, under the address that the balancer names.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Result, ensure};
use hopscope_tests::agent::Agent;
use hopscope_tests::gateway::Kind;

use crate::live::clients::{Bed, Client, PATIENCE, Secure, bare, count, listener};

/// How a balancer begins a connection.
struct Begins {
    header: &'static [u8],
    /// Whom it names.
    client: Option<&'static str>,
}

const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

const BEGINS: [Begins; 5] = [
    Begins {
        header: b"PROXY TCP4 192.0.2.7 198.51.100.1 50007 443\r\n",
        client: Some("192.0.2.7:50007"),
    },
    Begins {
        header: b"PROXY TCP6 2001:db8::7 2001:db8::1 50008 443\r\n",
        client: Some("[2001:db8::7]:50008"),
    },
    Begins {
        header: UNKNOWN,
        client: None,
    },
    // With the name that was asked for as a further field (PP2_TYPE_AUTHORITY).
    Begins {
        header: b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x13\
            \xc0\x00\x02\x09\xc6\x33\x64\x01\xc3\x59\x01\xbb\x02\x00\x04shop",
        client: Some("192.0.2.9:50009"),
    },
    // The balancer's own.
    Begins {
        header: b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
        client: None,
    },
];

/// What a client asks for on one connection.
type Asks = &'static [&'static str];

/// On each of a client's connections: Apache closes behind every 503.
const fn asks(kind: Kind) -> &'static [Asks] {
    match kind {
        Kind::Nginx | Kind::Haproxy => &[&["own", "good", "own", "refused"]],
        Kind::Apache => &[&["good", "own"], &["good", "good", "refused"]],
    }
}

/// What an event has to tell: client, path and status.
type Told = (SocketAddr, String, Option<u16>);

/// Asks for all of that, and returns what has to be told of it. The gateway makes the last answer itself.
fn ask(
    kind: Kind,
    begins: &Begins,
    port: u16,
    asks: Asks,
    mut get: impl FnMut(&str) -> Result<Option<u16>>,
) -> Result<Vec<Told>> {
    let client = match begins.client {
        Some(client) => client.parse()?,
        None => SocketAddr::new(listener(kind).ip(), port),
    };
    let mut told = Vec::new();
    for path in asks {
        let status = match (*path, kind) {
            ("good", _) => 200,
            ("refused", Kind::Nginx) => 502,
            _ => 503,
        };
        let got = get(path)?;
        ensure!(got == Some(status), "{kind} {path}: {got:?}");
        if status >= 500 {
            told.push((client, format!("/{path}"), Some(status)));
        }
    }
    Ok(told)
}

/// What there is to tell of all clients of a gateway, in clear and over TLS.
fn all(bed: &Bed, kind: Kind) -> Result<Vec<Told>> {
    let mut told = Vec::new();
    let connect = |to| -> Result<_> {
        let tcp = TcpStream::connect_timeout(&to, PATIENCE)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let port = tcp.local_addr()?.port();
        Ok((tcp, port))
    };
    // Apache 2.4 closes where more follows a header of that kind.
    let takes = |begins: &&Begins| kind != Kind::Apache || begins.header != UNKNOWN;
    let clients = BEGINS.iter().filter(takes).flat_map(|begins| {
        let asks = asks(kind).iter();
        asks.map(move |asks| (begins, *asks))
    });
    for (begins, asks) in clients {
        // One segment, and two.
        for (together, apart) in [(begins.header, &b""[..]), (b"", begins.header)] {
            let (mut tcp, port) = connect(bare(kind))?;
            tcp.write_all(apart)?;
            let mut client = Client::new(tcp, port);
            let mut first = together;
            told.extend(ask(kind, begins, port, asks, |path| {
                client.get_behind(std::mem::take(&mut first), path)
            })?);
        }
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (mut tcp, port) = connect(listener(kind))?;
            tcp.write_all(begins.header)?;
            let mut client = Secure::over(tcp, &bed.roots, version, b"http/1.1")?;
            told.extend(ask(kind, begins, port, asks, |path| client.get(path))?);
        }
    }
    Ok(told)
}

#[test]
fn what_clients_behind_a_balancer_get_is_told_under_their_addresses() {
    let bed = Bed::with(&Kind::TLS, true).unwrap();
    let agent = Agent::start_with(&["--tls-plaintext"]).unwrap();
    let mut expected = Vec::new();
    for front in &bed.fronts {
        let told = bed.namespace.enter(|| all(&bed, front.kind)).unwrap();
        let name = front.kind.program().to_owned();
        expected.extend(told.into_iter().map(|told| (name.clone(), told)));
    }
    let events = bed.events(&agent, expected.len()).unwrap();
    assert_eq!(events.len(), expected.len());
    let told = events.iter().map(|event| {
        let answer = event.gateway_answer.as_ref();
        let answer = answer.unwrap_or_else(|| panic!("{event}"));
        assert!(
            !answer.contested && answer.candidates.is_empty() && !event.hidden_from_client,
            "{answer:?}"
        );
        let address: IpAddr = answer.client.address;
        let client = SocketAddr::new(address, answer.client.port);
        let path = answer.path.clone().unwrap_or_default();
        let gateway = event.gateway.as_ref();
        let gateway = gateway.map_or_else(String::new, |gateway| gateway.comm.clone());
        (gateway, (client, path, answer.status))
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    expected.sort();
    let opaque = count(&agent, "kernel_clients_opaque").unwrap();
    assert_eq!(told, expected, "{opaque} could not be read");
    assert!(!agent.log().contains("cannot be read"), "{}", agent.log());
}
