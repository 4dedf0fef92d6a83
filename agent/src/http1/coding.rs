//! Whether a body begins as its Content-Encoding says (RFC 9110 section 8.4). Decides that from the first
//! four bytes and leaves everything behind them alone: whether the rest decodes is not its business.

use std::fmt;

/// Bytes that tell.
const MAGIC_BYTES: usize = 4;

/// A content coding whose bodies begin in a known way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// `gzip` or `x-gzip` (RFC 1952 section 2.3.1).
    Gzip,
    /// `zstd` (RFC 8878 section 3.1).
    Zstd,
}

impl Coding {
    /// Nothing: what gateways do with it depends on whether they were told to decode.
    pub(super) const SAMPLES: &[Self] = &[];

    /// The coding that was applied last, by the value of Content-Encoding.
    pub(super) fn outermost(value: &[u8]) -> Option<Self> {
        let last = value.rsplit(|&byte| byte == b',').next()?.trim_ascii();
        let is = |name: &[u8]| last.eq_ignore_ascii_case(name);
        if is(b"gzip") || is(b"x-gzip") {
            Some(Self::Gzip)
        } else if is(b"zstd") {
            Some(Self::Zstd)
        } else {
            None
        }
    }

    /// Whether a body of this coding may begin like this.
    fn may_begin(self, first: &[u8]) -> bool {
        let begins = |magic: &[u8]| magic.iter().zip(first).all(|(wanted, byte)| wanted == byte);
        match (self, first) {
            (Self::Gzip, _) => begins(&[0x1f, 0x8b, 8]),
            // A skippable frame may come before the first of data.
            (Self::Zstd, [0x50..=0x5f, rest @ ..]) => rest
                .iter()
                .zip([0x2a, 0x4d, 0x18])
                .all(|(byte, wanted)| *byte == wanted),
            (Self::Zstd, _) => begins(&[0x28, 0xb5, 0x2f, 0xfd]),
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// The first bytes of a body, as long as they matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beginning {
    /// What the body should be; `None` where any beginning will do.
    coding: Option<Coding>,
    bytes: [u8; MAGIC_BYTES],
    len: usize,
    /// Offset of the first byte from the start of the response.
    at: u64,
}

impl Beginning {
    /// Waits for the first bytes of a body of this coding.
    pub(super) fn of(coding: Option<Coding>) -> Self {
        Self {
            coding,
            ..Self::default()
        }
    }

    /// Whether no further byte matters.
    pub(super) const fn is_settled(&self) -> bool {
        self.coding.is_none() || self.len == MAGIC_BYTES
    }

    /// Takes bytes of the body, which begin at this offset of the response.
    pub(super) fn take(&mut self, at: u64, bytes: &[u8]) {
        if self.is_settled() {
            return;
        }
        if self.len == 0 {
            self.at = at;
        }
        for (room, byte) in self.bytes.iter_mut().skip(self.len).zip(bytes) {
            *room = *byte;
            self.len += 1;
        }
    }

    /// Bytes were missed: what comes next tells nothing unless everything is told already.
    pub(super) fn miss(&mut self) {
        if !self.is_settled() {
            self.coding = None;
        }
    }

    /// The coding that the body does not have, with its first bytes and their offset.
    pub(super) fn mismatch(&self) -> Option<(Coding, &[u8], u64)> {
        let coding = self.coding?;
        let first = self.bytes.get(..self.len)?;
        (!coding.may_begin(first)).then_some((coding, first, self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_coding_is_the_outermost() {
        for (value, coding) in [
            (&b" gzip"[..], Some(Coding::Gzip)),
            (b"X-GZip ", Some(Coding::Gzip)),
            (b"zstd", Some(Coding::Zstd)),
            (b"br, gzip", Some(Coding::Gzip)),
            (b"gzip, br", None),
            (b"identity", None),
            (b"", None),
        ] {
            assert_eq!(Coding::outermost(value), coding, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn beginnings() {
        for (coding, first, fits) in [
            (Coding::Gzip, &[0x1f, 0x8b, 8, 0][..], true),
            (Coding::Gzip, &[0x1f, 0x8b], true),
            (Coding::Gzip, &[], true),
            (Coding::Gzip, &[0x1f, 0x8b, 7], false),
            (Coding::Gzip, b"<htm", false),
            (Coding::Zstd, &[0x28, 0xb5, 0x2f, 0xfd], true),
            (Coding::Zstd, &[0x53, 0x2a, 0x4d, 0x18], true),
            (Coding::Zstd, &[0x53, 0x2a, 0x4d, 0x19], false),
            (Coding::Zstd, &[0x1f, 0x8b, 8, 0], false),
        ] {
            assert_eq!(coding.may_begin(first), fits, "{coding} {first:x?}");
        }
    }
}
