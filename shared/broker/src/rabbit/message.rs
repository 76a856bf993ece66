//! Messages of AMQP as the seam has them, and the other way round.

use std::time::Duration;

use flux_protocol::{Timestamp, time::now};
use lapin::{
    BasicProperties,
    message::Delivery as Incoming,
    types::{AMQPValue, FieldTable},
};
use sha2::{Digest as _, Sha256};

use super::session::{number, text};
use crate::{Message, Signal};

/// Set by us, or by the server where it is told to (`message_interceptors.incoming.set_header_timestamp`).
const STORED_AT_MS: &str = "timestamp_in_ms";
/// When the lane's storage was made that it went into, as its publisher knew it.
const EPOCH: &str = "flux-epoch";
/// Its publish was not confirmed before, so that it may be there twice.
const IN_DOUBT: &str = "flux-in-doubt";
const PERSISTENT: u8 = 2;

/// The properties of an invocation that is about to be stored.
pub(super) fn properties(
    message: &Message,
    id: &str,
    at: Timestamp,
    epoch: Timestamp,
    persistent: bool,
    in_doubt: bool,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        headers.insert((*name).into(), text(value));
    }
    headers.insert(STORED_AT_MS.into(), number(at.as_millis()));
    headers.insert(EPOCH.into(), number(epoch.as_micros()));
    if in_doubt {
        headers.insert(IN_DOUBT.into(), AMQPValue::Boolean(true));
    }
    let properties = BasicProperties::default()
        .with_message_id(id.into())
        .with_timestamp(u64::try_from(at.as_millis() / 1000).unwrap_or_default())
        .with_headers(headers);
    if persistent { properties.with_delivery_mode(PERSISTENT) } else { properties }
}

/// What is stored and has no more to say.
pub(super) fn plain() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

/// What a message is to its queue: the same for each delivery, and for a publish that is repeated.
pub(super) fn place(id: &str) -> u64 {
    let digest = Sha256::digest(id.as_bytes());
    let mut start = [0; 8];
    start.copy_from_slice(&digest[..8]);
    // As large as a number may be in JSON, where records go.
    u64::from_be_bytes(start) >> 11
}

/// An invocation that was delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) headers: Vec<(String, String)>,
    pub(super) place: u64,
    /// Nobody's, where a producer published it.
    pub(super) epoch: Timestamp,
    pub(super) stored_at: Timestamp,
    pub(super) redeliveries: u32,
}

/// # Errors
/// Why Flux cannot take it: a message that says neither who it is nor when it was sent is another one each time it comes.
pub(super) fn read(properties: &BasicProperties, redelivered: bool) -> Result<Read, &'static str> {
    let id = properties.message_id().as_ref().map(lapin::types::ShortString::as_str).filter(|id| !id.is_empty());
    let id = id.ok_or("it has no message_id")?;
    let table = properties.headers().as_ref();
    let of = |name: &str| table.and_then(|table| table.inner().get(name));
    let stored_at = match (of(STORED_AT_MS).and_then(integer), properties.timestamp()) {
        (Some(millis), _) => Timestamp::from_millis(millis),
        (None, Some(seconds)) => {
            let millis = i64::try_from(*seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
            Timestamp::from_millis(millis.ok_or("its timestamp makes no sense")?)
        }
        (None, None) => return Err("it has no timestamp"),
    };
    // An id and a deadline are made from it.
    if stored_at.as_micros() < 0 || stored_at > now().plus(Duration::from_secs(24 * 3600)) {
        return Err("its timestamp makes no sense");
    }
    let counted = of("x-delivery-count").and_then(integer).and_then(|count| u32::try_from(count).ok());
    let in_doubt = matches!(of(IN_DOUBT), Some(AMQPValue::Boolean(true)));
    Ok(Read {
        headers: headers(table),
        place: place(id),
        epoch: Timestamp::from_micros(of(EPOCH).and_then(integer).unwrap_or_default()),
        stored_at,
        redeliveries: counted.unwrap_or(0).max(u32::from(redelivered)).saturating_add(u32::from(in_doubt)),
    })
}

pub(super) fn headers(table: Option<&FieldTable>) -> Vec<(String, String)> {
    let Some(table) = table else { return Vec::new() };
    let own = [STORED_AT_MS, EPOCH, IN_DOUBT];
    let all =
        table.inner().iter().filter(|(name, _)| !own.contains(&name.as_str()) && !name.as_str().starts_with("x-"));
    all.filter_map(|(name, value)| Some((name.as_str().to_owned(), string(value)?))).collect()
}

pub(super) fn string(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        other => integer(other).map(|value| value.to_string()),
    }
}

pub(super) fn integer(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(value) => Some(value.into()),
        AMQPValue::ShortShortUInt(value) => Some(value.into()),
        AMQPValue::ShortInt(value) => Some(value.into()),
        AMQPValue::ShortUInt(value) => Some(value.into()),
        AMQPValue::LongInt(value) => Some(value.into()),
        AMQPValue::LongUInt(value) => Some(value.into()),
        AMQPValue::LongLongInt(value) => Some(value),
        AMQPValue::Timestamp(value) => i64::try_from(value).ok(),
        _ => None,
    }
}

pub(super) fn signal(incoming: Incoming) -> Signal {
    Signal {
        subject: incoming.routing_key.into(),
        headers: headers(incoming.properties.headers().as_ref()),
        reply_to: incoming.properties.reply_to().as_ref().map(|reply_to| reply_to.as_str().to_owned()),
        body: incoming.data.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_read() {
        let message = Message { headers: vec![("Flux-Args", "[\"ü\"]".to_owned())], ..Message::default() };
        let at = Timestamp::from_millis(now().as_millis());
        let sent = properties(&message, "exc-1.1", at, Timestamp::from_millis(7), true, false);
        let got = read(&sent, false).expect("it is ours");
        assert_eq!(got.headers, [("Flux-Args".to_owned(), "[\"ü\"]".to_owned())]);
        assert_eq!((got.stored_at, got.place, got.redeliveries), (at, place("exc-1.1"), 0));
        assert_eq!(got.epoch, Timestamp::from_millis(7));
        assert_eq!(read(&sent, true).expect("it is ours").redeliveries, 1);
        let again = properties(&message, "exc-1.1", at, at, true, true);
        assert_eq!(read(&again, false).expect("it is ours").redeliveries, 1, "it may be there twice");
    }

    #[test]
    fn what_cannot_be_told_from_another_is_refused() {
        let bare = BasicProperties::default();
        assert_eq!(read(&bare, false), Err("it has no message_id"));
        assert_eq!(read(&bare.clone().with_message_id("".into()), false), Err("it has no message_id"));
        let named = bare.with_message_id("a".into());
        assert_eq!(read(&named, false), Err("it has no timestamp"));
        for nonsense in [u64::MAX, 1 << 50] {
            assert!(read(&named.clone().with_timestamp(nonsense), false).is_err());
        }
        let taken = read(&named.with_timestamp(1_700_000_000), false).expect("it says who it is");
        assert_eq!(taken.stored_at, Timestamp::from_millis(1_700_000_000_000));
    }
}
