//! The gateway refused the upstream's certificate: what of it is to blame.

use std::time::Duration;

use super::{TlsFacts, packet, verdict};
use crate::classify::{Verdict, human};
use crate::model::{Cause, Evidence, Proof, Timestamp};
use crate::tls::{
    Alert, Certificate, ChainShape, NameMatch, SubjectName, anchor, chain_shape, name_match,
};

/// Gateways with OpenSSL or a library made from it, whose alert 45 means one thing
/// (`ssl_x509err2alert`).
pub(super) const OPENSSL: &[&str] = &["nginx", "haproxy", "httpd", "apache2", "envoy"];

/// Gateways that look at the result of the verification only once the handshake is complete, and then
/// close in order.
const CHECKS_AFTERWARDS: &[&str] = &["nginx"];

/// Gateways that check the name only then, and close without an alert.
const NAME_AFTERWARDS: &[&str] = &["httpd", "apache2"];

/// A check right behind the handshake takes no longer.
const RIGHT_BEHIND: Duration = Duration::from_millis(50);

/// Everything that a certificate can be refused for.
pub(super) const ALL: [Cause; 8] = [
    Cause::TlsCertificateUntrusted,
    Cause::TlsCertificateSelfSigned,
    Cause::TlsCertificateNameMismatch,
    Cause::TlsCertificateExpired,
    Cause::TlsCertificateNotYetValid,
    Cause::TlsCertificatePurpose,
    Cause::TlsCertificateWeak,
    Cause::TlsCertificateRevoked,
];

const SPLITTER: &str =
    "the certificate that the upstream shows (openssl s_client -showcerts), or the gateway's log";

/// A flaw of the chain that can be seen.
struct Flaw {
    cause: Cause,
    /// Whether whoever verifies refuses it.
    certain: bool,
    evidence: Evidence,
}

/// What the chain shows.
#[derive(Default)]
struct Shown {
    flaws: Vec<Flaw>,
    /// Causes that a flaw of the chain would show, and that none does.
    excluded: Vec<Cause>,
}

/// The verdict on a refused certificate, for one of `candidates`; `plain` where an alert said it in the
/// clear.
pub(super) fn refused(
    facts: &TlsFacts<'_>,
    candidates: &[Cause],
    decisive: Evidence,
    plain: bool,
) -> Verdict {
    let mut shown = shown(facts);
    shown.flaws.retain(|flaw| candidates.contains(&flaw.cause));
    let only_issuer = candidates.iter().all(|cause| {
        matches!(
            cause,
            Cause::TlsCertificateUntrusted | Cause::TlsCertificateSelfSigned
        )
    });
    let causes: Vec<Cause> = if shown.flaws.is_empty() {
        let left = candidates.iter().copied();
        left.filter(|cause| !shown.excluded.contains(cause))
            .collect()
    } else {
        shown.flaws.iter().map(|flaw| flaw.cause).collect()
    };
    // What the chain shows is at odds with the alert where nothing is left.
    let causes = if causes.is_empty() {
        candidates
    } else {
        &causes
    };
    let certain = shown.flaws.first().is_some_and(|flaw| flaw.certain);
    let evidence =
        std::iter::once(decisive).chain(shown.flaws.into_iter().map(|flaw| flaw.evidence));
    let mut evidence = evidence.chain(chain(facts));
    let first = causes
        .first()
        .copied()
        .unwrap_or(Cause::TlsCertificateUntrusted);
    let first_evidence = evidence.next().unwrap_or_else(|| packet("refused", ""));
    let firm = plain && (candidates.len() == 1 || only_issuer) || certain;
    let proof = if firm { Proof::Proven } else { Proof::Inferred };
    let refused = verdict(first, proof, first_evidence).with(evidence);
    match causes.get(1..) {
        Some(rivals) if !rivals.is_empty() && !certain => refused.against(rivals, SPLITTER),
        _ => refused,
    }
}

/// The gateway closed behind a complete handshake and never sent a request. A gateway that only wants to
/// see whether the upstream completes a handshake does the same, so it takes one that never does.
pub(super) fn after_handshake(facts: &TlsFacts<'_>, alert: Option<&Alert>) -> Option<Verdict> {
    let waited = facts.hop.silence;
    if facts.requested || facts.answered || facts.left || waited > RIGHT_BEHIND {
        return None;
    }
    let names = &[Cause::TlsCertificateNameMismatch][..];
    let (candidates, how) = match alert {
        Some(_) if facts.runs(CHECKS_AFTERWARDS) => (&ALL[..], "closed in order"),
        None if facts.runs(NAME_AFTERWARDS) => (names, "closed"),
        _ => return None,
    };
    let text = format!(
        "the gateway completed the handshake and {how} {} later without a request, as it does where it does not accept the certificate",
        human(waited)
    );
    let decisive = packet("closed_after_handshake", text);
    Some(refused(facts, candidates, decisive, false).with(facts.offer()))
}

