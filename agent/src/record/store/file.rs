//! Names of the store's files, and what can be read from one whatever happened to it.

use std::path::{Path, PathBuf};

use crate::record::capture::CaptureInfo;
use crate::record::pcapng;

/// Bytes whose checksums may be formed to find the next whole capture behind a damaged one: beyond
/// that the rest of the file is given up. Undamaged files need none.
const SEARCH_BYTES: usize = 256 << 20;

/// `captures-NUMBER-SALT.pcapng`: which file it is, and what its seals begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileName {
    pub(super) number: u64,
    pub(super) salt: u64,
}

impl FileName {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_prefix("captures-")?.strip_suffix(".pcapng")?;
        let (number, salt) = stem.split_once('-')?;
        let parsed = Self {
            number: number.parse().ok()?,
            salt: u64::from_str_radix(salt, 16).ok()?,
        };
        (parsed.to_string() == name).then_some(parsed)
    }

    pub(super) fn path(self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "captures-{:010}-{:016x}.pcapng", self.number, self.salt)
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The whole captures and where each begins.
    pub(super) sections: Vec<(u64, CaptureInfo)>,
    /// Where the last of them ends: what follows is torn.
    pub(super) end: u64,
    /// Bytes before that which belong to none.
    pub(super) damaged: u64,
}

/// Finds every whole capture in a file.
pub(super) fn scan(bytes: &[u8], salt: u64) -> Scan {
    let mut found = Scan::default();
    let mut at = 0;
    let mut search = SEARCH_BYTES;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let section = pcapng::section_len(rest).and_then(|length| rest.get(..length));
        let whole = section.filter(|section| {
            // At the end of the capture before nothing was lost yet: that much is always looked at.
            if at as u64 != found.end {
                match search.checked_sub(section.len()) {
                    Some(left) => search = left,
                    None => return false,
                }
            }
            pcapng::is_sealed(section, salt)
        });
        let Some(section) = whole else {
            // Blocks are whole words.
            at += 4;
            continue;
        };
        found.damaged += at as u64 - found.end;
        // One of a later version that this one cannot list keeps its place.
        if let Some(info) = pcapng::read_info(section) {
            found.sections.push((at as u64, info));
        }
        at += section.len();
        found.end = at as u64;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let name = FileName {
            number: 7,
            salt: 0xfeed,
        };
        let text = name.to_string();
        assert_eq!(text, "captures-0000000007-000000000000feed.pcapng");
        assert_eq!(FileName::parse(&text), Some(name));
        for other in [
            "captures-7-feed.pcapng",
            "lock",
            "captures-0000000007.pcapng",
        ] {
            assert_eq!(FileName::parse(other), None, "{other}");
        }
    }
}
