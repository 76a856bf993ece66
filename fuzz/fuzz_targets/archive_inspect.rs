#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flux_artifacts::fuzzing::archive_inspect(data));
