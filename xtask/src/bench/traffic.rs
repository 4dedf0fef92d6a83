//! Captures of made-up HTTP/1 traffic between a gateway and its upstreams. The same case and size give
//! the same bytes: there is no clock and no chance in it.
//!
//! Connections take turns packet by packet, as they do on a busy gateway. Checksums are left at zero,
//! as offload leaves them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};

/// What the traffic looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Case {
    /// Keep-alive connections with bodies in full-size segments.
    FullSegments,
    /// Keep-alive connections with answers of a few hundred bytes.
    SmallSegments,
    /// One request a connection.
    ShortConnections,
}

impl Case {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::FullSegments => "full-segments",
            Self::SmallSegments => "small-segments",
            Self::ShortConnections => "short-connections",
        }
    }

    const fn body_bytes(self) -> usize {
        match self {
            Self::FullSegments => 64 * 1024,
            Self::SmallSegments => 120,
            Self::ShortConnections => 200,
        }
    }

    const fn exchanges_a_connection(self) -> u64 {
        match self {
            Self::FullSegments | Self::SmallSegments => 100,
            Self::ShortConnections => 1,
        }
    }

    /// Between packets: short connections come at about 50,000 a second.
    const fn step_nanos(self) -> u64 {
        match self {
            Self::FullSegments | Self::SmallSegments => 5_000,
            Self::ShortConnections => 2_000,
        }
    }
}

/// When to stop: keep-alive traffic at a file size, short connections at a number of them.
#[derive(Clone, Copy)]
pub(super) struct Size {
    bytes: u64,
    connections: u64,
}

impl Size {
    pub(super) const FULL: Self = Self {
        bytes: 1_000_000_000,
        connections: 1_000_000,
    };
    pub(super) const QUICK: Self = Self {
        bytes: 200_000_000,
        connections: 200_000,
    };
}

/// What a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) failures: u64,
}

/// Connections that take turns.
const IN_FLIGHT: u64 = 256;
const UPSTREAMS: u64 = 8;
/// One exchange of so many fails.
const FAILS: u64 = 100;
const SEGMENT_BYTES: usize = 1448;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToUpstream,
    FromUpstream,
}

enum Payload {
    None,
    Text(String),
    /// So many bytes of a body.
    Body(usize),
}

struct Packet {
    way: Way,
    flags: u8,
    payload: Payload,
}

/// One connection and the packets that it will send next.
struct Connection {
    number: u64,
    sequence: [u32; 2],
    exchanges: u64,
    script: VecDeque<Packet>,
    /// The script ends the connection.
    closing: bool,
}

/// Writes a capture file.
pub(super) fn write(case: Case, size: Size, path: &Path) -> Result<Written> {
    let create = || -> io::Result<Written> {
        let out = BufWriter::with_capacity(256 * 1024, File::create(path)?);
        let mut writer = Writer::new(out, case)?;
        generate(case, size, &mut writer)?;
        writer.out.flush()?;
        Ok(writer.written)
    };
    create().with_context(|| format!("could not write the capture {}", path.display()))
}

fn generate<W: Write>(case: Case, size: Size, writer: &mut Writer<W>) -> io::Result<()> {
    let mut traffic = Traffic {
        case,
        connections: 0,
        exchanges: 0,
        failures: 0,
    };
    let mut flying: Vec<_> = (0..IN_FLIGHT).map(|_| traffic.connection()).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while !flying.is_empty() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let turn = usize::try_from(random % flying.len() as u64).unwrap_or(0);
        let Some(connection) = flying.get_mut(turn) else {
            break;
        };
        if let Some(packet) = connection.script.pop_front() {
            writer.packet(connection, &packet)?;
            continue;
        }
        let enough = match case {
            Case::ShortConnections => traffic.connections >= size.connections,
            _ => writer.written.bytes >= size.bytes,
        };
        if !connection.closing {
            traffic.next(connection, enough);
        } else if enough {
            flying.swap_remove(turn);
        } else {
            *connection = traffic.connection();
        }
    }
    writer.written.failures = traffic.failures;
    Ok(())
}

/// Decides what connections say.
struct Traffic {
    case: Case,
    connections: u64,
    exchanges: u64,
    failures: u64,
}

