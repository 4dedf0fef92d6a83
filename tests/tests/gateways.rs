//! Real gateways answer as they are known to.
