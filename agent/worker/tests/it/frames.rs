use std::{fs, path::Path};

use bytes::Bytes;
use flux_protocol::limits;
use flux_worker::{Call, Decoder, Fault, FrameError, FromWorker, Load, Over, ToWorker, Used, frame::VERSION, fuzzing};
use proptest::prelude::*;

fn encoded(frame: &ToWorker<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode_head(&mut bytes);
    bytes
}

/// A frame as a worker makes it.
fn from_worker(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len() + 1).expect("small").to_be_bytes().to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(body);
    bytes
}

fn decoded(bytes: &[u8]) -> Result<Option<FromWorker>, FrameError> {
    let mut decoder = Decoder::default();
    decoder.buffer().extend_from_slice(bytes);
    decoder.next_frame()
}

/// A changed golden is a decision: bootstraps of another build, in an image that was made with it, would not understand.
#[test]
fn what_an_agent_says_is_these_bytes() {
    assert_eq!(VERSION, 2);
    assert_eq!(encoded(&ToWorker::Program("x = 1")), b"\0\0\0\x06\x01x = 1");
    let load = Load { files: vec!["main.py".to_owned()], function: Some("handler".to_owned()), fresh: false };
    assert_eq!(encoded(&ToWorker::Load(&load)), b"\0\0\0\x2b\x02{\"files\":[\"main.py\"],\"function\":\"handler\"}");
    let fresh = Load { fresh: true, ..load };
    assert!(encoded(&ToWorker::Load(&fresh)).ends_with(b"\"function\":\"handler\",\"fresh\":true}"));
    assert_eq!(encoded(&ToWorker::Fork), b"\0\0\0\x01\x05");
    let call = Call {
        execution_id: "exc-1".to_owned(),
        function: "f".to_owned(),
        version: 3,
        attempt: 2,
        deadline_ms: Some(1_000),
        args: vec!["a".to_owned()],
        traceparent: "00-t".to_owned(),
    };
    let json = r#"{"execution_id":"exc-1","function":"f","version":3,"attempt":2,"deadline_ms":1000,"args":["a"],"traceparent":"00-t"}"#;
    let mut golden = u32::try_from(1 + 4 + json.len() + 2).expect("small").to_be_bytes().to_vec();
    golden.push(3);
    golden.extend_from_slice(&u32::try_from(json.len()).expect("small").to_be_bytes());
    golden.extend_from_slice(json.as_bytes());
    // The payload follows.
    assert_eq!(encoded(&ToWorker::Invoke(&call, &Bytes::from_static(b"{}"))), golden);
}

