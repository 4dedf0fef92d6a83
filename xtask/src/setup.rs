//! `cargo xtask setup`: everything that the build, the live tests and the demo need. Run again, it finds
//! nothing to do.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, say};
use crate::{host, toolchain};

/// Real gateways, a stub resolver, and the tools for the namespaces around them.
const LIVE_PACKAGES: [&str; 10] = [
    "nginx",
    "haproxy",
    "apache2",
    "caddy",
    "dnsmasq-base",
    "openssl",
    "libssl-dev",
    "iproute2",
    "nftables",
    "python3-venv",
];

/// A linker for the host's own programs.
const BUILD_PACKAGES: [&str; 1] = ["build-essential"];

/// Packages that start a service when they are installed, under the same name.
const SERVICES: [&str; 4] = ["nginx", "haproxy", "apache2", "caddy"];

pub(crate) fn run() -> Result<()> {
    packages()?;
    caddy()?;
    toolchain::ensure()?;
    say("set-up is complete");
    Ok(())
}

/// Installs the Debian packages that are missing.
pub(crate) fn packages() -> Result<()> {
    let mut wanted = Vec::from(BUILD_PACKAGES);
    wanted.extend(LIVE_PACKAGES);
    if !host::is_debian() {
        let obstacles = host::live_obstacles();
        if obstacles.is_empty() {
            return Ok(());
        }
        bail!(
            "this is not Debian; install the like of {} by hand: {}",
            wanted.join(", "),
            obstacles.join("; ")
        );
    }
    if !toolchain::is_complete() {
        wanted.extend(toolchain::DEBIAN_PACKAGES);
    }
    install(&wanted)
}

/// Installs the current Caddy where only the tests find it.
pub(crate) fn caddy() -> Result<()> {
    if host::has_current_caddy() {
        return Ok(());
    }
    let directory = exec::workspace().join(host::CADDY_DIRECTORY);
    exec::run(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
    let pip = directory.join("bin/pip");
    exec::run(Command::new(pip).args(["install", "--no-deps", host::CADDY]))?;
    let note = host::caddy_note();
    fs::write(&note, host::CADDY).with_context(|| format!("could not write {}", note.display()))
}

/// Installs those of `wanted` that are missing, or says how.
pub(crate) fn install(wanted: &[&str]) -> Result<()> {
    let missing = host::missing_packages(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut install = toolchain::apt_install(&missing);
    if !host::is_root() {
        bail!(
            "packages are missing; as root run `apt-get update && {}`",
            exec::shown(&install)
        );
    }
    exec::run(Command::new("apt-get").arg("update"))?;
    exec::run(&mut install)?;
    // Debian starts a packaged gateway at once, on port 80. Nobody asked for that here.
    let started: Vec<&str> = SERVICES
        .into_iter()
        .filter(|name| missing.contains(name))
        .collect();
    if host::has_systemd() && !started.is_empty() {
        exec::run(
            Command::new("systemctl")
                .args(["disable", "--now"])
                .args(started),
        )?;
    }
    Ok(())
}
