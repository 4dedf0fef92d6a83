//! Loads the object and attaches each program by itself: one that this kernel refuses costs its own
//! facts and no others.
//!
//! Everything attached hangs on file descriptors of this process, so that it is gone when the process
//! is, however it ends.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{BtfTracePoint, CgroupAttachMode, CgroupSock, ProgramError};
use aya::{Btf as AyaBtf, Ebpf, EbpfLoader, Endianness};
use hopscope_ebpf::{ABI_SECTION, ABI_VERSION, COMM_LEN, MAX_SNAP_LEN, filter};
use object::{Object as _, ObjectSection as _};

use super::btf::Btf;
use super::clients::Clients;
use super::config::{LiveConfig, key};
use super::error::{LiveError, reason};
use super::goroutines::Goroutines;
use super::names::RESOLVERS;
use super::offsets::{Offsets, ResetReasons};
use super::places::Places;
use super::turns::Turns;
use super::{calls, cgroup, tls};
use crate::stats::ProbeStatus;

/// The object with the kernel programs; empty where the binary was built without them.
pub(super) static PROGRAMS: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hopscope-programs"));

/// Where a kernel shows its type information.
pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// A program on a tracepoint with typed arguments.
struct Traced {
    name: &'static str,
    hook: &'static str,
    /// Does the work of a run that the kernel leaves out because it would be inside another.
    second: Option<&'static str>,
    /// What is lost without the program.
    loss: &'static str,
}

const TRACED: [Traced; 8] = [
    Traced {
        name: STATE,
        hook: "inet_sock_set_state",
        second: Some("state_again"),
        loss: "no hop is seen",
    },
    Traced {
        name: CLIENT_STATE,
        hook: "inet_sock_set_state",
        second: Some("client_state_again"),
        loss: "what clients of gateways get is not seen",
    },
    Traced {
        name: "reset_in",
        hook: "tcp_receive_reset",
        second: Some("reset_in_again"),
        loss: "a reset that arrives is known from its segment only",
    },
    Traced {
        name: "destroyed",
        hook: "tcp_destroy_sock",
        second: Some("destroyed_again"),
        loss: "a client that left by a reset is not told from a gateway that ran out of patience",
    },
    Traced {
        name: "reset_out",
        hook: "tcp_send_reset",
        second: Some("reset_out_again"),
        loss: "why a reset was sent is inferred",
    },
    Traced {
        name: "retransmit",
        hook: "tcp_retransmit_skb",
        second: Some("retransmit_again"),
        loss: "repeated segments are known from the segments only",
    },
    Traced {
        name: "error",
        hook: "inet_sk_error_report",
        second: Some("error_again"),
        loss: "errors of sockets are known from their state changes only",
    },
    // No interrupt starts a program.
    Traced {
        name: "executed",
        hook: "sched_process_exec",
        second: None,
        loss: "a gateway that starts is found within two seconds, or by its first connect; until then its packets are not seen",
    },
];

/// What is lost without a second program.
const SECOND_LOSS: &str =
    "a run of the first that would begin inside another is left out by the kernel, and lost";

/// Whether a program only does what another left out.
pub(super) fn is_second(name: &str) -> bool {
    TRACED.iter().any(|traced| traced.second == Some(name))
}

/// The program without which nothing works.
const STATE: &str = "state";

/// The program that finds listeners and accepted connections.
const CLIENT_STATE: &str = "client_state";

/// Why something is not attached that nobody wants.
const TURNED_OFF: &str = "turned off";

/// All kernel programs, which several threads attach, and with them their links.
#[derive(Clone)]
pub(super) struct Object(Arc<Mutex<Ebpf>>);

