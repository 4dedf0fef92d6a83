//! The response in a capture, put together again from its packets.
//!
//! Decides which response it is (a capture may begin with earlier exchanges of the connection, so it is
//! the one to the last request) and how it was framed, with the reader and the parsers that judge live
//! traffic. What is remarkable about it is decided in [`super::compare`].

use core::net::SocketAddr;

use crate::http1::{
    Finding, RequestEvent, RequestHead, RequestKind, RequestParser, ResponseEvent, ResponseParser,
    Stage,
};
use crate::input::frame::{LinkType, parse_frame};
use crate::input::packet::{IpPacket, TcpPacket};
use crate::input::pdu;
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

/// Payload of a packet.
#[derive(Debug)]
struct Segment {
    /// Place of the packet in the capture.
    place: usize,
    seq: u32,
    payload: Vec<u8>,
    wire_len: u32,
}

impl Segment {
    fn new(place: usize, packet: &TcpPacket<'_>) -> Self {
        Self {
            place,
            seq: packet.seq,
            payload: packet.payload.to_vec(),
            wire_len: packet.wire_len,
        }
    }

    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.wire_len)
    }
}

/// The earliest of sequence numbers that are close together.
fn earliest(mut numbers: impl Iterator<Item = u32>) -> Option<u32> {
    let first = numbers.next()?;
    let before = numbers.map(|number| number.wrapping_sub(first).cast_signed());
    let distance = before.min().unwrap_or_default().min(0);
    Some(first.wrapping_add_signed(distance))
}

/// The latest of sequence numbers that are close together.
fn latest(mut numbers: impl Iterator<Item = u32>) -> Option<u32> {
    let first = numbers.next()?;
    let behind = numbers.map(|number| number.wrapping_sub(first).cast_signed());
    let distance = behind.max().unwrap_or_default().max(0);
    Some(first.wrapping_add_signed(distance))
}

/// Hands over the payload of one direction in the order of its bytes, each piece with the place of the
/// packet that completed it. The bytes begin at `start`, or with the first that is there.
fn in_order<'s>(
    segments: impl Iterator<Item = &'s Segment> + Clone,
    start: Option<u32>,
    mut sink: impl FnMut(usize, Chunk<'_>),
) {
    let begins = segments.clone().map(|segment| segment.seq);
    let Some(start) = start.or_else(|| earliest(begins)) else {
        return;
    };
    let mut reassembler = Reassembler::default();
    reassembler.start(start);
    // One capture is small: nothing in it has to be dropped.
    let limits = Limits::default();
    let mut last = 0;
    for segment in segments.clone() {
        let Segment {
            place,
            seq,
            payload,
            wire_len,
        } = segment;
        last = *place;
        reassembler.push(*seq, payload, *wire_len, &limits, |chunk| {
            sink(*place, chunk);
        });
    }
    if let Some(end) = latest(segments.map(Segment::end)) {
        reassembler.acknowledged(end, |chunk| sink(last, chunk));
    }
}

/// Reads the last exchange with `upstream` in a capture.
pub(super) fn read(pcapng: &[u8], upstream: SocketAddr) -> Result<Exchange, SourceError> {
    let mut reader = Reader::open(pcapng)?;
    let (mut to_upstream, mut from_upstream) = (Vec::new(), Vec::new());
    // The same inside TLS, where the gateway's library showed it.
    let (mut to_inside, mut from_inside) = (Vec::new(), Vec::new());
    let mut end = None;
    let mut place = 0;
    while let Some(packet) = reader.next_packet()? {
        place += 1;
        if packet.link == LinkType::PDU {
            let Some(pdu) = pdu::parse(packet.data, packet.wire_len) else {
                continue;
            };
            let segments = if same(pdu.src, upstream) {
                &mut from_inside
            } else if same(pdu.dst, upstream) {
                &mut to_inside
            } else {
                continue;
            };
            segments.push(Segment {
                place,
                seq: pdu.offset,
                payload: pdu.payload.to_vec(),
                wire_len: pdu.len,
            });
            continue;
        }
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
            segments.push(Segment::new(place, &packet));
        }
        if packet.flags.contains(TcpFlags::RST) {
            end.get_or_insert(reset);
        } else if packet.flags.contains(TcpFlags::FIN) {
            end.get_or_insert(closed);
        }
    }
    if !to_inside.is_empty() {
        (to_upstream, from_upstream) = (to_inside, from_inside);
    }
    Ok(Exchange {
        end,
        ..last(&to_upstream, &from_upstream)
    })
}

