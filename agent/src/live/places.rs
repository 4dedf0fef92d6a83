//! Where the segment programs are attached: to the cgroups of gateways, so that the packets of nobody else
//! pay for them, and to those of the resolvers that ask for them.
//!
//! A socket belongs for good to the cgroup in which it was made, and what is attached to a cgroup sees the
//! sockets of those below it as well. So every connection of a gateway is seen from its SYN on where the programs were
//! there when it was opened; of any other the beginning was missed, and [`Places::watches`] tells it.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::programs::cgroup_skb::CgroupSkbLink;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError};

use super::clock::monotonic_ns;
use super::config::LiveConfig;
use super::decode::{Body, Record};
use super::error::reason;
use super::load::{no_cgroup, program};
use super::process::Processes;
use super::{cgroup, process};
use crate::stats::ProbeStatus;

/// The programs, and which packets each sees.
const SEGMENTS: [(&str, CgroupSkbAttachType); 2] = [
    ("segment_egress", CgroupSkbAttachType::Egress),
    ("segment_ingress", CgroupSkbAttachType::Ingress),
];

/// What is lost without them.
const LOSS: &str = "no bytes are seen that way, so that responses cannot be judged";

/// Places at once. Where there are more gateways' cgroups than that, one at the root is cheaper.
const PLACES_MAX: usize = 1024;

/// Cgroups below a place that are remembered. Forgetting them costs a look at each.
const KNOWN_MAX: usize = 4096;

/// Places that a row names.
const NAMED: usize = 8;

/// How long a place without gateways is kept: one that restarts finds it there.
const KEPT_NS: u64 = 60_000_000_000;

/// The places, shared by everything that learns of a gateway.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    /// Mount point of the cgroup v2 tree.
    root: PathBuf,
    /// A handle on each program, or why there is none.
    programs: Vec<Result<CgroupSkb, String>>,
    /// Whether places are found by gateways, or only those count that were asked for.
    follows: bool,
    places: Vec<Place>,
    /// Since when the packets of a cgroup are seen, by its id.
    known: HashMap<u64, u64>,
    /// Why the programs are not where they should be.
    problem: Option<String>,
}

/// A cgroup that the programs are attached to.
#[derive(Debug)]
struct Place {
    /// Below the root, without a slash at the end: empty for the root itself.
    path: String,
    id: u64,
    /// When both programs were there, in kernel time.
    since_ns: u64,
    /// Whether it stays without gateways.
    asked_for: bool,
    /// Gateways that are or were in it, and may have sockets of it still.
    pids: HashSet<u32>,
    /// When a gateway was last in it.
    used_ns: u64,
    _links: Vec<CgroupSkbLink>,
}

impl Places {
    /// Loads the programs and attaches them where `config` says, if it does.
    pub(super) fn new(ebpf: &mut Ebpf, config: &LiveConfig) -> Self {
        let programs = SEGMENTS.map(|(name, direction)| handle(ebpf, name, direction));
        let mut table = Table {
            root: PathBuf::new(),
            programs: programs.into(),
            follows: config.packets_of.is_empty() && config.upstreams.is_empty(),
            places: Vec::new(),
            known: HashMap::new(),
            problem: None,
        };
        match cgroup::root() {
            Ok(root) => table.root = root,
            Err(error) => {
                table.follows = false;
                table.problem = Some(no_cgroup(&error));
                return Self(Arc::new(Mutex::new(table)));
            }
        }
        // Who connects to an upstream may be anybody.
        let everybody = [PathBuf::from("/")];
        let asked_for = match (config.packets_of.as_slice(), config.upstreams.as_slice()) {
            ([], []) => config.cgroups.as_slice(),
            ([], _) => &everybody,
            (packets_of, _) => packets_of,
        };
        for path in asked_for {
            table.ask_for(path);
        }
        Self(Arc::new(Mutex::new(table)))
    }

    /// Takes note of a gateway or resolver that is there. Where the programs do not see its packets yet, they
    /// do when this returns, unless it is gone.
    pub(super) fn admit(&self, pid: u32) {
        self.table().admit(pid);
    }

    /// Takes note of a socket that a gateway holds and that was made in the cgroup with this id: by another process,
    /// or before the gateway was moved.
    pub(super) fn admit_socket(&self, pid: u32, id: u64) {
        self.table().admit_socket(pid, id);
    }

    /// Takes note of all of them, and gives up the places that nobody needs any more.
    pub(super) fn present(&self, pids: &[u32]) {
        let mut table = self.table();
        for pid in pids {
            table.admit(*pid);
        }
        table.tidy(pids, monotonic_ns());
    }

