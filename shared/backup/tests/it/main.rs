//! The form of a backup, without a store: what is written is read, and nothing else is.

mod broken;
mod form;
mod made;
mod restored;
mod seeds;
