//! The process: a look every poll interval, gateways' questions between them, and an end in order.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use flux_broker::{
    Broker, Signal,
    nats::{AUTOSCALER_ANSWERS, AUTOSCALER_INBOX, NatsAuth, NatsBroker, NatsOptions},
};
use flux_pki::{Certs, Credential};
use flux_protocol::{
    AgentId, PoolName,
    agent::ControlRequest,
    autoscaler::{AutoscalerReply, AutoscalerRequest},
    subject,
    time::now,
};
use flux_provider::ClusterName;
use flux_runtime::{Settings, Shutdown, Tasks};
use futures::StreamExt as _;
use tokio::time::MissedTickBehavior;

use crate::{
    act::Agents,
    book::{self, QueueBook},
    configured,
    join::Gateway,
    keeper::{Keeper, KeeperParts},
    machines::{self, Machines},
    over_ssh::OverSsh,
    set_up::{SetUp, SetUps},
    signals::Signals,
};

/// What was begun may be finished.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// It has days left when it is renewed.
const CERTIFICATE_READ_EVERY: Duration = Duration::from_secs(3600);

/// Runs until a signal. Machines stay as they are.
///
/// # Errors
/// It cannot start, or a part of it ended that it cannot do without.
pub async fn run(settings: Settings, agent_program: PathBuf, shutdown: Arc<Shutdown>) -> anyhow::Result<()> {
    // Also what the policy needs none of is checked before anybody is asked.
    configured::policy(&settings.autoscaler)?;
    let cluster = cluster(&settings)?;
    let machines = machines::configured(&settings, &cluster, &gateway(&settings)?, &agent_program).await?;
    run_on(settings, machines, shutdown).await
}

fn cluster(settings: &Settings) -> anyhow::Result<ClusterName> {
    ClusterName::parse(&settings.autoscaler.cluster).context("`autoscaler.cluster`")
}

fn gateway(settings: &Settings) -> anyhow::Result<Gateway> {
    let ca = Certs::at(settings.certs_dir()).dir().join("ca/ca.pem");
    Gateway::new(&settings.autoscaler.gateway_url, settings.autoscaler.api_key.clone(), &ca)
        .with_context(|| format!("{} is no certificate of a CA", ca.display()))
}

/// The same with machines of these providers, whatever `providers` says of how they are reached.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    settings: Settings,
    machines: BTreeMap<String, Machines>,
    shutdown: Arc<Shutdown>,
) -> anyhow::Result<()> {
    let policy = configured::policy(&settings.autoscaler)?;
    let (cluster, gateway) = (cluster(&settings)?, gateway(&settings)?);
    let pool = PoolName::parse(&settings.autoscaler.pool).context("`autoscaler.pool`")?;
    let tasks = Tasks::new(Arc::clone(&shutdown));
    anyhow::ensure!(
        !settings.queue.url.starts_with("amqp"),
        "`queue.url` is RabbitMQ, on which there is no autoscaler yet: it needs NATS"
    );
    let credential = match settings.disable_mtls {
        true => None,
        false => Some(Certs::at(settings.certs_dir()).autoscaler().context("this autoscaler cannot say who it is")?),
    };
    let queue = queue_options(&settings, credential.as_ref())?;
    let broker: Arc<dyn Broker> =
        NatsBroker::connect(queue, tasks.clone()).await.context("the queue cannot be reached")?;
    let poll = Duration::from_secs_f64(settings.autoscaler.poll_interval_sec);
    let silent_timeout = policy.silent_timeout;
    let holder = format!("autoscaler-{:016x}", rand::random::<u64>());
    let signals = Signals::start(Arc::clone(&broker), pool.clone(), silent_timeout, &tasks);
    let set_ups = machines.iter().filter_map(|(name, machines)| {
        let over_ssh = OverSsh {
            ssh: machines.ssh.clone()?,
            provider: Arc::clone(&machines.provider),
            gateway: gateway.clone(),
            heard: signals.heard(),
        };
        Some((name.clone(), Arc::new(over_ssh) as Arc<dyn SetUp>))
    });
    let set_ups = SetUps::new(set_ups.collect(), tasks.clone());
    let parts = KeeperParts {
        holder: holder.clone(),
        cluster,
        pool,
        policy,
        poll,
        book: Arc::new(QueueBook::new(Arc::clone(&broker), poll)),
        places: machines.iter().map(|(name, machines)| (name.clone(), machines.place.clone())).collect(),
        providers: machines.into_iter().map(|(name, machines)| (name, machines.provider)).collect(),
        set_ups,
        agents: Arc::new(QueueAgents { broker: Arc::clone(&broker), gateway }),
    };
    if let Some(credential) = credential {
        let ends = Arc::clone(&shutdown);
        tasks.spawn("certificate", async move {
            tokio::select! {
                () = read_again(credential) => {}
                () = ends.draining() => {}
            }
        });
    }
    let (ended, ending) = tokio::sync::oneshot::channel::<()>();
    tasks.spawn_essential("loop", {
        let (broker, shutdown) = (Arc::clone(&broker), Arc::clone(&shutdown));
        async move {
            look_and_act(Keeper::new(parts), &signals, &broker, poll, &shutdown).await;
            book::release(&*broker, &holder).await;
            drop(ended);
        }
    });
    tracing::info!(poll_seconds = poll.as_secs_f64(), "the autoscaler is ready");
    let drained = async {
        let _ = ending.await;
    };
    shutdown.on_signals(ENDS_WITHIN, drained).await.context("signals cannot be listened to")?;
    broker.close().await;
    match shutdown.failed() {
        Some(task) => anyhow::bail!("`{task}` ended, and the autoscaler cannot go on without it"),
        None => Ok(()),
    }
}

