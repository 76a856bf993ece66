//! One test binary.

mod smoke;
