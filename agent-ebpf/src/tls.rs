//! What OpenSSL says inside gateway processes: the errors that it raises, and how the verification of a
//! certificate chain ended. Only calls are probed that a connection makes a few times or that follow a
//! failure; reads and writes are `plain`'s, where that is asked for.
//!
//! Three steps join an error to its hop, and where one is not certain nothing is said. A handshake call
//! tells which `SSL` object the thread is at, unless that is a server's. The `ClientHello` that the same
//! thread sends inside the call tells which hop that object speaks on: a first segment always leaves
//! inside the call that wrote it. And an error that concerns a connection is raised by a function that
//! goes on to use the connection's `SSL` object, so that one of the registers that survive a call holds
//! its address at that moment.
//!
//! That the thread is still inside the call shows by the return address, which lies where the call left it
//! until the caller makes another one. It does not matter then whether the thread slept meanwhile, as it
//! does while pages of the library are read. Processors that keep return addresses in a register tell it by
//! the thread's turn, and know less.
//!
//! There are no return probes: they change return addresses on the stacks of other processes, and on
//! Linux 6.11 to 6.13 they end processes whose system calls are filtered.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user, generated};
use aya_ebpf::programs::ProbeContext;
use aya_log_ebpf::debug;
use hopscope_ebpf::{Counter, LibraryRecord, NO_EXIST, NO_OFFSET, kind, library};

use crate::ctx::{self, read};
use crate::emit::{emit, header};
use crate::gateway::is_gateway_process;
use crate::maps::{
    self, GATEWAYS, HANDSHAKES, HOPS, RAISED, SERVERS, SESSIONS, TLS_PLAINTEXT, count,
};

/// `EEXIST` of `include/uapi/asm-generic/errno-base.h`.
const EEXIST: i32 = 17;
/// `ERR_LIB_SSL` of `openssl/err.h`.
const SSL: u32 = 20;
/// `SSL_R_CERTIFICATE_VERIFY_FAILED` of `openssl/sslerr.h`.
const VERIFY_FAILED: u32 = 134;
/// `SSL_R_RECORD_LAYER_FAILURE` of the same file: the reason is the error raised just before, by a part
/// of the library that knows no `SSL` object (OpenSSL 3.2 and later). It is not raised for bytes that are no
/// TLS at all, which the wire shows as well.
const RECORD_LAYER: u32 = 313;
/// A record of type handshake, and messages that it may begin with (RFC 8446 sections 5.1 and 4).
const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const RECORD_HEADER_LEN: usize = 5;
/// Most registers that survive a call, on any processor.
const SAVED_MAX: usize = 10;

/// An `SSL` object.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ssl {
    /// The process id.
    pub(crate) process: u64,
    /// Its address there.
    pub(crate) address: u64,
}

impl Ssl {
    /// The first argument of the call, where a gateway makes it.
    #[inline(always)]
    pub(crate) fn of_gateway(ctx: &ProbeContext) -> Option<Self> {
        let process = gateway()?;
        let address = ctx.arg(0)?;
        Some(Self { process, address })
    }
}

/// What is known of an `SSL` object that is not known to be the server's end.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Session {
    /// The hop that it speaks on, zero while unknown.
    cookie: u64,
    /// Bytes that the program wrote to it, and that it read from it.
    pub(crate) written: u64,
    pub(crate) read: u64,
    /// How the verification of the peer's chain ended.
    code: u32,
    /// Not zero where it has ended.
    verified: u32,
    /// Which call of `plain` is under way, zero for none.
    pub(crate) calls: u32,
    /// The head of a response that the program reads, as `heads` knows it.
    pub(crate) head: u32,
}

impl Session {
    const NEW: Self = Self {
        cookie: 0,
        written: 0,
        read: 0,
        code: 0,
        verified: 0,
        calls: 0,
        head: 0,
    };
}

/// Which end of a connection an `SSL` object is.
enum End {
    Client(*mut Session),
    Server,
}

