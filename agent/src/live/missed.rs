//! Runs of kernel programs that did not take place. A processor runs no tracing program inside itself: where
//! an interrupt fires the tracepoint of a program that it interrupted, the kernel leaves that run out, and counts it.
//! Programs on tracepoints have a second one behind them that makes up for most of that, and counts so too.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use aya::Ebpf;

use super::load::is_second;

/// The line with the count in what `/proc` says of a program's descriptor. Kernels before Linux 5.12 have none.
const LINE: &str = "recursion_misses:";

/// More than there is to read.
const ROOM: usize = 1024;

/// The programs whose runs are counted.
#[derive(Debug)]
pub(super) struct Missed(Vec<Counted>);

#[derive(Debug)]
struct Counted {
    info: File,
    /// What the file is about.
    _program: OwnedFd,
}

impl Missed {
    /// Those of `ebpf` that are loaded. Where a second program is left out its first was not, so that nothing
    /// is missed by that.
    pub(super) fn of(ebpf: &Ebpf) -> Self {
        let open = |(_, program): (&str, &aya::programs::Program)| {
            let fd = program.fd().ok()?.as_fd().try_clone_to_owned().ok()?;
            let info = File::open(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
            Some(Counted { info, _program: fd })
        };
        let programs = ebpf.programs().filter(|(name, _)| !is_second(name));
        Self(programs.filter_map(open).collect())
    }

    /// Runs that did not take place so far, those that a second program made up for among them.
    pub(super) fn runs(&self) -> u64 {
        self.0.iter().filter_map(|one| read(&one.info)).sum()
    }
}

fn read(info: &File) -> Option<u64> {
    let mut room = [0; ROOM];
    let len = info.read_at(&mut room, 0).ok()?;
    count(std::str::from_utf8(room.get(..len)?).ok()?)
}

fn count(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(LINE))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found() {
        let text =
            "pos:\t0\nprog_type:\t26\nrun_cnt:\t7\nrecursion_misses:\t3\nverified_insns:\t9\n";
        assert_eq!(count(text), Some(3));
        assert_eq!(count("pos:\t0\n"), None);
    }
}
