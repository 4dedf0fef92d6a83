//! `cargo xtask test-vm`: boots Debian's kernels 6.1 and 6.12 in an emulator, with an initramfs that
//! holds the static agent and a smoke test as the first process. Emulation alone, because nested
//! virtualisation is rare where this runs; a boot takes a few seconds.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::exec::{self, ask, cargo, find_program, say, workspace};
use crate::{build, host, setup};

/// The emulator, a packer for the initramfs, and a static `ip` for loopback.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "cpio", "busybox-static"];

/// The host's own target, named so that the flags for a static binary do not reach build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Suites whose newest cloud kernel is tested, with the version it is expected to have.
const KERNELS: [(&str, &str); 2] = [("bookworm", "6.1"), ("bookworm-backports", "6.12")];

/// The package that depends on a suite's newest kernel. Cloud kernels are small and have BTF.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Seconds after which a machine that has not powered off has failed.
const LIMIT: &str = "180";

pub(crate) fn run() -> Result<()> {
    if !(host::is_debian() && cfg!(target_arch = "x86_64")) {
        bail!("test-vm takes its kernels from Debian's packages for amd64; this host is neither");
    }
    setup::install(&PACKAGES)?;
    let directory = workspace().join("target/vm");
    fs::create_dir_all(&directory)
        .with_context(|| format!("could not make {}", directory.display()))?;
    let initramfs = initramfs(&directory)?;
    let mut broken = Vec::new();
    for (suite, version) in KERNELS {
        let kernel = kernel(&directory, suite)?;
        say(&format!("\nkernel {version} of {suite}"));
        if let Err(error) = boot(&kernel, &initramfs) {
            exec::complain(&format!("{error:#}"));
            broken.push(version);
        }
    }
    if !broken.is_empty() {
        bail!("failed on kernel {}", broken.join(", "));
    }
    say("\nall kernels passed");
    Ok(())
}

/// Packs the static agent, the smoke test and busybox.
fn initramfs(directory: &Path) -> Result<PathBuf> {
    let object = build::kernel_object()?;
    let mut command = cargo();
    command
        .env(build::OBJECT_VARIABLE, object)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args([
            "build",
            "--release",
            "--target",
            TARGET,
            "--target-dir",
            "target/static",
        ])
        .args([
            "--package",
            "hopscope",
            "--package",
            "hopscope-tests",
            "--bins",
        ]);
    exec::run(&mut command)?;
    let built = workspace()
        .join("target/static")
        .join(TARGET)
        .join("release");
    let busybox = find_program("busybox").context("busybox is not installed")?;

    let root = directory.join("root");
    fs::create_dir_all(&root)?;
    for (from, name) in [
        (built.join("hopscope-vm-init"), "init"),
        (built.join("hopscope"), "hopscope"),
        (busybox, "busybox"),
    ] {
        let to = root.join(name);
        fs::copy(&from, &to).with_context(|| format!("could not copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }

    let archive = directory.join("initramfs");
    let mut command = Command::new("cpio");
    command
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(&root);
    let shown = exec::shown(&command);
    say(&format!("$ {shown}"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&archive)?)
        .spawn()
        .with_context(|| format!("could not start `{shown}`"))?;
    if let Some(mut names) = child.stdin.take() {
        names.write_all(b"init\nhopscope\nbusybox\n")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(archive)
}

/// The newest kernel image of `suite`, downloaded unless it is here already.
fn kernel(directory: &Path, suite: &str) -> Result<PathBuf> {
    let apt = Apt::new(directory, suite)?;
    let depends = ask(apt.command("apt-cache").args(["depends", META_PACKAGE]))
        .with_context(|| format!("{META_PACKAGE} is not in {suite}"))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{META_PACKAGE} of {suite} names no kernel"))?
        .to_owned();
    let unpacked = directory.join(&package);
    if !unpacked.is_dir() {
        exec::run(
            apt.command("apt-get")
                .args(["download", &package])
                .current_dir(directory),
        )?;
        let file = entry(directory, |name| name.starts_with(&format!("{package}_")))?;
        // Under another name first, so that an interrupted run leaves nothing half-done.
        let partial = directory.join("partial");
        let _ = fs::remove_dir_all(&partial);
        exec::run(Command::new("dpkg").arg("-x").arg(&file).arg(&partial))?;
        fs::rename(&partial, &unpacked)?;
        fs::remove_file(&file)?;
    }
    entry(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))
}

/// The one entry of `directory` whose name is `wanted`.
fn entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("could not read {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(&wanted)
        })
        .with_context(|| format!("nothing fitting in {}", directory.display()))
}

/// apt with one suite and lists of its own: the host's configuration stays as it is.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        let sites = ask(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))
            .context("apt-get knows no package source")?;
        // The same servers as the host's: they carry the other suites as well.
        let server = |ending: &str| {
            sites
                .lines()
                .find(|server| server.ends_with(ending))
                .with_context(|| format!("no package source of this host ends in {ending}"))
        };
        let mut sources = format!("deb {} {suite} main\n", server("/debian")?);
        if !suite.contains('-')
            && let Ok(security) = server("-security")
        {
            writeln!(sources, "deb {security} {suite}-security main")?;
        }
        let state = directory.join("apt").join(suite);
        fs::create_dir_all(state.join("lists/partial"))?;
        let list = state.join("sources.list");
        fs::write(&list, sources)?;
        let apt = Self {
            options: vec![
                format!("Dir::Etc::sourcelist={}", list.display()),
                "Dir::Etc::sourceparts=-".to_owned(),
                format!("Dir::State::lists={}", state.join("lists").display()),
                "Dir::Cache::pkgcache=".to_owned(),
                "Dir::Cache::srcpkgcache=".to_owned(),
                "APT::Sandbox::User=root".to_owned(),
            ],
        };
        exec::run(apt.command("apt-get").args(["update", "--quiet=2"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }
}

/// Boots `kernel` and passes on what the smoke test says.
fn boot(kernel: &Path, initramfs: &Path) -> Result<()> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT, "qemu-system-x86_64"]);
    // Without cx16: the emulator's 16-byte compare-and-exchange fails now and then on 6.12.
    command.args([
        "-accel",
        "tcg",
        "-cpu",
        "max,-cx16",
        "-smp",
        "2",
        "-m",
        "1024",
    ]);
    command.args([
        "-nodefaults",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    // The kernel hands what it does not know to the first process as environment.
    command.args([
        "-append",
        "console=ttyS0 quiet panic=-1 mitigations=off nokaslr HOPSCOPE_BIN=/hopscope",
    ]);
    let shown = exec::shown(&command);
    say(&format!("$ {shown}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start `{shown}`"))?;
    let console = child.stdout.take().context("the machine has no console")?;
    let mut passed = false;
    let mut tail = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        if let Some(said) = line.split_once("vm: ").map(|(_, said)| said) {
            passed |= said == "passed";
            say(&format!("  {said}"));
        }
        tail.push(line);
    }
    let status = child.wait()?;
    if !passed {
        let last = tail.split_off(tail.len().saturating_sub(20)).join("\n");
        bail!("the machine ended ({status}) without passing; its last lines:\n{last}");
    }
    Ok(())
}
