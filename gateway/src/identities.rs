//! Who is let in, kept true at the queue's server: whenever a grant comes, changes or goes, `accounts` are written anew and the
//! server reads them; certificates are renewed before they end, those of agents when they ask.
//!
//! Nothing is sent for it while nothing changes: a file's time is looked at.
//!
//! **Architecture Invariant:** a grant that cannot be read changes nothing: a damaged file shuts nobody out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use flux_broker::{Broker, Change, Signal, Table, nats};
use flux_pki::Certs;
use flux_protocol::{
    AgentId, FunctionName, FunctionVersion, PoolName,
    agent::RenewalReply,
    identity::Grant,
    limits,
    subject::{self, GATEWAYS_GROUP, RENEWAL},
};
use flux_runtime::{Settings, Tasks};
use futures::StreamExt as _;
use nix::{
    sys::signal::{Signal as UnixSignal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;

/// Between looks at the directory: who is revoked is cut off within this, and the second reading.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a new account imports works from the second time on that nats-server reads of it (2.15).
const READ_AGAIN_AFTER: Duration = Duration::from_millis(500);
const RENEW_EVERY: Duration = Duration::from_secs(3600);
const FOLLOW_AGAIN_AFTER: Duration = Duration::from_secs(1);

type Functions = Arc<Mutex<BTreeMap<FunctionName, PoolName>>>;

/// Starts what keeps identities true, where the CA is.
pub(crate) fn keep(
    settings: &Settings,
    certs: Certs,
    pools: Vec<PoolName>,
    broker: &Arc<dyn Broker>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    if !certs.has_authority() {
        return Ok(());
    }
    let stop = tasks.shutdown().kill_token();
    let spawn = |name: &'static str, work: futures::future::BoxFuture<'static, ()>| {
        let stop = stop.clone();
        tasks.spawn(name, async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    };
    spawn("renewals", Box::pin(answer_renewals(certs.clone(), Arc::clone(broker))));
    let functions = Functions::default();
    spawn("functions of producers", Box::pin(follow_functions(Arc::clone(broker), Arc::clone(&functions))));
    let server = settings
        .queue
        .accounts_file
        .clone()
        .map(|accounts| Server { accounts, pid_file: settings.queue.server_pid_file.clone() });
    let gateway = certs.gateway().context("this gateway cannot say who it is")?;
    let keeper = Keeper { certs, gateway, pools, functions, server, written: None, read_again: None };
    spawn("identities", Box::pin(keeper.run()));
    Ok(())
}

/// The accounts that the grants ask for.
///
/// # Errors
/// A grant cannot be read.
pub fn accounts(
    certs: &Certs,
    pools: &[PoolName],
    functions: &[(FunctionName, PoolName)],
) -> Result<String, flux_pki::PkiError> {
    let grants: Vec<Grant> = certs.grants()?.iter().cloned().collect();
    let mut all = vec![PoolName::default()];
    all.extend(pools.iter().filter(|pool| !pool.is_default()).cloned());
    Ok(nats::accounts(grants, &all, functions))
}

struct Server {
    accounts: PathBuf,
    pid_file: Option<PathBuf>,
}

impl Server {
    fn write(&self, text: &str) -> std::io::Result<()> {
        let dir = self.accounts.parent().unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist(&self.accounts).map_err(|error| error.error)?;
        Ok(())
    }

    /// Has the server read its configuration again.
    fn reload(&self) {
        let Some(path) = &self.pid_file else { return };
        let pid = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        let told = pid.map(|pid| kill(Pid::from_raw(pid), UnixSignal::SIGHUP));
        if !matches!(told, Some(Ok(()))) {
            tracing::warn!(pid_file = %path.display(), "the queue's server could not be told to read its accounts again");
        }
    }
}

struct Keeper {
    certs: Certs,
    gateway: Arc<flux_pki::Credential>,
    pools: Vec<PoolName>,
    functions: Functions,
    server: Option<Server>,
    /// The accounts that the server has.
    written: Option<String>,
    read_again: Option<Instant>,
}

impl Keeper {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut renewed_at, mut seen) = (None::<Instant>, None);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = at(self.read_again) => {
                    self.read_again = None;
                    self.server.iter().for_each(Server::reload);
                    continue;
                }
            }
            if renewed_at.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
                renewed_at = Some(Instant::now());
                self.renew();
            }
            let now = (self.certs.changed(), self.functions.lock().clone());
            if seen.as_ref() != Some(&now) {
                seen = Some(now);
                self.tell_server();
            }
        }
    }

    fn renew(&mut self) {
        match self.certs.renew(limits::CERTIFICATE_RENEWED_BEFORE) {
            Ok(renewed) => {
                for identity in &renewed {
                    tracing::info!(%identity, "a certificate was renewed");
                }
                if !renewed.is_empty() {
                    // The server's own may be among them.
                    self.server.iter().for_each(Server::reload);
                }
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "certificates cannot be renewed"),
        }
        // Also what `flux pki renew` did.
        if let Err(error) = self.gateway.reload() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the certificate cannot be read again");
        }
    }

    fn tell_server(&mut self) {
        let Some(server) = &self.server else { return };
        let functions: Vec<_> =
            self.functions.lock().iter().map(|(function, pool)| (function.clone(), pool.clone())).collect();
        let accounts = match accounts(&self.certs, &self.pools, &functions) {
            Ok(accounts) => accounts,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "who is let in stays as it was");
                return;
            }
        };
        let before = self.written.take().or_else(|| std::fs::read_to_string(&server.accounts).ok());
        if before.as_ref() != Some(&accounts) {
            if let Err(error) = server.write(&accounts) {
                tracing::error!(path = %server.accounts.display(), %error, "the queue's accounts cannot be written");
                return;
            }
            server.reload();
            self.read_again = Some(Instant::now() + READ_AGAIN_AFTER);
            tracing::info!("who may connect to the queue was changed");
        }
        self.written = Some(accounts);
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

