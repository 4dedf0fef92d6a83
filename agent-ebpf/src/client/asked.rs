//! What clients ask: the first bytes of each request, kept until the answer to it begins.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_tcp_sock;
use aya_ebpf::programs::SkBuffContext;
use hopscope_ebpf::{CLIENT_REQUEST_LEN, Client, Counter, client_flag};

use super::text::Text;
use super::{CLIENTS, FIRST_DATA, LISTEN, SYN_RECV, forget, inside, proxied};
use crate::maps::count;
use crate::segment::{START_LEN, Segment, Shape, bounded, now};

/// A packet arrived at a socket of a port that a gateway listens on.
#[inline(always)]
pub(crate) fn packet(ctx: &SkBuffContext) -> Option<()> {
    let segment = Segment::of(ctx, 0);
    let Some(client) = CLIENTS.get_ptr_mut(segment.cookie) else {
        return first_asked(&segment);
    };
    // SAFETY: an entry of a live map. Request and response of one exchange pass one behind the other,
    // and what a racing pipelined one tears is a text of its own client.
    let client = unsafe { &mut *client };
    if client.flags & client_flag::OPAQUE != 0 {
        return inside::arrives(&segment, client);
    }
    let shape = segment.shape()?;
    if shape.payload > 0 {
        arrived(&segment, &shape, client);
    }
    if !shape.plain {
        leaves(client);
    }
    Some(())
}

/// The client closes its side, or resets it.
#[inline(always)]
pub(super) fn leaves(client: &mut Client) {
    client.flags |= client_flag::GONE;
    if client.flags & client_flag::ASKED != 0 {
        client.flags |= client_flag::LEFT;
    }
}

/// Bytes arrived on a client's connection.
#[inline(always)]
fn arrived(segment: &Segment, shape: &Shape, client: &mut Client) {
    let is_asked = client.flags & client_flag::ASKED != 0;
    let next = if is_asked || client.ordinal == 0 && client.proxied_len == 0 {
        next_in(segment)
    } else {
        // As good, and had for nothing.
        Some(client.next_in)
    };
    let Some(next) = next else {
        return;
    };
    // Bytes come again where their acknowledgement was lost, and the last one to see whether the gateway is
    // there still (RFC 9293 section 3.8.4).
    let ahead = shape.seq.wrapping_sub(next).cast_signed();
    if ahead < 0 {
        return;
    }
    let begins = if ahead == 0 && is_untouched(client) {
        opens(segment, shape, client)
    } else {
        requested(segment, shape, client)
    };
    if !begins && client.ordinal == 0 && ahead == 0 {
        inside::begins(client);
    }
}

/// Whether nothing has come of a connection that is watched from its beginning on.
#[inline(always)]
fn is_untouched(client: &Client) -> bool {
    let known = client_flag::ASKED | client_flag::UNREAD;
    client.ordinal == 0 && client.flags & known == 0 && client.proxied_len == 0
}

/// Takes text of a client. Returns false where nothing is asked and it begins no request.
#[inline(always)]
pub(super) fn requested(text: &impl Text, shape: &Shape, client: &mut Client) -> bool {
    if client.flags & client_flag::ASKED != 0 {
        more(text, shape, client);
        return true;
    }
    let begins = keep(text, shape, client);
    if !begins {
        client.flags |= client_flag::UNREAD;
    }
    begins
}

/// A packet arrived where nothing is watched. If it is the one behind which a connection is established, the
/// state program makes an entry of what it asks; a connection of another service is left alone.
#[inline(always)]
fn first_asked(segment: &Segment) -> Option<()> {
    let sk = socket(segment)?;
    // SAFETY: a socket that the verifier has seen checked.
    let state = unsafe { (*sk).state };
    // The latter has a socket before it is established (TCP Fast Open, RFC 7413).
    if state != LISTEN as u32 && state != SYN_RECV as u32 {
        return None;
    }
    let first = FIRST_DATA.get_ptr_mut(0)?;
    // SAFETY: an entry of a live map that only this processor uses.
    let first = unsafe { &mut *first };
    forget(first);
    if state != LISTEN as u32 {
        first.flags |= client_flag::UNREAD;
    }
    let shape = segment.shape()?;
    if shape.payload > 0 && !opens(segment, &shape, first) {
        first.flags |= client_flag::OPAQUE;
    }
    if !shape.plain {
        leaves(first);
    }
    Some(())
}

/// Keeps the first bytes of the first request of a connection, which a header of the PROXY protocol may precede. Returns
/// false where they begin no request.
#[inline(always)]
fn opens(segment: &Segment, shape: &Shape, client: &mut Client) -> bool {
    let Some(len) = load(segment, shape, client) else {
        return true;
    };
    let header = if proxied::may_begin(client) && client.flags & client_flag::UNREAD == 0 {
        proxied::skipped(shape, len, client)
    } else {
        None
    };
    let Some(shape) = header else {
        return kept(shape, len, client);
    };
    if shape.payload == 0 {
        return true;
    }
    keep(segment, &shape, client)
}

