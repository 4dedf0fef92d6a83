//! What ClientHello and ServerHello say (RFC 8446 section 4.1, RFC 5246 section 7.4.1).

use super::names::is_grease;
use super::text::printable;
use super::{ClientHello, ServerHello, Version};

/// Numbers kept of a list; clients offer fewer than a hundred cipher suites.
const MAX_NUMBERS: usize = 128;
/// Application protocols kept, and bytes of each.
const MAX_PROTOCOLS: usize = 16;
const MAX_PROTOCOL: usize = 64;
/// Longest name (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;

/// Random of a ServerHello that is a HelloRetryRequest (RFC 8446 section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// The last drafts that had a ServerHello of another layout and a HelloRetryRequest of its own type.
const LAST_OTHER_LAYOUT: u16 = 0x7f15;

mod extension {
    pub(super) const SERVER_NAME: u16 = 0;
    pub(super) const SUPPORTED_GROUPS: u16 = 10;
    pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
    pub(super) const ALPN: u16 = 16;
    pub(super) const SESSION_TICKET: u16 = 35;
    pub(super) const PRE_SHARED_KEY: u16 = 41;
    pub(super) const EARLY_DATA: u16 = 42;
    pub(super) const SUPPORTED_VERSIONS: u16 = 43;
    pub(super) const KEY_SHARE: u16 = 51;
}

/// Reads big-endian fields off the front.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    pub(super) fn u24(&mut self) -> Option<usize> {
        let (&[high, middle, low], rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
    }

    /// A vector behind its length of one byte.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(len.into())
    }

    /// A vector behind its length of two bytes.
    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }

    /// The same, or as much of it as there is.
    fn vector16_part(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?).min(self.0.len());
        self.take(len)
    }
}

/// Numbers of two bytes, GREASE left out.
fn numbers(list: &[u8]) -> Vec<u16> {
    list.as_chunks()
        .0
        .iter()
        .map(|bytes| u16::from_be_bytes(*bytes))
        .filter(|number| !is_grease(*number))
        .take(MAX_NUMBERS)
        .collect()
}

/// The protocols of an ALPN extension (RFC 7301 section 3.1).
fn protocols(body: &[u8]) -> Vec<String> {
    let mut list = Fields(Fields(body).vector16_part().unwrap_or_default());
    let mut protocols = Vec::new();
    while let Some(name) = list.vector8() {
        if protocols.len() == MAX_PROTOCOLS {
            break;
        }
        let grease =
            <[u8; 2]>::try_from(name).is_ok_and(|name| is_grease(u16::from_be_bytes(name)));
        if !grease {
            protocols.push(printable(name, MAX_PROTOCOL));
        }
    }
    protocols
}

/// The host name of a `server_name` extension (RFC 6066 section 3).
fn host_name(body: &[u8]) -> Option<String> {
    let mut list = Fields(Fields(body).vector16_part()?);
    loop {
        let kind = list.u8()?;
        let name = list.vector16()?;
        if kind == 0 {
            return Some(printable(name, MAX_NAME));
        }
    }
}

/// What belongs to a hello and not to its facts.
#[derive(Debug, Default)]
pub(super) struct Read<T> {
    pub(super) hello: T,
    pub(super) session_id: Vec<u8>,
}

/// Reads a ClientHello without its handshake header; `cut` where that is only its beginning. Nothing
/// where not even its version is there.
pub(super) fn client(body: &[u8], cut: bool) -> Option<Read<ClientHello>> {
    let mut fields = Fields(body);
    let legacy = Version(fields.u16()?);
    let mut read = Read {
        hello: ClientHello {
            cut: true,
            ..ClientHello::default()
        },
        session_id: Vec::new(),
    };
    let whole = client_fields(&mut fields, &mut read).is_some();
    let hello = &mut read.hello;
    hello.cut = cut || !whole;
    if hello.versions.is_empty() && !hello.cut {
        hello.versions.push(legacy);
    }
    // A client of TLS 1.3 sends a session id that nobody knows, for middleboxes (RFC 8446 appendix D.4).
    let middlebox = hello
        .versions
        .iter()
        .any(|version| version.hides_handshake());
    hello.resumes |= !read.session_id.is_empty() && !middlebox && !hello.cut;
    Some(read)
}

fn client_fields(fields: &mut Fields<'_>, read: &mut Read<ClientHello>) -> Option<()> {
    let hello = &mut read.hello;
    fields.take(32)?;
    read.session_id = fields.vector8()?.to_vec();
    hello.ciphers = numbers(fields.vector16_part()?);
    fields.vector8()?;
    if fields.is_empty() {
        // Before RFC 3546 there were no extensions.
        return Some(());
    }
    let mut extensions = Fields(fields.vector16_part()?);
    let mut versions = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let Some(body) = extensions.vector16() else {
            // Bytes of it are missing. What it is for is known all the same.
            hello.early_data |= kind == extension::EARLY_DATA;
            hello.resumes |= kind == extension::PRE_SHARED_KEY;
            hello.versions = versions;
            return None;
        };
        match kind {
            extension::SERVER_NAME => hello.sni = host_name(body),
            extension::SUPPORTED_GROUPS => {
                hello.groups = numbers(Fields(body).vector16_part().unwrap_or_default());
            }
            extension::SIGNATURE_ALGORITHMS => {
                hello.signatures = numbers(Fields(body).vector16_part().unwrap_or_default());
            }
            extension::ALPN => hello.alpn = protocols(body),
            extension::SESSION_TICKET => hello.resumes |= !body.is_empty(),
            extension::PRE_SHARED_KEY => hello.resumes = true,
            extension::EARLY_DATA => hello.early_data = true,
            extension::SUPPORTED_VERSIONS => {
                versions = numbers(Fields(body).vector8().unwrap_or_default())
                    .into_iter()
                    .map(Version)
                    .collect();
            }
            _ => {}
        }
    }
    versions.sort_unstable_by(|one, other| other.cmp(one));
    versions.dedup();
    hello.versions = versions;
    Some(())
}

/// What a ServerHello turned out to be.
#[derive(Debug)]
pub(super) enum Answer {
    /// The upstream wants another ClientHello.
    Retry,
    /// It goes on.
    Hello(Read<ServerHello>),
}

/// Reads a whole ServerHello without its handshake header; nothing where it is malformed.
pub(super) fn server(body: &[u8]) -> Option<Answer> {
    let mut fields = Fields(body);
    let legacy = fields.u16()?;
    let random = fields.take(32)?;
    let early_layout = (0x7f00..=LAST_OTHER_LAYOUT).contains(&legacy);
    let session_id = if early_layout { &[] } else { fields.vector8()? };
    let mut hello = ServerHello {
        version: Version(legacy),
        cipher: fields.u16()?,
        ..ServerHello::default()
    };
    if !early_layout {
        fields.u8()?;
    }
    if !fields.is_empty() {
        let mut extensions = Fields(fields.vector16()?);
        while !extensions.is_empty() {
            let kind = extensions.u16()?;
            let body = extensions.vector16()?;
            match kind {
                extension::SUPPORTED_VERSIONS => hello.version = Version(Fields(body).u16()?),
                extension::KEY_SHARE => hello.group = Fields(body).u16(),
                extension::PRE_SHARED_KEY => hello.resumed = true,
                extension::ALPN => hello.alpn = protocols(body).into_iter().next(),
                _ => {}
            }
        }
    }
    if random == RETRY {
        return Some(Answer::Retry);
    }
    Some(Answer::Hello(Read {
        hello,
        session_id: session_id.to_vec(),
    }))
}
