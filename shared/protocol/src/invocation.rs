//! One request to run a function, and how it is laid out as a message: the payload is the body, the
//! rest is headers, none of which is required (`nats pub flux.invoke.hello '{"n":1}'` is an invocation).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    execution::BlobRef,
    id::{Digest, ExecutionId},
    limits, subject,
    time::Timestamp,
};

/// Which of a function's two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// `flux.invoke`: must survive. Asynchronous invocations and every direct publish.
    Invoke,
    /// `flux.call`: a gateway waits and holds it.
    Call,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Call, Self::Invoke];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Call => "call",
        }
    }
}

/// The payload, inline or by reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    Inline(#[serde(with = "base64_bytes")] Bytes),
    Blob(BlobRef),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Inline(Bytes::new())
    }
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Ok(BASE64.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?.into())
    }
}

pub mod header {
    pub const EXECUTION_ID: &str = "Flux-Execution-Id";
    pub const ATTEMPT: &str = "Flux-Attempt";
    pub const FAILURES: &str = "Flux-Failures";
    pub const ARGS: &str = "Flux-Args";
    pub const REPLY_TO: &str = "Flux-Reply-To";
    pub const DEADLINE: &str = "Flux-Deadline";
    pub const VERSION: &str = "Flux-Version";
    pub const TRACEPARENT: &str = "traceparent";
    /// `<digest>;<size>;<key>` of a payload in the blob seam; the body is empty then.
    pub const PAYLOAD_REF: &str = "Flux-Payload-Ref";
    pub const REDRIVE_OF: &str = "Flux-Redrive-Of";
    /// On dead letters: the terminal status (JSON) without output.
    pub const REASON: &str = "Flux-Reason";
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Invocation {
    /// Absent on a direct publish: then derived from the message's place in the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// From 1; the attempt that the function sees is this plus the redeliveries since.
    pub attempt: u32,
    /// The function's own failures before this attempt: what `retry.max_attempts` counts. Losses are not.
    #[serde(default)]
    pub failures: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<ExecutionId>,
    pub payload: Payload,
}

impl Invocation {
    /// The headers of its message, in a fixed order.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::with_capacity(8);
        if let Some(id) = self.execution_id {
            headers.push((header::EXECUTION_ID, id.to_string()));
        }
        if self.attempt > 1 {
            headers.push((header::ATTEMPT, self.attempt.to_string()));
        }
        if self.failures > 0 {
            headers.push((header::FAILURES, self.failures.to_string()));
        }
        if !self.args.is_empty() {
            headers.push((header::ARGS, serde_json::Value::from(self.args.clone()).to_string()));
        }
        if let Some(reply_to) = &self.reply_to {
            headers.push((header::REPLY_TO, reply_to.clone()));
        }
        if let Some(deadline) = self.deadline {
            headers.push((header::DEADLINE, deadline.to_string()));
        }
        if let Some(version) = self.version {
            headers.push((header::VERSION, version.to_string()));
        }
        if let Some(traceparent) = &self.traceparent {
            headers.push((header::TRACEPARENT, traceparent.clone()));
        }
        if let Some(old) = self.redrive_of {
            headers.push((header::REDRIVE_OF, old.to_string()));
        }
        if let Payload::Blob(blob) = &self.payload {
            headers.push((header::PAYLOAD_REF, format!("{};{};{}", blob.digest, blob.size, blob.key)));
        }
        headers
    }

    /// The message's body.
    pub fn body(&self) -> Bytes {
        match &self.payload {
            Payload::Inline(bytes) => bytes.clone(),
            Payload::Blob(_) => Bytes::new(),
        }
    }

    /// Reads a message. A header that makes no sense is left out and said in the notes: a producer's
    /// slip must not make its invocation vanish.
    pub fn from_message<'a>(get: impl Fn(&str) -> Option<&'a str>, body: Bytes) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let mut read = Reader { get: &get, notes: &mut notes };
        let execution_id = read.parsed(header::EXECUTION_ID);
        let attempt = read.parsed(header::ATTEMPT).filter(|n| *n > 0).unwrap_or(1);
        let failures = read.parsed(header::FAILURES).unwrap_or(0);
        let deadline = read.parsed(header::DEADLINE);
        let version = read.parsed(header::VERSION);
        let redrive_of = read.parsed(header::REDRIVE_OF);
        let args = read.args();
        let reply_to = read.reply_to();
        let payload = match get(header::PAYLOAD_REF) {
            None => Payload::Inline(body),
            Some(text) => match parse_ref(text) {
                Some(blob) => Payload::Blob(blob),
                None => {
                    notes.push(format!("{} was ignored: it is `sha256:<hex>;<size>;<key>`", header::PAYLOAD_REF));
                    Payload::Inline(body)
                }
            },
        };
        let traceparent =
            get(header::TRACEPARENT).filter(|text| crate::trace::TraceParent::parse(text).is_some()).map(str::to_owned);
        (
            Self {
                execution_id,
                attempt,
                failures,
                args,
                reply_to,
                deadline,
                version,
                traceparent,
                redrive_of,
                payload,
            },
            notes,
        )
    }

    /// The id of this try for the broker's duplicate window.
    pub fn message_id(&self) -> Option<String> {
        self.execution_id.map(|id| format!("{id}.{}", self.attempt))
    }
}

fn parse_ref(text: &str) -> Option<BlobRef> {
    let mut parts = text.splitn(3, ';');
    let digest: Digest = parts.next()?.parse().ok()?;
    let size: u64 = parts.next()?.parse().ok()?;
    let key = parts.next()?;
    let safe =
        !key.is_empty() && key.len() <= 200 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (safe && size <= limits::PAYLOAD as u64).then(|| BlobRef { key: key.to_owned(), digest, size })
}

struct Reader<'r, F> {
    get: &'r F,
    notes: &'r mut Vec<String>,
}

impl<'a, F: Fn(&str) -> Option<&'a str>> Reader<'_, F> {
    fn parsed<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        let text = (self.get)(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.notes
                .push(format!("{name} was ignored: `{}` cannot be read", text.chars().take(64).collect::<String>()));
        }
        parsed
    }

    fn args(&mut self) -> Vec<String> {
        let Some(text) = (self.get)(header::ARGS) else { return Vec::new() };
        match serde_json::from_str::<Vec<String>>(text) {
            Ok(args)
                if args.len() <= limits::ARGS
                    && text.len() <= limits::ARGS_BYTES
                    && !args.iter().any(|a| a.contains('\0')) =>
            {
                args
            }
            _ => {
                self.notes.push(format!(
                    "{} was ignored: it is a JSON array of at most {} strings",
                    header::ARGS,
                    limits::ARGS
                ));
                Vec::new()
            }
        }
    }

    fn reply_to(&mut self) -> Option<String> {
        let text = (self.get)(header::REPLY_TO)?;
        if subject::may_reply_to(text) {
            return Some(text.to_owned());
        }
        self.notes.push(format!("{} was ignored: it must be below flux.reply. or _INBOX.", header::REPLY_TO));
        None
    }
}
