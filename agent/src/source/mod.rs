//! Capture files as a source: pcap and pcapng to the engine's inputs.
//!
//! Decides in which order packets and deadlines reach the engine: time is the packets' own, and a
//! deadline that is due before a packet expires before it. Leaves verdicts to the engine, and
//! opening files and printing to the command line.

mod hints;
mod hops;
mod names;
mod options;
mod reader;
mod table;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use thiserror::Error;

pub use hops::{HopCounters, UpstreamTally};
pub use options::Options;
pub use reader::{Cut, CutReason, Packet, Reader};

use crate::engine::Engine;
use crate::input::frame::{FrameError, LinkType, parse_frame, plain_frame};
use crate::input::packet::{IcmpQuote, IpPacket, TcpPacket};
use crate::model::{HopEvent, HopId, IcmpError, Input, Segment, Timestamp};

use hops::{Hops, Open, Route};
use names::Names;

/// Packets of several queues are out of order by less.
const LATE: Duration = Duration::from_secs(1);

/// Why a file gave nothing.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Neither pcap nor pcapng.
    #[error("not a pcap or pcapng capture: {found}")]
    NotACapture {
        /// What the first bytes look like.
        found: String,
    },
    /// The operating system could not read it.
    #[error("cannot read: {0}")]
    Read(#[from] std::io::Error),
}

/// What was read, and what of it could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets read.
    pub packets: u64,
    /// Their captured bytes.
    pub bytes: u64,
    /// TCP segments among them.
    pub segments: u64,
    /// ICMP errors that quote a TCP segment.
    pub icmp: u64,
    /// UDP datagrams of DNS. Segments of DNS over TCP are counted among the segments.
    pub dns: u64,
    /// IP packets with something else.
    pub other: u64,
    /// IP fragments, which are not put together.
    pub fragments: u64,
    /// Packets that gave no IP packet, by reason.
    pub undecodable: BTreeMap<FrameError, u64>,
    /// Packet records whose own lengths or interface made no sense.
    pub skipped: u64,
    /// Connections, by what was done with them.
    pub hops: HopCounters,
    /// Upstreams in the order in which they were met.
    pub upstreams: Vec<UpstreamTally>,
    /// Link types of the packets.
    pub links: BTreeSet<LinkType>,
    /// Time of the earliest packet.
    pub first: Option<Timestamp>,
    /// Time of the latest packet.
    pub last: Option<Timestamp>,
    /// Packets more than a second older than one before them. To the engine they happen late.
    pub late: u64,
    /// Where the last file that could not be read to its end stopped.
    pub truncated_at: Option<Cut>,
}

/// Feeds one engine from one or more capture files, in the order of their packets.
pub struct Analysis<'e> {
    engine: &'e mut Engine,
    hops: Hops,
    names: Names,
    summary: Summary,
    /// Kept between packets, which mostly share it.
    link: Option<LinkType>,
    earliest: Timestamp,
    latest: Timestamp,
}

impl<'e> Analysis<'e> {
    /// An analysis that has read nothing yet.
    pub fn new(options: Options, engine: &'e mut Engine) -> Self {
        Self {
            engine,
            names: Names::new(&options),
            hops: Hops::new(options),
            summary: Summary::default(),
            link: None,
            earliest: Timestamp::MAX,
            latest: Timestamp::default(),
        }
    }

    /// Reads one file to its end and says where it stopped, if that was before the end.
    pub fn read(
        &mut self,
        reader: impl Read,
        on_event: &mut dyn FnMut(HopEvent),
    ) -> Result<Option<Cut>, SourceError> {
        let mut reader = Reader::open(reader)?;
        let names_too = self.names.are_wanted();
        let on_event = &mut |event: HopEvent| {
            if names_too || !event.upstream.is_only_name() {
                on_event(event);
            }
        };
        while let Some(packet) = reader.next_packet()? {
            self.packet(&packet, on_event);
        }
        self.summary.skipped += reader.skipped();
        let cut = reader.cut().cloned();
        if cut.is_some() {
            self.summary.truncated_at.clone_from(&cut);
        }
        Ok(cut)
    }

    /// Ends the analysis: hops that are still open are decided as far as they can be.
    pub fn finish(mut self, on_event: &mut dyn FnMut(HopEvent)) -> Summary {
        let names_too = self.names.are_wanted();
        let on_event: &mut dyn FnMut(HopEvent) = &mut |event: HopEvent| {
            if names_too || !event.upstream.is_only_name() {
                on_event(event);
            }
        };
        let engine = &mut *self.engine;
        self.hops.finish(&mut |at, hop, segment| {
            if names::is_dns(segment) {
                return;
            }
            feed(engine, at, on_event, |engine| {
                engine.handle_segment(at, hop, segment);
            });
        });
        self.engine.finish(self.latest);
        drain(self.engine, on_event);
        if self.summary.packets > 0 {
            self.summary.first = Some(self.earliest);
            self.summary.last = Some(self.latest);
        }
        self.summary.hops = self.hops.counters();
        self.summary.upstreams = self.hops.tallies().to_vec();
        self.summary
    }

    #[inline]
    fn packet(&mut self, packet: &Packet<'_>, on_event: &mut dyn FnMut(HopEvent)) {
        self.count(packet);
        match plain_frame(packet.link, packet.data, packet.wire_len) {
            Some(tcp) => self.segment(packet.at, &tcp, on_event),
            None => self.any_packet(&{ *packet }, on_event),
        }
    }

