//! Alerts: in the clear, and those that only their length and place give away.

use std::time::Duration;

use super::{TlsFacts, certificate, named, packet, verdict};
use crate::classify::{Ended, Verdict, human};
use crate::model::{Actor, Cause, Evidence, Proof};
use crate::tls::{Alert, ClientHello, Step};

/// A refusal of a client certificate follows the gateway's Finished by a round trip and the time to
/// verify it; an idle connection is closed later.
const AT_ONCE: Duration = Duration::from_secs(1);

/// An empty Certificate of TLS 1.3 (RFC 8446 section 4.4.2) in a record of its own, and together with a
/// Finished of 32 or 48 bytes.
const EMPTY_CERTIFICATE: [u16; 3] = [25, 61, 77];

/// The least that a Certificate with a certificate in it takes.
const SOME_CERTIFICATE: u16 = 128;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const FATAL: u8 = 2;

/// Whether the gateway's first encrypted record of TLS 1.3 is as long as one without a certificate.
pub(super) fn is_empty_certificate(length: u16) -> bool {
    EMPTY_CERTIFICATE.contains(&length)
}

/// The verdict on the first alert in the clear that ends a handshake.
pub(super) fn plain(facts: &TlsFacts<'_>) -> Option<Verdict> {
    let deciding = |alert: &&Alert| match alert.said {
        Some((FATAL, _)) => true,
        // The handshake may go on after a warning.
        Some((_, number)) => {
            let sender = match alert.by {
                Actor::Gateway => &facts.wire.to,
                Actor::Upstream => &facts.wire.from,
            };
            number != USER_CANCELED
                && sender.step == alert.own
                && facts.hop.ended != Ended::Settled
                && alert.by == Actor::Upstream
        }
        None => false,
    };
    let alert = facts.wire.alerts.iter().find(deciding)?;
    let (level, number) = alert.said?;
    match alert.by {
        Actor::Upstream => {
            let text = format!(
                "the upstream sent the {} alert {} {}",
                if level == FATAL { "fatal" } else { "warning" },
                named(number),
                place(alert.own, alert.other)
            );
            let decisive = packet("alert_received", text);
            by_upstream(facts, number, alert.own, &decisive)
        }
        Actor::Gateway => {
            let text = format!(
                "the gateway sent the fatal alert {} {}",
                named(number),
                place(alert.other, alert.own)
            );
            by_gateway(facts, number, packet("alert_sent", text))
        }
    }
}

/// Where in a handshake both sides were.
fn place(upstream: Step, gateway: Step) -> &'static str {
    match (upstream, gateway) {
        (Step::Nothing, _) => "in answer to the ClientHello",
        (_, Step::Nothing | Step::Hello) => "behind the ServerHello",
        (_, Step::Encrypted | Step::Finished) => "behind the gateway's key exchange",
    }
}

/// An alert of the upstream: about what the gateway offered or gave. `own` is how far the upstream was.
pub(super) fn by_upstream(
    facts: &TlsFacts<'_>,
    number: u8,
    own: Step,
    decisive: &Evidence,
) -> Option<Verdict> {
    let wire = facts.wire;
    let proven = |cause| verdict(cause, Proof::Proven, decisive.clone());
    let inferred = |cause| verdict(cause, Proof::Inferred, decisive.clone());
    // In TLS 1.3 neither the request nor the answer can be read, but for the length of the answer.
    let full = |length| length >= SOME_CERTIFICATE;
    let first = wire.to.first_application;
    let none_given = wire.asked && wire.given == Some(0) || first.is_some_and(is_empty_certificate);
    let given = wire.given.is_some_and(|given| given > 0)
        || facts.hides_handshake() && first.is_some_and(full);
    // A HelloRetryRequest is no answer yet (RFC 8446 section 4.1.4).
    let answers_hello = own == Step::Nothing || wire.retried && wire.server.is_none();
    let verdict = match number {
        CLOSE_NOTIFY | USER_CANCELED if facts.is_done() => return None,
        70 | 86 => proven(Cause::TlsVersionMismatch).with(versions(facts)),
        112 => proven(Cause::TlsSniUnrecognised),
        120 => proven(Cause::TlsAlpnMismatch),
        116 => proven(Cause::TlsClientCertificateRequired),
        80 => proven(Cause::TlsInternalError),
        20..=22 => proven(Cause::TlsRecordCorrupt),
        40 | 42..=46 | 48 | 49 if none_given => {
            let text = "the upstream asked for a client certificate and the gateway gave none";
            proven(Cause::TlsClientCertificateRequired)
                .with([packet("no_client_certificate", text)])
        }
        42..=46 | 48 | 49 if given => {
            proven(Cause::TlsClientCertificateRejected).with(given_certificate(facts))
        }
        40 | 51 if given => {
            inferred(Cause::TlsClientCertificateRejected).with(given_certificate(facts))
        }
        // Many servers answer a ClientHello that names none of theirs like that.
        40 | 109 if answers_hello && facts.without_name() => {
            proven(Cause::TlsNoCommonParameters).against(
                &[Cause::TlsSniUnrecognised],
                "whether the same handshake succeeds with a server name (openssl s_client -servername)",
            )
        }
        40 | 71 if answers_hello => proven(Cause::TlsNoCommonParameters),
        40 | 47 | 71 | 109 => inferred(Cause::TlsNoCommonParameters),
        51 => inferred(Cause::TlsRecordCorrupt),
        CLOSE_NOTIFY | USER_CANCELED => proven(Cause::TlsHandshakeClosed),
        _ => inferred(Cause::TlsHandshakeClosed),
    };
    Some(verdict.with(facts.offer()))
}

