//! The captures on disk: a ring of pcapng files, capped in bytes and in age.
//!
//! Files only grow, one whole section at a time, and are deleted whole, the oldest first. The index is
//! in memory and made from the files alone. A section is one `write`: when the agent dies at any byte,
//! the kernel has what was written before, and the next start cuts a torn section off. Nothing is
//! synced to the disk: a crash of the host may cost the captures of its last seconds, and a sync
//! would make every event wait for the disk.
//!
//! **Age** is time that the agent ran through: the sum of the clock's steps between two looks at it.
//! A step backwards or of more than a minute is a set clock or a suspended host and counts as nothing,
//! and at a start the newest capture counts as just taken. So no jump of the clock deletes anything.
//!
//! **A full disk** (or any failed write) stops the recording for half a minute and is counted; the
//! agent goes on. **A file that was deleted by others** takes its captures with it: reading one
//! says so, and recording goes on in a new file.

mod file;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use self::file::{FileName, Scan, scan};
use super::capture::{Capture, CaptureFilter, CaptureId, CaptureInfo};
use super::pcapng::{self, Unsealed};
use crate::model::Timestamp;

/// Files that the bytes are spread over: what is lost at once when room is made.
const FILES: u64 = 16;

/// How long nothing is written after a failed write.
const REST: Duration = Duration::from_secs(30);

/// How often the open file is looked for by its name.
const LOOK: Duration = Duration::from_secs(1);

/// A longer step of the clock is a set clock, not time that passed.
const LONGEST_STEP: Duration = Duration::from_mins(1);

/// Caps of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// How long a capture is kept at most; the rest of its file may keep it a little longer.
    pub age: Duration,
    /// Captures, which the index holds in memory.
    pub captures: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            bytes: 256 << 20,
            age: Duration::from_hours(24),
            captures: 32_768,
        }
    }
}

/// Why something could not be stored or had.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory cannot be used.
    #[error("cannot keep captures in {}: {source}; choose another --capture-dir", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent has it.
    #[error(
        "cannot keep captures in {}: another agent keeps its own there; choose another \
         --capture-dir", dir.display()
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A write failed: the disk may be full.
    #[error(
        "cannot write a capture to {}: {source}; nothing is recorded for {} s", path.display(),
        REST.as_secs()
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing is written for a while after a failed write.
    #[error("captures are not recorded for a while: an earlier write failed")]
    Resting,
    /// The capture alone is above the caps.
    #[error("a capture of {bytes} bytes is too large for a store of {cap} bytes")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The cap of the store.
        cap: u64,
    },
    /// Never there, or deleted since to make room or for its age.
    #[error(
        "there is no capture {0}: it was deleted to make room or for its age, or never was; list \
         the captures to see which are there"
    )]
    Gone(CaptureId),
    /// Somebody deleted its file.
    #[error("capture {id} is gone: its file {} was deleted", path.display())]
    FileGone {
        /// The capture.
        id: CaptureId,
        /// The file.
        path: PathBuf,
    },
    /// Its bytes are not what was written.
    #[error("capture {id} is damaged: its bytes in {} have changed", path.display())]
    Damaged {
        /// The capture.
        id: CaptureId,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read capture {id} from {}: {source}", path.display())]
    Read {
        /// The capture.
        id: CaptureId,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The captures that are kept. Shared: one thread appends, any may list and read.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    limits: StoreLimits,
    inner: Mutex<Inner>,
    /// Held for as long as the store is: two agents in one directory would delete each other's files.
    _lock: File,
}

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first.
    files: VecDeque<Kept>,
    /// The last of `files`, open, while it can grow.
    open: Option<File>,
    index: BTreeMap<CaptureId, Place>,
    bytes: u64,
    next_file: u64,
    /// The clock when it was last looked at, and the time that passed since the start.
    clock: Option<Timestamp>,
    passed: Duration,
    /// `passed` when the open file was looked for by its name last.
    looked: Option<Duration>,
    /// Nothing is written before so much time has passed.
    rest_until: Option<Duration>,
    counters: Counters,
}

/// One file.
#[derive(Debug)]
struct Kept {
    name: FileName,
    len: u64,
    captures: Vec<CaptureId>,
    /// `Inner::passed` when its newest capture was written; negative ages of the time before the start
    /// are kept in `before`.
    newest: Duration,
    before: Duration,
}

