//! The provider in memory holds every clause, and does go wrong as it is told.

mod faults;

use std::time::Duration;

use flux_provider::{ClusterName, MemoryProvider, NodeId, NodeType, conformance::Subject, memory::MemoryOptions};

fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).expect("a name")
}

fn subject(list_lags: Duration) -> Subject {
    let mut options = MemoryOptions::new(cluster("here"));
    options.list_lags = list_lags;
    options.boots_in = list_lags;
    options.stops_in = list_lags;
    let provider = MemoryProvider::new(options);
    Subject {
        other_cluster: std::sync::Arc::new(provider.of_cluster(cluster("there"))),
        provider: std::sync::Arc::new(provider),
        cluster: cluster("here"),
        small: NodeType::parse("small").expect("a name"),
        large: NodeType::parse("large").expect("a name"),
        no_such_node: NodeId::parse("m-0").expect("an id"),
        guard: Box::new(()),
    }
}

mod at_once {
    flux_provider::conformance_tests!(super::subject(std::time::Duration::ZERO));
}

mod late {
    flux_provider::conformance_tests!(super::subject(std::time::Duration::from_millis(200)));
}
