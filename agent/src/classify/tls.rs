//! Why a hop failed at TLS.
//!
//! Two sources tell, the wire and the gateway's TLS library; each has ordered rules of its own, and where
//! both speak the firmer one counts. Who sent an alert decides what it is about: the gateway's is about
//! what the upstream showed, the upstream's about what the gateway offered or gave. What follows a
//! handshake that both sides finished is [`super::exchange`]'s business.

mod alert;
mod certificate;
mod ended;
mod library;

use core::net::IpAddr;
use std::time::Duration;

use super::{ExchangeFacts, Verdict, fact};
use crate::http1;
use crate::model::{Actor, Cause, Evidence, EvidenceSource, LibraryFact, Phase, Proof, Timestamp};
use crate::tls::{Facts, Foreign, Step, alert_name};

/// A request whose records come within this time is taken to be complete.
const ONE_BURST: Duration = Duration::from_secs(1);

/// What is known of a TLS connection when it ended, or when the observation did.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct TlsFacts<'a> {
    /// The hop, with all that the gateway sent taken for the request. `Ended::Settled` where nothing
    /// ended it.
    pub hop: ExchangeFacts<'a>,
    /// What both sides said.
    pub wire: &'a Facts,
    /// What the gateway's TLS library said, in order.
    pub heard: &'a [LibraryFact],
    /// When it ended: certificates are good or not at that time.
    pub now: Timestamp,
    /// The upstream's address.
    pub address: IpAddr,
    /// Whether the gateway sent data behind its Finished.
    pub requested: bool,
    /// Whether the upstream sent data that may be a response.
    pub answered: bool,
    /// Whether segments were missed, so that what was not seen says nothing.
    pub lost: bool,
    /// Whether the gateway let go of its client in the same moment, which may be why it closed.
    pub left: bool,
}

impl TlsFacts<'_> {
    /// Whether both sides finished the handshake. A client of TLS 1.3 sends its Finished last; one of TLS
    /// 1.2 that resumes a session does too.
    fn is_done(&self) -> bool {
        let Facts {
            server, to, from, ..
        } = self.wire;
        let hidden = server
            .as_ref()
            .is_some_and(|server| server.version.hides_handshake());
        to.step == Step::Finished && (hidden || from.step == Step::Finished)
    }

    /// Whether TLS 1.3 was chosen.
    fn hides_handshake(&self) -> bool {
        let server = self.wire.server.as_ref();
        server.is_some_and(|server| server.version.hides_handshake())
    }

    /// Whether the gateway runs a program of this name.
    fn runs(&self, names: &[&str]) -> bool {
        self.hop.comm.is_some_and(|comm| names.contains(&comm))
    }

    /// What the gateway offered, in words.
    fn offer(&self) -> Option<Evidence> {
        let client = self.wire.client.as_ref()?;
        let versions: Vec<_> = client.versions.iter().map(ToString::to_string).collect();
        let name = match &client.sni {
            Some(name) => format!(", server name {name}"),
            None if client.cut => String::new(),
            None => ", no server name".to_owned(),
        };
        let alpn = if client.alpn.is_empty() {
            String::new()
        } else {
            format!(", ALPN {}", client.alpn.join(" "))
        };
        let text = format!(
            "the gateway offered {}{name}{alpn}, {} cipher suites, {} groups, {} signature schemes",
            versions.join(", "),
            client.ciphers.len(),
            client.groups.len(),
            client.signatures.len()
        );
        Some(packet("client_hello", text))
    }

    /// Whether a ClientHello was seen as a whole, and it names no server.
    fn without_name(&self) -> bool {
        let client = self.wire.client.as_ref();
        client.is_some_and(|client| client.sni.is_none() && !client.cut)
    }
}

/// What is known of a run of records that stands for an exchange.
#[derive(Clone, Copy, Debug)]
pub struct TlsRun<'a> {
    /// What both sides said.
    pub wire: &'a Facts,
    /// Whether it is the first of its connection.
    pub first: bool,
    /// Whether a record came that is as likely a ticket as a response.
    pub doubtful: bool,
    /// Time from its first byte to its last.
    pub sending: Duration,
}

