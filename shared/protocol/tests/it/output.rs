//! Output: bounded, accounted for, and the same after any journey.

use bytes::Bytes;
use std::sync::Arc;

use flux_protocol::{
    Chunk, OutputLog, Stream, limits,
    output::{OutputCollector, OutputRoom},
};
use proptest::prelude::*;

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr), Just(Stream::Result)]
}

fn data() -> impl Strategy<Value = Bytes> {
    prop_oneof![prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from), ".{0,20}".prop_map(Bytes::from),]
}

fn log() -> impl Strategy<Value = OutputLog> {
    let chunk = (any::<u64>(), stream(), data()).prop_map(|(seq, stream, data)| Chunk { seq, stream, data });
    (prop::collection::vec(chunk, 0..10), any::<u64>())
        .prop_map(|(chunks, dropped_bytes)| OutputLog { chunks, dropped_bytes })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_output_is_read_again(log in log()) {
        prop_assert_eq!(OutputLog::decode(log.encode()), Some(log));
    }

    #[test]
    fn output_in_json_is_read_again(log in log()) {
        let json = serde_json::to_string(&log).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<OutputLog>(&json).expect("it reads"), log);
    }

    /// What is not an encoded log is refused; what is taken is written the same.
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes = Bytes::from(bytes);
        if let Some(log) = OutputLog::decode(bytes.clone()) {
            prop_assert_eq!(log.encode(), bytes);
        }
    }

    #[test]
    fn a_cut_log_is_refused_or_ends_between_chunks(log in log(), cut in any::<prop::sample::Index>()) {
        let encoded = log.encode();
        let cut = cut.index(encoded.len());
        match OutputLog::decode(encoded.slice(..cut)) {
            None => {}
            Some(shorter) => prop_assert_eq!(&shorter.chunks[..], &log.chunks[..shorter.chunks.len()]),
        }
    }

    #[test]
    fn a_collector_keeps_its_limit_and_its_account(
        limit in 0_usize..200,
        pieces in prop::collection::vec((stream(), 0_usize..60), 0..60),
    ) {
        let mut collector = OutputCollector::with_limit(limit);
        let mut written = Vec::new();
        for (number, (stream, length)) in pieces.iter().enumerate() {
            let data = Bytes::from(vec![b'a' + u8::try_from(number % 26).expect("small"); *length]);
            let chunk = collector.push(*stream, data.clone());
            prop_assert_eq!((chunk.seq, chunk.stream, &chunk.data), (number as u64 + 1, *stream, &data));
            written.push(chunk);
            let log = collector.log();
            let total: usize = written.iter().map(|chunk| chunk.data.len()).sum();
            prop_assert!(log.len() <= limit, "{} of {limit}", log.len());
            prop_assert_eq!(collector.written_bytes(), total as u64);
            prop_assert_eq!(log.len() as u64 + log.dropped_bytes, total as u64);
            if log.dropped_bytes == 0 {
                prop_assert_eq!(&log.chunks, &written);
            }
            if total <= limit / 2 * 2 && log.dropped_bytes == 0 {
                prop_assert_eq!(log.len(), total);
            }
            // In the order written, each once, each whole.
            let mut rest = written.iter();
            prop_assert!(log.chunks.iter().all(|chunk| rest.any(|one| one == chunk)));
        }
        let log = collector.log();
        prop_assert_eq!(collector.finish(), log);
    }
}

#[test]
fn the_middle_goes_first() {
    let mut collector = OutputCollector::with_limit(10);
    for letter in "abcdefghijklmno".bytes() {
        collector.push(Stream::Stdout, Bytes::from(vec![letter]));
    }
    let log = collector.finish();
    assert_eq!((log.to_text().as_str(), log.dropped_bytes), ("abcdeklmno", 5));
    assert_eq!(log.chunks.iter().map(|chunk| chunk.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
}

#[test]
fn those_who_share_a_room_keep_head_and_tail_at_the_least() {
    let room = Arc::new(OutputRoom::new(4 * limits::OUTPUTS_STEP));
    let piece = Bytes::from(vec![b'x'; 64 * limits::KIB]);
    let fill = |mib: usize| {
        let mut collector = OutputCollector::in_room(Arc::clone(&room));
        for _ in 0..mib * 16 {
            collector.push(Stream::Stdout, piece.clone());
        }
        collector
    };
    let first = fill(3);
    assert_eq!(first.log().dropped_bytes, 0);
    // One step is left.
    let second = fill(3);
    let log = second.log();
    assert_eq!(log.len() as u64 + log.dropped_bytes, 3 * limits::MIB as u64);
    assert_eq!(log.len(), limits::OUTPUTS_STEP + 2 * limits::INLINE_OUTPUT, "its step, and the ends");
    assert_eq!((log.chunks[0].seq, log.chunks.last().expect("a tail").seq), (1, 48));
    let third = fill(1);
    assert_eq!(third.log().len(), 2 * limits::INLINE_OUTPUT);
    let (kept, held) = first.finish_and_hold();
    assert_eq!(kept.len(), 3 * limits::MIB);
    assert_eq!(fill(1).log().len(), 2 * limits::INLINE_OUTPUT, "what is held is not free");
    drop(held);
    assert_eq!(fill(3).log().dropped_bytes, 0);
}

#[test]
fn what_a_log_says() {
    let log = |pieces: &[(Stream, &[u8])], dropped_bytes| OutputLog {
        chunks: pieces
            .iter()
            .zip(1..)
            .map(|((stream, data), seq)| Chunk { seq, stream: *stream, data: Bytes::copy_from_slice(data) })
            .collect(),
        dropped_bytes,
    };
    use Stream::{Stderr, Stdout};
    // A character that two chunks share is whole in the text.
    let split = log(&[(Stdout, b"gr\xc3"), (Stdout, b"\xbc\xc3\x9fe"), (Stderr, b"\xff")], 0);
    assert_eq!(split.to_text(), "grüße\u{fffd}");
    assert_eq!(split.bytes_of(Stdout), "grüße".as_bytes());
    assert_eq!(split.bytes_of(Stderr), &b"\xff"[..]);
    let json = log(&[(Stdout, b"{\"n\":"), (Stderr, b"a warning\n"), (Stdout, b" 1}\n")], 0);
    assert_eq!(json.result(), Some(serde_json::json!({"n": 1})));
    for (none, dropped) in [(&b"not json"[..], 0), (b"", 0), (b" \n", 0), (b"1 2", 0), (b"1", 5)] {
        assert_eq!(log(&[(Stdout, none)], dropped).result(), None, "{none:?}");
    }
    assert_eq!(log(&[(Stderr, b"1")], 0).result(), None);
    // What a handler returned is the result, whatever it printed, and is none of the text.
    let returned = log(&[(Stdout, b"{}"), (Stream::Result, b"[1]")], 5);
    assert_eq!((returned.result(), returned.to_text().as_str()), (Some(serde_json::json!([1])), "{}"));
}
