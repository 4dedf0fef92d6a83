//! Events as protobuf and back.

use crate::support;
use std::net::IpAddr;

use hopscope::model::{
    Completeness, ConnectionInfo, Evidence, EvidenceSource, ExchangeInfo, FaultSide, GatewayInfo,
    HopEvent, LocalInfo, Phase, Proof, Timestamp, TlsInfo, UpstreamAddress, UpstreamInfo,
    catalogue,
};
use hopscope::serve::{ConvertError, from_proto, to_proto};
use hopscope_proto::v1 as proto;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

/// Protobuf cannot tell an empty string from an absent one, and neither can an event.
fn text() -> impl Strategy<Value = String> {
    "\\PC{1,12}"
}

fn upstream_address() -> impl Strategy<Value = UpstreamAddress> {
    prop_oneof![
        any::<IpAddr>().prop_map(UpstreamAddress::Ip),
        text().prop_map(|path| UpstreamAddress::Unix(path.into())),
        Just(UpstreamAddress::None),
    ]
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let source = select(vec![
        EvidenceSource::Packet,
        EvidenceSource::Kernel,
        EvidenceSource::TlsLibrary,
        EvidenceSource::Timer,
    ]);
    (
        source,
        text(),
        of(any::<u64>()),
        vec(any::<u8>(), 0..32),
        text(),
    )
        .prop_map(|(source, what, offset, bytes, text)| Evidence {
            source,
            what: what.into(),
            offset,
            bytes,
            text,
        })
}

fn exchange() -> impl Strategy<Value = ExchangeInfo> {
    let texts = (of(text()), of(text()), of(text()), of(text()), of(text()));
    let numbers = (of(any::<u16>()), any::<u32>(), of(0.0..1e9), 0.0..1e9);
    (texts, numbers, any::<[u64; 2]>()).prop_map(|(texts, numbers, bytes)| ExchangeInfo {
        method: texts.0,
        path: texts.1,
        host: texts.2,
        request_id: texts.3,
        traceparent: texts.4,
        status: numbers.0,
        ordinal: numbers.1,
        first_byte_ms: numbers.2,
        duration_ms: numbers.3,
        request_bytes: bytes[0],
        response_bytes: bytes[1],
    })
}

fn tls_info() -> impl Strategy<Value = TlsInfo> {
    let source = select(vec![EvidenceSource::Packet, EvidenceSource::TlsLibrary]);
    (of(text()), of(text()), of(text()), of(text()), source).prop_map(
        |(version, cipher, sni, alpn, source)| TlsInfo {
            version,
            cipher,
            sni,
            alpn,
            source,
        },
    )
}

fn gateway() -> impl Strategy<Value = GatewayInfo> {
    (any::<u32>(), text(), any::<u64>(), text(), of(text())).prop_map(
        |(pid, comm, netns, cgroup, container)| GatewayInfo {
            pid,
            comm: comm.into(),
            netns,
            cgroup: cgroup.into(),
            container_id: container.map(Into::into),
        },
    )
}

