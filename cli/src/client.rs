//! The gateway's HTTP API, for commands: addresses, keys, and answers that are errors.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flux_runtime::config::env;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::{CliError, Refused},
    keys,
};

const DEFAULT_URL: &str = "http://127.0.0.1:7227";
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// An error page longer than this is not one of ours.
const ERROR_BYTES: usize = 1024 * 1024;

/// A gateway and the key for it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: Url,
    key: Option<String>,
    /// The file that was given with who signed the gateway's certificate.
    ca: Option<PathBuf>,
    http: reqwest::Client,
}

impl Client {
    /// `url`, `key` and `ca` are the command line's; the environment and what `flux up` wrote come after them.
    pub(crate) fn try_new(url: Option<&str>, key: Option<&str>, ca: Option<PathBuf>) -> Result<Self, CliError> {
        let given = url.map(str::to_owned).or_else(|| env("FLUX_URL")).unwrap_or_else(|| DEFAULT_URL.to_owned());
        let with_scheme = if given.contains("://") { given.clone() } else { format!("http://{given}") };
        let wrong =
            |why: &str| CliError::usage(format!("`{given}` is not a gateway's URL ({why}): write {DEFAULT_URL}"));
        let base = Url::parse(with_scheme.trim_end_matches('/')).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(wrong("http:// or https:// and a host"));
        }
        let key = key.map(str::to_owned).or_else(|| env("FLUX_KEY")).or_else(|| keys::read(&authority(&base)));
        // The gateway of this machine is not behind a proxy, whatever the environment says for the rest of the world.
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_WITHIN).http1_only();
        if matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
            builder = builder.no_proxy();
        }
        let ca = ca.or_else(|| env("FLUX_CA").map(PathBuf::from));
        let remembered = || keys::ca_path(&authority(&base)).filter(|path| path.exists());
        if let Some(path) = ca.clone().or_else(|| remembered().filter(|_| base.scheme() == "https")) {
            let cannot = |source| CliError::local(format!("the CA in {} cannot be used", path.display()), source);
            let pem = std::fs::read(&path).map_err(cannot)?;
            let ca = reqwest::Certificate::from_pem(&pem).map_err(|error| cannot(std::io::Error::other(error)))?;
            builder = builder.add_root_certificate(ca);
        }
        let http = builder.build().map_err(|source| CliError::Unreachable { url: given.clone(), source })?;
        Ok(Self { base, key, ca, http })
    }

    pub(crate) fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    pub(crate) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The URL of `segments` below the base, each percent-encoded.
    pub(crate) fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        }
    }

    /// Sends, and turns a refusal into an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = self.send_any(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// Sends, and lets the caller judge the answer.
    pub(crate) async fn send_any(&self, request: RequestBuilder) -> Result<Response, CliError> {
        request.send().await.map_err(|error| self.broken(error))
    }

    pub(crate) fn broken(&self, source: reqwest::Error) -> CliError {
        let url = self.base().to_owned();
        if source.is_connect() {
            return CliError::Unreachable { url, source };
        }
        CliError::BrokenOff { url, source }
    }

    /// What an answer that is no success says.
    pub(crate) async fn refusal(&self, response: Response) -> CliError {
        let status = response.status();
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            body.extend_from_slice(&chunk);
            if body.len() > ERROR_BYTES {
                break;
            }
        }
        self.refusal_of(status, &body)
    }

    pub(crate) fn refusal_of(&self, status: StatusCode, body: &[u8]) -> CliError {
        #[derive(serde::Deserialize)]
        struct Envelope {
            error: Refused,
        }
        match serde_json::from_slice::<Envelope>(body) {
            Ok(Envelope { error }) => CliError::Refused(Refused { status: status.as_u16(), ..error }),
            Err(_) => CliError::Answer { url: self.base().to_owned(), problem: format!("it answered {status}") },
        }
    }

    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|error| self.broken(error))?;
        self.decode(&body)
    }

    pub(crate) fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, CliError> {
        serde_json::from_slice(body).map_err(|error| self.not_understood(&error))
    }

    /// Reads what a table needs out of an answer.
    pub(crate) fn view<T: DeserializeOwned>(&self, value: &Value) -> Result<T, CliError> {
        T::deserialize(value).map_err(|error| self.not_understood(&error))
    }

    fn not_understood(&self, error: &serde_json::Error) -> CliError {
        CliError::Answer { url: self.base().to_owned(), problem: error.to_string() }
    }

    pub(crate) async fn get(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Value, CliError> {
        self.json(self.request(Method::GET, self.url(segments, query))).await
    }

    pub(crate) async fn delete(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Value, CliError> {
        self.json(self.request(Method::DELETE, self.url(segments, query))).await
    }

    pub(crate) async fn post(
        &self,
        segments: &[&str],
        query: &[(&str, &str)],
        body: &Value,
    ) -> Result<Value, CliError> {
        self.json(self.request(Method::POST, self.url(segments, query)).json(body)).await
    }
}

fn authority(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(80))
}
