//! The lab: real gateways in network namespaces of their own, in front of upstreams that fail on
//! purpose. The live tests and `cargo xtask demo` share it. It judges nothing: what a scenario should
//! give is written in its table, and the tests compare.
//!
//! All traffic stays inside namespaces that the lab makes and removes.

pub mod access;
pub mod agent;
pub mod apache;
pub mod case;
pub mod cgroup;
pub mod cleanup;
pub mod client;
pub mod clock;
pub mod command;
pub mod gateway;
pub mod heads;
pub mod lab;
pub mod netns;
pub mod recording;
pub mod resolver;
pub mod scenario;
pub mod socket;
pub mod status;
pub mod tls;
pub mod upstream;
pub mod watch;
