//! A packet capture of one namespace, taken with tcpdump.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::cleanup::Program;
use crate::netns::Netns;

/// A running packet capture.
#[derive(Debug)]
pub struct Recording {
    process: Program,
    file: PathBuf,
    // Kept open: tcpdump reports here when it ends.
    _said: BufReader<ChildStderr>,
}

impl Recording {
    /// Records `interface` of `namespace` to `file`, and returns once packets are taken.
    pub fn start(namespace: &Netns, interface: &str, file: &Path) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        // As root, because the unprivileged user it would switch to may not write into the directory.
        command.args([
            "-i",
            interface,
            "-Z",
            "root",
            "--immediate-mode",
            "-U",
            "-s",
            "0",
            "-w",
        ]);
        command.arg(file).args(["tcp", "or", "icmp", "or", "icmp6"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = namespace.enter(|| {
            command
                .spawn()
                .context("could not start tcpdump: installed?")
        })?;
        let mut process = Program::new(child);
        let stderr = process
            .child()
            .stderr
            .take()
            .context("tcpdump has no stderr")?;
        let mut said = String::new();
        let mut lines = BufReader::new(stderr);
        while !said.contains("listening on") {
            if lines
                .read_line(&mut said)
                .context("could not read from tcpdump")?
                == 0
            {
                bail!("tcpdump ended: {}", said.trim());
            }
        }
        Ok(Self {
            process,
            file: file.to_owned(),
            _said: lines,
        })
    }

    /// Ends the capture; the file is then complete.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.process.end(Signal::INT)?;
        let length = File::open(&self.file)
            .and_then(|file| file.metadata())?
            .len();
        if length == 0 {
            bail!("tcpdump left an empty file at {}", self.file.display());
        }
        Ok(self.file.clone())
    }
}