async fn look_and_act(
    mut keeper: Keeper,
    signals: &Signals,
    broker: &Arc<dyn Broker>,
    poll: Duration,
    shutdown: &Shutdown,
) {
    let mut ticks = tokio::time::interval(poll);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut questions = futures::stream::pending().boxed();
    let mut listens = false;
    loop {
        if !listens {
            match broker.listen(subject::AUTOSCALER).await {
                Ok(subscription) => (questions, listens) = (subscription, true),
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "gateways cannot be heard"),
            }
        }
        let question = tokio::select! {
            () = shutdown.draining() => return,
            _ = ticks.tick() => None,
            question = questions.next() => {
                listens = question.is_some();
                if question.is_none() {
                    questions = futures::stream::pending().boxed();
                    continue;
                }
                question
            }
        };
        let seen = match signals.look(now()).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the queue cannot be looked at");
                continue;
            }
        };
        match question {
            Some(question) => answer(&mut keeper, &seen, &**broker, &question).await,
            None => {
                if let Err(error) = keeper.step(&seen).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "this look led to nothing; trying again");
                }
            }
        }
    }
}

async fn answer(keeper: &mut Keeper, seen: &crate::keeper::Seen, broker: &dyn Broker, question: &Signal) {
    let Ok(request) = serde_json::from_slice::<AutoscalerRequest>(&question.body) else { return };
    let reply = match keeper.answer(request, seen).await {
        // Who acts answers.
        Ok(AutoscalerReply::Failed { .. }) => return,
        Ok(reply) => reply,
        Err(error) => AutoscalerReply::Failed { message: error.to_string() },
    };
    if let (Some(reply_to), Ok(body)) = (question.reply_to.clone(), serde_json::to_vec(&reply)) {
        let _ = broker.signal(reply_to, body.into()).await;
    }
}

/// A gateway that has the CA renews it in its file.
async fn read_again(credential: Arc<Credential>) {
    loop {
        tokio::time::sleep(CERTIFICATE_READ_EVERY).await;
        if let Err(error) = credential.reload() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the certificate cannot be read again");
        }
    }
}

fn queue_options(settings: &Settings, credential: Option<&Arc<Credential>>) -> anyhow::Result<NatsOptions> {
    let mut queue = NatsOptions::new(&settings.queue.url, "flux-autoscaler");
    queue.urls = settings.queue.url.split(',').map(|url| url.trim().to_owned()).collect();
    let Some(credential) = credential else {
        tracing::warn!("`disable_mtls` is set: whoever reaches the queue can launch and end machines");
        return Ok(queue);
    };
    queue.auth = NatsAuth::Certificate(Arc::new(credential.queue_client()?));
    queue.inbox_prefix = Some(format!("{AUTOSCALER_INBOX}.{:016x}", rand::random::<u64>()));
    queue.answers = Some(format!("{AUTOSCALER_ANSWERS}.{:032x}", rand::random::<u128>()));
    Ok(queue)
}

struct QueueAgents {
    broker: Arc<dyn Broker>,
    gateway: Gateway,
}

#[async_trait]
impl Agents for QueueAgents {
    async fn cordon(&self, agent: &AgentId, cordoned: bool) {
        let request = if cordoned { ControlRequest::Drain } else { ControlRequest::Undrain };
        let Ok(body) = serde_json::to_vec(&request) else { return };
        // One that does not hear it is told again at the next look.
        if let Err(error) = self.broker.ask(subject::control(agent), body.into(), ANSWERED_WITHIN).await {
            tracing::warn!(agent_id = %agent, error = &error as &dyn std::error::Error, "an agent was not told to drain");
        }
    }

    async fn forget(&self, agent: &AgentId) -> bool {
        // A look is not to wait for a gateway that hangs: it is asked again at the next.
        let asked = tokio::time::timeout(ANSWERED_WITHIN, self.gateway.forget(agent)).await;
        let forgotten = asked.unwrap_or_else(|_| Err(std::io::Error::other("no answer from the gateway")));
        if let Err(error) = &forgotten {
            tracing::warn!(agent_id = %agent, %error, "the identity of a node that is gone is not revoked yet; asking again");
        }
        forgotten.is_ok()
    }
}
