//! The kernel programs' own debug lines, handed to `tracing` where they were asked for.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// Reads the lines that the programs wrote.
pub(super) struct KernelLog(EbpfLogger<ToTracing>);

impl KernelLog {
    /// The log of loaded programs; `None`, with a word in the log, where they have none.
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(ebpf, ToTracing) {
            Ok(logger) => Some(Self(logger)),
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel programs' log");
                None
            }
        }
    }

    /// Hands over what is there.
    pub(super) fn flush(&mut self) {
        self.0.flush();
    }
}

/// Kernel lines have the target `hopscope::kernel`.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        const TARGET: &str = "hopscope::kernel";
        let line = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: TARGET, "{line}"),
            Level::Warn => tracing::warn!(target: TARGET, "{line}"),
            Level::Info => tracing::info!(target: TARGET, "{line}"),
            Level::Debug => tracing::debug!(target: TARGET, "{line}"),
            Level::Trace => tracing::trace!(target: TARGET, "{line}"),
        }
    }

    fn flush(&self) {}
}
