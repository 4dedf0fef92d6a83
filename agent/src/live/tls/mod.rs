//! The TLS libraries of gateway processes: found in their mappings, and probed.
//!
//! A library is probed once for every process that maps its file, now or later, so that the workers that a
//! gateway starts are seen from their first connection on. The kernel programs leave processes alone that
//! have opened no hop; those pay a breakpoint for each handshake and each error of theirs.
//!
//! What OpenSSL says is told; what it means is the engine's business.

mod accessor;
mod departed;
pub(super) mod elf;
mod mapped;
mod returns;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsRawFd as _;

use aya::Ebpf;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use hopscope_ebpf::{NO_OFFSET, plain_call};

use self::departed::Tables;
use self::elf::Function;
use self::mapped::{FileId, Mapped};
use super::error::reason;
use super::load::Object;
use crate::stats::ProbeStatus;

/// Where the registers that survive a call begin in `pt_regs`, in bytes, and how many there are: r15, r14,
/// r13, r12, rbp, rbx on `x86_64`; x19 to x28 on `aarch64`.
pub(super) const SAVED_REGISTERS: (u32, u32) = if cfg!(target_arch = "x86_64") {
    (0, 6)
} else if cfg!(target_arch = "aarch64") {
    (19 * 8, 10)
} else {
    (0, 0)
};

/// Where `pt_regs` has the stack pointer, where a call leaves its return address there, and the result of a
/// function, in bytes: rsp and rax on `x86_64`; x0 on `aarch64`, which returns through a register.
pub(super) const STACK_AND_RESULT: (u32, u32) = if cfg!(target_arch = "x86_64") {
    (152, 80)
} else {
    (NO_OFFSET, 0)
};

/// Which program goes to which function.
const PROBES: [(&str, &str); 8] = [
    (HANDSHAKE, "tls_handshake"),
    ("SSL_set_accept_state", "tls_accepts"),
    ("SSL_accept", "tls_accepts"),
    ("SSL_free", "tls_freed"),
    ("SSL_get_verify_result", "tls_asked"),
    (RAISE, "tls_raised"),
    (PUT, "tls_put"),
    (RESULT, "tls_verified"),
];

/// Functions that read and write inside TLS, with what is attached to both their ends.
const CALLS: [(&str, u64); 5] = [
    ("SSL_read", 0),
    ("SSL_read_ex", plain_call::EX),
    ("SSL_write", plain_call::WRITE),
    (WRITE_EX, plain_call::WRITE | plain_call::EX),
    // What `SSL_write_ex` hands over to in OpenSSL 3.3 and later.
    (WRITE_EX2, plain_call::WRITE | plain_call::EX2),
];
const WRITE_EX: &str = "SSL_write_ex";
const WRITE_EX2: &str = "SSL_write_ex2";
/// Those of them that go together: one direction alone would show requests without answers.
const PAIRS: [&[&str]; 2] = [
    &["SSL_read", "SSL_write"],
    &["SSL_read_ex", WRITE_EX, WRITE_EX2],
];
/// Functions that end what is followed inside TLS, with their programs.
const INSIDE: [(&str, &str); 3] = [
    ("SSL_clear", "tls_cleared"),
    ("SSL_sendfile", "tls_skips"),
    ("SSL_shutdown", "tls_shuts"),
];
/// The programs at both ends of a call.
const CALL: &str = "tls_call";
const RETURNS: &str = "tls_returns";

const HANDSHAKE: &str = "SSL_do_handshake";
/// Raises errors in OpenSSL 3.
const RAISE: &str = "ERR_vset_error";
/// Raises errors in OpenSSL 1.1.
const PUT: &str = "ERR_put_error";
/// Either.
const RAISERS: [&str; 2] = [RAISE, PUT];
/// Returns how a verification ended.
const RESULT: &str = "X509_STORE_CTX_get_error";

