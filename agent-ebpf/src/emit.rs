//! Records into the ring, and the counters of what did not fit.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use hopscope_ebpf::{Counter, Header};

use crate::maps::{EVENTS, count};

/// The header of a record of type `T`, stamped now.
#[inline(always)]
pub(crate) fn header<T>(kind: u16, cookie: u64) -> Header {
    Header {
        kind,
        reserved: 0,
        len: size_of::<T>() as u32,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cookie,
    }
}

/// Sends `record` up. Its type has no implicit padding (the layout checks of the record ABI), so that
/// writing it leaves no byte of the reserved room as it was.
#[inline(always)]
pub(crate) fn emit<T: Copy + 'static>(record: T) -> Option<()> {
    emit_with(record, |_| {})
}

/// The same of a record that `add` completes where it lies: there is room for more there than on the stack.
#[inline(always)]
pub(crate) fn emit_with<T: Copy + 'static>(record: T, add: impl FnOnce(*mut T)) -> Option<()> {
    let mut room = reserve()?;
    room.write(record);
    add(room.as_mut_ptr());
    submit(room);
    Some(())
}

/// Room for a record that is written where it lies, and then handed to [`submit`] or discarded: the verifier wants one
/// of both.
#[inline(always)]
pub(crate) fn reserve<T: 'static>() -> Option<RingBufEntry<T>> {
    let room = EVENTS.reserve::<T>(0);
    if room.is_none() {
        count(Counter::RingFull);
    }
    room
}

/// Sends up what was written.
#[inline(always)]
pub(crate) fn submit<T: 'static>(room: RingBufEntry<T>) {
    room.submit(0);
    count(Counter::Records);
}