/// An IPv4 upstream of an IPv6 socket is the same upstream.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

/// The last request and what was sent after it began.
fn last(to_upstream: &[Segment], from_upstream: &[Segment]) -> Exchange {
    let (request, began) = last_request(to_upstream);
    let kind = request.as_ref().map(|head| head.kind).unwrap_or_default();
    let before = from_upstream.iter().filter(|segment| segment.place < began);
    let behind = from_upstream
        .iter()
        .filter(|segment| segment.place >= began);
    // Bytes that are sent again belong to the exchanges before.
    let start = latest(before.map(Segment::end));
    let mut response = Response::new(kind);
    in_order(behind, start, |_, chunk| response.take(&chunk));
    Exchange {
        request,
        ..response.end()
    }
}

/// The last request, as far as its head is there, and the place of the packet with which it began.
fn last_request(segments: &[Segment]) -> (Option<RequestHead>, usize) {
    let mut parser = RequestParser::default();
    let (mut request, mut began) = (None, 0);
    in_order(segments.iter(), None, |place, chunk| {
        let mut rest = match chunk {
            Chunk::Data(bytes) => bytes,
            Chunk::Gap(bytes) => {
                parser.skip(bytes);
                return;
            }
        };
        loop {
            let (taken, event) = parser.take(rest);
            rest = rest.get(taken..).unwrap_or_default();
            match event {
                Some(RequestEvent::Begin) => (request, began) = (None, place),
                Some(RequestEvent::Head(head)) => request = Some(head),
                None if rest.is_empty() || taken == 0 => break,
                Some(_) | None => {}
            }
        }
    });
    (request, began)
}

/// A response while it is put together.
struct Response {
    kind: RequestKind,
    parser: ResponseParser,
    /// Whether every byte so far was captured.
    whole: bool,
    exchange: Exchange,
}

impl Response {
    fn new(kind: RequestKind) -> Self {
        Self {
            kind,
            parser: ResponseParser::new(Limits::default().head_bytes),
            whole: true,
            exchange: Exchange::default(),
        }
    }

    fn take(&mut self, chunk: &Chunk<'_>) {
        match chunk {
            Chunk::Data(bytes) => self.take_bytes(bytes),
            Chunk::Gap(bytes) => self.skip(*bytes),
        }
    }

    fn take_bytes(&mut self, bytes: &[u8]) {
        let exchange = &mut self.exchange;
        let mut position = exchange.response.len();
        if self.whole {
            exchange.response.extend_from_slice(bytes);
        }
        exchange.wire_bytes += bytes.len() as u64;
        let mut rest = bytes;
        loop {
            let done = self.parser.stage() == Stage::Done;
            let (taken, event) = self.parser.take(rest, self.kind);
            rest = rest.get(taken..).unwrap_or_default();
            position += taken;
            if done {
                exchange.surplus += taken as u64;
            }
            match event {
                Some(ResponseEvent::Head) if self.whole => {
                    exchange.head = Some(Head {
                        to: position,
                        framing: self.parser.stage(),
                    });
                }
                None if rest.is_empty() || taken == 0 => break,
                Some(_) | None => {}
            }
        }
    }

    fn skip(&mut self, bytes: u64) {
        self.whole = false;
        self.exchange.wire_bytes += bytes;
        let mut left = bytes;
        loop {
            let (taken, event) = self.parser.skip(left);
            left = left.saturating_sub(taken);
            if event.is_none() || left == 0 {
                break;
            }
        }
    }