/// Functions that only BoringSSL and its descendants have, whose errors have other numbers.
const BORING: [&str; 2] = ["CRYPTO_BUFFER_new", "SSL_CTX_set_grease_enabled"];

/// Bytes of a function that are looked at.
const CODE_LEN: u64 = 32;

/// Files that are probed at once. A host has one or two in each container.
const FILES_MAX: usize = 256;

/// Rows for `check` and Status.
const ROWS_MAX: usize = 32;

/// What is lost where nothing can be asked of a library.
const LOSS: &str = "TLS of its hops is judged from the wire alone";

/// A process is looked at this many times when it appears, since it may not have loaded everything at once,
/// and then once in so many looks: it may load a library late, or become another program.
const FIRST_LOOKS: u32 = 3;
const LATER_LOOKS: u32 = 15;

/// The libraries, and the programs that are attached to them.
pub(super) struct Libraries {
    /// Whether what is inside TLS is read.
    plaintext: bool,
    object: Object,
    /// Why no library can be probed on this host.
    problem: Option<String>,
    /// Why what is inside TLS cannot be read on this host although that is asked for.
    hidden: Option<String>,
    /// None where that is the problem.
    tables: Option<Tables>,
    files: HashMap<FileId, Library>,
    processes: HashMap<u32, Gateway>,
    rows: Vec<ProbeStatus>,
}

impl std::fmt::Debug for Libraries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Libraries")
            .field("files", &self.files.keys())
            .finish_non_exhaustive()
    }
}

/// A file of OpenSSL, or a program with OpenSSL inside.
struct Library {
    path: String,
    /// Whether connections can be followed in it.
    handshakes: bool,
    /// Whether errors can be heard of in it.
    errors: bool,
    /// What cannot be told and why; empty where everything can.
    missing: String,
    /// Dropping them detaches.
    links: Vec<UProbeLink>,
}

impl Library {
    const fn is_probed(&self) -> bool {
        !self.links.is_empty()
    }
}

/// A gateway process.
struct Gateway {
    comm: String,
    looks: u32,
    mapped: Vec<Mapped>,
}

impl Libraries {
    /// Loads the programs out of `object`; those that read what is inside TLS with `plaintext` only.
    pub(super) fn new(object: Object, plaintext: bool) -> Self {
        let mut ebpf = object.lock();
        let tables = Tables::take(&mut ebpf).map_err(|error| error.to_string());
        let (tables, problem) = match (tables, load(&mut ebpf)) {
            (Ok(tables), loaded) => (Some(tables), loaded.err()),
            (Err(reason), _) => (None, Some(reason)),
        };
        if let Some(reason) = &problem {
            tracing::warn!(%reason, "TLS libraries cannot be probed");
        }
        let mut hidden = None;
        if plaintext && problem.is_none() {
            hidden = load_inside(&mut ebpf).err();
        }
        drop(ebpf);
        if let Some(reason) = &hidden {
            tracing::warn!(%reason, "nothing inside TLS is read");
        }
        let mut libraries = Self {
            plaintext: plaintext && hidden.is_none(),
            hidden,
            tables,
            object,
            problem,
            files: HashMap::new(),
            processes: HashMap::new(),
            rows: Vec::new(),
        };
        libraries.rows = libraries.status();
        libraries
    }

    /// The programs themselves, and each library or process with what cannot be told of it.
    pub(super) fn rows(&self) -> &[ProbeStatus] {
        &self.rows
    }

