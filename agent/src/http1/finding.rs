//! What can be wrong with the bytes of a response, and where.

use std::fmt;

use super::Coding;
use crate::model::Cause;

/// One broken rule, with the byte that breaks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub kind: FindingKind,
    /// Offset of the decisive byte from the start of the response.
    pub offset: u64,
    /// The bytes around it.
    pub excerpt: Vec<u8>,
    /// Name of the header field it is in, where it is in one.
    pub header: Option<String>,
}

/// Which protocol the first bytes of something that is not HTTP belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Foreign {
    /// A TLS alert record (RFC 8446 section 5.1) with its description number.
    TlsAlert(u8),
    /// Any other TLS record.
    Tls,
    /// An HTTP/2 SETTINGS frame (RFC 9113 section 3.4).
    Http2,
    /// An SSH identification string (RFC 4253 section 4.2).
    Ssh,
    /// A greeting with a three-digit code, as SMTP and FTP send it (RFC 5321 section 4.2).
    Greeting,
    /// POP3 or Redis: `+OK` and the like.
    PlusOk,
    /// An IMAP untagged response.
    Imap,
    /// A Redis error reply.
    RedisError,
    /// A `MySQL` handshake packet.
    Mysql,
    /// An error message of `PostgreSQL`'s protocol.
    Postgres,
    /// The header with which AMQP answers a client of another protocol.
    Amqp,
    /// Printable text without a status line.
    Text,
    /// Printable text that has not reached the end of a line.
    Fragment,
    /// Anything else.
    Binary,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsAlert(number) => return write!(f, "a TLS alert ({number})"),
            Self::Tls => "a TLS record",
            Self::Http2 => "an HTTP/2 frame",
            Self::Ssh => "an SSH banner",
            Self::Greeting => "an SMTP or FTP greeting",
            Self::PlusOk => "a POP3 or Redis reply",
            Self::Imap => "an IMAP greeting",
            Self::RedisError => "a Redis or POP3 error reply",
            Self::Mysql => "a MySQL handshake",
            Self::Postgres => "a PostgreSQL error",
            Self::Amqp => "an AMQP protocol header",
            Self::Text => "text without a status line",
            Self::Fragment => "a piece of text without a line end",
            Self::Binary => "binary data",
        })
    }
}

impl Foreign {
    /// Names the protocol of bytes that do not begin with `HTTP/`.
    pub fn detect(bytes: &[u8]) -> Self {
        match bytes {
            // Content type 21 is an alert, 20 to 23 are TLS; version bytes 3,0 to 3,4.
            [21, 3, 0..=4, 0, 2, _, number, ..] => Self::TlsAlert(*number),
            [20..=23, 3, 0..=4, ..] => Self::Tls,
            // Length, type 4, flags, stream 0.
            [0, _, _, 4, 0 | 1, 0, 0, 0, 0, ..] => Self::Http2,
            [_, _, _, 0, 10, b'0'..=b'9', ..] => Self::Mysql,
            // Type, length, and the first field: the severity.
            [b'E', 0, 0, _, _, b'S', ..] => Self::Postgres,
            [b'A', b'M', b'Q', b'P', 0..=3, ..] => Self::Amqp,
            [b'S', b'S', b'H', b'-', ..] => Self::Ssh,
            [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'-', ..] => Self::Greeting,
            [b'+', b'O', b'K', ..] | [b'+', b'P', b'O', b'N', b'G', ..] => Self::PlusOk,
            [b'-', b'E', b'R', b'R', ..] => Self::RedisError,
            [b'*', b' ', b'O', b'K', ..] => Self::Imap,
            _ if bytes
                .iter()
                .take(64)
                .all(|byte| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~' | 0x80..=0xff)) =>
            {
                if bytes.contains(&b'\n') || bytes.len() >= 64 {
                    Self::Text
                } else {
                    Self::Fragment
                }
            }
            _ => Self::Binary,
        }
    }
}

impl Foreign {
    /// One of each that gateways may tell apart.
    const SAMPLES: &[Self] = &[Self::Text, Self::Fragment, Self::Binary];

