//! Counts the turns of gateways that run tasks in an order of their own, once there is one.
//!
//! The program sits on a tracepoint that every process passes, so that hosts without such a gateway do not have it.

use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya::programs::TracePoint;
use hopscope_ebpf::TASKS_COMM;

use super::error::reason;
use super::load::program;

/// The program.
const NAME: &str = "turn_begins";

/// Attaches the program to the host when it is needed first.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    /// Not needed so far. The handle keeps the program, and attaches it for as long as it lives itself.
    Loaded(TracePoint),
    Attached(#[expect(dead_code, reason = "holds the link")] TracePoint),
    /// It cannot be attached, or is not wanted: turns are told apart by the sleeps between them.
    Without,
}

impl Turns {
    /// Loads the program, where it is wanted.
    pub(super) fn new(ebpf: &mut Ebpf, wanted: bool) -> Self {
        let loaded = wanted.then(|| load(ebpf)).and_then(|loaded| {
            loaded
                .inspect_err(|error| {
                    tracing::warn!(%error, "turns of gateways that do not sleep are not told apart");
                })
                .ok()
        });
        let state = loaded.map_or(State::Without, State::Loaded);
        Self(Arc::new(Mutex::new(state)))
    }

    /// Takes note of a gateway that runs.
    pub(super) fn meet(&self, comm: &[u8]) {
        let name = TASKS_COMM.split(|byte| *byte == 0).next();
        if Some(comm) != name {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = match std::mem::replace(&mut *state, State::Without) {
            State::Loaded(mut program) => match program.attach("syscalls", "sys_exit_epoll_wait") {
                Ok(_) => State::Attached(program),
                Err(error) => {
                    let error = reason(&error);
                    tracing::warn!(%error, "turns of gateways that do not sleep are not told apart");
                    State::Without
                }
            },
            other => other,
        };
    }
}

fn load(ebpf: &mut Ebpf) -> Result<TracePoint, String> {
    let program: &mut TracePoint = program(ebpf, NAME)?;
    let handle = program.load().and_then(|()| {
        let info = program.info()?;
        TracePoint::from_program_info(info, NAME.into())
    });
    handle.map_err(|error| reason(&error))
}