    /// Looks at the gateways that are there, and returns whether the rows have changed.
    pub(super) fn look<'a>(&mut self, gateways: impl Iterator<Item = (u32, &'a str)>) -> bool {
        if let Some(tables) = &mut self.tables {
            tables.sweep();
        }
        if self.problem.is_some() {
            return false;
        }
        let mut present = HashSet::new();
        for (pid, comm) in gateways {
            present.insert(pid);
            let gateway = self.processes.entry(pid).or_insert_with(|| Gateway {
                comm: comm.to_owned(),
                looks: 0,
                mapped: Vec::new(),
            });
            let due = gateway.looks < FIRST_LOOKS || gateway.looks.is_multiple_of(LATER_LOOKS);
            gateway.looks = gateway.looks.wrapping_add(1);
            if due {
                comm.clone_into(&mut gateway.comm);
                gateway.mapped = mapped::of_process(pid);
                for mapped in gateway.mapped.clone() {
                    self.take_up(pid, &mapped);
                }
            }
        }
        self.processes.retain(|pid, _| present.contains(pid));
        let used: HashSet<&FileId> = self
            .processes
            .values()
            .flat_map(|gateway| &gateway.mapped)
            .map(|mapped| &mapped.id)
            .collect();
        self.files.retain(|id, _| used.contains(id));
        let rows = self.status();
        let changed = rows != self.rows;
        self.rows = rows;
        changed
    }

    /// Probes a file that a process maps, where it is new.
    fn take_up(&mut self, pid: u32, mapped: &Mapped) {
        if self.files.contains_key(&mapped.id) || self.files.len() >= FILES_MAX {
            return;
        }
        let mut library = Library {
            path: mapped.path.clone(),
            handshakes: false,
            errors: false,
            missing: String::new(),
            links: Vec::new(),
        };
        if let Err(reason) = self.probe(pid, mapped, &mut library) {
            library.missing = reason;
            library.links.clear();
            library.handshakes = false;
            library.errors = false;
        }
        if library.is_probed() {
            tracing::info!(path = %library.path, missing = %library.missing, "probed a TLS library");
        } else {
            tracing::debug!(path = %library.path, reason = %library.missing, "left a file alone");
        }
        self.files.insert(mapped.id.clone(), library);
    }

    fn probe(&mut self, pid: u32, mapped: &Mapped, library: &mut Library) -> Result<(), String> {
        let file = mapped.open(pid).map_err(|error| error.to_string())?;
        let calls = CALLS.iter().filter(|_| self.plaintext);
        let inside = INSIDE.iter().filter(|_| self.plaintext);
        let wanted: Vec<&str> = PROBES
            .iter()
            .map(|(name, _)| *name)
            .chain(calls.map(|(name, _)| *name))
            .chain(inside.map(|(name, _)| *name))
            .chain(BORING)
            .collect();
        let functions = elf::functions(&file, &wanted).map_err(|error| error.to_string())?;
        if functions.iter().any(|one| BORING.contains(&one.name)) {
            return Err("it is of BoringSSL's kind, whose errors have other numbers".to_owned());
        }
        let defines = |name| functions.iter().any(|one| one.name == name);
        let (whole, newer) = (defines(HANDSHAKE), defines(RAISE));
        let mut points = functions;
        // Other parts of OpenSSL try and fail in the middle of good handshakes. Where they are another file,
        // only the calls out of libssl are of interest.
        points.retain(|one| match one.name {
            RAISE => whole,
            PUT => whole && !newer,
            _ => true,
        });
        if whole && !points.iter().any(|one| RAISERS.contains(&one.name)) {
            points.extend(elf::stubs(&file, &RAISERS).map_err(|error| error.to_string())?);
        }
        if self.plaintext {
            self.probe_inside(&file, &points, library);
        }
        for function in points {
            let Some((_, program)) = PROBES.iter().find(|(name, _)| *name == function.name) else {
                continue;
            };
            let mut cookie = None;
            if function.name == RESULT {
                let code =
                    elf::code(&file, function, CODE_LEN).map_err(|error| error.to_string())?;
                let Some(offset) = accessor::offset(&code) else {
                    "where this build keeps the result of a verification cannot be told"
                        .clone_into(&mut library.missing);
                    continue;
                };
                cookie = Some(u64::from(offset));
            }
            library.links.push(attach(
                &mut self.object.lock(),
                program,
                &file,
                function,
                cookie,
            )?);
            library.handshakes |= function.name == HANDSHAKE;
            library.errors |= RAISERS.contains(&function.name);
        }
        if library.handshakes && !library.errors {
            "where it raises errors cannot be told".clone_into(&mut library.missing);
        }
        Ok(())
    }

    /// Probes the functions that read and write inside TLS, each pair of them as a whole or not at all.
    fn probe_inside(&mut self, file: &File, functions: &[Function], library: &mut Library) {
        let defined = |name: &str| functions.iter().find(|one| one.name == name).copied();
        let mut read = false;
        for names in PAIRS {
            let pair: Vec<Function> = names.iter().filter_map(|name| defined(name)).collect();
            if pair.len() < 2 {
                continue;
            }
            match self.probe_pair(file, &pair) {
                Ok(links) => {
                    library.links.extend(links);
                    read = true;
                }
                Err(reason) => {
                    library.missing = format!(
                        "{reason}, so that what goes through {} is not read",
                        names.join(" and ")
                    );
                }
            }
        }
        if !read {
            return;
        }
        for (name, program) in INSIDE {
            let Some(function) = defined(name) else {
                continue;
            };
            match attach(&mut self.object.lock(), program, file, function, None) {
                Ok(link) => library.links.push(link),
                Err(reason) => library.missing = reason,
            }
        }
    }

    /// Probes both ends of each function of a pair. What is attached is detached again where one cannot be.
    fn probe_pair(&mut self, file: &File, pair: &[Function]) -> Result<Vec<UProbeLink>, String> {
        let newer = pair.iter().find(|one| one.name == WRITE_EX2);
        let mut points = Vec::new();
        for function in pair {
            // Its calls are seen there, and its own end need not be known: mostly it leaves by a jump.
            if let Some(newer) = newer.filter(|_| function.name == WRITE_EX)
                && !is_alone(file, *function, *newer)?
            {
                continue;
            }
            let ends = ends(file, *function).map_err(|reason| {
                format!(
                    "where {} returns cannot be told, since {reason}",
                    function.name
                )
            })?;
            points.push((*function, ends));
        }
        let mut links = Vec::new();
        for (function, ends) in points {
            let which = CALLS.iter().find(|(name, _)| *name == function.name);
            let which = which.map(|(_, which)| *which);
            for end in ends {
                let end = Function {
                    offset: function.offset + end,
                    ..function
                };
                links.push(attach(&mut self.object.lock(), RETURNS, file, end, which)?);
            }
            links.push(attach(
                &mut self.object.lock(),
                CALL,
                file,
                function,
                which,
            )?);
        }
        Ok(links)
    }

    fn status(&self) -> Vec<ProbeStatus> {
        const PROGRAMS: &str = "tls_programs";
        const LIBRARY: &str = "tls_library";
        let row = |name, attached, reason| ProbeStatus {
            name,
            attached,
            reason,
        };
        if let Some(problem) = &self.problem {
            return vec![row(
                PROGRAMS,
                false,
                format!("{problem}: what a TLS library says is not heard"),
            )];
        }
        let mut lines = BTreeSet::new();
        for gateway in self.processes.values() {
            let files = gateway
                .mapped
                .iter()
                .filter_map(|mapped| Some((mapped, self.files.get(&mapped.id)?)));
            let (mut handshakes, mut errors) = (false, false);
            let mut reasons = BTreeSet::new();
            for (mapped, file) in files {
                handshakes |= file.handshakes;
                errors |= file.errors;
                if file.is_probed() {
                    lines.insert((true, format!("{} in {}", gateway.comm, file.path)));
                }
                if !file.missing.is_empty() {
                    reasons.insert(format!("{}: {}", file.path, file.missing));
                } else if !mapped.library && !file.handshakes {
                    reasons.insert(format!("{} has no symbols of OpenSSL", file.path));
                }
            }
            if !handshakes || !errors {
                let reasons: Vec<String> = reasons.into_iter().collect();
                let reason = if reasons.is_empty() {
                    "its program cannot be found".to_owned()
                } else {
                    reasons.join("; ")
                };
                lines.insert((false, format!("{}: {reason}: {LOSS}", gateway.comm)));
            } else {
                let missing = gateway
                    .mapped
                    .iter()
                    .filter_map(|mapped| self.files.get(&mapped.id))
                    .filter(|file| file.is_probed() && !file.missing.is_empty());
                for file in missing {
                    lines.insert((
                        false,
                        format!("{} in {}: {}", gateway.comm, file.path, file.missing),
                    ));
                }
            }
        }
        let mut rows = vec![row(PROGRAMS, true, String::new())];
        if let Some(hidden) = &self.hidden {
            rows.push(row(
                PROGRAMS,
                false,
                format!("{hidden}: nothing inside TLS is read"),
            ));
        }
        rows.extend(
            lines
                .into_iter()
                .take(ROWS_MAX)
                .map(|(attached, text)| row(LIBRARY, attached, text)),
        );
        rows
    }
}

