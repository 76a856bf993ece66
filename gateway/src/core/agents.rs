//! Agents as machines: let in, registered, cordoned, removed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use flux_broker::{BrokerError, Table};
use flux_pki::{Certs, JoinToken, PkiError};
use flux_protocol::{
    AgentId, ErrorCode, PoolName,
    agent::{ControlReply, ControlRequest, ProbeAnswer, Registered},
    autoscaler::ManagedNode,
    identity::Identity,
    limits, subject,
    time::now,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use super::{Gateway, Inner};
use crate::refusal::Refusal;

const PROBED_WITHIN: Duration = Duration::from_secs(5);
const PROBE_BYTES: u64 = 64 * limits::KIB as u64;
/// What was read of identities is shown for this long.
const IDENTITIES_FOR: Duration = Duration::from_secs(1);
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// What a machine that joined is told.
pub struct Joined {
    pub certificate: String,
    pub ca: String,
    /// Where the queue is, as this gateway reaches it.
    pub queue_url: String,
}

impl Gateway {
    /// A token with which one machine can join.
    ///
    /// # Errors
    /// No identities are given here, or as many tokens as may be are open.
    pub async fn create_join_token(
        &self,
        url: String,
        pools: Vec<PoolName>,
        life: Duration,
    ) -> Result<JoinToken, Refusal> {
        self.inner.with_certs(move |certs| certs.create_token(&url, pools, life)).await
    }

    /// Lets a machine in.
    ///
    /// # Errors
    /// The token is refused, or the id is another's.
    pub async fn join(&self, token: String, agent: AgentId, request: String, proof: String) -> Result<Joined, Refusal> {
        let queue_url = self.inner.queue_url.clone();
        let id = agent.clone();
        let joined = self.inner.with_certs(move |certs| {
            let certificate = certs.join(&token, &agent, &request, &proof)?;
            Ok(Joined { certificate, ca: certs.trust()?.pem().to_owned(), queue_url })
        });
        let joined = joined.await?;
        self.inner.identities.forget().await;
        tracing::info!(agent_id = %id, "a machine joined by a token");
        Ok(joined)
    }

    /// Asks whoever listens at an agent's probe port who it is, and remembers the machine as registered by hand.
    ///
    /// # Errors
    /// Nobody there proves to be an agent that is let in, or its id is registered at another address.
    pub async fn register_agent(&self, address: &str) -> Result<ProbeAnswer, Refusal> {
        let answer = self.inner.probe(address).await?;
        let key = answer.agent_id.as_str();
        if let Some(entry) = self.inner.broker.get(Table::Registered, key).await? {
            let known = serde_json::from_slice::<Registered>(&entry.value).ok();
            if let Some(known) = known.filter(|known| known.address != address) {
                let message = format!("{key} is registered at {}; remove it there first", known.address);
                let details = serde_json::json!({ "id": key, "address": known.address });
                return Err(Refusal::new(ErrorCode::AgentExists, message).with_details(details));
            }
        }
        let registered = Registered { address: address.to_owned(), at: now() };
        let value =
            serde_json::to_vec(&registered).map_err(|error| BrokerError::refused("encode a registration", error))?;
        self.inner.broker.put(Table::Registered, key, value.into()).await?;
        self.inner.identities.forget().await;
        Ok(answer)
    }

    /// Has an agent take no more work (`false`: take work again); what it runs goes on.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn cordon_agent(&self, agent: &AgentId, cordoned: bool) -> Result<(), Refusal> {
        let request = if cordoned { ControlRequest::Drain } else { ControlRequest::Undrain };
        let body = serde_json::to_vec(&request).map_err(|error| BrokerError::refused("encode a request", error))?;
        let answer = self.inner.broker.ask(subject::control(agent), body.into(), ANSWERED_WITHIN).await?;
        match answer.and_then(|answer| serde_json::from_slice(&answer.body).ok()) {
            Some(ControlReply::Ok { agent_id }) if agent_id == *agent => Ok(()),
            _ => Err(not_found(agent)),
        }
    }

    /// Forgets an agent: it is shut out where identities are given, and no longer registered.
    ///
    /// # Errors
    /// It was neither let in nor registered.
    pub async fn remove_agent(&self, agent: &AgentId) -> Result<(), Refusal> {
        let removed = self.revoke_agent(agent).await;
        self.inner.identities.forget().await;
        removed
    }

    async fn revoke_agent(&self, agent: &AgentId) -> Result<(), Refusal> {
        let registered = self.inner.broker.get(Table::Registered, agent.as_str()).await?.is_some();
        if registered {
            self.inner.broker.delete(Table::Registered, agent.as_str()).await?;
        }
        let may_revoke = self.inner.certs.as_ref().is_some_and(Certs::has_authority);
        if !may_revoke {
            return if registered { Ok(()) } else { Err(not_found(agent)) };
        }
        let id = agent.clone();
        match self.inner.with_certs(move |certs| certs.revoke_agent(&id)).await {
            Err(refusal) if registered && refusal.code == ErrorCode::AgentNotFound => Ok(()),
            done => done,
        }
    }

    /// What is known of the agents' identities: until when each is let in, and where it is registered.
    pub(crate) async fn identities(&self) -> Arc<Identities> {
        self.inner.identities.get(Instant::now(), self.read_identities()).await
    }

    async fn read_identities(&self) -> Identities {
        let mut known = Identities::new();
        if let Some(certs) = self.inner.certs.clone() {
            let listed = tokio::task::spawn_blocking(move || certs.list()).await;
            for one in listed.into_iter().flatten().flatten().filter(|one| !one.revoked) {
                if let Identity::Agent { id, .. } = &one.identity {
                    let of = known.entry(id.clone()).or_default();
                    of.identity = Some(one.identity.uri());
                    of.not_after = one.not_after;
                }
            }
        }
        for agent in self.inner.fleet.list() {
            let id = agent.heartbeat.agent_id;
            if let Ok(Some(entry)) = self.inner.broker.get(Table::Registered, id.as_str()).await {
                known.entry(id).or_default().registered = serde_json::from_slice(&entry.value).ok();
            }
        }
        if let Ok(Some(status)) = self.autoscaler_status().await {
            for node in status.nodes {
                if let Ok(id) = AgentId::parse(&node.id) {
                    known.entry(id).or_default().managed = Some(node);
                }
            }
        }
        known
    }
}

