//! Gateways that are written in Go: tells the kernel programs where each of them keeps the goroutine that runs.
//!
//! Go's scheduler moves goroutines between threads, so that neither thread nor order says whose attempt a connect was.
//! The goroutine that serves a client starts the one that connects for it, and the runtime remembers that: from Go 1.21
//! on in `runtime.g`. Where its fields lie differs from release to release. A program of a release that is not in
//! [`LAYOUTS`] is left out: what it does is told by times alone.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::maps::MapError;
use hopscope_ebpf::GoroutinePlace;
use thiserror::Error;

use super::LiveError;
use super::go_build::{self, GoVersion, Said};
use super::load::{self, Table};
use super::process;
use super::tls::elf::Unreadable;
use crate::stats::ProbeStatus;

/// Name of the row.
const NAME: &str = "goroutines";

/// What is lost where a gateway is left out.
const LOSS: &str = "which of its clients a failed connect was made for is told by times alone, and ambiguous under load";

/// Gateways that the row names.
const NAMED: usize = 8;

/// The thread pointer and the pointer below it are those of this processor.
const IS_SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// Bytes of an entry: three numbers of four.
const PLACE_LEN: usize = size_of::<GoroutinePlace>();

/// From the first to the last minor release of Go 1: where `goid` and `parentGoid` lie in `runtime.g`, on a processor
/// with pointers of 64 bits (`src/runtime/runtime2.go` of each release).
const LAYOUTS: [(std::ops::RangeInclusive<u16>, u32, u32); 4] = [
    (21..=22, 152, 272),
    (23..=24, 160, 280),
    (25..=25, 152, 272),
    (26..=27, 152, 280),
];

/// Why it is not known of a program written in Go what it runs.
#[derive(Debug, Error)]
enum LeftOut {
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
    #[error("goroutines remember who started them from Go 1.21 on, and this is older than Go 1.18")]
    Ancient,
    #[error("the release of Go that built it cannot be read")]
    Unsaid,
    #[error("Go says no release that is known: {0:?}")]
    Unnamed(String),
    #[error("goroutines remember who started them from Go 1.21 on, and this is {0}")]
    TooOld(GoVersion),
    #[error("the layout of {0} is not known")]
    TooNew(GoVersion),
    #[error("it was linked with thread-local storage of other languages")]
    Foreign,
    #[error("it is known on x86_64 only")]
    Processor,
    #[error("the table of the kernel programs took no entry: {0}")]
    Table(#[from] MapError),
}

/// The gateways that are written in Go, shared by all who meet gateways.
#[derive(Clone, Debug)]
pub(super) struct Goroutines(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    table: Table<u32, [u8; PLACE_LEN]>,
    /// Of each gateway that was met, what came of it.
    met: HashMap<u32, Met>,
}

#[derive(Debug)]
enum Met {
    /// Another language, or not a file that can be read.
    Other,
    Watched,
    LeftOut {
        comm: String,
        why: String,
    },
}

impl Goroutines {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LiveError> {
        let table = load::take_map(ebpf, "GOROUTINES")?;
        Ok(Self(Arc::new(Mutex::new(Known {
            table,
            met: HashMap::new(),
        }))))
    }

    /// Takes note of a gateway that begins to run as the program that it is.
    pub(super) fn arrived(&self, pid: u32, comm: &str) {
        let mut known = self.known();
        known.forget(pid);
        known.meet(pid, comm);
    }

    /// Takes note of the gateways that are there. What is entered of processes that have ended goes.
    pub(super) fn present<'a>(&self, gateways: impl IntoIterator<Item = (u32, &'a str)>) {
        let mut known = self.known();
        // One that arrived since they were looked for is not among them.
        let met = known.met.keys().copied();
        let gone: Vec<u32> = met.filter(|pid| process::comm_of(*pid).is_none()).collect();
        for pid in gone {
            known.forget(pid);
        }
        for (pid, comm) in gateways {
            known.meet(pid, comm);
        }
    }

    /// What is read of which gateways.
    pub(super) fn row(&self) -> ProbeStatus {
        self.known().row()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn meet(&mut self, pid: u32, comm: &str) {
        if self.met.contains_key(&pid) {
            return;
        }
        // A process that is gone by now needs no entry.
        let found = match File::open(format!("/proc/{pid}/exe")) {
            Ok(file) => place(&file),
            Err(_) => Ok(None),
        };
        let entered = found.and_then(|found| {
            if let Some((place, _)) = &found {
                self.table.insert(pid, bytes(place), 0)?;
            }
            Ok(found)
        });
        let met = match entered {
            Ok(None) => Met::Other,
            Ok(Some((_, version))) => {
                tracing::debug!(pid, %version, "its goroutines are told apart");
                Met::Watched
            }
            Err(why) => {
                let (comm, why) = (comm.to_owned(), why.to_string());
                tracing::info!(pid, %comm, %why, "its goroutines are not told apart");
                Met::LeftOut { comm, why }
            }
        };
        self.met.insert(pid, met);
    }

    fn forget(&mut self, pid: u32) {
        if let Some(Met::Watched) = self.met.remove(&pid)
            && let Err(error) = self.table.remove(&pid)
        {
            tracing::debug!(%error, pid, "a gateway that ended was not taken out");
        }
    }

    fn row(&self) -> ProbeStatus {
        let mut problems: Vec<String> = self
            .met
            .iter()
            .filter_map(|(pid, met)| match met {
                Met::LeftOut { comm, why } => Some(format!("{comm} (process {pid}): {why}")),
                Met::Other | Met::Watched => None,
            })
            .collect();
        problems.sort_unstable();
        problems.truncate(NAMED);
        let watched = |met: &&Met| matches!(met, Met::Watched);
        let attached = problems.is_empty();
        ProbeStatus {
            name: NAME,
            attached,
            reason: if attached {
                match self.met.values().filter(watched).count() {
                    0 => "of each gateway written in Go as it starts: there is none now".to_owned(),
                    count => format!("of {count} gateways written in Go"),
                }
            } else {
                format!("{}: {LOSS}", problems.join("; "))
            },
        }
    }
}

