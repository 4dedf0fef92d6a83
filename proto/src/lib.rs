//! The `hopscope.v1` gRPC interface, generated from `hopscope/v1/hopscope.proto` at build time.

/// Version 1 of the interface.
pub mod v1 {
    #![expect(
        clippy::pedantic,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        missing_docs,
        unused_qualifications,
        reason = "generated code; the .proto file documents it"
    )]
    tonic::include_proto!("hopscope.v1");
}

/// The encoded descriptor set, for the reflection service.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hopscope.bin"));

/// Encoding, decoding and size of the messages.
pub use prost::{DecodeError, Message};
