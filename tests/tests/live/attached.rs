//! The kernel programs and attachments that a process holds, and those of them that still exist.

use std::collections::BTreeSet;
use std::fs;

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
pub(crate) fn of_process(pid: u32) -> Held {
    let mut held = Held {
        programs: BTreeSet::new(),
        links: BTreeSet::new(),
    };
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .flatten()
    {
        let Ok(text) = fs::read_to_string(entry.path()) else {
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
    held
}

impl Held {
    /// Those that the kernel still has, in words.
    pub(crate) fn left(&self) -> Vec<String> {
        let programs = loaded_programs()
            .map(|program| program.unwrap().id())
            .filter(|id| self.programs.contains(id))
            .map(|id| format!("program {id}"));
        let links = loaded_links()
            .map(|link| link.unwrap().id())
            .filter(|id| self.links.contains(id))
            .map(|id| format!("link {id}"));
        programs.chain(links).collect()
    }
}
