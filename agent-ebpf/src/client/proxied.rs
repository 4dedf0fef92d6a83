//! The header of the PROXY protocol with which a balancer begins a client's connection to a gateway behind it (HAProxy's
//! `proxy-protocol.txt`, versions 1 and 2). What it says is user space's business; here it is skipped.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use hopscope_ebpf::{CLIENT_PROXIED_LEN, CLIENT_REQUEST_LEN, Client, PROXY_SIGNATURE};

use crate::segment::Shape;

/// Most bytes of a header of version 1, with its line end (section 2.1).
const LINE_LEN: usize = 107;
/// Bytes of a header of version 2 before its addresses (section 2.2).
const FIXED_LEN: u32 = 16;

/// Whether what was loaded for a request may be such a header.
#[inline(always)]
pub(super) fn may_begin(client: &Client) -> bool {
    matches!(
        client.request[..4],
        [b'P', b'R', b'O', b'X'] | [b'\r', b'\n', b'\r', b'\n']
    )
}

/// Notes the header that the first segment of a connection begins with, `loaded` bytes of which were loaded for a
/// request, and returns what is behind it. `None` where there is none that is whole and in order.
#[inline(always)]
pub(super) fn skipped(shape: &Shape, loaded: u32, client: &mut Client) -> Option<Shape> {
    let len = if client.request[0] == b'P' {
        line(loaded, client)?
    } else {
        binary(loaded, &client.request)?
    };
    let payload = shape.payload.checked_sub(len)?;
    let most = CLIENT_PROXIED_LEN as u32;
    // SAFETY: there is room for as many bytes, and more of them in the request.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut client.proxied).cast(),
            most,
            (&raw const client.request).cast(),
        );
    }
    client.proxied_len = if len < most { len } else { most };
    let seq = shape.seq.wrapping_add(len);
    client.next_in = seq;
    Some(Shape {
        start: shape.start + len,
        payload,
        seq,
        ..*shape
    })
}

/// The length of a header of version 1: its line has no control character before its CR LF.
#[inline(always)]
fn line(loaded: u32, client: &mut Client) -> Option<u32> {
    /// Where the shortest line has its end.
    const LEAST: usize = 13;
    let bytes = &client.request;
    let named = bytes[6..9] == *b"TCP" && matches!(bytes[9], b'4' | b'6') && bytes[10] == b' ';
    if bytes[..6] != *b"PROXY " || !named && bytes[6..LEAST] != *b"UNKNOWN" {
        return None;
    }
    let mut at = LEAST;
    while at < LINE_LEN - 1 && bytes[at] >= b' ' {
        at += 1;
    }
    // SAFETY: a field of a live map's entry. The verifier would follow what comes for every number that it sees counted,
    // and takes what is read from a map for any number.
    let at = unsafe {
        ptr::write_volatile(&raw mut client.proxied_len, at as u32);
        let at = ptr::read_volatile(&raw const client.proxied_len);
        client.proxied_len = 0;
        at as usize
    };
    let bytes = &client.request;
    let ends = at < LINE_LEN - 1 && bytes[at] == b'\r' && bytes[at + 1] == b'\n';
    // What lies behind `loaded` is older.
    (ends && at + 2 <= loaded as usize).then_some(at as u32 + 2)
}

/// The length of a header of version 2.
#[inline(always)]
fn binary(loaded: u32, bytes: &[u8; CLIENT_REQUEST_LEN]) -> Option<u32> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    if loaded < FIXED_LEN || bytes[..12] != PROXY_SIGNATURE {
        return None;
    }
    // Bytes of addresses of IPv4, IPv6 and unix sockets; without any, a family is not known.
    let least = match (bytes[12], bytes[13] >> 4) {
        (LOCAL, _) | (PROXY, 0) => 0,
        (PROXY, 1) => 12,
        (PROXY, 2) => 36,
        (PROXY, 3) => 216,
        _ => return None,
    };
    let len = u32::from(bytes[14]) << 8 | u32::from(bytes[15]);
    (len >= least).then_some(FIXED_LEN + len)
}