#[derive(Clone, Debug)]
struct Place {
    info: CaptureInfo,
    file: FileName,
    offset: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    written: u64,
    evicted: u64,
    expired: u64,
    not_written: u64,
    write_errors: u64,
    delete_errors: u64,
    files_gone: u64,
    files_unreadable: u64,
    torn_tails: u64,
    torn_bytes: u64,
    damaged_bytes: u64,
}

impl Store {
    /// Opens the store in `dir`, which is made where it is missing, and indexes what is there.
    pub fn open(dir: &Path, limits: StoreLimits, now: Timestamp) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory {
            dir: dir.to_owned(),
            source,
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(failed)?;
        let lock = private()
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::InUse {
                dir: dir.to_owned(),
            },
            TryLockError::Error(source) => failed(source),
        })?;
        let mut names = Vec::new();
        for entry in dir.read_dir().map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().and_then(FileName::parse));
        }
        names.sort_unstable();
        let mut inner = Inner {
            clock: Some(now),
            ..Inner::default()
        };
        let mut newest = Vec::new();
        for name in names {
            inner.next_file = inner.next_file.max(name.number.saturating_add(1));
            newest.extend(inner.take_in(dir, name));
        }
        // The newest capture counts as just taken; the others are older by what their times say.
        let last = newest.iter().max().copied().unwrap_or_default();
        for (kept, newest) in inner.files.iter_mut().zip(newest) {
            kept.before = last.since(newest);
        }
        let store = Self {
            dir: dir.to_owned(),
            limits,
            inner: Mutex::new(inner),
            _lock: lock,
        };
        store.tick(now);
        Ok(store)
    }

    /// Lets time pass: deletes what is too old. To be called about once a second.
    pub fn tick(&self, now: Timestamp) {
        let mut inner = self.inner();
        inner.pass_time(now);
        let age = self.limits.age;
        let passed = inner.passed;
        // A file that is being written gets another one after it, or it would never be old.
        while let Some(oldest) = inner.files.front() {
            if passed.saturating_sub(oldest.newest) + oldest.before <= age {
                break;
            }
            match inner.delete_oldest(&self.dir) {
                Some(deleted) => inner.counters.expired += deleted,
                None => break,
            }
        }
    }

    /// Stores a capture and says under which name. Its event, if it has one, is given that name.
    pub fn append(&self, capture: &mut Capture, now: Timestamp) -> Result<CaptureId, StoreError> {
        let mut inner = self.inner();
        inner.pass_time(now);
        let result = self.append_to(&mut inner, capture);
        match &result {
            Ok(_) => inner.counters.written += 1,
            Err(error) => {
                inner.counters.not_written += 1;
                if matches!(error, StoreError::Write { .. }) {
                    inner.counters.write_errors += 1;
                    inner.rest_until = Some(inner.passed + REST);
                }
            }
        }
        result
    }

    fn append_to(&self, inner: &mut Inner, capture: &mut Capture) -> Result<CaptureId, StoreError> {
        if inner.rest_until.is_some_and(|until| inner.passed < until) {
            return Err(StoreError::Resting);
        }
        inner.rest_until = None;
        inner.check_open(&self.dir);
        let mut id = CaptureId::at(capture.time);
        while inner.index.contains_key(&id) {
            id = id.next();
        }
        if let Some(event) = &mut capture.event {
            event.capture_id = Some(id.to_string());
        }
        let section = pcapng::write(capture, id);
        let length = section.info().bytes;
        let cap = self.limits.bytes;
        if length > cap / 2 {
            return Err(StoreError::TooLarge { bytes: length, cap });
        }
        let full = |inner: &Inner| {
            inner.bytes + length > cap || inner.index.len() >= self.limits.captures.max(1)
        };
        if inner
            .files
            .back()
            .is_some_and(|last| last.len + length > cap / FILES)
        {
            inner.open = None;
        }
        while full(inner) && !inner.files.is_empty() {
            let Some(deleted) = inner.delete_oldest(&self.dir) else {
                let path = self.dir.clone();
                let source = io::Error::other("an old file cannot be deleted to make room");
                return Err(StoreError::Write { path, source });
            };
            inner.counters.evicted += deleted;
        }
        inner.write(&self.dir, section)?;
        Ok(id)
    }

    /// The captures that `filter` admits, oldest first.
    pub fn list(&self, filter: &CaptureFilter) -> Vec<CaptureInfo> {
        let inner = self.inner();
        let infos = inner.index.values().map(|place| &place.info);
        infos.filter(|info| filter.admits(info)).cloned().collect()
    }

    /// A capture as pcapng: one whole section, which is a file of its own. Waits for the disk.
    pub fn read(&self, id: CaptureId) -> Result<Vec<u8>, StoreError> {
        let place = self.inner().index.get(&id).cloned();
        let place = place.ok_or(StoreError::Gone(id))?;
        let path = place.file.path(&self.dir);
        let failed = |source| StoreError::Read {
            id,
            path: path.clone(),
            source,
        };
        let damaged = || StoreError::Damaged {
            id,
            path: path.clone(),
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut inner = self.inner();
                // It may have been the store itself that deleted it meanwhile.
                if !inner.index.contains_key(&id) {
                    return Err(StoreError::Gone(id));
                }
                inner.file_gone(place.file);
                return Err(StoreError::FileGone { id, path });
            }
            Err(source) => return Err(failed(source)),
        };
        let length = usize::try_from(place.info.bytes).map_err(|_| damaged())?;
        let mut section = vec![0; length];
        match file.read_exact_at(&mut section, place.offset) {
            Ok(()) if pcapng::is_sealed(&section, place.file.salt) => Ok(section),
            Err(source) if source.kind() != io::ErrorKind::UnexpectedEof => Err(failed(source)),
            _ => Err(damaged()),
        }
    }

    /// What is kept, and what happened to what is not.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let inner = self.inner();
        let counters = inner.counters;
        vec![
            ("captures_held", inner.index.len() as u64),
            ("captures_bytes", inner.bytes),
            ("captures_files", inner.files.len() as u64),
            ("captures_written", counters.written),
            ("captures_evicted", counters.evicted),
            ("captures_expired", counters.expired),
            ("captures_not_written", counters.not_written),
            ("captures_write_errors", counters.write_errors),
            ("captures_delete_errors", counters.delete_errors),
            ("captures_files_gone", counters.files_gone),
            ("captures_files_unreadable", counters.files_unreadable),
            ("captures_torn_tails", counters.torn_tails),
            ("captures_torn_bytes", counters.torn_bytes),
            ("captures_damaged_bytes", counters.damaged_bytes),
        ]
    }

    /// The permissions of its directory where those let others in than its owner. They are left alone: it may
    /// be one that others need.
    pub fn open_to_others(&self) -> Option<u32> {
        let mode = self.dir.metadata().ok()?.mode() & 0o7777;
        (mode & 0o077 != 0).then_some(mode)
    }

    /// Where it keeps them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change of the index is made whole before anything that may panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes a file of an earlier run into the index, and returns the time of its newest capture.
    fn take_in(&mut self, dir: &Path, name: FileName) -> Option<Timestamp> {
        let path = name.path(dir);
        let Ok(bytes) = std::fs::read(&path) else {
            self.counters.files_unreadable += 1;
            return None;
        };
        let Scan {
            sections,
            end,
            damaged,
        } = scan(&bytes, name.salt);
        self.counters.damaged_bytes += damaged;
        if sections.is_empty() {
            // Nothing can be had from it; what an agent that was killed at once leaves is empty.
            self.counters.torn_tails += u64::from(!bytes.is_empty());
            self.counters.torn_bytes += bytes.len() as u64;
            let _ = std::fs::remove_file(&path);
            return None;
        }
        let mut open = private().append(true).open(&path).ok();
        let torn = bytes.len() as u64 - end;
        if torn > 0 {
            self.counters.torn_tails += 1;
            self.counters.torn_bytes += torn;
            open = open.filter(|file| file.set_len(end).is_ok());
        }
        // One that could not be cut keeps its length and grows no more.
        let len = if open.is_some() {
            end
        } else {
            bytes.len() as u64
        };
        let mut kept = Kept {
            name,
            len,
            captures: Vec::new(),
            newest: Duration::ZERO,
            before: Duration::ZERO,
        };
        let mut newest = Timestamp::default();
        let mut node = None;
        for (offset, mut info) in sections {
            // The node's name is held once.
            let known = node.get_or_insert_with(|| Arc::clone(&info.node));
            if *known == info.node {
                info.node = Arc::clone(known);
            }
            newest = newest.max(info.time);
            let id = info.id;
            let place = Place {
                info,
                file: name,
                offset,
            };
            // A copied file holds nothing new.
            if let std::collections::btree_map::Entry::Vacant(slot) = self.index.entry(id) {
                slot.insert(place);
                kept.captures.push(id);
            }
        }
        self.bytes += kept.len;
        self.files.push_back(kept);
        self.open = open;
        Some(newest)
    }

    fn pass_time(&mut self, now: Timestamp) {
        if let Some(before) = self.clock.replace(now) {
            let step = now.since(before);
            if step <= LONGEST_STEP {
                self.passed += step;
            }
        }
    }

    /// Gives the open file up where it is not what was written any more.
    fn check_open(&mut self, dir: &Path) {
        let Some((file, last)) = self.open.as_ref().zip(self.files.back()) else {
            self.open = None;
            return;
        };
        let name = last.name;
        let found = file.metadata();
        let unlinked = found.as_ref().map_or(true, |found| found.nlink() == 0);
        // A file that was moved away is looked for now and then only.
        let due = self
            .looked
            .is_none_or(|looked| self.passed.saturating_sub(looked) >= LOOK);
        if due {
            self.looked = Some(self.passed);
        }
        if unlinked || (due && std::fs::symlink_metadata(name.path(dir)).is_err()) {
            self.file_gone(name);
        } else if found.map_or(true, |found| found.len() != last.len) {
            self.open = None;
        }
    }

    /// Forgets a file that somebody deleted.
    fn file_gone(&mut self, name: FileName) {
        let Some(index) = self.files.iter().position(|kept| kept.name == name) else {
            return;
        };
        if index + 1 == self.files.len() {
            self.open = None;
        }
        if let Some(kept) = self.files.remove(index) {
            self.counters.files_gone += 1;
            self.forget(&kept);
        }
    }

    /// Deletes the oldest file and returns how many captures went with it; `None` where it cannot be
    /// deleted.
    fn delete_oldest(&mut self, dir: &Path) -> Option<u64> {
        let path = self.files.front()?.name.path(dir);
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.counters.delete_errors += 1;
                return None;
            }
            _ => {}
        }
        let kept = self.files.pop_front()?;
        if self.files.is_empty() {
            self.open = None;
        }
        self.forget(&kept);
        Some(kept.captures.len() as u64)
    }

    fn forget(&mut self, kept: &Kept) {
        self.bytes -= kept.len;
        for id in &kept.captures {
            self.index.remove(id);
        }
    }

    /// Writes a capture to the end of the open file, or of a new one.
    fn write(&mut self, dir: &Path, section: Unsealed) -> Result<(), StoreError> {
        let failed = |path: PathBuf| move |source| StoreError::Write { path, source };
        if self.open.is_none() {
            let name = FileName {
                number: self.next_file,
                salt: RandomState::new().build_hasher().finish(),
            };
            let path = name.path(dir);
            let file = private().append(true).create_new(true).open(&path);
            self.open = Some(file.map_err(failed(path))?);
            self.next_file = self.next_file.saturating_add(1);
            self.files.push_back(Kept {
                name,
                len: 0,
                captures: Vec::new(),
                newest: self.passed,
                before: Duration::ZERO,
            });
        }
        let Some((file, last)) = self.open.as_mut().zip(self.files.back_mut()) else {
            return Err(StoreError::Resting);
        };
        let (section, info) = section.seal(last.name.salt);
        if let Err(source) = file.write_all(&section) {
            // What was written of it must not stay before the next one.
            if file.set_len(last.len).is_err() {
                self.open = None;
            }
            let path = last.name.path(dir);
            if last.captures.is_empty() {
                // An empty file is no use, and a full disk may want its place.
                let _ = std::fs::remove_file(&path);
                self.files.pop_back();
                self.open = None;
            }
            return Err(failed(path)(source));
        }
        let id = info.id;
        let place = Place {
            info,
            file: last.name,
            offset: last.len,
        };
        last.len += section.len() as u64;
        last.newest = self.passed;
        last.before = Duration::ZERO;
        last.captures.push(id);
        self.bytes += section.len() as u64;
        self.index.insert(id, place);
        Ok(())
    }
}

/// For files that only the agent's user may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}