/// The chain in words.
fn chain(facts: &TlsFacts<'_>) -> Option<Evidence> {
    let leaf = facts.wire.chain.first()?;
    let count = facts.wire.chain.len();
    let whole = !facts.wire.chain_cut;
    let order = match chain_shape(&facts.wire.chain).filter(|_| whole) {
        Some(ChainShape::Unrelated) => "; none of the others is its issuer",
        Some(ChainShape::OutOfOrder) => "; they are out of order",
        _ => "",
    };
    let needed = anchor(&facts.wire.chain)
        .filter(|_| whole && !leaf.self_issued)
        .map_or_else(String::new, |anchor| {
            format!("; the gateway needs {anchor} to trust it")
        });
    let text = format!(
        "the upstream sent {count} certificate{}, the first for {}, issued by {}, good from {} to {}{order}{needed}",
        if count == 1 { "" } else { "s" },
        leaf.subject,
        leaf.issuer,
        date(leaf.not_before),
        date(leaf.not_after)
    );
    Some(packet("certificate_chain", text))
}

/// Looks for flaws, the certain ones first.
fn shown(facts: &TlsFacts<'_>) -> Shown {
    let mut shown = Shown::default();
    let Some((leaf, issuers)) = facts.wire.chain.split_first() else {
        return shown;
    };
    let now = i64::try_from(facts.now.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX);
    let mut look = |cause, flaw: Option<(bool, String)>| match flaw {
        Some((certain, text)) => shown.flaws.push(Flaw {
            cause,
            certain,
            evidence: packet("certificate_flaw", text),
        }),
        None if !facts.wire.chain_cut => shown.excluded.push(cause),
        None => {}
    };
    // A root that is sent along is not looked at.
    let above = || issuers.iter().filter(|issuer| !issuer.self_issued);
    let over = |certificate: &Certificate| certificate.not_after < now;
    let early = |certificate: &Certificate| certificate.not_before > now;
    let expired = if over(leaf) {
        Some((
            true,
            format!("the certificate expired on {}", date(leaf.not_after)),
        ))
    } else {
        above().find(|issuer| over(issuer)).map(|issuer| {
            let text = format!(
                "the issuer {} expired on {}",
                issuer.subject,
                date(issuer.not_after)
            );
            (false, text)
        })
    };
    look(Cause::TlsCertificateExpired, expired);
    let not_yet = early(leaf).then(|| {
        let text = format!(
            "the certificate is not good before {}",
            date(leaf.not_before)
        );
        (true, text)
    });
    look(Cause::TlsCertificateNotYetValid, not_yet);
    let own = leaf.self_issued.then(|| {
        (
            false,
            format!("the certificate for {} is its own issuer", leaf.subject),
        )
    });
    look(Cause::TlsCertificateSelfSigned, own);
    let purpose = leaf.not_for_servers.then(|| {
        (
            false,
            "the certificate's extended key usage leaves servers out".to_owned(),
        )
    });
    look(Cause::TlsCertificatePurpose, purpose);
    let weak = std::iter::once(leaf).chain(above()).find_map(weakness);
    look(Cause::TlsCertificateWeak, weak.map(|text| (false, text)));
    let client = facts.wire.client.as_ref();
    if let Some(name) = client.and_then(|client| client.sni.as_deref()) {
        match name_match(leaf, name) {
            NameMatch::No => {
                let text = format!("the certificate is for {}, not for {name}", names(leaf));
                look(Cause::TlsCertificateNameMismatch, Some((false, text)));
            }
            // It checks the name that it asks for; others may check another one.
            NameMatch::Yes if facts.runs(CHECKS_AFTERWARDS) => {
                look(Cause::TlsCertificateNameMismatch, None);
            }
            _ => {}
        }
    }
    shown
}

/// What of a certificate is below the least that libraries take by default: 112 bits of security, which
/// are 2048 bits of RSA and 224 of a curve, and no broken digest.
fn weakness(certificate: &Certificate) -> Option<String> {
    let signature = certificate.signature.to_ascii_lowercase();
    let least = match &*certificate.key {
        "RSA" => 2048,
        "EC" => 224,
        _ => 0,
    };
    if let Some(bits) = certificate.key_bits.filter(|bits| *bits < least) {
        return Some(format!("the {} key has {bits} bits", certificate.key));
    }
    let broken = ["md5", "sha1"]
        .iter()
        .any(|digest| signature.contains(digest));
    broken.then(|| format!("the certificate is signed with {}", certificate.signature))
}

fn names(certificate: &Certificate) -> String {
    let names: Vec<_> = certificate
        .names
        .iter()
        .take(5)
        .map(|name| match name {
            SubjectName::Dns(name) => name.clone(),
            SubjectName::Address(address) => address.to_string(),
        })
        .collect();
    match (names.is_empty(), &certificate.common_name) {
        (true, Some(name)) => name.clone(),
        (true, None) => "no name".to_owned(),
        (false, _) => names.join(", "),
    }
}

/// Seconds since the epoch as a date.
fn date(seconds: i64) -> String {
    match u64::try_from(seconds)
        .ok()
        .and_then(|seconds| seconds.checked_mul(1_000_000_000))
    {
        Some(nanos) => {
            let text = Timestamp::from_nanos(nanos).to_string();
            text.split('.').next().unwrap_or(&text).replace('T', " ")
        }
        None => format!("{seconds} s after 1970"),
    }
}
