//! Which events a reader wants.
//!
//! Decides how causes and upstreams are written and matched; a filter is checked in full before the
//! first event is looked at.

use thiserror::Error;

use crate::model::{
    Cause, HopEvent, Proof, Timestamp, UpstreamAddress, UpstreamInfo, UpstreamPattern,
    UpstreamPatternError, catalogue,
};
use crate::record::CaptureFilter;

/// A checked filter. Empty lists let everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    causes: Vec<Cause>,
    upstreams: Vec<UpstreamPattern>,
    /// Upstreams behind unix sockets.
    sockets: Vec<UpstreamAddress>,
    /// Upstreams by name, in lower case.
    names: Vec<String>,
    since: Option<Timestamp>,
    unexplained: bool,
}

/// Whether an event carries an answer for which there are other explanations.
fn is_unexplained(event: &HopEvent) -> bool {
    event.gateway_answer.as_deref().is_some_and(|answer| {
        let open = answer.attempts.is_empty() && event.proof == Proof::Underdetermined;
        open || answer.is_ambiguous()
    })
}

/// Why a filter was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// No cause and no family has this name.
    #[error(
        "unknown cause `{0}`: give an id such as tcp.connect_refused or a family such as tcp.*; \
         `hopscope explain` lists them"
    )]
    Cause(String),
    /// Not a set of upstreams.
    #[error(transparent)]
    Upstream(#[from] UpstreamPatternError),
    /// A unix path where captures are asked for.
    #[error("upstream `{0}` has no captures: no packets go through a unix socket")]
    NoPackets(String),
    /// A name where captures are asked for.
    #[error("upstream `{0}` is a name: captures are found by address")]
    NameOfCapture(String),
    /// Not a time that hopscope can hold.
    #[error("bad time in `since`: give one between 1970 and 2554")]
    Since,
}

impl Filter {
    /// A filter from its written form.
    pub fn parse<C, U>(
        causes: &[C],
        upstreams: &[U],
        since: Option<Timestamp>,
    ) -> Result<Self, FilterError>
    where
        C: AsRef<str>,
        U: AsRef<str>,
    {
        let mut filter = Self {
            since,
            ..Self::default()
        };
        for cause in causes {
            filter.add_causes(cause.as_ref())?;
        }
        for upstream in upstreams {
            let upstream = upstream.as_ref();
            match upstream.parse() {
                Ok(socket @ (UpstreamAddress::Unix(_) | UpstreamAddress::None)) => {
                    filter.sockets.push(socket);
                }
                _ if is_name(upstream) => {
                    let name = upstream.trim_end_matches('.').to_ascii_lowercase();
                    filter.names.push(name);
                }
                _ => filter.upstreams.push(upstream.parse()?),
            }
        }
        Ok(filter)
    }

    /// The same for answers only that nothing explains for sure, where `only` says so.
    #[must_use]
    pub const fn unexplained(mut self, only: bool) -> Self {
        self.unexplained = only;
        self
    }

    fn add_causes(&mut self, text: &str) -> Result<(), FilterError> {
        let before = self.causes.len();
        if let Some(family) = text.strip_suffix(".*") {
            let rows = catalogue().iter();
            let members =
                rows.filter(|row| row.id.split_once('.').is_some_and(|id| id.0 == family));
            self.causes.extend(members.map(|row| row.cause));
        } else {
            self.causes.extend(Cause::from_id(text));
        }
        if self.causes.len() == before {
            return Err(FilterError::Cause(text.to_owned()));
        }
        Ok(())
    }

    /// Whether the filter lets `event` through.
    pub fn matches(&self, event: &HopEvent) -> bool {
        (self.causes.is_empty() || self.causes.contains(&event.cause))
            && self.since.is_none_or(|since| event.time >= since)
            && (!self.unexplained || is_unexplained(event))
            && self.matches_upstream(&event.upstream)
    }

    /// The same for captures, of failed or of healthy exchanges only where `failed` says so.
    pub(super) fn of_captures(self, failed: Option<bool>) -> Result<CaptureFilter, FilterError> {
        if let Some(socket) = self.sockets.first() {
            return Err(FilterError::NoPackets(socket.to_string()));
        }
        if let Some(name) = self.names.first() {
            return Err(FilterError::NameOfCapture(name.clone()));
        }
        Ok(CaptureFilter {
            causes: self.causes,
            upstreams: self.upstreams,
            since: self.since,
            failed,
        })
    }

    fn matches_upstream(&self, upstream: &UpstreamInfo) -> bool {
        if self.upstreams.is_empty() && self.sockets.is_empty() && self.names.is_empty() {
            return true;
        }
        if let Some(name) = &upstream.name
            && self.names.contains(name)
        {
            return true;
        }
        match upstream.socket_addr() {
            Some(upstream) => self
                .upstreams
                .iter()
                .any(|pattern| pattern.matches(upstream)),
            None => self.sockets.contains(&upstream.address),
        }
    }
}

/// Whether the text can be a domain name and nothing else: no address, network or port looks like one.
fn is_name(text: &str) -> bool {
    let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '\\');
    // A name of letters beyond a to f, or one with a dot, is no IPv6 address without its colons.
    text.chars().all(label) && text.contains(|c: char| c.is_ascii_alphabetic())
}
