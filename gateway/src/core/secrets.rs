//! Secrets: encrypted before they reach the store, and given to agents one attempt at a time.
//!
//! An agent that holds an attempt asks on `flux.ask.<agent>.secrets`; one gateway hears it, and answers if
//!
//! - the agent is online, in the function's pool, and its heartbeat names the key that it asks to have the answer sealed to;
//! - the key is signed by the agent's certificate, where agents have any;
//! - the version that it names declares secrets, and the record of the execution, where there is one, is of that function,
//!   is not over, and is not said to be with another agent;
//! - nobody was given the secrets of this attempt before: the store decides, so that two gateways do not answer two. Attempts
//!   are counted by the queue's deliveries, which it may forget: who is told that the number is taken asks for the next.
//!
//! The queue does not say who took a message, so an agent that lies about which attempt it holds is stopped by these, and
//! by nothing finer: agents of a pool trust each other with what the pool's functions are given.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::Signal;
use flux_pki::PkiError;
use flux_protocol::{
    AgentId, ErrorCode, FunctionSpec, Phase, SecretName,
    agent::AgentStatus,
    limits,
    secret::{Base64, KeyProof, SecretsReply, SecretsRequest, key_statement},
    subject::{self, GATEWAYS_GROUP},
    time::now,
};
use flux_secrets::{AtRest, Keyring, KeyringError, seal};
use flux_store::SealedSecret;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Gateway, Inner};
use crate::refusal::Refusal;

/// Agents that are answered at once; each costs a few reads and a commit.
const ANSWERED_AT_ONCE: usize = 64;
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

/// The keys that secrets are encrypted with, once they were needed.
#[derive(Debug)]
pub(super) struct SecretKeys {
    path: Option<PathBuf>,
    ring: Mutex<Option<Keyring>>,
    /// Held while a value is set or all are encrypted anew: none is written down with a key that goes meanwhile.
    changing: tokio::sync::Mutex<()>,
}

impl SecretKeys {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, ring: Mutex::new(None), changing: tokio::sync::Mutex::new(()) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Keyring) -> Result<T, KeyringError>) -> Result<T, Refusal> {
        let mut ring = self.ring.lock();
        let opened = match &mut *ring {
            Some(opened) => opened,
            none => {
                let path = self.path.as_deref().ok_or_else(|| {
                    Refusal::new(
                        ErrorCode::SecretsUnavailable,
                        "`gateway.secrets_key` names no file to encrypt secrets with",
                    )
                })?;
                none.insert(Keyring::open(path).map_err(unavailable)?)
            }
        };
        work(opened).map_err(unavailable)
    }

    /// As the file is now: another gateway that shares it may have changed it.
    fn read_again(&self) -> Result<(), Refusal> {
        match &mut *self.ring.lock() {
            Some(ring) => ring.read_again().map_err(unavailable),
            // It is read when it is needed.
            None => Ok(()),
        }
    }

    fn decrypt(&self, secret: &SealedSecret) -> Result<Vec<u8>, Refusal> {
        let at_rest = AtRest { key: secret.key.clone(), sealed: secret.sealed.clone() };
        let mut is_known = true;
        let opened = self.with(|ring| {
            is_known = ring.has(&at_rest.key);
            ring.decrypt(&secret.name, &at_rest)
        });
        if is_known {
            return opened;
        }
        self.read_again()?;
        self.with(|ring| ring.decrypt(&secret.name, &at_rest))
    }
}

fn unavailable(error: KeyringError) -> Refusal {
    Refusal::new(ErrorCode::SecretsUnavailable, error.to_string()).caused_by(error)
}

fn secret_not_found(name: &SecretName) -> Refusal {
    Refusal::new(ErrorCode::SecretNotFound, format!("there is no secret `{name}`; set it with PUT /secrets/{name}"))
}

