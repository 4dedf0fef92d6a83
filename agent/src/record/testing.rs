//! Packets of made-up hops for the tests of the recorder.

use core::net::SocketAddr;
use std::borrow::Cow;
use std::sync::Arc;

use crate::input::packet::{IpPacket, parse_ip};
use crate::input::pdu::{self, Pdu};
use crate::model::{
    Cause, Completeness, ConnectionInfo, Direction, Evidence, EvidenceSource, ExchangeInfo,
    GatewayInfo, HopEvent, HopId, Phase, Proof, Segment, TcpFlags, Timestamp, UpstreamInfo,
};
use crate::record::{Capture, CapturedPacket, ExchangeLine};

pub(super) const TO: Direction = Direction::ToUpstream;
pub(super) const FROM: Direction = Direction::FromUpstream;
pub(super) const HOP: HopId = HopId(7);
pub(super) const START: Timestamp = Timestamp::from_nanos(1_700_000_000_123_456_789);

/// `START` and so many milliseconds.
pub(super) fn at(millis: u64) -> Timestamp {
    START.after(std::time::Duration::from_millis(millis))
}

pub(super) fn upstream() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 8080))
}

/// An IPv4 packet with a TCP segment.
pub(super) fn packet(direction: Direction, seq: u32, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
    acknowledging(direction, seq, 1, flags, payload)
}

/// One that acknowledges what came before `ack`.
pub(super) fn acknowledging(
    direction: Direction,
    seq: u32,
    ack: u32,
    flags: TcpFlags,
    payload: &[u8],
) -> Vec<u8> {
    let (src, dst, ports) = match direction {
        TO => ([10, 0, 0, 1], [10, 0, 0, 2], [0x9c, 0x40, 0x1f, 0x90]),
        FROM => ([10, 0, 0, 2], [10, 0, 0, 1], [0x1f, 0x90, 0x9c, 0x40]),
    };
    let total = u16::try_from(40 + payload.len()).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend(src);
    bytes.extend(dst);
    bytes.extend(ports);
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([0x50, flags.0, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

pub(super) fn captured(
    at: Timestamp,
    direction: Direction,
    seq: u32,
    flags: TcpFlags,
    payload: &[u8],
) -> CapturedPacket {
    let bytes = packet(direction, seq, flags, payload);
    CapturedPacket {
        at,
        direction,
        wire_len: u32::try_from(bytes.len()).unwrap(),
        bytes,
    }
}

/// A piece of what is inside TLS, from this offset on.
pub(super) fn inside(
    at: Timestamp,
    direction: Direction,
    offset: u32,
    payload: &[u8],
) -> CapturedPacket {
    let gateway = SocketAddr::from(([10, 0, 0, 1], 40_000));
    let (src, dst) = match direction {
        TO => (gateway, upstream()),
        FROM => (upstream(), gateway),
    };
    let bytes = pdu::write(&Pdu {
        src,
        dst,
        offset,
        payload,
        len: u32::try_from(payload.len()).unwrap(),
    });
    CapturedPacket {
        at,
        direction,
        wire_len: u32::try_from(bytes.len()).unwrap(),
        bytes,
    }
}

/// The segment of a packet, as the live source gives it.
pub(super) fn segment(bytes: &[u8], direction: Direction) -> Segment<'_> {
    let Ok(IpPacket::Tcp(tcp)) = parse_ip(bytes, u32::try_from(bytes.len()).unwrap()) else {
        panic!("not a segment");
    };
    Segment {
        packet: bytes,
        ..tcp.segment(direction)
    }
}

/// A handshake, a request and a response, from sequence numbers 100 and 500.
pub(super) fn exchange(request: &[u8], response: &[u8]) -> Vec<CapturedPacket> {
    let syn_ack = TcpFlags::SYN.union(TcpFlags::ACK);
    let data = TcpFlags::PSH.union(TcpFlags::ACK);
    vec![
        captured(at(0), TO, 99, TcpFlags::SYN, b""),
        captured(at(1), FROM, 499, syn_ack, b""),
        captured(at(2), TO, 100, data, request),
        captured(at(3), FROM, 500, data, response),
    ]
}

pub(super) fn event() -> HopEvent {
    let info = Cause::Http1StatusLineInvalid.info();
    HopEvent {
        id: "17979cfe362a0000-7-1".to_owned(),
        time: at(4),
        node: Arc::from("gw1"),
        hop: Some(HOP),
        cause: info.cause,
        proof: Proof::Proven,
        rivals: Vec::new(),
        splitter: None,
        proxy_error: info.proxy_error.map(Cow::Borrowed),
        recommended_status: info.recommended_status,
        fault_side: info.fault_side,
        phase: Phase::ResponseHead,
        upstream: UpstreamInfo {
            address: upstream().ip().into(),
            port: upstream().port(),
            name: None,
        },
        local: None,
        gateway: Some(GatewayInfo {
            pid: 4242,
            comm: Arc::from("nginx"),
            netns: 4_026_531_840,
            cgroup: Arc::from("/system.slice/nginx.service"),
            container_id: Some(Arc::from("c0ffee")),
        }),
        exchange: Some(ExchangeInfo {
            method: Some("GET".to_owned()),
            path: Some("/shop".to_owned()),
            ordinal: 1,
            ..ExchangeInfo::default()
        }),
        connection: ConnectionInfo::default(),
        tls: None,
        evidence: vec![Evidence {
            source: EvidenceSource::Packet,
            what: Cow::Borrowed("broken_rule"),
            offset: Some(9),
            bytes: b"HTTP/1.1 2x0 OK".to_vec(),
            text: "the status is no number at offset 9: HTTP/1.1 2x0 OK".to_owned(),
        }],
        rejected_by: Vec::new(),
        tolerated_by: Vec::new(),
        capture_id: None,
        completeness: Completeness::default(),
        gateway_answer: None,
        hidden_from_client: false,
    }
}

pub(super) fn capture(time: Timestamp) -> Capture {
    Capture {
        time,
        node: Arc::from("gw1"),
        upstream: upstream(),
        gateway: event().gateway,
        exchange: ExchangeLine {
            method: Some("GET".to_owned()),
            path: Some("/shop".to_owned()),
            status: None,
        },
        event: Some(HopEvent { time, ..event() }),
        packets: exchange(
            b"GET /shop HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
    }
}

/// A capture of a healthy exchange.
pub(super) fn healthy(time: Timestamp) -> Capture {
    Capture {
        event: None,
        ..capture(time)
    }
}
