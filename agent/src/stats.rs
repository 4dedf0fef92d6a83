//! One counter per reason that something was not analysed, and what is attached.

/// Whether one source of facts works, and what is lost where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStatus {
    /// Stable name, such as `state` or `segment_egress`.
    pub name: &'static str,
    /// Whether it is attached.
    pub attached: bool,
    /// Why not, and what is lost by that. Where it is attached it is empty, or says to what where there can
    /// be several.
    pub reason: String,
}

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// What the engine did and, above all, what it could not look at.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl Stats {
            /// Every counter with its name.
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

stats! {
    /// Segments handled.
    segments,
    /// Kernel signals handled.
    signals,
    /// Hops opened or joined.
    hops,
    /// Hops joined mid-stream.
    hops_mid_stream,
    /// Hops evicted because the table was full.
    hops_evicted,
    /// Hops that carry something other than HTTP/1 or TLS: judged by their connect only.
    hops_opaque,
    /// Hops that carry TLS: judged by their handshake and by runs of records.
    hops_tls,
    /// Reads and writes of gateways inside TLS that were looked at.
    plaintexts,
    /// Failures for which packets and the gateway's TLS library name different causes, and connections of
    /// which the library shows more bytes than came.
    tls_sources_disagree,
    /// Exchanges that ended, failed ones included.
    exchanges,
    /// Those of them that were healthy and stayed in the kernel.
    exchanges_held,
    /// Events decided.
    events,
    /// Events dropped because nobody polled them.
    events_dropped,
    /// Exchanges that ended where a gap hid the framing: not judged.
    unjudged_gap,
    /// Exchanges that the gateway ended too soon to blame the upstream: its own client left, most
    /// likely.
    unjudged_gateway_closed,
    /// Exchanges that the gateway ended because its own client had left.
    client_left,
    /// Responses with a broken rule that their gateway is known to tolerate.
    tolerated,
    /// Responses that nobody had asked for, by segment.
    unsolicited,
    /// Requests not followed because too many were in flight on one hop.
    pipelined_dropped,
    /// Failed connects with an error that is no cause of the catalogue.
    connect_unmapped,
    /// Failed connects that were too short to be a failure: the gateway's own client left.
    connect_abandoned,
    /// ICMP errors that quote no known hop.
    icmp_unmatched,
    /// DNS messages handled.
    dns_messages,
    /// DNS messages that could not be read.
    dns_malformed,
    /// DNS answers to no query that was seen.
    dns_unmatched,
    /// Names forgotten, while they were being resolved, because the table was full.
    dns_evicted,
    /// Names that were resolved or not while records were lost: not judged.
    dns_unjudged,
    /// Records that the source lost.
    records_lost,
    /// Upstreams forgotten because the table was full.
    upstreams_dropped,
    /// Answers 500 that gateways made themselves.
    answers_500,
    /// Answers 502 that gateways made themselves.
    answers_502,
    /// Answers 503 that gateways made themselves.
    answers_503,
    /// Answers 504 that gateways made themselves.
    answers_504,
    /// Other answers of 5xx that gateways made themselves.
    answers_other,
    /// Answers that gateways made themselves and that one failure or rule explains.
    answers_explained,
    /// Those that several failures explain alike.
    answers_ambiguous,
    /// Those that nothing explains, or no fact that is firm.
    answers_unexplained,
    /// Answers of 5xx that came from the upstream.
    answers_passed_on,
    /// Clients' connections that a gateway closed without a status.
    answers_without_status,
    /// Answers decided too soon because too many waited.
    answers_dropped,
    /// Failures that no client was told of.
    events_hidden,
}