/// The socket that a packet passes.
#[inline(always)]
fn socket(segment: &Segment) -> Option<*mut bpf_sock> {
    // SAFETY: the program's own context.
    let sk = unsafe { (*segment.skb).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

/// The sequence number that the socket waits for.
#[inline(always)]
fn next_in(segment: &Segment) -> Option<u32> {
    // SAFETY: the verifier has seen the socket checked, and sees the result checked. Volatile, or the compiler would read
    // this and what a client's entry says through one pointer, which the verifier does not take.
    unsafe {
        let tcp = bpf_tcp_sock(socket(segment)?);
        if tcp.is_null() {
            return None;
        }
        Some((&raw const (*tcp).rcv_nxt).read_volatile())
    }
}

/// Keeps the first bytes of a request. Returns false where they begin none: what follows a request that was
/// answered early is its rest.
#[inline(always)]
fn keep(text: &impl Text, shape: &Shape, client: &mut Client) -> bool {
    load(text, shape, client).is_none_or(|len| kept(shape, len, client))
}

/// Loads the first bytes of a text where those of a request are kept, and returns how many; `None` where they could not
/// be read.
#[inline(always)]
fn load(text: &impl Text, shape: &Shape, client: &mut Client) -> Option<u32> {
    let most = CLIENT_REQUEST_LEN as u32;
    let len = if shape.payload < most {
        shape.payload
    } else {
        most
    };
    let len = bounded(len, most)?;
    // SAFETY: there is room for as many bytes.
    let loaded = unsafe { text.load(shape.start, (&raw mut client.request).cast(), len) };
    if !loaded {
        count(Counter::LoadFailed);
        return None;
    }
    Some(len)
}

/// Takes the `len` bytes that were loaded for a request. Returns false where they begin none.
#[inline(always)]
fn kept(shape: &Shape, len: u32, client: &mut Client) -> bool {
    if !is_request(&client.request, len, client.ordinal == 0) {
        return false;
    }
    client.request_len = len;
    client.requested_ns = now();
    client.read_ns = 0;
    client.ordinal = client.ordinal.wrapping_add(1);
    client.asked_seq = shape.seq;
    client.next_out = shape.ack;
    client.answer_len = 0;
    client.flags = client.flags & !client_flag::UNREAD | client_flag::ASKED;
    true
}

/// More bytes arrived before an answer: the rest of a head that came in pieces, a body, or the next request.
#[inline(always)]
fn more(text: &impl Text, shape: &Shape, client: &mut Client) -> Option<()> {
    /// As many bytes are added to as many at most, so that the verifier sees that both have room.
    const HALF: u32 = CLIENT_REQUEST_LEN as u32 / 2;
    if text.start(shape.start).is_some_and(|start| is_next(&start)) {
        if client.flags & client_flag::INTERIM == 0 {
            client.flags |= client_flag::PIPELINED;
        } else {
            // The answer went unseen, in one segment with an interim response.
            client.flags &= !(client_flag::ASKED | client_flag::INTERIM);
            keep(text, shape, client);
        }
        return Some(());
    }
    let known = client.request_len;
    if shape.seq != client.asked_seq.wrapping_add(known) {
        return None;
    }
    let at = bounded(known, HALF - 1)?;
    let len = if shape.payload < HALF {
        shape.payload
    } else {
        HALF
    };
    let len = bounded(len, HALF)?;
    // SAFETY: there is room for as many bytes at that place.
    let loaded = unsafe {
        let room = (&raw mut client.request).byte_add(at as usize);
        text.load(shape.start, room.cast(), len)
    };
    if !loaded {
        count(Counter::LoadFailed);
        return None;
    }
    client.request_len = at + len;
    Some(())
}

/// Whether the `len` bytes begin a request of HTTP/1: registered methods have three capital letters and more, some
/// with hyphens, and a space and the target follow (RFC 9112 section 3). The method of the HTTP/2 preface is told
/// by what follows it (RFC 9113 section 3.4).
///
/// The `first` bytes of a connection are a request or something else for good, and may be a part of a method.
/// Later ones may also be the rest of a body, of any text.
#[inline(always)]
fn is_request(bytes: &[u8; CLIENT_REQUEST_LEN], len: u32, first: bool) -> bool {
    /// Longer than any that is registered.
    const METHOD_LEN: usize = 24;
    let mut at = 0;
    while at < METHOD_LEN && is_method(bytes[at]) {
        at += 1;
    }
    let len = len as usize;
    if at >= len {
        // What lies behind `len` is older.
        return first;
    }
    if at < 3 || at == METHOD_LEN || bytes[at] != b' ' || bytes[..6] == *b"PRI * " {
        return false;
    }
    first || (at + 1 < len && (is_target(bytes[at + 1]) || bytes[..8] == *b"CONNECT "))
}

/// Whether bytes that follow a request begin the next one.
#[inline(always)]
fn is_next(start: &[u8; START_LEN]) -> bool {
    let mut at = 0;
    while at < START_LEN - 1 && is_method(start[at]) {
        at += 1;
    }
    (3..START_LEN - 1).contains(&at) && start[at] == b' ' && start[at + 1] == b'/'
}

#[inline(always)]
fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-'
}

/// Whether a request target may begin so: a path, an asterisk or a scheme (RFC 9112 section 3.2).
#[inline(always)]
fn is_target(byte: u8) -> bool {
    matches!(byte, b'/' | b'*' | b'h' | b'H')
}
