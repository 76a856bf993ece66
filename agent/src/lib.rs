//! flux-agent