impl Gateway {
    /// Sets a secret, and says which version of it this is. Workers that started before keep the one before.
    ///
    /// # Errors
    /// It cannot be a variable's value, there are too many, or it cannot be encrypted or stored.
    pub async fn put_secret(&self, name: &SecretName, value: &[u8]) -> Result<u32, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let wrong = |problem: String| Refusal::new(ErrorCode::InvalidRequest, problem).with_field("value");
        if value.len() > limits::SECRET {
            return Err(wrong(format!("a secret has at most {} bytes; this one has {}", limits::SECRET, value.len())));
        }
        if value.contains(&0) || std::str::from_utf8(value).is_err() {
            return Err(wrong("a secret becomes an environment variable: it is UTF-8, without NUL".to_owned()));
        }
        let _changing = inner.secret_keys.changing.lock().await;
        inner.secret_keys.read_again()?;
        inner.require_all_keys().await?;
        loop {
            let AtRest { key, sealed } = inner.secret_keys.with(|ring| ring.encrypt(name, value))?;
            let at = now();
            let used = key.clone();
            let secret = SealedSecret { name: name.clone(), key, sealed, version: 0, created_at: at, updated_at: at };
            let version = inner.store.put_secret(&secret).await?.ok_or_else(|| {
                let message = format!("there are {} secrets, which is all that are kept: remove some", limits::SECRETS);
                Refusal::new(ErrorCode::LimitReached, message)
            })?;
            // Other gateways may have rotated the key away meanwhile; one that has yet to forget it finds the value.
            inner.secret_keys.read_again()?;
            if inner.secret_keys.with(|ring| Ok(ring.has(&used)))? {
                return Ok(version);
            }
        }
    }

    /// Every secret, by name. The values are encrypted, and nothing here opens them.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn secrets(&self) -> Result<Vec<SealedSecret>, Refusal> {
        Ok(self.inner.store.secrets().await?)
    }

    /// # Errors
    /// It is unknown.
    pub async fn secret(&self, name: &SecretName) -> Result<SealedSecret, Refusal> {
        self.inner.store.secret(name).await?.ok_or_else(|| secret_not_found(name))
    }

    /// # Errors
    /// It is unknown.
    pub async fn delete_secret(&self, name: &SecretName) -> Result<(), Refusal> {
        if self.inner.store.delete_secret(name).await? { Ok(()) } else { Err(secret_not_found(name)) }
    }

    /// Encrypts every secret with a new key, and then forgets the keys before but the last. How many there were.
    ///
    /// # Errors
    /// One does not open, the file cannot be written, or the store is out of reach. Then the old keys stay.
    pub async fn rotate_secrets_key(&self) -> Result<usize, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let _changing = inner.secret_keys.changing.lock().await;
        inner.secret_keys.read_again()?;
        inner.require_all_keys().await?;
        let (before, ring) = inner.secret_keys.with(|ring| Ok((ring.add_key()?, ring.clone())))?;
        inner.reseal(&before, &ring).await?;
        inner.secret_keys.with(|ring| ring.forget_keys(&before))?;
        // What another gateway wrote down between the last look and now.
        inner.reseal(&before, &ring).await?;
        Ok(inner.store.secrets().await?.len())
    }
}

/// Why an agent is not given what it asks for.
enum No {
    Refused(String),
    /// The number of the attempt is another's.
    Claimed(String),
    NotNow(String),
    Missing(Vec<SecretName>),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        match refusal.code {
            // The agent's table of versions may be ahead of this gateway's store for a moment.
            ErrorCode::FunctionNotFound | ErrorCode::VersionNotFound => Self::Refused(refusal.message),
            _ => Self::NotNow(refusal.message),
        }
    }
}

impl From<flux_store::StoreError> for No {
    fn from(error: flux_store::StoreError) -> Self {
        Self::NotNow(error.to_string())
    }
}

