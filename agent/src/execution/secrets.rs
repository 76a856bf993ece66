//! The secrets of an attempt: asked for once its function is about to start, opened here, and hidden in what it prints.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use flux_protocol::{
    ErrorKind, FunctionVersion, SecretName,
    secret::{Base64, KeyProof, SecretStamps, SecretsReply, SecretsRequest, key_statement},
    subject, time,
};
use flux_secrets::{Patterns, Sealed};

use super::{Attempt, run::Started};
use crate::retry;

/// A gateway reads a few rows and commits one.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Gateways may be starting, or not have heard of this agent yet.
const GIVEN_WITHIN: Duration = Duration::from_secs(30);

/// What a process is started with, and what is hidden in what it says.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    values: BTreeMap<SecretName, String>,
    stamps: SecretStamps,
    hidden: Option<Patterns>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Secrets {
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, String)> {
        self.values.iter().map(|(name, value)| (name.to_string(), value.clone()))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.values.keys().any(|known| known.as_str() == name)
    }

    /// Which values they are; a gateway of the release before does not say.
    pub(crate) fn stamps(&self) -> &SecretStamps {
        &self.stamps
    }

    pub(crate) fn hidden(&self) -> Option<&Patterns> {
        self.hidden.as_ref()
    }
}

/// What is to be done about an answer.
enum Answer {
    Given(BTreeMap<SecretName, String>, SecretStamps),
    Again(String),
    /// The attempt of this number was another's.
    Claimed(String),
    Never(ErrorKind, String),
}

impl Attempt {
    /// The secrets that the function names; none where it names none, and then nobody is asked.
    pub(super) async fn secrets(&self, version: &FunctionVersion) -> Result<Secrets, Started> {
        let spec = &version.spec;
        if spec.secrets.is_empty() {
            return Ok(Secrets::default());
        }
        let mut request = SecretsRequest {
            execution_id: self.execution.id,
            attempt: self.execution.attempt(),
            function: spec.name.clone(),
            version: version.version,
            nonce: Base64(rand::random::<[u8; 16]>().to_vec()),
            public_key: Base64(self.node.secrets_key.public_key().to_vec()),
            proof: self.key_proof()?,
        };
        let began = time::now();
        let (mut tries, mut claims) = (0, 0);
        loop {
            let asked = tokio::select! {
                biased;
                stop = self.execution.until_stopped() => return Err(Started::Stopped(stop.clone())),
                answer = self.ask_for_secrets(&request) => answer,
            };
            let late = |kind, message| Started::Late(Box::new(super::failed(kind, message)));
            match asked {
                Answer::Given(values, stamps) => {
                    let hidden = Patterns::of(values.values().map(String::as_bytes)).filter(|_| spec.redact);
                    return Ok(Secrets { values, stamps, hidden });
                }
                Answer::Claimed(why) if claims >= self.node.max_losses => {
                    return Err(late(ErrorKind::Sandbox, format!("its secrets were not given to this agent: {why}")));
                }
                Answer::Claimed(why) => {
                    claims += 1;
                    self.execution.count_on();
                    request.attempt = self.execution.attempt();
                    tracing::debug!(why, attempt = request.attempt, "an attempt was another's; this is the next");
                }
                Answer::Never(kind, message) => return Err(late(kind, message)),
                Answer::Again(why) if time::now().since(began) > GIVEN_WITHIN => {
                    return Err(late(ErrorKind::Sandbox, format!("no gateway gave it its secrets: {why}")));
                }
                Answer::Again(why) => {
                    self.check_age().map_err(Started::Late)?;
                    tries += 1;
                    tracing::debug!(why, tries, "secrets are not given yet");
                    let _ = tokio::time::timeout(retry::pause(tries), self.execution.until_stopped()).await;
                }
            }
        }
    }

    /// That the key is this agent's, where it has a certificate.
    fn key_proof(&self) -> Result<Option<KeyProof>, Started> {
        let Some(credential) = &self.node.credential else { return Ok(None) };
        let statement = key_statement(&self.node.id, self.node.secrets_key.public_key());
        match credential.sign(&statement) {
            Ok((certificate, signature)) => Ok(Some(KeyProof { certificate, signature: Base64(signature) })),
            Err(error) => {
                let why = format!("it cannot sign the key of its secrets: {}", crate::error_chain(&error));
                Err(Started::Late(Box::new(super::failed(ErrorKind::Sandbox, why))))
            }
        }
    }

    async fn ask_for_secrets(&self, request: &SecretsRequest) -> Answer {
        let agent = &self.node.id;
        let Ok(body) = serde_json::to_vec(request).map(Bytes::from) else {
            return Answer::Never(ErrorKind::Sandbox, "the question for its secrets cannot be written".to_owned());
        };
        let answered = match self.node.broker.ask(subject::secrets(agent), body, ANSWERED_WITHIN).await {
            Ok(Some(answered)) => answered,
            Ok(None) => return Answer::Again("none answers".to_owned()),
            Err(error) => return Answer::Again(crate::error_chain(&error)),
        };
        match serde_json::from_slice(&answered.body) {
            Ok(SecretsReply::Sealed { encapsulated, ciphertext, stamps }) => {
                let sealed = Sealed { encapsulated: encapsulated.0, ciphertext: ciphertext.0 };
                let opened = self.node.secrets_key.open(&sealed, &request.purpose(agent));
                match opened.map(|values| serde_json::from_slice(&values)) {
                    Ok(Ok(values)) => Answer::Given(values, stamps),
                    Ok(Err(_)) => Answer::Again("what was sealed is not understood".to_owned()),
                    Err(error) => Answer::Again(error.to_string()),
                }
            }
            Ok(SecretsReply::Missing { names }) => Answer::Never(ErrorKind::InvalidFunction, missing(&names)),
            Ok(SecretsReply::Refused { reason }) => {
                Answer::Never(ErrorKind::Sandbox, format!("its secrets were not given to this agent: {reason}"))
            }
            Ok(SecretsReply::Claimed { reason }) => Answer::Claimed(reason),
            Ok(SecretsReply::NotNow { reason }) => Answer::Again(reason),
            Err(error) => Answer::Again(error.to_string()),
        }
    }
}

fn missing(names: &[SecretName]) -> String {
    let list: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let (what, first) = (if names.len() == 1 { "secret" } else { "secrets" }, names.first());
    let set = first.map(|name| format!(": flux secrets set {name}")).unwrap_or_default();
    format!("the {what} {} that it names {} not set{set}", list.join(", "), if names.len() == 1 { "is" } else { "are" })
}
