//! STAND-IN, NOT TO BE MERGED: the signatures of the live source, so that `run` and `check` compile
//! before it lands.

use core::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::model::{Input, Timestamp};
use crate::stats::ProbeStatus;

/// What to watch.
#[derive(Clone, Debug)]
pub struct LiveConfig {
    /// Command names of gateways.
    pub gateways: Vec<String>,
    /// Cgroups whose processes are gateways.
    pub cgroups: Vec<PathBuf>,
    /// Upstreams whose clients are gateways.
    pub upstreams: Vec<UpstreamMatch>,
    /// Payload bytes per segment.
    pub snap_len: u32,
    /// Size of the ring.
    pub ring_bytes: u32,
    /// Whether the programs' own log lines are wanted.
    pub kernel_log: bool,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self {
            gateways: vec!["nginx".to_owned(), "haproxy".to_owned()],
            cgroups: Vec::new(),
            upstreams: Vec::new(),
            snap_len: 2048,
            ring_bytes: 8 << 20,
            kernel_log: false,
        }
    }
}

/// An upstream by address, network and port.
#[derive(Clone, Debug)]
pub struct UpstreamMatch {
    /// Network.
    pub addr: IpAddr,
    /// Its length.
    pub prefix: u8,
    /// Port.
    pub port: Option<u16>,
}

impl FromStr for UpstreamMatch {
    type Err = LiveError;
    fn from_str(text: &str) -> Result<Self, LiveError> {
        let addr = text.parse().map_err(|_| LiveError::Absent)?;
        Ok(Self {
            addr,
            prefix: 32,
            port: None,
        })
    }
}

/// Errors.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Not built in.
    #[error("the kernel programs are not built in")]
    Absent,
}

/// The source.
#[derive(Debug)]
pub struct LiveSource;

/// Wakes `pump`.
#[derive(Clone, Debug)]
pub struct Waker;

impl Waker {
    /// Wakes.
    pub fn wake(&self) {}
}

impl LiveSource {
    /// Starts.
    pub fn start(_config: &LiveConfig) -> Result<Self, LiveError> {
        Err(LiveError::Absent)
    }
    /// Pumps.
    pub fn pump(
        &mut self,
        _timeout: Duration,
        _sink: &mut dyn FnMut(Timestamp, Input<'_>),
    ) -> Result<Timestamp, LiveError> {
        Err(LiveError::Absent)
    }
    /// Waker.
    pub fn waker(&self) -> Waker {
        Waker
    }
    /// Probes.
    pub fn probes(&self) -> Vec<ProbeStatus> {
        Vec::new()
    }
    /// Counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What this host offers.
pub fn check() -> Vec<ProbeStatus> {
    vec![ProbeStatus {
        name: "state",
        attached: false,
        reason: "the kernel programs are not built in".to_owned(),
    }]
}
