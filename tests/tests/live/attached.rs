//! The kernel programs and attachments that a process holds, and those of them that still exist.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Result;
use aya::programs::{loaded_links, loaded_programs};

/// Ids of kernel programs and of their attachments.
#[derive(Debug)]
pub(crate) struct Held {
    /// Program ids.
    pub(crate) programs: BTreeSet<u32>,
    /// Link ids.
    pub(crate) links: BTreeSet<u32>,
}

/// What `pid` holds, read from its file descriptors: ids of others are none of our business.
pub(crate) fn of_process(pid: u32) -> Result<Held> {
    let mut held = Held {
        programs: BTreeSet::new(),
        links: BTreeSet::new(),
    };
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let Ok(id) = value.trim().parse() else {
                continue;
            };
            match key {
                "prog_id" => held.programs.insert(id),
                "link_id" => held.links.insert(id),
                _ => false,
            };
        }
    }
    Ok(held)
}

impl Held {
    /// Those that the kernel still has, in words.
    pub(crate) fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for program in loaded_programs() {
            let id = program?.id();
            if self.programs.contains(&id) {
                left.push(format!("program {id}"));
            }
        }
        for link in loaded_links() {
            let id = link?.id();
            if self.links.contains(&id) {
                left.push(format!("link {id}"));
            }
        }
        Ok(left)
    }
}