/// Where a program keeps the goroutine that runs; `None` where it is not written in Go.
fn place(file: &File) -> Result<Option<(GoroutinePlace, GoVersion)>, LeftOut> {
    let text = match go_build::version(file) {
        // Whether it is written in Go is not known of what cannot be read.
        Ok(None) | Err(_) => return Ok(None),
        Ok(Some(Said::Elsewhere)) => return Err(LeftOut::Ancient),
        Ok(Some(Said::Nothing)) => return Err(LeftOut::Unsaid),
        Ok(Some(Said::Version(text))) => text,
    };
    let version = GoVersion::parse(&text).ok_or(LeftOut::Unnamed(text))?;
    if !IS_SUPPORTED {
        return Err(LeftOut::Processor);
    }
    let mut layouts = LAYOUTS.iter();
    let Some((_, id_at, parent_at)) = layouts.find(|(minor, ..)| minor.contains(&version.minor))
    else {
        let oldest = LAYOUTS.first().map_or(0, |(minor, ..)| *minor.start());
        return Err(if version.minor < oldest {
            LeftOut::TooOld(version)
        } else {
            LeftOut::TooNew(version)
        });
    };
    let place = GoroutinePlace {
        below: go_build::below_thread_pointer(file)?.ok_or(LeftOut::Foreign)?,
        id_at: *id_at,
        parent_at: *parent_at,
    };
    Ok(Some((place, version)))
}

/// An entry of the table.
fn bytes(place: &GoroutinePlace) -> [u8; PLACE_LEN] {
    let numbers = [place.below, place.id_at, place.parent_at];
    let mut bytes = [0; PLACE_LEN];
    for (room, number) in bytes.chunks_exact_mut(size_of::<u32>()).zip(numbers) {
        room.copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::go_build::tests::{program_before_1_18, program_of};
    use super::*;

    #[test]
    fn a_program_is_read_as_its_release_lays_goroutines_out() {
        for (version, id_at, parent_at) in [
            ("go1.21.13", 152, 272),
            ("go1.23.1", 160, 280),
            ("go1.24", 160, 280),
            ("go1.25.5", 152, 272),
            ("go1.27.3", 152, 280),
        ] {
            let (found, _) = place(&program_of(version)).unwrap().unwrap();
            let expected = GoroutinePlace {
                below: 8,
                id_at,
                parent_at,
            };
            assert_eq!(found, expected, "{version}");
        }
    }

    #[test]
    fn a_program_of_another_release_is_left_out_and_told_why() {
        for (version, words) in [
            ("go1.20.14", "from Go 1.21 on, and this is Go 1.20.14"),
            ("go1.28.0", "the layout of Go 1.28.0 is not known"),
            ("devel go1.28-0123", "no release that is known"),
            (&"9".repeat(65), "cannot be read"),
        ] {
            let why = place(&program_of(version)).unwrap_err().to_string();
            assert!(why.contains(words), "{why}");
        }
        let why = place(&program_before_1_18()).unwrap_err().to_string();
        assert!(why.contains("older than Go 1.18"), "{why}");
        let own = File::open("/proc/self/exe").unwrap();
        assert!(place(&own).unwrap().is_none());
    }

    #[test]
    fn entries_are_laid_out_as_the_kernel_reads_them() {
        let place = GoroutinePlace {
            below: 8,
            id_at: 152,
            parent_at: 280,
        };
        let numbers = [8_u32, 152, 280].map(u32::to_ne_bytes);
        assert_eq!(bytes(&place), *numbers.as_flattened());
    }
}
