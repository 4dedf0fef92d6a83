//! The gRPC agent API and the push to collectors.
