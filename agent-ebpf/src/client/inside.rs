//! Clients whose bytes say nothing on the wire: those of TLS, of which the gateway's library tells what is
//! inside where that is asked for, and those of whom nothing is known.
//!
//! Which connection an `SSL` object serves is told by its `ServerHello`, as a hop is by its `ClientHello` (see
//! [`crate::tls`]): what a connection sends first leaves inside the call that wrote it. What is read and written
//! then takes the way of any other client's text, with numbers of its own in the place of TCP's.
//!
//! Where nobody tells, clients of that listener get answers that nobody sees, which user space has to know: else
//! it would say of a failure that no client was told.

use hopscope_ebpf::{Client, Counter, EndsRecord, client_flag, kind};

use super::answered::{closed, responded};
use super::asked::{leaves, requested};
use super::text::{Text as _, UserText};
use super::{CLIENTS, LISTENERS, key};
use crate::emit::{emit, header};
use crate::maps::{TLS_PLAINTEXT, count};
use crate::segment::{START_LEN, Segment, Shape};
use crate::tls;

/// A listener's entry once user space knows that it has clients who cannot be read.
const KNOWN: u8 = 2;
/// The record type of a TLS alert (RFC 8446 section 5.1).
const ALERT: u8 = 21;

/// Marks a client whose first bytes are no request.
#[inline(always)]
pub(super) fn begins(client: &mut Client) {
    client.flags |= client_flag::OPAQUE;
    count_unread(client);
}

/// Counts a client whose first bytes are no request, unless the library may tell of it.
#[inline(always)]
pub(super) fn count_unread(client: &Client) {
    let hello = tls::is_client_hello(&client.request);
    if !hello || TLS_PLAINTEXT.load() == 0 {
        count(Counter::ClientOpaque);
    }
}

/// A packet of such a client arrived.
#[inline(always)]
pub(super) fn arrives(segment: &Segment, client: &mut Client) -> Option<()> {
    if client.flags & client_flag::INSIDE != 0 && !segment.shape()?.plain {
        leaves(client);
    }
    Some(())
}

/// A packet leaves for such a client.
#[inline(always)]
pub(super) fn departs(segment: &Segment, client: &mut Client) -> Option<()> {
    const INSIDE_AND_ASKED: u32 = client_flag::INSIDE | client_flag::ASKED;
    if client.flags & client_flag::HEARD == 0 {
        let shape = segment.shape()?;
        if shape.payload > 0 {
            client.flags |= client_flag::HEARD;
            answers_first(segment, &shape, client);
        }
    } else if client.flags & INSIDE_AND_ASKED == INSIDE_AND_ASKED && !segment.shape()?.plain {
        closed(segment, segment.cookie, client);
    }
    Some(())
}

/// What the gateway says first tells what it takes the client for.
#[inline(always)]
fn answers_first(segment: &Segment, shape: &Shape, client: &mut Client) {
    let start = segment.start(shape).unwrap_or_default();
    // What is no request, or no handshake, is refused, and no upstream is asked.
    let refused = is_response(&start, b'4') || start[0] == ALERT;
    if refused {
        return;
    }
    let hello = tls::is_server_hello(&start);
    if hello && TLS_PLAINTEXT.load() != 0 {
        if tls::serves(segment.cookie).is_some() {
            client.flags = client.flags & !client_flag::UNREAD | client_flag::INSIDE;
            return;
        }
        count(Counter::ClientOpaque);
    }
    tell_unreadable(client);
}

/// Whether these bytes begin a response of HTTP/1 with a status of this class.
#[inline(always)]
fn is_response(start: &[u8; START_LEN], class: u8) -> bool {
    start[..7] == *b"HTTP/1." && start[9] == class
}

/// From now on nothing of this client can be read, or it is not known what belongs to what.
#[inline(always)]
pub(super) fn lost(client: &mut Client) {
    closes(client);
    count(Counter::ClientOpaque);
    tell_unreadable(client);
}

/// From now on this client does not speak HTTP/1.
#[inline(always)]
pub(super) fn closes(client: &mut Client) {
    client.flags |= client_flag::OPAQUE | client_flag::HEARD;
    client.flags &= !client_flag::INSIDE;
}

/// Tells user space of a listener whose clients cannot all be read, once. Where the ring is full, the next such
/// client tells.
#[inline(always)]
pub(super) fn tell_unreadable(client: &Client) {
    let Some(listener) = LISTENERS.get_ptr_mut(key(&client.ends)) else {
        return;
    };
    // SAFETY: an entry of a live map is one byte. Two processors may tell the same.
    if unsafe { *listener } == KNOWN {
        return;
    }
    let told = emit(EndsRecord {
        header: header::<EndsRecord>(kind::UNREADABLE, 0),
        ends: client.ends,
    });
    if told.is_some() {
        // SAFETY: as above.
        unsafe { *listener = KNOWN };
    }
}

/// The gateway read `len` bytes inside TLS of the connection with this cookie.
#[inline(always)]
pub(crate) fn read(cookie: u64, address: u64, len: u32) -> Option<()> {
    let client = inside(cookie)?;
    if len == 0 {
        return None;
    }
    let text = UserText { address, len };
    let shape = passed(len, client.next_in, client.next_out);
    client.next_in = shape.end();
    if !requested(&text, &shape, client) && client.ordinal == 0 {
        // HTTP/2, or no HTTP at all.
        lost(client);
    }
    Some(())
}

/// The gateway writes `len` bytes inside TLS to the connection with this cookie.
#[inline(always)]
pub(crate) fn written(cookie: u64, address: u64, len: u32) -> Option<()> {
    let client = inside(cookie)?;
    if len == 0 {
        return None;
    }
    let text = UserText { address, len };
    if client.flags & client_flag::ASKED == 0 {
        let start = text.start(0)?;
        if is_response(&start, b'5') {
            // A failure that nobody asked for: the end of the call that read the request was not seen.
            count(Counter::TextMissed);
            lost(client);
        }
        return None;
    }
    let shape = passed(len, client.next_out, client.next_in);
    responded(&text, cookie, &shape, client)
}

/// The shape of `len` bytes inside TLS, by numbers of their own.
#[inline(always)]
fn passed(len: u32, seq: u32, ack: u32) -> Shape {
    Shape {
        start: 0,
        payload: len,
        seq,
        ack,
        plain: true,
    }
}

/// The gateway takes leave inside TLS on the connection with this cookie: the client may close at once.
#[inline(always)]
pub(crate) fn shut(cookie: u64) -> Option<()> {
    let client = inside(cookie)?;
    if client.flags & client_flag::ASKED == 0 {
        return None;
    }
    let none = UserText { address: 0, len: 0 };
    closed(&none, cookie, client)
}

/// The client with this cookie, where the library tells of it.
#[inline(always)]
fn inside(cookie: u64) -> Option<&'static mut Client> {
    let client = CLIENTS.get_ptr_mut(cookie)?;
    // SAFETY: an entry of a live map. What a racing call tears is a text of its own client.
    let client = unsafe { &mut *client };
    (client.flags & client_flag::INSIDE != 0).then_some(client)
}
