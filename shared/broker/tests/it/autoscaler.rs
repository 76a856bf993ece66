//! The autoscaler has a user in the gateways' account, where everything is: it does its work there, and no more.

use std::{sync::Arc, time::Duration};

use async_nats::ConnectOptions;
use flux_broker::{
    Queue as _, Signals as _, Table, Tables as _,
    nats::{AUTOSCALER_ANSWERS, AUTOSCALER_INBOX, NatsAuth, NatsBroker, NatsOptions},
};
use flux_protocol::{ExecutionId, Lane, PoolName, subject};
use futures::{FutureExt as _, StreamExt as _};
use serde_json::Value;

use crate::secure::{PATIENCE, agent, message, queue, secure};

const INFO: &str = "$JS.API.STREAM.INFO.FLUX_INVOKE";

#[tokio::test]
async fn it_answers_and_reads_counts_and_can_do_no_more() {
    let secure = secure().await;
    let gateway = secure.gateway().await;
    let owner = secure.raw(&secure.certs.gateway().expect("a gateway")).await;
    let hello = queue(Lane::Invoke, PoolName::default(), "hello");
    gateway.heat(&hello).await.expect("heat");
    gateway.publish(&hello, message("kept")).await.expect("publish");
    gateway.put(Table::Functions, "hello", "definition".into()).await.expect("put");
    let credential = secure.certs.autoscaler().expect("an autoscaler");
    let own = ConnectOptions::new()
        .tls_client_config(credential.queue_client().expect("TLS"))
        .require_tls(true)
        .custom_inbox_prefix(format!("{AUTOSCALER_INBOX}.test"));
    let autoscaler = own.connect(secure.server.url()).await.expect("connected");
    let mut witness = owner.subscribe(">").await.expect("subscribed");
    owner.flush().await.expect("flushed");

    let execution = ExecutionId::new();
    let forbidden = [
        "flux.invoke.hello".to_owned(),
        "flux.call.hello".to_owned(),
        "$KV.flux_functions.hello".to_owned(),
        "$KV.flux_hot.invoke.default.hello".to_owned(),
        "$KV.flux_agents.default.agent-1".to_owned(),
        format!("flux.status.agent-1.{execution}"),
        format!("flux.output.agent-1.{execution}"),
        format!("flux.cancel.{execution}"),
        "flux.reply.gw-1.0123456789abcdef".to_owned(),
        "$JS.API.STREAM.PURGE.FLUX_INVOKE".to_owned(),
        "$JS.API.STREAM.DELETE.FLUX_INVOKE".to_owned(),
        "$JS.API.STREAM.MSG.DELETE.FLUX_INVOKE".to_owned(),
        "$JS.API.STREAM.MSG.GET.FLUX_INVOKE".to_owned(),
        "$JS.API.DIRECT.GET.KV_flux_functions".to_owned(),
        "$JS.API.CONSUMER.CREATE.FLUX_INVOKE".to_owned(),
        format!("$JS.API.CONSUMER.MSG.NEXT.FLUX_INVOKE.{}", hello.consumer()),
        format!("$JS.API.CONSUMER.DELETE.FLUX_INVOKE.{}", hello.consumer()),
        "$JS.API.STREAM.CREATE.MINE".to_owned(),
    ];
    let inbox = autoscaler.new_inbox();
    let mut answers = autoscaler.subscribe(inbox.clone()).await.expect("its own");
    for subject in &forbidden {
        let body = r#"{"seq":1}"#;
        autoscaler.publish_with_reply(subject.clone(), inbox.clone(), body.into()).await.expect("sent");
    }
    let mut overheard = Vec::new();
    for subject in ["flux.invoke.>", "flux.status.>", "flux.output.>", "flux.reply.gw-1.>", "$KV.>", "_INBOX.>"] {
        overheard.push(autoscaler.subscribe(subject).await.expect("sent"));
    }
    // What it may ask is answered, and by then the server has read all that was sent before.
    let info = autoscaler.request(INFO, "".into()).await.expect("answered");
    let info: Value = serde_json::from_slice(&info.payload).expect("JSON");
    assert_eq!(info["state"]["messages"], 1, "{info}");
    for said in ["flux.output.agent-1.x", "flux.reply.gw-1.x", "_INBOX.somebody"] {
        owner.publish(said, "secret".into()).await.expect("published");
    }
    owner.publish("mark", "".into()).await.expect("published");
    owner.flush().await.expect("flushed");
    autoscaler.request(INFO, "".into()).await.expect("answered");
    for heard in overheard.iter_mut().chain([&mut answers]) {
        let heard = heard.next().now_or_never().flatten().map(|message| message.subject);
        assert_eq!(heard, None);
    }
    loop {
        let message = tokio::time::timeout(PATIENCE, witness.next()).await.expect("in time").expect("it goes on");
        assert!(!forbidden.contains(&message.subject.to_string()), "{}", message.subject);
        if message.subject.as_str() == "mark" {
            break;
        }
    }
    let entry = gateway.get(Table::Functions, "hello").await.expect("read").expect("there");
    assert_eq!(entry.value, "definition");
    assert_eq!(gateway.depth(&hello).await.expect("counted"), 1);

    // A question is answered, also where somebody was let in between.
    let mut questions = autoscaler.subscribe(subject::AUTOSCALER).await.expect("subscribed");
    // The server has it once it answered something that was sent after it.
    autoscaler.request(INFO, "".into()).await.expect("answered");
    let answering = async {
        let question = tokio::time::timeout(PATIENCE, questions.next()).await.expect("in time").expect("a question");
        let reply = question.reply.expect("somebody waits");
        secure.certs.mint_agent(&agent("agent-3"), vec![PoolName::default()]).expect("minted");
        secure.reload().await;
        autoscaler.publish(reply, "an answer".into()).await.expect("sent");
    };
    let asking = gateway.ask(subject::AUTOSCALER.to_owned(), "?".into(), Duration::from_secs(20));
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.expect("asked").expect("answered").body, "an answer");
}

/// How far a queue was worked off, which it asks for as itself.
#[tokio::test]
async fn it_is_told_what_nobody_was_given() {
    let secure = secure().await;
    let gateway = secure.gateway().await;
    let hello = queue(Lane::Invoke, PoolName::default(), "hello");
    for n in 0..3 {
        gateway.publish(&hello, message(&format!("message-{n}"))).await.expect("publish");
    }
    gateway.take_one(&hello).await.expect("take").expect("one waits").ack.ack().await.expect("ack");
    let credential = secure.certs.autoscaler().expect("an autoscaler");
    let tls = Arc::new(credential.queue_client().expect("TLS"));
    let options = NatsOptions {
        auth: NatsAuth::Certificate(tls),
        inbox_prefix: Some(format!("{AUTOSCALER_INBOX}.test")),
        answers: Some(format!("{AUTOSCALER_ANSWERS}.test")),
        ..NatsOptions::new(secure.server.url(), "autoscaler")
    };
    let autoscaler = NatsBroker::connect(options, secure.tasks.clone()).await.expect("connected");
    let functions = [hello.function.clone()];
    let told = autoscaler.progress(hello.lane, &hello.pool, &functions).await.expect("told");
    assert_eq!(told.iter().map(|one| (one.waiting, one.delivered)).collect::<Vec<_>>(), [(2, 1)]);
}
