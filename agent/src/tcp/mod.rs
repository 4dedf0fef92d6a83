//! TCP on the hop: puts a direction's bytes in order and tracks what was acknowledged and closed.
//!
//! It decides which byte comes next and what is missing; it leaves alone what the bytes mean.

mod ends;
mod flow;
mod reassembly;

pub use ends::Ends;
pub use flow::{Close, Flow, Hole, Reset, Stuck, Windows};
pub use reassembly::{Chunk, Reassembler};