/// An alert of the gateway: about what the upstream showed.
pub(super) fn by_gateway(facts: &TlsFacts<'_>, number: u8, decisive: Evidence) -> Option<Verdict> {
    let spoke = facts.wire.from.step > Step::Nothing;
    let candidates: &[Cause] = match number {
        // OpenSSL has it for everything that has no alert of its own, Go for everything (GATEWAYS: G1).
        42 => &[
            Cause::TlsCertificateUntrusted,
            Cause::TlsCertificateNotYetValid,
            Cause::TlsCertificateNameMismatch,
            Cause::TlsCertificateWeak,
            Cause::TlsCertificateExpired,
            Cause::TlsCertificateSelfSigned,
            Cause::TlsCertificatePurpose,
            Cause::TlsCertificateRevoked,
        ],
        43 => &[Cause::TlsCertificatePurpose],
        44 | 113 => &[Cause::TlsCertificateRevoked],
        45 if facts.runs(certificate::OPENSSL) => &[Cause::TlsCertificateExpired],
        45 => &[
            Cause::TlsCertificateExpired,
            Cause::TlsCertificateNotYetValid,
        ],
        46 => &[
            Cause::TlsCertificateNameMismatch,
            Cause::TlsCertificateUntrusted,
            Cause::TlsCertificateSelfSigned,
            Cause::TlsCertificateExpired,
            Cause::TlsCertificateNotYetValid,
            Cause::TlsCertificatePurpose,
            Cause::TlsCertificateWeak,
            Cause::TlsCertificateRevoked,
        ],
        48 => &[
            Cause::TlsCertificateUntrusted,
            Cause::TlsCertificateSelfSigned,
        ],
        51 => &[Cause::TlsCertificateUntrusted, Cause::TlsRecordCorrupt],
        // OpenSSL where the program's own check of the certificate failed.
        80 => &[Cause::TlsCertificateNameMismatch, Cause::TlsInternalError],
        // A key below its security level may be among what it refuses so.
        40 | 71 if spoke => &[Cause::TlsNoCommonParameters, Cause::TlsCertificateWeak],
        _ => &[],
    };
    let offer = facts.offer();
    let (cause, proof) = match number {
        _ if !candidates.is_empty() => {
            let refused = certificate::refused(facts, candidates, decisive, true);
            return Some(refused.with(offer));
        }
        // It may say so to a peer that speaks no TLS at all.
        70 if spoke => (Cause::TlsVersionMismatch, Proof::Proven),
        120 => (Cause::TlsAlpnMismatch, Proof::Proven),
        20..=22 | 10 if spoke => (Cause::TlsRecordCorrupt, Proof::Proven),
        50 | 110 if spoke => (Cause::TlsRecordCorrupt, Proof::Inferred),
        47 if spoke => (Cause::TlsNoCommonParameters, Proof::Inferred),
        _ => return None,
    };
    Some(
        verdict(cause, proof, decisive)
            .with(chosen(facts))
            .with(offer),
    )
}

/// An alert that cannot be read, behind which its sender said nothing more.
pub(super) fn hidden(facts: &TlsFacts<'_>) -> Option<Verdict> {
    let closed = facts.hop.ended == Ended::Gateway;
    let farewell = facts.wire.farewell();
    // Where the gateway took leave, what the upstream sends is its answer to that.
    let own = farewell.filter(|alert| closed && alert.by == Actor::Gateway);
    let alert = own
        .or_else(|| facts.wire.alerts.last())
        .filter(|alert| alert.said.is_none())?;
    match alert.by {
        Actor::Gateway if closed => hidden_by_gateway(facts, alert),
        Actor::Upstream => hidden_by_upstream(facts, alert),
        Actor::Gateway => None,
    }
}

