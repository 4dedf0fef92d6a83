//! The configuration file. Every key has a flag of the same meaning; unknown keys are errors.

use core::net::SocketAddr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::output::Format;
use super::size::ByteSize;

/// What a configuration file can hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    pub(super) log: Option<String>,
    pub(super) run: Run,
    pub(super) events: Events,
    pub(super) collect: Collect,
}

/// Table `[run]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Run {
    pub(super) listen: Option<SocketAddr>,
    pub(super) gateways: Vec<String>,
    pub(super) cgroups: Vec<PathBuf>,
    pub(super) upstreams: Vec<String>,
    pub(super) collectors: Vec<String>,
    pub(super) node: Option<String>,
    pub(super) snap_len: Option<ByteSize>,
    pub(super) ring_size: Option<ByteSize>,
    pub(super) recent: Option<usize>,
    pub(super) kernel_log: bool,
}

/// Table `[events]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Events {
    pub(super) agent: Option<String>,
    pub(super) format: Option<Format>,
}

/// Table `[collect]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Collect {
    pub(super) listen: Option<SocketAddr>,
    pub(super) format: Option<Format>,
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
