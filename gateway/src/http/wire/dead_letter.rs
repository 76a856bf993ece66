//! Dead letters.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use flux_broker::DeadLetter;
use flux_protocol::Payload;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{execution::ExecutionErrorBody, time};
use crate::core::Redriven;

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LetterCountsBody {
    pub(in crate::http) functions: Vec<LetterCountBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LetterCountBody {
    pub(in crate::http) function: String,
    pub(in crate::http) count: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LettersBody {
    pub(in crate::http) letters: Vec<LetterBody>,
    /// For `?cursor=`; null on the last page.
    pub(in crate::http) next_cursor: Option<String>,
}

/// An invocation that was given up on.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LetterBody {
    sequence: u64,
    function: String,
    /// When it was given up on.
    #[schema(format = DateTime)]
    at: String,
    execution_id: String,
    version: u32,
    /// The last attempt.
    attempt: u32,
    error: Option<ExecutionErrorBody>,
    /// The error as one line.
    #[schema(example = "exit: the process exited with code 3")]
    reason: String,
    args: Vec<String>,
    payload_bytes: u64,
    /// Only of one letter, where it is text and travelled in the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    /// Only of one letter, where it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    /// Only of one letter: what the last attempt wrote; it may be cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
}

impl LetterBody {
    pub(in crate::http) fn outline(letter: DeadLetter) -> Self {
        let DeadLetter { sequence, function, at, invocation, status } = letter;
        let error: Option<ExecutionErrorBody> = status.outcome.and_then(|outcome| outcome.error).map(Into::into);
        Self {
            sequence,
            function: function.to_string(),
            at: time(at),
            execution_id: status.execution_id.to_string(),
            version: status.version,
            attempt: status.attempt,
            reason: error.as_ref().map_or_else(String::new, ExecutionErrorBody::line),
            error,
            args: invocation.args,
            payload_bytes: match &invocation.payload {
                Payload::Inline(bytes) => bytes.len() as u64,
                Payload::Blob(blob) => blob.size,
            },
            payload: None,
            payload_base64: None,
            output: None,
        }
    }

    pub(in crate::http) fn whole(letter: DeadLetter) -> Self {
        let (text, encoded) = match &letter.invocation.payload {
            Payload::Inline(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => (Some(text.to_owned()), None),
                Err(_) => (None, Some(BASE64.encode(bytes))),
            },
            Payload::Blob(_) => (None, None),
        };
        let output = letter.status.outcome.as_ref().map(|outcome| outcome.output.to_text());
        Self { payload: text, payload_base64: encoded, output, ..Self::outline(letter) }
    }
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct RedriveRequest {
    /// One letter; absent is all of the function's.
    pub(in crate::http) sequence: Option<u64>,
    /// A version other than the current one.
    #[schema(minimum = 1)]
    pub(in crate::http) version: Option<u32>,
    /// Say what would be done, and do nothing.
    pub(in crate::http) dry_run: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RedrivenBody {
    pub(in crate::http) dry_run: bool,
    pub(in crate::http) redriven: Vec<RedrivenLetterBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RedrivenLetterBody {
    sequence: u64,
    /// The new execution; null in a dry run.
    execution_id: Option<String>,
    /// The old one.
    of: String,
}

impl From<Redriven> for RedrivenLetterBody {
    fn from(Redriven { letter, execution_id, of }: Redriven) -> Self {
        Self { sequence: letter, execution_id: execution_id.map(|id| id.to_string()), of: of.to_string() }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PurgedBody {
    #[schema(example = "purged")]
    pub(in crate::http) status: &'static str,
    /// How many letters are gone.
    pub(in crate::http) purged: u64,
}
