//! Decides whether the current process is a gateway, by its name, its cgroup or where it connects to.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use aya_ebpf::maps::lpm_trie::Key;
use hopscope_ebpf::{COMM_LEN, UpstreamKey, filter};

use crate::maps::{CGROUPS, COMMS, FILTERS, UPSTREAMS};

/// Levels of the cgroup tree that are looked at. systemd and Kubernetes use about six.
const CGROUP_LEVELS: i32 = 16;

/// Bits of a port in an [`UpstreamKey`], and of the whole key.
pub(crate) const KEY_BITS: u32 = 16 + 128;

/// Whether the process called `comm` that connects to `addr` and `port` is a gateway.
#[inline(always)]
pub(crate) fn is_gateway(comm: &[u8; COMM_LEN], addr: &[u8; 16], port: u16) -> bool {
    is_gateway_process(comm) || (FILTERS.load() & filter::UPSTREAM != 0 && is_upstream(addr, port))
}

/// Whether the process called `comm` is a gateway wherever it connects to.
#[inline(always)]
pub(crate) fn is_gateway_process(comm: &[u8; COMM_LEN]) -> bool {
    let filters = FILTERS.load();
    (filters & filter::COMM != 0 && COMMS.get_ptr(comm).is_some())
        || (filters & filter::CGROUP != 0 && in_cgroup())
}

#[inline(always)]
fn in_cgroup() -> bool {
    for level in 0..CGROUP_LEVELS {
        // SAFETY: no pointers; zero comes back where there is no such level.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        if CGROUPS.get_ptr(id).is_some() {
            return true;
        }
    }
    false
}

#[inline(always)]
fn is_upstream(addr: &[u8; 16], port: u16) -> bool {
    let with_port = UpstreamKey {
        port_be: port.to_be_bytes(),
        addr: *addr,
    };
    let any_port = UpstreamKey {
        port_be: [0; 2],
        addr: *addr,
    };
    UPSTREAMS.get(Key::new(KEY_BITS, with_port)).is_some()
        || UPSTREAMS.get(Key::new(KEY_BITS, any_port)).is_some()
}
