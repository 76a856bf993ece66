//! Names that go to a provider and come back from it.

use flux_protocol::name_type;

/// What a label's value may be at the strictest of the providers.
fn label(text: &str) -> Option<&'static str> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.as_bytes()[0].is_ascii_lowercase()
        && !text.ends_with('-');
    (!fits).then_some("use 1 to 63 of a-z 0-9 -, a letter first and no - last")
}

fn foreign(text: &str) -> Option<&'static str> {
    let fits = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    (!fits).then_some("use 1 to 255 visible ASCII characters")
}

name_type!(
    /// The cluster whose nodes these are: the value of [`crate::tag::CLUSTER`].
    ClusterName,
    "cluster name",
    label
);
name_type!(
    /// One decision to have one more node. Written down before [`crate::Provider::launch`] is called with it.
    ///
    /// A provider may make it the node's name.
    ClientToken,
    "client token",
    label
);
name_type!(
    /// The provider's own id of a node (`i-0abc…`).
    NodeId,
    "node id",
    foreign
);
name_type!(
    /// The provider's own word for a size of machine (`t3.small`, `e2-medium`).
    NodeType,
    "node type",
    foreign
);
name_type!(
    /// The provider's own word for a place (`eu-central-1a`, `europe-west3-b`).
    Zone,
    "zone",
    foreign
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
