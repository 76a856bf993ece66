//! Names that go to a provider and come back from it.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A name that cannot be used, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` is not valid: {rule}")]
pub struct InvalidName {
    pub what: &'static str,
    pub given: String,
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// The text is empty, too long, or has a character that some provider does not take.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                if $check(text) {
                    return Ok(Self(text.into()));
                }
                Err(InvalidName { what: $what, given: text.chars().take(80).collect(), rule: $rule })
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&Cow::<'de, str>::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
    };
}

/// What a label's value may be at the strictest of the providers.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.as_bytes()[0].is_ascii_lowercase()
        && !text.ends_with('-')
}

fn is_foreign(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

name!(
    /// The cluster whose nodes these are: the value of [`crate::tag::CLUSTER`].
    ClusterName,
    "cluster name",
    is_label,
    "use 1 to 63 of a-z 0-9 -, a letter first and no - last"
);
name!(
    /// One decision to have one more node. Written down before [`crate::Provider::launch`] is called with it.
    ///
    /// A provider may make it the node's name.
    ClientToken,
    "client token",
    is_label,
    "use 1 to 63 of a-z 0-9 -, a letter first and no - last"
);
name!(
    /// The provider's own id of a node (`i-0abc…`).
    NodeId,
    "node id",
    is_foreign,
    "use 1 to 255 visible ASCII characters"
);
name!(
    /// The provider's own word for a size of machine (`t3.small`, `e2-medium`).
    NodeType,
    "node type",
    is_foreign,
    "use 1 to 255 visible ASCII characters"
);
name!(
    /// The provider's own word for a place (`eu-central-1a`, `europe-west3-b`).
    Zone,
    "zone",
    is_foreign,
    "use 1 to 255 visible ASCII characters"
);

impl ClientToken {
    /// A token that nobody had before, which says whose it is.
    pub fn fresh(cluster: &ClusterName) -> Self {
        let prefix: String = cluster.as_str().chars().take(28).collect();
        let unique = uuid::Uuid::now_v7().simple();
        Self(format!("{}-{unique}", prefix.trim_end_matches('-')).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_some_provider_refuses_are_refused_here() {
        for good in ["a", "flux", "flux-prod-2"] {
            assert_eq!(ClusterName::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "Flux", "2flux", "flux-", "fl ux", "flux_prod", &"a".repeat(64)] {
            assert!(ClusterName::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "t3 small", "t3\n"] {
            assert!(NodeType::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fresh_tokens_differ_and_are_tokens() {
        let cluster = ClusterName::parse("a-".repeat(31).trim_end_matches('-')).expect("a name");
        let (one, other) = (ClientToken::fresh(&cluster), ClientToken::fresh(&cluster));
        assert_ne!(one, other);
        assert_eq!(ClientToken::parse(one.as_str()), Ok(one));
    }
}
