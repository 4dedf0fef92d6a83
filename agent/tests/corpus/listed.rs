//! Disagreements looked at by hand: who is right, and why.

/// Capture, connection, the fact or the cause, and the reason.
pub(crate) const LISTED: &[(&str, u64, &str, &str)] = &[
    (
        "http-evader-309/input.pcap",
        0,
        "http1.transfer_encoding_unsupported",
        "hopscope is right: `chunked;` is no name of a coding, and tshark warns of it too",
    ),
    (
        "Traces/tcp/miss_end_data.pcap",
        0,
        "server_fin_before_any_response",
        "hopscope is right: the FIN's sequence number shows 2902 bytes that were not captured",
    ),
    (
        "pcap/webex.pcap",
        33,
        "upstream.slow_first_byte",
        "hopscope is right: a request inside TLS, 59 s without a record, and the client closes",
    ),
    (
        "pcap/webex.pcap",
        47,
        "upstream.slow_first_byte",
        "hopscope is right: a request inside TLS, 13 s without a record, and the client closes",
    ),
    (
        "pcap/webex.pcap",
        50,
        "tcp.closed_no_response",
        "as records go it is: data inside TLS, then close_notify and FIN of the server without any",
    ),
    (
        "tls13-draft19/tls13_draft19.pcap",
        0,
        "tls_handshake_incomplete",
        "hopscope is right: a draft of TLS 1.3 hides its handshake, which is complete",
    ),
    (
        "tls13-draft19/tls13_draft19.pcap",
        1,
        "tls_handshake_incomplete",
        "hopscope is right: a draft of TLS 1.3 hides its handshake, which is complete",
    ),
    (
        "tls13-draft19/tls13_draft19.pcap",
        2,
        "tls_handshake_incomplete",
        "hopscope is right: a draft of TLS 1.3 hides its handshake, which is complete",
    ),
];
