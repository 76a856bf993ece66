//! Wire formats, byte for byte. A golden that changes is a decision: agents and gateways of two releases run
//! side by side, and stores and streams hold what the last one wrote.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use flux_protocol::{
    AgentId, Chunk, Digest, ErrorCode, ErrorKind, ExecutionError, ExecutionId, FunctionName, FunctionSpec,
    FunctionVersion, GatewayId, Invocation, Lane, Outcome, OutcomeStatus, OutputLog, Payload, Phase, PoolName,
    StatusMessage, Stream, Timestamp, Usage,
    agent::{
        AgentStatus, Budget, CancelReply, CancelRequest, Capabilities, ControlReply, ControlRequest, Heartbeat,
        MissingLayer, NodeStatus, OutputMessage, RunningCount, RuntimeGiven,
    },
    event::{HttpEvent, HttpResponse},
    execution::{BlobRef, QueuePosition, Start, StartKind},
    subject::{self, QueueName},
};
use serde::{Serialize, de::DeserializeOwned};

/// 2026-11-21T10:40:00Z.
const NOW: i64 = 1_795_257_600_000_000;

fn now() -> Timestamp {
    Timestamp::from_micros(NOW)
}

fn id() -> ExecutionId {
    ExecutionId::derived("FLUX_INVOKE", 1, now())
}

fn agent() -> AgentId {
    AgentId::parse("agent-1").expect("an id")
}

fn function() -> FunctionName {
    FunctionName::parse("hello").expect("a name")
}

/// Written as `golden`, and read again the same.
fn holds<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, golden: &str) {
    assert_eq!(serde_json::to_string(value).expect("JSON"), golden);
    assert_eq!(&serde_json::from_str::<T>(golden).expect("it reads"), value);
}

#[test]
fn derived_ids() {
    // Made by another program from the rule in the function's documentation.
    for (stream, sequence, micros, golden) in [
        ("FLUX_INVOKE", 1, NOW, "exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        ("FLUX_INVOKE", 2, NOW, "exc-01a1fdb1-0800-7686-bbbc-f064075ab5ac"),
        ("FLUX_INVOKE-gpu", 1, NOW, "exc-01a1fdb1-0800-772e-90b0-fcb407b9f42b"),
        ("FLUX_INVOKE", 1, NOW + 1, "exc-01a1fdb1-0800-7a86-9435-ce56460b7649"),
        ("FLUX_CALL", u64::MAX, 0, "exc-00000000-0000-7691-b4f8-063e5395667a"),
        ("", 0, 999, "exc-00000000-0000-7315-8ba5-95cb222cb7b6"),
    ] {
        let id = ExecutionId::derived(stream, sequence, Timestamp::from_micros(micros));
        assert_eq!(id.to_string(), golden);
        assert_eq!(golden.parse::<ExecutionId>().expect("an id"), id);
    }
    assert_eq!(id().created_at(), now());
}

#[test]
fn digests() {
    let text = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    holds(&Digest::of(b"hello"), &format!("\"{text}\""));
    assert_eq!(Digest::of(b"hello").hex(), text[7..]);
}

fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Failed,
        error: Some(ExecutionError {
            exit_code: Some(3),
            ..ExecutionError::new(ErrorKind::Exit, "it exited with code 3")
        }),
        output: OutputLog {
            chunks: vec![
                Chunk { seq: 1, stream: Stream::Stdout, data: Bytes::from_static("grüße\n".as_bytes()) },
                Chunk { seq: 4, stream: Stream::Stderr, data: Bytes::from_static(&[0xff, 0x00]) },
            ],
            dropped_bytes: 12,
        },
        output_ref: None,
        duration_ms: Duration::from_micros(1234).into(),
        start: None,
        usage: Usage { cpu_ms: Duration::from_micros(500).into(), memory_peak_mb: 7 },
        will_retry: true,
    }
}

