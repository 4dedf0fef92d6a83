//! What the gateway's TLS library said.
//!
//! Reasons are OpenSSL's (`sslerr.h`), codes those of `X509_V_ERR` (`x509_vfy.h`).

use super::{TlsFacts, alert, named, verdict};
use crate::classify::{Ended, Verdict, fact};
use crate::model::{Cause, Evidence, EvidenceSource, LibraryFact, Proof};
use crate::tls::Step;

/// Number of the library that SSL is.
const SSL: u32 = 20;
const VERIFY_FAILED: u32 = 134;
/// `X509_V_ERR_UNSPECIFIED`: the program refused what the library had found no fault with.
const UNSPECIFIED: u32 = 1;
/// From here on a reason is an alert that was received.
const ALERT: u32 = 1000;

/// The verdict on what the library said.
pub(super) fn told(facts: &TlsFacts<'_>) -> Option<Verdict> {
    certificate(facts).or_else(|| raised(facts))
}

/// What the verification of the certificate came to. The last word counts: nginx lets a verification go
/// on and asks for the last error.
fn certificate(facts: &TlsFacts<'_>) -> Option<Verdict> {
    // A gateway that goes on does not mind.
    if facts.requested || facts.answered {
        return None;
    }
    let (code, asked) = facts.heard.iter().rev().find_map(|fact| match fact {
        LibraryFact::Verified { code, asked } => Some((*code, *asked)),
        LibraryFact::Raised { .. } => None,
    })?;
    let gave_up = facts.heard.contains(&LibraryFact::Raised {
        library: SSL,
        reason: VERIFY_FAILED,
    });
    let closed = facts.hop.ended == Ended::Gateway;
    let failed = gave_up || asked && closed;
    if !failed {
        return None;
    }
    if code == 0 || code == UNSPECIFIED {
        // The chain is good, and the program refused it all the same: its own check is that of the name.
        let whole = gave_up || facts.is_done() && !facts.left;
        return whole.then(|| {
            let text = "the library found the chain good, and the gateway closed: its own check, of the name, failed";
            verdict(
                Cause::TlsCertificateNameMismatch,
                Proof::Inferred,
                said("verify_result", text),
            )
        });
    }
    let (cause, meaning) = of_code(code)?;
    let text = format!("the gateway's library did not verify the chain: X509 {code}, {meaning}");
    Some(verdict(cause, Proof::Proven, said("verify_result", text)))
}

/// The cause of an `X509_V_ERR` code, and what it means.
fn of_code(code: u32) -> Option<(Cause, &'static str)> {
    Some(match code {
        10 => (Cause::TlsCertificateExpired, "certificate has expired"),
        9 => (
            Cause::TlsCertificateNotYetValid,
            "certificate is not yet valid",
        ),
        18 => (Cause::TlsCertificateSelfSigned, "self-signed certificate"),
        2 => (
            Cause::TlsCertificateUntrusted,
            "unable to get issuer certificate",
        ),
        19 => (
            Cause::TlsCertificateUntrusted,
            "self-signed certificate in certificate chain",
        ),
        20 => (
            Cause::TlsCertificateUntrusted,
            "unable to get local issuer certificate",
        ),
        21 => (
            Cause::TlsCertificateUntrusted,
            "unable to verify the first certificate",
        ),
        7 => (
            Cause::TlsCertificateUntrusted,
            "certificate signature failure",
        ),
        22 => (Cause::TlsCertificateUntrusted, "certificate chain too long"),
        24 | 79 => (Cause::TlsCertificateUntrusted, "invalid CA certificate"),
        25 => (
            Cause::TlsCertificateUntrusted,
            "path length constraint exceeded",
        ),
        27 | 28 => (Cause::TlsCertificateUntrusted, "certificate not trusted"),
        32 => (
            Cause::TlsCertificateUntrusted,
            "issuer may not sign certificates",
        ),
        62 => (Cause::TlsCertificateNameMismatch, "hostname mismatch"),
        64 => (Cause::TlsCertificateNameMismatch, "IP address mismatch"),
        26 => (
            Cause::TlsCertificatePurpose,
            "unsuitable certificate purpose",
        ),
        66 => (Cause::TlsCertificateWeak, "certificate key too weak"),
        67 => (Cause::TlsCertificateWeak, "issuer's key too weak"),
        68 => (Cause::TlsCertificateWeak, "digest algorithm too weak"),
        23 => (Cause::TlsCertificateRevoked, "certificate revoked"),
        3 => (
            Cause::TlsCertificateRevoked,
            "unable to get the revocation list",
        ),
        12 => (
            Cause::TlsCertificateRevoked,
            "the revocation list has expired",
        ),
        11 => (
            Cause::TlsCertificateRevoked,
            "the revocation list is not yet valid",
        ),
        33 => (
            Cause::TlsCertificateRevoked,
            "unable to get the issuer of the revocation list",
        ),
        _ => return None,
    })
}

/// Errors that the library raised, the first one that says something.
fn raised(facts: &TlsFacts<'_>) -> Option<Verdict> {
    facts.heard.iter().find_map(|fact| match fact {
        LibraryFact::Raised {
            library: SSL,
            reason,
        } => of_reason(facts, *reason),
        LibraryFact::Raised { .. } | LibraryFact::Verified { .. } => None,
    })
}

fn of_reason(facts: &TlsFacts<'_>, reason: u32) -> Option<Verdict> {
    if let Some(number) = reason.checked_sub(ALERT) {
        let number = u8::try_from(number).ok().filter(|_| !facts.answered)?;
        let text = format!("the gateway's library received the alert {}", named(number));
        let own = facts.wire.from.step;
        return alert::by_upstream(facts, number, own, &said("alert_received", text));
    }
    let done = facts.is_done();
    let silent = facts.wire.from.step == Step::Nothing;
    let (cause, meaning) = match reason {
        267 if silent => (Cause::TlsPlaintextUpstream, "wrong version number"),
        267 => (Cause::TlsRecordCorrupt, "wrong version number"),
        129 | 147 | 281 => (
            Cause::TlsRecordCorrupt,
            "decryption failed or bad record mac",
        ),
        146 | 150 | 198 => (Cause::TlsRecordCorrupt, "record too long"),
        443 => (Cause::TlsRecordCorrupt, "bad record type"),
        244 | 245 => (Cause::TlsRecordCorrupt, "unexpected message or record"),
        294 if !done => (
            Cause::TlsHandshakeClosed,
            "unexpected end of the stream inside the handshake",
        ),
        166 | 258 | 266 | 396 if !done => (Cause::TlsVersionMismatch, "unsupported protocol"),
        394 | 397 | 398 | 399 if !done => (
            Cause::TlsCertificateWeak,
            "key or digest below the security level",
        ),
        338 if !done => (
            Cause::TlsNoCommonParameters,
            "unsafe legacy renegotiation disabled",
        ),
        _ => return None,
    };
    let text = format!("the gateway's library gave up with reason {reason}: {meaning}");
    Some(verdict(cause, Proof::Proven, said("error_raised", text)))
}

fn said(what: &'static str, text: impl Into<String>) -> Evidence {
    fact(EvidenceSource::TlsLibrary, what, text)
}