impl Object {
    pub(super) fn lock(&self) -> MutexGuard<'_, Ebpf> {
        // Nothing is left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is attached, and what is known about this kernel.
pub(super) struct Loaded {
    pub(super) object: Object,
    pub(super) probes: Vec<ProbeStatus>,
    /// None where the client side is not wanted.
    pub(super) clients: Option<Clients>,
    pub(super) places: Places,
    pub(super) turns: Turns,
    pub(super) goroutines: Goroutines,
    pub(super) reset_reasons: ResetReasons,
}

/// Loads `object` into the kernel and attaches what this host allows.
pub(super) fn load(object: &[u8], config: &LiveConfig) -> Result<Loaded, LiveError> {
    check_abi(object)?;
    let bytes = read_btf()?;
    let btf = Btf::parse(&bytes)?;
    let offsets = Offsets::resolve(&btf);
    let mut probes = offsets.status;
    let mut globals = offsets.globals;
    let no_calls = if config.system_calls {
        offsets.no_connect.as_deref()
    } else {
        Some(TURNED_OFF)
    };
    // What they tell says why a gateway answered its client.
    let no_other_calls = if config.client_side {
        no_calls
    } else {
        Some(TURNED_OFF)
    };

    let traced = calls::layout(&mut globals);
    globals.extend([
        ("SNAP_LEN", config.snap_len.min(MAX_SNAP_LEN)),
        ("REQUEST_HEAD", LiveConfig::head(config.request_head)),
        ("RESPONSE_HEAD", LiveConfig::head(config.response_head)),
        ("SAMPLE", config.sample),
        ("SLOW_MS", config.slow_first_byte_ms),
        ("FILTERS", filters(config)),
        ("CLIENT_SIDE", u32::from(config.client_side)),
        ("TLS_PLAINTEXT", u32::from(config.tls_plaintext)),
        ("SAVED_AT", tls::SAVED_REGISTERS.0),
        ("SAVED_LEN", tls::SAVED_REGISTERS.1),
        ("STACK_AT", tls::STACK_AND_RESULT.0),
        ("RESULT_AT", tls::STACK_AND_RESULT.1),
    ]);

    let log_level: u8 = if config.kernel_log { u8::MAX } else { 0 };
    let aya_btf = AyaBtf::parse(&bytes, Endianness::default())
        .map_err(|error| LiveError::BadObject(error.to_string()))?;
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&aya_btf))
        .map_max_entries("EVENTS", ring_bytes(config.ring_bytes))
        .override_global("AYA_LOG_LEVEL", &log_level, false);
    if !config.tls_plaintext {
        // Nothing uses it.
        loader.map_max_entries("CALLS", 1);
    }
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    let mut ebpf = loader.load(object)?;
    fill_filters(&mut ebpf, config)?;

    for Traced {
        name,
        hook,
        second,
        loss,
    } in TRACED
    {
        let result = if name == CLIENT_STATE && !config.client_side {
            Err(TURNED_OFF.to_owned())
        } else {
            attach_tracepoint(&mut ebpf, name, hook, &aya_btf)
        };
        if let (STATE, Err(reason)) = (name, &result) {
            return Err(LiveError::Essential {
                name,
                reason: reason.clone(),
            });
        }
        if let (Some(second), Ok(())) = (second, &result) {
            // Of one that is there, its first tells.
            let result = attach_tracepoint(&mut ebpf, second, hook, &aya_btf);
            if result.is_err() {
                probes.push(status(second, result, SECOND_LOSS));
            }
        }
        probes.push(status(name, result, loss));
    }
    let unwanted = [no_calls, no_other_calls];
    calls::attach(&mut ebpf, &aya_btf, unwanted, traced, &mut probes);
    let (clients, result) = if config.client_side {
        let (clients, result) = Clients::take(&mut ebpf)?;
        (Some(clients), result)
    } else {
        (None, Err(TURNED_OFF.to_owned()))
    };
    probes.push(status(
        "clients",
        result,
        "what clients of gateways get is not seen",
    ));
    attach_dns(&mut ebpf, &mut probes);
    let places = Places::new(&mut ebpf, config);
    let goroutines = Goroutines::take(&mut ebpf)?;
    let object = Object(Arc::new(Mutex::new(ebpf)));
    let turns = Turns::new(object.clone(), &aya_btf, no_other_calls);
    Ok(Loaded {
        object,
        probes,
        clients,
        places,
        turns,
        goroutines,
        reset_reasons: offsets.reset_reasons,
    })
}

/// Refuses an object of another record version before any of it is handed to the kernel.
pub(super) fn check_abi(object: &[u8]) -> Result<(), LiveError> {
    if object.is_empty() {
        return Err(LiveError::NoPrograms);
    }
    let bad = |problem: &str| LiveError::BadObject(problem.to_owned());
    let file = object::File::parse(object).map_err(|error| bad(&error.to_string()))?;
    let section = file
        .section_by_name(ABI_SECTION)
        .ok_or_else(|| bad("they do not say which record version they speak"))?;
    let data = section.data().map_err(|error| bad(&error.to_string()))?;
    let version = data
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .ok_or_else(|| bad("their record version is cut short"))?;
    if version == ABI_VERSION {
        Ok(())
    } else {
        Err(LiveError::AbiMismatch { found: version })
    }
}

/// The kernel's type information.
pub(super) fn read_btf() -> Result<Vec<u8>, LiveError> {
    std::fs::read(BTF_PATH).map_err(|source| LiveError::NoBtf {
        path: BTF_PATH,
        source,
    })
}

/// The size of the ring: a power of two, so that it is a multiple of a page as well.
const fn ring_bytes(wanted: u32) -> u32 {
    const LEAST: u32 = 1 << 16;
    const MOST: u32 = 1 << 30;
    if wanted <= LEAST {
        LEAST
    } else if wanted >= MOST {
        MOST
    } else {
        wanted.next_power_of_two()
    }
}

fn filters(config: &LiveConfig) -> u32 {
    let bit = |empty: bool, bit: u32| if empty { 0 } else { bit };
    bit(config.gateways.is_empty(), filter::COMM)
        | bit(config.cgroups.is_empty(), filter::CGROUP)
        | bit(config.upstreams.is_empty(), filter::UPSTREAM)
}

