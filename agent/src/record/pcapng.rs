//! One capture as one pcapng section (draft-ietf-opsawg-pcapng), and back to its place in the index.
//!
//! A section is: its header with the gateway process as a comment and the event as JSON in a custom
//! option, one interface (raw IP, nanoseconds), the packets, and a seal. What the gateway's TLS library showed
//! of the inside comes on a second interface, as Wireshark exports what it decrypts, each piece with a
//! comment that says so. Sections one after another are
//! a valid file, so a file of the store opens in Wireshark as it is. The verdict is the comment of the
//! packet that decided it.
//!
//! The seal is an interface statistics block, which tools pass over, with a CRC-32 over everything
//! before it in a custom option. The CRC begins with the salt of the file that holds it. It tells a whole capture from a damaged one, and a capture from bytes in a packet
//! that look like one.
//!
//! Checksums in the packets are left as they were captured: those of a packet whose bytes were masked
//! no longer fit, and tools that verify them can tell.

use core::net::SocketAddr;
use std::fmt::Write as _;
use std::sync::Arc;

use flate2::Crc;
use serde::{Deserialize, Serialize};

use super::capture::{Capture, CaptureId, CaptureInfo, CapturedPacket, ExchangeLine};
use crate::input::pdu::is_pdu;
use crate::model::{Cause, Direction, EvidenceSource, HopEvent, Timestamp};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const STATISTICS: u32 = 5;
/// Private enterprise number for examples (RFC 5612): hopscope has none of its own.
const ENTERPRISE: u32 = 32473;
const MAGIC: u32 = 0x1a2b_3c4d;
/// Raw IPv4 or IPv6.
const LINK_RAW: u16 = 101;
/// What is inside TLS: [`crate::input::pdu`].
const LINK_PDU: u16 = 252;

const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_APPLICATION: u16 = 4;
const IF_NAME: u16 = 2;
const IF_RESOLUTION: u16 = 9;
const EPB_FLAGS: u16 = 2;
/// Custom options with UTF-8 text and with bytes, that tools may copy.
const OPT_CUSTOM_TEXT: u16 = 2988;
const OPT_CUSTOM_BYTES: u16 = 2989;

/// Marks custom options as ours, whoever else uses the number.
const OURS: &[u8; 8] = b"hopscope";

/// Type, length, magic, version and section length.
const SECTION_FIXED: usize = 24;
/// A seal: type, length, interface and time; an option with enterprise, mark and checksum; the end of
/// options, and the length again.
const SEAL_LEN: usize = (4 + 4 + 4 + 8) + (4 + 4 + 8 + 4) + 4 + 4;
/// Longer than any section that is written: 64 KiB of options twice, and packets.
const MAX_SECTION: usize = 16 << 20;
/// What an option can hold, less its enterprise number and mark.
const MAX_JSON: usize = 65_535 - 12;
const MAX_COMMENT: usize = 4096;

/// What the index needs of a capture, in its own words. Unknown keys of later versions do no harm.
#[derive(Serialize, Deserialize)]
struct Meta {
    id: String,
    time_ns: u64,
    node: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    upstream: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    packets: u32,
}

#[derive(Serialize)]
struct Written<'a> {
    capture: &'a Meta,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a HopEvent>,
}

#[derive(Deserialize)]
struct Read {
    capture: Meta,
}

/// A capture as a section that wants only its seal, and what the index holds about it.
pub(super) struct Unsealed {
    bytes: Vec<u8>,
    info: CaptureInfo,
}

impl Unsealed {
    /// What the index holds about it, as [`read_info`] reads it from the section.
    pub(super) const fn info(&self) -> &CaptureInfo {
        &self.info
    }

    /// The whole section, for a file with `salt`.
    pub(super) fn seal(mut self, salt: u64) -> (Vec<u8>, CaptureInfo) {
        let checksum = checksum(&self.bytes, salt);
        seal(&mut self.bytes, checksum);
        (self.bytes, self.info)
    }
}

