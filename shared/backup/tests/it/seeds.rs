//! The seeds of the fuzz target, through the same function; and that backups of earlier releases are read.

use std::{fs, path::Path};

use flux_backup::fuzzing;

use crate::made::{read_back, small};

#[path = "../../../../fuzz/smoke.rs"]
mod smoke;

/// `small.backup` was written by the release that had form 1 first. It stays as it is.
#[test]
fn backup() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut count = 0;
    for seed in fs::read_dir(root.join("fuzz/seeds/backup")).expect("the seeds") {
        fuzzing::backup(&fs::read(seed.expect("an entry").path()).expect("read"));
        count += 1;
    }
    assert!(count >= 3, "{count} seeds");
    let kept = fs::read(root.join("fuzz/seeds/backup/small.backup")).expect("read");
    assert_eq!(read_back(&kept).expect("it is whole").0, small());
    smoke::smoke(&root, "backup", 5_000, fuzzing::backup);
}
