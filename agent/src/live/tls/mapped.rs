//! Which files a process runs code of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What is read of one file in `/proc`: a process can make thousands of mappings with long names.
const TEXT_MAX: u64 = 4 << 20;

/// Files of one process that OpenSSL may be in: two libraries, and another two while it is upgraded.
const FILES_MAX: usize = 16;

/// A file, as long as some process maps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    /// Its device, `major:minor` in hexadecimal.
    device: String,
    inode: u64,
}

/// Code that a process has mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Which file it is of.
    pub(super) id: FileId,
    /// What the process calls the file.
    pub(super) path: String,
    /// Name of the mapping in `/proc/PID/map_files`.
    range: String,
    /// Whether the file is a library of OpenSSL by its name; else it is the program itself.
    pub(super) library: bool,
}

/// The files of process `pid` that OpenSSL may be in: its libraries, or the program.
pub(super) fn of_process(pid: u32) -> Vec<Mapped> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let maps = text(&format!("/proc/{pid}/maps")).unwrap_or_default();
    candidates(&maps, &program.to_string_lossy())
}

fn candidates(maps: &str, program: &str) -> Vec<Mapped> {
    let mut found: HashMap<FileId, Mapped> = HashMap::new();
    for line in maps.lines() {
        let mut words = line.splitn(6, ' ');
        let (Some(range), Some(rights), Some(_), Some(device), Some(inode), Some(path)) = (
            words.next(),
            words.next(),
            words.next(),
            words.next(),
            words.next().and_then(|inode| inode.parse().ok()),
            words.next(),
        ) else {
            continue;
        };
        let path = path.trim_start();
        let library = is_library(path);
        if inode == 0 || !rights.contains('x') || !(library || path == program) {
            continue;
        }
        if found.len() >= FILES_MAX {
            break;
        }
        let id = FileId {
            device: device.to_owned(),
            inode,
        };
        found.entry(id.clone()).or_insert_with(|| Mapped {
            id,
            path: path.to_owned(),
            range: range.to_owned(),
            library,
        });
    }
    let mut found: Vec<Mapped> = found.into_values().collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether a file of this name is one of OpenSSL's two libraries, whoever built it.
fn is_library(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    ["libssl", "libcrypto"].iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(['.', '-']) && rest.contains(".so"))
    })
}

impl Mapped {
    /// Opens the very file that process `pid` maps, whatever has become of its name.
    pub(super) fn open(&self, pid: u32) -> io::Result<File> {
        let mounts = text(&format!("/proc/{pid}/mountinfo"))?;
        if self.is_on_fuse(&mounts) {
            // A process serves it, which could let us wait for ever.
            return Err(io::Error::other("it is on a file system in user space"));
        }
        let path = format!("/proc/{pid}/map_files/{}", unpadded(&self.range));
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(Path::new(&path))?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("it is no regular file"))
        }
    }

    fn is_on_fuse(&self, mounts: &str) -> bool {
        let Some(device) = self.id.decimal_device() else {
            return false;
        };
        mounts.lines().any(|line| {
            line.split(' ').nth(2) == Some(device.as_str())
                && line
                    .split_once(" - ")
                    .is_some_and(|(_, rest)| rest.starts_with("fuse"))
        })
    }
}

impl FileId {
    /// The device as mount tables write it.
    fn decimal_device(&self) -> Option<String> {
        let (major, minor) = self.device.split_once(':')?;
        let major = u32::from_str_radix(major, 16).ok()?;
        let minor = u32::from_str_radix(minor, 16).ok()?;
        Some(format!("{major}:{minor}"))
    }
}

/// The directory writes its addresses without the leading zeros of the table.
fn unpadded(range: &str) -> String {
    let trimmed: Vec<&str> = range
        .split('-')
        .map(|address| address.trim_start_matches('0'))
        .collect();
    trimmed.join("-")
}

/// The beginning of a file in `/proc`.
fn text(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
5581a000-5581b000 r--p 00000000 fe:00 11                         /usr/sbin/nginx
5581b000-5581f000 r-xp 00001000 fe:00 11                         /usr/sbin/nginx
7f000000-7f001000 r--p 00000000 fe:00 12                         /usr/lib/libssl.so.3
7f001000-7f002000 r-xp 00001000 fe:00 12                         /usr/lib/libssl.so.3
7f002000-7f003000 r-xp 00002000 fe:00 12                         /usr/lib/libssl.so.3
7f004000-7f005000 r-xp 00001000 00:2f 13                         /opt/my libs/libcrypto-3a.so.1.1 (deleted)
7f006000-7f007000 r-xp 00001000 fe:00 14                         /usr/lib/libssl3.so
7f008000-7f009000 r-xp 00000000 00:00 0                          [vdso]
7f00a000-7f00b000 rwxp 00000000 00:00 0
broken
";

    #[test]
    fn programs_and_libraries_are_found_once() {
        let found = candidates(MAPS, "/usr/sbin/nginx");
        let paths: Vec<(&str, bool)> = found
            .iter()
            .map(|mapped| (mapped.path.as_str(), mapped.library))
            .collect();
        assert_eq!(
            paths,
            [
                ("/opt/my libs/libcrypto-3a.so.1.1 (deleted)", true),
                ("/usr/lib/libssl.so.3", true),
                ("/usr/sbin/nginx", false),
            ]
        );
    }

    #[test]
    fn files_that_a_process_serves_are_left_alone() {
        let found = candidates(MAPS, "");
        let mounts =
            "30 1 0:47 / /opt rw - fuse.sshfs far rw\n31 1 254:0 / / rw - ext4 /dev/a rw\n";
        let on_fuse: Vec<bool> = found.iter().map(|one| one.is_on_fuse(mounts)).collect();
        assert_eq!(on_fuse, [true, false]);
    }

    #[test]
    fn ranges_are_written_as_the_directory_has_them() {
        assert_eq!(unpadded("00400000-00401000"), "400000-401000");
    }

    #[test]
    fn the_program_of_this_process_opens() {
        let pid = std::process::id();
        let program = of_process(pid)
            .into_iter()
            .find(|mapped| !mapped.library)
            .unwrap();
        // Following a mapping takes a privilege.
        if rustix::process::geteuid().is_root() {
            assert!(program.open(pid).unwrap().metadata().unwrap().is_file());
        }
    }
}
