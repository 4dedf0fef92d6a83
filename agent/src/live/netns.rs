//! Work inside another network namespace, on a thread of its own that ends with it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` in the network namespace that `path` stands for. What it opens belongs to that namespace
/// for good and can be used from any thread.
pub(super) fn inside<T: Send>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let netns = File::open(path)?;
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("hopscope-netns".into())
            .spawn_scoped(scope, || {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            })?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the worker ended early")))
    })
}
