//! Takes events of many agents.
