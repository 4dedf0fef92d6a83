//! What a row of the catalogue holds, and the macro that turns the table into an enum.

use std::fmt;

use serde::{Serialize, Serializer};

use super::Cause;

/// How firmly a verdict stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The decisive bytes or kernel event were seen.
    Proven,
    /// Everything seen fits, and all rivals in the same group are excluded.
    Inferred,
    /// The facts leave rivals; the event lists them and what would split them.
    Underdetermined,
}

impl Proof {
    /// The name used in JSON and text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Inferred => "inferred",
            Self::Underdetermined => "underdetermined",
        }
    }
}

/// The side to fix, which is not always the side that closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultSide {
    /// The upstream or its host.
    Upstream,
    /// The gateway, its host or its configuration.
    Gateway,
    /// Something between the two.
    Network,
    /// Name resolution.
    Dns,
    /// Gateway and upstream together.
    Both,
}

impl FaultSide {
    /// The name used in JSON and text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Gateway => "gateway",
            Self::Network => "network",
            Self::Dns => "dns",
            Self::Both => "both",
        }
    }
}

/// Group of causes that are told apart by the same kind of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Name resolution.
    Dns,
    /// Choosing an upstream; no packet is sent.
    Pick,
    /// Limits of the gateway host.
    Gateway,
    /// Opening the connection.
    Connect,
    /// An established TCP connection.
    Tcp,
    /// The upstream's time.
    UpstreamTime,
    /// TLS.
    Tls,
    /// HTTP/1.x responses.
    Http1,
    /// HTTP/2 upstreams.
    Http2,
}

impl Family {
    /// A heading for it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Dns => "DNS",
            Self::Pick => "choosing an upstream",
            Self::Gateway => "gateway host limits",
            Self::Connect => "connecting",
            Self::Tcp => "established TCP",
            Self::UpstreamTime => "upstream time",
            Self::Tls => "TLS",
            Self::Http1 => "HTTP/1.x response",
            Self::Http2 => "HTTP/2 upstream",
        }
    }
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseInfo {
    /// The cause.
    pub cause: Cause,
    /// Its stable id.
    pub id: &'static str,
    /// The family it belongs to.
    pub family: Family,
    /// What it means, in one line.
    pub definition: &'static str,
    /// What proves it on the wire or in the kernel.
    pub proof: &'static str,
    /// RFC 9209 proxy error type, where one fits.
    pub proxy_error: Option<&'static str>,
    /// The type with its parameters and alternatives.
    pub proxy_error_note: &'static str,
    /// Status that RFC 9209 recommends; none where the upstream's own is passed on.
    pub recommended_status: Option<u16>,
    /// Status as the catalogue states it.
    pub status_note: &'static str,
    /// Cloudflare's code for the same event.
    pub cloudflare: Option<&'static str>,
    /// What Envoy logs.
    pub envoy: Option<&'static str>,
    /// What HAProxy logs.
    pub haproxy: Option<&'static str>,
    /// What nginx logs.
    pub nginx: Option<&'static str>,
    /// The side to fix.
    pub fault_side: FaultSide,
    /// The side to fix, with conditions.
    pub fault_note: &'static str,
    /// What to do next.
    pub next_step: &'static str,
    /// The tempting fix that does not help.
    pub wrong_fix: &'static str,
}

impl Cause {
    /// The cause with this id.
    pub fn from_id(id: &str) -> Option<Self> {
        super::catalogue()
            .iter()
            .find(|row| row.id == id)
            .map(|row| row.cause)
    }

    /// The stable id, such as `tcp.connect_refused`.
    pub fn id(self) -> &'static str {
        self.info().id
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

macro_rules! causes {
    ($($name:ident = $id:literal => {
        family: $family:ident,
        definition: $definition:literal,
        proof: $proof:literal,
        proxy_error: $proxy_error:expr,
        proxy_error_note: $proxy_error_note:literal,
        recommended_status: $status:expr,
        status_note: $status_note:literal,
        cloudflare: $cloudflare:expr,
        envoy: $envoy:expr,
        haproxy: $haproxy:expr,
        nginx: $nginx:expr,
        fault_side: $fault_side:ident,
        fault_note: $fault_note:literal,
        next_step: $next_step:literal,
        wrong_fix: $wrong_fix:literal,
    })*) => {
        /// Every verdict that hopscope can give.
        #[expect(clippy::doc_markdown, reason = "definitions are shown to people as they stand")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $(#[doc = $definition] $name,)*
        }

        static CATALOGUE: &[$crate::model::cause::CauseInfo] = &[
            $($crate::model::cause::CauseInfo {
                cause: Cause::$name,
                id: $id,
                family: $crate::model::cause::Family::$family,
                definition: $definition,
                proof: $proof,
                proxy_error: $proxy_error,
                proxy_error_note: $proxy_error_note,
                recommended_status: $status,
                status_note: $status_note,
                cloudflare: $cloudflare,
                envoy: $envoy,
                haproxy: $haproxy,
                nginx: $nginx,
                fault_side: $crate::model::cause::FaultSide::$fault_side,
                fault_note: $fault_note,
                next_step: $next_step,
                wrong_fix: $wrong_fix,
            },)*
        ];

        /// Every row of the catalogue, in its order.
        pub fn catalogue() -> &'static [$crate::model::cause::CauseInfo] {
            CATALOGUE
        }

        impl Cause {
            /// The catalogue row of this cause.
            pub fn info(self) -> &'static $crate::model::cause::CauseInfo {
                // Variants and rows come from the same list, so the discriminant is the index.
                &CATALOGUE[self as usize]
            }
        }
    };
}
pub(super) use causes;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::model::{Cause, catalogue};

    #[test]
    fn the_catalogue_is_closed_and_consistent() {
        assert_eq!(catalogue().len(), 99);
        let ids: HashSet<_> = catalogue().iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), 99, "ids are unique");
        for row in catalogue() {
            assert_eq!(row.cause.info(), row);
            assert_eq!(Cause::from_id(row.id), Some(row.cause));
            assert!(
                !row.next_step.is_empty() && !row.wrong_fix.is_empty(),
                "{}",
                row.id
            );
            if let Some(status) = row.recommended_status {
                assert!((500..=504).contains(&status), "{}", row.id);
            }
        }
    }

    #[test]
    fn an_unknown_id_is_none() {
        assert_eq!(Cause::from_id("tcp.connect_refuse"), None);
    }
}
