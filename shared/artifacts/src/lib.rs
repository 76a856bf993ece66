//! flux-artifacts
