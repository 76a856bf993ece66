//! The counts of a run as a page.
