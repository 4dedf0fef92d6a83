//! Handshakes of real libraries, and what becomes of them in any split.

mod certificates;
mod recorded;
mod records;
mod splits;
