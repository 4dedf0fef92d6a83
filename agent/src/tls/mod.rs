//! TLS on the hop, from the wire: what both sides offered, chose, showed and refused, without a key.
//!
//! It decides which record and handshake message each byte belongs to and what they say (RFC 8446,
//! RFC 5246, RFC 6066, RFC 7301); it leaves alone whether that made a handshake fail. The same bytes in
//! any split give the same facts.

mod certificate;
mod chain;
mod facts;
mod hello;
mod messages;
mod names;
mod record;
mod sealed;
mod session;
#[cfg(test)]
mod tests;
mod text;

pub use certificate::read_certificate;
pub use chain::{ChainShape, NameMatch, anchor, chain_shape, name_match};
pub use facts::{
    Alert, Certificate, ClientHello, Facts, Foreign, ServerHello, Side, Step, SubjectName, Version,
};
pub use names::{alert_name, cipher_name, group_name, is_grease, signature_name};
pub use session::Session;
