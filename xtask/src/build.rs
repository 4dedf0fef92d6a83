//! `cargo xtask build`: the kernel programs, then the binary that carries them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::exec::{self, cargo, say, workspace};
use crate::toolchain;

/// Tells the agent's build script where the compiled kernel programs are.
pub(crate) const OBJECT_VARIABLE: &str = "HOPSCOPE_EBPF_OBJECT";

pub(crate) fn run() -> Result<()> {
    let object = kernel_object()?;
    let binary = release_binary(Some(&object))?;
    say(&format!(
        "built {}",
        binary
            .strip_prefix(workspace())
            .unwrap_or(&binary)
            .display()
    ));
    Ok(())
}

/// Compiles the kernel programs and returns the path of their object file.
pub(crate) fn kernel_object() -> Result<PathBuf> {
    let (compiler, linker) = toolchain::ensure()?;
    let mut command = compiler.cargo("build", &linker);
    // A target directory of its own: the flags differ from the host's, and so does the lock.
    command
        .args([
            "--release",
            "--package",
            "hopscope-ebpf",
            "--features",
            "programs",
        ])
        .args(["--bin", "hopscope-programs", "--target-dir", "target/ebpf"]);
    exec::run(&mut command)?;
    let object = workspace()
        .join("target/ebpf")
        .join(toolchain::TARGET)
        .join("release/hopscope-programs");
    if !object.is_file() {
        bail!(
            "the kernel programs were built but {} is not there",
            object.display()
        );
    }
    Ok(object)
}

/// Builds the release binary around `object`; without one, around the placeholder.
pub(crate) fn release_binary(object: Option<&Path>) -> Result<PathBuf> {
    let mut command = cargo();
    if let Some(object) = object {
        command.env(OBJECT_VARIABLE, object);
    }
    exec::run(command.args(["build", "--release", "--package", "hopscope"]))?;
    Ok(workspace().join("target/release/hopscope"))
}
