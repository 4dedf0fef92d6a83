//! Takes what processes leave behind out of the kernel's tables of TLS: nothing there makes room by itself,
//! since what runs must not be forgotten.

use std::collections::HashSet;
use std::path::Path;

use aya::{Ebpf, Pod};

use crate::live::LiveError;
use crate::live::load::{Table, take_map};

/// Bytes of a session in the kernel's table, and of its key: the process, and the address of its `SSL` object.
const SESSION_LEN: usize = 40;
const KEY_WORDS: usize = 2;

/// More keys than any of the tables holds. A table that changes while it is walked may be begun anew.
const WALK_MAX: usize = 1 << 18;

type Key = [u64; KEY_WORDS];

/// The tables with something of processes in them.
#[derive(Debug)]
pub(super) struct Tables {
    /// Those that opened a hop, by their ids.
    processes: Table<u32, u8>,
    sessions: Table<Key, [u8; SESSION_LEN]>,
    servers: Table<Key, u64>,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LiveError> {
        Ok(Self {
            processes: take_map(ebpf, "GATEWAYS")?,
            sessions: take_map(ebpf, "SESSIONS")?,
            servers: take_map(ebpf, "SERVERS")?,
        })
    }

    /// Forgets the processes that have ended.
    pub(super) fn sweep(&mut self) {
        let gone: HashSet<u64> = keys(&self.processes, |pid| !is_running(pid))
            .into_iter()
            .map(u64::from)
            .collect();
        if gone.is_empty() {
            return;
        }
        let of_gone = |[process, _]: Key| gone.contains(&process);
        remove(&mut self.sessions, of_gone);
        remove(&mut self.servers, of_gone);
        // Last of all: what has no process has no entries either.
        remove(&mut self.processes, |pid| gone.contains(&pid.into()));
    }
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The keys of a table that are wanted.
fn keys<K: Pod, V: Pod>(table: &Table<K, V>, wanted: impl Fn(K) -> bool) -> Vec<K> {
    let keys = table.keys().take(WALK_MAX).map_while(Result::ok);
    keys.filter(|key| wanted(*key)).collect()
}

fn remove<K: Pod, V: Pod>(table: &mut Table<K, V>, wanted: impl Fn(K) -> bool) {
    for key in keys(table, wanted) {
        // It fails where the library freed it meanwhile, or where it was met twice.
        if let Err(error) = table.remove(&key) {
            tracing::debug!(%error, "not taken out of a table of TLS");
        }
    }
}
