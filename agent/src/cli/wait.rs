//! A short time, as people write it.

use std::str::FromStr;

use serde::Deserialize;

/// Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait(pub(super) u32);

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .ok()
            .and_then(|time| u32::try_from(time.as_millis()).ok())
            .map(Self)
            .ok_or_else(|| format!("bad time `{text}`: give one such as 500ms or 2s"))
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds() {
        assert_eq!("500ms".parse(), Ok(Wait(500)));
        assert_eq!("2s".parse(), Ok(Wait(2000)));
        for bad in ["", "2", "soon", "100days"] {
            assert!(bad.parse::<Wait>().unwrap_err().contains("bad time"));
        }
    }
}