fn fill_filters(ebpf: &mut Ebpf, config: &LiveConfig) -> Result<(), LiveError> {
    let mut comms: HashMap<_, [u8; COMM_LEN], u8> = map(ebpf, "COMMS")?;
    for name in &config.gateways {
        comms
            .insert(comm(name)?, 1, 0)
            .map_err(|source| LiveError::Map {
                name: "COMMS",
                source,
            })?;
    }
    let mut resolvers: HashMap<_, [u8; COMM_LEN], u8> = map(ebpf, "RESOLVERS")?;
    for name in RESOLVERS {
        resolvers
            .insert(comm(name)?, 1, 0)
            .map_err(|source| LiveError::Map {
                name: "RESOLVERS",
                source,
            })?;
    }
    if !config.cgroups.is_empty() {
        let mut cgroups: HashMap<_, u64, u8> = map(ebpf, "CGROUPS")?;
        for id in cgroup_ids(&config.cgroups)? {
            cgroups.insert(id, 1, 0).map_err(|source| LiveError::Map {
                name: "CGROUPS",
                source,
            })?;
        }
    }
    let mut upstreams: LpmTrie<_, [u8; 18], u8> = map(ebpf, "UPSTREAMS")?;
    for upstream in &config.upstreams {
        upstreams
            .insert(&key(upstream), 1, 0)
            .map_err(|source| LiveError::Map {
                name: "UPSTREAMS",
                source,
            })?;
    }
    Ok(())
}

/// A name as the kernel keeps it.
fn comm(name: &str) -> Result<[u8; COMM_LEN], LiveError> {
    let mut out = [0; COMM_LEN];
    match out.get_mut(..name.len()) {
        Some(room) if !name.is_empty() && name.len() < COMM_LEN => {
            room.copy_from_slice(name.as_bytes());
            Ok(out)
        }
        _ => Err(LiveError::Config {
            what: format!("gateway name {name:?}"),
            problem: "the kernel keeps one to fifteen bytes of a process name",
        }),
    }
}

fn cgroup_ids(configured: &[PathBuf]) -> Result<Vec<u64>, LiveError> {
    let root = cgroup::root().map_err(|source| LiveError::Cgroup {
        path: "/proc/self/mountinfo".into(),
        source,
    })?;
    configured
        .iter()
        .map(|path| {
            let path = cgroup::directory(&root, path);
            cgroup::id(&path).map_err(|source| LiveError::Cgroup { path, source })
        })
        .collect()
}

/// A map of the object, to be filled.
fn map<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<T, LiveError>
where
    T: TryFrom<&'a mut Map, Error = aya::maps::MapError>,
{
    let map = ebpf.map_mut(name).ok_or(LiveError::NoMap(name))?;
    T::try_from(map).map_err(|source| LiveError::Map { name, source })
}

/// A map of the object, to be kept beside the programs.
pub(super) fn take_map<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LiveError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(LiveError::NoMap(name))?;
    T::try_from(map).map_err(|source| LiveError::Map { name, source })
}

/// A hash map that is kept.
pub(super) type Table<K, V> = HashMap<MapData, K, V>;

pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, String>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or("the object has no such program")?;
    program
        .try_into()
        .map_err(|error: ProgramError| reason(&error))
}

fn attach_tracepoint(ebpf: &mut Ebpf, name: &str, hook: &str, btf: &AyaBtf) -> Result<(), String> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program.load(hook, btf).map_err(|error| reason(&error))?;
    program.attach().map_err(|error| reason(&error))?;
    Ok(())
}

fn attach_dns(ebpf: &mut Ebpf, probes: &mut Vec<ProbeStatus>) {
    const NAME: &str = "dns_socket";
    // Its entries would stay for ever without the other.
    const GONE: &str = "dns_socket_gone";
    const LOSS: &str = "names that a gateway looks up are seen only from sockets that were open before, so that most failed lookups are not named";
    let result = cgroup::open_root()
        .map_err(|error| no_cgroup(&error))
        .and_then(|root| {
            attach_sockets(ebpf, GONE, &root)?;
            attach_sockets(ebpf, NAME, &root)
        });
    probes.push(status(NAME, result, LOSS));
}

fn attach_sockets(ebpf: &mut Ebpf, name: &str, root: &File) -> Result<(), String> {
    let program: &mut CgroupSock = program(ebpf, name)?;
    program.load().map_err(|error| reason(&error))?;
    program
        .attach(root, CgroupAttachMode::Single)
        .map_err(|error| reason(&error))?;
    Ok(())
}

/// Why there is no place for the segment programs.
pub(super) fn no_cgroup(error: &io::Error) -> String {
    format!(
        "cannot open the cgroup v2 root: {error}; mount it with `mount -t cgroup2 none /sys/fs/cgroup`"
    )
}

pub(super) fn status(name: &'static str, result: Result<(), String>, loss: &str) -> ProbeStatus {
    match result {
        Ok(()) => ProbeStatus {
            name,
            attached: true,
            reason: String::new(),
        },
        Err(reason) => {
            let reason = format!("{reason}: {loss}");
            tracing::warn!(probe = name, %reason, "not attached");
            ProbeStatus {
                name,
                attached: false,
                reason,
            }
        }
    }
}
