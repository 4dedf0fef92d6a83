use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::record::testing::{START, at, capture, healthy};

fn small() -> StoreLimits {
    StoreLimits {
        bytes: 64 << 10,
        ..StoreLimits::default()
    }
}

fn open(dir: &TempDir) -> Store {
    open_with(dir, small())
}

/// Another test's program may hold the lock of a store that was just closed, between its fork and its
/// exec.
fn open_with(dir: &TempDir, limits: StoreLimits) -> Store {
    for _ in 0..100_000 {
        match Store::open(dir.path(), limits, START) {
            Err(StoreError::InUse { .. }) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
    panic!("the store stays locked");
}

/// Files that hold more than the tests write.
fn roomy(dir: &TempDir) -> Store {
    open_with(dir, StoreLimits::default())
}

fn ids(store: &Store) -> Vec<CaptureId> {
    let all = store.list(&CaptureFilter::default());
    all.iter().map(|info| info.id).collect()
}

fn count(store: &Store, name: &str) -> u64 {
    let counters = store.counters();
    counters.iter().find(|(found, _)| *found == name).unwrap().1
}

/// The one file of a store.
fn only_file(dir: &Path) -> PathBuf {
    let files = files(dir);
    assert_eq!(files.len(), 1);
    files[0].clone()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "pcapng"))
        .collect();
    files.sort();
    files
}

/// Appends captures a second apart and returns their ids.
fn fill(store: &Store, captures: u64) -> Vec<CaptureId> {
    let append = |n| {
        store
            .append(&mut capture(at(n * 1000)), at(n * 1000))
            .unwrap()
    };
    (0..captures).map(append).collect()
}

#[test]
fn what_was_stored_is_listed_and_read() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let mut failed = capture(START);
    let id = store.append(&mut failed, START).unwrap();
    let sample = store.append(&mut healthy(START), START).unwrap();
    assert_ne!(id, sample, "two captures of one moment");
    assert_eq!(failed.event.unwrap().capture_id, Some(id.to_string()));
    let infos = store.list(&CaptureFilter::default());
    assert_eq!(infos.len(), 2);
    assert_eq!(
        infos[0].cause.map(crate::model::Cause::id),
        Some("http1.status_line_invalid")
    );
    assert_eq!(infos[0].exchange.path.as_deref(), Some("/shop"));
    assert_eq!((infos[0].packets, infos[0].time), (4, START));
    assert_eq!((infos[1].cause, &infos[1].event_id), (None, &None));
    let only = |failed| {
        let filter = CaptureFilter {
            failed: Some(failed),
            ..CaptureFilter::default()
        };
        store.list(&filter).len()
    };
    assert_eq!((only(true), only(false)), (1, 1));
    let section = store.read(id).unwrap();
    assert_eq!(section.len() as u64, infos[0].bytes);
    drop(store);
    let again = open(&dir);
    assert_eq!(again.list(&CaptureFilter::default()), infos);
    assert_eq!(again.read(id).unwrap(), section);
}

#[test]
fn only_the_agents_user_may_read() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("new/captures");
    let store = Store::open(&dir, small(), START).unwrap();
    fill(&store, 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&only_file(&dir)), 0o600);
    assert_eq!(store.open_to_others(), None);
}

#[test]
fn a_directory_that_is_there_keeps_its_permissions_which_is_told() {
    let dir = TempDir::new().unwrap();
    let open_mode = fs::Permissions::from_mode(0o1755);
    fs::set_permissions(dir.path(), open_mode).unwrap();
    let store = open(&dir);
    assert_eq!(store.open_to_others(), Some(0o1755));
    fill(&store, 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode(dir.path()), mode(&only_file(dir.path()))),
        (0o1755, 0o600)
    );
}

#[test]
fn a_second_agent_is_refused() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir);
    let error = Store::open(dir.path(), small(), START).unwrap_err();
    assert!(error.to_string().contains("another agent"), "{error}");
    drop(first);
    open(&dir);
}

#[test]
fn the_oldest_files_make_room() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let written = fill(&store, 200);
    assert!(count(&store, "captures_bytes") <= small().bytes);
    assert!(count(&store, "captures_bytes") > small().bytes / 2);
    let held = ids(&store);
    assert!(written.ends_with(&held), "the newest are held");
    assert_eq!(held.len() as u64 + count(&store, "captures_evicted"), 200);
    let on_disk: u64 = files(dir.path())
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .sum();
    assert_eq!(on_disk, count(&store, "captures_bytes"));
    let error = store.read(written[0]).unwrap_err();
    assert!(matches!(error, StoreError::Gone(id) if id == written[0]));
    assert!(
        error.to_string().contains("deleted to make room"),
        "{error}"
    );
    drop(store);
    assert_eq!(ids(&open(&dir)), held);
}