/// A capture as a section.
pub(super) fn write(capture: &Capture, id: CaptureId) -> Unsealed {
    let held: usize = capture
        .packets
        .iter()
        .map(|kept| kept.bytes.len() + 96)
        .sum();
    let mut out = Vec::with_capacity(held + 4096);
    let meta = Meta::of(capture, id);
    section_header(&mut out, capture, &meta);
    interface(&mut out, LINK_RAW, b"hop");
    if capture.packets.iter().any(|kept| is_pdu(&kept.bytes)) {
        interface(&mut out, LINK_PDU, b"inside TLS");
    }
    let comment = capture.event.as_ref().map(verdict_line);
    let decisive = decisive_packet(capture);
    for (index, kept) in capture.packets.iter().enumerate() {
        let comment = comment.as_deref().filter(|_| index == decisive);
        packet(&mut out, kept, comment);
    }
    // The length of a section counts what follows its header block.
    let length = (out.len() + SEAL_LEN - header_len(&out)) as u64;
    if let Some(field) = out.get_mut(16..SECTION_FIXED) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    let info = CaptureInfo {
        id,
        time: capture.time,
        node: if meta.node.len() == capture.node.len() {
            Arc::clone(&capture.node)
        } else {
            Arc::from(meta.node)
        },
        event_id: meta.event_id,
        cause: capture.event.as_ref().map(|event| event.cause),
        upstream: capture.upstream,
        exchange: ExchangeLine {
            method: meta.method,
            path: meta.path,
            status: meta.status,
        },
        packets: meta.packets,
        bytes: (out.len() + SEAL_LEN) as u64,
    };
    Unsealed { bytes: out, info }
}

fn seal(out: &mut Vec<u8>, checksum: u32) {
    block(out, STATISTICS, |out| {
        out.extend([0; 12]);
        let mut value = Vec::with_capacity(16);
        value.extend(ENTERPRISE.to_le_bytes());
        value.extend(OURS);
        value.extend(checksum.to_le_bytes());
        option(out, OPT_CUSTOM_BYTES, &value);
        option(out, OPT_END, &[]);
    });
}

fn checksum(bytes: &[u8], salt: u64) -> u32 {
    let mut crc = Crc::new();
    crc.update(&salt.to_le_bytes());
    crc.update(bytes);
    crc.sum()
}

fn section_header(out: &mut Vec<u8>, capture: &Capture, meta: &Meta) {
    block(out, SECTION, |out| {
        out.extend(MAGIC.to_le_bytes());
        out.extend([1, 0, 0, 0]);
        // Its length, once it is known.
        out.extend([0; 8]);
        option(
            out,
            OPT_COMMENT,
            clip(&process_line(capture), MAX_COMMENT).as_bytes(),
        );
        let application = concat!("hopscope ", env!("CARGO_PKG_VERSION"));
        option(out, SHB_APPLICATION, application.as_bytes());
        let json = json(capture, meta);
        let mut value = Vec::with_capacity(json.len() + 12);
        value.extend(ENTERPRISE.to_le_bytes());
        value.extend(OURS);
        value.extend(json.as_bytes());
        option(out, OPT_CUSTOM_TEXT, &value);
        option(out, OPT_END, &[]);
    });
}

impl Meta {
    fn of(capture: &Capture, id: CaptureId) -> Self {
        let event = capture.event.as_ref();
        let line = &capture.exchange;
        Self {
            id: id.to_string(),
            time_ns: capture.time.as_nanos(),
            node: clip(&capture.node, 256).to_owned(),
            event_id: event.map(|event| event.id.clone()),
            cause: event.map(|event| event.cause.id().to_owned()),
            upstream: capture.upstream.to_string(),
            method: line
                .method
                .as_deref()
                .map(|method| clip(method, 64).to_owned()),
            path: line.path.as_deref().map(|path| clip(path, 1024).to_owned()),
            status: line.status,
            packets: u32::try_from(capture.packets.len()).unwrap_or(u32::MAX),
        }
    }
}

