//! Message body framing (RFC 9112 sections 6 and 7): where a body ends, and what breaks it.

use super::FindingKind;

/// Longest chunk extension that every measured gateway but the strictest takes.
const LONG_EXTENSION_BYTES: u64 = 16 * 1024;

/// A body on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunked transfer coding.
    Chunked(Chunked),
    /// Until the connection closes.
    UntilClose,
}

/// What a body made of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyStep {
    /// All bytes were taken and more are to come.
    More,
    /// The body ended; so many bytes of it were taken.
    End(usize),
    /// The byte at this place breaks a rule. It was taken; a lenient parser goes on behind it.
    Broken {
        /// Place of the byte.
        at: usize,
        /// The rule.
        kind: FindingKind,
        /// Whether the body ends with this byte all the same.
        ended: bool,
    },
}

/// Where in a chunked body the next byte is.
///
/// ```text
///  SizeStart ─▶ Size ─▶ (SizeSpace | Extension) ─▶ SizeLf ─▶ Data ─▶ DataCr ─▶ DataLf ─▶ SizeStart
///                                                    │ last chunk
///                                                    ▼
///                                              TrailerStart ─▶ Trailer ─▶ TrailerStart ─▶ EndLf ─▶ Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunked {
    state: ChunkState,
    /// Size of the current chunk, or what is left of it.
    size: u64,
    /// Hexadecimal digits of the current size.
    digits: u32,
    /// Bytes of the current extension, or of the current trailer line.
    line: u64,
    /// Whether a chunk came before the current one.
    later: bool,
    /// Whether the current trailer line has a colon.
    colon: bool,
    /// Whether a kind that is found once a body was found: no need to tell again.
    told: Told,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    bare_lf: bool,
    extension: bool,
    trailer: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    SizeStart,
    Size,
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// Behind data that no CRLF follows, up to the next line end: lenient readers look past it.
    DataJunk,
    TrailerStart,
    Trailer,
    EndLf,
    Ended,
}

impl Chunked {
    const fn new() -> Self {
        Self {
            state: ChunkState::SizeStart,
            size: 0,
            digits: 0,
            line: 0,
            later: false,
            colon: false,
            told: Told {
                bare_lf: false,
                extension: false,
                trailer: false,
            },
        }
    }

    /// Takes one byte outside chunk data. `Err` names the rule it breaks; the state has moved on as
    /// a lenient parser's would.
    fn byte(&mut self, byte: u8) -> Result<bool, FindingKind> {
        match (self.state, byte) {
            (ChunkState::SizeStart, b' ' | b'\t') => {
                return Err(FindingKind::ChunkSizeLeadingSpace);
            }
            (ChunkState::SizeStart | ChunkState::Size, _) if byte.is_ascii_hexdigit() => {
                self.state = ChunkState::Size;
                self.digits += 1;
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                match self
                    .size
                    .checked_mul(16)
                    .and_then(|size| size.checked_add(digit))
                {
                    Some(size) => self.size = size,
                    None => return Err(FindingKind::ChunkSizeOverflow),
                }
                if self.digits == 17 {
                    return Err(FindingKind::ChunkSizeLeadingZeros);
                }
            }
            (ChunkState::Size | ChunkState::SizeSpace, b' ' | b'\t') => {
                self.state = ChunkState::SizeSpace;
            }
            (ChunkState::Size | ChunkState::SizeSpace, b';') => {
                self.state = ChunkState::Extension;
                self.line = 0;
                if !self.told.extension {
                    self.told.extension = true;
                    return Err(FindingKind::ChunkExtension);
                }
            }
            (ChunkState::Size | ChunkState::SizeSpace | ChunkState::Extension, b'\r') => {
                self.state = ChunkState::SizeLf;
            }
            (ChunkState::Size | ChunkState::SizeSpace | ChunkState::Extension, b'\n') => {
                self.size_line_ended();
                return self.bare_lf();
            }
            (ChunkState::Extension, _) => {
                self.line += 1;
                if self.line == LONG_EXTENSION_BYTES {
                    return Err(FindingKind::ChunkExtensionLong);
                }
            }
            (ChunkState::SizeLf, b'\n') => self.size_line_ended(),
            (
                ChunkState::SizeStart
                | ChunkState::Size
                | ChunkState::SizeSpace
                | ChunkState::SizeLf,
                _,
            ) => {
                return Err(if self.later {
                    FindingKind::LaterChunkSizeSyntax
                } else {
                    FindingKind::ChunkSizeSyntax
                });
            }
            (ChunkState::DataCr, b'\r') => self.state = ChunkState::DataLf,
            (ChunkState::DataCr, b'\n') => {
                self.chunk_ended();
                return self.bare_lf();
            }
            (ChunkState::DataLf | ChunkState::DataJunk, b'\n') => self.chunk_ended(),
            (ChunkState::DataCr | ChunkState::DataLf, _) => {
                self.state = ChunkState::DataJunk;
                return Err(FindingKind::ChunkDataEnd);
            }
            (ChunkState::TrailerStart, b'\r') => self.state = ChunkState::EndLf,
            (ChunkState::TrailerStart | ChunkState::EndLf, b'\n') => {
                let bare = self.state == ChunkState::TrailerStart;
                self.state = ChunkState::Ended;
                return if bare {
                    self.bare_lf().map(|_| true)
                } else {
                    Ok(true)
                };
            }
            (ChunkState::TrailerStart, _) => {
                self.state = ChunkState::Trailer;
                self.colon = byte == b':';
                if !self.told.trailer {
                    self.told.trailer = true;
                    return Err(FindingKind::ChunkTrailer);
                }
            }
            (ChunkState::Trailer, b'\n') => {
                self.state = ChunkState::TrailerStart;
                if !self.colon {
                    return Err(FindingKind::ChunkTrailerSyntax);
                }
            }
            (ChunkState::Trailer, _) => self.colon |= byte == b':',
            // A CR that no LF follows: lenient parsers take the line as a trailer.
            (ChunkState::EndLf, _) => {
                self.state = ChunkState::Trailer;
                return Err(FindingKind::ChunkTrailerSyntax);
            }
            (ChunkState::Data | ChunkState::DataJunk | ChunkState::Ended, _) => {}
        }
        Ok(false)
    }

