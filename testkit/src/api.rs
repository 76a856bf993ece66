//! The public HTTP API, as a client of it sees it: status, headers, body.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use serde_json::Value;

use crate::{
    archive::{File, archive},
    wait::eventually,
};

/// Longer than any answer takes: what hangs must not hang the test.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A gateway's address and a key for it.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    key: String,
    http: reqwest::Client,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body, where it is JSON; `Null` otherwise.
    pub json: Value,
}

impl Reply {
    /// Itself, if its status is this. Panics with the whole answer if not.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{:#?}", self.text(), self.headers);
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, or "" if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Api {
    /// The key that it shows.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// `base` is like `http://127.0.0.1:7227`; an empty key sends none.
    pub fn new(base: impl Into<String>, key: impl Into<String>) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("an HTTP client");
        Self { base: base.into().trim_end_matches('/').to_owned(), key: key.into(), http }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same gateway with another key.
    #[must_use]
    pub fn with_key(&self, key: impl Into<String>) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    /// A request to `path` (which begins with `/`) with the key: for what the words below do not say, such as
    /// headers or reading a stream as it comes.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        if self.key.is_empty() { request } else { request.header("X-API-Key", &self.key) }
    }

    pub async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        send(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn put(&self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Reply {
        send(self.request(Method::PUT, path).header("Content-Type", content_type).body(body.into())).await
    }

    /// Any request, where the gateway not answering is an outcome of the test.
    pub async fn try_send(request: RequestBuilder) -> Result<Reply, reqwest::Error> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?;
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Reply { status, headers, body, json })
    }

    /// Waits until `GET /ready` says so.
    pub async fn ready(&self, deadline: Duration) {
        eventually(deadline, format!("{} to be ready", self.base), || async {
            Self::try_send(self.request(Method::GET, "/ready")).await.is_ok_and(|reply| reply.status == 200)
        })
        .await;
    }

    /// Registers the function and deploys its code; returns the deployment's answer. Panics where either is refused.
    pub async fn deploy(&self, name: &str, yaml: &str, files: &[File]) -> Value {
        self.put("/functions", "application/yaml", yaml.to_owned()).await.expect(201);
        let answer = self.put(&format!("/deploy/{name}"), "application/zip", archive(files)).await;
        assert!((200..300).contains(&answer.status), "deploying {name}: {} {}", answer.status, answer.text());
        answer.json
    }

    /// `POST /execute/{name}` with this payload, and waits for the outcome.
    pub async fn execute(&self, name: &str, payload: &Value) -> Reply {
        self.post(&format!("/execute/{name}"), &serde_json::json!({ "payload": payload })).await
    }

    /// `POST /execute/{name}/async`; the id of the accepted execution.
    pub async fn execute_async(&self, name: &str, payload: &Value) -> String {
        let path = format!("/execute/{name}/async");
        let accepted = self.post(&path, &serde_json::json!({ "payload": payload })).await.expect(202);
        accepted.json["execution_id"].as_str().expect("202 names the execution").to_owned()
    }

    /// Polls `GET /executions/{id}` until its status is not `running`, and returns the record.
    pub async fn outcome(&self, execution: &str, deadline: Duration) -> Value {
        let path = format!("/executions/{execution}");
        crate::wait::eventually_some(deadline, format!("{execution} to end"), || async {
            let reply = Self::try_send(self.request(Method::GET, &path)).await.ok()?;
            let ended = reply.status == 200 && reply.json["status"].as_str().is_some_and(|status| status != "running");
            ended.then_some(reply.json)
        })
        .await
    }
}

async fn send(request: RequestBuilder) -> Reply {
    Api::try_send(request).await.unwrap_or_else(|error| panic!("no answer: {error:?}"))
}
