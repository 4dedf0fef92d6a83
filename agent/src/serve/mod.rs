//! The gRPC agent API and the push to collectors.
//!
//! Everything here carries events away from the engine and decides nothing about them. The one rule
//! that shapes it: whoever publishes an event never waits. Readers that are too slow are dropped or
//! lose events, and both are counted.

mod access;
mod agent;
mod answer;
mod captures;
mod convert;
mod filter;
mod hub;
mod incoming;
mod listen;
mod metrics;
mod push;
mod queue;
mod tls;

pub use access::{AccessError, CAPTURES_UNIT, check_listen};
pub use agent::{AgentService, EventStream, serve_agent};
pub use captures::{CaptureStream, Captures};
pub use convert::{
    ConvertError, duration_to_proto, from_proto, timestamp_from_proto, timestamp_to_proto, to_proto,
};
pub use filter::{Filter, FilterError};
pub use hub::{Encoded, Held, Hub, HubConfig, StatusReport, SubscribeError};
pub use listen::{Endpoint, EndpointError, ListenError, Listener, STOP_GRACE, ServeError};
pub use metrics::serve_metrics;
pub use push::{Push, PushConfig};
pub use queue::{Ended, Subscription};
pub use tls::{ClientTls, PemFile, ServerFiles, ServerTls, TlsError, reason};

#[cfg(feature = "collector")]
pub(crate) use agent::reflection;
#[cfg(feature = "collector")]
pub(crate) use listen::server;
