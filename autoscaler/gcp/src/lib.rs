//! Nodes at Google Compute Engine.
//!
//! An instance is named after the launch's token: a name is there once in a zone, so that asking twice makes one machine, and asking
//! for it by name finds it at once, while lists are still late. All zones that are configured are asked, since the same
//! token may be tried in another zone after the first was full.
//!
//! That an insert was taken says nothing: what comes of it (no room, no quota) is in its *operation*, which is waited for a while.
//! A node's id is `zone/name`.
//!
//! **Feature `sdk`.** Without it there are the settings and what Google's errors mean, but no provider, and nothing of Google's
//! client is built.

#[cfg(feature = "sdk")]
mod answer;
#[cfg(feature = "sdk")]
mod client;
mod labels;
#[cfg(any(test, feature = "sdk"))]
mod meaning;
#[cfg(feature = "sdk")]
mod node;
#[cfg(feature = "sdk")]
mod provider;
#[cfg(feature = "sdk")]
mod request;
mod settings;

#[cfg(feature = "sdk")]
pub use provider::GcpProvider;
pub use settings::GcpSettings;
