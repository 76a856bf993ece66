//! Messages for functions that have no queue yet, as a producer may publish them: a gateway makes the queue, moves them
//! there, and rings.

use std::sync::Arc;

use bytes::Bytes;
use flux_protocol::subject;
use futures::StreamExt as _;
use lapin::{
    message::Delivery as Incoming,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};

use super::{
    Parts,
    leases::{Settle, Source},
    queue::queue_of_unrouted,
    session::Session,
};
use crate::BrokerError;

const AHEAD: u16 = 64;

/// Moves what comes, for as long as the broker is open.
pub(super) async fn move_on(parts: Arc<Parts>) {
    while let Some(session) = parts.link.session_whenever().await {
        if let Err(error) = read(&parts, &session).await
            && session.is_up()
        {
            tracing::warn!(%error, "messages for functions without a queue cannot be read; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(super::link::WITHIN / 10) => {}
            () = parts.link.closed.cancelled() => return,
        }
    }
}

async fn read(parts: &Arc<Parts>, session: &Session) -> Result<(), lapin::Error> {
    let channel = session.channel().await?;
    channel.basic_qos(AHEAD, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let queue = parts.link.names.unrouted();
    let mut messages = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    let source = Source::lasting(channel);
    while let Some(incoming) = messages.next().await {
        let incoming = incoming?;
        let tag = incoming.delivery_tag;
        let how = match move_one(parts, incoming).await {
            Ok(true) => Settle::Ack,
            Ok(false) => Settle::Refuse,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a message waits to be moved to its queue");
                tokio::time::sleep(super::link::WITHIN / 10).await;
                Settle::GiveBack
            }
        };
        if source.settle(tag, how).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// `false`: it is for no function at all.
async fn move_one(parts: &Arc<Parts>, incoming: Incoming) -> Result<bool, BrokerError> {
    let (exchange, key) = (incoming.exchange.as_str(), incoming.routing_key.as_str());
    let Some(queue) = queue_of_unrouted(parts, exchange, key) else {
        tracing::warn!(exchange, key, "a message that was published to what is no function's name is refused");
        return Ok(false);
    };
    parts.make_queue(&queue).await?;
    let attempted = "move a message to its queue";
    parts.link.store(attempted, exchange, key, incoming.properties.clone(), &incoming.data).await?;
    // A hint alone.
    let _ = parts.outbox.try_send((subject::ring(&queue), Bytes::new()));
    Ok(true)
}
