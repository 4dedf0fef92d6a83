//! Facts of a finished exchange -> cause and proof: ordered, pure rules.