impl Inner {
    /// Encrypts anew what is encrypted with one of these keys, which `ring` has, until there is none. A newer key than this
    /// rotation's is another gateway's, which rotates too.
    async fn reseal(&self, before: &[String], ring: &Keyring) -> Result<(), Refusal> {
        loop {
            let all = self.store.secrets().await?;
            let old: Vec<_> = all.into_iter().filter(|secret| before.contains(&secret.key)).collect();
            if old.is_empty() {
                return Ok(());
            }
            for secret in old {
                let at_rest = AtRest { key: secret.key.clone(), sealed: secret.sealed.clone() };
                let value = ring.decrypt(&secret.name, &at_rest).map_err(unavailable)?;
                let AtRest { key, sealed } = self.secret_keys.with(|ring| ring.encrypt(&secret.name, &value))?;
                self.store.reseal_secret(&SealedSecret { key, sealed, ..secret }).await?;
            }
        }
    }

    /// A key file of this gateway's own making beside secrets that it cannot open would split them in two.
    async fn require_all_keys(&self) -> Result<(), Refusal> {
        let secrets = self.store.secrets().await?;
        let lacks = |ring: &Keyring| secrets.iter().find(|secret| !ring.has(&secret.key)).cloned();
        if self.secret_keys.with(|ring| Ok(lacks(ring)))?.is_none() {
            return Ok(());
        }
        self.secret_keys.read_again()?;
        match self.secret_keys.with(|ring| Ok(lacks(ring)))? {
            None => Ok(()),
            Some(secret) => self.secret_keys.decrypt(&secret).map(|_| ()),
        }
    }

    /// Those of a function's secrets that are not set.
    pub(super) async fn missing_secrets(&self, spec: &FunctionSpec) -> Result<Vec<SecretName>, Refusal> {
        let mut missing = Vec::new();
        for name in &spec.secrets {
            if self.store.secret(name).await?.is_none() {
                missing.push(name.clone());
            }
        }
        Ok(missing)
    }

