//! Records into the ring, and the counters of what did not fit.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
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
    let Some(mut room) = EVENTS.reserve::<T>(0) else {
        count(Counter::RingFull);
        return None;
    };
    room.write(record);
    room.submit(0);
    count(Counter::Records);
    Some(())
}