    /// Whether the programs have seen every packet since `time_ns` of the sockets that are made in the cgroup
    /// with this id, which is at `path` where that is known.
    pub(super) fn watches(&self, id: u64, path: &str, time_ns: u64) -> bool {
        let mut table = self.table();
        let complete = table.programs.iter().all(Result::is_ok);
        let since_ns = table.since(id, path);
        complete && since_ns.is_some_and(|since_ns| since_ns <= time_ns)
    }

    /// Whether a record tells of a hop that was opened where the programs were not. They are when this returns,
    /// for its gateway's next; also where a gateway listens that was not known as one when it started.
    pub(super) fn missed(&self, record: &Record<'_>, processes: &mut Processes) -> bool {
        let (caller, netns, opens) = match &record.body {
            Body::Open { ends, caller, .. } => (caller, ends.netns, true),
            Body::Listen { ends, caller } => (caller, ends.netns, false),
            _ => return false,
        };
        let process = processes.of_caller(caller, netns);
        if self.watches(caller.cgroup_id, &process.cgroup, record.time_ns) {
            return false;
        }
        self.admit(caller.pid);
        opens
    }

    /// Where the programs are.
    pub(super) fn rows(&self) -> Vec<ProbeStatus> {
        self.table().rows()
    }

    /// Attaches the programs to the root for a moment where they are nowhere yet: the only test that tells the
    /// truth.
    pub(super) fn try_out(&self) {
        let mut table = self.table();
        if table.places.is_empty() && table.problem.is_none() {
            match table.attach("") {
                Ok(_place) => {}
                Err(error) => table.problem = Some(error.to_string()),
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads a program, and gives a handle on it beside the one that the object keeps.
fn handle(
    ebpf: &mut Ebpf,
    name: &'static str,
    direction: CgroupSkbAttachType,
) -> Result<CgroupSkb, String> {
    let program: &mut CgroupSkb = program(ebpf, name)?;
    let handle = program.load().and_then(|()| {
        let info = program.info()?;
        CgroupSkb::from_program_info(info, name.into(), Some(direction))
    });
    handle.map_err(|error| reason(&error))
}

impl Table {
    /// Attaches to a cgroup that was named.
    fn ask_for(&mut self, path: &Path) {
        let directory = cgroup::directory(&self.root, path);
        let below = directory.strip_prefix(&self.root).unwrap_or(&directory);
        let path = absolute(&below.to_string_lossy());
        let attached = self.attach(&path).map(|place| {
            self.enter(Place {
                asked_for: true,
                ..place
            });
        });
        if let Err(error) = attached {
            self.fail(format!("cannot attach to {}: {error}", directory.display()));
        }
    }

    fn admit(&mut self, pid: u32) {
        if !self.follows {
            return;
        }
        // Where there is none it is gone.
        let Ok(cgroup) = process::cgroup_of(pid) else {
            return;
        };
        let Some(path) = below_root(cgroup.as_deref()) else {
            return;
        };
        if self.use_place(&path, pid) {
            return;
        }
        let error = match self.attach(&path) {
            Ok(place) => {
                self.enter(place);
                self.use_place(&path, pid);
                return;
            }
            Err(error) => error,
        };
        if !process::cgroup_of(pid).is_ok_and(|now| now == cgroup) {
            // It ended or moved meanwhile, and the cgroup with it: the next look finds it.
            return;
        }
        tracing::warn!(pid, path, %error, "the packets of the whole host are looked at: the cgroup of a gateway cannot be attached to");
        self.everywhere();
        self.use_place("", pid);
    }

    fn admit_socket(&mut self, pid: u32, id: u64) {
        if !self.follows || id == 0 {
            return;
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.id == id) {
            place.pids.insert(pid);
            return;
        }
        if self.known.contains_key(&id) {
            return;
        }
        let Some(path) = cgroup::path_with(&self.root, id) else {
            tracing::debug!(pid, id, "the cgroup of a socket is not there");
            return;
        };
        let path = absolute(&path);
        if !self.use_place(&path, pid) {
            match self.attach(&path) {
                Ok(place) => {
                    self.enter(place);
                    self.use_place(&path, pid);
                }
                Err(error) => {
                    tracing::debug!(path, %error, "cannot attach to the cgroup of a socket");
                }
            }
        }
        if let Some(place) = self.places.iter().find(|place| covers(&place.path, &path)) {
            self.known.insert(id, place.since_ns);
        }
    }

    /// Attaches to the root.
    fn everywhere(&mut self) {
        match self.attach("") {
            Ok(place) => self.enter(place),
            Err(error) => self.fail(format!("cannot attach to the cgroup v2 root: {error}")),
        }
    }

    /// Notes that the gateway needs the place that covers its cgroup, if there is one.
    fn use_place(&mut self, path: &str, pid: u32) -> bool {
        let mut places = self.places.iter_mut();
        let place = places.find(|place| covers(&place.path, path));
        if let Some(place) = place {
            place.pids.insert(pid);
            place.used_ns = monotonic_ns();
            return true;
        }
        false
    }

    fn attach(&mut self, path: &str) -> io::Result<Place> {
        let path = if self.places.len() < PLACES_MAX {
            path
        } else {
            ""
        };
        let directory = File::open(directory(&self.root, path))?;
        let id = directory.metadata()?.ino();
        let mut links = Vec::new();
        for (program, (_, direction)) in self.programs.iter_mut().zip(SEGMENTS) {
            // One direction is worth something without the other.
            let Ok(program) = program else { continue };
            let link = attach(program, &directory, direction).map_err(io::Error::other)?;
            links.push(link);
        }
        let now_ns = monotonic_ns();
        Ok(Place {
            path: path.to_owned(),
            id,
            since_ns: now_ns,
            asked_for: false,
            pids: HashSet::new(),
            used_ns: now_ns,
            _links: links,
        })
    }

    /// Takes a new place, which makes those below it superfluous: a packet would pass the programs twice. Until
    /// they are gone one does, which looks like a segment that was sent again.
    fn enter(&mut self, place: Place) {
        tracing::info!(
            cgroup = name(&place.path),
            "the packets of a cgroup are looked at"
        );
        let mut place = place;
        self.places.retain(|old| {
            let goes = covers(&place.path, &old.path);
            if goes {
                place.pids.extend(&old.pids);
                place.asked_for |= old.asked_for;
            }
            !goes
        });
        // What was seen before through one of those goes on being seen.
        self.known.entry(place.id).or_insert(place.since_ns);
        self.places.push(place);
        self.problem = None;
    }

    fn fail(&mut self, problem: String) {
        tracing::warn!(problem, "the segment programs are not attached");
        self.problem = Some(problem);
    }

    /// Gives up places whose cgroup is gone, or whose gateways have ended a while ago.
    fn tidy(&mut self, present: &[u32], now_ns: u64) {
        let Self {
            root,
            places,
            known,
            follows,
            ..
        } = self;
        let before = places.len();
        places.retain_mut(|place| {
            let gone = match cgroup::id(&directory(root, &place.path)) {
                Ok(id) => id != place.id,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if gone {
                return false;
            }
            place.pids.retain(|pid| present.contains(pid));
            if !place.pids.is_empty() {
                place.used_ns = now_ns;
            }
            place.asked_for || !*follows || now_ns.saturating_sub(place.used_ns) < KEPT_NS
        });
        if places.len() < before || known.len() > KNOWN_MAX {
            known.clear();
            known.extend(places.iter().map(|place| (place.id, place.since_ns)));
        }
    }

    /// Since when packets of the sockets of a cgroup are seen.
    fn since(&mut self, id: u64, path: &str) -> Option<u64> {
        if let Some(since_ns) = self.known.get(&id) {
            return Some(*since_ns);
        }
        let path = below_root(Some(path).filter(|path| !path.is_empty()))?;
        let place = self
            .places
            .iter()
            .find(|place| covers(&place.path, &path))?;
        // The path is that of the process by now: it may have moved since.
        let now = cgroup::id(&directory(&self.root, &path));
        if !place.path.is_empty() && !now.is_ok_and(|now| now == id) {
            return None;
        }
        self.known.insert(id, place.since_ns);
        Some(place.since_ns)
    }

    fn rows(&self) -> Vec<ProbeStatus> {
        let row = |(program, (name, _)): (&Result<CgroupSkb, String>, (&'static str, _))| {
            let problem = program.as_ref().err().or(self.problem.as_ref());
            ProbeStatus {
                name,
                attached: problem.is_none(),
                reason: match problem {
                    Some(problem) => format!("{problem}: {LOSS}"),
                    None => self.whereabouts(),
                },
            }
        };
        self.programs.iter().zip(SEGMENTS).map(row).collect()
    }

    /// Where the programs are, in words.
    fn whereabouts(&self) -> String {
        if self.places.is_empty() {
            return "to the cgroup of each gateway as it starts: there is none now".to_owned();
        }
        let mut names: Vec<&str> = self.places.iter().map(|place| name(&place.path)).collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        let mut text = format!("to cgroup {}", names.join(", "));
        if more > 0 {
            let _ = write!(text, " and {more} more");
        }
        text
    }
}

fn attach(
    program: &mut CgroupSkb,
    directory: &File,
    direction: CgroupSkbAttachType,
) -> Result<CgroupSkbLink, String> {
    // Links live beside each other whatever the mode; the mode goes on as link flags, which have to be
    // zero.
    let link = program
        .attach(directory, direction, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id));
    link.map_err(|error: ProgramError| reason(&error))
}

fn directory(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// How a path below the root is kept: with a slash in front and none behind.
fn absolute(path: &str) -> String {
    let path = path.trim_matches('/');
    if path.is_empty() {
        String::new()
    } else {
        format!("/{path}")
    }
}

/// What a place is called.
fn name(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// The path of a process's cgroup as it is kept: the root where it has none, or one that cannot be seen from
/// here (`cgroup_namespaces(7)`). `None` where the cgroup is gone: nothing runs in it.
fn below_root(path: Option<&str>) -> Option<String> {
    let path = path.unwrap_or("/");
    if path.ends_with(" (deleted)") {
        return None;
    }
    let hidden = path == "/.." || path.starts_with("/../");
    Some(if hidden {
        String::new()
    } else {
        absolute(path)
    })
}

/// Whether what is attached to `place` sees the sockets of the cgroup at `path`.
fn covers(place: &str, path: &str) -> bool {
    path.strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str, id: u64, since_ns: u64) -> Place {
        Place {
            path: path.to_owned(),
            id,
            since_ns,
            asked_for: false,
            pids: HashSet::new(),
            used_ns: since_ns,
            _links: Vec::new(),
        }
    }

    fn table(places: Vec<Place>) -> Table {
        let mut table = Table {
            root: PathBuf::from("/nowhere"),
            programs: Vec::new(),
            follows: true,
            places: Vec::new(),
            known: HashMap::new(),
            problem: None,
        };
        for place in places {
            table.enter(place);
        }
        table
    }

    #[test]
    fn paths_are_kept_in_one_form() {
        assert_eq!(below_root(Some("/a/b")).as_deref(), Some("/a/b"));
        for root in [None, Some("/"), Some("/.."), Some("/../../kubepods/x")] {
            assert_eq!(below_root(root).as_deref(), Some(""), "{root:?}");
        }
        assert_eq!(below_root(Some("/a (deleted)")), None);
        assert_eq!(
            (absolute("a/b/"), absolute("/")),
            ("/a/b".to_owned(), String::new())
        );
    }

    #[test]
    fn a_place_covers_what_is_below_it() {
        assert!(covers("", "") && covers("", "/a") && covers("/a", "/a") && covers("/a", "/a/b"));
        assert!(!covers("/a", "") && !covers("/a", "/ab") && !covers("/a/b", "/a"));
    }

    #[test]
    fn what_was_opened_before_its_place_was_there_is_not_watched() {
        let mut table = table(vec![place("/a", 7, 100)]);
        assert_eq!(table.since(7, "/a"), Some(100));
        assert_eq!(table.since(8, "/b"), None);
        assert_eq!(table.since(9, ""), None);
        // That cgroup is not there, or another has its name by now.
        assert_eq!(table.since(9, "/a/b"), None);
        let places = Places(Arc::new(Mutex::new(table)));
        assert!(places.watches(7, "/a", 100) && !places.watches(7, "/a", 99));
    }

    #[test]
    fn a_place_above_takes_over() {
        let mut table = table(vec![
            place("/a/b", 7, 100),
            place("/c", 8, 100),
            place("/a", 9, 200),
        ]);
        table.places[0].pids.insert(1);
        let paths = |table: &Table| -> Vec<String> {
            table
                .places
                .iter()
                .map(|place| place.path.clone())
                .collect()
        };
        assert_eq!(paths(&table), ["/c", "/a"]);
        // It was seen all the time.
        assert_eq!(table.since(7, "/a/b"), Some(100));
        assert_eq!(table.since(9, "/a"), Some(200));
        table.enter(place("", 1, 300));
        assert_eq!(paths(&table), [""]);
        assert_eq!(table.since(42, "/never/seen"), Some(300));
        assert_eq!(table.places[0].pids, HashSet::from([1]));
    }

    #[test]
    fn a_place_is_given_up_with_its_cgroup() {
        let mut table = table(vec![place("/hopscope-test-that-is-nowhere", 7, 100)]);
        table.tidy(&[], 101);
        assert!(table.places.is_empty() && table.since(7, "").is_none());
    }

    #[test]
    fn rows_say_where() {
        let mut table = table(vec![]);
        assert!(table.whereabouts().contains("none now"));
        table.enter(place("/a", 7, 100));
        assert_eq!(table.whereabouts(), "to cgroup /a");
        for id in 10..30 {
            table.enter(place(&format!("/b{id}"), id, 100));
        }
        assert!(table.whereabouts().ends_with(" and 13 more"));
    }
}
