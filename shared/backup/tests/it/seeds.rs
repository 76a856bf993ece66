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

#[test]
fn zz_write() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/backup");
    let bytes = crate::made::written(&small());
    fs::write(root.join("small.backup"), &bytes).unwrap();
    fs::write(root.join("cut.backup"), &bytes[..1700]).unwrap();
    let empty = crate::made::written(&crate::made::Content::default());
    fs::write(root.join("empty.backup"), &empty).unwrap();
    let newer = flux_backup::Header { flux_backup: 2, ..crate::made::header() };
    let (_, bytes) = flux_backup::Writer::begin(Vec::new(), &newer).unwrap().end(Vec::new()).unwrap();
    fs::write(root.join("newer.backup"), &bytes).unwrap();
}
