//! Programs on system calls: the two ends of `connect()`, and the ends of others about sockets.
//!
//! They go on the kernel's own functions (fentry), where they cost a process that makes other calls nothing.
//! A kernel without that gets them on the tracepoints of those calls, and then every system call of every
//! process is a little slower.

use aya::programs::{FEntry, FExit, TracePoint};
use aya::{Btf, Ebpf};

use super::error::reason;
use super::load::{program, status};
use super::tracefs;
use crate::stats::ProbeStatus;

/// Where `pt_regs` keeps the first three arguments of a system call, in bytes, and what the kernel's
/// functions for system calls begin with: rdi, rsi and rdx on `x86_64`; x0 to x2 on `aarch64`.
const REGISTERS: Option<([u32; 3], &str)> = if cfg!(target_arch = "x86_64") {
    Some(([112, 104, 96], "__x64_sys_"))
} else if cfg!(target_arch = "aarch64") {
    Some(([0, 8, 16], "__arm64_sys_"))
} else {
    None
};

/// Which end of a call a program is for.
#[derive(Clone, Copy)]
enum End {
    Enter,
    Exit,
}

/// A program on one end of one call.
struct Program {
    name: &'static str,
    /// Its twin for the tracepoint.
    traced: &'static str,
    call: &'static str,
    end: End,
}

const CONNECT: [Program; 2] = [
    Program {
        name: "connect_enter",
        traced: "connect_enter_traced",
        call: "connect",
        end: End::Enter,
    },
    Program {
        name: "connect_exit",
        traced: "connect_exit_traced",
        call: "connect",
        end: End::Exit,
    },
];

const OTHERS: [Program; 3] = [
    Program {
        name: "socket_exit",
        traced: "socket_exit_traced",
        call: "socket",
        end: End::Exit,
    },
    Program {
        name: "accept_exit",
        traced: "accept_exit_traced",
        call: "accept4",
        end: End::Exit,
    },
    Program {
        name: "bind_exit",
        traced: "bind_exit_traced",
        call: "bind",
        end: End::Exit,
    },
];

/// Adds where the programs find arguments and results. The error says why there are no tracepoints.
pub(super) fn layout(globals: &mut Vec<(&'static str, u32)>) -> Result<(), String> {
    if let Some(([first, second, third], _)) = REGISTERS {
        globals.extend([
            ("CALL_FIRST", first),
            ("CALL_SECOND", second),
            ("CALL_THIRD", third),
        ]);
    }
    let (events, mounted) = tracefs::find()
        .map_err(|error| format!("cannot mount tracefs at /sys/kernel/tracing: {error}"))?;
    if mounted == tracefs::Mounted::Now {
        tracing::info!("mounted tracefs at /sys/kernel/tracing");
    }
    let layout = tracefs::connect_layout(&events)?;
    globals.extend([
        ("CONNECT_FD", layout.fd),
        ("CONNECT_ADDR", layout.addr),
        ("CONNECT_LEN", layout.len),
        ("CONNECT_RET", layout.ret),
    ]);
    Ok(())
}

/// Attaches all of them, unless there is a problem with those on `connect()` or with the others; `traced` is
/// what [`layout`] gave.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    btf: &Btf,
    [mut no_connect, no_others]: [Option<&str>; 2],
    traced: Result<(), String>,
    probes: &mut Vec<ProbeStatus>,
) {
    const NO_CONNECT: &str =
        "a connect() that fails before the first SYN, or to a unix socket, is not seen";
    const NO_OTHERS: &str =
        "a gateway that runs out of descriptors, or cannot bind, is not recognised";
    let mut host = Host {
        ebpf,
        btf,
        fentry: true,
        traced,
    };
    for program in &CONNECT {
        let row = host.row(program, no_connect, NO_CONNECT);
        // Either half is useless without the other.
        if !row.attached {
            no_connect.get_or_insert("its other half is missing");
        }
        probes.push(row);
    }
    for program in &OTHERS {
        probes.push(host.row(program, no_others, NO_OTHERS));
    }
}

/// Where the programs are attached.
struct Host<'a> {
    ebpf: &'a mut Ebpf,
    btf: &'a Btf,
    /// Whether this kernel takes programs on its functions, as far as known.
    fentry: bool,
    traced: Result<(), String>,
}

impl Host<'_> {
    fn row(&mut self, program: &Program, problem: Option<&str>, loss: &str) -> ProbeStatus {
        let result = match problem {
            Some(problem) => Err(problem.to_owned()),
            None => self.attach(program),
        };
        let (result, how) = match result {
            Ok(how) => (Ok(()), how),
            Err(reason) => (Err(reason), String::new()),
        };
        let mut row = status(program.name, result, loss);
        row.reason.push_str(&how);
        row
    }

    /// Attaches one, and says how where that costs others something.
    fn attach(&mut self, program: &Program) -> Result<String, String> {
        let refused = if self.fentry {
            match self.attach_function(program) {
                Ok(()) => return Ok(String::new()),
                Err(reason) => reason,
            }
        } else {
            "as the first".to_owned()
        };
        self.fentry = false;
        self.attach_tracepoint(program)?;
        Ok(format!(
            "on a tracepoint, which slows every system call of this host by some 0.1 us ({refused})"
        ))
    }

    fn attach_function(&mut self, on: &Program) -> Result<(), String> {
        let (_, prefix) = REGISTERS.ok_or("not known for this processor")?;
        let function = format!("{prefix}{}", on.call);
        match on.end {
            End::Enter => {
                let program: &mut FEntry = program(self.ebpf, on.name)?;
                program
                    .load(&function, self.btf)
                    .and_then(|()| program.attach())
                    .map_err(|error| reason(&error))?;
            }
            End::Exit => {
                let program: &mut FExit = program(self.ebpf, on.name)?;
                program
                    .load(&function, self.btf)
                    .and_then(|()| program.attach())
                    .map_err(|error| reason(&error))?;
            }
        }
        Ok(())
    }

    fn attach_tracepoint(&mut self, on: &Program) -> Result<(), String> {
        self.traced.clone()?;
        let end = match on.end {
            End::Enter => "enter",
            End::Exit => "exit",
        };
        let program: &mut TracePoint = program(self.ebpf, on.traced)?;
        program
            .load()
            .and_then(|()| program.attach("syscalls", &format!("sys_{end}_{}", on.call)))
            .map_err(|error| reason(&error))?;
        Ok(())
    }
}
