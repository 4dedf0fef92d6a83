//! Bytes -> segment, ICMP error or kernel signal. Every length and discriminant is checked.

pub mod packet;
