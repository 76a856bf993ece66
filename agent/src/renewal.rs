//! A new certificate before the old one ends: asked for over the queue, where the broker vouches for who asks.

use std::{sync::Arc, time::Duration};

use flux_broker::Broker;
use flux_pki::{Certs, Credential};
use flux_protocol::{
    AgentId,
    agent::RenewalReply,
    limits,
    subject::{self, RENEWAL},
    time::now,
};

/// Between looks at the certificate: it has days left when it is due.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After a renewal that failed, or that a provisioner is to do.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Takes what a gateway beside the agent renewed, for as long as the agent runs.
pub(crate) async fn follow(credential: Arc<Credential>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        read_again(&credential);
    }
}

fn read_again(credential: &Credential) {
    if let Err(error) = credential.reload() {
        tracing::warn!(error = &error as &dyn std::error::Error, "the certificate cannot be read again");
    }
}

/// Keeps the certificate young for as long as the agent runs. One that somebody else renewed is taken from its file.
pub(crate) async fn keep(certs: Certs, broker: Arc<dyn Broker>, id: AgentId, credential: Arc<Credential>) {
    loop {
        read_again(&credential);
        let certificate = credential.certificate();
        let due = certificate.ends_within(limits::CERTIFICATE_RENEWED_BEFORE, now());
        let wait = match due {
            false => LOOK_EVERY,
            true => match renew(&certs, &*broker, &id, &credential).await {
                Ok(()) => LOOK_EVERY,
                Err(why) => {
                    tracing::warn!(%why, not_after = %certificate.not_after(), "the certificate was not renewed; trying again");
                    AGAIN_AFTER
                }
            },
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(certs: &Certs, broker: &dyn Broker, id: &AgentId, credential: &Credential) -> Result<(), String> {
    let said = |error: flux_pki::PkiError| crate::error_chain(&error);
    let request = credential.renewal_request().map_err(said)?;
    let asked = broker.ask(subject::question(id, RENEWAL), request.into(), ANSWER_WITHIN).await;
    let answer = asked.map_err(|error| crate::error_chain(&error))?.ok_or("no gateway with the CA answers")?;
    match serde_json::from_slice(&answer.body).map_err(|error| error.to_string())? {
        RenewalReply::Renewed { certificate } => {
            certs.keep_renewed(id, &certificate).and_then(|()| credential.reload()).map_err(said)?;
            tracing::info!(not_after = %credential.certificate().not_after(), "the certificate was renewed");
            Ok(())
        }
        RenewalReply::Refused { message } => Err(message),
    }
}
