//! flux-gateway
