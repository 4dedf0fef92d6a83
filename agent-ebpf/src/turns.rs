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
    /// Its process. Entries stay behind threads, whose ids others get.
    process: u32,
}

#[map]
static TURNS: LruHashMap<u32, Turn> = LruHashMap::with_max_entries(THREADS_CAP, 0);

/// `epoll_wait()` returned: the current thread begins a turn.
#[inline(always)]
pub(crate) fn begun() -> Option<()> {
    let id = bpf_get_current_pid_tgid();
    let (thread, process) = (id as u32, (id >> 32) as u32);
    let Some(turn) = TURNS.get_ptr_mut(thread) else {
        return first(thread, process);
    };
    // SAFETY: the entry is this thread's own, or was that of another one which had its id.
    let turn = unsafe { &mut *turn };
    if turn.process != process {
        return first(thread, process);
    }
    turn.began_ns = now();
    turn.number = turn.number.wrapping_add(1);
    Some(())
}

/// The first turn of a thread that is seen, where its turns are counted.
#[inline(always)]
fn first(thread: u32, process: u32) -> Option<()> {
    if ctx::comm() != TASKS_COMM {
        return None;
    }
    let began_ns = now();
    let turn = Turn {
        began_ns,
        since_ns: began_ns,
        number: 1,
        process,
    };
    TURNS.insert(thread, turn, 0).ok()
}

/// The current thread and its turn.
#[inline(always)]
pub(crate) fn current() -> Option<(u32, Turn)> {
    let id = bpf_get_current_pid_tgid();
    let thread = id as u32;
    // SAFETY: an entry of a live map, which only its own thread changes.
    let turn = unsafe { *TURNS.get_ptr(thread)? };
    if turn.process != (id >> 32) as u32 {
        return None;
    }
    Some((thread, turn))
}

/// The turn of the current thread. The programs on packets may not ask for that by the helper on older kernels.
#[inline(always)]
fn current_by_fields() -> Option<Turn> {
    let task = ctx::task();
    let thread: u32 = field(task, &maps::TASK_PID)?;
    // SAFETY: as above.
    let turn = unsafe { *TURNS.get_ptr(thread)? };
    if turn.process != field(task, &maps::TASK_TGID)? {
        return None;
    }
    Some(turn)
}

/// The number of the current thread's turn.
#[inline(always)]
pub(crate) fn number() -> Option<u32> {
    current_by_fields().map(|turn| turn.number)
}

/// Microseconds since it began, and one more.
#[inline(always)]
pub(crate) fn age_us() -> Option<u32> {
    let turn = current_by_fields()?;
    Some((now().wrapping_sub(turn.began_ns) / 1_000) as u32 + 1)
}