    fn bare_lf(&mut self) -> Result<bool, FindingKind> {
        if std::mem::replace(&mut self.told.bare_lf, true) {
            return Ok(false);
        }
        Err(FindingKind::ChunkBareLf)
    }

    const fn size_line_ended(&mut self) {
        self.state = if self.size == 0 {
            ChunkState::TrailerStart
        } else {
            ChunkState::Data
        };
    }

    const fn chunk_ended(&mut self) {
        self.state = ChunkState::SizeStart;
        self.size = 0;
        self.digits = 0;
        self.later = true;
    }
}

impl Body {
    /// A chunked body that has not begun.
    pub const fn chunked() -> Self {
        Self::Chunked(Chunked::new())
    }

    /// Takes bytes.
    pub fn take(&mut self, bytes: &[u8]) -> BodyStep {
        self.take_data(bytes, |_, _| {})
    }

    /// The same, and hands over each piece of content with its place in `bytes`.
    pub fn take_data(&mut self, bytes: &[u8], mut data: impl FnMut(usize, &[u8])) -> BodyStep {
        match self {
            Self::UntilClose => {
                data(0, bytes);
                BodyStep::More
            }
            Self::Length(left) => {
                let taken = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                data(0, bytes.get(..taken).unwrap_or(bytes));
                if *left == 0 {
                    BodyStep::End(taken)
                } else {
                    BodyStep::More
                }
            }
            Self::Chunked(chunked) => {
                let mut at = 0;
                while let Some(&byte) = bytes.get(at) {
                    if chunked.state == ChunkState::Data {
                        let rest = bytes.len() - at;
                        let taken = rest.min(usize::try_from(chunked.size).unwrap_or(usize::MAX));
                        chunked.size -= taken as u64;
                        data(at, bytes.get(at..at + taken).unwrap_or_default());
                        if chunked.size == 0 {
                            chunked.state = ChunkState::DataCr;
                        }
                        at += taken;
                        continue;
                    }
                    match chunked.byte(byte) {
                        Ok(true) => return BodyStep::End(at + 1),
                        Ok(false) => at += 1,
                        Err(kind) => {
                            let ended = chunked.state == ChunkState::Ended;
                            return BodyStep::Broken { at, kind, ended };
                        }
                    }
                }
                BodyStep::More
            }
        }
    }

    /// Skips bytes that were not captured. Returns the bytes of it that belong to the body where the
    /// body ended, or `Err` where it cannot be known what they held.
    pub fn skip(&mut self, bytes: u64) -> Result<Option<u64>, FramingLost> {
        match self {
            Self::UntilClose => Ok(None),
            Self::Length(left) => {
                let taken = bytes.min(*left);
                *left -= taken;
                Ok((*left == 0).then_some(taken))
            }
            Self::Chunked(chunked) => {
                if chunked.state != ChunkState::Data || bytes > chunked.size {
                    return Err(FramingLost);
                }
                chunked.size -= bytes;
                if chunked.size == 0 {
                    chunked.state = ChunkState::DataCr;
                }
                Ok(None)
            }
        }
    }
}

/// A gap swallowed bytes that frame the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramingLost;
