//! Bytes -> segment, ICMP error or kernel signal. Every length and discriminant is checked.
//!
//! Decides what a packet is; leaves alone which hop it belongs to and who is the gateway.

pub mod frame;
pub mod packet;
pub mod pdu;
