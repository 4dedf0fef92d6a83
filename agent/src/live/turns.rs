//! Counts the turns of gateways that run tasks in an order of their own, and notes in which of them each request was
//! read, once there is such a gateway.
//!
//! The programs sit on tracepoints that every process passes, so that hosts without one do not have them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::programs::{RawTracePoint, TracePoint};
use hopscope_ebpf::TASKS_COMM;

use super::error::reason;
use super::load::program;
use crate::stats::ProbeStatus;

/// The row that says whether they are attached.
const NAME: &str = "turns";

/// The programs.
const TURNS: &str = "turn_begins";
const READS: &str = "request_read";

/// What each of them is attached to.
/// The second is what musl has for the first.
const TURN_ENDS: [&str; 2] = ["sys_exit_epoll_wait", "sys_exit_epoll_pwait"];
const READ: &str = "tcp_rcv_space_adjust";

const NO_TURNS: &str = "turns of gateways that do not sleep are not told apart";
const NO_READS: &str =
    "of requests that come in the course of a turn it is not told whether it read them";

/// Attaches the programs to the host when they are needed first.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    /// Not needed so far.
    Loaded(Programs),
    Attached(Programs),
    /// It cannot be attached, or is not wanted, and why: turns are told apart by the sleeps between them.
    Without(String),
}

/// The handles keep the programs, and attach them for as long as they live themselves.
#[derive(Debug)]
struct Programs {
    turns: TracePoint,
    /// The other one, or why it is not there.
    reads: Result<RawTracePoint, String>,
}

impl Turns {
    /// Loads the programs, unless there is a reason not to.
    pub(super) fn new(ebpf: &mut Ebpf, unwanted: Option<&str>) -> Self {
        let turns = unwanted.map_or_else(|| load_turns(ebpf), |reason| Err(reason.to_owned()));
        let state = turns.map_or_else(State::Without, |turns| {
            State::Loaded(Programs {
                turns,
                reads: load_reads(ebpf),
            })
        });
        Self(Arc::new(Mutex::new(state)))
    }

    /// Takes note of a gateway that runs.
    pub(super) fn meet(&self, comm: &[u8]) {
        let name = TASKS_COMM.split(|byte| *byte == 0).next();
        if Some(comm) == name {
            self.attach();
        }
    }

    /// Attaches them whether or not there is such a gateway.
    pub(super) fn attach(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Without(String::new())) {
            State::Loaded(programs) => programs.attach().map_or_else(
                |error| {
                    tracing::warn!(%error, "{NO_TURNS}");
                    State::Without(error)
                },
                State::Attached,
            ),
            other => other,
        };
    }

    /// Whether they are attached, or are going to be.
    pub(super) fn row(&self) -> ProbeStatus {
        let result = match &*self.state() {
            State::Loaded(programs) => programs.row("of HAProxy as it starts: there is none now"),
            State::Attached(programs) => programs.row("of HAProxy"),
            State::Without(reason) => Err(format!("{reason}: {NO_TURNS}")),
        };
        let attached = result.is_ok();
        let (Ok(reason) | Err(reason)) = result;
        ProbeStatus {
            name: NAME,
            attached,
            reason,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Programs {
    fn attach(mut self) -> Result<Self, String> {
        // First, so that every read in a turn that is counted is seen.
        self.reads = self.reads.and_then(|mut reads| {
            let attached = reads.attach(READ);
            attached.map_err(|error| reason(&error)).map(|_| reads)
        });
        for name in TURN_ENDS {
            let attached = self.turns.attach("syscalls", name);
            attached.map_err(|error| format!("{name}: {}", reason(&error)))?;
        }
        Ok(self)
    }

    fn row(&self, what: &str) -> Result<String, String> {
        match &self.reads {
            Ok(_) => Ok(what.to_owned()),
            Err(reason) => Err(format!("{reason}: {NO_READS}")),
        }
    }
}

fn load_turns(ebpf: &mut Ebpf) -> Result<TracePoint, String> {
    let program: &mut TracePoint = program(ebpf, TURNS)?;
    let handle = program.load().and_then(|()| {
        let info = program.info()?;
        TracePoint::from_program_info(info, TURNS.into())
    });
    handle.map_err(|error| reason(&error))
}

fn load_reads(ebpf: &mut Ebpf) -> Result<RawTracePoint, String> {
    let program: &mut RawTracePoint = program(ebpf, READS)?;
    let handle = program.load().and_then(|()| {
        let info = program.info()?;
        RawTracePoint::from_program_info(info, READS.into())
    });
    handle.map_err(|error| reason(&error))
}
