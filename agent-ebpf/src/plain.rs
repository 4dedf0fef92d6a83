//! What gateways write to their hops and read from them through OpenSSL: asked for only, since it costs
//! two breakpoints a call.
//!
//! The bytes of a call are known when it returns. The functions are probed where they begin and at each of
//! their return instructions: a return probe would change return addresses, see `tls`.
//!
//! An `SSL` object belongs to one thread at a time. So where a call begins while another one on the same
//! object is still noted as under way, the end of that one was missed: what the call was about is forgotten
//! (the table of calls is LRU), a program did not run, or the thread left in some other way. Then an unknown
//! number of bytes is missing, and that is told before anything that follows.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_probe_read_user, generated};
use aya_ebpf::programs::ProbeContext;
use hopscope_ebpf::{
    Counter, MAX_SNAP_LEN, PLAIN_MISSED, PLAIN_TIERS, PlainHeader, hop_flag, kind, plain_call,
};

use crate::client::inside;
use crate::ctx::{self, read};
use crate::emit::{emit, header, reserve, submit};
use crate::heads;
use crate::maps::{self, CALLS, HOPS, SESSIONS, SNAP_LEN, count};
use crate::segment::{bounded, now};
use crate::tls::{self, Session, Ssl};

/// Bits of a session: a call is under way that writes, or one that reads.
const WRITES: u32 = 1;
const READS: u32 = 2;

/// A call that a thread is in.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Call {
    ssl: Ssl,
    /// Where the bytes are, or will be.
    buffer: u64,
    /// Where their number will be, zero where it is returned.
    len_at: u64,
    began_ns: u64,
}

/// What was read or written, with room for `CAP` bytes of it.
#[repr(C)]
struct PlainRecord<const CAP: usize> {
    header: PlainHeader,
    bytes: [u8; CAP],
}

/// `SSL_read(ssl, buffer, most)`, `SSL_write(ssl, buffer, len)`, and the same with a fourth argument, where
/// the number of bytes goes; `SSL_write_ex2` has that fifth. The attachment says which.
#[inline(always)]
pub(crate) fn entered(ctx: &ProbeContext) -> Option<()> {
    let task = ctx::task();
    // Of a call that left by another way, what it knew is not this one's.
    let _ = CALLS.remove(task);
    let ssl = Ssl::of_gateway(ctx)?;
    let buffer: u64 = ctx.arg(1)?;
    let which = which(ctx);
    let writes = which & plain_call::WRITE != 0;
    let served = tls::served(ssl);
    if let Some(session) = tls::enter(ctx, ssl) {
        begin(session, writes);
        if let Some(hop) = tls::hop(session).and_then(|cookie| HOPS.get_ptr_mut(cookie)) {
            // Before anything of it is sent: what is inside needs every segment outside.
            // SAFETY: an entry of a live map. Where the flag gets lost, the next call sets it.
            unsafe { (*hop).flags |= hop_flag::PLAIN };
        }
    } else if writes {
        return inside::written(served?, buffer, ctx.arg(2)?);
    }
    let (fourth, fifth): (u64, u64) = (ctx.arg(3)?, ctx.arg(4)?);
    let len_at = if which & plain_call::EX2 != 0 {
        fifth
    } else if which & plain_call::EX != 0 {
        fourth
    } else {
        0
    };
    let call = Call {
        ssl,
        buffer,
        len_at,
        began_ns: now(),
    };
    let _ = CALLS.insert(task, call, 0);
    Some(())
}

/// Notes that a call is under way, and tells if one was whose end nobody saw.
#[inline(always)]
fn begin(session: *mut Session, writes: bool) {
    let own = if writes { WRITES } else { READS };
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    let before = unsafe { core::mem::replace(&mut (*session).calls, own) };
    if before != 0 {
        count(Counter::TextMissed);
        let _ = miss(session, before == WRITES);
    }
}

/// Tells that an unknown number of bytes was not seen.
#[inline(always)]
fn miss(session: *mut Session, writes: bool) -> Option<()> {
    let total = total(session, writes);
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    let offset = unsafe {
        *total += PLAIN_MISSED;
        *total
    };
    emit(PlainHeader {
        header: header::<PlainHeader>(kind::PLAIN, tls::hop(session)?),
        offset,
        len: 0,
        captured: 0,
        egress: u32::from(writes),
        reserved: 0,
    })
}

/// The number of bytes of a direction.
#[inline(always)]
fn total(session: *mut Session, writes: bool) -> *mut u64 {
    // SAFETY: an entry of a live map.
    unsafe {
        if writes {
            &raw mut (*session).written
        } else {
            &raw mut (*session).read
        }
    }
}

