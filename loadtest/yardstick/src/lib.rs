//! flux-yardstick
