//! Who a process is: name, cgroup, container, network namespace; and whether it is a gateway.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::clients::Listeners;
use super::config::LiveConfig;
use super::decode::{self, comm_text};
use super::{LiveError, cgroup};
use crate::model::Process;

/// Processes remembered. One entry a gateway worker is the rule; forgetting all of them costs one read
/// of `/proc` each.
const CACHE_CAP: usize = 4096;

/// Descriptions of processes, shared by every event that names them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    known: HashMap<(decode::Process, u64), Arc<Process>>,
    /// Who listens for clients.
    pub(super) listeners: Listeners,
}

impl Processes {
    /// The process that a record names. Its name and namespace are the record's own, so that they are
    /// right even where the process is gone by now.
    pub(super) fn of_caller(&mut self, caller: &decode::Process, netns: u32) -> Arc<Process> {
        let netns = match netns {
            0 => netns_of(caller.pid).unwrap_or(0),
            known => u64::from(known),
        };
        if let Some(known) = self.known.get(&(*caller, netns)) {
            return Arc::clone(known);
        }
        let process = Arc::new(describe(caller.pid, &comm_text(&caller.comm), netns));
        if self.known.len() >= CACHE_CAP {
            self.known.clear();
        }
        self.known.insert((*caller, netns), Arc::clone(&process));
        process
    }
}

/// What `/proc` says about a process.
pub(super) fn describe(pid: u32, comm: &str, netns: u64) -> Process {
    let path = cgroup_of(pid).ok().flatten();
    let path = path.as_deref().unwrap_or_default();
    Process {
        pid,
        comm: Arc::from(comm),
        netns,
        cgroup: Arc::from(path),
        container_id: cgroup::container_id(path).map(Arc::from),
    }
}

/// Path of the cgroup v2 of a process below the root, if it is in one. It fails where the process is gone.
pub(super) fn cgroup_of(pid: u32) -> io::Result<Option<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(cgroup::path_of(&text).map(str::to_owned))
}

/// Name of a process that is there.
pub(super) fn comm_of(pid: u32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(&text)).into_owned())
}

/// Path that stands for the network namespace of a process.
pub(super) fn netns_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Inode of the network namespace of a process.
pub(super) fn netns_of(pid: u32) -> Option<u64> {
    link_number(&netns_path(pid), "net:[")
}

/// The number in a link such as `net:[4026531840]` or `socket:[1234]`.
pub(super) fn link_number(path: &Path, prefix: &str) -> Option<u64> {
    let link = std::fs::read_link(path).ok()?;
    link.to_str()?
        .strip_prefix(prefix)?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The processes that are there.
pub(super) fn pids() -> Vec<u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Inodes of the sockets that a process holds.
pub(super) fn sockets_of(pid: u32) -> Vec<u64> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| link_number(&entry.ok()?.path(), "socket:["))
        .collect()
}

/// Tells gateways from other processes, by the same rules as the kernel programs.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    names: Vec<String>,
    /// Below the v2 root, without a slash at the end.
    cgroups: Vec<String>,
}

impl Matcher {
    pub(super) fn new(config: &LiveConfig) -> Result<Self, LiveError> {
        let mut cgroups = Vec::new();
        if !config.cgroups.is_empty() {
            let root = cgroup::root().map_err(|source| LiveError::Cgroup {
                path: "/proc/self/mountinfo".into(),
                source,
            })?;
            for path in &config.cgroups {
                let path = cgroup::directory(&root, path);
                let below = path.strip_prefix(&root).unwrap_or(&path);
                cgroups.push(
                    format!("/{}", below.display())
                        .trim_end_matches('/')
                        .to_owned(),
                );
            }
        }
        Ok(Self {
            names: config.gateways.clone(),
            cgroups,
        })
    }

    /// Whether process `pid` of that name is a gateway by its name or its cgroup.
    pub(super) fn is_gateway(&self, pid: u32, comm: &str) -> bool {
        self.names.iter().any(|name| name == comm)
            || (!self.cgroups.is_empty()
                && cgroup_of(pid).is_ok_and(|path| path.is_some_and(|path| self.covers(&path))))
    }

    fn covers(&self, path: &str) -> bool {
        self.cgroups.iter().any(|own| {
            path.strip_prefix(own.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_covers_what_is_below_it() {
        let matcher = Matcher {
            names: vec![],
            cgroups: vec!["/a/b".to_owned()],
        };
        assert!(matcher.covers("/a/b"));
        assert!(matcher.covers("/a/b/c"));
        assert!(!matcher.covers("/a/bc"));
        assert!(!matcher.covers("/a"));
        let root = Matcher {
            names: vec![],
            cgroups: vec![String::new()],
        };
        assert!(root.covers("/anything"));
    }

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id();
        let comm = comm_of(pid).unwrap();
        assert!(!comm.is_empty() && comm.len() < hopscope_ebpf::COMM_LEN);
        assert!(netns_of(pid).is_some_and(|inode| inode > 0));
        assert!(pids().contains(&pid));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!sockets_of(pid).is_empty());
        drop(listener);
    }

    #[test]
    fn a_caller_is_described_once_and_by_its_own_name() {
        let mut processes = Processes::default();
        let mut comm = [0; hopscope_ebpf::COMM_LEN];
        comm[..5].copy_from_slice(b"nginx");
        let caller = decode::Process {
            pid: u32::MAX,
            cgroup_id: 1,
            comm,
        };
        let first = processes.of_caller(&caller, 42);
        assert_eq!(
            (&*first.comm, first.netns, &*first.cgroup),
            ("nginx", 42, "")
        );
        assert!(Arc::ptr_eq(&first, &processes.of_caller(&caller, 42)));
    }
}
