//! Running other programs: each command is shown before it runs, no shell is involved, and a failure
//! carries the whole command, so that it can be pasted and tried by hand.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Prints one line for the user.
pub(crate) fn say(line: &str) {
    // A closed stdout must not turn a finished build into a failure.
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Prints one line about a failure.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "error: {line}");
}

/// Runs `command` with its output passed on.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = announce(command);
    let status = command
        .status()
        .with_context(|| format!("could not start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// What `command` prints, trimmed; `None` where it cannot run or fails. For questions to the host,
/// which are neither shown nor an error.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as a line for a shell.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(
                line,
                "{}={} ",
                name.display(),
                quoted(&value.to_string_lossy())
            );
        }
    }
    line.push_str(&quoted(&command.get_program().to_string_lossy()));
    for arg in command.get_args() {
        let _ = write!(line, " {}", quoted(&arg.to_string_lossy()));
    }
    line
}

fn announce(command: &Command) -> String {
    let shown = shown(command);
    say(&format!("$ {shown}"));
    shown
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The program `name` on `PATH`, or in cargo's own bin directory.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Services and cron often leave the administrator's directories out of PATH.
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .map(|home| home.join("bin"));
    std::env::split_paths(&path)
        .chain(usual)
        .chain(cargo)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A cargo command that runs in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace());
    command
}

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("cargo");
        command
            .env("RUSTFLAGS", "-C linker=bpf-linker")
            .args(["build", "it's", ""]);
        assert_eq!(
            shown(&command),
            r"RUSTFLAGS='-C linker=bpf-linker' cargo build 'it'\''s' ''"
        );
    }

    #[test]
    fn a_failure_carries_the_command() {
        let error = run(Command::new("false").arg("--now")).unwrap_err();
        assert!(error.to_string().contains("`false --now`"), "{error}");
    }
}
