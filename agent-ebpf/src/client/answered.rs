//! What clients get: how each answer begins. A 5xx, or a close without any, sends up what was asked.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::programs::SkBuffContext;
use hopscope_ebpf::{
    CLIENT_PROXIED_LEN, CLIENT_REQUEST_LEN, CLIENT_RESPONSE_LEN, COMM_LEN, Client, ClientRecord,
    Counter, Goroutine, Header, client_flag, kind,
};

use super::text::Text;
use super::{CLIENTS, inside};
use crate::ctx::{self, field};
use crate::emit::{reserve, submit};
use crate::goroutine;
use crate::maps::{self, count};
use crate::segment::{START_LEN, Segment, Shape, bounded, now};

/// A packet leaves a socket of a port that a gateway listens on.
#[inline(always)]
pub(crate) fn packet(ctx: &SkBuffContext) -> Option<()> {
    let segment = Segment::of(ctx, 1);
    let client = CLIENTS.get_ptr_mut(segment.cookie)?;
    // SAFETY: an entry of a live map, which a racing request tears at most (see `asked`).
    let client = unsafe { &mut *client };
    if client.flags & client_flag::OPAQUE != 0 {
        return inside::departs(&segment, client);
    }
    if client.flags & client_flag::ASKED == 0 {
        return None;
    }
    let shape = segment.shape()?;
    if shape.payload == 0 {
        return if shape.plain {
            None
        } else {
            closed(&segment, segment.cookie, client)
        };
    }
    // What is sent again was looked at before.
    if shape.seq.wrapping_sub(client.next_out).cast_signed() < 0 {
        return None;
    }
    responded(&segment, segment.cookie, &shape, client)
}

/// Takes text for a client who waits for an answer.
#[inline(always)]
pub(super) fn responded(
    text: &impl Text,
    cookie: u64,
    shape: &Shape,
    client: &mut Client,
) -> Option<()> {
    /// The interim response that gateways make themselves, all of it (RFC 9110 section 15.2.1).
    const CONTINUE_LEN: u32 = 25;
    client.next_out = shape.seq.wrapping_add(shape.payload);
    client.next_in = shape.ack;
    let known = client.answer_len;
    let mut rest = Rest {
        at: shape.start,
        len: shape.payload,
    };
    let mut begins = begin(text, &rest, client);
    if let Begins::Interim = begins {
        client.flags |= client_flag::INTERIM;
        if known > 0 || rest.len <= CONTINUE_LEN {
            return None;
        }
        rest.at += CONTINUE_LEN;
        rest.len -= CONTINUE_LEN;
        begins = begin(text, &rest, client);
    }
    match begins {
        Begins::Unknown if shape.plain => return None,
        Begins::Interim => return None,
        Begins::Nothing if client.flags & client_flag::INTERIM != 0 => return None,
        Begins::Nothing | Begins::Unknown => {
            client.flags &= !client_flag::ASKED;
            count(Counter::ClientRaw);
            return None;
        }
        Begins::Final(_) | Begins::Upgrade => {}
    }
    let pipelined = client.flags & client_flag::PIPELINED != 0;
    client.flags &= !(client_flag::ASKED | client_flag::INTERIM | client_flag::PIPELINED);
    if let Begins::Final(b'5') = begins {
        tell(text, cookie, &rest, known, client);
    }
    if pipelined {
        inside::lost(client);
    } else if is_tunnel(&begins, client) {
        inside::closes(client);
    }
    Some(())
}

/// The gateway closes its side before its answer was seen.
#[inline(always)]
pub(super) fn closed(text: &impl Text, cookie: u64, client: &mut Client) -> Option<()> {
    client.flags &= !client_flag::ASKED;
    if client.answer_len > 0 {
        count(Counter::ClientRaw);
        return None;
    }
    if client.flags & client_flag::GONE != 0 {
        return None;
    }
    tell(text, cookie, &Rest { at: 0, len: 0 }, 0, client)
}

/// A part of a packet.
struct Rest {
    at: u32,
    len: u32,
}

/// What bytes of an answer begin.
enum Begins {
    /// Too few to tell.
    Unknown,
    /// No response of HTTP/1.
    Nothing,
    Interim,
    /// 101 (Switching Protocols).
    Upgrade,
    /// A final response, and the class of its status.
    Final(u8),
}

