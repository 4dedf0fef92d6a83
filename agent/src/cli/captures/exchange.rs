//! The response in a capture, put together again from its packets.
//!
//! Decides where the response begins and how it was framed, with the reader and the parsers that
//! judge live traffic; what is remarkable about it is decided in [`super::compare`].

use core::net::SocketAddr;

use crate::http1::{
    Finding, RequestEvent, RequestHead, RequestKind, RequestParser, ResponseEvent, ResponseParser,
    Stage,
};
use crate::input::frame::parse_frame;
use crate::input::packet::{IpPacket, TcpPacket};
use crate::limits::Limits;
use crate::model::TcpFlags;
use crate::source::{Reader, SourceError};
use crate::tcp::{Chunk, Reassembler};

/// How one side ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    UpstreamClosed,
    UpstreamReset,
    GatewayClosed,
    GatewayReset,
}

/// What a capture holds of one exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exchange {
    /// The request's head, where it was captured whole.
    pub(super) request: Option<RequestHead>,
    /// The response from its first byte up to the first that was not captured.
    pub(super) response: Vec<u8>,
    /// Bytes of the response on the wire.
    pub(super) wire_bytes: u64,
    /// What is wrong with it, in the order of its bytes.
    pub(super) findings: Vec<Finding>,
    /// Where in `response` the final head is, once that is complete.
    pub(super) head: Option<Head>,
    /// Where the parser stands behind the last byte.
    pub(super) stage: Option<Stage>,
    /// Body bytes that were promised and did not come.
    pub(super) missing: Option<u64>,
    /// Bytes behind the end of the response.
    pub(super) surplus: u64,
    /// The first end that a side put to the connection.
    pub(super) end: Option<End>,
}

/// The final head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Offset behind it.
    pub(super) to: usize,
    /// How the body is framed: the parser's stage behind it.
    pub(super) framing: Stage,
}

/// The captured bytes of one direction.
#[derive(Debug, Default)]
struct Stream {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Data(Vec<u8>),
    Gap(u64),
}

impl Stream {
    /// Puts segments in order, whatever their order in the capture.
    fn new(segments: &[Segment]) -> Self {
        let mut stream = Self::default();
        let Some(first) = segments.first() else {
            return stream;
        };
        let distance = |segment: &Segment| segment.seq.wrapping_sub(first.seq).cast_signed();
        let start = segments.iter().min_by_key(|segment| distance(segment));
        let end = segments
            .iter()
            .map(|segment| segment.seq.wrapping_add(segment.wire_len))
            .max_by_key(|end| end.wrapping_sub(first.seq).cast_signed());
        let mut reassembler = Reassembler::default();
        reassembler.start(start.unwrap_or(first).seq);
        // One capture is small: nothing in it has to be dropped.
        let limits = Limits::default();
        let mut keep = |chunk: Chunk<'_>| {
            stream.pieces.push(match chunk {
                Chunk::Data(bytes) => Piece::Data(bytes.to_vec()),
                Chunk::Gap(bytes) => Piece::Gap(bytes),
            });
        };
        for segment in segments {
            let Segment {
                seq,
                payload,
                wire_len,
            } = segment;
            reassembler.push(*seq, payload, *wire_len, &limits, &mut keep);
        }
        if let Some(end) = end {
            reassembler.acknowledged(end, keep);
        }
        stream
    }
}

/// Payload of a packet.
#[derive(Debug)]
struct Segment {
    seq: u32,
    payload: Vec<u8>,
    wire_len: u32,
}

impl Segment {
    fn new(packet: &TcpPacket<'_>) -> Self {
        Self {
            seq: packet.seq,
            payload: packet.payload.to_vec(),
            wire_len: packet.wire_len,
        }
    }
}

/// Reads the exchange with `upstream` in a capture.
pub(super) fn read(pcapng: &[u8], upstream: SocketAddr) -> Result<Exchange, SourceError> {
    let mut reader = Reader::open(pcapng)?;
    let (mut to_upstream, mut from_upstream) = (Vec::new(), Vec::new());
    let mut end = None;
    while let Some(packet) = reader.next_packet()? {
        let parsed = parse_frame(packet.link, packet.data, packet.wire_len);
        let Ok(IpPacket::Tcp(packet)) = parsed else {
            continue;
        };
        let (segments, closed, reset) = if same(packet.src, upstream) {
            (&mut from_upstream, End::UpstreamClosed, End::UpstreamReset)
        } else if same(packet.dst, upstream) {
            (&mut to_upstream, End::GatewayClosed, End::GatewayReset)
        } else {
            continue;
        };
        if packet.wire_len > 0 && !packet.flags.contains(TcpFlags::SYN) {
            segments.push(Segment::new(&packet));
        }
        if packet.flags.contains(TcpFlags::RST) {
            end.get_or_insert(reset);
        } else if packet.flags.contains(TcpFlags::FIN) {
            end.get_or_insert(closed);
        }
    }
    let request = request(&Stream::new(&to_upstream));
    let mut exchange = response(&Stream::new(&from_upstream), kind(request.as_ref()));
    exchange.request = request;
    exchange.end = end;
    Ok(exchange)
}

