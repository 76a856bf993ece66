//! The seeds of the fuzz targets, through the same functions.

use std::{fs, path::Path};

use flux_protocol::fuzzing;

#[path = "../../../../fuzz/smoke.rs"]
mod smoke;

/// Two seconds or so, where nothing is optimised.
const INPUTS: u64 = 20_000;

/// Every seed, cut at every place, and with every byte changed; then what grows from them.
fn try_all(target: &str, run: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut count = 0;
    for seed in fs::read_dir(&seeds).unwrap_or_else(|error| panic!("{}: {error}", seeds.display())) {
        let data = fs::read(seed.expect("an entry").path()).expect("read");
        run(&data);
        for at in 0..data.len() {
            run(&data[..at]);
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut changed = data.clone();
                changed[at] ^= flip;
                run(&changed);
            }
        }
        count += 1;
    }
    assert!(count >= 3, "{count} seeds of {target}");
    smoke::smoke(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), target, INPUTS, run);
}

#[test]
fn function_yaml() {
    try_all("function_yaml", fuzzing::function_yaml);
}

#[test]
fn invocation_headers() {
    try_all("invocation_headers", fuzzing::invocation_headers);
}

#[test]
fn output_log_decode() {
    try_all("output_log_decode", fuzzing::output_log_decode);
}

#[test]
fn status_json() {
    try_all("status_json", fuzzing::status_json);
}

#[test]
fn traceparent() {
    try_all("traceparent", fuzzing::traceparent);
}

#[test]
fn sse() {
    try_all("sse", fuzzing::sse);
}

#[test]
fn scope() {
    try_all("scope", fuzzing::scope);
}
