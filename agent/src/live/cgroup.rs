//! Finds the cgroup v2 tree and reads what a cgroup path says about a container.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Mount point of the cgroup v2 root, which is not always `/sys/fs/cgroup`.
pub(super) fn root() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    v2_mount(&mounts).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup v2 file system is mounted",
        )
    })
}

/// The root, opened for attaching.
pub(super) fn open_root() -> io::Result<File> {
    File::open(root()?)
}

/// Finds the v2 mount in the text of a mountinfo file (`proc_pid_mountinfo(5)`). One that shows the whole
/// tree is preferred over a bind mount of a part.
fn v2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut part = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if right.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = left.split(' ').skip(3);
        let (Some(inner), Some(place)) = (fields.next(), fields.next()) else {
            continue;
        };
        let place = PathBuf::from(unescape(place));
        if inner == "/" {
            return Some(place);
        }
        part.get_or_insert(place);
    }
    part
}

/// Undoes the octal escapes of white space and backslash.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The directory that a configured cgroup means, given under the mount point or below the root.
pub(super) fn directory(root: &Path, configured: &Path) -> PathBuf {
    if configured.starts_with(root) {
        return configured.to_owned();
    }
    root.join(configured.strip_prefix("/").unwrap_or(configured))
}

/// The kernel's id of a cgroup: the inode of its directory.
pub(super) fn id(directory: &Path) -> io::Result<u64> {
    let meta = std::fs::metadata(directory)?;
    if !meta.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "not a directory",
        ));
    }
    Ok(meta.ino())
}

/// Path below the root of the cgroup with this id; `None` where there is none that can be seen from here. It looks at
/// the whole tree.
pub(super) fn path_with(root: &Path, id: u64) -> Option<String> {
    /// Far more than there are on a host, and seconds of looking.
    const MOST: usize = 1 << 16;
    if self::id(root).is_ok_and(|own| own == id) {
        return Some("/".to_owned());
    }
    let mut left = vec![root.to_owned()];
    for _ in 0..MOST {
        let directory = left.pop()?;
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == id {
                let path = entry.path();
                let below = path.strip_prefix(root).ok()?;
                return Some(format!("/{}", below.display()));
            }
            left.push(entry.path());
        }
    }
    None
}

/// Path of the cgroup below the v2 root, from the text of `/proc/PID/cgroup`.
pub(super) fn path_of(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
}

/// The container id that a cgroup path carries: Docker, Podman, containerd and CRI-O all put its
/// sixty-four hexadecimal digits into the last component that is about the container.
pub(super) fn container_id(path: &str) -> Option<&str> {
    path.rsplit('/').find_map(|component| {
        let name = component.strip_suffix(".scope").unwrap_or(component);
        let id = name.rsplit(['-', ':']).next()?;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_tree_is_preferred() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            40 31 0:41 /part /mnt/part rw,relatime - cgroup2 cgroup2 rw\n\
            41 31 0:41 / /sys/fs/cgroup/uni\\040fied rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_mount(text), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(
            v2_mount(text.lines().nth(1).unwrap()),
            Some("/mnt/part".into())
        );
        assert_eq!(
            v2_mount("40 31 0:41 / /x rw - cgroup cgroup rw,cpu\nnonsense"),
            None
        );
    }

    #[test]
    fn a_cgroup_is_named_in_two_ways() {
        let root = Path::new("/sys/fs/cgroup");
        for given in ["/sys/fs/cgroup/a/b", "/a/b", "a/b"] {
            assert_eq!(
                directory(root, Path::new(given)),
                Path::new("/sys/fs/cgroup/a/b")
            );
        }
    }

    #[test]
    fn a_cgroup_is_found_by_its_id() {
        let root = tempfile::TempDir::new().unwrap();
        let inner = root.path().join("a.slice/b.scope");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let of = |directory: &Path| path_with(root.path(), id(directory).unwrap());
        assert_eq!(of(&inner).as_deref(), Some("/a.slice/b.scope"));
        assert_eq!(of(root.path()).as_deref(), Some("/"));
        assert_eq!(path_with(root.path(), u64::MAX), None);
    }

    #[test]
    fn container_ids_are_found() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("/kubepods/besteffort/pod1/{id}"),
            format!("/kubepods-pod1.slice:cri-containerd:{id}"),
        ] {
            assert_eq!(container_id(&path), Some(id), "{path}");
        }
        assert_eq!(container_id("/system.slice/nginx.service"), None);
        assert_eq!(container_id(&format!("/x/{}", &id[1..])), None);
    }

    #[test]
    fn the_v2_line_counts() {
        assert_eq!(
            path_of("12:cpu:/a\n0::/system.slice/x\n"),
            Some("/system.slice/x")
        );
        assert_eq!(path_of("12:cpu:/a\n"), None);
    }
}
