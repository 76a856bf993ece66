use flux_shim::{
    Decoder, Exit, FrameError, FromShim, Start, Status, Stream, ToShim,
    frame::{FRAME, SEED, VERSION},
    fuzzing,
};
use proptest::prelude::*;

fn to_shim(said: &ToShim) -> Vec<u8> {
    let mut bytes = Vec::new();
    said.encode(&mut bytes);
    bytes
}

fn from_shim(said: &FromShim) -> Vec<u8> {
    let mut bytes = Vec::new();
    said.encode(&mut bytes);
    bytes
}

fn start() -> Start {
    Start {
        program: "./run".to_owned(),
        args: vec!["a".to_owned(), String::new()],
        env: vec![("N".to_owned(), "1".to_owned())],
        directory: "/function".to_owned(),
        user: Some((7, 8)),
        open_files: 4096,
        channel: true,
    }
}

/// A changed golden is a decision: a shim in a root file system that was made with an earlier build would not understand.
#[test]
fn what_an_agent_says_is_these_bytes() {
    assert_eq!(VERSION, 1);
    let golden = b"\0\0\0\x44\x01\
        \0\0\0\x05./run\0\0\0\x09/function\
        \0\0\0\x02\0\0\0\x01a\0\0\0\0\
        \0\0\0\x01\0\0\0\x01N\0\0\0\x011\
        \x01\0\0\0\x07\0\0\0\x08\0\0\0\0\0\0\x10\0\x01";
    let mut wake = b"\0\0\0\x49\x05\0\0\0\0\0\0\0\x07".to_vec();
    wake.extend_from_slice(&[9; SEED]);
    let table: [(ToShim, &[u8]); 7] = [
        (ToShim::Start(Box::new(start())), golden),
        (ToShim::Stdin(b"in".to_vec()), b"\0\0\0\x03\x02in"),
        (ToShim::Stdin(Vec::new()), b"\0\0\0\x01\x02"),
        (ToShim::Channel(b"frames".to_vec()), b"\0\0\0\x07\x03frames"),
        (ToShim::Channel(Vec::new()), b"\0\0\0\x01\x03"),
        (ToShim::Signal(15), b"\0\0\0\x05\x04\0\0\0\x0f"),
        (ToShim::Wake { now_us: 7, seed: Box::new([9; SEED]) }, &wake),
    ];
    for (said, bytes) in table {
        assert_eq!(to_shim(&said), bytes, "{said:?}");
        let mut decoder = Decoder::default();
        for at in 0..bytes.len() {
            assert_eq!(decoder.next_to_shim(), Ok(None), "{at} bytes of {said:?}");
            decoder.push(&bytes[at..=at]);
        }
        assert_eq!(decoder.next_to_shim(), Ok(Some(said)));
    }
}

#[test]
fn what_a_shim_says_is_these_bytes() {
    let exit = Exit { status: Status::Signaled(9), oom_killed: true, cpu_us: 1, memory_peak_bytes: 2, ended_at_us: 3 };
    let exited = b"\0\0\0\x1f\x15\x01\0\0\0\x09\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03";
    let table: [(FromShim, &[u8]); 7] = [
        (FromShim::Hello { version: 1 }, b"\0\0\0\x03\x10\0\x01"),
        (FromShim::Started { pid: 7, started_at_us: 9 }, b"\0\0\0\x0d\x11\0\0\0\x07\0\0\0\0\0\0\0\x09"),
        (FromShim::Refused { errno: 2, message: "no".to_owned() }, b"\0\0\0\x0b\x12\0\0\0\x02\0\0\0\x02no"),
        (FromShim::Output(Stream::Stdout, b"out".to_vec()), b"\0\0\0\x05\x13\x01out"),
        (FromShim::Output(Stream::Stderr, b"err".to_vec()), b"\0\0\0\x05\x13\x02err"),
        (
            FromShim::Channel { beside: 1, resident_bytes: 2, bytes: b"x".to_vec() },
            b"\0\0\0\x0e\x14\0\0\0\x01\0\0\0\0\0\0\0\x02x",
        ),
        (FromShim::Exited(exit), exited),
    ];
    let mut all = Decoder::default();
    for (said, bytes) in &table {
        assert_eq!(from_shim(said), *bytes, "{said:?}");
        all.push(bytes);
    }
    for (said, _) in table {
        assert_eq!(all.next_from_shim(), Ok(Some(said)));
    }
    assert_eq!(all.next_from_shim(), Ok(None));
}

#[test]
fn what_is_no_frame_is_refused() {
    let refused = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        (decoder.next_to_shim().err(), decoder.next_from_shim().err())
    };
    let size = FRAME + 1;
    let too_large = u32::try_from(size).expect("small").to_be_bytes();
    assert_eq!(refused(&too_large).0, Some(FrameError::TooLarge { size }));
    assert_eq!(refused(&[0; 4]).0, Some(FrameError::Empty));
    assert_eq!(refused(b"\0\0\0\x01\x63"), (Some(FrameError::Unknown(99)), Some(FrameError::Unknown(99))));
    for bytes in [&b"\0\0\0\x01\x04"[..], b"\0\0\0\x06\x04\0\0\0\x0f\0", b"\0\0\0\x05\x01\xff\xff\xff\xff"] {
        assert!(matches!(refused(bytes).0, Some(FrameError::Malformed { .. })), "{bytes:?}");
    }
    for bytes in [&b"\0\0\0\x02\x13\x03"[..], b"\0\0\0\x02\x10\0", b"\0\0\0\x03\x14\0\0"] {
        assert!(matches!(refused(bytes).1, Some(FrameError::Malformed { .. })), "{bytes:?}");
    }
}

#[path = "../../../../fuzz/smoke.rs"]
mod smoke;

#[test]
fn the_fuzz_targets_seeds() {
    let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/shim_frames");
    let mut count = 0;
    for seed in std::fs::read_dir(&seeds).unwrap_or_else(|error| panic!("{}: {error}", seeds.display())) {
        let data = std::fs::read(seed.expect("an entry").path()).expect("read");
        for at in 0..=data.len() {
            fuzzing::frames(&data[..at]);
        }
        for at in 0..data.len() {
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut changed = data.clone();
                changed[at] ^= flip;
                fuzzing::frames(&changed);
            }
        }
        count += 1;
    }
    assert!(count >= 2, "{count} seeds");
    smoke::smoke(
        &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
        "shim_frames",
        20_000,
        fuzzing::frames,
    );
}

proptest! {
    /// Whatever comes, in whatever pieces: the same words, or the same error.
    #[test]
    fn any_bytes_in_any_pieces_say_the_same(data in prop::collection::vec(prop_oneof![Just(0_u8), 0_u8..25, any::<u8>()], 0..120)) {
        fuzzing::frames(&data);
    }

    #[test]
    fn a_start_comes_back_whole(args in prop::collection::vec(".{0,20}", 0..5), env in prop::collection::vec((".{1,9}", ".{0,20}"), 0..5)) {
        let said = ToShim::Start(Box::new(Start { args, env, ..start() }));
        let mut decoder = Decoder::default();
        decoder.push(&to_shim(&said));
        prop_assert_eq!(decoder.next_to_shim(), Ok(Some(said)));
    }
}
