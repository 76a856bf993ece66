//! flux-broker
