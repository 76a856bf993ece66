#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flux_protocol::fuzzing::scope(data));