/// Where a function returns, as offsets from where it begins.
fn ends(file: &File, function: Function) -> Result<Vec<u64>, String> {
    returns::returns(&whole(file, function)?).map_err(str::to_owned)
}

/// The whole code of a function.
fn whole(file: &File, function: Function) -> Result<Vec<u8>, String> {
    let code = elf::code(file, function, function.len.min(returns::CODE_MAX + 1))
        .map_err(|error| error.to_string())?;
    if code.len() as u64 > returns::CODE_MAX {
        return Err(format!("{} is too long", function.name));
    }
    Ok(code)
}

/// Whether a function certainly does not call another one of its file, at once or through the linkage table,
/// and its end is known: the compiler has put that one's code into it.
fn is_alone(file: &File, function: Function, other: Function) -> Result<bool, String> {
    let stubs = elf::stubs(file, &[other.name]).map_err(|error| error.to_string())?;
    let offset = |of: &Function| of.offset.wrapping_sub(function.offset).cast_signed();
    let targets: Vec<i64> = stubs.iter().chain([&other]).map(offset).collect();
    let code = whole(file, function)?;
    Ok(returns::is_alone(&code, &targets) && returns::returns(&code).is_ok())
}

/// Loads every program that goes into a library.
fn load(ebpf: &mut Ebpf) -> Result<(), String> {
    if SAVED_REGISTERS.1 == 0 {
        return Err("this processor's registers are not known".to_owned());
    }
    load_all(ebpf, PROBES.iter().map(|(_, program)| *program).collect())
}

