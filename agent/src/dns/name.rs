//! Domain names as text.

use core::fmt;
use std::sync::Arc;

use super::Malformed;

/// Length of a name on the wire (RFC 1035 section 2.3.4).
const MAX_WIRE: usize = 255;

/// Pointers that are followed in one name. Real messages need one or two; each may add labels, so that a
/// name never needs more than it has room for labels.
const MAX_POINTERS: usize = 64;

/// A domain name in lower case without its final dot; the root is `.`. A byte that is no letter, digit,
/// hyphen or underscore, a dot inside a label included, is written `\DDD` (RFC 1035 section 5.1), so that
/// each dot of the text ends a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// The first label.
    pub fn first_label(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }

    /// Whether it is `other` with a suffix behind it, as a search domain makes it.
    pub fn extends(&self, other: &Self) -> bool {
        self.0
            .strip_prefix(&*other.0)
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
    }

    /// Reads the name at `at` of a message. Returns it with the place behind it.
    ///
    /// A compression pointer has to lead to an earlier place than all before it (RFC 1035 section 4.1.4
    /// speaks of a prior occurrence), so that no name is a loop.
    pub(super) fn read(message: &[u8], at: usize) -> Result<(Self, usize), Malformed> {
        let mut text = String::new();
        let mut wire_len = 1;
        let mut place = at;
        let mut least = at;
        let mut end = None;
        let mut pointers = 0;
        loop {
            let first = *message.get(place).ok_or(Malformed::Short)?;
            match first {
                0 => break,
                1..=63 => {
                    let label = message
                        .get(place + 1..place + 1 + usize::from(first))
                        .ok_or(Malformed::Short)?;
                    wire_len += 1 + label.len();
                    if wire_len > MAX_WIRE {
                        return Err(Malformed::Name);
                    }
                    if !text.is_empty() {
                        text.push('.');
                    }
                    push_label(&mut text, label);
                    place += 1 + label.len();
                }
                0xc0.. => {
                    let low = *message.get(place + 1).ok_or(Malformed::Short)?;
                    end.get_or_insert(place + 2);
                    place = usize::from(u16::from_be_bytes([first & 0x3f, low]));
                    pointers += 1;
                    if place >= least || pointers > MAX_POINTERS {
                        return Err(Malformed::Pointer);
                    }
                    least = place;
                }
                // Label types that nothing uses (RFC 6891 section 5).
                _ => return Err(Malformed::Name),
            }
        }
        if text.is_empty() {
            text.push('.');
        }
        Ok((Self(Arc::from(text)), end.unwrap_or(place + 1)))
    }

    /// The place behind the name at `at`, which is not read.
    pub(super) fn skip(message: &[u8], at: usize) -> Result<usize, Malformed> {
        let mut place = at;
        loop {
            match *message.get(place).ok_or(Malformed::Short)? {
                0 => return Ok(place + 1),
                length @ 1..=63 => place += 1 + usize::from(length),
                0xc0.. => return Ok(place + 2),
                _ => return Err(Malformed::Name),
            }
            if place - at > MAX_WIRE {
                return Err(Malformed::Name);
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn push_label(text: &mut String, label: &[u8]) {
    for byte in label {
        match byte {
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' => text.push(char::from(*byte)),
            b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
            _ => {
                text.push('\\');
                text.extend([byte / 100, byte / 10 % 10, byte % 10].map(|n| char::from(b'0' + n)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8], at: usize) -> Result<(String, usize), Malformed> {
        Name::read(message, at).map(|(name, end)| (name.to_string(), end))
    }

    #[test]
    fn labels_and_pointers() {
        let message = b"\x03www\x07Example\x03com\x00\x04api2\xc0\x04\x00";
        assert_eq!(read(message, 0), Ok(("www.example.com".to_owned(), 17)));
        assert_eq!(read(message, 17), Ok(("api2.example.com".to_owned(), 24)));
        assert_eq!(read(message, 24), Ok((".".to_owned(), 25)));
        assert_eq!(Name::skip(message, 0), Ok(17));
        assert_eq!(Name::skip(message, 17), Ok(24));
    }

    #[test]
    fn a_dot_inside_a_label_ends_none() {
        let (name, _) = Name::read(b"\x04a.b\\\x01c\x00", 0).unwrap();
        assert_eq!(name.as_str(), "a\\046b\\092.c");
        assert_eq!(name.first_label(), "a\\046b\\092");
    }

    #[test]
    fn loops_and_long_names_are_refused() {
        assert_eq!(read(b"\xc0\x00", 0), Err(Malformed::Pointer));
        assert_eq!(read(b"\x01a\xc0\x00", 0), Err(Malformed::Pointer));
        assert_eq!(read(b"\xc0\x02\xc0\x00", 0), Err(Malformed::Pointer));
        let mut long = b"\x3f".to_vec();
        for _ in 0..4 {
            long.extend([b'a'; 63]);
            long.push(0x3f);
        }
        assert_eq!(read(&long, 0), Err(Malformed::Name));
        assert_eq!(read(b"\x40a", 0), Err(Malformed::Name));
        assert_eq!(read(b"\x05abc", 0), Err(Malformed::Short));
    }

    #[test]
    fn search_domains_extend_a_name() {
        let name = |text: &str| Name(Arc::from(text));
        assert!(name("app.svc.local").extends(&name("app")));
        assert!(!name("app").extends(&name("app")));
        assert!(!name("apps.local").extends(&name("app")));
        assert!(!name("app.local").extends(&name("app.local.example")));
    }
}
