//! flux-launcher
