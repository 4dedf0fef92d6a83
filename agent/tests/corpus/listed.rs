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
];
