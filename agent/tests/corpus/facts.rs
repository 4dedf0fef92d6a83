//! Which causes agree with a fact, and which facts are no failure that hopscope tells.

use hopscope::model::Cause::{self, *};
use hopscope::model::HopEvent;
use hopscope::stats::Stats;

use crate::truth::{Ending, Fact, Stream};

/// The upstream, or something in its name, went away and left a request without an answer.
const GONE: &[Cause] = &[
    TcpClosedOnAccept,
    TcpClosedNoResponse,
    TcpResetNoResponse,
    TcpResetUnreadRequest,
    TcpResetInjected,
    TcpIdleStateLost,
    PoolStaleReuse,
    UpstreamProcessDied,
    UpstreamDraining,
    UpstreamDeadline,
];
/// It went away inside an answer, or left a later request on the connection without one.
const CUT: &[Cause] = &[
    Http1HeadTruncated,
    Http1BodyTruncated,
    Http1LastChunkMissing,
    Http1EofBodyReset,
    Http1EarlyResponse,
    TcpResetInjected,
    UpstreamProcessDied,
    PoolStaleReuse,
    TcpResetNoResponse,
];
/// The gateway gave up waiting for the first byte.
const WAITED: &[Cause] = &[
    UpstreamSlowFirstByte,
    UpstreamNotReading,
    TcpRequestUnacknowledged,
    TcpZeroWindow,
    TcpMtuBlackhole,
    TcpIdleStateLost,
];
/// The gateway gave up inside an answer, or what came made it give up.
const STALLED: &[Cause] = &[
    UpstreamStalledInHead,
    UpstreamStalledInBody,
    TcpMtuBlackhole,
    Http1HeaderTooLarge,
];
const NO_STATUS_LINE: &[Cause] = &[Http1NotHttp, Http1StatusLineInvalid];
const BAD_HEADER: &[Cause] = &[Http1HeaderSyntax, Http1HeaderControlChar];

/// Causes that say the same as a fact: its name, how its detail begins, and the causes.
const AGREE: &[(&str, &str, &[Cause])] = &[
    // A reset in answer to a SYN may be a filter's, which its time to live may show.
    (
        "connect_refused",
        "",
        &[TcpConnectRefused, TcpConnectRejectedByFilter],
    ),
    (
        "connect_no_answer",
        "",
        &[TcpConnectBlackholed, TcpConnectBacklogFull, TcpConnectLate],
    ),
    ("rst", "s2c before_request", GONE),
    ("rst", "s2c before_response", GONE),
    ("rst", "s2c after_response_bytes", CUT),
    ("rst", "c2s before_response", WAITED),
    ("rst", "c2s after_response_bytes", STALLED),
    ("no_response_bytes", "c2s", WAITED),
    ("server_fin_before_any_response", "", GONE),
    ("response_incomplete_body", "c2s", STALLED),
    ("response_incomplete_body", "s2c", CUT),
    ("response_incomplete_chunked", "c2s", STALLED),
    ("response_incomplete_chunked", "s2c", CUT),
    ("status", "5", &[UpstreamOwnError]),
    ("http1_client_got", "", NO_STATUS_LINE),
    ("http1_bad_status_line", "", NO_STATUS_LINE),
    ("http1_odd", "version", NO_STATUS_LINE),
    ("http1_odd", "status outside", NO_STATUS_LINE),
    ("http1_bad_response_header", "", BAD_HEADER),
    ("http1_odd", "control character", BAD_HEADER),
    ("http1_odd", "bare LF", BAD_HEADER),
    (
        "http1_bad_length",
        "",
        &[Http1ContentLengthInvalid, Http1ContentLengthConflict],
    ),
    (
        "http1_odd",
        "Content-Length repeated",
        &[Http1ContentLengthConflict],
    ),
    ("http1_bad_chunk", "", &[Http1ChunkSyntax]),
    // With another coding than chunked, both rules are broken.
    (
        "http1_te_and_cl",
        "",
        &[Http1LengthAndChunked, Http1TransferEncodingUnsupported],
    ),
    (
        "http1_odd",
        "unknown transfer coding",
        &[Http1TransferEncodingUnsupported],
    ),
    (
        "http1_odd",
        "Transfer-Encoding in HTTP/1.0",
        &[Http1TransferEncodingUnsupported],
    ),
    (
        "bytes_after_complete_response",
        "",
        &[Http1ExcessBytes, Http1BodyOnBodyless],
    ),
    (
        "tls_fatal_alert",
        "s2c protocol_version",
        &[TlsVersionMismatch],
    ),
    (
        "tls_fatal_alert",
        "s2c handshake_failure",
        &[TlsClientCertificateRequired, TlsNoCommonParameters],
    ),
    (
        "tls_fatal_alert",
        "c2s unknown_ca",
        &[TlsCertificateUntrusted, TlsCertificateSelfSigned],
    ),
    ("tls_client_to_non_tls_server", "", &[TlsPlaintextUpstream]),
    (
        "tls_handshake_incomplete",
        "c2s fin after",
        &[TlsHandshakeTimeout],
    ),
    ("tls_handshake_incomplete", "s2c fin", &[TlsHandshakeClosed]),
];

