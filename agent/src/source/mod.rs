//! Capture files as a source.