#[test]
fn the_index_is_bounded() {
    let dir = TempDir::new().unwrap();
    let limits = StoreLimits {
        captures: 10,
        ..small()
    };
    let store = Store::open(dir.path(), limits, START).unwrap();
    fill(&store, 50);
    assert!((1..=10).contains(&ids(&store).len()));
}

#[test]
fn a_capture_above_the_cap_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let mut large = capture(START);
    large.packets = vec![large.packets[3].clone(); 400];
    let error = store.append(&mut large, START).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }));
    assert_eq!(count(&store, "captures_not_written"), 1);
    fill(&store, 1);
}

#[test]
fn age_is_time_that_passed() {
    let dir = TempDir::new().unwrap();
    let limits = StoreLimits {
        age: Duration::from_mins(10),
        ..small()
    };
    let store = Store::open(dir.path(), limits, START).unwrap();
    fill(&store, 1);
    // Neither a clock that is set ahead nor one that is set back makes anything older.
    for hours in [0, 1000, 2, 0] {
        store.tick(at(hours * 3_600_000));
    }
    assert_eq!(ids(&store).len(), 1);
    let mut now = START;
    for _ in 0..9 {
        now = now.after(Duration::from_mins(1));
        store.tick(now);
    }
    assert_eq!(ids(&store).len(), 1);
    for _ in 0..2 {
        now = now.after(Duration::from_mins(1));
        store.tick(now);
    }
    assert_eq!(ids(&store), []);
    assert_eq!(count(&store, "captures_expired"), 1);
    assert_eq!(files(dir.path()), [] as [PathBuf; 0]);
    // And it goes on.
    store.append(&mut capture(now), now).unwrap();
    // A week later, at another start, the newest capture counts as just taken.
    drop(store);
    let week = now.after(Duration::from_hours(168));
    let store = (0..100_000).find_map(|_| Store::open(dir.path(), limits, week).ok());
    assert_eq!(ids(&store.unwrap()).len(), 1);
}

#[test]
fn a_clock_that_is_set_back_gives_other_ids() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let first = store.append(&mut capture(at(5000)), at(5000)).unwrap();
    let earlier = store.append(&mut capture(START), START).unwrap();
    let same = store.append(&mut capture(at(5000)), at(5000)).unwrap();
    assert_eq!(ids(&store), [earlier, first, same]);
}

/// What a kill at any byte leaves: all captures that were whole, and room for more.
#[test]
fn cut_at_every_byte() {
    let dir = TempDir::new().unwrap();
    let store = roomy(&dir);
    let written = fill(&store, 3);
    let ends: Vec<_> = store
        .list(&CaptureFilter::default())
        .iter()
        .scan(0, |end, info| {
            *end += info.bytes;
            Some(*end)
        })
        .collect();
    drop(store);
    let path = only_file(dir.path());
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, ends[2]);
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let store = roomy(&dir);
        let kept = ends.iter().filter(|end| **end <= length as u64).count();
        assert_eq!(ids(&store), written[..kept], "cut to {length} bytes");
        let end = kept.checked_sub(1).map_or(0, |last| ends[last]);
        assert_eq!(count(&store, "captures_torn_bytes"), length as u64 - end);
        let next = store.append(&mut capture(at(9000)), at(9000)).unwrap();
        for id in ids(&store) {
            store.read(id).unwrap();
        }
        drop(store);
        if length % 97 == 0 {
            assert_eq!(ids(&roomy(&dir)), [&written[..kept], &[next]].concat());
        }
        for file in files(dir.path()) {
            fs::remove_file(file).unwrap();
        }
    }
}

#[test]
fn any_flipped_byte_costs_one_capture_at_most() {
    let dir = TempDir::new().unwrap();
    let store = roomy(&dir);
    let written = fill(&store, 3);
    drop(store);
    let path = only_file(dir.path());
    let whole = fs::read(&path).unwrap();
    // Every byte of the one in the middle, with one before and one after it.
    let middle = whole.len() / 3..2 * whole.len() / 3;
    for at in middle.chain([0, 8, whole.len() - 1]) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x41;
        fs::write(&path, &flipped).unwrap();
        let store = roomy(&dir);
        let held = ids(&store);
        assert_eq!(held.len(), 2, "byte {at}");
        assert!(
            held.iter()
                .all(|id| written.contains(id) && store.read(*id).is_ok())
        );
        assert!(count(&store, "captures_damaged_bytes") + count(&store, "captures_torn_bytes") > 0);
    }
}

#[test]
fn bytes_that_change_under_the_agent_are_noticed() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let id = fill(&store, 1)[0];
    let path = only_file(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[300] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = store.read(id).unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
}

