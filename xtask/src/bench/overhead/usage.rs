//! What processes and kernel programs use, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

/// Clock ticks a second in `/proc`: fixed by the kernel's interface (`USER_HZ`).
const TICKS: f64 = 100.0;

/// What one kernel program did.
pub(super) struct Program {
    pub(super) name: String,
    pub(super) runs: f64,
    pub(super) nanos: f64,
}

/// Processor time of a process and of its children that run, in microseconds.
pub(super) fn cpu_us(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    let ticks = ticks(&stat).with_context(|| format!("/proc/{pid}/stat has no times"))?;
    let mut all = ticks / TICKS * 1e6;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        all += cpu_us(child.parse()?)?;
    }
    Ok(all)
}

/// User and system time of one line of `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<f64> {
    // The command name may hold anything, but its closing bracket is the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The largest resident set that a process ever had.
pub(super) fn peak_rss_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/{pid}/status has no VmHWM"))? / 1024.0)
}

/// Makes the kernel take the time of every program until the descriptor is closed: the sysctl
/// `kernel.bpf_stats_enabled` without a value to put back.
pub(super) fn time_programs() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("could not make the kernel take the time of its programs")
}

/// What the kernel programs did that `pid` holds, those that never ran left out.
pub(super) fn programs(pid: u32) -> Result<Vec<Program>> {
    let mut names = BTreeMap::new();
    for info in loaded_programs().flatten() {
        names.insert(info.id(), info.name_as_str().unwrap_or("?").to_owned());
    }
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().parse::<f64>().ok())
        };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        let id = id.and_then(|id| id.trim().parse::<u32>().ok());
        if let (Some(id), Some(nanos), Some(runs)) = (id, field("run_time_ns:"), field("run_cnt:"))
            && runs > 0.0
        {
            let name = names.get(&id).cloned().unwrap_or_default();
            all.insert(id, Program { name, runs, nanos });
        }
    }
    Ok(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(300.0));
        assert_eq!(ticks("7 (nginx"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        assert!(cpu_us(pid).unwrap() >= 0.0);
        assert!(peak_rss_mib(pid).unwrap() > 0.0);
    }
}
