//! TCP on the hop: reassembly, connection state, timers.
