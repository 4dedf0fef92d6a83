//! What clients asked for as each upstream was tried for them: a failed connect has no path of its own, but those
//! before it on the same upstream had clients with one.

use core::net::SocketAddr;
use std::collections::HashMap;

/// Upstreams at once, and paths of each.
const MAX_UPSTREAMS: usize = 4096;
const MAX_PATHS: usize = 8;

/// The paths behind the upstreams of each process.
#[derive(Debug, Default)]
pub(super) struct Routes(HashMap<(u32, SocketAddr), Vec<String>>);

impl Routes {
    /// An upstream was tried for this path, beyond doubt.
    pub(super) fn learn(&mut self, pid: u32, upstream: SocketAddr, path: &str) {
        let key = (pid, upstream);
        if self.0.len() >= MAX_UPSTREAMS && !self.0.contains_key(&key) {
            self.0.clear();
        }
        let paths = self.0.entry(key).or_default();
        if paths.len() < MAX_PATHS && !paths.iter().any(|known| known == path) {
            paths.push(path.to_owned());
        }
    }

    /// Whether an upstream is tried for this path; `None` where too little is known of it.
    pub(super) fn leads(&self, pid: u32, upstream: SocketAddr, path: &str) -> Option<bool> {
        let paths = self.0.get(&(pid, upstream))?;
        let known = paths.iter().any(|known| known == path);
        (known || paths.len() < MAX_PATHS).then_some(known)
    }
}
