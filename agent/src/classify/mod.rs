//! Facts of a finished exchange or connect -> cause and proof.
//!
//! Ordered rules over plain facts, pure: no table, no time, no IO. The first rule that fits decides;
//! where none fits there is no verdict, because a wrong one is worse than none.

mod answers;
mod connect;
mod dns;
mod exchange;
mod peers;
mod tls;

use std::borrow::Cow;
use std::time::Duration;

pub use answers::{
    EarlierFailure, InFlight, SocketError, Unattempted, is_nginx, looped, second_gateway,
    unattempted, worker_died,
};
pub use connect::{ConnectFacts, connect, connect_call, connect_unix};
pub use dns::{Behind, StaleFacts, may_be_stale, stale_address, unresolved};
pub use exchange::{
    ALIKE, Acked, Ended, ExchangeFacts, afterwards, closed_before_request, cut_off, exchange,
};
pub use peers::{
    Died, Origin, connect_late, draining_connect, draining_cut, half_open, is_cut, origin,
    process_died,
};
pub use tls::{
    TlsFacts, TlsRun, TlsVerdict, cut_record, inside_tls, on_farewell, seen_inside_tls, tls,
};

use crate::http1::{self, Finding, FindingKind};
use crate::model::{Cause, Evidence, EvidenceSource, Phase, Proof};

/// A cause with how firmly it stands and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The one cause.
    pub cause: Cause,
    /// How firmly it stands.
    pub proof: Proof,
    /// What the facts do not exclude.
    pub rivals: Vec<Cause>,
    /// What would split them.
    pub splitter: Option<&'static str>,
    /// Where it failed.
    pub phase: Phase,
    /// What proves it, the decisive piece first.
    pub evidence: Vec<Evidence>,
    /// Gateways that reject what the upstream sent, where that was measured.
    pub rejected_by: Vec<String>,
    /// Gateways that tolerate it.
    pub tolerated_by: Vec<String>,
}

impl Verdict {
    fn new(cause: Cause, proof: Proof, phase: Phase, decisive: Evidence) -> Self {
        Self {
            cause,
            proof,
            rivals: Vec::new(),
            splitter: None,
            phase,
            evidence: vec![decisive],
            rejected_by: Vec::new(),
            tolerated_by: Vec::new(),
        }
    }

    /// Adds a supporting fact.
    #[must_use]
    fn with(mut self, evidence: impl IntoIterator<Item = Evidence>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    /// Names what the facts leave open.
    #[must_use]
    fn against(mut self, rivals: &[Cause], splitter: &'static str) -> Self {
        self.proof = Proof::Underdetermined;
        self.rivals = rivals.to_vec();
        self.splitter = Some(splitter);
        self
    }
}

/// A fact without bytes.
fn fact(source: EvidenceSource, what: &'static str, text: impl Into<String>) -> Evidence {
    Evidence {
        source,
        what: Cow::Borrowed(what),
        offset: None,
        bytes: Vec::new(),
        text: text.into(),
    }
}

/// A duration as people write it.
fn human(duration: Duration) -> String {
    if duration >= Duration::from_secs(1) {
        format!("{:.2} s", duration.as_secs_f64())
    } else {
        format!("{:.2} ms", duration.as_secs_f64() * 1e3)
    }
}

/// The verdict on a broken rule, among all that this response breaks.
fn broken_rule(finding: &Finding, all: &[Finding], phase: Phase) -> Verdict {
    let mut text = match finding.kind {
        FindingKind::NotHttp(foreign) => format!("the upstream answered with {foreign}"),
        FindingKind::HeadTooLarge(size) => size.to_string(),
        FindingKind::ContentCoding(coding) => format!(
            "Content-Encoding says {coding}, and the body at offset {} does not begin like that",
            finding.offset
        ),
        kind => format!("{} at offset {}", kind.text(), finding.offset),
    };
    if let Some(header) = &finding.header {
        text += " in header ";
        text += header;
    }
    if !finding.excerpt.is_empty() {
        text += ": ";
        text += &finding.excerpt.escape_ascii().to_string();
    }
    let decisive = Evidence {
        source: EvidenceSource::Packet,
        what: Cow::Borrowed("broken_rule"),
        offset: Some(finding.offset),
        bytes: finding.excerpt.clone(),
        text,
    };
    let mut verdict = Verdict::new(finding.kind.cause(), Proof::Proven, phase, decisive);
    (verdict.rejected_by, verdict.tolerated_by) = http1::split(http1::outcomes(all));
    verdict
}
