//! A capture: the packets of one exchange, and what is said about it in lists.

use core::fmt;
use core::net::SocketAddr;
use core::str::FromStr;
use std::sync::Arc;

use crate::model::{Cause, Direction, GatewayInfo, HopEvent, Timestamp, UpstreamPattern};

/// Name of a capture: 13 letters and digits that sort as the captures' times do.
///
/// It is the time of the capture in nanoseconds, moved on where a capture with that name is kept
/// already: it needs no memory of earlier runs to be unique among what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaptureId(pub(super) u64);

/// Digits in their ASCII order, without the letters that are read as digits (Crockford's base 32).
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// 13 digits of five bits hold 64 bits.
const ID_LEN: u32 = 13;

impl CaptureId {
    /// The id that a capture of this time has, unless another has it already.
    pub(super) const fn at(time: Timestamp) -> Self {
        Self(time.as_nanos())
    }

    /// The next id in order.
    pub(super) const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for CaptureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in (0..ID_LEN).rev() {
            let digit = usize::try_from(self.0 >> (5 * place) & 31).unwrap_or_default();
            write!(f, "{}", char::from(DIGITS[digit]))?;
        }
        Ok(())
    }
}

/// Text that is no capture id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad capture id `{0}`: give one as `hopscope captures list` shows it")]
pub struct CaptureIdError(String);

impl FromStr for CaptureId {
    type Err = CaptureIdError;

    fn from_str(text: &str) -> Result<Self, CaptureIdError> {
        let digit = |byte| DIGITS.iter().position(|digit| *digit == byte);
        let mut id = 0u64;
        for byte in text.bytes() {
            let value = digit(byte).and_then(|value| u64::try_from(value).ok());
            let value = value.ok_or_else(|| CaptureIdError(text.to_owned()))?;
            id = id << 5 | value;
        }
        let id = Self(id);
        // Anything too short, too long or too large does not come out as it went in.
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(CaptureIdError(text.to_owned()))
        }
    }
}

/// The line that tells one exchange from another in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExchangeLine {
    /// Request method.
    pub method: Option<String>,
    /// Request path without its query.
    pub path: Option<String>,
    /// Status of the upstream's response.
    pub status: Option<u16>,
}

/// One packet as it goes into a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedPacket {
    /// When it was seen.
    pub at: Timestamp,
    /// Which way it went.
    pub direction: Direction,
    /// From the IP header on, as far as it was kept.
    pub bytes: Vec<u8>,
    /// Its length on the wire, from the IP header on.
    pub wire_len: u32,
}

/// What is to be stored.
#[derive(Clone, Debug)]
pub struct Capture {
    /// When the exchange ended.
    pub time: Timestamp,
    /// The node.
    pub node: Arc<str>,
    /// The upstream's end.
    pub upstream: SocketAddr,
    /// The gateway process, where it is known.
    pub gateway: Option<GatewayInfo>,
    /// The exchange.
    pub exchange: ExchangeLine,
    /// The event that it is evidence of; none for a healthy exchange.
    pub event: Option<HopEvent>,
    /// Its packets in the order of their times.
    pub packets: Vec<CapturedPacket>,
}

/// One stored capture, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureInfo {
    /// Its id.
    pub id: CaptureId,
    /// When the exchange ended.
    pub time: Timestamp,
    /// The node.
    pub node: Arc<str>,
    /// Id of the event that it is evidence of.
    pub event_id: Option<String>,
    /// Cause of that event; none for a healthy exchange.
    pub cause: Option<Cause>,
    /// The upstream's end.
    pub upstream: SocketAddr,
    /// The exchange.
    pub exchange: ExchangeLine,
    /// Packets in it.
    pub packets: u32,
    /// Length of its pcapng section.
    pub bytes: u64,
}

/// Which captures are wanted. Empty fields do not filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// Causes; captures of healthy exchanges have none.
    pub causes: Vec<Cause>,
    /// Upstreams.
    pub upstreams: Vec<UpstreamPattern>,
    /// Nothing that ended earlier.
    pub since: Option<Timestamp>,
    /// Failed exchanges only, or healthy ones only.
    pub failed: Option<bool>,
}

impl CaptureFilter {
    /// Whether a capture is wanted.
    pub fn admits(&self, info: &CaptureInfo) -> bool {
        let upstreams = &self.upstreams;
        (self.causes.is_empty() || info.cause.is_some_and(|cause| self.causes.contains(&cause)))
            && (upstreams.is_empty() || upstreams.iter().any(|set| set.matches(info.upstream)))
            && self.since.is_none_or(|since| info.time >= since)
            && self
                .failed
                .is_none_or(|failed| failed == info.event_id.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_sort_as_times() {
        let mut last = String::new();
        for nanos in [0, 1, 31, 32, 1 << 40, 1_700_000_000_123_456_789, u64::MAX] {
            let id = CaptureId::at(Timestamp::from_nanos(nanos));
            let text = id.to_string();
            assert_eq!(text.len(), 13);
            assert_eq!(text.parse(), Ok(id));
            assert!(text > last, "{text} sorts after {last}");
            last = text;
        }
    }

    #[test]
    fn other_texts_are_no_ids() {
        for text in [
            "",
            "0",
            "00000000000001",
            "zzzzzzzzzzzzz",
            "000000000000u",
            "../../etc/abc",
        ] {
            let error = text.parse::<CaptureId>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")));
        }
    }
}
