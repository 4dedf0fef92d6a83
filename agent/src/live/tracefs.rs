//! Finds tracefs and reads where a tracepoint keeps its arguments.
//!
//! Where nobody has mounted it, it is mounted at the place that the kernel keeps for it, as `perf` and
//! `bpftrace` do. Nothing in it is ever written.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

/// The two places where the kernel's tools look.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// What `tracefs` had to be done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mounted {
    /// It was there.
    Before,
    /// We mounted it.
    Now,
}

/// The directory of events.
pub(super) fn find() -> io::Result<(PathBuf, Mounted)> {
    if let Some(events) = present() {
        return Ok((events, Mounted::Before));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tracefs", PLACES[0], "tracefs", flags, None)?;
    present()
        .map(|events| (events, Mounted::Now))
        .ok_or_else(|| io::Error::other("tracefs has no directory of events"))
}

/// The directory of events, where tracefs is mounted.
fn present() -> Option<PathBuf> {
    PLACES
        .iter()
        .map(|place| Path::new(place).join("events"))
        .find(|events| events.is_dir())
}

/// Where the arguments of `connect()` lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectLayout {
    /// The file descriptor.
    pub(super) fd: u32,
    /// The pointer to the address.
    pub(super) addr: u32,
    /// The length of the address.
    pub(super) len: u32,
    /// The result, in the record of the exit.
    pub(super) ret: u32,
}

/// Reads both layouts below `events`.
pub(super) fn connect_layout(events: &Path) -> Result<ConnectLayout, String> {
    let read = |name: &str| {
        let path = events.join("syscalls").join(name).join("format");
        std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let (enter, exit) = (read("sys_enter_connect")?, read("sys_exit_connect")?);
    let find = |text: &str, field: &str| {
        offset(text, field, 8)
            .ok_or_else(|| format!("the connect tracepoint has no field {field} of eight bytes"))
    };
    Ok(ConnectLayout {
        fd: find(&enter, "fd")?,
        addr: find(&enter, "uservaddr")?,
        len: find(&enter, "addrlen")?,
        ret: find(&exit, "ret")?,
    })
}

/// Offset of a field of that size in a format file, whose lines read
/// `field:struct sockaddr * uservaddr; offset:24; size:8; signed:0;`.
fn offset(format: &str, name: &str, size: u32) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().split(';').map(str::trim);
        let declared = parts
            .next()?
            .strip_prefix("field:")?
            .split_whitespace()
            .next_back()?;
        if declared.trim_start_matches('*') != name {
            return None;
        }
        let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
        let found: u32 = parts.next()?.strip_prefix("size:")?.parse().ok()?;
        (found == size).then_some(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTER: &str = "name: sys_enter_connect\nID: 1\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:int fd;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:struct sockaddr * uservaddr;\toffset:24;\tsize:8;\tsigned:0;\n\
        \tfield:int addrlen;\toffset:32;\tsize:8;\tsigned:0;\n\nprint fmt: \"fd: 0x%08lx\"\n";

    #[test]
    fn fields_are_found() {
        assert_eq!(offset(ENTER, "fd", 8), Some(16));
        assert_eq!(offset(ENTER, "uservaddr", 8), Some(24));
        assert_eq!(offset(ENTER, "addrlen", 8), Some(32));
    }

    #[test]
    fn a_field_that_is_missing_or_of_another_size_is_not_found() {
        assert_eq!(offset(ENTER, "ret", 8), None);
        assert_eq!(offset(ENTER, "__syscall_nr", 8), None);
        assert_eq!(offset("field:int fd; offset:x; size:8;", "fd", 8), None);
    }

    #[test]
    fn a_directory_without_the_tracepoint_is_an_error() {
        let empty = tempfile::tempdir().unwrap();
        assert!(
            connect_layout(empty.path())
                .unwrap_err()
                .contains("sys_enter_connect")
        );
    }
}
