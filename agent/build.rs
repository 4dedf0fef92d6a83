//! Places the object with the kernel programs, named by `HOPSCOPE_EBPF_OBJECT`, where `live` can embed
//! it. Without that variable an empty file takes its place: the ordinary build needs no eBPF tools.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HOPSCOPE_EBPF_OBJECT");
    let out = env::var_os("OUT_DIR")
        .ok_or_else(|| io::Error::other("OUT_DIR is not set: run this through cargo"))?;
    let object = env::var_os("HOPSCOPE_EBPF_OBJECT").filter(|path| !path.is_empty());
    let programs = match object.map(PathBuf::from) {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            fs::read(&object).map_err(|error| {
                let path = object.display();
                io::Error::other(format!(
                    "cannot read the kernel programs at {path}: {error}"
                ))
            })?
        }
        None => Vec::new(),
    };
    fs::write(PathBuf::from(out).join("hopscope-programs"), programs)
}
