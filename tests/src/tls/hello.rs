//! Upstreams that know of TLS only as much as they need to break off a handshake.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;

use crate::upstream::{End, finish, read_some};

/// Content type of handshake messages (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// Bytes of a record's header.
const HEADER: usize = 5;

/// Place of the length of the session id in a record that holds a ClientHello (RFC 8446 section 4.1.2):
/// behind the headers of record and message, the version and the random.
const SESSION_ID: usize = HEADER + 4 + 2 + 32;

/// The random that makes a ServerHello a HelloRetryRequest (RFC 8446 section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Reads a ClientHello, sends `bytes` and ends.
pub(crate) fn answer(
    mut stream: TcpStream,
    bytes: &[u8],
    end: End,
    over: &AtomicBool,
) -> io::Result<()> {
    if read_hello(&mut stream, over)?.is_some() {
        stream.write_all(bytes)?;
        finish(stream, end, over)?;
    }
    Ok(())
}

/// The same after a HelloRetryRequest for P-384.
pub(crate) fn answer_retried(
    mut stream: TcpStream,
    bytes: &[u8],
    end: End,
    over: &AtomicBool,
) -> io::Result<()> {
    let Some(hello) = read_hello(&mut stream, over)? else {
        return Ok(());
    };
    let retry = retry_request(&hello)
        .ok_or_else(|| io::Error::other("the gateway's ClientHello has no session id"))?;
    stream.write_all(&retry)?;
    answer(stream, bytes, end, over)
}

/// Reads records up to one of the handshake; `None` at the end of the connection.
fn read_hello(stream: &mut TcpStream, over: &AtomicBool) -> io::Result<Option<Vec<u8>>> {
    loop {
        let Some(mut record) = read_exactly(stream, HEADER, over)? else {
            return Ok(None);
        };
        let &[kind, _, _, high, low] = record.as_slice() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(body) = read_exactly(stream, length, over)? else {
            return Ok(None);
        };
        record.extend(body);
        if kind == HANDSHAKE {
            return Ok(Some(record));
        }
    }
}

fn read_exactly(
    stream: &mut TcpStream,
    length: usize,
    over: &AtomicBool,
) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    let mut have = 0;
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match read_some(stream, rest, over)? {
            0 => return Ok(None),
            count => have += count,
        }
    }
    Ok(Some(bytes))
}

/// A record with a HelloRetryRequest for P-384 in answer to the ClientHello in `record`.
fn retry_request(record: &[u8]) -> Option<Vec<u8>> {
    const CIPHER_AND_COMPRESSION: [u8; 3] = [0x13, 0x01, 0];
    // supported_versions: TLS 1.3; key_share: P-384.
    const EXTENSIONS: [u8; 14] = [0, 12, 0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 24];
    let (length, rest) = record.get(SESSION_ID..)?.split_first()?;
    let session = rest.get(..usize::from(*length))?;
    let mut body = vec![3, 3];
    body.extend(RETRY);
    body.push(*length);
    body.extend(session);
    body.extend(CIPHER_AND_COMPRESSION);
    body.extend(EXTENSIONS);
    let inner = u8::try_from(body.len()).ok()?;
    let mut bytes = vec![HANDSHAKE, 3, 3, 0, inner + 4, 2, 0, 0, inner];
    bytes.extend(body);
    Some(bytes)
}