    /// Whether a reader of lines takes it for text.
    pub const fn is_text(self) -> bool {
        matches!(
            self,
            Self::Ssh | Self::Greeting | Self::PlusOk | Self::Imap | Self::RedisError | Self::Text
        )
    }
}

/// How large the head of a response is, in everything that gateways limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeadSize {
    /// All bytes, with line ends.
    pub bytes: u64,
    /// The longest line, without its end.
    pub line: u64,
    /// Field lines.
    pub fields: u64,
}

impl HeadSize {
    /// Nothing: the sizes that matter are each gateway's own.
    const SAMPLES: &[Self] = &[];
}

impl fmt::Display for HeadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "response head of {} bytes in {} fields, the longest line {} bytes",
            self.bytes, self.fields, self.line
        )
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident $(($ty:ty))? => $text:literal,)*) => {
        /// The rules that a response can break, each with its own measured consequences.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FindingKind {
            $($(#[doc = $doc])+ $name $(($ty))?,)*
        }

        impl FindingKind {
            /// The rule in a few words.
            pub const fn text(self) -> &'static str {
                match self {
                    $(kinds!(@pattern $name $(($ty))?) => $text,)*
                }
            }

            /// Every rule, one of each sort where it has several.
            pub fn all() -> Vec<Self> {
                let sorts: Vec<Vec<Self>> = vec![$(kinds!(@sorts $name $(($ty))?),)*];
                sorts.concat()
            }
        }
    };
    (@sorts $name:ident) => { vec![Self::$name] };
    (@sorts $name:ident ($ty:ty)) => {
        <$ty>::SAMPLES.iter().copied().map(Self::$name).collect()
    };
    (@pattern $name:ident) => { Self::$name };
    (@pattern $name:ident ($ty:ty)) => { Self::$name(_) };
}

