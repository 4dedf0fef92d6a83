//! A second chance for runs that the kernel leaves out. A processor runs no tracing program inside itself: where
//! an interrupt fires the tracepoint whose program it interrupted, that run is left out. So each tracepoint that
//! fires in interrupts too has two programs, one behind the other: the first does the work and leaves a mark while it
//! does, the second works only where it finds that mark, which says that it runs inside the first.
//!
//! The second does not log: a line that two programs log becomes a subprogram, whose stack counts beside theirs.
//!
//! Not both can be left out, since not both were interrupted. What is still lost is the run of an interrupt that
//! comes in the few instructions between the kernel's own mark and this one.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use hopscope_ebpf::Counter;

use crate::maps::count;

/// A tracepoint's place in [`WORKING`].
#[derive(Clone, Copy)]
pub(crate) enum Place {
    State,
    ClientState,
    ResetIn,
    Destroyed,
    ResetOut,
    Retransmit,
    Error,
}

/// Number of [`Place`]s.
const PLACES: u32 = 7;

/// One where the first program of a place is at work on this processor.
#[map]
static WORKING: PerCpuArray<u32> = PerCpuArray::with_max_entries(PLACES, 0);

/// The first program of a place: does the work.
#[inline(always)]
pub(crate) fn first(place: Place, work: impl FnOnce() -> Option<()>) -> i32 {
    mark(place, 1);
    let _ = work();
    mark(place, 0);
    0
}

/// The second program of a place: does the work where the first was left out.
#[inline(always)]
pub(crate) fn second(place: Place, work: impl FnOnce() -> Option<()>) -> i32 {
    if is_left_out(place) {
        let _ = work();
    }
    0
}

/// Whether the first program of a place was left out.
#[inline(always)]
fn is_left_out(place: Place) -> bool {
    let left_out = WORKING.get_ptr(place as u32).is_some_and(|working| {
        // SAFETY: this processor's own slot of a live map.
        unsafe { working.read_volatile() != 0 }
    });
    if left_out {
        count(Counter::RunsRepeated);
    }
    left_out
}

#[inline(always)]
fn mark(place: Place, value: u32) {
    if let Some(working) = WORKING.get_ptr_mut(place as u32) {
        // SAFETY: this processor's own slot of a live map. Volatile, so that it stays on its side of the work.
        unsafe { working.write_volatile(value) };
    }
}
