//! Messages for functions that do not exist.

use bytes::Bytes;
use flux_broker::{Message, Queue as _, Signals as _};
use flux_protocol::{ErrorKind, ExecutionId, Lane, PoolName, StatusMessage, invocation::header, subject::QueueName};
use futures::StreamExt as _;

use crate::{
    fake_agent::Act,
    world::{World, deploy, ended, eventually, name},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_an_unknown_function_is_answered_recorded_and_kept_for_redrive() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let mut inbox = world.broker.listen("_INBOX.test").await.unwrap();
    let function = name("nowhere");
    let queue = QueueName::new(Lane::Invoke, PoolName::default(), function.clone());
    let id = ExecutionId::new();
    let message = Message {
        headers: vec![(header::EXECUTION_ID, id.to_string()), (header::REPLY_TO, "_INBOX.test".to_owned())],
        body: Bytes::from_static(b"hello"),
        id: None,
    };
    world.broker.publish(&queue, message).await.unwrap();
    let record = ended(&world, id).await;
    assert_eq!(record.outcome.unwrap().error.unwrap().kind, ErrorKind::InvalidFunction);
    let reply: StatusMessage = serde_json::from_slice(&inbox.next().await.unwrap().body).unwrap();
    assert!(reply.is_terminal());
    eventually("the queue is empty", || async { world.broker.depth(&queue).await.unwrap() == 0 }).await;
    eventually("there is a letter", || async { gateway.dead_letters(&function, 0, 9).await.unwrap().len() == 1 }).await;

    deploy(&gateway, "nowhere", "").await;
    let _agent = world.agent("a", |job| Act::Succeed(String::from_utf8(job.payload.to_vec()).unwrap())).await;
    let redriven = gateway.redrive(&function, None, None, false).await.unwrap();
    let again = ended(&world, redriven[0].execution_id.unwrap()).await;
    assert_eq!(again.outcome.unwrap().output.to_text(), "hello");
}
