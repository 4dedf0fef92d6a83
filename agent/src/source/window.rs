//! A window that slides over a stream: a bounded buffer with the position in the stream.

use std::io::{ErrorKind, Read};

use super::SourceError;

/// Bytes that are read at a time: so few that they stay in a processor's own caches beside the hops
/// that they are about.
const CHUNK: usize = 64 * 1024;

/// The part of a stream that is in memory.
pub(super) struct Window<'r> {
    reader: Box<dyn Read + 'r>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Position of `start` in the stream.
    offset: u64,
    ended: Option<End>,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing follows.
    Clean,
    /// The decompressor met damage or a stream that is cut off.
    Broken(String),
}

impl<'r> Window<'r> {
    pub(super) fn new(reader: Box<dyn Read + 'r>) -> Self {
        Self {
            reader,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            offset: 0,
            ended: None,
        }
    }

    /// Puts a stream in place of the rest of this one, which it is made from.
    pub(super) fn layer<'n>(
        self,
        wrap: impl FnOnce(Box<dyn Read + 'r>) -> Result<Box<dyn Read + 'n>, SourceError>,
    ) -> Result<Window<'n>, SourceError>
    where
        'r: 'n,
    {
        let rest = self.data().to_vec();
        let reader = Box::new(std::io::Cursor::new(rest).chain(self.reader));
        Ok(Window::new(wrap(reader)?))
    }

    /// The bytes in memory.
    #[inline]
    pub(super) fn data(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Position in the stream of the first byte of [`Window::data`].
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// How the stream ended, once it has.
    pub(super) const fn ended(&self) -> Option<&End> {
        self.ended.as_ref()
    }

    /// Makes at least `wanted` bytes available; false where the stream ends before.
    #[inline]
    pub(super) fn fill(&mut self, wanted: usize) -> Result<bool, SourceError> {
        if self.end - self.start >= wanted {
            return Ok(true);
        }
        self.read(wanted)
    }

    #[cold]
    fn read(&mut self, wanted: usize) -> Result<bool, SourceError> {
        while self.end - self.start < wanted {
            if self.ended.is_some() {
                return Ok(false);
            }
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
            let space = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.reader.read(space) {
                Ok(0) => self.ended = Some(End::Clean),
                Ok(count) => self.end = (self.end + count).min(self.buffer.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Decompressors report what they read in these kinds; a file system does not.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof
                            | ErrorKind::InvalidData
                            | ErrorKind::InvalidInput
                            | ErrorKind::Other
                    ) =>
                {
                    self.ended = Some(End::Broken(error.to_string()));
                }
                Err(error) => return Err(SourceError::Read(error)),
            }
        }
        Ok(true)
    }

    /// Moves past `count` bytes that are in memory.
    #[inline]
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.offset += count as u64;
    }

    /// Moves past `count` bytes that are in memory and returns them.
    #[inline]
    pub(super) fn take(&mut self, count: usize) -> &[u8] {
        let from = self.start;
        self.consume(count);
        self.buffer.get(from..self.start).unwrap_or_default()
    }

    /// Moves past `count` bytes without keeping them; false where the stream ends before.
    pub(super) fn skip(&mut self, mut count: usize) -> Result<bool, SourceError> {
        loop {
            let step = count.min(self.end - self.start);
            self.consume(step);
            count -= step;
            if count == 0 {
                return Ok(true);
            }
            if !self.fill(1)? {
                return Ok(false);
            }
        }
    }
}
