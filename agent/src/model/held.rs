//! Exchanges that were not shown to the engine because nothing about them needs to be judged.

use std::time::Duration;

/// Classes of the time to the first response byte: the wait was less than `2^(n + 1)` microseconds at
/// index n, or longer at the last.
pub const FIRST_BYTE_CLASSES: usize = 20;

/// Healthy exchanges of one hop, one after the other, summed up. The time of the word of them is the end of
/// the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldExchanges {
    /// How many there were.
    pub exchanges: u32,
    /// How many had a status of each class, from 2xx to 4xx.
    pub classes: [u32; 3],
    /// Bytes of the requests.
    pub request_bytes: u64,
    /// Bytes of the responses.
    pub response_bytes: u64,
    /// How many waited how long for the first response byte.
    pub first_byte: [u32; FIRST_BYTE_CLASSES],
}

/// The class of a time to the first response byte.
pub fn first_byte_class(wait: Duration) -> usize {
    let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
    let class = micros.max(1).ilog2() as usize;
    class.min(FIRST_BYTE_CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two() {
        let class = |micros| first_byte_class(Duration::from_micros(micros));
        assert_eq!(
            [0, 1, 2, 3, 4, 1000, 1023, 1024].map(class),
            [0, 0, 1, 1, 2, 9, 9, 10]
        );
        assert_eq!(first_byte_class(Duration::MAX), FIRST_BYTE_CLASSES - 1);
    }
}
