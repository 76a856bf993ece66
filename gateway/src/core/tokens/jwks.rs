//! An issuer's published keys, read over HTTP: kept for a while, and read again for a `kid` that is not among them, but
//! never more often than every [`limits::JWKS_AGAIN`], whatever strangers ask.
//!
//! Reading runs as a task of its own: a caller that goes away in the middle must not cost the next half minute its keys.

use std::{net::IpAddr, sync::Arc, time::Duration};

use flux_protocol::limits;
use flux_runtime::Tasks;
use futures::StreamExt as _;
use jsonwebtoken::jwk::Jwk;
use parking_lot::{Mutex, RwLock};
use reqwest::{Client, Url, redirect::Policy};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use super::{BadToken, KeyError, VerifyingKey};

/// An issuer that is away keeps its keys for so long: then a key that it took back would be in use for too long.
const STALE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Jwks {
    issuer: String,
    url: Url,
    client: Client,
    tasks: Tasks,
    keys: RwLock<Option<Kept>>,
    /// When it was read last, and who waits for that.
    reading: Mutex<Reading>,
}

#[derive(Debug)]
struct Kept {
    keys: Vec<VerifyingKey>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Reading {
    begun: Option<Instant>,
    done: Option<watch::Receiver<bool>>,
}

impl Jwks {
    pub(super) fn try_new(issuer: &str, url: &str, tasks: &Tasks) -> Result<Arc<Self>, KeyError> {
        let wrong = |problem: String| KeyError::Settings { issuer: issuer.to_owned(), problem };
        let url = Url::parse(url).map_err(|error| wrong(format!("`jwks_url` is no URL: {error}")))?;
        let is_loopback = url.host_str().is_some_and(|host| {
            host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
            return Err(wrong("`jwks_url` must be https: who can change what it answers can sign tokens".into()));
        }
        let mut client = Client::builder().timeout(limits::JWKS_WITHIN).redirect(Policy::none());
        if is_loopback {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| wrong(format!("no HTTP client: {error}")))?;
        Ok(Arc::new(Self {
            issuer: issuer.to_owned(),
            url,
            client,
            tasks: tasks.clone(),
            keys: RwLock::new(None),
            reading: Mutex::default(),
        }))
    }

    pub(super) async fn find(self: &Arc<Self>, id: Option<&str>) -> Result<VerifyingKey, BadToken> {
        if let Some(key) = self.kept(id, limits::JWKS_KEPT) {
            return Ok(key);
        }
        let reading = self.read_again();
        if let Some(mut done) = reading {
            let _ = done.wait_for(|done| *done).await;
        }
        let keeps_any = self.keys.read().as_ref().is_some_and(|kept| kept.at.elapsed() < STALE);
        self.kept(id, STALE).ok_or(if keeps_any { BadToken::Key } else { BadToken::KeysAway })
    }

    /// The key, from a set that is not older than this.
    fn kept(&self, id: Option<&str>, newest: Duration) -> Option<VerifyingKey> {
        let keys = self.keys.read();
        let kept = keys.as_ref().filter(|kept| kept.at.elapsed() < newest)?;
        let found = match (id, &kept.keys[..]) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), all) => all.iter().find(|key| key.id.as_deref() == Some(id)),
        };
        found.cloned()
    }

    /// The reading that is under way, or a new one unless the last began too lately.
    fn read_again(self: &Arc<Self>) -> Option<watch::Receiver<bool>> {
        let mut reading = self.reading.lock();
        if let Some(done) = reading.done.as_ref().filter(|done| !*done.borrow()) {
            return Some(done.clone());
        }
        if reading.begun.is_some_and(|begun| begun.elapsed() < limits::JWKS_AGAIN) {
            return None;
        }
        let (tell, done) = watch::channel(false);
        *reading = Reading { begun: Some(Instant::now()), done: Some(done.clone()) };
        let jwks = Arc::clone(self);
        self.tasks.spawn("jwks", async move {
            match jwks.read().await {
                Ok(keys) => {
                    tracing::debug!(issuer = jwks.issuer, keys = keys.len(), "an issuer's keys were read");
                    *jwks.keys.write() = Some(Kept { keys, at: Instant::now() });
                }
                Err(problem) => tracing::warn!(issuer = jwks.issuer, problem, "an issuer's keys cannot be read"),
            }
            let _ = tell.send(true);
        });
        Some(done)
    }

    async fn read(&self) -> Result<Vec<VerifyingKey>, String> {
        let response = self.client.get(self.url.clone()).send().await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
            if body.len() > limits::JWKS_BYTES {
                return Err(format!("it answered more than {} bytes", limits::JWKS_BYTES));
            }
        }
        parse(&body)
    }
}

/// The keys of a set that can be used; what else is in it is no reason to do without them.
fn parse(body: &[u8]) -> Result<Vec<VerifyingKey>, String> {
    let set: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list `keys`")?;
    let usable = keys.iter().take(limits::JWKS_KEYS).filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
    let usable: Vec<_> = usable.filter_map(|jwk| VerifyingKey::of_jwk(&jwk)).collect();
    if usable.is_empty() {
        return Err("it has no key for RS256 or ES256".to_owned());
    }
    Ok(usable)
}

#[cfg(test)]
impl Jwks {
    /// As if so much time had passed since the keys were read.
    pub(super) fn pretend_older(&self, by: Duration) {
        if let Some(kept) = self.keys.write().as_mut() {
            kept.at = kept.at.checked_sub(by).expect("the machine runs longer than that");
        }
        let mut reading = self.reading.lock();
        reading.begun = reading.begun.and_then(|begun| begun.checked_sub(by));
    }
}