/// Loads those that show what is inside TLS.
fn load_inside(ebpf: &mut Ebpf) -> Result<(), String> {
    let mut names: Vec<&str> = INSIDE.iter().map(|(_, program)| *program).collect();
    names.extend([CALL, RETURNS]);
    load_all(ebpf, names)
}

fn load_all(ebpf: &mut Ebpf, mut names: Vec<&str>) -> Result<(), String> {
    // Two functions may have the same program.
    names.dedup();
    for name in names {
        program(ebpf, name)?
            .load()
            .map_err(|error| format!("{name}: {}", reason(&error)))?;
    }
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, String> {
    ebpf.program_mut(name)
        .ok_or("the object has no such program")?
        .try_into()
        .map_err(|error: ProgramError| reason(&error))
}

/// Attaches a program to a function of `file`, which is named by its open descriptor: that is the file
/// whose symbols were read.
fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    file: &File,
    function: Function,
    cookie: Option<u64>,
) -> Result<UProbeLink, String> {
    let program = program(ebpf, name)?;
    let point = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(function.offset),
        cookie,
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let id = program
        .attach(point, path, UProbeScope::AllProcesses)
        .map_err(|error| format!("uprobe on {}: {}", function.name, reason(&error)))?;
    program.take_link(id).map_err(|error| reason(&error))
}
