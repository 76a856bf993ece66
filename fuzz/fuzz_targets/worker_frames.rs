#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flux_worker::fuzzing::frames(data));