    fn end(self) -> Exchange {
        Exchange {
            findings: self.parser.findings(),
            stage: Some(self.parser.stage()),
            missing: self.parser.missing(),
            ..self.exchange
        }
    }
}

/// An exchange of which every byte was captured.
#[cfg(test)]
pub(super) fn of_bytes(request: &[u8], response: &[u8], end: Option<End>) -> Exchange {
    let segment = |place, bytes: &[u8]| Segment {
        place,
        seq: 0,
        payload: bytes.to_vec(),
        wire_len: bytes.len().try_into().unwrap_or_default(),
    };
    Exchange {
        end,
        ..last(&[segment(1, request)], &[segment(2, response)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
    const HEAD: &[u8] = b"HEAD /b HTTP/1.1\r\nHost: h\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    fn segment(place: usize, seq: u32, payload: &[u8], wire_len: usize) -> Segment {
        Segment {
            place,
            seq,
            payload: payload.to_vec(),
            wire_len: wire_len as u32,
        }
    }

    fn path(exchange: &Exchange) -> Option<String> {
        let path = exchange.request.as_ref().and_then(RequestHead::path);
        path.map(std::borrow::Cow::into_owned)
    }

    #[test]
    fn segments_in_any_order_and_twice_give_one_response() {
        let part =
            |place, seq: u32, from: usize, to: usize| segment(place, seq, &OK[from..to], to - from);
        // The sequence numbers pass zero on the way.
        let all = |places: [usize; 4]| {
            let mut all = [
                part(places[0], u32::MAX - 9, 0, 20),
                part(places[1], 10, 20, 30),
                part(places[2], 20, 30, OK.len()),
                part(places[3], 10, 20, 30),
            ];
            all.sort_by_key(|segment| segment.place);
            all
        };
        for places in [[1, 2, 3, 4], [4, 3, 1, 2], [2, 1, 4, 3]] {
            let read = last(&[], &all(places));
            assert_eq!(read.response, OK, "{places:?}");
            assert_eq!((read.stage, read.surplus), (Some(Stage::Done), 0));
            let to = OK.len() - 5;
            let framing = Stage::SizedBody;
            assert_eq!(read.head, Some(Head { to, framing }));
        }
    }

    #[test]
    fn what_was_not_captured_ends_the_bytes_but_not_the_judgement() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n";
        let read = last(&[], &[segment(1, 0, head, head.len() + 400)]);
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
        let read = of_bytes(GET, bytes, None);
        assert_eq!(read.head.map(|head| head.to), Some(bytes.len() - 2));
        assert_eq!((read.stage, read.surplus), (Some(Stage::Done), 2));
        assert_eq!(path(&read).as_deref(), Some("/a"));
    }

    #[test]
    fn of_several_exchanges_the_last_counts() {
        let (get, ok) = (GET.len() as u32, OK.len() as u32);
        let head = b"HTTP/1.1 204 No Content\r\n\r\n";
        let to = [
            segment(1, 0, GET, GET.len()),
            segment(3, get, &HEAD[..9], 9),
            segment(4, get + 9, &HEAD[9..], HEAD.len() - 9),
        ];
        let from = [
            segment(2, 7, OK, OK.len()),
            // The end of the first response once more, behind the second request.
            segment(5, 7 + ok - 5, b"hello", 5),
            segment(6, 7 + ok, head, head.len()),
        ];
        let read = last(&to, &from);
        assert_eq!(path(&read).as_deref(), Some("/b"));
        assert_eq!(read.response, head);
        assert_eq!((read.stage, read.surplus), (Some(Stage::Done), 0));

        // A request that was not answered has no response, whatever came before it.
        let read = last(&to, &from[..1]);
        assert_eq!(path(&read).as_deref(), Some("/b"));
        assert_eq!((read.response.len(), read.wire_bytes), (0, 0));

        // The capture may begin between a request and its response.
        let read = last(&to[1..], &from);
        assert_eq!(read.response, head);
    }
}