fn json(capture: &Capture, meta: &Meta) -> String {
    let write = |event| {
        serde_json::to_string(&Written {
            capture: meta,
            event,
        })
    };
    // An event that is too large for an option is left out: the comment names its cause.
    let whole = write(capture.event.as_ref())
        .ok()
        .filter(|json| json.len() <= MAX_JSON);
    whole.or_else(|| write(None).ok()).unwrap_or_default()
}

/// The gateway process in one line.
fn process_line(capture: &Capture) -> String {
    let mut line = format!("node {}", capture.node);
    if let Some(gateway) = &capture.gateway {
        let _ = write!(line, ", gateway {} (pid {})", gateway.comm, gateway.pid);
        if !gateway.cgroup.is_empty() {
            let _ = write!(line, ", cgroup {}", gateway.cgroup);
        }
        if let Some(container) = &gateway.container_id {
            let _ = write!(line, ", container {container}");
        }
        let _ = write!(line, ", network namespace {}", gateway.netns);
    }
    let _ = write!(line, ", upstream {}", capture.upstream);
    line
}

/// The verdict in one line.
fn verdict_line(event: &HopEvent) -> String {
    let mut line = format!("{} ({})", event.cause, event.proof.as_str());
    let _ = write!(line, ", upstream {}", event.upstream);
    if let Some(decisive) = event.evidence.first() {
        let _ = write!(line, ": {}", decisive.text);
    }
    if let Some(splitter) = &event.splitter {
        let rivals: Vec<_> = event.rivals.iter().map(|rival| rival.id()).collect();
        let _ = write!(line, "; or {}; {splitter}", rivals.join(", "));
    }
    if let Some(answer) = &event.gateway_answer {
        let client = SocketAddr::new(answer.client.address, answer.client.port);
        let _ = match answer.status {
            Some(status) => write!(line, "; client {client} got {status}"),
            None => write!(line, "; client {client} got no answer"),
        };
    } else if event.hidden_from_client {
        line += "; the client saw no failure";
    }
    let line: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    clip(&line, MAX_COMMENT).to_owned()
}

/// The packet that bears the verdict: the last of the upstream's with the decisive bytes where bytes
/// decided, the last one up to the verdict otherwise.
fn decisive_packet(capture: &Capture) -> usize {
    let last = capture.packets.len().saturating_sub(1);
    let Some(event) = &capture.event else {
        return last;
    };
    // What came behind the verdict did not decide it, nor did it where everything is later.
    let before = |kept: &CapturedPacket| kept.at <= event.time;
    let last = capture.packets.iter().rposition(before).unwrap_or(last);
    let bytes = event.evidence.first().filter(|decisive| {
        let seen = matches!(
            decisive.source,
            EvidenceSource::Packet | EvidenceSource::TlsLibrary
        );
        seen && !decisive.bytes.is_empty()
    });
    let Some(decisive) = bytes else {
        return last;
    };
    let shows = |kept: &CapturedPacket| {
        kept.direction == Direction::FromUpstream
            && memchr::memmem::find(&kept.bytes, &decisive.bytes).is_some()
    };
    capture.packets.iter().rposition(shows).unwrap_or(last)
}

fn interface(out: &mut Vec<u8>, link: u16, name: &[u8]) {
    block(out, INTERFACE, |out| {
        out.extend(link.to_le_bytes());
        out.extend([0; 2]);
        // No limit: packets are cut each at its own place.
        out.extend(0u32.to_le_bytes());
        option(out, IF_NAME, name);
        option(out, IF_RESOLUTION, &[9]);
        option(out, OPT_END, &[]);
    });
}

/// What is said of a piece of what is inside TLS.
const fn inside(direction: Direction) -> &'static str {
    match direction {
        Direction::ToUpstream => {
            "inside TLS, as the gateway's TLS library took it (SSL_write): no packet of the wire"
        }
        Direction::FromUpstream => {
            "inside TLS, as the gateway's TLS library gave it (SSL_read): no packet of the wire"
        }
    }
}

