//! flux-agent
pub mod launch;
