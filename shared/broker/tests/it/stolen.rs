//! The stolen agent: whoever has `agent-1`'s certificate and key tries what it must not do, with a client that says what it
//! likes, against a real server. Each act is refused by the server, or goes nowhere; how many there were is printed.
//!
//! What counts is what happened, not what was answered: after each act the streams, the tables and every other account are as
//! they were, and a gateway that listens to everything heard nothing of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions, HeaderMap, Subscriber};
use flux_broker::{Blobs as _, Queue as _, Signals as _, StatusLog as _, Table, Tables as _, nats::NatsBroker};
use flux_pki::Certs;
use flux_protocol::{ExecutionId, FunctionName, Lane, PoolName, StatusMessage, identity::Identity, subject};
use futures::StreamExt as _;
use serde_json::Value;

use crate::secure::{PATIENCE, Secure, agent, message, next, pool, queue, raw, secure};

/// Everything that a thief must not change.
const STREAMS: &[&str] = &[
    "FLUX_INVOKE",
    "FLUX_CALL",
    "FLUX_INVOKE-gpu",
    "FLUX_CALL-gpu",
    "FLUX_STATUS",
    "FLUX_DLQ",
    "KV_flux_functions",
    "KV_flux_versions",
    "KV_flux_hot",
    "KV_flux_agents",
    "KV_flux_cancelled",
    "OBJ_flux_code",
    "OBJ_flux_blobs",
    "OBJ_flux_outputs",
];

/// A stream: its configuration, what is in it, its consumers.
type State = BTreeMap<&'static str, Value>;

struct Scene {
    gateway: Arc<NatsBroker>,
    _secure: Secure,
    /// The gateway's account, with a client that can ask anything.
    owner: Client,
    /// Hears all that is published in the gateways' account.
    witness: Subscriber,
    thief: Client,
    executions: [ExecutionId; 2],
    tried: usize,
}

impl Scene {
    async fn set() -> Self {
        let secure = secure().await;
        let gateway = secure.gateway().await;
        let owner = secure.raw(&secure.certs.gateway().expect("a gateway")).await;
        let executions = [ExecutionId::new(), ExecutionId::new()];
        for (pool, function) in [(PoolName::default(), "hello"), (pool("gpu"), "train")] {
            for lane in Lane::ALL {
                let queue = queue(lane, pool.clone(), function);
                gateway.heat(&queue).await.expect("heat");
                gateway.publish(&queue, message("kept")).await.expect("publish");
            }
            gateway.put(Table::Functions, function, "definition".into()).await.expect("put");
        }
        gateway.heat(&queue(Lane::Invoke, PoolName::default(), "idle")).await.expect("heat");
        gateway.put(Table::Agents, "default.agent-2", "beat".into()).await.expect("put");
        gateway.put_blob(subject::CODE_BUCKET, "code", "zip".into()).await.expect("put");
        gateway
            .put_blob(subject::BLOB_BUCKET, &subject::payload_blob(executions[0]), "secret".into())
            .await
            .expect("put");
        let output = subject::output_blob(&agent("agent-2"), executions[0], 1);
        gateway.put_blob(subject::OUTPUT_BUCKET, &output, "secret".into()).await.expect("put");
        let status = flux_broker::conformance::status(&FunctionName::parse("hello").expect("a name"));
        gateway.publish_status("agent-2", &status).await.expect("stored");
        let thief = secure.raw(&secure.certs.agent(&agent("agent-1")).expect("an agent")).await;
        let witness = owner.subscribe(">").await.expect("subscribed");
        owner.flush().await.expect("flushed");
        Self { _secure: secure, gateway, owner, witness, thief, executions, tried: 0 }
    }

    async fn state(&self) -> State {
        let mut state = State::new();
        for &name in STREAMS {
            let answer = self.owner.request(format!("$JS.API.STREAM.INFO.{name}"), "".into()).await.expect("answered");
            let info: Value = serde_json::from_slice(&answer.payload).expect("JSON");
            assert!(info["error"].is_null(), "{name}: {info}");
            let consumers =
                self.owner.request(format!("$JS.API.CONSUMER.NAMES.{name}"), "".into()).await.expect("answered");
            let consumers: Value = serde_json::from_slice(&consumers.payload).expect("JSON");
            // What nobody says again leaves the agents' table by itself, within a test's time.
            let held = if name == "KV_flux_agents" { &info["state"]["last_seq"] } else { &info["state"] };
            state.insert(name, serde_json::json!([info["config"], held, consumers["consumers"]]));
        }
        let names = self.owner.request("$JS.API.STREAM.NAMES", "".into()).await.expect("answered");
        let names: Value = serde_json::from_slice(&names.payload).expect("JSON");
        state.insert("streams", names["streams"].clone());
        state
    }

