//! The one shape of every error.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::refusal::Refusal;

/// Every answer of 4xx and 5xx that is not a function's own outcome.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ErrorDetail {
    /// From one closed list.
    #[schema(value_type = ErrorCodeName)]
    code: &'static str,
    /// What happened and what to do about it.
    message: String,
    /// Also in the `X-Request-Id` header; the log has more under it.
    request_id: String,
    /// Such as `{"field": "timeout"}`; an empty object where there is nothing to add.
    #[schema(value_type = Object)]
    details: Value,
}

/// Filled with the list of codes when the document is completed.
#[derive(ToSchema)]
#[schema(as = ErrorCode)]
#[allow(dead_code)]
pub(in crate::http) struct ErrorCodeName(String);

impl ErrorBody {
    pub(in crate::http) fn new(refusal: &Refusal, request_id: &str) -> Self {
        let details =
            if refusal.details.is_null() { Value::Object(serde_json::Map::new()) } else { refusal.details.clone() };
        let error = ErrorDetail {
            code: refusal.code.as_str(),
            message: refusal.message.clone(),
            request_id: request_id.to_owned(),
            details,
        };
        Self { error }
    }
}