    /// Until the process ends.
    pub(super) async fn answer_agents(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(ANSWERED_AT_ONCE));
        loop {
            match self.broker.listen_in_group(subject::secrets_all(), GATEWAYS_GROUP).await {
                Ok(mut asked) => {
                    while let Some(question) = asked.next().await {
                        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                        let inner = Arc::clone(&self);
                        self.tasks.spawn("secrets", async move {
                            inner.answer_agent(question).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot hear agents ask for secrets; trying again"
                    );
                }
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    async fn answer_agent(&self, question: Signal) {
        let Signal { subject: asked_on, body, reply_to, .. } = question;
        let agent = subject::sender(&asked_on).and_then(|agent| AgentId::parse(agent).ok());
        let (Some(agent), Some(reply_to)) = (agent, reply_to) else { return };
        let Ok(request) = serde_json::from_slice::<SecretsRequest>(&body) else { return };
        let refused = |reason: &str| {
            metrics::counter!("flux_secrets_refused_total").increment(1);
            tracing::warn!(agent_id = %agent, execution_id = %request.execution_id, reason, "an agent was refused secrets");
        };
        let reply = match self.secrets_for(&agent, &request).await {
            Ok(sealed) => sealed,
            Err(No::Missing(names)) => SecretsReply::Missing { names },
            Err(No::NotNow(reason)) => SecretsReply::NotNow { reason },
            Err(No::Refused(reason)) => {
                refused(&reason);
                SecretsReply::Refused { reason }
            }
            Err(No::Claimed(reason)) => {
                refused(&reason);
                SecretsReply::Claimed { reason }
            }
        };
        let Ok(reply) = serde_json::to_vec(&reply).map(Bytes::from) else { return };
        if let Err(error) = self.broker.signal(reply_to, reply).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "an answer with secrets was not sent");
        }
    }

    async fn secrets_for(&self, agent: &AgentId, request: &SecretsRequest) -> Result<SecretsReply, No> {
        let refused = |reason: &str| No::Refused(reason.to_owned());
        let known = self.fleet.list().into_iter().find(|view| view.heartbeat.agent_id == *agent);
        let known = known.filter(|view| view.status != AgentStatus::Offline);
        let known = known.ok_or_else(|| No::NotNow("this gateway has not heard of the agent yet".to_owned()))?;
        if known.heartbeat.secrets_key.as_ref() != Some(&request.public_key) {
            return Err(No::NotNow("the agent's heartbeat names another key, or none yet".to_owned()));
        }
        self.require_proof(agent, request).await?;
        let version = self.functions.require_version(&request.function, Some(request.version)).await?;
        let spec = version.spec();
        if spec.pool != known.heartbeat.pool {
            return Err(refused("the function is of another pool than the agent"));
        }
        if spec.secrets.is_empty() {
            return Err(refused("this version of the function declares no secrets"));
        }
        if let Some(record) = self.store.execution(request.execution_id).await? {
            if record.function != request.function {
                return Err(refused("the execution is another function's"));
            }
            if record.is_terminal() {
                return Err(refused("the execution is over"));
            }
            let elsewhere = record.phase == Phase::Running && record.attempt >= request.attempt;
            if elsewhere && record.agent_id.as_ref().is_some_and(|holder| holder != agent) {
                return Err(No::Claimed("another agent holds that attempt".to_owned()));
            }
        }
        let (mut values, mut missing) = (BTreeMap::new(), Vec::new());
        for name in &spec.secrets {
            match self.store.secret(name).await? {
                None => missing.push(name.clone()),
                Some(secret) => {
                    let value = String::from_utf8(self.secret_keys.decrypt(&secret)?);
                    values.insert(name, value.map_err(|_| No::NotNow(format!("`{name}` is no text")))?);
                }
            }
        }
        if !missing.is_empty() {
            return Err(No::Missing(missing));
        }
        let nonce = <[u8; 16]>::try_from(&request.nonce.0[..]).map_err(|_| refused("the nonce has not 16 bytes"))?;
        // Last, so that what could not be answered can be asked again.
        if !self.store.claim_secrets(request.execution_id, request.attempt, agent, nonce, now()).await? {
            return Err(No::Claimed("the secrets of this attempt were given already".to_owned()));
        }
        let values = serde_json::to_vec(&values).map_err(|error| No::NotNow(error.to_string()))?;
        let sealed = seal(&request.public_key.0, &request.purpose(agent), &values);
        let sealed = sealed.map_err(|_| refused("the agent's key is no key"))?;
        metrics::counter!("flux_secrets_given_total").increment(1);
        Ok(SecretsReply::Sealed { encapsulated: Base64(sealed.encapsulated), ciphertext: Base64(sealed.ciphertext) })
    }

    /// The broker holds who asks to its name; who may publish as everybody, as any gateway may, has not the agents' keys.
    async fn require_proof(&self, agent: &AgentId, request: &SecretsRequest) -> Result<(), No> {
        let Some(certs) = self.certs.clone() else { return Ok(()) };
        let Some(KeyProof { certificate, signature }) = request.proof.clone() else {
            let reason = "the agent did not sign its key, as this release does: upgrade agents before gateways";
            return Err(No::Refused(reason.to_owned()));
        };
        let (agent, statement) = (agent.clone(), key_statement(agent, &request.public_key.0));
        let verified = tokio::task::spawn_blocking(move || {
            certs.verify_agent_signed(&agent, &certificate, &statement, &signature.0)
        });
        match verified.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ (PkiError::Untrusted { .. } | PkiError::Unknown { .. }))) => {
                Err(No::Refused(format!("its key is not signed by the agent: {error}")))
            }
            Ok(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "whether an agent signed its key is not known"
                );
                Err(No::NotNow("this gateway's directory of certificates cannot be used".to_owned()))
            }
            Err(error) => Err(No::NotNow(error.to_string())),
        }
    }
}
