//! flux-testkit
