//! What a program that is written in Go says of itself: the release that built it (`.go.buildinfo`), and where it keeps
//! the goroutine that a thread runs.
//!
//! The file belongs to somebody else, so that nothing of it is trusted.

use std::fmt;
use std::fs::File;

use super::tls::elf::{self, Unreadable};

/// Bytes of the pointer to the goroutine that runs.
const POINTER_LEN: u32 = 8;

/// Bytes of a version that are read. `go version` knows no longer ones.
const VERSION_MAX: usize = 64;

/// A release of Go 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GoVersion {
    /// The number behind `go1.`.
    pub(super) minor: u16,
    /// That of its bug fixes, zero for none.
    patch: u16,
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Go 1.{}.{}", self.minor, self.patch)
    }
}

impl GoVersion {
    /// A release such as `go1.26.8`. What is built from other sources, for a test or with an experiment may have
    /// other structures, and is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let text = text.strip_prefix("go1.")?;
        let (minor, patch) = match text.split_once('.') {
            Some((minor, patch)) => (minor, number(patch)?),
            None => (text, 0),
        };
        Some(Self {
            minor: number(minor)?,
            patch,
        })
    }
}

/// What a program that is written in Go says built it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Version(String),
    /// It lies where it is not looked for, as before Go 1.18.
    Elsewhere,
    /// It is cut short, longer than any version, or no text.
    Nothing,
}

/// What the program in `file` says built it; `None` where it is not written in Go.
pub(super) fn version(file: &File) -> Result<Option<Said>, Unreadable> {
    let most = HEADER_LEN + 1 + VERSION_MAX;
    let section = elf::start_of_section(file, b".go.buildinfo", most)?;
    Ok(section.as_deref().and_then(said))
}

/// Bytes ahead of the version.
const HEADER_LEN: usize = 32;

/// What a `.go.buildinfo` section says (`debug/buildinfo`): behind a magic number, the size of pointers and flags, room up
/// to 32 bytes; then the version. `None` where the magic number is another one.
fn said(section: &[u8]) -> Option<Said> {
    const MAGIC: &[u8] = b"\xff Go buildinf:";
    /// Set in the flags where the strings are in the section itself, as they are since Go 1.18.
    const INLINE: u8 = 2;
    Some(match section.strip_prefix(MAGIC)? {
        [_, flags, ..] if flags & INLINE == 0 => Said::Elsewhere,
        _ => inline_version(section).map_or(Said::Nothing, Said::Version),
    })
}

/// The version behind the header of such a section: its length in a varint, and the text.
fn inline_version(section: &[u8]) -> Option<String> {
    let [len, rest @ ..] = section.get(HEADER_LEN..)? else {
        return None;
    };
    // A longer one would have a length of two bytes, of which the first has its highest bit set.
    let len = usize::from(*len);
    let text = rest.get(..len).filter(|_| len <= VERSION_MAX)?;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

/// Bytes from the pointer to the goroutine that runs up to the thread pointer; `None` where it shares its thread-local
/// storage.
///
/// Go keeps nothing else there. Its own linker puts it right below the thread pointer, and so does any other where a
/// program has no more than that: the block of the program itself ends at the thread pointer (ELF Handling For
/// Thread-Local Storage, variant II).
pub(super) fn below_thread_pointer(file: &File) -> Result<Option<u32>, Unreadable> {
    let alone = match elf::thread_local_block(file)? {
        None => true,
        Some((len, align)) => len == u64::from(POINTER_LEN) && align <= u64::from(POINTER_LEN),
    };
    Ok(alone.then_some(POINTER_LEN))
}

#[cfg(test)]
#[path = "go_build_tests.rs"]
pub(super) mod tests;