#[test]
fn outcomes() {
    holds(
        &outcome(),
        r#"{"status":"failed","error":{"kind":"exit","message":"it exited with code 3","exit_code":3},"output":{"chunks":[{"seq":1,"stream":"stdout","data":"grüße\n"},{"seq":4,"stream":"stderr","data_base64":"/wA="}],"dropped_bytes":12},"duration_ms":1.234,"usage":{"cpu_ms":0.5,"memory_peak_mb":7},"will_retry":true}"#,
    );
    let handled = Outcome {
        error: Some(ExecutionError {
            error_type: Some("KeyError".into()),
            stack: Some("line 1".into()),
            ..ExecutionError::new(ErrorKind::Exit, "no")
        }),
        output: OutputLog {
            chunks: vec![Chunk { seq: 1, stream: Stream::Result, data: Bytes::from_static(b"1") }],
            dropped_bytes: 0,
        },
        start: Some(Start { kind: StartKind::Cold, init_ms: Duration::from_micros(12_500).into() }),
        will_retry: false,
        ..outcome()
    };
    holds(
        &handled,
        r#"{"status":"failed","error":{"kind":"exit","message":"no","type":"KeyError","stack":"line 1"},"output":{"chunks":[{"seq":1,"stream":"result","data":"1"}]},"duration_ms":1.234,"start":{"kind":"cold","init_ms":12.5},"usage":{"cpu_ms":0.5,"memory_peak_mb":7}}"#,
    );
    let by_reference = Outcome {
        output: OutputLog::default(),
        output_ref: Some(BlobRef { key: "output-x-1".to_owned(), digest: Digest::of(b""), size: 300_000 }),
        error: None,
        status: OutcomeStatus::Success,
        will_retry: false,
        ..outcome()
    };
    holds(
        &by_reference,
        r#"{"status":"success","output":{"chunks":[]},"output_ref":{"key":"output-x-1","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":300000},"duration_ms":1.234,"usage":{"cpu_ms":0.5,"memory_peak_mb":7}}"#,
    );
    let bare = r#"{"status":"success","duration_ms":0.0}"#;
    assert!(serde_json::from_str::<Outcome>(bare).is_ok_and(|outcome| outcome.is_terminal()), "what may be left out");
}

#[test]
fn error_kinds() {
    for (kind, golden) in [
        (ErrorKind::Exit, "exit"),
        (ErrorKind::Signal, "signal"),
        (ErrorKind::Timeout, "timeout"),
        (ErrorKind::OutOfMemory, "out_of_memory"),
        (ErrorKind::Cancelled, "cancelled"),
        (ErrorKind::AgentLost, "agent_lost"),
        (ErrorKind::Expired, "expired"),
        (ErrorKind::Throttled, "throttled"),
        (ErrorKind::InvalidFunction, "invalid_function"),
        (ErrorKind::Sandbox, "sandbox"),
    ] {
        holds(&kind, &format!("\"{golden}\""));
    }
}