fn hidden_by_gateway(facts: &TlsFacts<'_>, alert: &Alert) -> Option<Verdict> {
    let (_, length) = alert.record;
    if alert.own < Step::Finished {
        // No library closes in order before its Finished.
        let shown = facts.wire.from.step >= Step::Encrypted;
        return (facts.hides_handshake() && shown).then(|| {
            let text = format!(
                "the gateway answered the upstream's certificate with a record of {length} bytes, as long as an alert, and closed without a Finished"
            );
            let mut candidates = certificate::ALL.to_vec();
            candidates.push(Cause::TlsRecordCorrupt);
            let decisive = packet("hidden_alert_sent", text);
            certificate::refused(facts, &candidates, decisive, false).with(facts.offer())
        });
    }
    certificate::after_handshake(facts, Some(alert))
}

/// TLS 1.3: a client certificate is only refused behind the gateway's Finished, which may have sent a
/// request by then.
fn hidden_by_upstream(facts: &TlsFacts<'_>, alert: &Alert) -> Option<Verdict> {
    let wire = facts.wire;
    let (_, length) = alert.record;
    if !facts.hides_handshake() || facts.answered {
        return None;
    }
    if alert.own < Step::Finished && wire.to.step <= Step::Hello {
        let text = format!(
            "the upstream sent a record of {length} bytes, as long as an alert, inside its part of the handshake and closed"
        );
        let decisive = packet("hidden_alert_received", text);
        let causes = refusals(facts);
        let (first, rivals) = causes.split_first()?;
        return Some(
            verdict(*first, Proof::Inferred, decisive)
                .with(facts.offer())
                .against(rivals, "the number of the alert, in the gateway's log"),
        );
    }
    // A ticket or an answer says that the upstream was content.
    let content = wire.from.since_finished > 1;
    let behind = alert.at.since(wire.to.last_at);
    let first = wire.to.first_application?;
    if content || alert.other < Step::Encrypted || behind > AT_ONCE {
        return None;
    }
    let (cause, gave) = if is_empty_certificate(first) {
        (
            Cause::TlsClientCertificateRequired,
            "an empty client certificate",
        )
    } else if first >= SOME_CERTIFICATE {
        (Cause::TlsClientCertificateRejected, "a client certificate")
    } else {
        return None;
    };
    let text = format!(
        "the gateway gave {gave} (its first encrypted record has {first} bytes); {} after it the upstream sent a record of {length} bytes, as long as an alert, and nothing else",
        human(behind)
    );
    let decisive = packet("hidden_alert_received", text);
    Some(verdict(cause, Proof::Inferred, decisive).with(facts.offer()))
}

/// What an upstream may refuse of an offer once it has sent its ServerHello.
fn refusals(facts: &TlsFacts<'_>) -> Vec<Cause> {
    let client = facts.wire.client.as_ref();
    let offered = |what: fn(&ClientHello) -> bool| client.is_some_and(|client| what(client));
    let mut causes = Vec::new();
    if offered(|client| !client.alpn.is_empty()) {
        causes.push(Cause::TlsAlpnMismatch);
    }
    if offered(|client| client.sni.is_some()) {
        causes.push(Cause::TlsSniUnrecognised);
    }
    causes.extend([Cause::TlsInternalError, Cause::TlsNoCommonParameters]);
    causes
}

/// What the gateway offered of versions, the rest left to [`TlsFacts::offer`].
fn versions(facts: &TlsFacts<'_>) -> Option<Evidence> {
    let client = facts.wire.client.as_ref()?;
    let (best, least) = (client.versions.iter().max()?, client.versions.iter().min()?);
    let text = if best == least {
        format!("it was offered {best} alone")
    } else {
        format!("it was offered {least} to {best}")
    };
    Some(packet("versions_offered", text))
}

/// What the upstream chose.
fn chosen(facts: &TlsFacts<'_>) -> Option<Evidence> {
    let server = facts.wire.server.as_ref()?;
    let cipher = crate::tls::cipher_name(server.cipher);
    let text = format!("the upstream chose {} with {cipher}", server.version);
    Some(packet("server_hello", text))
}

fn given_certificate(facts: &TlsFacts<'_>) -> Option<Evidence> {
    let given = facts.wire.client_certificate.as_ref()?;
    let text = format!(
        "the gateway gave a certificate for {}, issued by {}",
        given.subject, given.issuer
    );
    Some(packet("client_certificate", text))
}
