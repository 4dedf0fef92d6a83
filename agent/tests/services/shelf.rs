//! Captures in a real store, and an agent that serves them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::{ANY_PORT, Agent, event};
use hopscope::model::{Cause, Direction, HopEvent, Timestamp};
use hopscope::record::{
    Capture, CapturedPacket, ExchangeLine, Sampler, SamplerConfig, Store, StoreLimits,
};
use hopscope::serve::{Captures, Hub, HubConfig, Listener};

const GATEWAY: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
    40000,
);

pub(crate) const GET: &[u8] = b"GET /cart HTTP/1.1\r\nHost: shop\r\n\r\n";
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nServer: a\r\nContent-Length: 2\r\n\r\nok";
pub(crate) const BAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: a\r\nX-Id: 1\x002\r\nContent-Length: 2\r\n\r\nok";

/// 2023-11-14T22:13:20Z.
pub(crate) const START: u64 = 1_700_000_000;

pub(crate) fn upstream(port: u16) -> SocketAddr {
    ([10, 0, 0, 7], port).into()
}

/// An IPv4 packet with a TCP segment.
fn packet(from: SocketAddr, to: SocketAddr, seq: u32, payload: &[u8]) -> Vec<u8> {
    let ip = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => unreachable!(),
    };
    let total = u16::try_from(40 + payload.len()).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    bytes.extend(ip(from));
    bytes.extend(ip(to));
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    // Acknowledgement, header length of five words, PSH and ACK, window, checksum, urgent pointer.
    bytes.extend([0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// The packets of an exchange.
pub(crate) fn exchange(
    upstream: SocketAddr,
    request: &[u8],
    response: &[u8],
) -> Vec<CapturedPacket> {
    let request = packet(GATEWAY, upstream, 1, request);
    let response = packet(upstream, GATEWAY, 1, response);
    let packets = [
        (Direction::ToUpstream, request),
        (Direction::FromUpstream, response),
    ];
    let packets = packets.into_iter().filter(|(_, bytes)| bytes.len() > 40);
    packets
        .map(|(direction, bytes)| CapturedPacket {
            at: Timestamp::from_nanos(START * 1_000_000_000),
            direction,
            wire_len: bytes.len().try_into().unwrap(),
            bytes,
        })
        .collect()
}

/// A store in a directory of its own, and its captures in the order of their names.
pub(crate) struct Shelf {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) sampler: Arc<Sampler>,
    pub(crate) ids: Vec<String>,
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_nanos(START * 1_000_000_000)
}

impl Shelf {
    pub(crate) fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limits = StoreLimits {
            bytes,
            ..StoreLimits::default()
        };
        let store = Store::open(dir.path(), limits, now()).unwrap();
        Self {
            dir,
            store: Arc::new(store),
            sampler: Arc::new(Sampler::new(SamplerConfig::default())),
            ids: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        cause: Option<Cause>,
        upstream: SocketAddr,
        packets: Vec<CapturedPacket>,
    ) {
        let seconds = START + self.ids.len() as u64;
        let time = Timestamp::from_nanos(seconds * 1_000_000_000);
        let mut capture = Capture {
            time,
            node: Arc::from("gw1"),
            upstream,
            gateway: None,
            exchange: ExchangeLine {
                method: Some("GET".to_owned()),
                path: Some("/cart".to_owned()),
                status: Some(200).filter(|_| packets.len() > 1),
            },
            event: cause.map(|cause| HopEvent { cause, ..event(1) }),
            packets,
        };
        let id = self.store.append(&mut capture, time).unwrap();
        self.ids.push(id.to_string());
    }

    pub(crate) fn id(&self, place: usize) -> &str {
        &self.ids[place]
    }

    /// The file of a capture.
    pub(crate) fn bytes(&self, place: usize) -> Vec<u8> {
        self.store.read(self.id(place).parse().unwrap()).unwrap()
    }

    pub(crate) fn all(&self) -> Vec<u8> {
        (0..self.ids.len())
            .flat_map(|place| self.bytes(place))
            .collect()
    }

    /// Where the capture is on disk.
    pub(crate) fn path(&self, place: usize) -> PathBuf {
        let names = files(self.dir.path());
        let names: Vec<_> = names.iter().filter(|name| *name != "lock").collect();
        assert_eq!(names.len(), self.ids.len(), "{names:?}");
        self.dir.path().join(names[place])
    }

    /// Changes a byte of a capture on disk.
    pub(crate) fn damage(&self, place: usize) {
        let mut bytes = fs::read(self.path(place)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.path(place), bytes).unwrap();
    }

    pub(crate) async fn serve(&self) -> Agent {
        let hub = Hub::new(HubConfig::default());
        let (store, sampler) = (Arc::clone(&self.store), Arc::clone(&self.sampler));
        hub.set_captures(Captures::new(store, sampler, now));
        Agent::serve_hub(Listener::bind(ANY_PORT).await.unwrap(), hub)
    }
}

/// A healthy capture and failing ones of two upstreams, one without a response.
pub(crate) fn shelf(bytes: u64) -> Shelf {
    let mut shelf = Shelf::new(bytes);
    let bad = Some(Cause::Http1HeaderControlChar);
    shelf.add(None, upstream(80), exchange(upstream(80), GET, OK));
    shelf.add(bad, upstream(80), exchange(upstream(80), GET, BAD));
    let closed = Some(Cause::TcpClosedNoResponse);
    shelf.add(closed, upstream(81), exchange(upstream(81), GET, b""));
    shelf
}

/// Small enough that each capture has a file of its own.
const SMALL: u64 = 12 * 1024;

/// An agent with such captures.
pub(crate) async fn agent() -> (Agent, Shelf) {
    let shelf = shelf(SMALL);
    (shelf.serve().await, shelf)
}

pub(crate) fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
