//! Cgroups of the lab's own, right below the v2 root: where each program of a host that is run by units or
//! containers has one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::clock::wait_for;

/// Start of every name; the id of the owning process and a running number follow.
const PREFIX: &str = "hopscope-";

/// Time that the last process of a cgroup gets to be gone.
const EMPTY: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cgroup without any limits. Dropping it removes it, once its processes have ended.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    path: String,
}

impl Cgroup {
    /// Makes a cgroup; `role` is for the reader of the tree.
    pub fn new(role: &str) -> Result<Self> {
        let root = root()?;
        remove_leftovers(&root);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", process::id());
        let directory = root.join(&name);
        fs::create_dir(&directory)
            .with_context(|| format!("could not make {}", directory.display()))?;
        Ok(Self {
            directory,
            path: format!("/{name}"),
        })
    }

    /// Its path below the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A command that is in the cgroup before it becomes `program`, as with a unit of systemd.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(self.directory.join("cgroup.procs"))
            .arg(program.as_ref());
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The next run removes what is not empty by then.
        let _ = wait_for("a cgroup to be empty", EMPTY, || {
            Ok(fs::remove_dir(&self.directory).ok())
        });
    }
}

/// Where the v2 tree is mounted.
fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let place = line.and_then(|line| line.split(' ').nth(4));
    Ok(place.context("no cgroup v2 file system is mounted")?.into())
}

/// Removes the cgroups of runs that were killed.
fn remove_leftovers(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
