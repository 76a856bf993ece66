//! What is written is read.

use flux_backup::KeyFile;
use flux_store::Entry;
use proptest::prelude::*;

use crate::made::{Content, head, read_back, shared, small, version, written};

fn row() -> impl Strategy<Value = Entry> {
    prop_oneof![
        ("[a-z]{1,8}", proptest::option::of(1..9u32)).prop_map(|(name, current)| head(&name, current)),
        ("[a-z]{1,8}", 1..9u32, any::<[u8; 4]>()).prop_map(|(name, number, code)| version(&name, number, &code)),
        proptest::collection::vec(any::<u8>(), 0..5000).prop_map(shared),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    let archive = proptest::collection::vec(any::<u8>(), 0..5000);
    let key = ("[a-z/.]{1,200}", proptest::collection::vec(any::<u8>(), 0..200));
    let key = key.prop_map(|(path, content)| KeyFile { path, content });
    (
        proptest::collection::vec(row(), 0..40),
        proptest::collection::vec(archive, 0..5),
        proptest::collection::vec(key, 0..5),
    )
        .prop_map(|(rows, archives, keys)| Content { rows, archives, keys })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(content in content()) {
        let (found, counts) = read_back(&written(&content)).expect("it is whole");
        prop_assert_eq!(&found, &content);
        prop_assert_eq!(counts.archives, content.archives.len() as u64);
        let versions = content.rows.iter().filter(|row| matches!(row, Entry::Version(_))).count();
        prop_assert_eq!(counts.versions, versions as u64);
    }
}

/// More than go together.
#[test]
fn many_rows_are_in_several_groups() {
    let value: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let content = Content { rows: vec![shared(value); 20], ..Content::default() };
    let bytes = written(&content);
    assert_eq!(read_back(&bytes).expect("whole").0, content);
    let names = flux_tar_names(&bytes);
    let groups = names.iter().filter(|name| name.starts_with("rows/")).count();
    assert!(groups >= 4, "{names:?}");
}

/// As anybody's tar sees it, its files are for their owner alone.
#[test]
fn it_is_a_tar() {
    let bytes = written(&small());
    assert_eq!(flux_tar_names(&bytes).len(), 5);
    for entry in tar::Archive::new(&bytes[..]).entries().expect("entries") {
        assert_eq!(entry.expect("an entry").header().mode().expect("a mode"), 0o600);
    }
}

fn flux_tar_names(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().expect("entries");
    entries.map(|entry| entry.expect("an entry").path().expect("a path").display().to_string()).collect()
}