/// A producer's globs stand for the functions that there are.
async fn follow_functions(broker: Arc<dyn Broker>, functions: Functions) {
    loop {
        let mut watch = match broker.watch(Table::Functions, false).await {
            Ok(watch) => watch,
            Err(_) => {
                tokio::time::sleep(FOLLOW_AGAIN_AFTER).await;
                continue;
            }
        };
        while let Some(change) = watch.next().await {
            match change {
                Ok(Change::Put(entry)) => {
                    let Ok(version) = serde_json::from_slice::<FunctionVersion>(&entry.value) else { continue };
                    functions.lock().insert(version.name().clone(), version.spec.pool.clone());
                }
                Ok(Change::Deleted { key, .. }) => {
                    functions.lock().retain(|function, _| function.as_str() != key);
                }
                Ok(Change::Synced) | Err(_) => {}
            }
        }
        tokio::time::sleep(FOLLOW_AGAIN_AFTER).await;
    }
}

/// When each agent last asked for a new certificate: those within [`limits::RENEWAL_EVERY`] alone.
#[derive(Default)]
struct Asked(BTreeMap<AgentId, Instant>);

impl Asked {
    /// Whether it may ask now. One that comes too soon does not put off the next.
    fn may(&mut self, agent: &AgentId, now: Instant) -> bool {
        self.0.retain(|_, at| now.saturating_duration_since(*at) < limits::RENEWAL_EVERY);
        let free = !self.0.contains_key(agent);
        if free {
            self.0.insert(agent.clone(), now);
        }
        free
    }
}

async fn answer_renewals(certs: Certs, broker: Arc<dyn Broker>) {
    let mut asked = Asked::default();
    loop {
        if let Ok(mut questions) = broker.listen_in_group(&subject::questions(RENEWAL), GATEWAYS_GROUP).await {
            while let Some(question) = questions.next().await {
                answer_renewal(&certs, &*broker, &mut asked, &question).await;
            }
        }
        tokio::time::sleep(FOLLOW_AGAIN_AFTER).await;
    }
}

async fn answer_renewal(certs: &Certs, broker: &dyn Broker, asked: &mut Asked, question: &Signal) {
    let Some(reply_to) = question.reply_to.clone() else { return };
    // The broker holds who asks to its own name in the subject.
    let agent = subject::sender(&question.subject).and_then(|id| AgentId::parse(id).ok());
    let request = std::str::from_utf8(&question.body).ok().map(str::to_owned);
    let reply = match (agent, request) {
        (Some(agent), _) if !asked.may(&agent, Instant::now()) => {
            let seconds = limits::RENEWAL_EVERY.as_secs();
            let message =
                format!("the agent {agent} asked for a certificate less than {seconds} s ago: ask again later");
            RenewalReply::Refused { message }
        }
        (Some(agent), Some(request)) => {
            let certs = certs.clone();
            let signed = tokio::task::spawn_blocking(move || (certs.renew_agent(&agent, &request), agent)).await;
            match signed {
                Ok((Ok(certificate), agent)) => {
                    tracing::info!(agent_id = %agent, "an agent's certificate was renewed");
                    RenewalReply::Renewed { certificate }
                }
                Ok((Err(error), agent)) => {
                    tracing::warn!(agent_id = %agent, error = &error as &dyn std::error::Error, "a renewal was refused");
                    RenewalReply::Refused { message: error.to_string() }
                }
                Err(_) => return,
            }
        }
        _ => RenewalReply::Refused { message: "not a signing request".to_owned() },
    };
    if let Ok(body) = serde_json::to_vec(&reply) {
        let _ = broker.signal(reply_to, body.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_asks_for_one_certificate_a_minute() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        let agent = |id: &str| AgentId::parse(id).expect("an id");
        assert!(asked.may(&agent("a"), start));
        assert!(!asked.may(&agent("a"), start + limits::RENEWAL_EVERY / 2));
        assert!(asked.may(&agent("b"), start + limits::RENEWAL_EVERY / 2), "each by itself");
        assert!(asked.may(&agent("a"), start + limits::RENEWAL_EVERY));
        assert!(asked.may(&agent("c"), start + limits::RENEWAL_EVERY * 4));
        assert_eq!(asked.0.len(), 1, "what is over is forgotten");
    }
}