    #[inline]
    fn count(&mut self, packet: &Packet<'_>) {
        let summary = &mut self.summary;
        summary.packets += 1;
        summary.bytes += packet.data.len() as u64;
        if packet.at >= self.latest {
            self.latest = packet.at;
        } else {
            summary.late += u64::from(self.latest.since(packet.at) > LATE);
        }
        self.earliest = self.earliest.min(packet.at);
        if self.link != Some(packet.link) {
            self.link = Some(packet.link);
            summary.links.insert(packet.link);
        }
    }

    #[expect(
        clippy::inline_always,
        reason = "where the address family is known, far fewer instructions remain"
    )]
    #[inline(always)]
    fn segment(&mut self, at: Timestamp, tcp: &TcpPacket<'_>, on_event: &mut dyn FnMut(HopEvent)) {
        self.summary.segments += 1;
        match self.hops.route(at, tcp) {
            Route::Hop(hop, direction) => {
                let segment = tcp.segment(direction);
                let (engine, names) = (&mut *self.engine, &mut self.names);
                deliver(engine, names, at, hop, &segment, on_event);
            }
            Route::Nowhere => {}
            // A copy: the fields of the others need no place in memory.
            Route::Open(open) => self.settle(at, open, &{ *tcp }, on_event),
        }
    }

    /// Takes a segment whose place in the table of connections is open.
    #[inline(never)]
    fn settle(
        &mut self,
        at: Timestamp,
        open: Open,
        tcp: &TcpPacket<'_>,
        on_event: &mut dyn FnMut(HopEvent),
    ) {
        let (engine, names) = (&mut *self.engine, &mut self.names);
        self.hops.settle(open, at, tcp, &mut |at, hop, segment| {
            deliver(engine, names, at, hop, segment, on_event);
        });
    }

    /// Takes a packet of any kind.
    #[inline(never)]
    fn any_packet(&mut self, packet: &Packet<'_>, on_event: &mut dyn FnMut(HopEvent)) {
        let summary = &mut self.summary;
        if packet.link == LinkType::PDU {
            // What was inside TLS is for people: packets tell the rest.
            summary.other += 1;
            return;
        }
        match parse_frame(packet.link, packet.data, packet.wire_len) {
            Ok(IpPacket::Dns(datagram)) => {
                summary.dns += 1;
                if let Some(message) = self.names.datagram(&datagram) {
                    feed(self.engine, packet.at, on_event, |engine| {
                        engine.handle(packet.at, Input::Dns(message));
                    });
                }
            }
            Ok(IpPacket::Tcp(tcp)) => self.segment(packet.at, &tcp, on_event),
            Ok(IpPacket::Icmp(quote)) => {
                summary.icmp += 1;
                if self.hops.is_from_gateway(quote.src, quote.dst) {
                    let input = Input::Icmp {
                        error: icmp_error(&quote),
                        packet: &[],
                    };
                    feed(self.engine, packet.at, on_event, |engine| {
                        engine.handle(packet.at, input);
                    });
                }
            }
            Ok(IpPacket::Other) => summary.other += 1,
            Ok(IpPacket::Fragment) => summary.fragments += 1,
            Err(reason) => *summary.undecodable.entry(reason).or_default() += 1,
        }
    }
}

/// Reads one capture file into `engine` and ends the analysis.
pub fn analyze(
    reader: impl Read,
    options: &Options,
    engine: &mut Engine,
    on_event: &mut dyn FnMut(HopEvent),
) -> Result<Summary, SourceError> {
    let mut analysis = Analysis::new(options.clone(), engine);
    analysis.read(reader, on_event)?;
    Ok(analysis.finish(on_event))
}

fn icmp_error(quote: &IcmpQuote) -> IcmpError {
    IcmpError {
        netns: 0,
        from: quote.from,
        from_self: quote.from == quote.src.ip(),
        kind: quote.kind,
        code: quote.code,
        local: quote.src,
        upstream: quote.dst,
    }
}

/// Gives the engine a segment, or the message of DNS in it.
#[inline]
fn deliver(
    engine: &mut Engine,
    names: &mut Names,
    at: Timestamp,
    hop: HopId,
    segment: &Segment<'_>,
    on_event: &mut dyn FnMut(HopEvent),
) {
    if names::is_dns(segment) {
        names.segment(at, hop, segment, |message| {
            feed(engine, at, on_event, |engine| {
                engine.handle(at, Input::Dns(message));
            });
        });
        return;
    }
    feed(engine, at, on_event, |engine| {
        engine.handle_segment(at, hop, segment);
    });
}

/// Gives the engine one input, after the deadlines that are due before it.
#[inline]
fn feed(
    engine: &mut Engine,
    at: Timestamp,
    on_event: &mut dyn FnMut(HopEvent),
    input: impl FnOnce(&mut Engine),
) {
    if engine.poll_timeout().is_some_and(|due| due <= at) {
        expire(engine, at, on_event);
    }
    input(engine);
    drain(engine, on_event);
}

/// Lets the deadlines up to `at` expire.
fn expire(engine: &mut Engine, at: Timestamp, on_event: &mut dyn FnMut(HopEvent)) {
    while let Some(due) = engine.poll_timeout().filter(|due| *due <= at) {
        engine.handle_timeout(due);
        drain(engine, on_event);
        // An engine that asks for the same moment again is given the present one, once.
        if engine.poll_timeout().is_some_and(|next| next <= due) {
            engine.handle_timeout(at);
            break;
        }
    }
}

#[inline]
fn drain(engine: &mut Engine, on_event: &mut dyn FnMut(HopEvent)) {
    while let Some(event) = engine.poll_event() {
        on_event(event);
    }
}
