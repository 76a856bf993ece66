//! Properties of ids, headers, durations, times, traces and retries.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use flux_protocol::{
    AgentId, Digest, ExecutionId, FunctionName, Invocation, Payload, PoolName, Timestamp,
    execution::BlobRef,
    function::{Retry, format_duration, parse_duration},
    invocation::{Lane, header},
    limits,
    subject::{QueueName, queue_of_ring, ring},
    suggest::nearest,
    trace::TraceParent,
};
use proptest::prelude::*;

fn time() -> impl Strategy<Value = Timestamp> {
    // Years 0 to 9999: all that RFC 3339 can say.
    (-62_167_219_200_000_000_i64..253_402_300_800_000_000).prop_map(Timestamp::from_micros)
}

fn execution() -> impl Strategy<Value = ExecutionId> {
    any::<[u8; 16]>().prop_map(ExecutionId::from_bytes)
}

fn trace() -> impl Strategy<Value = TraceParent> {
    (1..=u128::MAX, 1..=u64::MAX, any::<u8>()).prop_map(|(trace_id, span_id, flags)| TraceParent {
        trace_id,
        span_id,
        flags,
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    let blob = ("[A-Za-z0-9_-]{1,200}", any::<[u8; 32]>(), 0..=limits::PAYLOAD as u64)
        .prop_map(|(key, digest, size)| Payload::Blob(BlobRef { key, digest: Digest::from_bytes(digest), size }));
    prop_oneof![prop::collection::vec(any::<u8>(), 0..50).prop_map(|data| Payload::Inline(data.into())), blob]
}

fn invocation() -> impl Strategy<Value = Invocation> {
    let reply = "(_INBOX|flux\\.reply\\.gw)\\.[a-zA-Z0-9_$-]{1,40}";
    (
        (prop::option::of(execution()), 1..=u32::MAX, any::<u32>(), prop::collection::vec("[^\0]{0,10}", 0..5)),
        (prop::option::of(reply), prop::option::of(time()), prop::option::of(any::<u32>()), prop::option::of(trace())),
        (prop::option::of(execution()), payload()),
    )
        .prop_map(
            |((execution_id, attempt, failures, args), (reply_to, deadline, version, trace), (redrive_of, payload))| {
                Invocation {
                    execution_id,
                    attempt,
                    failures,
                    args,
                    reply_to,
                    deadline,
                    version,
                    traceparent: trace.map(|trace| trace.to_string()),
                    redrive_of,
                    payload,
                }
            },
        )
}

fn read(headers: &HashMap<&str, String>, body: Bytes) -> (Invocation, Vec<String>) {
    Invocation::from_message(|name| headers.get(name).map(String::as_str), body)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_invocation_is_read_from_its_message(invocation in invocation()) {
        let headers = invocation.headers();
        for (_, value) in &headers {
            prop_assert!(!value.contains(['\r', '\n']), "a header is one line: {value:?}");
        }
        let (read, notes) = read(&headers.into_iter().collect(), invocation.body());
        prop_assert_eq!(notes, Vec::<String>::new());
        prop_assert_eq!(read, invocation);
    }

    #[test]
    fn stored_invocations_are_read_again(invocation in invocation()) {
        let json = serde_json::to_string(&invocation).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Invocation>(&json).expect("it reads"), invocation);
    }

    /// Whatever a producer sends is an invocation; what makes no sense is said, shortly.
    #[test]
    fn any_headers_are_an_invocation(values in prop::collection::vec(prop::option::of(".{0,100}"), 10), body in prop::collection::vec(any::<u8>(), 0..20)) {
        let names = [
            header::EXECUTION_ID, header::ATTEMPT, header::FAILURES, header::ARGS, header::REPLY_TO, header::DEADLINE,
            header::VERSION, header::TRACEPARENT, header::PAYLOAD_REF, header::REDRIVE_OF,
        ];
        let headers: HashMap<&str, String> = names.into_iter().zip(values).filter_map(|(n, v)| Some((n, v?))).collect();
        let (invocation, notes) = read(&headers, body.into());
        prop_assert!(invocation.attempt >= 1);
        prop_assert!(notes.iter().all(|note| note.len() < 600));
        let again = invocation.headers().into_iter().collect();
        let (same, notes) = read(&again, invocation.body());
        prop_assert_eq!((same, notes), (invocation, Vec::new()));
    }

    #[test]
    fn durations_are_read_again(millis in 0_u64..1_000_000_000_000) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn durations_are_whole_milliseconds_and_never_shorter(seconds in 0_f64..1e6) {
        let duration = parse_duration(&format!("{seconds}")).expect("a duration");
        prop_assert_eq!(duration.subsec_nanos() % 1_000_000, 0);
        prop_assert!(duration.as_secs_f64() >= seconds - 1e-9 && duration.as_secs_f64() < seconds + 0.0011);
    }

    #[test]
    fn any_text_is_a_duration_or_an_error(text in ".{0,20}") {
        if let Ok(duration) = parse_duration(&text) {
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }

    #[test]
    fn times_are_read_again(time in time()) {
        prop_assert_eq!(time.to_string().parse::<Timestamp>().expect("it reads"), time);
    }

    #[test]
    fn times_keep_their_order(a in any::<i64>(), b in any::<i64>()) {
        let read = |micros| Timestamp::from_micros(micros).to_string().parse::<Timestamp>().expect("it reads");
        prop_assert!(a > b || read(a) <= read(b));
    }

    #[test]
    fn traces_are_read_again(trace in trace()) {
        let text = trace.to_string();
        prop_assert_eq!(TraceParent::parse(&text), Some(trace));
        prop_assert_eq!(trace.child().trace_id, trace.trace_id);
        prop_assert_eq!(TraceParent::parse(&text.to_uppercase()).is_some(), text == text.to_uppercase());
        let extended = format!("cc{}-more", &text[2..]);
        prop_assert_eq!(TraceParent::parse(&extended), Some(trace), "a later version may say more");
    }

    #[test]
    fn any_text_is_a_trace_or_none(text in "[0-9a-fA-F-]{50,60}|.{0,70}|(00|ff|cc)-[0f]{32}-[0f]{16}-[0-9a-f]{2}(-x)?") {
        if let Some(trace) = TraceParent::parse(&text) {
            prop_assert!(trace.trace_id != 0 && trace.span_id != 0);
            prop_assert_eq!(TraceParent::parse(&trace.to_string()), Some(trace));
        }
    }

    #[test]
    fn execution_ids_are_read_again_and_sort_by_time(a in time(), b in time(), n in any::<u64>()) {
        let (one, two) = (ExecutionId::derived("s", n, a), ExecutionId::derived("s", n, b));
        prop_assert_eq!(one.to_string().parse::<ExecutionId>().expect("it reads"), one);
        if a.as_millis() >= 0 && b.as_millis() >= 0 && a.as_millis() != b.as_millis() {
            prop_assert_eq!(one < two, a < b);
            prop_assert_eq!(one.created_at().as_millis(), a.as_millis());
        }
    }

    #[test]
    fn any_text_is_an_id_or_an_error(text in "(exc-)?[0-9a-fA-F-]{30,40}|.{0,80}") {
        if let Ok(id) = text.parse::<ExecutionId>() {
            prop_assert_eq!(id.to_string(), text.to_lowercase());
        }
        if let Ok(name) = FunctionName::parse(&text) {
            prop_assert_eq!(name.as_str(), &text);
            prop_assert!(!text.contains(['.', '*', '>', '/', ' ', '\0']) && (1..=64).contains(&text.len()));
        } else if let Err(error) = FunctionName::parse(&text) {
            prop_assert!(error.to_string().len() < 600);
        }
    }

    #[test]
    fn digests_are_read_again(bytes in any::<[u8; 32]>()) {
        let digest = Digest::from_bytes(bytes);
        prop_assert_eq!(digest.to_string().parse::<Digest>().expect("it reads"), digest);
    }

    #[test]
    fn queues_are_found_in_their_names(pool in "[A-Za-z0-9_-]{1,64}", function in "[A-Za-z0-9_-]{1,64}", call in any::<bool>()) {
        let lane = if call { Lane::Call } else { Lane::Invoke };
        let queue = QueueName::new(lane, PoolName::parse(&pool).expect("a name"), FunctionName::parse(&function).expect("a name"));
        prop_assert_eq!(QueueName::from_subject(&queue.subject()), Some(queue.clone()));
        prop_assert_eq!(QueueName::from_key(&queue.key()), Some(queue.clone()));
        prop_assert_eq!(queue_of_ring(&ring(&queue)), Some(queue));
    }

    #[test]
    fn any_text_is_a_queue_or_none(text in "flux\\.(invoke|call|ring)[-.a-z*>]{0,20}|.{0,30}") {
        if let Some(queue) = QueueName::from_subject(&text) {
            // `invoke-default` is read as the default pool, whose subjects have no suffix.
            prop_assert!(queue.subject() == text || queue.pool.is_default());
        }
        if let Some(queue) = QueueName::from_key(&text) {
            prop_assert_eq!(queue.key(), text);
        }
    }

    #[test]
    fn waits_between_attempts_grow_to_their_cap(backoff in 0_u64..4_000_000, jitter in 0_f64..=1.0) {
        let retry = Retry { max_attempts: 100, backoff: Duration::from_millis(backoff) };
        let mut before = Duration::ZERO;
        for next in 2..110 {
            let delay = retry.delay_before(next, jitter);
            prop_assert!(delay >= before);
            prop_assert!(delay <= limits::RETRY_BACKOFF.mul_f64(1.25));
            before = delay;
        }
        prop_assert!(retry.delay_before(2, jitter) >= retry.backoff.min(limits::RETRY_BACKOFF).mul_f64(0.75));
        prop_assert!(retry.delay_before(0, jitter) == retry.delay_before(2, jitter));
    }

    #[test]
    fn suggestions_are_of_the_candidates(given in ".{0,100}") {
        let candidates = ["name", "handler", "timeout"];
        prop_assert!(nearest(&given, candidates).is_none_or(|near| candidates.contains(&near)));
    }
}

#[test]
fn waits_at_the_edges() {
    let retry = Retry { max_attempts: 3, backoff: Duration::from_secs(1) };
    assert_eq!(retry.delay_before(2, 0.5), Duration::from_secs(1));
    assert_eq!(retry.delay_before(3, 0.5), Duration::from_secs(2));
    assert_eq!(retry.delay_before(4, 0.0), Duration::from_secs(3));
    for jitter in [f64::NAN, f64::INFINITY, -7.0, 7.0] {
        assert!(retry.delay_before(2, jitter) <= Duration::from_millis(1250));
    }
    let endless = Retry { max_attempts: 3, backoff: Duration::MAX };
    assert_eq!(endless.delay_before(u32::MAX, 0.5), limits::RETRY_BACKOFF);
}

#[test]
fn durations_as_people_write_them() {
    for (text, millis) in [
        ("30", 30_000),
        ("1.5", 1500),
        ("250ms", 250),
        ("10s", 10_000),
        ("5m", 300_000),
        ("6h", 21_600_000),
        ("1d", 86_400_000),
        (" 2 s ", 2000),
        ("0", 0),
        ("0.0001", 1),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for wrong in ["", "s", "-1", "1e9", "1.2.3", "10 minutes", "inf", "NaN", "99999999999999999999", "1,5"] {
        let error = parse_duration(wrong).expect_err(wrong);
        assert!(error.contains("250ms") || error.contains("out of range"), "{error}");
    }
}

#[test]
fn suggestions() {
    let fields = ["name", "handler", "timeout", "max_concurrency", "env"];
    for (given, near) in [
        ("nmae", Some("name")),
        ("Timeout", Some("timeout")),
        ("time_out", Some("timeout")),
        ("max-concurrency", Some("max_concurrency")),
        ("environment", None),
        ("xyz", None),
        ("", None),
    ] {
        assert_eq!(nearest(given, fields), near, "{given}");
    }
}

#[test]
fn random_ids_are_valid() {
    assert!(AgentId::parse(AgentId::random().as_str()).is_ok());
    assert_ne!(AgentId::random(), AgentId::random());
    assert_ne!(ExecutionId::new(), ExecutionId::new());
}
