//! The kernel as a source: load, attach, ring, offsets, sockets.
//!
//! Decides what the kernel's records say, as inputs of the engine. What they mean is the engine's
//! business. The kernel programs themselves are in package `hopscope-ebpf`.

mod arrivals;
mod boost;
mod btf;
mod calls;
mod cgroup;
mod check;
mod clients;
mod clock;
mod config;
mod decode;
mod error;
mod go_build;
mod goroutines;
mod icmp;
mod load;
mod log;
mod missed;
mod names;
mod netns;
mod occupancy;
mod offsets;
mod places;
mod process;
mod proxied;
mod scout;
mod seed;
mod source;
mod tls;
mod tracefs;
mod translate;
mod turns;
mod unix;

pub use btf::BtfError;
pub use check::check;
pub use config::LiveConfig;
pub use error::LiveError;
pub use source::{LiveSource, Waker};

/// The object with the kernel programs; empty where the binary was built without them.
pub fn programs() -> &'static [u8] {
    load::PROGRAMS
}

/// What a record says to the engine, for the fuzzer. No process is looked up.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_record(
    bytes: &[u8],
    mut handle: impl FnMut(crate::model::Timestamp, crate::model::Input<'_>),
) {
    use decode::Body;

    let Ok(mut record) = decode::decode(bytes) else {
        return;
    };
    match &mut record.body {
        Body::Open { ends, caller, .. } | Body::Connect { ends, caller, .. } => {
            caller.pid = u32::MAX;
            ends.netns = ends.netns.max(1);
        }
        Body::UnixConnect { netns, caller, .. } => {
            caller.pid = u32::MAX;
            *netns = (*netns).max(1);
        }
        Body::Dns(packet) => {
            packet.caller.pid = u32::MAX;
            packet.netns = packet.netns.max(1);
        }
        _ => {}
    }
    let mut processes = process::Processes::default();
    let at = crate::model::Timestamp::from_nanos(record.time_ns);
    if let Body::Dns(packet) = &record.body {
        let mut names = names::Names::default();
        let _ = names.packet(at, record.cookie, packet, &mut processes, |message| {
            handle(at, crate::model::Input::Dns(message));
        });
    }
    let reasons = offsets::ResetReasons::default();
    if let Ok(Some(input)) = translate::input(&record, &mut processes, &reasons) {
        handle(at, input);
    }
}
