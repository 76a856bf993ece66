//! The frames byte for byte, and what a decoder makes of anything else.

mod frames;
