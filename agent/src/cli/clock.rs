//! The one place where the command line reads the clock, and times as people write them.

use std::time::SystemTime;

use crate::model::Timestamp;

/// The wall time now.
#[expect(
    clippy::disallowed_methods,
    reason = "an edge: commands relate what people ask for to the present"
)]
pub(super) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 is as good as none.
    Timestamp::default().after(since_epoch.unwrap_or_default())
}

/// A point in time written as an age such as `5m` or as RFC 3339.
pub(super) fn parse_since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        return Ok(Timestamp::from_nanos(now.as_nanos().saturating_sub(age)));
    }
    let time: Option<jiff::Timestamp> = text.parse().ok();
    time.and_then(|time| u64::try_from(time.as_nanosecond()).ok())
        .map(Timestamp::from_nanos)
        .ok_or_else(|| {
            format!(
                "bad time `{text}`: give an age such as 5m or 2h 30m, or a date such as \
                 2026-01-31T12:00:00Z"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(1_700_000_000_000_000_000);

    #[test]
    fn ages_and_dates() {
        let five_minutes_ago = Timestamp::from_nanos(1_699_999_700_000_000_000);
        assert_eq!(parse_since("5m", NOW), Ok(five_minutes_ago));
        assert_eq!(
            parse_since("2023-11-14T22:08:20Z", NOW),
            Ok(five_minutes_ago)
        );
        assert_eq!(
            parse_since("2023-11-14T23:08:20+01:00", NOW),
            Ok(five_minutes_ago)
        );
        assert_eq!(parse_since("900y", NOW), Ok(Timestamp::default()));
    }

    #[test]
    fn anything_else_is_named() {
        for text in ["", "yesterday", "5", "1969-01-01T00:00:00Z", "-5m"] {
            let error = parse_since(text, NOW).unwrap_err();
            assert!(
                error.starts_with(&format!("bad time `{text}`: give")),
                "{error}"
            );
        }
    }
}
