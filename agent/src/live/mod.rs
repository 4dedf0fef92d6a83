//! The kernel as a source: load, attach, ring, offsets, sockets.

mod btf;
mod cgroup;
mod clock;
mod config;
mod error;
mod load;
mod offsets;
mod tracefs;

pub use config::{LiveConfig, UpstreamMatch, UpstreamMatchError};
pub use error::LiveError;

#[cfg(test)]
mod try_load {
    #[test]
    fn loads() {
        let object = std::fs::read(std::env::var("HOPSCOPE_EBPF_OBJECT").unwrap()).unwrap();
        let loaded = super::load::load(&object, &super::LiveConfig::default()).unwrap();
        for probe in loaded.probes {
            println!("{probe:?}");
        }
    }
}
