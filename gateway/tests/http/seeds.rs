//! The seeds of the fuzz target of the tokens, through the same function.

use std::{fs, path::Path};

#[path = "../../../fuzz/smoke.rs"]
mod smoke;

/// Every seed, cut at every place, and with every byte changed.
#[test]
fn jwt() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/jwt");
    let mut count = 0;
    for seed in fs::read_dir(&seeds).expect("the seeds") {
        let data = fs::read(seed.expect("an entry").path()).expect("read");
        flux_gateway::fuzzing::jwt(&data);
        for at in 0..data.len() {
            flux_gateway::fuzzing::jwt(&data[..at]);
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut changed = data.clone();
                changed[at] ^= flip;
                flux_gateway::fuzzing::jwt(&changed);
            }
        }
        count += 1;
    }
    assert!(count >= 3, "{count} seeds");
    smoke::smoke(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), "jwt", 20_000, flux_gateway::fuzzing::jwt);
}