/// An IPv4 upstream of an IPv6 socket is the same upstream.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

/// The head of the last request: the one that the response answers.
fn request(stream: &Stream) -> Option<RequestHead> {
    let mut parser = RequestParser::default();
    let mut last = None;
    for piece in &stream.pieces {
        match piece {
            Piece::Data(bytes) => {
                let mut rest = bytes.as_slice();
                loop {
                    let (taken, event) = parser.take(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    match event {
                        Some(RequestEvent::Head(head)) => last = Some(head),
                        None if rest.is_empty() || taken == 0 => break,
                        Some(_) | None => {}
                    }
                }
            }
            Piece::Gap(bytes) => {
                parser.skip(*bytes);
            }
        }
    }
    last
}

fn kind(request: Option<&RequestHead>) -> RequestKind {
    request.map(|head| head.kind).unwrap_or_default()
}

fn response(stream: &Stream, kind: RequestKind) -> Exchange {
    let mut exchange = Exchange::default();
    let mut parser = ResponseParser::new(Limits::default().head_bytes);
    let mut whole = true;
    let mut position = 0;
    for piece in &stream.pieces {
        match piece {
            Piece::Data(bytes) => {
                if whole {
                    exchange.response.extend_from_slice(bytes);
                }
                let mut rest = bytes.as_slice();
                loop {
                    let done = parser.stage() == Stage::Done;
                    let (taken, event) = parser.take(rest, kind);
                    rest = rest.get(taken..).unwrap_or_default();
                    position += taken;
                    if done {
                        exchange.surplus += taken as u64;
                    }
                    match event {
                        Some(ResponseEvent::Head) if whole => {
                            exchange.head = Some(Head {
                                to: position,
                                framing: parser.stage(),
                            });
                        }
                        None if rest.is_empty() || taken == 0 => break,
                        Some(_) | None => {}
                    }
                }
                exchange.wire_bytes += bytes.len() as u64;
            }
            Piece::Gap(bytes) => {
                whole = false;
                let mut left = *bytes;
                loop {
                    let (taken, event) = parser.skip(left);
                    left = left.saturating_sub(taken);
                    if event.is_none() || left == 0 {
                        break;
                    }
                }
                exchange.wire_bytes += bytes;
            }
        }
    }
    exchange.findings = parser.findings();
    exchange.stage = Some(parser.stage());
    exchange.missing = parser.missing();
    exchange
}

/// An exchange of which every byte was captured.
#[cfg(test)]
pub(super) fn of_bytes(request: &[u8], response: &[u8], end: Option<End>) -> Exchange {
    let stream = |bytes: &[u8]| Stream {
        pieces: vec![Piece::Data(bytes.to_vec())],
    };
    let request = self::request(&stream(request));
    let mut exchange = self::response(&stream(response), kind(request.as_ref()));
    exchange.request = request;
    exchange.end = end;
    exchange
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(seq: u32, payload: &[u8], wire_len: u32) -> Segment {
        Segment {
            seq,
            payload: payload.to_vec(),
            wire_len,
        }
    }

    fn exchange(segments: &[Segment]) -> Exchange {
        response(&Stream::new(segments), RequestKind::Plain)
    }

    #[test]
    fn segments_in_any_order_and_twice_give_one_response() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let parts = |order: [usize; 4]| {
            let all = [
                segment(u32::MAX - 9, &bytes[..20], 20),
                segment(10, &bytes[20..30], 10),
                segment(20, &bytes[30..], bytes.len() as u32 - 30),
                segment(10, &bytes[20..30], 10),
            ];
            order.map(|at| {
                let Segment {
                    seq,
                    payload,
                    wire_len,
                } = &all[at];
                segment(*seq, payload, *wire_len)
            })
        };
        for order in [[0, 1, 2, 3], [2, 3, 1, 0], [1, 0, 3, 2]] {
            let read = exchange(&parts(order));
            assert_eq!(read.response, bytes, "{order:?}");
            assert_eq!((read.stage, read.surplus), (Some(Stage::Done), 0));
            assert_eq!(
                read.head,
                Some(Head {
                    to: 38,
                    framing: Stage::SizedBody
                })
            );
        }
    }

    #[test]
    fn what_was_not_captured_ends_the_bytes_but_not_the_judgement() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n";
        let read = exchange(&[segment(0, head, head.len() as u32 + 400)]);
        assert_eq!(read.response, head);
        assert_eq!(read.wire_bytes, head.len() as u64 + 400);
        assert_eq!(
            (read.stage, read.missing),
            (Some(Stage::SizedBody), Some(100))
        );
    }

    #[test]
    fn an_interim_response_is_no_end() {
        let bytes =
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n+1";
        let read = of_bytes(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", bytes, None);
        assert_eq!(read.head.map(|head| head.to), Some(bytes.len() - 2));
        assert_eq!((read.stage, read.surplus), (Some(Stage::Done), 2));
        assert_eq!(
            read.request.as_ref().and_then(RequestHead::path).as_deref(),
            Some("/a")
        );
    }
}
