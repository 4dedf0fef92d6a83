//! Turns of event loops that run tasks in an order of their own. Such a loop asks for events between its turns and need
//! not sleep for that, so that its sleeps do not count its turns. Whoever asked is known by when a turn began: what
//! came later is not read in it.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use hopscope_ebpf::TASKS_COMM;

use crate::ctx::{self, field};
use crate::maps;
use crate::segment::now;

/// Threads of such gateways. One that is forgotten counts from one again, which no turn before it did lately.
const THREADS_CAP: u32 = 1_024;

/// A thread's turn.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    began_ns: u64,
    /// When the first one began.
    pub(crate) since_ns: u64,
    pub(crate) number: u32,
    reserved: u32,
}

#[map]
static TURNS: LruHashMap<u32, Turn> = LruHashMap::with_max_entries(THREADS_CAP, 0);

/// `epoll_wait()` returned: the current thread begins a turn.
#[inline(always)]
pub(crate) fn begun() -> Option<()> {
    let thread = bpf_get_current_pid_tgid() as u32;
    let Some(turn) = TURNS.get_ptr_mut(thread) else {
        return first(thread);
    };
    // SAFETY: the entry is this thread's own.
    unsafe {
        (*turn).began_ns = now();
        (*turn).number = (*turn).number.wrapping_add(1);
    }
    Some(())
}

/// The first turn of a thread that is seen, where its turns are counted.
#[inline(always)]
fn first(thread: u32) -> Option<()> {
    if ctx::comm() != TASKS_COMM {
        return None;
    }
    let began_ns = now();
    let turn = Turn {
        began_ns,
        since_ns: began_ns,
        number: 1,
        reserved: 0,
    };
    TURNS.insert(thread, turn, 0).ok()
}

/// The current thread and its turn.
#[inline(always)]
pub(crate) fn current() -> Option<(u32, Turn)> {
    let thread = bpf_get_current_pid_tgid() as u32;
    let turn = TURNS.get_ptr(thread)?;
    // SAFETY: an entry of a live map, which is this thread's own.
    Some((thread, unsafe { *turn }))
}

/// The number of the current thread's turn.
#[inline(always)]
pub(crate) fn number() -> Option<u32> {
    let turn = TURNS.get_ptr(thread()?)?;
    // SAFETY: an entry of a live map.
    Some(unsafe { (*turn).number })
}

/// Microseconds since it began, and one more.
#[inline(always)]
pub(crate) fn age_us() -> Option<u32> {
    let turn = TURNS.get_ptr(thread()?)?;
    // SAFETY: an entry of a live map.
    let began_ns = unsafe { (*turn).began_ns };
    Some((now().wrapping_sub(began_ns) / 1_000) as u32 + 1)
}

/// The current thread. The programs on packets may not ask for it by the helper on older kernels.
#[inline(always)]
fn thread() -> Option<u32> {
    field(ctx::task(), &maps::TASK_PID)
}
