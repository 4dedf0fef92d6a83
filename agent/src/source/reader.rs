//! Capture files: pcap and pcapng, plain or compressed, to packets with their times.
//!
//! Decides where records begin and end and what time they carry. A file that is cut off or damaged
//! gives the packets before the fault and then says where it stopped; that is no error. Leaves what
//! is inside a packet alone. Memory is one window, whatever the length of the file.
//!
//! File and section headers are read by pcap-parser. Packet records are read here: their layout is
//! fixed, one broken option must not cost the packet, and blocks of other kinds are passed over
//! without being held.

use core::fmt::{self, Write as _};
use std::io::Read;

use pcap_parser::{
    OptionCode, parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le,
    parse_pcap_header,
};

use super::SourceError;
use super::window::{End, Window};
use crate::input::frame::LinkType;
use crate::model::Timestamp;

/// The longest record that is believed: above the largest packet that offload makes.
const MAX_RECORD: usize = 1024 * 1024;
/// Interfaces of one section that are kept.
const MAX_INTERFACES: usize = 65_536;

/// One packet of a capture file.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When it was captured.
    pub at: Timestamp,
    /// How its bytes begin.
    pub link: LinkType,
    /// The captured bytes.
    pub data: &'a [u8],
    /// Its length on the wire.
    pub wire_len: u32,
}

/// Where and why reading stopped before the end of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Position of the record that could not be read, after decompression.
    pub offset: u64,
    /// Packets read before it.
    pub packets: u64,
    /// What was wrong.
    pub reason: CutReason,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            packets,
            reason,
        } = self;
        write!(f, "{reason} at offset {offset}, after {packets} packets")
    }
}

/// What was wrong with a file that could not be read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// The file ends inside a record.
    Ends,
    /// A record states a length that no packet has.
    Length(u32),
    /// The compressed data are cut off or damaged.
    Compression(String),
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ends => f.write_str("file ends inside a record"),
            Self::Length(length) => write!(f, "file is damaged: a record length of {length}"),
            Self::Compression(error) => write!(f, "compressed data end early ({error})"),
        }
    }
}

/// Reads the packets of one capture file.
pub struct Reader<'r> {
    window: Window<'r>,
    format: Format,
    packets: u64,
    skipped: u64,
    last: Timestamp,
    cut: Option<Cut>,
}

enum Format {
    Pcap(Pcap),
    PcapNg {
        order: Order,
        interfaces: Vec<Interface>,
    },
}

/// What the header of a pcap file says of its records.
#[derive(Clone, Copy)]
struct Pcap {
    order: Order,
    /// Nanoseconds in a unit of the fraction.
    unit: u64,
    header_len: usize,
    link: LinkType,
}

impl Pcap {
    /// The packet of a record that begins so; `None` where its length is that of no packet.
    #[inline]
    fn record(&self, header: &[u8; 16]) -> Option<Found> {
        let [seconds, fraction, stated, wire_len] = self.order.words(header);
        let (seconds, fraction) = (u64::from(seconds), u64::from(fraction));
        let caplen = usize::try_from(stated).ok()?;
        (caplen <= MAX_RECORD).then(|| Found {
            at: Timestamp::from_nanos(seconds * 1_000_000_000 + fraction * self.unit),
            link: self.link,
            data_at: self.header_len,
            caplen,
            record_len: self.header_len + caplen,
            wire_len: believed(wire_len, stated),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    /// The four numbers that a pcap record begins with.
    #[inline]
    fn words(self, bytes: &[u8; 16]) -> [u32; 4] {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let words = [word(0), word(1), word(2), word(3)];
        match self {
            Self::Little => words.map(u32::from_le_bytes),
            Self::Big => words.map(u32::from_be_bytes),
        }
    }

    fn u16(self, bytes: &[u8], at: usize) -> u16 {
        match bytes.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) if self == Self::Big => u16::from_be_bytes(*bytes),
            Some(bytes) => u16::from_le_bytes(*bytes),
            None => 0,
        }
    }

    fn u32(self, bytes: &[u8], at: usize) -> u32 {
        match bytes.get(at..).and_then(<[u8]>::first_chunk) {
            Some(bytes) if self == Self::Big => u32::from_be_bytes(*bytes),
            Some(bytes) => u32::from_le_bytes(*bytes),
            None => 0,
        }
    }
}

/// An interface of a pcapng section.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: LinkType,
    /// Bytes kept of each packet; zero where there is no limit.
    snap_len: u32,
    resolution: Resolution,
    offset_seconds: i64,
}

/// How a pcapng timestamp counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// Units of this many nanoseconds.
    Coarse(u64),
    /// So many units in a nanosecond.
    Fine(u64),
    /// So many halvings of a second.
    Binary(u32),
}

