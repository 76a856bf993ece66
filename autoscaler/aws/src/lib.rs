//! Nodes at AWS EC2.
//!
//! A launch is looked for by its token's tag first, and then asked for with the token as EC2's own `ClientToken`: the tag finds it
//! again however long ago it was, the `ClientToken` while EC2's lists do not show it yet. Tags are set by the launch itself, so
//! that no instance is ever without them.
//!
//! A *zone* is a subnet; without any it is the region, and the account's default subnet.
//!
//! **Feature `sdk`.** Compiling EC2's client takes 7 GiB and minutes. Without the feature there are the settings and what EC2's
//! errors mean, but no provider.

#[cfg(any(test, feature = "sdk"))]
mod meaning;
#[cfg(feature = "sdk")]
mod provider;
mod settings;

#[cfg(feature = "sdk")]
pub use provider::AwsProvider;
pub use settings::{AwsSettings, StaticKeys};