#[test]
fn a_file_deleted_under_the_agent() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let written = fill(&store, 2);
    fs::remove_file(only_file(dir.path())).unwrap();
    let error = store.read(written[0]).unwrap_err();
    assert!(matches!(error, StoreError::FileGone { .. }));
    assert!(error.to_string().contains("its file"), "{error}");
    assert!(matches!(store.read(written[0]), Err(StoreError::Gone(_))));
    assert_eq!(ids(&store), []);
    let next = store.append(&mut capture(at(5000)), at(5000)).unwrap();
    store.read(next).unwrap();
    // And where only the next write can notice.
    fs::remove_file(only_file(dir.path())).unwrap();
    let next = store.append(&mut capture(at(6000)), at(6000)).unwrap();
    assert_eq!(ids(&store), [next]);
    assert_eq!(count(&store, "captures_files_gone"), 2);
    assert_eq!(
        fs::read(only_file(dir.path())).unwrap(),
        store.read(next).unwrap()
    );
}

#[test]
fn a_write_that_fails_stops_the_recording_for_a_while() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let first = fill(&store, 1)[0];
    // Every write to this device fails as on a full disk.
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let real = store.inner().open.replace(full);
    let now = at(2000);
    {
        // The length of a device is never what was written; the store is asked to write all the same.
        let mut inner = store.inner();
        let id = CaptureId::at(now);
        let section = pcapng::write(&capture(now), id);
        let error = inner.write(dir.path(), section).unwrap_err();
        assert!(
            error.to_string().contains("nothing is recorded for 30 s"),
            "{error}"
        );
        inner.rest_until = Some(inner.passed + REST);
        inner.open = real;
    }
    assert!(matches!(
        store.append(&mut capture(now), now),
        Err(StoreError::Resting)
    ));
    assert_eq!(count(&store, "captures_not_written"), 1);
    assert_eq!(ids(&store), [first]);
    let later = now.after(REST);
    let next = store.append(&mut capture(later), later).unwrap();
    assert_eq!(ids(&store), [first, next]);
    store.read(first).unwrap();
    store.read(next).unwrap();
}

/// Marks the process in which files cannot grow.
const LIMITED: &str = "HOPSCOPE_TEST_FILES_ARE_LIMITED";

/// The last write that fits a disk is cut in its middle. A limit on the size of files does the same, but
/// to a whole process: so the test runs itself in one of its own.
#[test]
fn half_a_write_is_taken_back() {
    if std::env::var_os(LIMITED).is_none() {
        let test = "record::store::tests::half_a_write_is_taken_back";
        let output = std::process::Command::new("sh")
            .args(["-c", r#"trap '' XFSZ; ulimit -f 20; exec "$0" "$@""#])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(LIMITED, "1")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let dir = TempDir::new().unwrap();
    let store = roomy(&dir);
    let mut now = START;
    let error = loop {
        now = now.after(Duration::from_secs(1));
        if let Err(error) = store.append(&mut capture(now), now) {
            break error;
        }
    };
    assert!(matches!(error, StoreError::Write { .. }), "{error}");
    let held = ids(&store);
    assert!(held.len() > 2);
    let length = only_file(dir.path()).metadata().unwrap().len();
    assert_eq!(length, count(&store, "captures_bytes"));
    assert!(!length.is_multiple_of(512), "half a write was left");
    assert!(held.iter().all(|id| store.read(*id).is_ok()));
    assert!(matches!(
        store.append(&mut capture(now), now),
        Err(StoreError::Resting)
    ));
    drop(store);
    let again = roomy(&dir);
    assert_eq!(ids(&again), held);
    assert_eq!(count(&again, "captures_torn_tails"), 0);
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = TempDir::new().unwrap();
    let other = dir.path().join("notes.pcapng");
    fs::write(&other, b"mine").unwrap();
    let store = open(&dir);
    fill(&store, 300);
    assert_eq!(fs::read(&other).unwrap(), b"mine");
}

#[test]
fn a_capture_inside_a_packet_is_none() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let mut outer = capture(START);
    outer.event = None;
    let inner = pcapng::write(&capture(at(1)), CaptureId::at(at(1)))
        .seal(0)
        .0;
    outer.packets[3].bytes.extend(&inner);
    store.append(&mut outer, START).unwrap();
    drop(store);
    let path = only_file(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    // The outer capture is damaged, so every byte of it is looked at.
    bytes[20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(ids(&open(&dir)), []);
}

#[test]
fn files_are_pcapng_as_they_are() {
    let dir = TempDir::new().unwrap();
    let store = roomy(&dir);
    fill(&store, 3);
    let mut bytes = Vec::new();
    let mut file = File::open(only_file(dir.path())).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let mut reader = crate::source::Reader::open(&bytes[..]).unwrap();
    let mut packets = 0;
    while let Some(packet) = reader.next_packet().unwrap() {
        assert_eq!(packet.at, at(packets % 4));
        packets += 1;
    }
    assert_eq!((packets, reader.cut()), (12, None));
    assert_eq!(reader.skipped(), 0);
}