/// What the two sources came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsVerdict {
    /// The verdict, if TLS is to blame.
    pub verdict: Option<Verdict>,
    /// Whether packets and library blame different causes.
    pub disagree: bool,
}

/// The cause of a failed TLS connection; none for one that did not fail at TLS, and none where the facts
/// do not reach.
pub fn tls(facts: &TlsFacts<'_>) -> TlsVerdict {
    let wire = on_the_wire(facts);
    let library = library::told(facts);
    let (verdict, disagree) = match (wire, library) {
        (Some(wire), Some(library)) => join(wire, library),
        (verdict, None) | (None, verdict) => (verdict, false),
    };
    TlsVerdict { verdict, disagree }
}

/// What a verdict on an exchange comes to where that is inside TLS, and only its records were seen: never
/// proven, and none where a record is missing to be sure.
pub fn inside_tls(verdict: Verdict, run: &TlsRun<'_>) -> Option<Verdict> {
    // A request that comes in pieces may not be complete when the gateway gives up, and what goes on for
    // longer may be a stream of something else than HTTP.
    if run.doubtful || run.sending > ONE_BURST {
        return None;
    }
    let records = packet(
        "tls_records",
        "the exchange is inside TLS: its request and the missing response are told by records",
    );
    let mut verdict = verdict.with([records]);
    if verdict.proof == Proof::Proven {
        verdict.proof = Proof::Inferred;
    }
    let closed = matches!(
        verdict.cause,
        Cause::TcpClosedNoResponse | Cause::TcpResetNoResponse
    );
    let none_given = run
        .wire
        .to
        .first_application
        .is_some_and(alert::is_empty_certificate);
    if run.first && closed && none_given && run.wire.from.since_finished <= 1 {
        return Some(verdict.against(
            &[Cause::TlsClientCertificateRequired],
            "whether the upstream insists on the client certificate that it asked for and did not get",
        ));
    }
    Some(verdict)
}

/// What a verdict on an exchange comes to that the gateway's TLS library showed; `fin` where the upstream's
/// FIN ended it, and no segment was missed.
pub fn seen_inside_tls(mut verdict: Verdict, wire: &Facts, fin: bool) -> Verdict {
    for evidence in &mut verdict.evidence {
        if evidence.offset.is_some() || !evidence.bytes.is_empty() {
            evidence.source = EvidenceSource::TlsLibrary;
        }
    }
    let cut = matches!(
        verdict.cause,
        Cause::Http1BodyTruncated | Cause::Http1LastChunkMissing
    );
    let notified = wire.alerts.iter().any(|alert| alert.by == Actor::Upstream);
    if cut && fin && !notified && wire.from.gap {
        verdict = verdict.against(
            &[Cause::TlsTruncated],
            "whether the upstream's last record is a close_notify: not every record could be followed",
        );
    } else if cut && fin && !notified {
        verdict.cause = Cause::TlsTruncated;
        let text = "the upstream closed without a close_notify: what is missing may have been cut off on the way";
        return verdict.with([packet("no_close_notify", text)]);
    }
    verdict.with([fact(
        EvidenceSource::TlsLibrary,
        "tls_plaintext",
        "the exchange is inside TLS: its bytes are those that the gateway's TLS library took and gave",
    )])
}

/// What a verdict comes to where the gateway closed on a record of the upstream that is as long as an alert,
/// and the upstream's FIN came behind.
pub fn on_farewell(mut verdict: Verdict) -> Verdict {
    if verdict.proof == Proof::Proven {
        verdict.proof = Proof::Inferred;
    }
    verdict.with([packet(
        "upstream_farewell",
        "the upstream sent a record as long as an alert, such as a close_notify, the gateway closed behind that, and the upstream's FIN came then",
    )])
}

