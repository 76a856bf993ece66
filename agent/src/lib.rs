//! flux-agent
pub mod launch;
#[allow(dead_code)]
mod plan;