#[test]
fn statuses() {
    let ended = StatusMessage {
        execution_id: id(),
        function: function(),
        version: 3,
        attempt: 2,
        lane: Lane::Invoke,
        pool: PoolName::parse("gpu").expect("a name"),
        phase: Phase::Ended,
        agent_id: Some(agent()),
        queued_at: now(),
        started_at: Some(now().plus(Duration::from_millis(1))),
        at: now().plus(Duration::from_micros(2500)),
        deadline: Some(now().plus(Duration::from_secs(30))),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        outcome: Some(Outcome {
            error: None,
            output: OutputLog::default(),
            status: OutcomeStatus::Success,
            will_retry: false,
            ..outcome()
        }),
        invocation: Some(Box::new(Invocation {
            attempt: 2,
            payload: Payload::Inline(Bytes::from_static(b"{}")),
            ..Invocation::default()
        })),
        notes: vec!["a note".to_owned()],
    };
    holds(
        &ended,
        r#"{"execution_id":"exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6","function":"hello","version":3,"attempt":2,"lane":"invoke","pool":"gpu","phase":"ended","agent_id":"agent-1","queued_at":"2026-11-21T10:40:00Z","started_at":"2026-11-21T10:40:00.001Z","at":"2026-11-21T10:40:00.0025Z","deadline":"2026-11-21T10:40:30Z","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","outcome":{"status":"success","output":{"chunks":[]},"duration_ms":1.234,"usage":{"cpu_ms":0.5,"memory_peak_mb":7}},"invocation":{"attempt":2,"failures":0,"payload":{"inline":"e30="}},"notes":["a note"]}"#,
    );
    assert_eq!(ended.message_id(), "exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6.2.ended");
    let running = StatusMessage {
        pool: PoolName::default(),
        phase: Phase::Running,
        lane: Lane::Call,
        started_at: None,
        deadline: None,
        traceparent: None,
        outcome: None,
        invocation: None,
        notes: Vec::new(),
        agent_id: None,
        ..ended
    };
    holds(
        &running,
        r#"{"execution_id":"exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6","function":"hello","version":3,"attempt":2,"lane":"call","phase":"running","queued_at":"2026-11-21T10:40:00Z","at":"2026-11-21T10:40:00.0025Z"}"#,
    );
    assert_eq!(running.message_id(), "exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6.2.running");
    let newer = serde_json::to_string(&running).expect("JSON").replacen('{', r#"{"of_a_later_release":1,"#, 1);
    assert!(serde_json::from_str::<StatusMessage>(&newer).is_ok(), "fields may be added");
}

#[test]
fn heartbeats() {
    let heartbeat = Heartbeat {
        agent_id: agent(),
        pool: PoolName::default(),
        address: "node-1".to_owned(),
        status: AgentStatus::Draining,
        release: "0.1.0".to_owned(),
        started_at: now(),
        at: now(),
        node: NodeStatus {
            cpu_percent: 12.5,
            memory_percent: 50.0,
            memory_total_mb: 2048,
            memory_used_mb: 1024,
            active_tasks: 1,
            uptime_seconds: 60,
            collected_at: now(),
        },
        total: Budget { tasks: 8, cpu_millicores: 2000, memory_mb: 1800 },
        free: Budget { tasks: 7, cpu_millicores: 1900, memory_mb: 1672 },
        running: vec![RunningCount { function: function(), calls: 1, invokes: 0, warm: 2 }],
        capabilities: Capabilities {
            container_refuses: Vec::new(),
            refuses: Vec::new(),
            tiers: vec!["process".to_owned()],
            layers: vec!["pid_namespace".to_owned()],
            missing: vec![MissingLayer { layer: "cgroup_memory".to_owned(), reason: "why".to_owned() }],
            runtimes: vec![RuntimeGiven { name: "python".to_owned(), version: "3.11.2".to_owned() }],
        },
        cached_digests: 4,
        secrets_key: None,
        finished: 0,
    };
    holds(
        &heartbeat,
        r#"{"agent_id":"agent-1","pool":"default","address":"node-1","status":"draining","release":"0.1.0","started_at":"2026-11-21T10:40:00Z","at":"2026-11-21T10:40:00Z","node":{"cpu_percent":12.5,"memory_percent":50.0,"memory_total_mb":2048,"memory_used_mb":1024,"active_tasks":1,"uptime_seconds":60,"collected_at":"2026-11-21T10:40:00Z"},"total":{"tasks":8,"cpu_millicores":2000,"memory_mb":1800},"free":{"tasks":7,"cpu_millicores":1900,"memory_mb":1672},"running":[{"function":"hello","calls":1,"invokes":0,"warm":2}],"capabilities":{"tiers":["process"],"layers":["pid_namespace"],"missing":[{"layer":"cgroup_memory","reason":"why"}],"runtimes":[{"name":"python","version":"3.11.2"}]},"cached_digests":4}"#,
    );
}

#[test]
fn control() {
    holds(&ControlRequest::Ping, r#"{"op":"ping"}"#);
    holds(&ControlRequest::Drain, r#"{"op":"drain"}"#);
    holds(&ControlRequest::Undrain, r#"{"op":"undrain"}"#);
    holds(
        &ControlRequest::Ring { queue: "call.default.hello".to_owned() },
        r#"{"op":"ring","queue":"call.default.hello"}"#,
    );
    let exc = "exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6";
    holds(&ControlRequest::Tail { execution_id: id() }, &format!(r#"{{"op":"tail","execution_id":"{exc}"}}"#));
    holds(
        &ControlRequest::Holds { execution_ids: vec![id()] },
        &format!(r#"{{"op":"holds","execution_ids":["{exc}"]}}"#),
    );
    holds(
        &ControlRequest::Withdrawn { execution_id: id(), reason: "r".to_owned() },
        &format!(r#"{{"op":"withdrawn","execution_id":"{exc}","reason":"r"}}"#),
    );
    holds(&ControlReply::Ok { agent_id: agent() }, r#"{"reply":"ok","agent_id":"agent-1"}"#);
    holds(&ControlReply::NotHeld, r#"{"reply":"not_held"}"#);
    holds(&ControlReply::Invalid { message: "m".to_owned() }, r#"{"reply":"invalid","message":"m"}"#);
    holds(
        &ControlReply::Tail { attempt: 1, output: OutputLog::default() },
        r#"{"reply":"tail","attempt":1,"output":{"chunks":[]}}"#,
    );
    holds(
        &ControlReply::Holds { agent_id: agent(), execution_ids: vec![id()] },
        &format!(r#"{{"reply":"holds","agent_id":"agent-1","execution_ids":["{exc}"]}}"#),
    );
    let chunk = Chunk { seq: 2, stream: Stream::Stderr, data: Bytes::from_static(b"no") };
    holds(&OutputMessage { attempt: 1, chunk }, r#"{"attempt":1,"chunk":{"seq":2,"stream":"stderr","data":"no"}}"#);
    holds(&CancelRequest { reason: "r".to_owned() }, r#"{"reason":"r"}"#);
    holds(&CancelReply { agent_id: agent(), cancelled: false }, r#"{"agent_id":"agent-1","cancelled":false}"#);
}

fn everything() -> Invocation {
    Invocation {
        execution_id: Some(id()),
        attempt: 2,
        failures: 1,
        args: vec!["a".to_owned(), "ü\n\"".to_owned()],
        reply_to: Some("flux.reply.gw-1.00".to_owned()),
        deadline: Some(now()),
        version: Some(7),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        redrive_of: Some(ExecutionId::derived("FLUX_INVOKE", 2, now())),
        payload: Payload::Blob(BlobRef { key: "payload-x".to_owned(), digest: Digest::of(b"hello"), size: 5 }),
    }
}

#[test]
fn headers() {
    assert_eq!(
        everything().headers(),
        [
            ("Flux-Execution-Id", "exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
            ("Flux-Attempt", "2"),
            ("Flux-Failures", "1"),
            ("Flux-Args", r#"["a","ü\n\""]"#),
            ("Flux-Reply-To", "flux.reply.gw-1.00"),
            ("Flux-Deadline", "2026-11-21T10:40:00Z"),
            ("Flux-Version", "7"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("Flux-Redrive-Of", "exc-01a1fdb1-0800-7686-bbbc-f064075ab5ac"),
            ("Flux-Payload-Ref", "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824;5;payload-x"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
    );
    assert_eq!(everything().message_id().as_deref(), Some("exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6.2"));
    assert_eq!(everything().body(), Bytes::new());
    let bare = Invocation { attempt: 1, payload: Payload::Inline(Bytes::from_static(b"x")), ..Invocation::default() };
    assert_eq!(bare.headers(), [], "a bare message is an invocation");
    assert_eq!((bare.body(), bare.message_id()), (Bytes::from_static(b"x"), None));
}

#[test]
fn stored_invocations() {
    holds(
        &everything(),
        r#"{"execution_id":"exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6","attempt":2,"failures":1,"args":["a","ü\n\""],"reply_to":"flux.reply.gw-1.00","deadline":"2026-11-21T10:40:00Z","version":7,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","redrive_of":"exc-01a1fdb1-0800-7686-bbbc-f064075ab5ac","payload":{"blob":{"key":"payload-x","digest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size":5}}}"#,
    );
    holds(
        &QueuePosition { stream: "FLUX_INVOKE".to_owned(), sequence: 5, epoch: now() },
        r#"{"stream":"FLUX_INVOKE","sequence":5,"epoch":"2026-11-21T10:40:00Z"}"#,
    );
}

#[test]
fn encoded_output() {
    let encoded = outcome().output.encode();
    let golden = [
        &[0, 0, 0, 0, 0, 0, 0, 12][..],
        &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8],
        "grüße\n".as_bytes(),
        &[0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 2, 0xff, 0x00],
    ]
    .concat();
    assert_eq!(encoded, golden);
    assert_eq!(OutputLog::decode(encoded), Some(outcome().output));
    assert_eq!(OutputLog::default().encode(), [0; 8][..]);
}

#[test]
fn deployed_versions() {
    let spec: FunctionSpec = flux_protocol::function::parse_yaml(
        "name: hello\nhandler: bin/run\nresources: { cpu: 250, memory: 64 }\ntimeout: 2.5\nmax_concurrency: 4\n\
         max_concurrency_behavior: wait\nretry: { max_attempts: 3, backoff: 1500ms }\nnetwork: none\n\
         env: { A: b, N: 1 }\nstop_grace: 2s\npool: gpu\n",
    )
    .expect("it is right");
    holds(
        &FunctionVersion { version: 3, digest: Some(Digest::of(b"hello")), spec, created_at: now() },
        r#"{"version":3,"digest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","spec":{"name":"hello","handler":"bin/run","runtime":"native","isolation":"process","resources":{"cpu":250,"memory":64},"timeout":2.5,"max_concurrency":4,"max_concurrency_behavior":"wait","resource_pressure_behavior":"exit","retry":{"max_attempts":3,"backoff":"1500ms"},"network":"none","env":{"A":"b","N":"1"},"stop_grace":"2s","pool":"gpu"},"created_at":"2026-11-21T10:40:00Z"}"#,
    );
}

#[test]
fn subjects() {
    let queue = |lane, pool: &str| QueueName::new(lane, PoolName::parse(pool).expect("a name"), function());
    let (default, gpu) = (PoolName::default(), PoolName::parse("gpu").expect("a name"));
    let gateway = GatewayId::parse("gw-1").expect("an id");
    for (built, golden) in [
        (queue(Lane::Invoke, "default").subject(), "flux.invoke.hello"),
        (queue(Lane::Call, "default").subject(), "flux.call.hello"),
        (queue(Lane::Invoke, "gpu").subject(), "flux.invoke-gpu.hello"),
        (queue(Lane::Call, "gpu").subject(), "flux.call-gpu.hello"),
        (queue(Lane::Invoke, "gpu").stream(), "FLUX_INVOKE-gpu"),
        (queue(Lane::Call, "default").stream(), "FLUX_CALL"),
        (queue(Lane::Call, "gpu").key(), "call.gpu.hello"),
        (queue(Lane::Call, "gpu").consumer(), "hello"),
        (subject::stream_subjects(Lane::Invoke, &default), "flux.invoke.*"),
        (subject::stream_subjects(Lane::Call, &gpu), "flux.call-gpu.*"),
        (subject::ring(&queue(Lane::Invoke, "default")), "flux.ring.invoke.default.hello"),
        (subject::ring_mapping(Lane::Invoke, &gpu).0, "flux.invoke-gpu.*"),
        (subject::ring_mapping(Lane::Invoke, &gpu).1, "flux.ring.invoke.gpu.{{wildcard(1)}}"),
        (subject::rings().to_owned(), "flux.ring.>"),
        (subject::delayed(&default, id()), "flux.delayed.exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::delayed_subjects(&gpu), "flux.delayed-gpu.*"),
        (subject::replies(&gateway), "flux.reply.gw-1.*"),
        (subject::output(&agent(), id()), "flux.output.agent-1.exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::outputs_of(id()), "flux.output.*.exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::outputs_all().to_owned(), "flux.output.>"),
        (subject::status("gw-1", id()), "flux.status.gw-1.exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::statuses_of(id()), "flux.status.*.exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::status_log(&gpu, "gw-1"), "flux.statuses.gpu.gw-1"),
        (subject::status_logs().to_owned(), "flux.statuses.*.*"),
        (subject::control(&agent()), "flux.control.agent-1"),
        (subject::control_all().to_owned(), "flux.control"),
        (subject::cancel(id()), "flux.cancel.exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::cancels().to_owned(), "flux.cancel.*"),
        (subject::holders(&gpu, &agent()), "flux.holders.gpu.agent-1"),
        (subject::holders_of(&default), "flux.holders.default.*"),
        (subject::heartbeat(&gpu, &agent()), "flux.agent.gpu.agent-1"),
        (subject::agents_key(&gpu, &agent()), "gpu.agent-1"),
        (subject::heartbeats().to_owned(), "flux.agent.*.*"),
        (subject::dlq(&function()), "flux.dlq.hello"),
        (subject::dlqs().to_owned(), "flux.dlq.*"),
        (subject::payload_blob(id()), "payload-exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6"),
        (subject::output_blob(&agent(), id(), 2), "agent-1.output-exc-01a1fdb1-0800-7bda-9356-d3ab58650cd6-2"),
        (subject::question(&agent(), subject::RENEWAL), "flux.ask.agent-1.renewal"),
        (subject::table_changes("flux_hot"), "flux.table.flux_hot.>"),
    ] {
        assert_eq!(built, golden);
    }
    assert_eq!(subject::execution_of_cancel(&subject::cancel(id())), Some(id()));
    assert_eq!(subject::agent_of_holders(&subject::holders(&gpu, &agent())), Some(agent()));
    let reply = subject::reply(&gateway);
    assert!(subject::may_reply_to(&reply) && reply.len() == "flux.reply.gw-1.".len() + 32, "{reply}");
    assert_ne!(reply, subject::reply(&gateway));
}

#[test]
fn where_agents_may_reply() {
    for (subject, allowed) in [
        ("_INBOX.abc.1", true),
        ("flux.reply.gw-1.00", true),
        ("flux.reply.", false),
        ("_INBOX.", false),
        ("_INBOX", false),
        ("flux.status.gw.x", false),
        ("flux.replyx.a", false),
        ("$JS.API.STREAM.DELETE.FLUX_INVOKE", false),
        ("_INBOX.>", false),
        ("_INBOX.*", false),
        ("_INBOX..a", false),
        ("_INBOX.a b", false),
        ("_INBOX.a\r\nx", false),
        ("_INBOX.ü", false),
    ] {
        assert_eq!(subject::may_reply_to(subject), allowed, "{subject}");
    }
    assert!(!subject::may_reply_to(&format!("_INBOX.{}", "a".repeat(300))));
}

#[test]
fn error_codes() {
    for code in ErrorCode::ALL {
        assert_eq!(serde_json::to_string(code).expect("JSON"), format!("\"{}\"", code.as_str()));
        assert!((400..600).contains(&code.http_status()), "{code}");
    }
}

#[test]
fn function_urls() {
    let event = HttpEvent {
        method: "POST".to_owned(),
        path: "/a".to_owned(),
        query: BTreeMap::from([("q".to_owned(), "1".to_owned())]),
        raw_query: "q=1".to_owned(),
        headers: BTreeMap::from([("x-a".to_owned(), "b".to_owned())]),
        body: String::new(),
        is_base64_encoded: false,
    };
    holds(
        &event.clone().with_body(&Bytes::from_static(b"text")),
        r#"{"method":"POST","path":"/a","query":{"q":"1"},"rawQuery":"q=1","headers":{"x-a":"b"},"body":"text","isBase64Encoded":false}"#,
    );
    let binary = event.with_body(&Bytes::from_static(&[0xff]));
    assert_eq!((binary.body.as_str(), binary.is_base64_encoded), ("/w==", true));

    let response = |json: &str| HttpResponse::from_result(&serde_json::from_str(json).expect("JSON"));
    let full = response(r#"{"statusCode":201,"headers":{"a":"b"},"body":"/w==","isBase64Encoded":true}"#).expect("one");
    assert_eq!((full.status_code, full.body_bytes()), (201, Some(Bytes::from_static(&[0xff]))));
    assert_eq!(response(r#"{"statusCode":204}"#).expect("one").body_bytes(), Some(Bytes::new()));
    assert_eq!(
        response(r#"{"statusCode":200,"body":{"n":1}}"#).expect("one").body_bytes(),
        Some(Bytes::from_static(br#"{"n":1}"#))
    );
    assert_eq!(response(r#"{"statusCode":200,"body":"!","isBase64Encoded":true}"#).expect("one").body_bytes(), None);
    for none in
        [r#"{"body":"x"}"#, r#"{"statusCode":99}"#, r#"{"statusCode":600}"#, r#"{"statusCode":"200"}"#, "[]", "7"]
    {
        assert_eq!(response(none), None, "{none}");
    }
}

#[test]
fn times() {
    for (micros, golden) in [
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (NOW + 1, "2026-11-21T10:40:00.000001Z"),
        (i64::MIN, "0000-01-01T00:00:00Z"),
        (i64::MAX, "9999-12-31T23:59:59.999999Z"),
    ] {
        assert_eq!(Timestamp::from_micros(micros).to_string(), golden);
        let read: Timestamp = golden.parse().expect("it reads");
        assert_eq!(read.to_string(), golden);
    }
    for (given, same) in [
        ("2026-11-21T12:40:00+02:00", NOW),
        ("2026-11-21t10:40:00.0000009z", NOW),
        ("0000-01-01T00:00:00+01:00", -62_167_219_200_000_000),
    ] {
        let read: Timestamp = given.parse().expect("it reads");
        assert_eq!(read.as_micros(), same, "{given}");
        assert_eq!(read.to_string().parse::<Timestamp>().expect("whatever was read is read again"), read);
    }
    for wrong in ["", "2026-11-21", "1795257600", "2026-11-21T10:40:00", "2026-13-01T00:00:00Z", "tomorrow"] {
        let error = wrong.parse::<Timestamp>().expect_err(wrong);
        assert!(error.to_string().contains("RFC 3339"), "{error}");
    }
}
