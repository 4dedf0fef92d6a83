//! What must not outlive this process, for the one path on which destructors do not run: a signal.
//! Everything else cleans up by going out of scope.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use tempfile::TempDir;

use crate::clock::wait_for;
use crate::netns;

/// Time that a program gets to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Start of the name of every directory; the id of the owning process follows.
const PREFIX: &str = "hopscope-lab-";

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

#[derive(PartialEq)]
enum Kept {
    Process(Pid),
    Group(Pid),
    Directory(PathBuf),
}

/// Removes everything that this process still has running or lying about. For signal handlers: the
/// caller ends the process afterwards.
pub fn everything() {
    for kept in kept().drain(..) {
        match kept {
            Kept::Process(pid) => {
                let _ = kill_process(pid, Signal::KILL);
            }
            Kept::Group(leader) => {
                let _ = kill_process_group(leader, Signal::KILL);
            }
            Kept::Directory(path) => {
                let _ = fs::remove_dir_all(path);
            }
        }
    }
    netns::remove_own();
}

/// Removes what runs left behind that were killed before they could clean up.
pub fn leftovers() {
    netns::remove_leftovers();
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A program that ends with its owner.
#[derive(Debug)]
pub struct Program {
    child: Child,
    pid: Pid,
    /// Whether it leads a process group, which ends with it.
    leads: bool,
}

impl Program {
    /// Takes charge of `child`.
    pub fn new(child: Child) -> Self {
        Self::keep(child, false)
    }

    /// The same of one that leads a process group: what it started ends with it.
    pub fn of_group(child: Child) -> Self {
        Self::keep(child, true)
    }

    fn keep(child: Child, leads: bool) -> Self {
        let pid = Pid::from_child(&child);
        kept().push(if leads {
            Kept::Group(pid)
        } else {
            Kept::Process(pid)
        });
        Self { child, pid, leads }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("could not signal {:?}", self.pid))
    }

    /// Sends `signal` and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        if self.leads {
            return self.end_group(signal);
        }
        // The pid stays ours until the child has been waited for, so it cannot hit another process.
        if self.child.try_wait()?.is_none() {
            self.signal(signal)?;
        }
        wait_for("the end of a program", GRACE, || {
            Ok(self.child.try_wait()?)
        })
    }

    /// The same, and ends the rest of its group.
    fn end_group(&mut self, signal: Signal) -> Result<ExitStatus> {
        if self.has_ended()?.is_none() {
            self.signal(signal)?;
        }
        let ended = wait_for("the end of a program", GRACE, || self.has_ended());
        // The pid, which is the group's, stays ours as above. None of the group may be left.
        let _ = kill_process_group(self.pid, Signal::KILL);
        ended?;
        Ok(self.child.wait()?)
    }

    /// Whether it has ended, and was not waited for.
    fn has_ended(&self) -> Result<Option<()>> {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::Pid(self.pid), look)?;
        Ok(ended.map(drop))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.end(Signal::TERM).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        kept().retain(
            |kept| !matches!(kept, Kept::Process(pid) | Kept::Group(pid) if *pid == self.pid),
        );
    }
}

/// A directory that ends with its owner.
#[derive(Debug)]
pub struct Directory(TempDir);

impl Directory {
    /// A new, empty directory, readable by the unprivileged users that gateways may switch to.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", process::id()))
            .tempdir()
            .context("could not make a temporary directory")?;
        kept().push(Kept::Directory(directory.path().to_owned()));
        Ok(Self(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        kept().retain(|kept| !matches!(kept, Kept::Directory(path) if path == self.0.path()));
    }
}

fn kept() -> MutexGuard<'static, Vec<Kept>> {
    // A panic elsewhere leaves the list as good as it was.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}
