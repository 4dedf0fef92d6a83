//! Network namespaces with names that say whose they are. They go with their owner, on a signal, and at
//! the latest when the next run finds that their process is gone.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::run;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// Start of every name; the id of the owning process and a running number follow.
const PREFIX: &str = "hopscope-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace; `role` is for the reader of `ip netns list`.
    pub fn new(role: &str) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", process::id());
        run("ip", &["netns", "add", &name])?;
        let path = path_of(&name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                remove(&name);
                return Err(error).with_context(|| format!("could not open {}", path.display()));
            }
        };
        let namespace = Self { name, file };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inode, by which events name it.
    pub fn inode(&self) -> Result<u64> {
        Ok(self
            .file
            .metadata()
            .context("could not stat a network namespace")?
            .st_ino())
    }

    /// Runs `ip` in it; `args` are separated by spaces.
    pub fn ip(&self, args: &str) -> Result<()> {
        let mut all = vec!["-n", self.name()];
        all.extend(args.split_whitespace());
        run("ip", &all).map(drop)
    }

    /// Runs `work` on a thread inside it. Programs started there stay inside, and so do sockets.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let kind = Some(LinkNameSpaceType::Network);
                    move_into_link_name_space(self.file.as_fd(), kind)
                        .with_context(|| format!("could not enter namespace {}", self.name))?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread in namespace {} panicked", self.name)))
        })
    }

    /// Sets a sysctl below `/proc/sys/net`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.enter(|| {
            fs::write(&path, value).with_context(|| format!("could not write {}", path.display()))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the namespaces of runs that were killed before they could.
pub(crate) fn remove_leftovers() {
    for (name, owner) in names() {
        if !Path::new("/proc").join(owner.to_string()).exists() {
            remove(&name);
        }
    }
}

/// Removes the namespaces of this process.
pub(crate) fn remove_own() {
    for (name, owner) in names() {
        if owner == process::id() {
            remove(&name);
        }
    }
}

/// The lab's namespaces on this host, each with the process that made it.
fn names() -> Vec<(String, u32)> {
    let Ok(entries) = fs::read_dir(NAMES) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let owner = owner_of(&name)?;
            Some((name, owner))
        })
        .collect()
}

fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Ends what still runs inside and removes the name. Best effort: it serves destructors.
fn remove(name: &str) {
    let inside = run("ip", &["netns", "pids", name]).unwrap_or_default();
    for pid in inside
        .split_whitespace()
        .filter_map(|pid| pid.parse::<i32>().ok())
    {
        if let Some(pid) = Pid::from_raw(pid)
            && pid != rustix::process::getpid()
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = run("ip", &["netns", "delete", name]);
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_from_a_name_and_from_nothing_else() {
        assert_eq!(owner_of("hopscope-4711-0-gateway"), Some(4711));
        assert_eq!(owner_of("hopscope-x-0"), None);
        assert_eq!(owner_of("production"), None);
    }
}