kinds! {
    /// An empty line before the status line (RFC 9112 section 2.2 allows it before requests only).
    LeadingEmptyLine => "empty line before the status line",
    /// A tab where the status line has a space (RFC 9112 section 4).
    TabInStatusLine => "tab in the status line",
    /// More than one space between version and code.
    SpacesInStatusLine => "several spaces in the status line",
    /// `HTTP` in another case (RFC 9112 section 2.3: it is case-sensitive).
    ProtocolName => "protocol name is not upper case",
    /// Not `HTTP/` digit `.` digit.
    VersionSyntax => "malformed HTTP version",
    /// A well-formed version with a major number other than 1.
    VersionUnsupported => "HTTP version other than 1.x in the status line",
    /// A status line of another protocol, such as `ICY 200 OK`.
    ForeignStatusLine => "status line of another protocol",
    /// A status code of fewer than three digits.
    StatusCodeShort => "status code of fewer than three digits",
    /// A status code of more than three digits.
    StatusCodeLong => "status code of more than three digits",
    /// A status code with something other than digits.
    StatusCodeSyntax => "status code is not a number",
    /// A three-digit code followed by something other than a space.
    StatusCodeSuffix => "status code is followed by something other than a space",
    /// A code below 100.
    StatusCodeBelow100 => "status code below 100",
    /// A code above 599.
    StatusCodeAbove599 => "status code above 599",
    /// A control character in the reason phrase.
    ReasonControl => "control character in the reason phrase",
    /// NUL in the reason phrase.
    ReasonNul => "NUL in the reason phrase",
    /// The first bytes are not HTTP.
    NotHttp(Foreign) => "the first bytes are not HTTP",
    /// CR inside a line (RFC 9112 section 2.2).
    BareCr => "CR inside a header line",
    /// CR CR LF.
    DoubleCr => "header line ended by CR CR LF",
    /// A continuation line (RFC 9112 section 5.2).
    ObsoleteFold => "header value folded over two lines",
    /// White space before the first field line (RFC 9112 section 2.2).
    FoldBeforeFirst => "white space before the first header",
    /// A space between field name and colon (RFC 9112 section 5.1).
    SpaceBeforeColon => "space between header name and colon",
    /// A tab between field name and colon.
    TabBeforeColon => "tab between header name and colon",
    /// A space inside a field name.
    SpaceInName => "space in a header name",
    /// A field line without a colon.
    NoColon => "header line without a colon",
    /// A second status line among the fields.
    SecondStatusLine => "second status line among the headers",
    /// An empty field name.
    EmptyName => "empty header name",
    /// A delimiter such as `@` in a field name (RFC 9110 section 5.6.2).
    NameDelimiter => "character in a header name that is not a token character",
    /// A control character in a field name.
    NameControl => "control character in a header name",
    /// NUL in a field name.
    NameNul => "NUL in a header name",
    /// A byte above 0x7F in a field name.
    NameNonAscii => "byte above 0x7F in a header name",
    /// NUL in a field value (RFC 9110 section 5.5).
    ValueNul => "NUL in a header value",
    /// A control character in a field value (RFC 9110 section 5.5).
    ValueControl => "control character in a header value",
    /// Content-Length is not a decimal number that fits (RFC 9112 section 6.3).
    ContentLengthSyntax => "Content-Length is not a plain decimal number",
    /// Several Content-Length lines with the same value.
    ContentLengthRepeated => "Content-Length repeated",
    /// One Content-Length line with a list of equal values.
    ContentLengthList => "Content-Length is a list",
    /// Content-Length lines or list members that differ.
    ContentLengthConflict => "different Content-Length values",
    /// Content-Length and Transfer-Encoding together (RFC 9112 section 6.1).
    LengthAndChunked => "Content-Length and Transfer-Encoding together",
    /// A coding other than `chunked`.
    CodingUnsupported => "unsupported transfer coding",
    /// Something follows `chunked`, or it is written in a way that is not the coding's name.
    CodingNotFinalChunked => "chunked is not the final transfer coding",
    /// Two Transfer-Encoding lines with `chunked`.
    CodingRepeated => "chunked in two Transfer-Encoding lines",
    /// `chunked` twice in one line (RFC 9112 section 7.1).
    CodingListRepeated => "chunked twice in one Transfer-Encoding line",
    /// An empty Transfer-Encoding.
    CodingEmpty => "empty Transfer-Encoding",
    /// Transfer-Encoding in an HTTP/1.0 response.
    CodingInHttp10 => "Transfer-Encoding in an HTTP/1.0 response",
    /// A chunk size that does not start with a hexadecimal digit, or is followed by garbage.
    ChunkSizeSyntax => "chunk size is not a hexadecimal number",
    /// The same behind another chunk: part of the body is on its way to the client.
    LaterChunkSizeSyntax => "chunk size behind the first is not a hexadecimal number",
    /// A chunk size above 2^64-1.
    ChunkSizeOverflow => "chunk size does not fit 64 bits",
    /// White space before a chunk size.
    ChunkSizeLeadingSpace => "white space before a chunk size",
    /// More than sixteen digits, but leading zeros.
    ChunkSizeLeadingZeros => "chunk size with many leading zeros",
    /// A chunk extension (RFC 9112 section 7.1.1: valid, but not every gateway takes it).
    ChunkExtension => "chunk extension",
    /// A chunk extension above 16 KiB.
    ChunkExtensionLong => "very long chunk extension",
    /// A chunk line ended by LF alone.
    ChunkBareLf => "chunk line ended by LF alone",
    /// No CRLF after a chunk's data: the size is wrong.
    ChunkDataEnd => "chunk data is not followed by CRLF",
    /// A trailer section (RFC 9112 section 7.1.2: valid, but not every gateway takes it).
    ChunkTrailer => "trailer section",
    /// A trailer line without a colon.
    ChunkTrailerSyntax => "trailer line without a colon",
    /// A head above what some gateway takes by default.
    HeadTooLarge(HeadSize) => "response head above the gateway's limit",
    /// A Content-Length above zero in a 204 (RFC 9110 section 8.6).
    NoContentLength => "Content-Length in a 204 response",
    /// A Transfer-Encoding in a 204 (RFC 9112 section 6.1).
    NoContentCoding => "Transfer-Encoding in a 204 response",
    /// A body announced by an interim response.
    InterimLength => "interim response that announces a body",
    /// 103 (RFC 8297), which is valid; not every gateway takes it.
    InterimHints => "interim response 103",
    /// Any other interim response that was not asked for, which is valid (RFC 9110 section 15.2); not
    /// every gateway takes it.
    Interim => "interim response",
    /// More interim responses than a gateway looks past.
    InterimMany => "more than ten interim responses",
    /// The first bytes are not those of the Content-Encoding (RFC 9110 section 8.4.1).
    ContentCoding(Coding) => "body is not in its content coding",
    /// 101 to a request without Upgrade (RFC 9110 section 15.2.2).
    SwitchUnasked => "101 without an Upgrade in the request",
}

