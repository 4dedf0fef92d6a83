//! The compiler for the kernel programs. Two ways are known: Debian's rustc with its ready-made `core`
//! for BPF targets, or a rustup nightly that builds `core` from rust-src. Both link with bpf-linker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::exec::{self, ask, cargo, find_program, say};
use crate::host;

/// Target of the kernel programs: little endian, which is every host that the agent supports.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Debian's compiler, named by path because rustup's comes first on `PATH`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Packages of the Debian way: the compiler, `core` for BPF, and what bpf-linker links against.
pub(crate) const DEBIAN_PACKAGES: [&str; 7] = [
    "rustc-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];

/// Where Debian keeps the LLVM that matches its compiler.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

/// A way to compile the kernel programs that this host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// Debian's rustc with `core` for BPF targets.
    Debian,
    /// A rustup nightly with rust-src.
    Nightly,
}

impl Compiler {
    /// The first way that is complete on this host.
    pub(crate) fn find() -> Option<Self> {
        if debian_core().is_some() {
            Some(Self::Debian)
        } else if nightly_source().is_some() {
            Some(Self::Nightly)
        } else {
            None
        }
    }

    /// What was found, in words.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc (/usr/bin/rustc) with its core for BPF",
            Self::Nightly => "rustup's nightly with rust-src (-Z build-std=core)",
        }
    }

    /// The cargo command that runs `subcommand` for the BPF target.
    pub(crate) fn cargo(self, subcommand: &str, linker: &Path) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = cargo();
                // The bootstrap variable unlocks the unstable features that a BPF target needs.
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .arg(subcommand);
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command
                    .current_dir(exec::workspace())
                    .args(["run", "nightly", "cargo"]);
                // Set by the outer cargo; they would send the inner one back to the default toolchain.
                command
                    .env_remove("CARGO")
                    .env_remove("RUSTC")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command.args([subcommand, "-Z", "build-std=core"]);
                command
            }
        };
        let mut flags = OsString::from("-C linker=");
        flags.push(linker);
        command.env("RUSTFLAGS", flags).args(["--target", TARGET]);
        command
    }
}

/// `core` for the BPF target beside Debian's compiler.
fn debian_core() -> Option<PathBuf> {
    let mut command = Command::new(DEBIAN_RUSTC);
    let directory = ask(command.args(["--print", "target-libdir", "--target", TARGET]))?;
    std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
}

/// The source of `core` inside rustup's nightly.
fn nightly_source() -> Option<PathBuf> {
    let sysroot =
        ask(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    source.is_dir().then_some(source)
}

/// The linker for BPF objects.
pub(crate) fn linker() -> Option<PathBuf> {
    find_program("bpf-linker")
}

/// Whether the kernel programs can be built without installing anything.
pub(crate) fn is_complete() -> bool {
    Compiler::find().is_some() && linker().is_some()
}

/// The command that installs bpf-linker for `compiler`: it must carry an LLVM at least as new as the
/// compiler's.
pub(crate) fn install_linker(compiler: Compiler) -> Command {
    let mut command = cargo();
    match compiler {
        Compiler::Debian => {
            command
                .env("LLVM_PREFIX", DEBIAN_LLVM)
                .env("LLVM_SYS_221_PREFIX", DEBIAN_LLVM)
                .args(["install", "--locked", "bpf-linker", "--no-default-features"])
                .args(["--features", "llvm-22"]);
        }
        Compiler::Nightly => {
            command.args(["install", "--locked", "bpf-linker"]);
        }
    }
    command
}

/// Compiler and linker for the kernel programs, installed first where this host allows it.
pub(crate) fn ensure() -> Result<(Compiler, PathBuf)> {
    let compiler = if let Some(compiler) = Compiler::find() {
        compiler
    } else {
        let mut install = apt_install(&DEBIAN_PACKAGES);
        if !(host::is_root() && host::is_debian()) {
            bail!(
                "no compiler for the kernel programs: on Debian run `{}` as root; elsewhere run \
                 `rustup toolchain install nightly --component rust-src`",
                exec::shown(&install)
            );
        }
        exec::run(Command::new("apt-get").arg("update"))?;
        exec::run(&mut install)?;
        let Some(compiler) = Compiler::find() else {
            bail!(
                "{DEBIAN_RUSTC} still has no core for {TARGET}: is another rustc package installed?"
            );
        };
        compiler
    };
    let linker = if let Some(linker) = linker() {
        linker
    } else {
        exec::run(&mut install_linker(compiler))?;
        let Some(linker) = linker() else {
            bail!("bpf-linker was installed but is not on PATH: add cargo's bin directory to it");
        };
        linker
    };
    say(&format!(
        "kernel toolchain: {}, {}",
        compiler.describe(),
        linker.display()
    ));
    Ok((compiler, linker))
}

/// The apt command that installs `packages` without asking.
pub(crate) fn apt_install(packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    command
}
