//! What lies in a log: changes of tables, and marks by which a reader knows that it has read far enough.

use bytes::Bytes;
use flux_protocol::Timestamp;
use lapin::{BasicProperties, types::FieldTable};

use super::{
    message::{integer, plain, string},
    session::{number, text},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Put(Bytes),
    /// Holds where the key's revision is this one (0: it does not exist).
    Update {
        expected: u64,
        value: Bytes,
    },
    Delete,
    /// Changes nothing: who wrote it waits until it is read.
    Mark,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Whose it is: the writer waits for it.
    pub(super) id: String,
    pub(super) table: String,
    pub(super) key: String,
    pub(super) at: Timestamp,
    /// Chosen by its writer, where the table's keys have one writer each; otherwise its place in the log.
    pub(super) revision: Option<u64>,
    pub(super) change: Change,
}

impl Record {
    pub(super) fn new(table: &str, key: &str, change: Change) -> Self {
        Self {
            id: format!("{:032x}", rand::random::<u128>()),
            table: table.to_owned(),
            key: key.to_owned(),
            at: flux_protocol::time::now(),
            revision: None,
            change,
        }
    }

    /// What remains is that there is one.
    pub(super) fn forget_value(&mut self) {
        if let Change::Put(value) | Change::Update { value, .. } = &mut self.change {
            *value = Bytes::new();
        }
    }

    /// Properties and body.
    pub(super) fn encode(&self) -> (BasicProperties, Bytes) {
        let mut headers = FieldTable::default();
        headers.insert("table".into(), text(&self.table));
        headers.insert("key".into(), text(&self.key));
        headers.insert("at".into(), number(self.at.as_micros()));
        if let Some(revision) = self.revision {
            headers.insert("revision".into(), number(i64::try_from(revision).unwrap_or(i64::MAX)));
        }
        let (change, body) = match &self.change {
            Change::Put(value) => ("put", value.clone()),
            Change::Update { expected, value } => {
                headers.insert("expected".into(), number(i64::try_from(*expected).unwrap_or(i64::MAX)));
                ("update", value.clone())
            }
            Change::Delete => ("delete", Bytes::new()),
            Change::Mark => ("mark", Bytes::new()),
        };
        headers.insert("change".into(), text(change));
        (plain().with_message_id(self.id.as_str().into()).with_headers(headers), body)
    }

    /// Its offset in the log with it. `None`: no record of ours.
    pub(super) fn decode(properties: &BasicProperties, body: Bytes) -> Option<(u64, Self)> {
        let headers = properties.headers().as_ref()?.inner();
        let text = |name: &str| headers.get(name).and_then(string);
        let whole = |name: &str| headers.get(name).and_then(integer);
        let positive = |name: &str| whole(name).and_then(|value| u64::try_from(value).ok());
        let change = match text("change")?.as_str() {
            "put" => Change::Put(body),
            "update" => Change::Update { expected: positive("expected")?, value: body },
            "delete" => Change::Delete,
            "mark" => Change::Mark,
            _ => return None,
        };
        let record = Self {
            id: properties.message_id().as_ref()?.as_str().to_owned(),
            table: text("table")?,
            key: text("key")?,
            at: Timestamp::from_micros(whole("at")?),
            revision: positive("revision"),
            change,
        };
        Some((positive("x-stream-offset")?, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        let changes = [
            Change::Put("x".into()),
            Change::Update { expected: 7, value: Bytes::new() },
            Change::Delete,
            Change::Mark,
        ];
        for change in changes {
            let record = Record { revision: Some(9), ..Record::new("functions", "a.b", change) };
            let (properties, body) = record.encode();
            assert_eq!(Record::decode(&properties, body.clone()), None, "it was not in a log");
            let mut headers = properties.headers().clone().expect("it has headers");
            headers.insert("x-stream-offset".into(), number(41));
            let read = Record::decode(&properties.with_headers(headers), body);
            assert_eq!(read, Some((41, record)));
        }
    }
}
