//! What releases before this one sent and stored. Each directory of `tests/golden` has messages of one version of the protocol, as
//! its first release wrote them. They stay as they are, and this release reads them: agents of the release before run beside
//! gateways of this one (docs/upgrading.md). A directory may gain messages; none may change or go.

use std::{fs, path::Path};

use flux_protocol::{
    Digest, FunctionVersion, Invocation, Outcome, StatusMessage,
    agent::{CancelReply, CancelRequest, ControlReply, ControlRequest, Heartbeat, OutputMessage},
    event::HttpEvent,
    execution::QueuePosition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Of version 1, so that a directory that is lost is noticed.
const FIRST: usize = 25;

#[test]
fn what_was_written_before_is_read_and_nothing_of_it_is_lost() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut count = 0;
    for version in fs::read_dir(&root).expect("the versions") {
        let dir = version.expect("an entry").path();
        let sums = fs::read_to_string(dir.join("SHA256SUMS")).expect("which files there are");
        let listed: Vec<(&str, &str)> =
            sums.lines().map(|line| line.split_once("  ").expect("`digest  name`")).collect();
        for (digest, name) in &listed {
            let text = fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name} is gone: {error}"));
            assert_eq!(
                Digest::of(text.as_bytes()).hex(),
                *digest,
                "{name} was written by an earlier release, and stays"
            );
            let golden: Value = serde_json::from_str(&text).expect("JSON");
            let again = read(name, &text);
            if let Some(lost) = lost(&golden, &again, name) {
                panic!("{lost} was sent by an earlier release and would not be understood there any more: {again}");
            }
            count += 1;
        }
        let files = fs::read_dir(&dir).expect("the messages").count();
        assert_eq!(files, listed.len() + 1, "a message that is not in SHA256SUMS could change");
    }
    assert!(count >= FIRST, "{count}");
}

/// As this release reads it, and writes it again.
fn read(name: &str, text: &str) -> Value {
    fn both<T: Serialize + DeserializeOwned>(name: &str, text: &str) -> Value {
        let read: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name} is not read any more: {error}"));
        serde_json::to_value(&read).expect("JSON")
    }
    let kind = name.split_once('-').expect("`kind-which.json`").0;
    match kind {
        "outcome" => both::<Outcome>(name, text),
        "status" => both::<StatusMessage>(name, text),
        "heartbeat" => both::<Heartbeat>(name, text),
        "control_request" => both::<ControlRequest>(name, text),
        "control_reply" => both::<ControlReply>(name, text),
        "output" => both::<OutputMessage>(name, text),
        "cancel_request" => both::<CancelRequest>(name, text),
        "cancel_reply" => both::<CancelReply>(name, text),
        "invocation" => both::<Invocation>(name, text),
        "position" => both::<QueuePosition>(name, text),
        "version" => both::<FunctionVersion>(name, text),
        "http_event" => both::<HttpEvent>(name, text),
        other => panic!("{name}: what is `{other}`?"),
    }
}

/// Where something is not what it was. What came later may stand beside it.
fn lost(before: &Value, now: &Value, path: &str) -> Option<String> {
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => before.iter().find_map(|(field, value)| {
            let path = format!("{path}.{field}");
            match now.get(field) {
                Some(now) => lost(value, now, &path),
                None => Some(path),
            }
        }),
        (Value::Array(before), Value::Array(now)) if before.len() == now.len() => {
            before.iter().zip(now).find_map(|(before, now)| lost(before, now, &format!("{path}[]")))
        }
        _ => (before != now).then(|| path.to_owned()),
    }
}

#[test]
fn a_loss_is_noticed() {
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let before = json(r#"{"a":{"b":1},"c":[{"d":2}]}"#);
    for (now, lacking) in [
        (r#"{"a":{"b":1,"new":0},"c":[{"d":2,"new":0}],"new":0}"#, None),
        (r#"{"a":{},"c":[{"d":2}]}"#, Some("m.a.b")),
        (r#"{"a":{"b":2},"c":[{"d":2}]}"#, Some("m.a.b")),
        (r#"{"a":{"b":1},"c":[]}"#, Some("m.c")),
        (r#"{"a":{"b":1},"c":[{"d":"2"}]}"#, Some("m.c[].d")),
    ] {
        assert_eq!(lost(&before, &json(now), "m").as_deref(), lacking, "{now}");
    }
}
