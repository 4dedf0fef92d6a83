//! DNS between a gateway and its resolvers.
//!
//! It decides what a message says (RFC 1035, RFC 6891, RFC 8914), which answer belongs to which query,
//! and which queries are one resolution; it leaves alone which hop that led to.

mod lookups;
mod message;
mod name;
mod stream;

#[cfg(test)]
pub(crate) mod testing;

pub use lookups::{
    Asked, Asker, Exchanged, Learned, LookupLimits, Lookups, Outcome, Reply, Resolution, Unusable,
};
pub use message::{Body, Ede, Header, Malformed, Message, Question, kind, rcode};
pub use name::Name;
pub use stream::{Piece, Streams};

/// The port of DNS over UDP and TCP.
pub const PORT: u16 = 53;