#[test]
fn what_a_worker_says_is_read() {
    let used = Used { cpu_us: 1, peak_bytes: 2, threads_left: 3, dropped_bytes: 4 };
    let head = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x04";
    let fault = Fault { kind: "KeyError".to_owned(), message: "'n'".to_owned(), ..Fault::default() };
    let table = [
        (from_worker(16, b"\0\x023.11.2"), FromWorker::Hello { version: 2, interpreter: "3.11.2".to_owned() }),
        (from_worker(17, b""), FromWorker::Ready { cannot_fork: None }),
        (from_worker(17, b"no"), FromWorker::Ready { cannot_fork: Some("no".to_owned()) }),
        (
            from_worker(21, b"\0\0\0\x0b\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01"),
            FromWorker::Over(Over { signal: 11, exit_code: 0, cpu_us: 1, peak_bytes: 2, is_unread: true }),
        ),
        (
            from_worker(18, br#"{"type":"KeyError","message":"'n'","missing":true}"#),
            FromWorker::Failed(Fault { missing: true, ..fault.clone() }),
        ),
        (
            from_worker(19, &[&head[..], b"{\"a\": 1}"].concat()),
            FromWorker::Result(used, Bytes::from_static(b"{\"a\": 1}")),
        ),
        (
            from_worker(20, &[&head[..], br#"{"type":"KeyError","message":"'n'","stack":""}"#].concat()),
            FromWorker::Error(used, fault),
        ),
    ];
    for (bytes, frame) in table {
        assert_eq!(decoded(&bytes), Ok(Some(frame)));
        for end in 0..bytes.len() {
            assert_eq!(decoded(&bytes[..end]), Ok(None), "{end} bytes of {bytes:?}");
        }
    }
}

#[test]
fn what_is_no_frame_is_refused_before_it_is_waited_for() {
    let head = [0; 28];
    let too_large = u32::try_from(limits::RESULT + limits::KIB + 1).expect("small").to_be_bytes();
    assert!(matches!(decoded(&too_large), Err(FrameError::TooLarge { .. })));
    assert_eq!(decoded(&[0; 4]), Err(FrameError::Empty));
    assert_eq!(decoded(&from_worker(99, b"")), Err(FrameError::Unknown(99)));
    assert_eq!(decoded(&from_worker(16, b"\0")), Err(FrameError::Truncated { kind: 16 }));
    assert_eq!(decoded(&from_worker(19, &head[..27])), Err(FrameError::Truncated { kind: 19 }));
    assert_eq!(decoded(&from_worker(21, &head[..24])), Err(FrameError::Truncated { kind: 21 }));
    for not_json in [&b"{"[..], b"", b"1 2", b"\xff", b"\"\xff\""] {
        let frame = from_worker(19, &[&head[..], not_json].concat());
        assert!(matches!(decoded(&frame), Err(FrameError::Json { kind: 19, .. })), "{not_json:?}");
    }
    assert!(matches!(decoded(&from_worker(18, b"[]")), Err(FrameError::Json { kind: 18, .. })));
}

#[test]
fn a_large_frames_memory_goes_with_it() {
    let mut decoder = Decoder::default();
    let result = format!("\"{}\"", "x".repeat(4 * limits::MIB));
    decoder.buffer().extend_from_slice(&from_worker(19, &[&[0; 28], result.as_bytes()].concat()));
    assert!(matches!(decoder.next_frame(), Ok(Some(FromWorker::Result(_, json))) if json.len() == result.len()));
    assert!(decoder.is_empty());
    decoder.buffer().reserve(limits::KIB);
    assert!(decoder.buffer().capacity() <= 64 * limits::KIB, "{} bytes are held", decoder.buffer().capacity());
}

#[test]
fn an_errors_texts_are_cut_at_a_character() {
    let long = "ä".repeat(limits::ERROR_MESSAGE);
    let json = serde_json::json!({ "type": long, "message": long, "stack": "s".repeat(limits::ERROR_STACK + 1) });
    let Ok(Some(FromWorker::Failed(fault))) = decoded(&from_worker(18, json.to_string().as_bytes())) else {
        panic!("no fault");
    };
    assert!(fault.kind.len() <= limits::ERROR_TYPE && fault.kind.ends_with('…'));
    assert!(fault.message.len() <= limits::ERROR_MESSAGE && fault.message.ends_with("ä…"));
    assert!(fault.stack.len() <= limits::ERROR_STACK);
}

#[path = "../../../../fuzz/smoke.rs"]
mod smoke;

#[test]
fn the_fuzz_targets_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/worker_frames");
    let mut count = 0;
    for seed in fs::read_dir(&seeds).unwrap_or_else(|error| panic!("{}: {error}", seeds.display())) {
        let data = fs::read(seed.expect("an entry").path()).expect("read");
        fuzzing::frames(&data);
        for at in 0..data.len() {
            fuzzing::frames(&data[..at]);
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut changed = data.clone();
                changed[at] ^= flip;
                fuzzing::frames(&changed);
            }
        }
        count += 1;
    }
    assert!(count >= 3, "{count} seeds");
    smoke::smoke(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."), "worker_frames", 20_000, fuzzing::frames);
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same(data in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzzing::frames(&data);
    }

    #[test]
    fn frames_one_after_another_are_all_found(kinds in prop::collection::vec((16_u8..22, ".{0,30}"), 0..10)) {
        let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, text)| from_worker(*kind, text.as_bytes())).collect();
        fuzzing::frames(&bytes);
    }
}
