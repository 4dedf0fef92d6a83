//! Both ends of a connection as the key of a table.

use core::hash::{Hash, Hasher};
use core::net::SocketAddr;

/// Upper half of the second word of an IPv4 address that is mapped into IPv6.
const IPV4: u64 = 0xffff;

/// Two ends, packed into few words: there are many, and they are hashed and compared for each packet.
/// IPv4 addresses are mapped into IPv6.
#[derive(Clone, Copy, Debug, Eq, PartialOrd, Ord)]
pub struct Ends {
    one: [u64; 2],
    other: [u64; 2],
    /// The one's port, then the other's.
    ports: u32,
}

impl Ends {
    /// The ends in the order given.
    #[inline]
    pub const fn new(one: SocketAddr, other: SocketAddr) -> Self {
        let ((one, one_port), (other, other_port)) = (words(one), words(other));
        Self {
            one,
            other,
            ports: one_port << 16 | other_port,
        }
    }

    /// The ends with the lower one first, the same for both directions, and whether that is `a`.
    #[inline]
    pub fn sorted(a: SocketAddr, b: SocketAddr) -> (Self, bool) {
        let ends = Self::new(a, b);
        let (one, other) = (wide(ends.one), wide(ends.other));
        let ports = (ends.ports >> 16, ends.ports & 0xffff);
        if one < other || (one == other && ports.0 <= ports.1) {
            return (ends, true);
        }
        let turned = Self {
            one: ends.other,
            other: ends.one,
            ports: ends.ports.rotate_left(16),
        };
        (turned, false)
    }
}

impl PartialEq for Ends {
    /// Without a branch a word: nearly always they are equal where this is asked.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        let differ = |[top, low]: [u64; 2], [other_top, other_low]: [u64; 2]| {
            (top ^ other_top) | (low ^ other_low)
        };
        let ports = u64::from(self.ports ^ other.ports);
        differ(self.one, other.one) | differ(self.other, other.other) | ports == 0
    }
}

impl Hash for Ends {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ([one_top, one], [other_top, other]) = (self.one, self.other);
        if one_top | other_top == 0 && one >> 32 == IPV4 && other >> 32 == IPV4 {
            state.write_u128(wide([
                u64::from(self.ports),
                one << 32 | other & 0xffff_ffff,
            ]));
        } else {
            state.write_u128(wide(self.one));
            state.write_u128(wide(self.other));
            state.write_u32(self.ports);
        }
    }
}

const fn wide([top, low]: [u64; 2]) -> u128 {
    (top as u128) << 64 | low as u128
}

/// The address and the port of an end.
#[inline]
const fn words(end: SocketAddr) -> ([u64; 2], u32) {
    match end {
        SocketAddr::V4(end) => {
            let address = IPV4 << 32 | end.ip().to_bits() as u64;
            ([0, address], end.port() as u32)
        }
        SocketAddr::V6(end) => {
            let bits = end.ip().to_bits();
            #[expect(clippy::cast_possible_truncation, reason = "the halves of a number")]
            let halves = [(bits >> 64) as u64, bits as u64];
            (halves, end.port() as u32)
        }
    }
}

#[cfg(test)]
mod tests {
    use core::hash::BuildHasher as _;

    use foldhash::fast::RandomState;

    use super::*;

    #[test]
    fn both_directions_have_one_key() {
        let ends: [SocketAddr; 6] = [
            "10.0.0.1:80".parse().unwrap(),
            "10.0.0.1:81".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
            "[::1]:80".parse().unwrap(),
            "[2001:db8::1]:80".parse().unwrap(),
            "[2001:db8:0:1::1]:80".parse().unwrap(),
        ];
        let state = RandomState::default();
        let mut seen = Vec::new();
        for (at, a) in ends.iter().enumerate() {
            for b in &ends[..at] {
                let (key, a_is_low) = Ends::sorted(*a, *b);
                assert_eq!(Ends::sorted(*b, *a), (key, !a_is_low));
                assert!(!seen.contains(&(key, state.hash_one(key))));
                seen.push((key, state.hash_one(key)));
            }
        }
    }
}