fn packet(out: &mut Vec<u8>, kept: &CapturedPacket, comment: Option<&str>) {
    let is_inside = is_pdu(&kept.bytes);
    block(out, PACKET, |out| {
        let nanos = kept.at.as_nanos();
        let captured = u32::try_from(kept.bytes.len()).unwrap_or(u32::MAX);
        out.extend(u32::from(is_inside).to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
        let (high, low) = ((nanos >> 32) as u32, nanos as u32);
        out.extend(high.to_le_bytes());
        out.extend(low.to_le_bytes());
        out.extend(captured.to_le_bytes());
        out.extend(kept.wire_len.max(captured).to_le_bytes());
        out.extend(&kept.bytes);
        pad(out, kept.bytes.len());
        let inbound: u32 = match kept.direction {
            Direction::FromUpstream => 1,
            Direction::ToUpstream => 2,
        };
        option(out, EPB_FLAGS, &inbound.to_le_bytes());
        if is_inside {
            option(out, OPT_COMMENT, inside(kept.direction).as_bytes());
        }
        if let Some(comment) = comment {
            option(out, OPT_COMMENT, comment.as_bytes());
        }
        option(out, OPT_END, &[]);
    });
}

/// A block of `kind` with what `body` writes, which it must leave at a multiple of four bytes.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = u32::try_from(out.len() + 4 - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    out.extend(length.to_le_bytes());
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = value.get(..usize::from(length)).unwrap_or(value);
    out.extend(code.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend(std::iter::repeat_n(0, length.wrapping_neg() % 4));
}

/// At most `most` bytes of a text, cut between characters.
fn clip(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

fn header_len(section: &[u8]) -> usize {
    u32_at(section, 4).map_or(0, |length| length as usize)
}

/// Whether a section may begin with these bytes.
pub(super) fn begins_section(bytes: &[u8]) -> bool {
    u32_at(bytes, 0) == Some(SECTION) && u32_at(bytes, 8) == Some(MAGIC)
}

/// Length of the section that these bytes begin, by its own words; `None` where they make no sense.
pub(super) fn section_len(bytes: &[u8]) -> Option<usize> {
    if !begins_section(bytes) {
        return None;
    }
    let header = header_len(bytes);
    let rest = u64::from_le_bytes(*bytes.get(16..)?.first_chunk()?);
    let length = usize::try_from(rest).ok()?.checked_add(header)?;
    (length <= MAX_SECTION && header >= SECTION_FIXED + 4 && header <= length).then_some(length)
}

/// Whether a section is whole and was sealed with `salt`.
pub(super) fn is_sealed(section: &[u8], salt: u64) -> bool {
    let Some(at) = section.len().checked_sub(SEAL_LEN) else {
        return false;
    };
    let (body, found) = section.split_at(at);
    if section_len(section) != Some(section.len()) || !found.starts_with(&STATISTICS.to_le_bytes())
    {
        return false;
    }
    let mut expected = Vec::with_capacity(SEAL_LEN);
    seal(&mut expected, checksum(body, salt));
    found == expected
}

/// What the index holds about a sealed section; `None` where this version cannot read it.
pub(super) fn read_info(section: &[u8]) -> Option<CaptureInfo> {
    let json = custom_json(section.get(SECTION_FIXED..header_len(section).checked_sub(4)?)?)?;
    let Read { capture: meta } = serde_json::from_slice(json).ok()?;
    Some(CaptureInfo {
        id: meta.id.parse().ok()?,
        time: Timestamp::from_nanos(meta.time_ns),
        node: meta.node.into(),
        event_id: meta.event_id,
        cause: meta.cause.as_deref().and_then(Cause::from_id),
        upstream: meta.upstream.parse().ok()?,
        exchange: ExchangeLine {
            method: meta.method,
            path: meta.path,
            status: meta.status,
        },
        packets: meta.packets,
        bytes: section.len() as u64,
    })
}

/// The JSON among the options of a section header.
fn custom_json(mut options: &[u8]) -> Option<&[u8]> {
    loop {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let code = u16::from_le_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let value = rest.get(..length)?;
        if code == OPT_CUSTOM_TEXT && value.get(4..12) == Some(OURS) {
            return value.get(12..);
        }
        options = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
#[path = "pcapng_tests.rs"]
mod tests;