fn any_event() -> impl Strategy<Value = HopEvent> {
    let causes = || select(catalogue().iter().map(|row| row.cause).collect::<Vec<_>>());
    let verdict = (
        causes(),
        select(vec![Proof::Proven, Proof::Inferred, Proof::Underdetermined]),
        vec(causes(), 0..3),
        of(text()),
        of(text()),
        of(500_u16..=504),
        select(vec![
            FaultSide::Upstream,
            FaultSide::Gateway,
            FaultSide::Network,
            FaultSide::Dns,
            FaultSide::Both,
        ]),
        select(vec![
            Phase::Resolve,
            Phase::Pick,
            Phase::Connect,
            Phase::Tls,
            Phase::Request,
            Phase::ResponseHead,
            Phase::ResponseBody,
            Phase::Idle,
        ]),
    );
    let connection = (
        any::<bool>(),
        0.0..1e9,
        of(0.0..1e9),
        of(any::<u32>()),
        any::<[u32; 2]>(),
    );
    let ends = (
        (upstream_address(), any::<u16>(), of(text())),
        of((any::<IpAddr>(), any::<u16>())),
        of(gateway()),
    );
    let rest = (
        vec(evidence(), 0..3),
        of(text()),
        (any::<u64>(), any::<bool>(), any::<bool>()),
        (vec(text(), 0..3), vec(text(), 0..3)),
        of(tls_info()),
    );
    let head = (text(), any::<u64>(), text());
    (head, verdict, ends, of(exchange()), connection, rest).prop_map(
        |(head, verdict, ends, exchange, connection, rest)| HopEvent {
            id: head.0,
            time: Timestamp::from_nanos(head.1),
            node: head.2.into(),
            hop: None,
            cause: verdict.0,
            proof: verdict.1,
            rivals: verdict.2,
            splitter: verdict.3,
            proxy_error: verdict.4.map(Into::into),
            recommended_status: verdict.5,
            fault_side: verdict.6,
            phase: verdict.7,
            upstream: UpstreamInfo {
                address: ends.0.0,
                port: ends.0.1,
                name: ends.0.2,
            },
            local: ends.1.map(|(address, port)| LocalInfo { address, port }),
            gateway: ends.2,
            exchange,
            connection: ConnectionInfo {
                reused: connection.0,
                age_ms: connection.1,
                idle_ms: connection.2,
                rtt_us: connection.3,
                syn_retransmits: connection.4[0],
                retransmits: connection.4[1],
            },
            tls: rest.4,
            evidence: rest.0,
            rejected_by: rest.3.0,
            tolerated_by: rest.3.1,
            capture_id: rest.1,
            completeness: Completeness {
                lost_segments: rest.2.0,
                truncated: rest.2.1,
                mid_stream: rest.2.2,
            },
            gateway_answer: None,
            hidden_from_client: rest.2.1,
        },
    )
}

proptest! {
    #[test]
    fn every_event_survives_the_wire(event in any_event()) {
        let bytes = hopscope_proto::Message::encode_to_vec(&to_proto(&event));
        let message: proto::HopEvent = hopscope_proto::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(from_proto(message), Ok(event));
    }
}

/// Breaks a good message and returns the error.
fn broken(change: impl FnOnce(&mut proto::HopEvent)) -> ConvertError {
    let mut message = to_proto(&support::full_event());
    change(&mut message);
    from_proto(message).unwrap_err()
}

#[test]
fn a_bad_field_is_named() {
    let cases = [
        (broken(|m| m.id.clear()), "field `id` is missing"),
        (broken(|m| m.time = None), "field `time` is missing"),
        (broken(|m| m.upstream = None), "field `upstream` is missing"),
        (
            broken(|m| m.connection = None),
            "field `connection` is missing",
        ),
        (
            broken(|m| m.completeness = None),
            "field `completeness` is missing",
        ),
        (
            broken(|m| m.cause = "tcp.new".to_owned()),
            "field `cause` names the unknown cause `tcp.new`: is the sender a newer version?",
        ),
        (
            broken(|m| m.rivals[0].clear()),
            "field `rivals` names the unknown cause ``: is the sender a newer version?",
        ),
        (
            broken(|m| m.upstream.as_mut().unwrap().address = "ten".to_owned()),
            "field `upstream.address` is `ten`, not an IP address",
        ),
        (
            broken(|m| m.local.as_mut().unwrap().port = 65_536),
            "field `local.port` is 65536, more than 65535",
        ),
        (
            broken(|m| m.exchange.as_mut().unwrap().status = Some(70_000)),
            "field `exchange.status` is 70000, more than 65535",
        ),
        (
            broken(|m| m.proof = 0),
            "field `proof` has the unknown value 0: is the sender a newer version?",
        ),
        (
            broken(|m| m.fault_side = 77),
            "field `fault_side` has the unknown value 77: is the sender a newer version?",
        ),
        (
            broken(|m| m.phase = -1),
            "field `phase` has the unknown value -1: is the sender a newer version?",
        ),
        (
            broken(|m| m.evidence[0].source = 9),
            "field `evidence.source` has the unknown value 9: is the sender a newer version?",
        ),
    ];
    for (error, message) in cases {
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_time_outside_what_can_be_held_is_refused() {
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (18_446_744_074, 0)] {
        let error = broken(|m| m.time = Some(prost_types::Timestamp { seconds, nanos }));
        assert_eq!(
            error,
            ConvertError::BadTime { field: "time" },
            "{seconds} {nanos}"
        );
    }
}