    /// Both ends are through with what was sent before.
    async fn settle(&mut self) -> Vec<(String, String)> {
        // Through the thief's own account: the server has read what it sent. A request of it goes the way of the others.
        self.thief.flush().await.expect("flushed");
        let own = "flux.api.STREAM.INFO.KV_flux_functions";
        self.thief.request(own, "".into()).await.expect("what it may ask is answered");
        let mark = format!("mark.{:x}", rand::random::<u64>());
        self.owner.publish(mark.clone(), "".into()).await.expect("published");
        let mut heard = Vec::new();
        loop {
            let message =
                tokio::time::timeout(PATIENCE, self.witness.next()).await.expect("in time").expect("it goes on");
            if message.subject.as_str() == mark {
                return heard;
            }
            heard.push((message.subject.to_string(), String::from_utf8_lossy(&message.payload).into_owned()));
        }
    }

    /// The thief does something; afterwards all is as it was. `heard` says what others may hear of it.
    async fn try_act(&mut self, what: &str, before: &State, act: impl AsyncFnOnce(&Client), heard: fn(&str) -> bool) {
        self.settle().await;
        act(&self.thief).await;
        let heard: Vec<_> =
            self.settle().await.into_iter().filter(|(subject, _)| !is_asking(subject) && !heard(subject)).collect();
        assert!(heard.is_empty(), "{what}: others heard {heard:?}");
        let after = self.state().await;
        for (name, state) in before {
            assert_eq!(&after[name], state, "{what}: {name} changed");
        }
        self.tried += 1;
    }
}

/// What the scene's own questions are, and answers.
fn is_asking(subject: &str) -> bool {
    subject.starts_with("$JS.API.STREAM.INFO.")
        || subject.starts_with("$JS.API.STREAM.NAMES")
        || subject.starts_with("$JS.API.CONSUMER.NAMES.")
        || subject.starts_with("$JS.EVENT.ADVISORY.API")
        || subject.starts_with("_INBOX.")
        || subject.starts_with("_R_.")
}

fn nothing(_: &str) -> bool {
    false
}