/// Facts of TLS that have an event.
pub(crate) fn is_failed_handshake(fact: &Fact) -> bool {
    let told = AGREE
        .iter()
        .any(|(name, detail, _)| fact.name == *name && fact.detail.starts_with(detail));
    told && fact.name.starts_with("tls_")
}

/// Whether an event says the same as a fact, be it as one of several causes that are possible.
pub(crate) fn agree(fact: &Fact, event: &HopEvent) -> bool {
    // Who closed first is why.
    if fact.name == "rst" && fact.detail.contains(" after FIN c2s") {
        return false;
    }
    AGREE
        .iter()
        .filter(|(name, detail, _)| fact.name == *name && fact.detail.starts_with(detail))
        .flat_map(|(_, _, causes)| *causes)
        .any(|cause| event.cause == *cause || event.rivals.contains(cause))
}

/// What a rule looks at: a fact without an event of its own.
pub(crate) struct Case<'c> {
    pub(crate) stream: &'c Stream,
    pub(crate) fact: &'c Fact,
    /// Whether another fact of the connection has one.
    pub(crate) told: bool,
    /// What the engine counted in the whole capture.
    pub(crate) stats: &'c Stats,
}

impl Case<'_> {
    fn is(&self, name: &str, detail: &str) -> bool {
        self.fact.name == name && self.fact.detail.starts_with(detail)
    }
}

/// A gateway that gives up sooner lost its client, by the engine's default.
const PATIENCE: f64 = 0.2;

/// Why a fact has no event, and whether that holds.
pub(crate) type Rule = (&'static str, fn(&Case<'_>) -> bool);

/// The rules; the first that holds counts.
pub(crate) const RULES: &[Rule] = &[
    ("tells of the capture, not of the upstream", |case| {
        case.fact.name.ends_with("capture_hole") || case.fact.name.ends_with("not_captured")
    }),
    (
        "one SYN, and nothing shows that the gateway gave up",
        |case| case.is("connect_no_answer", "1 SYN "),
    ),
    (
        "of what is not HTTP/1, only connect and TLS are judged",
        |case| {
            let judged = case.fact.name.starts_with("connect_") || is_failed_handshake(case.fact);
            !case.stream.http && !judged
        },
    ),
    ("only 500 to 599 are the upstream's own errors", |case| {
        case.is("status4xx", "")
            || case.is("status", "") && !case.is("status", "5")
            || case.is("http1_odd", "status outside")
            || case.is("fewer_responses_than_requests", "")
    }),
    ("the connection is still open", |case| {
        case.stream.ending.is_none() && !case.fact.name.starts_with("connect_")
    }),
    ("a reset after the last answer cuts nothing short", |case| {
        let whole = |state: &String| matches!(&**state, "complete" | "until_close" | "upgraded");
        let Stream {
            requests,
            responses,
            ..
        } = case.stream;
        case.is("rst", "") && responses.len() >= *requests && responses.iter().all(whole)
    }),
    ("one event tells of one exchange", |case| case.told),
    (
        "what nobody asked for fails only the next request",
        |case| case.is("bytes_after_complete_response", "") && case.stats.unsolicited > 0,
    ),
    (
        "bytes were lost on the way, which is no stall of the upstream",
        |case| {
            case.is("rst", "c2s after_response_bytes")
                && case.stream.hole
                && case.stats.unjudged_gateway_closed > 0
        },
    ),
    (
        "every gateway takes a bare LF for the end of a line",
        |case| case.is("http1_odd", "bare LF"),
    ),
    (
        "some gateways tolerate it, and this one is not known",
        |case| case.fact.name.starts_with("http1_") && case.stats.tolerated > 0,
    ),
    ("the gateway closed sooner than it loses patience", |case| {
        let early = |ending: &Ending| ending.by_client && ending.silent < PATIENCE;
        case.stream.ending.as_ref().is_some_and(early)
    }),
];
