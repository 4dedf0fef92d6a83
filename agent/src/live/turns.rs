//! Counts the turns of gateways that run tasks in an order of their own, and notes in which of them each request was
//! read, once there is such a gateway.
//!
//! The programs sit on tracepoints that every process passes, so that hosts without one do not have them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Btf;
use aya::programs::{BtfTracePoint, TracePoint};
use hopscope_ebpf::TASKS_COMM;

use super::error::reason;
use super::load::{Object, program};
use crate::stats::ProbeStatus;

/// The row that says whether they are attached.
const NAME: &str = "turns";

/// The programs.
const TURNS: &str = "turn_begins";
const READS: &str = "request_read";

/// What each of them is attached to. A kernel has one of the first two at least; the other is what musl has for it.
const TURN_ENDS: [&str; 2] = ["sys_exit_epoll_wait", "sys_exit_epoll_pwait"];
const READ: &str = "tcp_rcv_space_adjust";

const NO_TURNS: &str = "turns of gateways that do not sleep are not told apart";
const NO_READS: &str =
    "of requests that come in the course of a turn it is not told whether it read them";

/// Attaches the programs to the host when they are needed first.
#[derive(Clone)]
pub(super) struct Turns {
    object: Object,
    state: Arc<Mutex<State>>,
}

enum State {
    /// Not needed so far; why the program on reads cannot be used, where it cannot.
    Loaded(Result<(), String>),
    Attached(Result<(), String>),
    /// It cannot be attached, or is not wanted, and why: turns are told apart by the sleeps between them.
    Without(String),
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Turns").field(&self.row()).finish()
    }
}

impl Turns {
    /// Loads the programs, unless there is a reason not to.
    pub(super) fn new(object: Object, btf: &Btf, unwanted: Option<&str>) -> Self {
        let state = match unwanted {
            Some(reason) => State::Without(reason.to_owned()),
            None => warned(load_turns(&object), NO_TURNS).map_or_else(State::Without, |()| {
                State::Loaded(warned(load_reads(&object, btf), NO_READS))
            }),
        };
        let state = Arc::new(Mutex::new(state));
        Self { object, state }
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
        if let State::Loaded(reads) = &*state {
            // First, so that every read in a turn that is counted is seen.
            let reads = reads.clone();
            let reads = reads.and_then(|()| warned(attach_reads(&self.object), NO_READS));
            let turns = warned(attach_turns(&self.object), NO_TURNS);
            *state = turns.map_or_else(State::Without, |()| State::Attached(reads));
        }
    }

    /// Whether they are attached, or are going to be.
    pub(super) fn row(&self) -> ProbeStatus {
        let result = match &*self.state() {
            State::Loaded(reads) => told(reads, "of HAProxy as it starts: there is none now"),
            State::Attached(reads) => told(reads, "of HAProxy"),
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of whom turns are counted, and whether reads are noted as well.
fn told(reads: &Result<(), String>, of: &str) -> Result<String, String> {
    match reads {
        Ok(()) => Ok(of.to_owned()),
        Err(reason) => Err(format!("{reason}: {NO_READS}")),
    }
}

/// Says what is lost where something failed.
fn warned(result: Result<(), String>, loss: &str) -> Result<(), String> {
    result.inspect_err(|error| tracing::warn!(%error, "{loss}"))
}

fn load_turns(object: &Object) -> Result<(), String> {
    let mut ebpf = object.lock();
    let program: &mut TracePoint = program(&mut ebpf, TURNS)?;
    program.load().map_err(|error| reason(&error))
}

fn load_reads(object: &Object, btf: &Btf) -> Result<(), String> {
    let mut ebpf = object.lock();
    let program: &mut BtfTracePoint = program(&mut ebpf, READS)?;
    program.load(READ, btf).map_err(|error| reason(&error))
}

fn attach_reads(object: &Object) -> Result<(), String> {
    let mut ebpf = object.lock();
    let program: &mut BtfTracePoint = program(&mut ebpf, READS)?;
    let attached = program.attach();
    attached.map(|_| ()).map_err(|error| reason(&error))
}

fn attach_turns(object: &Object) -> Result<(), String> {
    let mut ebpf = object.lock();
    let program: &mut TracePoint = program(&mut ebpf, TURNS)?;
    let mut attach = |name| {
        let attached = program.attach("syscalls", name);
        attached
            .map(|_| ())
            .map_err(|error| format!("{name}: {}", reason(&error)))
    };
    let [wait, with_signals] = TURN_ENDS;
    let (wait, with_signals) = (attach(wait), attach(with_signals));
    wait.or(with_signals)
}
