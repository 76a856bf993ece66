//! The seeds of the fuzz target, through the same function; and archives that other programs made.

use std::{fs, path::Path};

use flux_artifacts::{archive, fuzzing};

#[path = "../../../../fuzz/smoke.rs"]
mod smoke;

fn seeds() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/archive_inspect")
}

#[test]
fn archive_inspect() {
    let mut count = 0;
    for seed in fs::read_dir(seeds()).expect("the seeds") {
        let data = fs::read(seed.expect("an entry").path()).expect("read");
        fuzzing::archive_inspect(&data);
        for at in 0..data.len() {
            fuzzing::archive_inspect(&data[..at]);
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = data.clone();
                changed[at] ^= flip;
                fuzzing::archive_inspect(&changed);
            }
        }
        count += 1;
    }
    assert!(count >= 8, "{count} seeds");
    smoke::smoke(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
        "archive_inspect",
        5_000,
        fuzzing::archive_inspect,
    );
}

/// Written by Python's `zipfile`: as a whole, stored, to a pipe (sizes behind the data), in the 64-bit form.
#[test]
fn archives_of_another_program_are_taken() {
    for name in ["good.zip", "stored.zip", "streamed.zip", "zip64.zip", "zeros.zip"] {
        let data = fs::read(seeds().join(name)).expect("read");
        let summary = archive::inspect(&data).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(summary.is_executable("run") || name == "zeros.zip", "{name}");
    }
    for (name, said) in [
        ("slip.zip", "`../evil` has `..`"),
        ("link_out.zip", "`l` is a link to something outside"),
        ("through_link.zip", "`l/x` lies below `l`, which is a link"),
        ("setuid.zip", "`su` is setuid"),
        ("cut.zip", "cut off"),
    ] {
        let data = fs::read(seeds().join(name)).expect("read");
        let error = archive::inspect(&data).expect_err(name).to_string();
        assert!(error.contains(said), "{name}: {error}");
    }
}