/// The last call of a thread that may have begun a handshake.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Handshake {
    ssl: Ssl,
    /// Where its return address is, zero where that is a register.
    stack: u64,
    /// The return address.
    back: u64,
    /// The thread's turn then.
    turn: u32,
    /// Zero.
    reserved: u32,
}

/// The last error of a thread that could not be joined to a hop.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Raised {
    reason: u32,
    /// The thread's turn then.
    turn: u32,
}

impl Handshake {
    /// Whether the current thread, which made it, is still inside the call.
    #[inline(always)]
    fn is_under_way(&self) -> bool {
        if self.stack == 0 {
            return self.turn == ctx::turn();
        }
        // SAFETY: the helper checks the address, and every bit pattern is a number.
        let back = unsafe { bpf_probe_read_user(self.stack as *const u64) };
        back == Ok(self.back)
    }
}

/// `SSL_do_handshake(ssl)`, which `SSL_connect` and `SSL_accept` call as well.
#[inline(always)]
pub(crate) fn handshake(ctx: &ProbeContext) -> Option<()> {
    let ssl = Ssl::of_gateway(ctx)?;
    enter(ctx, ssl).map(|_| ())
}

/// `SSL_set_accept_state(ssl)` and `SSL_accept(ssl)`.
#[inline(always)]
pub(crate) fn accepts(ctx: &ProbeContext) -> Option<()> {
    let ssl = Ssl {
        process: gateway().or_else(adopted)?,
        address: ctx.arg(0)?,
    };
    let _ = SESSIONS.remove(ssl);
    // `SSL_accept` comes again until the handshake is over.
    if let Err(error) = SERVERS.insert(ssl, 0, NO_EXIST)
        && error != -EEXIST
    {
        count(Counter::LibraryMapFull);
    }
    Some(())
}

/// The current thread calls a function that makes the handshake where there was none yet. Returns `None`
/// where it is the server's, or where there is no room.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext, ssl: Ssl) -> Option<*mut Session> {
    if let Some(served) = SERVERS.get_ptr(ssl) {
        // SAFETY: an entry of a live map.
        if unsafe { *served } == 0 && TLS_PLAINTEXT.load() != 0 {
            note(ctx, ssl)?;
        }
        return None;
    }
    let session = if let Some(session) = SESSIONS.get_ptr_mut(ssl) {
        session
    } else {
        if SESSIONS.insert(ssl, Session::NEW, 0).is_err() {
            count(Counter::LibraryMapFull);
            return None;
        }
        SESSIONS.get_ptr_mut(ssl)?
    };
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    let cookie = unsafe { (*session).cookie };
    if cookie != 0 {
        if HOPS.get_ptr(cookie).is_some() {
            return Some(session);
        }
        // Of a hop that is gone, the object is another one at the same address.
        // SAFETY: as above.
        unsafe { *session = Session::NEW };
    }
    note(ctx, ssl)?;
    Some(session)
}

/// Notes which call the current thread is in.
#[inline(always)]
fn note(ctx: &ProbeContext, ssl: Ssl) -> Option<()> {
    let stack_at = maps::STACK_AT.load();
    let mut stack = 0;
    let mut back = 0;
    if stack_at != NO_OFFSET {
        stack = read(ctx.as_ptr() as u64 + u64::from(stack_at))?;
        // SAFETY: the helper checks the address, and every bit pattern is a number.
        back = unsafe { bpf_probe_read_user(stack as *const u64) }.ok()?;
    }
    let handshake = Handshake {
        ssl,
        stack,
        back,
        turn: ctx::turn(),
        reserved: 0,
    };
    let _ = HANDSHAKES.insert(ctx::task(), handshake, 0);
    Some(())
}

/// Whether these are the first bytes of a `ClientHello`.
#[inline(always)]
pub(crate) fn is_client_hello(start: &[u8]) -> bool {
    start[0] == RECORD_HANDSHAKE && start[RECORD_HEADER_LEN] == CLIENT_HELLO
}

/// Whether these are the first bytes of a `ServerHello`, or of what asks for another `ClientHello`.
#[inline(always)]
pub(crate) fn is_server_hello(start: &[u8]) -> bool {
    start[0] == RECORD_HANDSHAKE && start[RECORD_HEADER_LEN] == SERVER_HELLO
}

