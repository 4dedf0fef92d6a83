//! Takes secrets out of packets and events before they reach a disk or a network.
//!
//! Overwritten with `*`, one for one, so that lengths, sequence numbers and offsets stay true: the
//! values of credential fields (in requests, responses and trailers), the query strings of request
//! targets and of fields that hold URLs, user names in targets, and bodies beyond a cap. Control bytes
//! inside a masked value stay: they tell no secret, and may be what broke the response.
//!
//! Bodies keep their first bytes. After that the packets are cut short, except inside chunked bodies:
//! there the data is masked and the framing stays, so that a capture still shows where it breaks.
//!
//! What a byte is depends on bytes before it, maybe of another packet. So the packets of a direction
//! are first put together by sequence number, whatever their order; masks are found in the stream and
//! applied to every packet that has some of those bytes. Where the context is unknown (a capture that
//! begins inside a head, a gap in one, a request in another protocol, copies of the same bytes that
//! differ), everything is masked until it is known again. Bytes of TLS stay: they are masked already. What
//! the gateway's TLS library showed of the inside makes two streams of its own.

mod fields;
mod stream;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;

use self::fields::mask_fields;
use self::stream::{Run, Streams};
use self::walk::Walker;
use super::capture::CapturedPacket;
use crate::input::pdu::is_pdu;
use crate::model::{Direction, HopEvent};

/// Fields with these names are credentials.
const NAMES: &[&str] = &[
    "api-key",
    "apikey",
    "authorization",
    "cf-access-client-secret",
    "cf-access-jwt-assertion",
    "cookie",
    "cookie2",
    "dpop",
    "ocp-apim-subscription-key",
    "private-token",
    "proxy-authorization",
    "set-cookie",
    "set-cookie2",
    "x-amzn-oidc-data",
    "x-amzn-oidc-accesstoken",
    "x-api-key",
    "x-auth-token",
    "x-functions-key",
    "x-goog-iap-jwt-assertion",
];

/// So are fields whose names end like this.
const ENDINGS: &[&str] = &[
    "-api-key",
    "-apikey",
    "-authorization",
    "-cookie",
    "-password",
    "-secret",
    "-token",
];

/// Fields that hold URLs, whose queries are masked.
const URLS: &[&str] = &[
    "content-location",
    "location",
    "referer",
    "refresh",
    "x-envoy-original-path",
    "x-forwarded-uri",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// What overwrites a secret. Any field value and any target may hold it.
const FILLER: u8 = b'*';

/// What is masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedactConfig {
    /// Names of further credential fields.
    pub headers: BTreeSet<String>,
    /// Keeps query strings.
    pub keep_query: bool,
    /// Bytes kept of each body.
    pub body_bytes: usize,
}

impl Default for RedactConfig {
    fn default() -> Self {
        Self {
            headers: BTreeSet::new(),
            keep_query: false,
            body_bytes: 512,
        }
    }
}

/// What becomes of a byte of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Keep,
    /// Inside a body, beyond the cap: cut off where a packet ends with it, masked elsewhere.
    Body,
    /// Masked because it is body data or its meaning is unknown.
    Unknown,
    /// Masked because it is a secret.
    Secret,
}

/// Takes secrets out.
#[derive(Clone, Debug)]
pub struct Redactor {
    config: RedactConfig,
}

impl Redactor {
    /// A redactor that masks what `config` says.
    pub fn new(mut config: RedactConfig) -> Self {
        let given = std::mem::take(&mut config.headers);
        config.headers = given.iter().map(|name| normal(name)).collect();
        Self { config }
    }

