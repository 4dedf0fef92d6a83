//! Upstreams that are an `openssl s_server` each: a second TLS library, and the only one that still
//! speaks what is out of date.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cleanup::Program;
use crate::clock::wait_for;
use crate::netns::Netns;
use crate::tls::Versions;
use crate::tls::pki::{Chain, Pki};

/// Time that all of them get to listen.
const START: Duration = Duration::from_secs(20);

/// What it prints once it listens.
const LISTENS: &str = "ACCEPT";

/// An `openssl s_server` that answers a GET with a page about its session and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// What it shows.
    pub chain: Chain,
    /// Versions that it takes.
    pub versions: Versions,
    /// More of its arguments.
    pub arguments: &'static [&'static str],
    /// Whether it wants a certificate of the gateway.
    pub asks: bool,
    /// Whether it refuses the name that gateways ask for.
    pub other_name: bool,
}

impl Server {
    /// Takes TLS 1.2 and 1.3 with a good certificate.
    pub const HEALTHY: Self = Self {
        chain: Chain::Good,
        versions: Versions::Both,
        arguments: &[],
        asks: false,
        other_name: false,
    };

    fn command(&self, address: SocketAddr, pki: &Pki) -> Result<Command> {
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-www", "-accept", &address.to_string()])
            .arg("-cert")
            .arg(pki.leaf(self.chain))
            .arg("-key")
            .arg(pki.key(self.chain));
        let above = pki.above(self.chain);
        if fs::metadata(&above)?.len() > 0 {
            command.arg("-cert_chain").arg(above);
        }
        command.args(match self.versions {
            Versions::Both => &[][..],
            Versions::Only11 => &["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"],
            Versions::Only12 => &["-tls1_2"],
            Versions::Only13 => &["-tls1_3"],
        });
        if self.chain == Chain::Weak {
            command.args(["-cipher", "DEFAULT:@SECLEVEL=0"]);
        }
        if self.asks {
            command
                .args(["-Verify", "3", "-verify_return_error", "-CAfile"])
                .arg(pki.roots());
        }
        if self.other_name {
            command
                .args(["-servername", "other.test", "-servername_fatal"])
                .arg("-cert2")
                .arg(pki.leaf(Chain::WrongName))
                .arg("-key2")
                .arg(pki.key(Chain::WrongName));
        }
        command.args(self.arguments);
        Ok(command)
    }
}

/// Starts all of `wanted` in `namespace` and waits until they listen; their output goes to `files`.
pub(crate) fn start(
    wanted: &[(SocketAddr, Server)],
    namespace: &Netns,
    pki: &Pki,
    files: &Path,
) -> Result<Vec<Program>> {
    let mut running = Vec::new();
    for (address, server) in wanted {
        let log = files.join(format!("openssl-{}", address.port()));
        let output = File::create(&log)?;
        let mut command = server.command(*address, pki)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = namespace.enter(|| {
            command
                .spawn()
                .context("could not start openssl: installed?")
        })?;
        running.push((Program::new(child), log));
    }
    for (program, log) in &mut running {
        wait_for("openssl to listen", START, || {
            let said = fs::read_to_string(&*log)?;
            if let Some(status) = program.child().try_wait()? {
                bail!("openssl ended with {status}: {}", said.trim());
            }
            Ok(said.contains(LISTENS).then_some(()))
        })?;
    }
    Ok(running.into_iter().map(|(program, _)| program).collect())
}