/// Adds the first bytes of `rest` to those of the answer that are known, and says what they begin.
#[inline(always)]
fn begin(text: &impl Text, rest: &Rest, client: &mut Client) -> Begins {
    const VERSION: [u8; 7] = *b"HTTP/1.";
    const MOST: u32 = START_LEN as u32;
    let known = client.answer_len;
    client.answer_len = 0;
    let missing = MOST.wrapping_sub(known);
    let len = if rest.len < missing {
        rest.len
    } else {
        missing
    };
    // One more, since a number from one on is what can be bounded.
    let (Some(place), Some(len)) = (bounded(known + 1, MOST), bounded(len, MOST)) else {
        return Begins::Nothing;
    };
    let known = place - 1;
    // SAFETY: there is room for as many bytes at that place.
    let loaded = unsafe {
        let room = (&raw mut client.answer).byte_add(known as usize);
        text.load(rest.at, room.cast(), len)
    };
    if !loaded {
        count(Counter::LoadFailed);
        return Begins::Nothing;
    }
    let known = known + len;
    let mut at = 0;
    while at < VERSION.len() {
        if at < known as usize && client.answer[at] != VERSION[at] {
            return Begins::Nothing;
        }
        at += 1;
    }
    if known < MOST {
        client.answer_len = known;
        return Begins::Unknown;
    }
    match client.answer[9] {
        b'1' if client.answer[10] == b'0' && client.answer[11] == b'1' => Begins::Upgrade,
        b'1' => Begins::Interim,
        class => Begins::Final(class),
    }
}

/// Whether a connection is a tunnel from this response on.
#[inline(always)]
fn is_tunnel(begins: &Begins, client: &Client) -> bool {
    match begins {
        Begins::Upgrade => true,
        Begins::Final(b'2') => client.request[..8] == *b"CONNECT ",
        _ => false,
    }
}

/// Sends up what was asked and what the answer begins with, if anything: `known` bytes of it were seen before,
/// and `rest` is there now.
#[inline(always)]
fn tell(text: &impl Text, cookie: u64, rest: &Rest, known: u32, client: &Client) -> Option<()> {
    let mut room = reserve::<ClientRecord>()?;
    let record = room.as_mut_ptr();
    let most = (CLIENT_RESPONSE_LEN - START_LEN) as u32;
    let len = if rest.len < most { rest.len } else { most };
    let mut response_len = 0;
    // SAFETY: the record is room for all that is written to it, and the verifier sees the bounds.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*record).request).cast(),
            CLIENT_REQUEST_LEN as u32,
            (&raw const client.request).cast(),
        );
        let known_bytes = (&raw const client.answer).cast::<[u8; START_LEN]>().read();
        (&raw mut (*record).response)
            .cast::<[u8; START_LEN]>()
            .write(known_bytes);
        if let Some(len) = bounded(len, most)
            && let Some(place) = bounded(known + 1, START_LEN as u32)
        {
            let room = (&raw mut (*record).response).byte_add(place as usize - 1);
            response_len = if text.load(rest.at, room.cast(), len) {
                place - 1 + len
            } else {
                // What told that it is a failure is there.
                count(Counter::ReadFailed);
                START_LEN as u32
            };
        }
        (&raw mut (*record).proxied_len).write(client.proxied_len);
        if client.proxied_len > 0 {
            bpf_probe_read_kernel(
                (&raw mut (*record).proxied).cast(),
                CLIENT_PROXIED_LEN as u32,
                (&raw const client.proxied).cast(),
            );
        }
        (&raw mut (*record).header).write(Header {
            kind: kind::CLIENT,
            reserved: 0,
            len: size_of::<ClientRecord>() as u32,
            time_ns: now(),
            cookie,
        });
        (&raw mut (*record).ends).write(client.ends);
        (&raw mut (*record).requested_ns).write(client.requested_ns);
        (&raw mut (*record).read_ns).write(client.read_ns);
        (&raw mut (*record).read_tid).write(client.read_tid);
        (&raw mut (*record).read_turn).write(client.read_turn);
        (&raw mut (*record).goroutine).write(Goroutine::NONE);
        let _ = goroutine::tell(&raw mut (*record).goroutine);
        (&raw mut (*record).ordinal).write(client.ordinal);
        (&raw mut (*record).request_len).write(client.request_len);
        (&raw mut (*record).response_len).write(response_len);
        let task = ctx::task();
        (&raw mut (*record).pid).write(field(task, &maps::TASK_TGID).unwrap_or(0));
        (&raw mut (*record).tid).write(field(task, &maps::TASK_PID).unwrap_or(0));
        (&raw mut (*record).turn).write(ctx::turn());
        (&raw mut (*record).task_flags).write(field(task, &maps::TASK_FLAGS).unwrap_or(0));
        (&raw mut (*record).exit_code).write(field(task, &maps::TASK_EXIT).unwrap_or(0));
        let leader: u64 = field(task, &maps::TASK_LEADER).unwrap_or(0);
        let comm: [u8; COMM_LEN] = field(leader, &maps::TASK_COMM).unwrap_or_default();
        (&raw mut (*record).comm).write(comm);
    }
    submit(room);
    Some(())
}