    /// Takes secrets out of the packets of one hop, and out of the event that they are evidence of.
    /// Packets that cannot be read are left out.
    pub fn redact(&self, packets: &mut Vec<CapturedPacket>, event: Option<&mut HopEvent>) {
        let all = std::mem::take(packets);
        let (mut inside, mut outside): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|kept| is_pdu(&kept.bytes));
        let streams = self.mask(&mut outside, false);
        let inner = self.mask(&mut inside, true);
        if let Some(event) = event {
            let seen = if inside.is_empty() { streams } else { inner };
            self.redact_event(event, seen.runs(Direction::FromUpstream));
        }
        packets.append(&mut outside);
        if !inside.is_empty() {
            packets.append(&mut inside);
            packets.sort_by_key(|kept| kept.at);
        }
    }

    /// Takes secrets out of the packets of one pair of streams; `inside` where they are what TLS hides.
    fn mask(&self, packets: &mut Vec<CapturedPacket>, inside: bool) -> Streams {
        let mut streams = Streams::gather(packets);
        for direction in [Direction::ToUpstream, Direction::FromUpstream] {
            let mut walker = Walker::new(direction, self.config.body_bytes, inside);
            for run in streams.runs_mut(direction) {
                self.classify(direction, &mut walker, run);
            }
        }
        streams.apply(packets);
        streams
    }

    fn classify(&self, direction: Direction, walker: &mut Walker, run: &mut Run) {
        walker.walk(run);
        mask_fields(self, direction, &run.bytes, &mut run.classes);
        if let Some(conflict) = run.conflict {
            // Which of the copies counts is not known, so neither is what follows.
            walker.lose();
            for class in run.classes.iter_mut().skip(conflict) {
                *class = Class::Secret;
            }
        }
    }

    /// Takes secrets out of an event. `seen` is the upstream's stream, where it was kept.
    fn redact_event(&self, event: &mut HopEvent, seen: &[Run]) {
        if let Some(exchange) = &mut event.exchange {
            let path = exchange.path.as_mut().filter(|_| !self.config.keep_query);
            if let Some((path, end)) = path.and_then(|path| {
                let end = path.find('?')?;
                Some((path, end))
            }) {
                path.truncate(end);
            }
        }
        for evidence in &mut event.evidence {
            if evidence.bytes.is_empty() {
                continue;
            }
            let masked = self.masked_excerpt(&evidence.bytes, &evidence.text, seen);
            if masked != evidence.bytes {
                let old = evidence.bytes.escape_ascii().to_string();
                let new = masked.escape_ascii().to_string();
                evidence.text = evidence.text.replace(&old, &new);
                evidence.bytes = masked;
            }
        }
    }

    /// An excerpt of a response without its secrets: by its place in the stream where it is found
    /// there, and by the field that its text names.
    fn masked_excerpt(&self, bytes: &[u8], text: &str, seen: &[Run]) -> Vec<u8> {
        let mut classes = vec![Class::Keep; bytes.len()];
        mask_fields(self, Direction::FromUpstream, bytes, &mut classes);
        let mut found_there = false;
        for run in seen {
            for at in memchr::memmem::find_iter(&run.bytes, bytes) {
                found_there = true;
                let found = run.classes.iter().skip(at);
                for (class, found) in classes.iter_mut().zip(found) {
                    if *found == Class::Secret {
                        *class = Class::Secret;
                    }
                }
            }
        }
        let named = text
            .split_once(" in header ")
            .and_then(|(_, rest)| rest.split([':', ' ']).next());
        let name_shown = bytes.contains(&b':');
        // A line that goes on from one before may be the rest of any field.
        let folded = matches!(bytes, [b' ' | b'\t', ..]);
        let credential = named.is_some_and(|name| self.is_credential(name.as_bytes()));
        if !found_there && ((credential && !name_shown) || folded) {
            classes.fill(Class::Secret);
        }
        let masked = bytes.iter().zip(classes);
        masked
            .map(|(byte, class)| mask(*byte, class == Class::Secret))
            .collect()
    }

    /// Whether fields of this name are credentials.
    fn is_credential(&self, name: &[u8]) -> bool {
        let Ok(name) = std::str::from_utf8(name) else {
            return false;
        };
        let name = normal(name);
        NAMES.contains(&name.as_str())
            || ENDINGS.iter().any(|ending| name.ends_with(ending))
            || self.config.headers.contains(&name)
    }

    /// Whether fields of this name hold URLs whose queries are to be masked.
    fn is_url(&self, name: &[u8]) -> bool {
        !self.config.keep_query
            && std::str::from_utf8(name).is_ok_and(|name| URLS.contains(&normal(name).as_str()))
    }
}

/// A name as lists have it: gateways may turn underscores to hyphens.
fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// A byte, overwritten where it may be part of a secret.
const fn mask(byte: u8, masked: bool) -> u8 {
    if masked && !byte.is_ascii_control() {
        FILLER
    } else {
        byte
    }
}
