//! What can be bought.

use super::Subject;
use crate::NodeType;

pub async fn known_types_are_described_in_order(subject: &Subject) {
    let unknown = NodeType::parse("no-such-type").expect("a name");
    let asked = [subject.large.clone(), unknown, subject.small.clone()];
    let described = subject.provider.describe_types(&asked).await.expect("types are described");
    let names: Vec<_> = described.iter().map(|details| details.node_type.clone()).collect();
    assert_eq!(names, [subject.large.clone(), subject.small.clone()]);
    assert!(described.iter().all(|details| details.cpu_millicores > 0 && details.memory_mb > 0), "{described:?}");
    assert!(subject.provider.describe_types(&[]).await.expect("nothing is described").is_empty());
}