impl Traffic {
    fn connection(&mut self) -> Connection {
        let number = self.connections;
        self.connections += 1;
        let mut connection = Connection {
            number,
            sequence: [0x1000_0000, 0x2000_0000],
            exchanges: 0,
            script: VecDeque::new(),
            closing: false,
        };
        connection.push(Way::ToUpstream, SYN);
        // Every fourth failure is a connect that is refused.
        if self.fails() && self.failures.is_multiple_of(4) {
            self.count_exchange();
            connection.push(Way::FromUpstream, RST | ACK);
            connection.closing = true;
        } else {
            connection.push(Way::FromUpstream, SYN | ACK);
            connection.push(Way::ToUpstream, ACK);
        }
        connection
    }

    const fn fails(&self) -> bool {
        self.exchanges % FAILS == FAILS - 1
    }

    const fn count_exchange(&mut self) {
        if self.fails() {
            self.failures += 1;
        }
        self.exchanges += 1;
    }

    /// Another exchange, or the end of the connection.
    fn next(&mut self, connection: &mut Connection, enough: bool) {
        let most = self.case.exchanges_a_connection();
        if connection.exchanges >= most || (enough && connection.exchanges > 0) {
            connection.closing = true;
            connection.push(Way::ToUpstream, FIN | ACK);
            connection.push(Way::FromUpstream, FIN | ACK);
            connection.push(Way::ToUpstream, ACK);
            return;
        }
        connection.exchanges += 1;
        let failure = self.fails().then_some(self.failures % 4);
        let id = self.exchanges;
        self.count_exchange();
        connection.request(id);
        match failure {
            None => connection.response(self.case.body_bytes(), self.case.body_bytes()),
            Some(1) => {
                // The body breaks off.
                let body = self.case.body_bytes();
                connection.response(body, body / 2);
                connection.upstream_closes();
            }
            Some(2) => {
                let head =
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n";
                connection.push_text(Way::FromUpstream, head.to_owned());
                connection.push(Way::ToUpstream, RST | ACK);
                connection.closing = true;
            }
            Some(_) => {
                connection.push(Way::FromUpstream, RST | ACK);
                connection.closing = true;
            }
        }
    }
}

impl Connection {
    fn push(&mut self, way: Way, flags: u8) {
        self.script.push_back(Packet {
            way,
            flags,
            payload: Payload::None,
        });
    }

    fn push_text(&mut self, way: Way, text: String) {
        self.script.push_back(Packet {
            way,
            flags: PSH | ACK,
            payload: Payload::Text(text),
        });
    }

    fn request(&mut self, id: u64) {
        // A few paths again and again: tshark lists each that differs, in quadratic time.
        let item = id % 100;
        let text = format!(
            "GET /shop/items/{item}?page=2 HTTP/1.1\r\nHost: shop.example\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\n\
             X-Forwarded-For: 192.0.2.7\r\nX-Request-ID: {id:032x}\r\n\r\n"
        );
        self.push_text(Way::ToUpstream, text);
    }

    /// A response that promises a body of `stated` bytes and sends `sent` of them.
    fn response(&mut self, stated: usize, sent: usize) {
        let head = format!(
            "HTTP/1.1 200 OK\r\nServer: app\r\nContent-Type: text/html\r\n\
             Cache-Control: no-store\r\nContent-Length: {stated}\r\n\r\n"
        );
        if head.len() + sent <= SEGMENT_BYTES {
            let body = "x".repeat(sent);
            self.push_text(Way::FromUpstream, head + &body);
        } else {
            self.push_text(Way::FromUpstream, head);
            let mut left = sent;
            let mut unacknowledged = 0;
            while left > 0 {
                let bytes = left.min(SEGMENT_BYTES);
                left -= bytes;
                self.script.push_back(Packet {
                    way: Way::FromUpstream,
                    flags: ACK,
                    payload: Payload::Body(bytes),
                });
                // Every other segment is acknowledged (RFC 9293 section 3.8.6.3).
                unacknowledged += 1;
                if unacknowledged % 2 == 0 && left > 0 {
                    self.push(Way::ToUpstream, ACK);
                }
            }
        }
        self.push(Way::ToUpstream, ACK);
    }

    fn upstream_closes(&mut self) {
        self.push(Way::FromUpstream, FIN | ACK);
        self.push(Way::ToUpstream, FIN | ACK);
        self.push(Way::FromUpstream, ACK);
        self.closing = true;
    }
}

