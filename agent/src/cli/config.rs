//! The configuration file. Every key has a flag of the same meaning; unknown keys are errors.

use core::net::SocketAddr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::access::{ClientFlags, CollectorFlags, ServerFlags};
use super::output::Format;
use super::record::{Age, RecordFlags};
use super::size::ByteSize;
use super::wait::Wait;

/// What a configuration file can hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    pub(super) log: Option<String>,
    pub(super) run: Run,
    pub(super) events: Client,
    pub(super) captures: Client,
    pub(super) collect: Collect,
}

/// Table `[run]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key")]
pub(super) struct Run {
    pub(super) listen: Option<SocketAddr>,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) gateways: Vec<String>,
    pub(super) cgroups: Vec<PathBuf>,
    pub(super) upstreams: Vec<String>,
    pub(super) collectors: Vec<String>,
    pub(super) node: Option<String>,
    pub(super) snap_len: Option<ByteSize>,
    pub(super) request_head: Option<ByteSize>,
    pub(super) response_head: Option<ByteSize>,
    pub(super) ring_size: Option<ByteSize>,
    pub(super) recent: Option<usize>,
    pub(super) slow_first_byte: Option<Wait>,
    pub(super) packets_of: Vec<PathBuf>,
    pub(super) no_system_calls: bool,
    pub(super) no_client_side: bool,
    pub(super) tls_plaintext: bool,
    pub(super) kernel_log: bool,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_client_ca: Option<PathBuf>,
    client_crl: Option<PathBuf>,
    insecure: bool,
    no_captures: bool,
    capture_dir: Option<PathBuf>,
    capture_bytes: Option<ByteSize>,
    capture_age: Option<Age>,
    sample: Option<u32>,
    redact_headers: Vec<String>,
    keep_query: bool,
    collector_tls_ca: Option<PathBuf>,
    collector_tls_cert: Option<PathBuf>,
    collector_tls_key: Option<PathBuf>,
}

impl Run {
    /// The keys that protect its address.
    pub(super) fn server(&mut self) -> ServerFlags {
        ServerFlags {
            tls_cert: self.tls_cert.take(),
            tls_key: self.tls_key.take(),
            tls_client_ca: self.tls_client_ca.take(),
            client_crl: self.client_crl.take(),
            insecure: self.insecure,
        }
    }

    /// The keys that say what is recorded.
    pub(super) fn record(&mut self) -> RecordFlags {
        RecordFlags {
            no_captures: self.no_captures,
            capture_dir: self.capture_dir.take(),
            capture_bytes: self.capture_bytes,
            capture_age: self.capture_age,
            sample: self.sample,
            redact_headers: std::mem::take(&mut self.redact_headers),
            keep_query: self.keep_query,
        }
    }

    /// The keys for TLS to collectors.
    pub(super) fn collector(&mut self) -> CollectorFlags {
        CollectorFlags {
            ca: self.collector_tls_ca.take(),
            cert: self.collector_tls_cert.take(),
            key: self.collector_tls_key.take(),
        }
    }
}

/// Tables `[events]` and `[captures]`: which agent to ask, and how to print what it says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Client {
    pub(super) agent: Option<String>,
    pub(super) format: Option<Format>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
}

impl Client {
    /// The keys for TLS to the agent.
    pub(super) fn client(&mut self) -> ClientFlags {
        ClientFlags {
            ca: self.tls_ca.take(),
            cert: self.tls_cert.take(),
            key: self.tls_key.take(),
        }
    }
}

/// Table `[collect]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Collect {
    pub(super) listen: Option<SocketAddr>,
    pub(super) format: Option<Format>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_client_ca: Option<PathBuf>,
    client_crl: Option<PathBuf>,
    insecure: bool,
}

impl Collect {
    /// The keys that protect its address.
    pub(super) fn server(&mut self) -> ServerFlags {
        ServerFlags {
            tls_cert: self.tls_cert.take(),
            tls_key: self.tls_key.take(),
            tls_client_ca: self.tls_client_ca.take(),
            client_crl: self.client_crl.take(),
            insecure: self.insecure,
        }
    }
}

/// Why a configuration file was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the config file {}: {source}; check --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what hopscope expects.
    #[error("config file {}, line {line} (`{text}`): {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// What the line holds.
        text: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            let line = before.matches('\n').count();
            ConfigError::Parse {
                path: path.to_owned(),
                line: line + 1,
                text: text.lines().nth(line).unwrap_or_default().trim().to_owned(),
                // Syntax errors come with the expectation on a line of its own.
                message: error.message().replace('\n', "; "),
            }
        })
    }
}
