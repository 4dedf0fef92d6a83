//! What this host offers, for `hopscope check`: tries everything for a moment and detaches it again.
//! Where tracefs was not mounted it is afterwards, at the place that the kernel keeps for it.

use super::btf::Btf;
use super::load::{self, Loaded};
use super::offsets::Offsets;
use super::tls::Libraries;
use super::{LiveConfig, LiveError, cgroup, scout, tracefs};
use crate::stats::ProbeStatus;

/// What this host offers: one row per requirement, per group of kernel fields and per program. Programs
/// are loaded and attached for a moment, which is the only test that tells the truth.
pub fn check() -> Vec<ProbeStatus> {
    let btf = load::read_btf().map_err(|error| error.to_string());
    let mut rows = vec![
        row(
            "programs",
            load::check_abi(load::PROGRAMS).map_err(|error| error.to_string()),
        ),
        row("btf", btf.as_ref().map(|_| ()).map_err(Clone::clone)),
        row(
            "cgroup2",
            cgroup::open_root()
                .map(|_| ())
                .map_err(|error| load::no_cgroup(&error)),
        ),
    ];
    let mounted = tracefs::find();
    rows.push(row(
        "tracefs",
        mounted.as_ref().map(|_| ()).map_err(|error| {
            format!("cannot mount tracefs at /sys/kernel/tracing: {error}; run `mount -t tracefs tracefs /sys/kernel/tracing`")
        }),
    ));
    match load::load(load::PROGRAMS, &LiveConfig::default()) {
        Ok(Loaded {
            probes,
            object,
            places,
            turns,
            goroutines,
            ..
        }) => {
            rows.push(row("privileges", Ok(())));
            rows.extend(probes);
            let mut libraries = Libraries::new(object, true);
            if let Ok(gateways) = scout::gateways(&LiveConfig::default()) {
                let pids: Vec<u32> = gateways.iter().map(|(pid, _)| *pid).collect();
                places.present(&pids);
                goroutines.present(gateways.iter().map(|(pid, comm)| (*pid, comm.as_str())));
                libraries.look(gateways.iter().map(|(pid, comm)| (*pid, comm.as_str())));
            }
            places.try_out();
            turns.attach();
            rows.extend(places.rows());
            rows.push(turns.row());
            rows.push(goroutines.row());
            rows.extend_from_slice(libraries.rows());
        }
        Err(error) => {
            let privileges = matches!(error, LiveError::NotPermitted { .. });
            let name = if privileges { "privileges" } else { "load" };
            rows.push(row(name, Err(error.to_string())));
            // The fields can be looked up without any privilege.
            if let Ok(bytes) = &btf
                && let Ok(types) = Btf::parse(bytes)
            {
                rows.extend(Offsets::resolve(&types).status);
            }
        }
    }
    rows.extend(scout::rows());
    rows
}

fn row(name: &'static str, result: Result<(), String>) -> ProbeStatus {
    let reason = result.err().unwrap_or_default();
    ProbeStatus {
        name,
        attached: reason.is_empty(),
        reason,
    }
}
