//! Entry points of the fuzz targets (`agent/fuzz`). A target is one line; what it checks is here, so
//! that the committed seeds run as ordinary tests as well.
//!
//! Each function takes arbitrary bytes, panics where a rule of the code under test is broken, and
//! decides nothing that the product uses: the module exists for tests and fuzzing alone.

mod engine;
mod names;
#[cfg(test)]
mod seeds;
mod streams;
mod tls;

pub use engine::engine;
pub use names::dns;
pub use streams::{reassembly, request, response};
pub use tls::{certificate, tls};

use crate::input::frame::{LinkType, parse_frame};
use crate::input::packet::{IpPacket, parse_ip};

/// What a target does with an input.
pub type Target = fn(&[u8]);

/// Every target with its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    #[cfg(feature = "std-edges")]
    ("capture", capture),
    #[cfg(feature = "live")]
    ("record", record),
    ("reassembly", reassembly),
    ("response", response),
    ("request", request),
    ("tls", tls),
    ("certificate", certificate),
    ("engine", engine),
    ("dns", dns),
];

/// Takes an input apart, zeros after its end: a shorter input stays meaningful.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    fn index(&mut self, below: usize) -> usize {
        usize::from(self.u8()) % below
    }

    fn slice(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Frames of any link type: what is read never reaches beyond what was captured or sent.
///
/// # Panics
///
/// Where it does.
pub fn frame(data: &[u8]) {
    const LINKS: [LinkType; 15] = [
        LinkType::ETHERNET,
        LinkType::NULL,
        LinkType::PPP,
        LinkType::RAW_BSD,
        LinkType::RAW_OPENBSD,
        LinkType::PPP_HDLC,
        LinkType::PPP_ETHER,
        LinkType::RAW,
        LinkType::CISCO_HDLC,
        LinkType::LOOP,
        LinkType::LINUX_SLL,
        LinkType::IPV4,
        LinkType::IPV6,
        LinkType::LINUX_SLL2,
        LinkType(u16::MAX),
    ];
    let mut data = Bytes(data);
    let link = LINKS[data.index(LINKS.len())];
    // Cut by the snap length, exact, padded, or nonsense.
    let length = u32::try_from(data.0.len()).unwrap_or(u32::MAX);
    let wire_len = match data.u8() {
        255 => data.u32(),
        254 => length / 2,
        more => length.saturating_add(u32::from(more)),
    };
    let bytes = data.0;
    for read in [
        parse_frame(link, bytes, wire_len).ok(),
        parse_ip(bytes, wire_len).ok(),
    ] {
        if let Some(IpPacket::Tcp(tcp)) = read {
            assert!(tcp.payload.len() <= bytes.len());
            assert!(tcp.payload.len() as u64 <= u64::from(tcp.wire_len));
            assert!(tcp.wire_len <= wire_len.max(u32::from(u16::MAX)));
            assert_eq!(tcp.src.is_ipv4(), tcp.dst.is_ipv4());
        }
    }
}

/// Capture files, through the reader and the assignment of packets to hops into an engine.
///
/// # Panics
///
/// Where the counts of the summary do not add up or a hop is left over.
#[cfg(feature = "std-edges")]
pub fn capture(data: &[u8]) {
    use std::io::Read as _;

    use crate::engine::{Config, Engine};
    use crate::source::{Options, Reader, analyze};

    // Compressed input may be any number of times as long.
    const MAX_PACKETS: u64 = 2000;
    let Ok(mut reader) = Reader::open(data) else {
        return;
    };
    while let Ok(Some(packet)) = reader.next_packet() {
        assert!(packet.data.len() <= 1024 * 1024, "a record above the cap");
        if reader.packets() >= MAX_PACKETS {
            return;
        }
    }
    let packets = reader.packets();
    let mut engine = Engine::new(Config::default(), engine::LIMITS);
    let read = analyze(
        data.take(u64::MAX),
        &Options::default(),
        &mut engine,
        &mut |event| {
            assert!(!event.evidence.is_empty());
        },
    );
    let Ok(summary) = read else {
        return;
    };
    assert_eq!(summary.packets, packets);
    let undecodable: u64 = summary.undecodable.values().sum();
    let sorted = summary.segments
        + summary.icmp
        + summary.dns
        + summary.other
        + summary.fragments
        + undecodable;
    assert_eq!(sorted, summary.packets, "each packet is counted once");
    assert_eq!(engine.open_hops(), 0);
    assert!(engine.poll_event().is_none());
}

/// Kernel records, each behind its length as 16 bits, through decoding into an engine.
///
/// # Panics
///
/// Where a hop is left over.
#[cfg(feature = "live")]
pub fn record(data: &[u8]) {
    use crate::engine::{Config, Engine};
    use crate::model::Timestamp;

    let mut data = Bytes(data);
    let mut engine = Engine::new(Config::default(), engine::LIMITS);
    while !data.is_empty() {
        let length = usize::from(data.u16());
        crate::live::fuzz_record(data.slice(length), |at, input| {
            engine.handle_timeout(at);
            engine.handle(at, input);
            assert!(engine.open_hops() <= engine::LIMITS.hops);
        });
    }
    engine.finish(Timestamp::MAX);
    assert_eq!(engine.open_hops(), 0);
}