/// One of them is about to return.
#[inline(always)]
pub(crate) fn returns(ctx: &ProbeContext) -> Option<()> {
    let task = ctx::task();
    // SAFETY: the value is copied out at once, and only the thread itself replaces it.
    let call = *unsafe { CALLS.get(task) }?;
    let _ = CALLS.remove(task);
    let writes = which(ctx) & plain_call::WRITE != 0;
    let result: i32 = read(ctx.as_ptr() as u64 + u64::from(maps::RESULT_AT.load()))?;
    let len = if result <= 0 {
        0
    } else if call.len_at == 0 {
        result.cast_unsigned()
    } else {
        // SAFETY: the helper checks the address, and every bit pattern is a number.
        let len = unsafe { bpf_probe_read_user(call.len_at as *const u64) }.ok()?;
        if len >= PLAIN_MISSED {
            return None;
        }
        len as u32
    };
    if let Some(cookie) = tls::served(call.ssl) {
        return inside::read(cookie, call.buffer, len);
    }
    let session = SESSIONS.get_ptr_mut(call.ssl)?;
    // Whatever is not known up to here, the next call tells of it.
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    unsafe { (*session).calls = 0 };
    if writes && len == 0 {
        return None;
    }
    let cookie = tls::hop(session)?;
    let total = total(session, writes);
    // SAFETY: as above.
    let offset = unsafe {
        let offset = *total;
        *total += u64::from(len);
        offset
    };
    let snap = SNAP_LEN.load();
    let reach = if writes || len == 0 {
        0
    } else {
        // SAFETY: as above.
        heads::reach_inside(call.buffer, len, unsafe { &raw mut (*session).head })
    };
    let most = if reach > snap { reach } else { snap };
    let captured = if len < most { len } else { most };
    if captured < len {
        count(Counter::Truncated);
    }
    let mut header = PlainHeader {
        header: header::<PlainHeader>(kind::PLAIN, cookie),
        offset,
        len,
        captured,
        egress: u32::from(writes),
        reserved: 0,
    };
    if writes || len == 0 && (result < 0 || call.len_at != 0) {
        // What is written leaves inside the call, and may be answered before it returns. What comes while a
        // read finds nothing may stay unread; the end of the connection, a zero, is read last of all.
        header.header.time_ns = call.began_ns;
    }
    send_up(header, call.buffer)
}

/// `SSL_shutdown(ssl)`.
#[inline(always)]
pub(crate) fn shuts(ctx: &ProbeContext) -> Option<()> {
    let ssl = Ssl::of_gateway(ctx)?;
    inside::shut(tls::served(ssl)?)
}

/// `SSL_sendfile(ssl, ..)`: what it sends is not seen, so that nothing inside is followed from here on.
#[inline(always)]
pub(crate) fn skips(ctx: &ProbeContext) -> Option<()> {
    let session = SESSIONS.get_ptr_mut(Ssl::of_gateway(ctx)?)?;
    miss(session, true)
}

#[inline(always)]
fn send_up(mut header: PlainHeader, from: u64) -> Option<()> {
    let captured = header.captured;
    let sent = if captured == 0 {
        false
    } else if captured <= PLAIN_TIERS[0] {
        send::<{ PLAIN_TIERS[0] as usize }>(header, from)?
    } else if captured <= PLAIN_TIERS[1] {
        send::<{ PLAIN_TIERS[1] as usize }>(header, from)?
    } else if captured <= PLAIN_TIERS[2] {
        send::<{ PLAIN_TIERS[2] as usize }>(header, from)?
    } else {
        send::<{ MAX_SNAP_LEN as usize }>(header, from)?
    };
    if sent {
        return Some(());
    }
    // How long it was is worth telling where it could not be read.
    header.captured = 0;
    emit(header)
}

/// Sends what was read or written in a record with room for `CAP` bytes. Returns false where the bytes
/// could not be read.
#[inline(always)]
fn send<const CAP: usize>(mut header: PlainHeader, from: u64) -> Option<bool> {
    let mut room = reserve::<PlainRecord<CAP>>()?;
    let record = room.as_mut_ptr();
    let Some(captured) = bounded(header.captured, CAP as u32) else {
        room.discard(0);
        return None;
    };
    // SAFETY: `record` has room for `CAP` bytes, and `captured` is at most `CAP`; the helper checks the
    // address.
    let failed = unsafe {
        generated::bpf_probe_read_user(
            (&raw mut (*record).bytes).cast(),
            captured,
            from as *const _,
        )
    };
    if failed != 0 {
        count(Counter::ReadFailed);
        room.discard(0);
        return Some(false);
    }
    header.header.len += captured;
    // SAFETY: as above. What lies behind the captured bytes is left as it was: ring pages start out zeroed
    // and only ever held records.
    unsafe { (&raw mut (*record).header).write(header) };
    submit(room);
    Some(true)
}

/// Which function is probed: bits of [`plain_call`].
#[inline(always)]
fn which(ctx: &ProbeContext) -> u64 {
    // SAFETY: the program's own context.
    unsafe { generated::bpf_get_attach_cookie(ctx.as_ptr()) }
}