pub(crate) type Identities = BTreeMap<AgentId, Known>;

/// Identities are files and entries of a table, and whoever comes may ask for them: one reads, for all within
/// [`IDENTITIES_FOR`].
#[derive(Default)]
pub(super) struct IdentityCache(tokio::sync::Mutex<Option<(Instant, Arc<Identities>)>>);

impl IdentityCache {
    async fn get(&self, now: Instant, read: impl Future<Output = Identities>) -> Arc<Identities> {
        let mut kept = self.0.lock().await;
        if let Some((at, known)) = &*kept
            && now.saturating_duration_since(*at) < IDENTITIES_FOR
        {
            return Arc::clone(known);
        }
        let known = Arc::new(read.await);
        *kept = Some((Instant::now(), Arc::clone(&known)));
        known
    }

    /// After a change of this gateway's own, which shows at once.
    async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) identity: Option<String>,
    pub(crate) not_after: Option<flux_protocol::Timestamp>,
    pub(crate) registered: Option<Registered>,
    /// The autoscaler's machine that it runs on.
    pub(crate) managed: Option<ManagedNode>,
}

impl Inner {
    /// Works on the directory of certificates, where identities are given.
    async fn with_certs<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Certs) -> Result<T, PkiError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let certs = self.certs.clone().filter(Certs::has_authority).ok_or_else(|| {
            let message = "this gateway gives no identities: ask the one whose `certs_dir` has the CA's key";
            Refusal::new(ErrorCode::NoAuthority, message)
        })?;
        let worked = tokio::task::spawn_blocking(move || work(&certs)).await;
        worked.map_err(|error| Refusal::new(ErrorCode::Internal, "a defect of Flux").caused_by(error))?.map_err(refusal)
    }

    async fn probe(&self, address: &str) -> Result<ProbeAnswer, Refusal> {
        let certs = self.certs.as_ref().ok_or_else(|| {
            Refusal::new(ErrorCode::NoAuthority, "agents are probed by certificate, and `disable_mtls` is set")
        })?;
        let grants = certs.has_authority().then(|| certs.grants()).transpose().map_err(refusal)?;
        let admitted = move |peer: &Identity| {
            // Where the CA is, who was revoked is known too.
            peer.agent().is_some() && grants.as_ref().is_none_or(|grants| grants.admits(peer))
        };
        let config = certs.gateway().and_then(|gateway| gateway.client(Arc::new(admitted))).map_err(refusal)?;
        let unreachable = |why: String| {
            let message = format!("{address} does not prove to be an agent: {why}");
            Refusal::new(ErrorCode::AgentUnreachable, message)
        };
        let ask = async {
            let socket = TcpStream::connect(address).await?;
            let peer = socket.peer_addr()?.ip();
            let mut connection = TlsConnector::from(Arc::new(config)).connect(peer.into(), socket).await?;
            let mut line = Vec::new();
            (&mut connection).take(PROBE_BYTES).read_to_end(&mut line).await?;
            let identity = flux_pki::peer_of(connection.get_ref().1.peer_certificates());
            Ok::<_, std::io::Error>((line, identity))
        };
        let (line, identity) = match tokio::time::timeout(PROBED_WITHIN, ask).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {} s", PROBED_WITHIN.as_secs()))),
        };
        let answer: ProbeAnswer = serde_json::from_slice(&line)
            .map_err(|_| unreachable("what it says is not what an agent says".to_owned()))?;
        // Its certificate says who it is.
        if identity.as_ref().and_then(Identity::agent) != Some(&answer.agent_id) {
            return Err(unreachable(format!("it calls itself {}, which its certificate does not", answer.agent_id)));
        }
        Ok(answer)
    }
}

