//! Secrets in their three states: at rest in the store ([`Keyring`]), on their way from a gateway to the agent that holds an
//! attempt ([`Recipient`], [`seal`]), and in what a function prints ([`Redactor`]).
//!
//! All of it is aws-lc-rs, which TLS uses already: AES-256-GCM by itself, HPKE (RFC 9180) by rustls.
//!
//! **Architecture Invariant:** nothing here knows a store or a broker, and nothing here implements `Debug` or `Display` so
//! that a value or a key comes out.

mod keyring;
mod patterns;
mod redact;
mod sealing;

pub use keyring::{AtRest, Keyring, KeyringError, key_ids};
pub use patterns::Patterns;
pub use redact::Redactor;
pub use sealing::{NotOpened, Recipient, SealError, Sealed, seal};
