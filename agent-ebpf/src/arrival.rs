//! Gateways that begin to run: told apart from all other records, since the segment programs are to be
//! where they belong before they accept or connect. A program begins milliseconds before that.

use aya_ebpf::macros::map;
use aya_ebpf::maps::RingBuf;
use hopscope_ebpf::{ArrivalRecord, kind};

use crate::ctx;
use crate::emit::header;
use crate::gateway::is_gateway_process;
use crate::maps::RESOLVERS;

/// A handful at once: user space waits for each. What finds no room is found by looking at the processes
/// that there are, and until then by its first connect.
#[map]
static ARRIVALS: RingBuf = RingBuf::with_byte_size(1 << 14, 0);

/// `sched_process_exec(task, old_pid, bprm)`: the current process has become another program, with the
/// name of that one.
#[inline(always)]
pub(crate) fn executed() -> Option<()> {
    let comm = ctx::comm();
    if !is_gateway_process(&comm) && RESOLVERS.get_ptr(comm).is_none() {
        return None;
    }
    let mut room = ARRIVALS.reserve::<ArrivalRecord>(0)?;
    room.write(ArrivalRecord {
        header: header::<ArrivalRecord>(kind::ARRIVAL, 0),
        caller: ctx::caller(comm),
    });
    room.submit(0);
    Some(())
}
