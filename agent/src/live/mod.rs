//! The kernel as a source: load, attach, ring, offsets, sockets.
