//! Scenario tests on a simulated hop with its own clock: each cause, each trap, with kernel signals
//! and from packets alone.

mod adversary;
mod answers;
mod connect;
mod goroutines;
mod held;
mod http;
mod joins;
mod lookalikes;
mod order;
mod peers;
mod robust;
mod sim;
mod tcp;
mod tls;
mod unwatched;