/// A hop of `process` sends its `ClientHello`.
#[inline(always)]
pub(crate) fn hello(cookie: u64, process: u32) -> Option<()> {
    let task = ctx::task();
    // SAFETY: the value is copied out at once, and only the thread itself replaces it.
    let handshake = *unsafe { HANDSHAKES.get(task) }?;
    if handshake.ssl.process != u64::from(process) || !handshake.is_under_way() {
        return None;
    }
    let session = SESSIONS.get_ptr_mut(handshake.ssl)?;
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    unsafe { (*session).cookie = cookie };
    let _ = HANDSHAKES.remove(task);
    Some(())
}

/// The gateway sends its `ServerHello` on the connection of a client with this cookie.
#[inline(always)]
pub(crate) fn serves(cookie: u64) -> Option<()> {
    let task = ctx::task();
    // SAFETY: the value is copied out at once, and only the thread itself replaces it.
    let handshake = *unsafe { HANDSHAKES.get(task) }?;
    if !handshake.is_under_way() {
        return None;
    }
    let served = SERVERS.get_ptr_mut(handshake.ssl)?;
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    unsafe { *served = cookie };
    let _ = HANDSHAKES.remove(task);
    Some(())
}

/// The connection that an `SSL` object serves, zero while that is not known; `None` where it is no server's end.
#[inline(always)]
pub(crate) fn served(ssl: Ssl) -> Option<u64> {
    // SAFETY: an entry of a live map.
    SERVERS.get_ptr(ssl).map(|served| unsafe { *served })
}

/// `ERR_vset_error(library, reason, ..)`, behind `ERR_set_error` and every fatal error of a handshake or
/// record.
#[inline(always)]
pub(crate) fn raised(ctx: &ProbeContext) -> Option<()> {
    error(ctx, ctx.arg(0)?, ctx.arg(1)?)
}

/// `ERR_put_error(library, function, reason, ..)` of OpenSSL 1.1.
#[inline(always)]
pub(crate) fn put(ctx: &ProbeContext) -> Option<()> {
    error(ctx, ctx.arg(0)?, ctx.arg(2)?)
}

#[inline(always)]
fn error(ctx: &ProbeContext, library: u32, reason: u32) -> Option<()> {
    // The others try and fail in the middle of good handshakes, and what is fatal SSL raises once more.
    if library != SSL {
        return None;
    }
    let process = gateway()?;
    let session = match at_hand(ctx, process) {
        Some(End::Client(session)) => session,
        Some(End::Server) => return None,
        None => {
            let turn = ctx::turn();
            let _ = RAISED.insert(ctx::task(), Raised { reason, turn }, 0);
            return None;
        }
    };
    let cookie = hop(session)?;
    debug!(ctx, "hop {}: error {}", cookie, reason);
    if reason == RECORD_LAYER {
        let task = ctx::task();
        // SAFETY: the value is copied out at once, and only the thread itself replaces it.
        if let Some(before) = unsafe { RAISED.get(task) }.copied() {
            let _ = RAISED.remove(task);
            if before.turn == ctx::turn() {
                send(cookie, library::RAISED, library, before.reason);
            }
        }
    }
    if reason == VERIFY_FAILED {
        // SAFETY: an entry of a live map.
        let Session { code, verified, .. } = unsafe { *session };
        if verified != 0 {
            send(cookie, library::REFUSED, 0, code);
        }
    }
    send(cookie, library::RAISED, library, reason)
}

/// `X509_STORE_CTX_get_error(ctx)`, which the library calls last of all when it has verified a chain. The
/// attachment says where this build of the library keeps the result.
#[inline(always)]
pub(crate) fn verified(ctx: &ProbeContext) -> Option<()> {
    let Some(End::Client(session)) = at_hand(ctx, gateway()?) else {
        return None;
    };
    let store: u64 = ctx.arg(0)?;
    // SAFETY: the program's own context.
    let offset = unsafe { generated::bpf_get_attach_cookie(ctx.as_ptr()) };
    // SAFETY: the helper checks the address, and every bit pattern is a number.
    let code = unsafe { bpf_probe_read_user((store + offset) as *const u32) };
    let Ok(code) = code else {
        count(Counter::ReadFailed);
        return None;
    };
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    unsafe {
        (*session).code = code;
        (*session).verified = 1;
    }
    Some(())
}