impl Resolution {
    /// From the option `if_tsresol`: a negative power of ten, or of two with the top bit set.
    fn from_option(value: u8) -> Self {
        let exponent = u32::from(value & 0x7f);
        if value & 0x80 != 0 {
            return Self::Binary(exponent.min(63));
        }
        match exponent {
            0..=9 => Self::Coarse(10u64.pow(9 - exponent)),
            _ => Self::Fine(10u64.saturating_pow(exponent - 9)),
        }
    }

    fn nanos(self, units: u64) -> u64 {
        match self {
            Self::Coarse(nanos) => units.saturating_mul(nanos),
            Self::Fine(units_per_nano) => units / units_per_nano,
            Self::Binary(halvings) => {
                let nanos = (u128::from(units) * 1_000_000_000) >> halvings;
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
        }
    }
}

impl Interface {
    fn time(&self, high: u32, low: u32) -> Timestamp {
        let units = u64::from(high) << 32 | u64::from(low);
        let offset = self
            .offset_seconds
            .unsigned_abs()
            .saturating_mul(1_000_000_000);
        let nanos = self.resolution.nanos(units);
        Timestamp::from_nanos(if self.offset_seconds < 0 {
            nanos.saturating_sub(offset)
        } else {
            nanos.saturating_add(offset)
        })
    }
}

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
/// Obsolete, still written by old tools.
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// Where a packet lies in the window, before it is borrowed from there.
struct Found {
    at: Timestamp,
    link: LinkType,
    /// Bytes of the record before and after the data are consumed later, with it.
    data_at: usize,
    caplen: usize,
    record_len: usize,
    wire_len: u32,
}

impl<'r> Reader<'r> {
    /// Recognises the file by its first bytes and unpacks gzip and zstd.
    pub fn open(reader: impl Read + 'r) -> Result<Self, SourceError> {
        let mut window = Window::new(Box::new(reader));
        let mut packed = None;
        loop {
            window.fill(4)?;
            match window.data() {
                [0x1f, 0x8b, ..] if packed.is_none() => {
                    packed = Some("gzip");
                    window = window
                        .layer(|rest| Ok(Box::new(flate2::read::MultiGzDecoder::new(rest))))?;
                }
                [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
                    if packed.is_none() =>
                {
                    packed = Some("zstd");
                    window = window.layer(|rest| {
                        let decoder = zstd::Decoder::new(rest).map_err(SourceError::Read)?;
                        Ok(Box::new(decoder))
                    })?;
                }
                _ => break,
            }
        }
        // A pcapng section header with its byte order, or a whole pcap header.
        let complete = window.fill(24)?;
        let data = window.data();
        let Some(format) = recognise(data) else {
            return Err(SourceError::NotACapture {
                found: describe(data, packed, window.ended()),
            });
        };
        let mut reader = Self {
            window,
            format,
            packets: 0,
            skipped: 0,
            last: Timestamp::default(),
            cut: None,
        };
        if !complete {
            reader.cut_here(CutReason::Ends);
            // No part of a header is taken for a record.
            let rest = reader.window.data().len();
            reader.window.consume(rest);
        } else if matches!(reader.format, Format::Pcap(_)) {
            reader.window.consume(24);
        }
        Ok(reader)
    }

    /// The next packet, or `None` at the end or where the file cannot be read on.
    #[expect(
        clippy::inline_always,
        reason = "once a packet, and what it returns is large"
    )]
    #[inline(always)]
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_>>, SourceError> {
        let found = match self.next_in_window() {
            Some(found) => found,
            None => match self.next_found()? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        self.packets += 1;
        self.last = found.at;
        // The bytes stay where they are until the window is filled again.
        let range = self.window.take(found.record_len);
        let data = range
            .get(found.data_at..found.data_at + found.caplen)
            .unwrap_or_default();
        Ok(Some(Packet {
            at: found.at,
            link: found.link,
            data,
            wire_len: found.wire_len,
        }))
    }

    /// The next packet of a pcap file, if its record is whole in the window. Where reading was cut it is
    /// not.
    #[inline]
    fn next_in_window(&self) -> Option<Found> {
        let Format::Pcap(format) = &self.format else {
            return None;
        };
        let data = self.window.data();
        let found = format.record(data.first_chunk()?)?;
        (found.record_len <= data.len()).then_some(found)
    }

    /// The next packet, for which the window may have to be filled.
    #[inline(never)]
    fn next_found(&mut self) -> Result<Option<Found>, SourceError> {
        if self.cut.is_some() {
            return Ok(None);
        }
        match self.format {
            Format::Pcap(format) => self.next_pcap(format),
            Format::PcapNg { .. } => self.next_pcapng(),
        }
    }

    /// Packets read until now.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Packet records passed over: too long, or of an interface that was not described.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Where reading stopped, if that was before the end.
    pub const fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    fn cut_here(&mut self, reason: CutReason) {
        let reason = match self.window.ended() {
            Some(End::Broken(error)) => CutReason::Compression(error.clone()),
            _ => reason,
        };
        self.cut = Some(Cut {
            offset: self.window.offset(),
            packets: self.packets,
            reason,
        });
    }

    /// Whether `wanted` bytes are there. If not, the file ends here: cleanly, or inside a record.
    #[inline]
    fn have(&mut self, wanted: usize) -> Result<bool, SourceError> {
        if self.window.fill(wanted)? {
            return Ok(true);
        }
        self.ends_here();
        Ok(false)
    }

    #[cold]
    fn ends_here(&mut self) {
        let broken = matches!(self.window.ended(), Some(End::Broken(_)));
        if broken || !self.window.data().is_empty() {
            self.cut_here(CutReason::Ends);
        }
    }

    fn next_pcap(&mut self, format: Pcap) -> Result<Option<Found>, SourceError> {
        if !self.have(format.header_len)? {
            return Ok(None);
        }
        let Some(header) = self.window.data().first_chunk() else {
            return Ok(None);
        };
        let Some(found) = format.record(header) else {
            let [_, _, stated, _] = format.order.words(header);
            self.cut_here(CutReason::Length(stated));
            return Ok(None);
        };
        Ok(self.have(found.record_len)?.then_some(found))
    }

    fn next_pcapng(&mut self) -> Result<Option<Found>, SourceError> {
        loop {
            if !self.have(12)? {
                return Ok(None);
            }
            let Format::PcapNg { order, interfaces } = &mut self.format else {
                return Ok(None);
            };
            let block = self.window.data();
            let kind = order.u32(block, 0);
            if kind == SECTION_HEADER {
                // Its own field tells the order, which may differ from the section before.
                *order = match Order::Little.u32(block, 8) {
                    BYTE_ORDER => Order::Little,
                    other if other.swap_bytes() == BYTE_ORDER => Order::Big,
                    other => {
                        self.cut_here(CutReason::Length(other));
                        return Ok(None);
                    }
                };
                interfaces.clear();
            }
            let order = *order;
            let stated = order.u32(block, 4);
            let length = usize::try_from(stated).unwrap_or(usize::MAX);
            if length < 12 || !length.is_multiple_of(4) {
                self.cut_here(CutReason::Length(stated));
                return Ok(None);
            }
            let wanted = matches!(
                kind,
                INTERFACE_DESCRIPTION | PACKET | SIMPLE_PACKET | ENHANCED_PACKET
            );
            if !wanted || length > MAX_RECORD {
                self.skipped += u64::from(wanted);
                let offset = self.window.offset();
                if !self.window.skip(length)? {
                    self.cut_here(CutReason::Ends);
                    // The record begins where the skipping began.
                    if let Some(cut) = &mut self.cut {
                        cut.offset = offset;
                    }
                    return Ok(None);
                }
                continue;
            }
            if !self.have(length)? {
                return Ok(None);
            }
            let Format::PcapNg { interfaces, .. } = &mut self.format else {
                return Ok(None);
            };
            let block = self.window.data().get(..length).unwrap_or_default();
            if kind == INTERFACE_DESCRIPTION {
                if interfaces.len() < MAX_INTERFACES {
                    interfaces.push(interface(block, order));
                }
            } else if let Some(found) = packet_block(kind, block, order, interfaces, self.last) {
                return Ok(Some(found));
            } else {
                self.skipped += 1;
            }
            self.window.consume(length);
        }
    }
}

/// The packet in one of the three kinds of packet blocks; `None` where its lengths contradict each
/// other or its interface was never described.
fn packet_block(
    kind: u32,
    block: &[u8],
    order: Order,
    interfaces: &[Interface],
    last: Timestamp,
) -> Option<Found> {
    let (number, data_at) = match kind {
        SIMPLE_PACKET => (0, 12),
        PACKET => (u32::from(order.u16(block, 8)), 28),
        _ => (order.u32(block, 8), 28),
    };
    let interface = interfaces.get(usize::try_from(number).ok()?)?;
    let room = block.len().checked_sub(data_at + 4)?;
    let (at, caplen, wire_len) = if kind == SIMPLE_PACKET {
        // It states neither a time nor how much was kept.
        let wire_len = order.u32(block, 8);
        let snap_len = match interface.snap_len {
            0 => u32::MAX,
            limit => limit,
        };
        (last, wire_len.min(snap_len), wire_len)
    } else {
        let at = interface.time(order.u32(block, 12), order.u32(block, 16));
        (at, order.u32(block, 20), order.u32(block, 24))
    };
    let caplen_usize = usize::try_from(caplen).ok()?;
    if caplen_usize > room && kind != SIMPLE_PACKET {
        return None;
    }
    Some(Found {
        at,
        link: interface.link,
        data_at,
        caplen: caplen_usize.min(room),
        record_len: block.len(),
        wire_len: believed(wire_len, caplen),
    })
}

/// The length on the wire, unless it is less than what was captured or more than any packet has.
#[inline]
fn believed(wire_len: u32, caplen: u32) -> u32 {
    if usize::try_from(wire_len).is_ok_and(|length| length <= MAX_RECORD) {
        wire_len.max(caplen)
    } else {
        caplen
    }
}

/// The interface of a description block. Broken options leave the defaults in place.
fn interface(block: &[u8], order: Order) -> Interface {
    let mut interface = Interface {
        link: LinkType(order.u16(block, 8)),
        snap_len: order.u32(block, 12),
        resolution: Resolution::from_option(6),
        offset_seconds: 0,
    };
    let parsed = match order {
        Order::Little => parse_interfacedescriptionblock_le(block),
        Order::Big => parse_interfacedescriptionblock_be(block),
    };
    let Ok((_, description)) = parsed else {
        return interface;
    };
    for option in &description.options {
        // The option values are read here: pcap-parser takes offsets for little-endian always.
        match (option.code, option.value()) {
            (OptionCode::IfTsresol, [value, ..]) => {
                interface.resolution = Resolution::from_option(*value);
            }
            (OptionCode::IfTsoffset, value) => {
                if let Some(value) = value.first_chunk() {
                    interface.offset_seconds = match order {
                        Order::Little => i64::from_le_bytes(*value),
                        Order::Big => i64::from_be_bytes(*value),
                    };
                }
            }
            _ => {}
        }
    }
    interface
}

/// The format by the first bytes, which may be fewer than a whole header.
fn recognise(data: &[u8]) -> Option<Format> {
    let magic = u32::from_le_bytes(*data.first_chunk()?);
    if magic == SECTION_HEADER {
        // The order is set by the section header itself, which is read as the first block.
        let order = data.get(8..).and_then(<[u8]>::first_chunk::<4>);
        let known = order.is_none_or(|order| {
            [BYTE_ORDER.to_le_bytes(), BYTE_ORDER.to_be_bytes()].contains(order)
        });
        return known.then(|| Format::PcapNg {
            order: Order::Little,
            interfaces: Vec::new(),
        });
    }
    // A header that is cut off still shows the magic number.
    let mut header = [0; 24];
    let length = data.len().min(header.len());
    header
        .get_mut(..length)?
        .copy_from_slice(data.get(..length)?);
    let (_, header) = parse_pcap_header(&header).ok()?;
    Some(Format::Pcap(Pcap {
        order: if header.is_bigendian() {
            Order::Big
        } else {
            Order::Little
        },
        unit: if header.is_nanosecond_precision() {
            1
        } else {
            1000
        },
        header_len: if header.is_modified_format() { 24 } else { 16 },
        // The upper bits state the length of a frame check sequence.
        link: LinkType(u16::try_from(header.network.0 & 0xffff).unwrap_or(u16::MAX)),
    }))
}

/// What a file that is no capture begins with, in words.
fn describe(data: &[u8], packed: Option<&str>, ended: Option<&End>) -> String {
    let head = data.get(..data.len().min(8)).unwrap_or_default();
    let known = match head {
        [] => "nothing",
        [0x7f, b'E', b'L', b'F', ..] => "an ELF program",
        [b'P', b'K', 3, 4, ..] => "a zip archive: unpack it first",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz data: unpack it first",
        [b'B', b'Z', b'h', ..] => "bzip2 data: unpack it first",
        [0x04, 0x22, 0x4d, 0x18, ..] => "lz4 data: unpack it first",
        [b's', b'n', b'o', b'o', b'p', ..] => "a snoop capture: convert it to pcapng first",
        [b'G', b'M', b'B', b'U', ..] => "a Network Monitor capture: convert it to pcapng first",
        _ if head
            .iter()
            .all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')) =>
        {
            "text"
        }
        _ => "unknown data",
    };
    let mut found = String::from(known);
    if !head.is_empty() {
        found.push_str(", first bytes");
        for byte in head {
            let _ = write!(found, " {byte:02x}");
        }
    }
    if let Some(packed) = packed {
        let _ = write!(found, ", inside {packed}");
    }
    if let Some(End::Broken(error)) = ended {
        let _ = write!(found, " that cannot be unpacked ({error})");
    }
    found
}