fn not_found(agent: &AgentId) -> Refusal {
    Refusal::new(
        ErrorCode::AgentNotFound,
        format!("there is no agent {agent}; `flux agents` lists those that there are"),
    )
}

fn refusal(error: PkiError) -> Refusal {
    let code = match &error {
        PkiError::Token { .. } => ErrorCode::JoinRefused,
        PkiError::Untrusted { .. } => ErrorCode::InvalidRequest,
        PkiError::Taken { .. } => ErrorCode::AgentExists,
        PkiError::Unknown { .. } => ErrorCode::AgentNotFound,
        PkiError::File { .. }
        | PkiError::Damaged { .. }
        | PkiError::Half { .. }
        | PkiError::Missing { .. }
        | PkiError::Exposed { .. }
        | PkiError::Crypto { .. } => ErrorCode::Internal,
    };
    let message = if code == ErrorCode::Internal {
        "the directory of certificates cannot be used; the log says why".to_owned()
    } else {
        error.to_string()
    };
    Refusal::new(code, message).caused_by(error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn identities_are_read_once_a_second_however_many_ask() {
        let (cache, reads) = (IdentityCache::default(), AtomicUsize::new(0));
        let ask = |now: Instant| {
            cache.get(now, async {
                reads.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Identities::new()
            })
        };
        let start = Instant::now();
        futures::future::join_all((0..10).map(|_| ask(start))).await;
        assert_eq!(reads.load(Ordering::Relaxed), 1, "the others wait for the one");
        ask(Instant::now() + IDENTITIES_FOR).await;
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        cache.forget().await;
        ask(start).await;
        assert_eq!(reads.load(Ordering::Relaxed), 3, "a change shows at once");
    }
}