/// Writes packets as a pcap file of Ethernet frames.
struct Writer<W> {
    out: W,
    case: Case,
    body: Vec<u8>,
    written: Written,
}

const FILE_HEADER_BYTES: u64 = 24;
const HEADER_BYTES: usize = 14 + 20 + 20;

impl<W: Write> Writer<W> {
    fn new(mut out: W, case: Case) -> io::Result<Self> {
        out.write_all(&0xa1b2_3c4d_u32.to_le_bytes())?;
        out.write_all(&[2, 0, 4, 0])?;
        out.write_all(&[0; 8])?;
        out.write_all(&262_144_u32.to_le_bytes())?;
        out.write_all(&1_u32.to_le_bytes())?;
        Ok(Self {
            out,
            case,
            body: b"<li>item of the shop</li>\n".repeat(64),
            written: Written {
                bytes: FILE_HEADER_BYTES,
                ..Written::default()
            },
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields of a header; none of the values is near its field's end"
    )]
    fn packet(&mut self, connection: &mut Connection, packet: &Packet) -> io::Result<()> {
        let payload = match &packet.payload {
            Payload::None => &[][..],
            Payload::Text(text) => text.as_bytes(),
            Payload::Body(bytes) => self.body.get(..*bytes).unwrap_or_default(),
        };
        let nanos = self.written.packets * self.case.step_nanos();
        let length = (HEADER_BYTES + payload.len()) as u32;
        let mut record = [0; 16];
        let seconds = 1_700_000_000 + (nanos / 1_000_000_000) as u32;
        let fields = [seconds, (nanos % 1_000_000_000) as u32, length, length];
        for (field, value) in record.chunks_exact_mut(4).zip(fields) {
            field.copy_from_slice(&value.to_le_bytes());
        }

        // Every address has its own range of ports, so that no connection repeats another's.
        let (address, port) = (connection.number / 40_000, connection.number % 40_000);
        let gateway = ([10, 0, 0, 1 + address as u8], 20_000 + port as u16);
        let upstream = ([10, 1, 0, 1 + (connection.number % UPSTREAMS) as u8], 8080);
        let (from, to, own) = match packet.way {
            Way::ToUpstream => (gateway, upstream, 0),
            Way::FromUpstream => (upstream, gateway, 1),
        };
        let [sequence, acknowledged] = match own {
            0 => connection.sequence,
            _ => [connection.sequence[1], connection.sequence[0]],
        };
        let mut frame = Vec::with_capacity(HEADER_BYTES);
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
        frame.extend([0x45, 0]);
        frame.extend((length as u16 - 14).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(from.0);
        frame.extend(to.0);
        frame.extend(u16::to_be_bytes(from.1));
        frame.extend(u16::to_be_bytes(to.1));
        frame.extend(sequence.to_be_bytes());
        let acks = packet.flags & ACK != 0;
        frame.extend((if acks { acknowledged } else { 0 }).to_be_bytes());
        frame.extend([0x50, packet.flags, 0xff, 0xff, 0, 0, 0, 0]);

        let takes = u32::from(packet.flags & (SYN | FIN) != 0) + payload.len() as u32;
        connection.sequence[own] = connection.sequence[own].wrapping_add(takes);
        self.written.packets += 1;
        self.written.bytes += record.len() as u64 + u64::from(length);
        self.out.write_all(&record)?;
        self.out.write_all(&frame)?;
        self.out.write_all(payload)
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn bytes(case: Case) -> (Vec<u8>, Written) {
        let size = Size {
            bytes: 4_000_000,
            connections: 1_000,
        };
        let mut writer = Writer::new(Vec::new(), case).unwrap();
        generate(case, size, &mut writer).unwrap();
        (writer.out, writer.written)
    }

    #[test]
    fn the_same_case_gives_the_same_bytes() {
        for case in Case::value_variants() {
            let (first, written) = bytes(*case);
            assert_eq!(first, bytes(*case).0, "{}", case.name());
            assert_eq!(written.bytes, first.len() as u64);
        }
    }

    #[test]
    fn one_exchange_of_a_hundred_fails() {
        let (_, written) = bytes(Case::ShortConnections);
        assert_eq!(written.failures, 10);
    }
}
