//! How large a head is. Above the parser's cap it goes on being measured without being kept, so that
//! a 10 MB header line costs no memory.

use super::{Finding, FindingKind, HeadSize};

/// Longest field name that evidence carries.
const MAX_NAME_BYTES: usize = 64;

/// The sizes of a head, complete or on its way.
#[derive(Clone, Debug)]
pub(super) struct Oversize {
    size: HeadSize,
    /// Length of the line that is not complete yet.
    line: u64,
    /// Name of the field in the longest line.
    name: Option<String>,
}

impl Oversize {
    /// A head of so many bytes and field lines, with its longest line, and so many bytes in the line
    /// that is not complete.
    pub(super) fn new(bytes: usize, longest: &[u8], fields: usize, open: usize) -> Self {
        let name = longest.split(|&byte| byte == b':').next();
        Self {
            size: HeadSize {
                bytes: bytes as u64,
                line: longest.len() as u64,
                fields: fields as u64,
            },
            line: open as u64,
            name: name
                .filter(|name| !name.is_empty() && name.len() < MAX_NAME_BYTES)
                .map(|name| String::from_utf8_lossy(name).into_owned()),
        }
    }

    /// Measures more of the head. Returns whether the empty line was among it.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            // A CR belongs to the line's end.
            let len = part.iter().filter(|&&byte| byte != b'\r').count() as u64;
            self.line += len;
            self.size.bytes += part.len() as u64;
            if self.line > self.size.line {
                self.size.line = self.line;
            }
            let Some(end) = end else { return false };
            self.size.bytes += 1;
            if self.line == 0 {
                return true;
            }
            self.size.fields += 1;
            self.line = 0;
            bytes = bytes.get(end + 1..).unwrap_or_default();
        }
    }

    /// The broken rule, if any gateway limits heads to less.
    pub(super) fn finding(&self, at: u64) -> Option<Finding> {
        let kind = FindingKind::HeadTooLarge(self.size);
        kind.rejected().then(|| Finding {
            kind,
            offset: at + self.size.bytes,
            excerpt: Vec::new(),
            header: self.name.clone(),
        })
    }
}
