//! Why the kernel source cannot start or go on.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use hopscope_ebpf::ABI_VERSION;
use thiserror::Error;

use super::btf::BtfError;

/// Why the kernel source cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The binary has no kernel programs inside.
    #[error("this binary was built without kernel programs; build it with `cargo xtask build`")]
    NoPrograms,
    /// The embedded object is for another version of the record layout.
    #[error(
        "the kernel programs speak record version {found}, this binary speaks {ABI_VERSION}; rebuild both with `cargo xtask build`"
    )]
    AbiMismatch {
        /// Version in the object.
        found: u32,
    },
    /// The embedded object is not one of ours.
    #[error("the kernel programs cannot be used: {0}; rebuild them with `cargo xtask build`")]
    BadObject(String),
    /// The kernel has no type information.
    #[error(
        "cannot read the kernel's type information at {path}: {source}; hopscope needs a kernel built with CONFIG_DEBUG_INFO_BTF"
    )]
    NoBtf {
        /// Where it was looked for.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel's type information is not understood.
    #[error("cannot use the kernel's type information: {0}")]
    Btf(#[from] BtfError),
    /// Missing privileges.
    #[error(
        "not permitted to load kernel programs: {source}; run as root or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    NotPermitted {
        /// What the kernel said.
        source: Box<EbpfError>,
    },
    /// The kernel refused the object.
    #[error("cannot load the kernel programs: {0}")]
    Load(Box<EbpfError>),
    /// The one program that everything else hangs on does not work.
    #[error("cannot attach program {name}, without which no hop is seen: {reason}")]
    Essential {
        /// Name of the program.
        name: &'static str,
        /// Why not.
        reason: String,
    },
    /// A map of the object is missing or of another kind.
    #[error("cannot use kernel map {name}: {source}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// Why not.
        source: MapError,
    },
    /// More upstreams are boosted than there is room for.
    #[error("{0} upstreams are boosted already; wait until one is over, or end one")]
    TooManyBoosts(usize),
    /// A map of the object is missing.
    #[error("the kernel programs have no map {0}; rebuild them with `cargo xtask build`")]
    NoMap(&'static str),
    /// A configured cgroup is not there.
    #[error("cannot watch cgroup {}: {source}; name an existing cgroup v2 directory", path.display())]
    Cgroup {
        /// The path that was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A configured value cannot be used.
    #[error("cannot use {what}: {problem}")]
    Config {
        /// The setting.
        what: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Waiting for records failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl From<EbpfError> for LiveError {
    fn from(error: EbpfError) -> Self {
        let source = Box::new(error);
        if is_permission(source.as_ref()) {
            Self::NotPermitted { source }
        } else {
            Self::Load(source)
        }
    }
}

/// The line in which a verifier says what it minds: the last before its own figures.
fn last_words(log: &str) -> Option<&str> {
    let lines = log.lines().map(str::trim).rev();
    lines.filter(|line| !line.is_empty()).find(|line| {
        let figures = ["processed ", "stack depth ", "verification time "];
        !figures.iter().any(|start| line.starts_with(start))
    })
}

/// A program that was not loaded or attached, in one line: the rest of the verifier's log belongs into
/// the debug log.
pub(super) fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            tracing::debug!(%verifier_log, "the verifier's log");
            match last_words(&verifier_log.to_string()) {
                Some(words) => format!("the kernel refused it: {io_error}: {words}"),
                None => format!("the kernel refused it: {io_error}"),
            }
        }
        ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
        other => other.to_string(),
    }
}

/// Whether "operation not permitted" or "permission denied" is at the bottom of it.
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            return true;
        }
        next = error.source();
    }
    false
}
