//! A request to a function's own URL (`ANY /fn/{name}/…`) as a payload, and the response it may print.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The payload of an execution that a function URL started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpEvent {
    pub method: String,
    /// After `/fn/{name}`, with its leading slash.
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub raw_query: String,
    pub headers: BTreeMap<String, String>,
    /// The body as text, or Base64 where `isBase64Encoded`.
    pub body: String,
    pub is_base64_encoded: bool,
}

impl HttpEvent {
    /// Puts a body in: as text where it is UTF-8.
    #[must_use]
    pub fn with_body(mut self, body: &Bytes) -> Self {
        match std::str::from_utf8(body) {
            Ok(text) => text.clone_into(&mut self.body),
            Err(_) => {
                self.body = BASE64.encode(body);
                self.is_base64_encoded = true;
            }
        }
        self
    }
}

/// What a function prints to answer with a status and headers of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpResponse {
    pub status_code: u16,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub body: serde_json::Value,
    #[serde(default)]
    pub is_base64_encoded: bool,
}

impl HttpResponse {
    /// The response in `result`, where that is an object with a `statusCode` from 100 to 599.
    pub fn from_result(result: &serde_json::Value) -> Option<Self> {
        result.as_object()?.get("statusCode")?;
        serde_json::from_value::<Self>(result.clone())
            .ok()
            .filter(|response| (100..=599).contains(&response.status_code))
    }

    /// `None`: it says that it is base64 and is not.
    pub fn body_bytes(&self) -> Option<Bytes> {
        Some(match &self.body {
            serde_json::Value::Null => Bytes::new(),
            serde_json::Value::String(text) if self.is_base64_encoded => BASE64.decode(text).ok()?.into(),
            serde_json::Value::String(text) => Bytes::from(text.clone()),
            other => Bytes::from(other.to_string()),
        })
    }
}