/// What an agent has no right to publish.
fn forbidden([first, second]: &[ExecutionId; 2]) -> Vec<(String, &'static str, String)> {
    let consumer = |stream: &str| {
        let config = r#"{"deliver_subject":"flux.control.agent-2","ack_policy":"none"}"#;
        format!(r#"{{"stream_name":"{stream}","config":{config}}}"#)
    };
    let blob = |bucket: &str, name: &str| format!("$O.{bucket}.M.{}", base64(name));
    let payload = subject::payload_blob(*first);
    let acts: Vec<(&'static str, &'static str, String, String)> = vec![
        ("invoke", "flux.invoke.hello", String::new(), "evil".into()),
        ("call", "flux.call.hello", String::new(), "evil".into()),
        ("invoke in another pool", "flux.invoke-gpu.train", String::new(), "evil".into()),
        ("schedule an invocation", "flux.delayed", format!(".{second}"), "evil".into()),
        ("write a function", "$KV.flux_functions.hello", String::new(), "evil".into()),
        ("write a version", "$KV.flux_versions.hello.1", String::new(), "evil".into()),
        ("make a queue hot", "$KV.flux_hot.invoke.gpu.train", String::new(), String::new()),
        ("say that something was cancelled", "$KV.flux_cancelled", format!(".{first}"), "evil".into()),
        ("beat for another", "flux.agent.default.agent-2", String::new(), "evil".into()),
        ("beat in another pool", "flux.agent.gpu.agent-1", String::new(), "evil".into()),
        ("beat in no pool", "flux.agent.agent-1", String::new(), "evil".into()),
        ("stand in the table for another", "$KV.flux_agents.default.agent-2", String::new(), "evil".into()),
        ("stand in the table in another pool", "$KV.flux_agents.gpu.agent-1", String::new(), "evil".into()),
        ("say another's status", "flux.statuses.default.agent-2", String::new(), "evil".into()),
        ("say a status in another pool", "flux.statuses.gpu.agent-1", String::new(), "evil".into()),
        ("say a status in no pool", "flux.statuses.agent-1", String::new(), "evil".into()),
        ("say a gateway's status", "flux.statuses.default.gw-000000000001", String::new(), "evil".into()),
        ("signal another's status", "flux.status.agent-2", format!(".{first}"), "evil".into()),
        ("print for another", "flux.output.agent-2", format!(".{first}"), "evil".into()),
        ("drain everybody", "flux.control", String::new(), r#"{"type":"drain"}"#.into()),
        ("drain another", "flux.control.agent-2", String::new(), r#"{"type":"drain"}"#.into()),
        ("cancel", "flux.cancel", format!(".{first}"), r#"{"reason":"evil"}"#.into()),
        ("bury a dead letter", "flux.dlq.hello", String::new(), "evil".into()),
        ("ask as another", "flux.ask.agent-2.renewal", String::new(), "evil".into()),
        ("say that another pool's queue has work", "flux.ring.invoke.gpu.train", String::new(), String::new()),
        ("say that a function changed", "flux.table.flux_functions.hello", String::new(), "evil".into()),
        ("write code", "$O.flux_code.C.evil", String::new(), "evil".into()),
        ("name code", "", blob("flux_code", "code"), "evil".into()),
        ("overwrite a payload", "", blob("flux_blobs", &payload), "evil".into()),
        ("overwrite another's output", "$O.flux_outputs.M.agent-2.b3V0cHV0", String::new(), "evil".into()),
        ("write another's output", "$O.flux_outputs.C.agent-2.x.0", String::new(), "evil".into()),
        (
            "take another pool's invocations",
            "$JS.API.CONSUMER.MSG.NEXT.FLUX_INVOKE-gpu.train",
            String::new(),
            "1".into(),
        ),
        ("take statuses", "$JS.API.CONSUMER.MSG.NEXT.FLUX_STATUS.recorder", String::new(), "1".into()),
        ("ack in another pool", "$JS.ACK.FLUX_INVOKE-gpu.train.1.1.1.1.0", String::new(), "+ACK".into()),
        ("ack a status", "$JS.ACK.FLUX_STATUS.recorder.1.1.1.1.0", String::new(), "+ACK".into()),
        ("read an invocation in its queue", "$JS.API.STREAM.MSG.GET.FLUX_INVOKE", String::new(), r#"{"seq":1}"#.into()),
        ("read the last invocation", "$JS.API.DIRECT.GET.FLUX_INVOKE.flux.invoke.hello", String::new(), String::new()),
        ("read another pool's", "$JS.API.DIRECT.GET.FLUX_INVOKE-gpu", String::new(), r#"{"seq":1}"#.into()),
        ("read statuses", "$JS.API.DIRECT.GET.FLUX_STATUS", String::new(), r#"{"seq":1}"#.into()),
        ("read dead letters", "$JS.API.DIRECT.GET.FLUX_DLQ", String::new(), r#"{"seq":1}"#.into()),
        (
            "read all payloads",
            "$JS.API.DIRECT.GET.OBJ_flux_blobs",
            String::new(),
            r#"{"seq":1,"batch":99,"next_by_subj":">"}"#.into(),
        ),
        ("read payloads by number", "$JS.API.STREAM.MSG.GET.OBJ_flux_blobs", String::new(), r#"{"seq":1}"#.into()),
        ("read all outputs", "$JS.API.DIRECT.GET.OBJ_flux_outputs", String::new(), r#"{"seq":1}"#.into()),
        (
            "read another's output",
            "$JS.API.DIRECT.GET.OBJ_flux_outputs.$O.flux_outputs.M.agent-2.x",
            String::new(),
            String::new(),
        ),
        (
            "make a consumer of invocations",
            "$JS.API.CONSUMER.CREATE.FLUX_INVOKE",
            String::new(),
            consumer("FLUX_INVOKE"),
        ),
        (
            "make a consumer of functions",
            "$JS.API.CONSUMER.CREATE.KV_flux_functions",
            String::new(),
            consumer("KV_flux_functions"),
        ),
        (
            "make a durable consumer",
            "$JS.API.CONSUMER.DURABLE.CREATE.KV_flux_hot.x",
            String::new(),
            consumer("KV_flux_hot"),
        ),
        ("delete a consumer", "$JS.API.CONSUMER.DELETE.FLUX_INVOKE.hello", String::new(), String::new()),
        (
            "pause a consumer",
            "$JS.API.CONSUMER.PAUSE.FLUX_INVOKE.hello",
            String::new(),
            r#"{"pause_until":"2099-01-01T00:00:00Z"}"#.into(),
        ),
        ("purge", "$JS.API.STREAM.PURGE.FLUX_INVOKE", String::new(), String::new()),
        ("purge payloads", "$JS.API.STREAM.PURGE.OBJ_flux_blobs", String::new(), String::new()),
        ("delete a message", "$JS.API.STREAM.MSG.DELETE.FLUX_INVOKE", String::new(), r#"{"seq":1}"#.into()),
        ("delete a stream", "$JS.API.STREAM.DELETE.FLUX_INVOKE", String::new(), String::new()),
        ("make a stream", "$JS.API.STREAM.CREATE.EVIL", String::new(), r#"{"name":"EVIL","subjects":["evil"]}"#.into()),
        (
            "change a stream",
            "$JS.API.STREAM.UPDATE.FLUX_INVOKE",
            String::new(),
            r#"{"name":"FLUX_INVOKE","subjects":["evil"]}"#.into(),
        ),
        (
            "copy a stream",
            "$JS.API.STREAM.SNAPSHOT.FLUX_INVOKE",
            String::new(),
            r#"{"deliver_subject":"flux.reply.x"}"#.into(),
        ),
        ("restore a stream", "$JS.API.STREAM.RESTORE.EVIL", String::new(), r#"{"config":{"name":"EVIL"}}"#.into()),
        ("stop the server", "$SYS.REQ.SERVER.RELOAD", String::new(), String::new()),
    ];
    acts.into_iter().map(|(what, subject, rest, body)| (format!("{subject}{rest}"), what, body)).collect()
}

fn base64(text: &str) -> String {
    use std::fmt::Write as _;
    // Of a test's own few names; the product's encoding is not what is tried here.
    let mut bits = String::new();
    for byte in text.bytes() {
        let _ = write!(bits, "{byte:08b}");
    }
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded: String = bits
        .as_bytes()
        .chunks(6)
        .map(|six| {
            let text = std::str::from_utf8(six).expect("digits");
            let index = usize::from_str_radix(&format!("{text:0<6}"), 2).expect("binary");
            char::from(alphabet[index])
        })
        .collect();
    while !encoded.len().is_multiple_of(4) {
        encoded.push('=');
    }
    encoded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stolen_agent_may_not_publish_changes_nothing_and_is_heard_by_nobody() {
    let mut scene = Scene::set().await;
    let before = scene.state().await;
    for (subject, what, body) in forbidden(&scene.executions) {
        let answer_to = format!("stolen.{:x}", rand::random::<u64>());
        let mut answers = scene.thief.subscribe(answer_to.clone()).await.expect("subscribed");
        let act = async |thief: &Client| {
            thief.publish_with_reply(subject, answer_to, body.into()).await.expect("sent");
        };
        scene.try_act(what, &before, act, nothing).await;
        // Whatever was answered came from the thief's own account, in which there is nothing.
        while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(1), answers.next()).await {
            let text = String::from_utf8_lossy(&answer.payload).into_owned();
            let nobody = answer.status.is_some_and(|status| status.as_u16() == 503);
            assert!(nobody || text.contains("not enabled for account"), "{what}: answered {text}");
        }
    }
    eprintln!("{} forbidden acts tried, all refused", scene.tried);
    assert!(scene.tried >= 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_sent_astray_stays_in_the_thief_s_own_account() {
    let mut scene = Scene::set().await;
    // What it may ask: each is answered by JetStream with the server's own rights.
    let output = "$O.flux_outputs.C.agent-1.mine.0";
    scene.thief.request(output, "an invocation, a function, a status".into()).await.expect("its own output");
    let questions: Vec<(&str, String)> = vec![
        ("a direct get", "$JS.API.DIRECT.GET.KV_flux_functions.$KV.flux_functions.hello".to_owned()),
        ("a pull", "$JS.API.CONSUMER.MSG.NEXT.FLUX_INVOKE.idle".to_owned()),
        ("a look at a stream", "flux.api.STREAM.INFO.KV_flux_hot".to_owned()),
        ("a stored message", "flux.api.STREAM.MSG.GET.KV_flux_functions".to_owned()),
    ];
    let targets = [
        "flux.invoke.hello".to_owned(),
        "flux.invoke-gpu.train".to_owned(),
        "$KV.flux_functions.hello".to_owned(),
        "$KV.flux_hot.invoke.default.hello".to_owned(),
        "$KV.flux_agents.default.agent-2".to_owned(),
        "flux.statuses.gpu.agent-1".to_owned(),
        "flux.control".to_owned(),
        "flux.control.agent-2".to_owned(),
        format!("flux.cancel.{}", scene.executions[0]),
        "flux.table.flux_functions.hello".to_owned(),
        "flux.dlq.hello".to_owned(),
        "$O.flux_code.C.evil".to_owned(),
        "$O.flux_outputs.M.agent-2.b3V0cHV0".to_owned(),
        "$JS.API.STREAM.DELETE.FLUX_DLQ".to_owned(),
        "$JS.API.STREAM.PURGE.FLUX_INVOKE".to_owned(),
    ];
    let before = scene.state().await;
    for (what, subject) in &questions {
        for target in &targets {
            let body = if *what == "a pull" { r#"{"batch":1,"no_wait":true}"# } else { r#"{"seq":1}"# };
            let act = async |thief: &Client| {
                let body = if what.starts_with("a direct") { "" } else { body };
                thief.publish_with_reply(subject.clone(), target.clone(), body.into()).await.expect("sent");
            };
            let may_ask = |heard: &str| {
                heard.starts_with("$JS.API.DIRECT.GET.KV_")
                    || heard.starts_with("$JS.API.CONSUMER.MSG.NEXT.FLUX_INVOKE.")
                    || heard.starts_with("$JS.API.STREAM.MSG.GET.KV_")
            };
            scene.try_act(&format!("{what} answered to {target}"), &before, act, may_ask).await;
        }
    }
    // A pull that is filled: the invocation goes nowhere, and comes again to whoever pulls in order.
    let thief = scene.thief.clone();
    for target in
        ["flux.invoke-gpu.train", "$KV.flux_functions.hello", "flux.control.agent-2", "flux.statuses.gpu.agent-1"]
    {
        scene.settle().await;
        let pull = r#"{"batch":1,"expires":100000000}"#;
        let subject = "$JS.API.CONSUMER.MSG.NEXT.FLUX_INVOKE.hello";
        thief.publish_with_reply(subject, target, pull.into()).await.expect("sent");
        let heard = scene.settle().await;
        assert!(heard.iter().all(|(subject, _)| subject.starts_with("$JS.") || is_asking(subject)), "{heard:?}");
        let after = scene.state().await;
        for name in ["FLUX_INVOKE-gpu", "KV_flux_functions", "FLUX_STATUS", "KV_flux_agents"] {
            assert_eq!(after[name], before[name], "a filled pull answered to {target}: {name}");
        }
        scene.tried += 1;
    }
    let delivery = next(&scene.gateway, &queue(Lane::Invoke, PoolName::default(), "hello")).await;
    assert_eq!(&*delivery.body, b"payload");
    eprintln!("{} answers sent astray, none arrived", scene.tried);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_agent_hears_only_what_is_for_it() {
    let scene = Scene::set().await;
    let mut all = scene.thief.subscribe(">").await.expect("subscribed");
    for subject in ["flux.>", "$JS.>", "$KV.>", "$O.>", "_INBOX.>", "flux.control.agent-2", "flux.invoke.*", "$SYS.>"] {
        scene.thief.subscribe(subject).await.expect("subscribed");
    }
    scene.thief.flush().await.expect("flushed");
    let id = scene.executions[0];
    let others = [
        "flux.control.agent-2".to_owned(),
        "flux.reply.gw-1.00000000000000000000000000000001".to_owned(),
        subject::output(&agent("agent-2"), id),
        subject::status("agent-2", id),
        subject::heartbeat(&PoolName::default(), &agent("agent-2")),
        subject::question(&agent("agent-2"), subject::RENEWAL),
        "flux.ring.invoke.default.hello".to_owned(),
    ];
    for subject in others {
        scene.gateway.signal(subject, "secret".into()).await.expect("signal");
    }
    for pool in [PoolName::default(), pool("gpu")] {
        for lane in Lane::ALL {
            let queue = queue(lane, pool.clone(), "hello");
            scene.gateway.publish(&queue, message("secret")).await.expect("publish");
        }
    }
    let status = flux_broker::conformance::status(&FunctionName::parse("hello").expect("a name"));
    scene.gateway.publish_status("agent-2", &status).await.expect("stored");
    scene.gateway.put_blob(subject::BLOB_BUCKET, "payload-x", "secret".into()).await.expect("put");
    scene.gateway.signal("flux.control".to_owned(), "the last".into()).await.expect("signal");
    let mut heard = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, all.next()).await.expect("in time").expect("it goes on");
        heard.push(message.subject.to_string());
        if &*message.payload == b"the last" {
            break;
        }
    }
    assert_eq!(heard, ["flux.control"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_of_another_pool_than_it_is_said_in_is_not_heard() {
    let scene = Scene::set().await;
    let mut log = scene.gateway.statuses(8).await.expect("statuses");
    let hello = FunctionName::parse("hello").expect("a name");
    let status = flux_broker::conformance::status(&hello);
    let forged = StatusMessage { pool: pool("gpu"), ..flux_broker::conformance::status(&hello) };
    let lines = [&forged, &forged, &status].map(|status| serde_json::to_string(status).expect("JSON"));
    scene.thief.request("flux.statuses.default.agent-1", lines[0].clone().into()).await.expect("stored");
    scene.thief.request("flux.statuses.default.agent-1", lines[1..].join("\n").into()).await.expect("stored");
    let mut heard = Vec::new();
    while heard.last() != Some(&("agent-1".to_owned(), status.execution_id)) {
        let batch = tokio::time::timeout(PATIENCE, log.next()).await.expect("in time").expect("it goes on");
        for delivery in batch {
            heard.push((delivery.sender.clone(), delivery.status.execution_id));
            delivery.ack.ack().await.expect("ack");
        }
    }
    assert!(heard.iter().all(|(_, id)| *id != forged.execution_id), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_up_is_not_purging() {
    let scene = Scene::set().await;
    let before = scene.state().await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Rollup", "all");
    for subject in [
        "flux.statuses.default.agent-1",
        "$KV.flux_agents.default.agent-1",
        "$O.flux_outputs.M.agent-1.x",
        "$O.flux_outputs.C.agent-1.x.0",
    ] {
        let answer = scene.thief.request_with_headers(subject, headers.clone(), "evil".into()).await.expect("answered");
        let text = String::from_utf8_lossy(&answer.payload).into_owned();
        assert!(text.contains("rollup not permitted"), "{subject}: {text}");
    }
    assert_eq!(scene.state().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_certificate_of_ours_says_who_somebody_is() {
    let secure = secure().await;
    let url = secure.server.url();
    async_nats::connect(&url).await.expect_err("no certificate");
    let ca = [secure.certs.dir().join("ca/ca.pem")];
    let options = ConnectOptions::new().add_root_certificates(ca[0].clone()).require_tls(true);
    options.connect(&url).await.expect_err("TLS without a certificate");
    // The same names, by another CA; it believes our server, which does not believe it.
    let dir = tempfile::tempdir().expect("a directory");
    let other = Certs::at(dir.path());
    other.init(&[]).expect("made");
    other.mint_agent(&agent("agent-1"), vec![PoolName::default()]).expect("minted");
    for (certificate, key) in
        [("flux/flux.pem", "flux/flux-key.pem"), ("agents/agent-1/agent.pem", "agents/agent-1/agent-key.pem")]
    {
        let [certificate, key] = [certificate, key].map(|file| other.dir().join(file));
        let options = ConnectOptions::new().add_root_certificates(ca[0].clone()).require_tls(true);
        options.add_client_certificate(certificate, key).connect(&url).await.expect_err("another CA's");
    }
    // A name that nobody was given.
    secure.certs.mint_agent(&agent("later"), vec![PoolName::default()]).expect("minted");
    raw(&url, &secure.certs.agent(&agent("later")).expect("an agent")).await.expect_err("not let in yet");
    // A certificate's name, whatever the client says beside it.
    let tls = secure.certs.agent(&agent("agent-1")).expect("an agent").queue_client().expect("TLS");
    let options = ConnectOptions::with_user_and_password(Identity::Gateway.uri(), String::new());
    if let Ok(client) = options.tls_client_config(tls).require_tls(true).connect(&url).await {
        let gateway = secure.gateway().await;
        client.request("flux.invoke.hello", "evil".into()).await.expect_err("it is agent-1 all the same");
        assert_eq!(gateway.depth(&queue(Lane::Invoke, PoolName::default(), "hello")).await.expect("depth"), 0);
    }
}