/// The upstream's FIN came inside a TLS record of a response of which so many bytes had come: whatever its
/// framing, it is not complete. That its records are a response is inferred.
pub fn cut_record(response_bytes: u64) -> Verdict {
    let text = format!(
        "FIN inside a TLS record, after {response_bytes} bytes of what must be the response, and no close_notify"
    );
    let decisive = packet("record_cut", text);
    Verdict::new(
        Cause::TlsTruncated,
        Proof::Inferred,
        Phase::ResponseBody,
        decisive,
    )
}

/// The rules over what was seen on the wire, in order.
fn on_the_wire(facts: &TlsFacts<'_>) -> Option<Verdict> {
    if let Some(foreign) = &facts.wire.foreign {
        return not_tls(facts, foreign);
    }
    if let Some(verdict) = alert::plain(facts) {
        return Some(verdict);
    }
    let gap = facts.wire.to.gap || facts.wire.from.gap;
    if facts.lost || gap {
        // The alert that explains the end may have been missed, and so may the handshake's.
        return None;
    }
    alert::hidden(facts).or_else(|| ended::without_alert(facts))
}

/// Puts a verdict from packets and one from the library together. A library names what packets leave
/// open.
fn join(wire: Verdict, library: Verdict) -> (Option<Verdict>, bool) {
    let same = wire.cause == library.cause;
    let open = wire.proof == Proof::Underdetermined && wire.rivals.contains(&library.cause)
        || library.proof == Proof::Underdetermined && library.rivals.contains(&wire.cause);
    let (first, second) = if firmness(library.proof) > firmness(wire.proof) {
        (library, wire)
    } else {
        (wire, library)
    };
    if same || open {
        return (Some(first.with(second.evidence)), false);
    }
    (Some(first), true)
}

const fn firmness(proof: Proof) -> u8 {
    match proof {
        Proof::Proven => 2,
        Proof::Inferred => 1,
        Proof::Underdetermined => 0,
    }
}

/// Bytes that are no TLS record where one should be.
fn not_tls(facts: &TlsFacts<'_>, foreign: &Foreign) -> Option<Verdict> {
    if foreign.by == Actor::Gateway {
        // It stopped speaking TLS itself, and knows why.
        return None;
    }
    let first = foreign.own == Step::Nothing && foreign.offset == 0 && !facts.wire.from.gap;
    let protocol = protocol(&foreign.bytes);
    let known = http1::Foreign::detect(&foreign.bytes) != http1::Foreign::Binary;
    let (cause, what, text) = if first {
        (
            Cause::TlsPlaintextUpstream,
            "plaintext_answer",
            format!("the upstream answered the ClientHello with {protocol}"),
        )
    } else if facts.lost || facts.wire.from.gap || facts.hop.ended != super::Ended::Gateway {
        // What was missed may have been the record that these bytes belong to; and a gateway that got
        // them closes.
        return None;
    } else {
        (
            Cause::TlsRecordCorrupt,
            "foreign_bytes",
            format!(
                "the upstream sent {protocol} at offset {}, where a TLS record should begin",
                foreign.offset
            ),
        )
    };
    let mut decisive = packet(what, text);
    decisive.offset = Some(foreign.offset);
    decisive.bytes.clone_from(&foreign.bytes);
    // Bytes of no protocol that is known may be a mangled record.
    let proof = if known {
        Proof::Proven
    } else {
        Proof::Inferred
    };
    Some(verdict(cause, proof, decisive))
}

/// Names what bytes are that are no TLS record.
fn protocol(bytes: &[u8]) -> String {
    if bytes.starts_with(b"HTTP/") {
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next();
        return format!("HTTP/1: {}", line.unwrap_or(bytes).escape_ascii());
    }
    http1::Foreign::detect(bytes).to_string()
}

fn verdict(cause: Cause, proof: Proof, decisive: Evidence) -> Verdict {
    Verdict::new(cause, proof, Phase::Tls, decisive)
}

fn packet(what: &'static str, text: impl Into<String>) -> Evidence {
    fact(EvidenceSource::Packet, what, text)
}

/// An alert as people write it: `40 (handshake_failure)`.
fn named(number: u8) -> String {
    match alert_name(number) {
        Some(name) => format!("{number} ({name})"),
        None => number.to_string(),
    }
}
