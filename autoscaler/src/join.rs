//! Letting an agent in, as `flux agent join` does: with a token that is made for it and used up by it.

use std::{io, path::Path, time::Duration};

use flux_pki::{Certs, JoinToken};
use flux_protocol::{AgentId, PoolName};
use serde_json::{Value, json};

const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// The token is used at once.
const TOKEN_SECONDS: u64 = 120;

/// A gateway that gives identities, and a key with which it may be asked to.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub url: String,
    pub api_key: Option<String>,
    client: reqwest::Client,
}

impl Gateway {
    /// Trusts the CA in that file too, if it is there: it may have signed the gateway's certificate (`gateway.tls: auto`).
    ///
    /// # Errors
    /// The file is no certificate.
    pub fn new(url: &str, api_key: Option<String>, ca: &Path) -> reqwest::Result<Self> {
        let mut client = reqwest::Client::builder();
        if let Ok(pem) = std::fs::read(ca) {
            client = client.add_root_certificate(reqwest::Certificate::from_pem(&pem)?);
        }
        Ok(Self { url: url.trim_end_matches('/').to_owned(), api_key, client: client.build()? })
    }

    /// Lets the agent in, and keeps its identity in that directory; where the queue is. One that has an identity from before a
    /// crash is shut out first: nobody else has its key.
    pub(crate) async fn join(&self, id: &str, pool: &PoolName, certs_dir: &Path) -> io::Result<String> {
        let agent = AgentId::parse(id).map_err(io::Error::other)?;
        self.forget(&agent).await?;
        let _ = std::fs::remove_dir_all(certs_dir);
        let body = json!({ "url": self.url, "pools": [pool], "seconds": TOKEN_SECONDS });
        let answer = self.post("/agents/tokens", &body).await?;
        let token = JoinToken::parse(text(&answer, "token")).map_err(io::Error::other)?;
        let (key, request) = flux_pki::request().map_err(io::Error::other)?;
        let proof = token.proof(&agent, &request).map_err(io::Error::other)?;
        let body = json!({ "token": token.id, "agent_id": agent, "request": request, "proof": proof });
        let answer = self.post("/agents/join", &body).await?;
        std::fs::create_dir_all(certs_dir)?;
        let certs = Certs::at(certs_dir);
        let kept = certs.keep_joined(&agent, &token.ca, text(&answer, "ca"), text(&answer, "certificate"), &key);
        kept.map_err(io::Error::other)?;
        Ok(text(&answer, "queue_url").to_owned())
    }

    /// Shuts an agent out. One that is not let in is no error.
    ///
    /// # Errors
    /// The gateway does not answer, or refuses.
    pub async fn forget(&self, agent: &AgentId) -> io::Result<()> {
        let request = self.client.delete(format!("{}/agents/{agent}", self.url));
        let answer = self.send(request).await?;
        let done = answer.status().is_success() || answer.status() == reqwest::StatusCode::NOT_FOUND;
        if done { Ok(()) } else { Err(refused(answer).await) }
    }

    async fn post(&self, path: &str, body: &Value) -> io::Result<Value> {
        let answer = self.send(self.client.post(format!("{}{path}", self.url)).json(body)).await?;
        if answer.status().is_success() {
            return answer.json().await.map_err(io::Error::other);
        }
        Err(refused(answer).await)
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> io::Result<reqwest::Response> {
        if let Some(key) = &self.api_key {
            request = request.header("x-api-key", key);
        }
        request.timeout(ANSWERS_WITHIN).send().await.map_err(io::Error::other)
    }
}

async fn refused(answer: reqwest::Response) -> io::Error {
    let (url, status) = (answer.url().path().to_owned(), answer.status());
    let body: Value = answer.json().await.unwrap_or_default();
    let message = body["error"]["message"].as_str().unwrap_or("it says nothing more");
    io::Error::other(format!("the gateway refused {url} with {status}: {message}"))
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap_or_default()
}