/// `SSL_get_verify_result(ssl)`.
#[inline(always)]
pub(crate) fn asked(ctx: &ProbeContext) -> Option<()> {
    let session = SESSIONS.get_ptr_mut(Ssl::of_gateway(ctx)?)?;
    // SAFETY: an entry of a live map.
    let Session { code, verified, .. } = unsafe { *session };
    if verified == 0 {
        return None;
    }
    send(hop(session)?, library::ASKED, 0, code)
}

/// `SSL_free(ssl)`.
#[inline(always)]
pub(crate) fn freed(ctx: &ProbeContext) -> Option<()> {
    let ssl = Ssl::of_gateway(ctx)?;
    let _ = SESSIONS.remove(ssl);
    let _ = SERVERS.remove(ssl);
    Some(())
}

/// `SSL_clear(ssl)`: the object is for another connection now. The library calls it itself where a handshake
/// begins, before there is a hop.
#[inline(always)]
pub(crate) fn cleared(ctx: &ProbeContext) -> Option<()> {
    let ssl = Ssl::of_gateway(ctx)?;
    if let Some(served) = SERVERS.get_ptr_mut(ssl) {
        // SAFETY: as below.
        unsafe { *served = 0 };
    }
    let session = SESSIONS.get_ptr_mut(ssl)?;
    // SAFETY: an entry of a live map; an `SSL` object belongs to one thread at a time.
    unsafe {
        if (*session).cookie != 0 {
            *session = Session::NEW;
        }
    }
    Some(())
}

/// The current process, where it has opened hops.
#[inline(always)]
fn gateway() -> Option<u64> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    GATEWAYS.get_ptr(process).map(|_| u64::from(process))
}

/// The current process, where it is a gateway that has clients before it opens its first hop, and what they are
/// told is read.
#[inline(always)]
fn adopted() -> Option<u64> {
    if TLS_PLAINTEXT.load() == 0 || !is_gateway_process(&ctx::comm()) {
        return None;
    }
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    if GATEWAYS.insert(process, 0, 0).is_err() {
        count(Counter::LibraryMapFull);
        return None;
    }
    Some(u64::from(process))
}

/// The hop of a session, where it has one that is still there.
#[inline(always)]
pub(crate) fn hop(session: *mut Session) -> Option<u64> {
    // SAFETY: an entry of a live map.
    let cookie = unsafe { (*session).cookie };
    (cookie != 0 && HOPS.get_ptr(cookie).is_some()).then_some(cookie)
}

/// The one `SSL` object that the caller of the probed function holds in a register that survives the call.
#[inline(always)]
fn at_hand(ctx: &ProbeContext, process: u64) -> Option<End> {
    let at = ctx.as_ptr() as u64 + u64::from(maps::SAVED_AT.load());
    let registers: [u64; SAVED_MAX] = read(at)?;
    let mut found = None;
    let mut known = 0;
    for (n, address) in registers.into_iter().enumerate() {
        if n as u32 >= maps::SAVED_LEN.load() || address == 0 || address == known {
            continue;
        }
        let ssl = Ssl { process, address };
        let end = if let Some(session) = SESSIONS.get_ptr_mut(ssl) {
            End::Client(session)
        } else if SERVERS.get_ptr(ssl).is_some() {
            End::Server
        } else {
            continue;
        };
        if known != 0 {
            count(Counter::LibraryUnjoined);
            return None;
        }
        known = address;
        found = Some(end);
    }
    found
}

#[inline(always)]
fn send(cookie: u64, what: u32, library: u32, value: u32) -> Option<()> {
    emit(LibraryRecord {
        header: header::<LibraryRecord>(kind::LIBRARY, cookie),
        what,
        library,
        value,
        reserved: 0,
    })
}
