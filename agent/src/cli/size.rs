//! Sizes in bytes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// A number of bytes: `8388608`, `8192k` or `8M` (binary multiples).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteSize(pub(super) u32);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let split = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let unit = match unit {
            "" => Some(1),
            "k" | "K" | "KiB" => Some(1 << 10),
            "m" | "M" | "MiB" => Some(1 << 20),
            "g" | "G" | "GiB" => Some(1 << 30),
            _ => None,
        };
        let bytes = unit.and_then(|unit: u32| digits.parse::<u32>().ok()?.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| {
            format!("bad size `{text}`: give bytes below 4 GiB, maybe with K, M or G, such as 8M")
        })
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 8388608 or \"8M\"")
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        bytes.to_string().parse().map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_limits() {
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
        assert_eq!("16k".parse(), Ok(ByteSize(16 << 10)));
        assert_eq!("8MiB".parse(), Ok(ByteSize(8 << 20)));
        assert_eq!("3G".parse(), Ok(ByteSize(3 << 30)));
        for bad in ["", "M", "-1", "4G", "1.5M", "8 MB", "+8", "8é"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
