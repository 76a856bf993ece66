//! Secrets on their way to agents, one attempt at a time.
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
//! Agents also ask which values are set now, by stamps that say nothing of them, so as to end warm workers that have others.
//!
//! The queue does not say who took a message, so an agent that lies about which attempt it holds is stopped by these, and
//! by nothing finer: agents of a pool trust each other with what the pool's functions are given.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use flux_broker::Signal;
use flux_pki::PkiError;
use flux_protocol::{
    AgentId, ErrorCode, Phase, SecretName,
    agent::AgentStatus,
    limits,
    secret::{
        Base64, FunctionStamps, KeyProof, SecretStamp, SecretStamps, SecretsReply, SecretsRequest, StampsReply,
        StampsRequest, key_statement,
    },
    subject::{self, GATEWAYS_GROUP, SECRET_STAMPS},
    time::now,
};
use flux_secrets::seal;
use flux_store::SealedSecret;
use futures::StreamExt as _;
use tokio::sync::Semaphore;

use super::{AgentView, Inner};
use crate::refusal::Refusal;

/// Agents that are answered at once; each costs a few reads and a commit.
const ANSWERED_AT_ONCE: usize = 64;
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

/// What agents ask.
#[derive(Debug, Clone, Copy)]
pub(super) enum About {
    /// An attempt's secrets.
    Values,
    /// Which values those of their warm workers have now.
    Stamps,
}

fn stamp(secret: &SealedSecret) -> SecretStamp {
    SecretStamp { created_at: secret.created_at, version: secret.version }
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
    /// Until the process ends.
    pub(super) async fn answer_agents(self: Arc<Self>, about: About) {
        let places = Arc::new(Semaphore::new(ANSWERED_AT_ONCE));
        let questions = match about {
            About::Values => subject::secrets_all().to_owned(),
            About::Stamps => subject::questions(SECRET_STAMPS),
        };
        loop {
            match self.broker.listen_in_group(&questions, GATEWAYS_GROUP).await {
                Ok(mut asked) => {
                    while let Some(question) = asked.next().await {
                        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                        let inner = Arc::clone(&self);
                        self.tasks.spawn("secrets", async move {
                            inner.answer_agent(about, question).await;
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

    async fn answer_agent(&self, about: About, question: Signal) {
        let Signal { subject: asked_on, body, reply_to, .. } = question;
        let agent = subject::sender(&asked_on).and_then(|agent| AgentId::parse(agent).ok());
        let (Some(agent), Some(reply_to)) = (agent, reply_to) else { return };
        let reply = match about {
            About::Values => self.answer_with_values(&agent, &body).await,
            About::Stamps => self.answer_with_stamps(&agent, &body).await,
        };
        let Some(reply) = reply else { return };
        if let Err(error) = self.broker.signal(reply_to, reply).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "an answer about secrets was not sent");
        }
    }

    async fn answer_with_stamps(&self, agent: &AgentId, body: &[u8]) -> Option<Bytes> {
        let request = serde_json::from_slice::<StampsRequest>(body).ok()?;
        match self.stamps_for(agent, request).await {
            Ok(reply) => serde_json::to_vec(&reply).map(Bytes::from).ok(),
            Err(refusal) => {
                tracing::debug!(error = &refusal as &dyn std::error::Error, "which secrets are set is not known");
                None
            }
        }
    }

    async fn answer_with_values(&self, agent: &AgentId, body: &[u8]) -> Option<Bytes> {
        let request = serde_json::from_slice::<SecretsRequest>(body).ok()?;
        let refused = |reason: &str| {
            metrics::counter!("flux_secrets_refused_total").increment(1);
            tracing::warn!(agent_id = %agent, execution_id = %request.execution_id, reason, "an agent was refused secrets");
        };
        let reply = match self.secrets_for(agent, &request).await {
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
        serde_json::to_vec(&reply).map(Bytes::from).ok()
    }

    /// Which secrets are set now, of the functions of the agent's pool.
    async fn stamps_for(&self, agent: &AgentId, request: StampsRequest) -> Result<StampsReply, Refusal> {
        let (mut reply, mut read) = (StampsReply::default(), BTreeMap::new());
        let Some(known) = self.known_agent(agent) else { return Ok(reply) };
        for of in request.functions.into_iter().take(limits::STAMPS_ASKED) {
            // One that this gateway has not heard of yet is not spoken of.
            let Ok(version) = self.functions.require_version(&of.function, Some(of.version)).await else { continue };
            if version.spec().pool != known.heartbeat.pool {
                continue;
            }
            let mut stamps = SecretStamps::new();
            for name in &version.spec().secrets {
                if !read.contains_key(name) {
                    read.insert(name.clone(), self.store.secret(name).await?.as_ref().map(stamp));
                }
                stamps.extend(read.get(name).copied().flatten().map(|stamp| (name.clone(), stamp)));
            }
            reply.functions.push(FunctionStamps { of, stamps });
        }
        Ok(reply)
    }

    fn known_agent(&self, agent: &AgentId) -> Option<AgentView> {
        let known = self.fleet.list().into_iter().find(|view| view.heartbeat.agent_id == *agent);
        known.filter(|view| view.status != AgentStatus::Offline)
    }

    async fn secrets_for(&self, agent: &AgentId, request: &SecretsRequest) -> Result<SecretsReply, No> {
        let refused = |reason: &str| No::Refused(reason.to_owned());
        let known = self.known_agent(agent);
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
        let (mut values, mut stamps, mut missing) = (BTreeMap::new(), SecretStamps::new(), Vec::new());
        for name in &spec.secrets {
            match self.store.secret(name).await? {
                None => missing.push(name.clone()),
                Some(secret) => {
                    stamps.insert(name.clone(), stamp(&secret));
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
        let (encapsulated, ciphertext) = (Base64(sealed.encapsulated), Base64(sealed.ciphertext));
        Ok(SecretsReply::Sealed { encapsulated, ciphertext, stamps })
    }

    /// The broker holds who asks to its name; who may publish as everybody, as any gateway may, has not the agents' keys.
    async fn require_proof(&self, agent: &AgentId, request: &SecretsRequest) -> Result<(), No> {
        let Some(certs) = self.certs.clone() else { return Ok(()) };
        let Some(KeyProof { certificate, signature }) = request.proof.clone() else {
            // An agent of the release before, most likely: its executions wait for it, or another, to be brought up to date.
            tracing::warn!(
                agent_id = %agent,
                execution_id = %request.execution_id,
                "an agent that did not sign its key is given no secrets: bring it up to date"
            );
            let reason = "the agent did not sign its key, as this release does: bring it up to date";
            return Err(No::NotNow(reason.to_owned()));
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
