//! Which goroutine the current thread runs, of gateways that are written in Go.
//!
//! Go's scheduler moves goroutines between threads, so that thread and turn say nothing of them. Its runtime keeps
//! what runs on a thread in thread-local storage: a pointer to a `runtime.g`, which holds the goroutine's number and
//! that of the one that started it. Where these lie is known of each release; user space enters the processes of
//! those (`hopscope_ebpf::GoroutinePlace`), and of others nothing is read.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use hopscope_ebpf::{Goroutine, GoroutinePlace};

use crate::ctx::{self, field};
use crate::maps;

/// Gateways that are written in Go.
const PROCESSES_CAP: u32 = 4_096;

/// Where each of them keeps what runs, by process id. User space takes out those that have ended.
#[map]
static GOROUTINES: HashMap<u32, GoroutinePlace> = HashMap::with_max_entries(PROCESSES_CAP, 0);

/// Reads what the current thread runs into `room`, which is all zero. It stays so where that is not known.
///
/// # Safety
///
/// `room` is inside a record that was reserved.
#[inline(always)]
pub(crate) unsafe fn tell(room: *mut Goroutine) -> Option<()> {
    let task = ctx::task();
    let pid: u32 = field(task, &maps::TASK_TGID)?;
    let place = GOROUTINES.get_ptr(pid)?;
    // SAFETY: an entry of a live map.
    let GoroutinePlace {
        below,
        id_at,
        parent_at,
    } = unsafe { *place };
    // The kernel's own copy: Go's runtime sets the register by system calls alone.
    let base: u64 = field(task, &maps::THREAD_FSBASE)?;
    let slot = base.wrapping_sub(u64::from(below));
    // SAFETY: the helpers check the addresses, and write as many bytes as there is room for: zeros where they fail.
    unsafe {
        let running: u64 = bpf_probe_read_user(slot as *const u64).ok()?;
        generated::bpf_probe_read_user(
            (&raw mut (*room).id).cast(),
            size_of::<u64>() as u32,
            running.wrapping_add(u64::from(id_at)) as *const _,
        );
        generated::bpf_probe_read_user(
            (&raw mut (*room).parent).cast(),
            size_of::<u64>() as u32,
            running.wrapping_add(u64::from(parent_at)) as *const _,
        );
    }
    Some(())
}