impl FindingKind {
    /// The cause that it is where it makes an exchange fail.
    pub const fn cause(self) -> Cause {
        match self {
            Self::NotHttp(Foreign::TlsAlert(_)) => Cause::TlsPlaintextToTlsPort,
            Self::NotHttp(_) => Cause::Http1NotHttp,
            Self::LeadingEmptyLine
            | Self::TabInStatusLine
            | Self::SpacesInStatusLine
            | Self::ProtocolName
            | Self::VersionSyntax
            | Self::VersionUnsupported
            | Self::ForeignStatusLine
            | Self::StatusCodeShort
            | Self::StatusCodeLong
            | Self::StatusCodeSyntax
            | Self::StatusCodeSuffix
            | Self::StatusCodeBelow100
            | Self::StatusCodeAbove599
            | Self::ReasonControl
            | Self::ReasonNul => Cause::Http1StatusLineInvalid,
            Self::BareCr
            | Self::DoubleCr
            | Self::ObsoleteFold
            | Self::FoldBeforeFirst
            | Self::SpaceBeforeColon
            | Self::TabBeforeColon
            | Self::SpaceInName
            | Self::NoColon
            | Self::SecondStatusLine
            | Self::EmptyName
            | Self::NameDelimiter
            | Self::NameControl
            | Self::NameNul
            | Self::NameNonAscii => Cause::Http1HeaderSyntax,
            Self::ValueNul | Self::ValueControl => Cause::Http1HeaderControlChar,
            Self::ContentLengthSyntax => Cause::Http1ContentLengthInvalid,
            Self::ContentLengthRepeated | Self::ContentLengthList | Self::ContentLengthConflict => {
                Cause::Http1ContentLengthConflict
            }
            Self::LengthAndChunked => Cause::Http1LengthAndChunked,
            Self::CodingUnsupported
            | Self::CodingNotFinalChunked
            | Self::CodingRepeated
            | Self::CodingListRepeated
            | Self::CodingEmpty
            | Self::CodingInHttp10 => Cause::Http1TransferEncodingUnsupported,
            Self::ChunkSizeSyntax
            | Self::LaterChunkSizeSyntax
            | Self::ChunkSizeOverflow
            | Self::ChunkSizeLeadingSpace
            | Self::ChunkSizeLeadingZeros
            | Self::ChunkExtension
            | Self::ChunkExtensionLong
            | Self::ChunkBareLf
            | Self::ChunkDataEnd
            | Self::ChunkTrailer
            | Self::ChunkTrailerSyntax => Cause::Http1ChunkSyntax,
            Self::HeadTooLarge(_) => Cause::Http1HeaderTooLarge,
            Self::NoContentLength | Self::NoContentCoding | Self::InterimLength => {
                Cause::Http1BodyOnBodyless
            }
            Self::InterimHints | Self::Interim | Self::InterimMany => Cause::Http1InterimMishandled,
            Self::ContentCoding(_) => Cause::Http1ContentCodingBad,
            Self::SwitchUnasked => Cause::Http1UpgradeFailed,
        }
    }

    /// Whether it depends on a limit that a gateway's owner may have raised: what the gateway did has
    /// to bear it out.
    pub const fn is_limit(self) -> bool {
        matches!(self, Self::HeadTooLarge(_))
    }

    /// Whether nothing after it can be framed.
    pub const fn ends_framing(self) -> bool {
        matches!(
            self,
            Self::NotHttp(_)
                | Self::ProtocolName
                | Self::VersionSyntax
                | Self::ForeignStatusLine
                | Self::StatusCodeSyntax
                | Self::ChunkSizeSyntax
                | Self::LaterChunkSizeSyntax
                | Self::ChunkSizeOverflow
        )
    }
}
