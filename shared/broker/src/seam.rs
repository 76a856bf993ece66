//! The six traits, one a file.

pub(crate) mod blobs;
pub(crate) mod dead_letters;
pub(crate) mod queue;
pub(crate) mod signals;
pub(crate) mod status_log;
pub(crate) mod tables;
