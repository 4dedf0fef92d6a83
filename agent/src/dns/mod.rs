//! DNS between a gateway and its resolvers.
//!
//! It decides what a message says (RFC 1035, RFC 6891, RFC 8914) and which answer belongs to which
//! query; it leaves alone which hop that led to.
