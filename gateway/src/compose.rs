//! From settings to a gateway: which store, which archives, which queue. What `flux-gateway` and `flux up` have in common.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use flux_artifacts::{BlobArtifacts, Filesystem, Origin, S3, S3Options, Tiered};
use flux_broker::{Broker, ConnectOptions};
use flux_pki::Certs;
use flux_protocol::{PoolName, subject};
use flux_runtime::{
    Settings, Shutdown, Tasks, config,
    settings::{ArtifactSettings, Durability},
};
use flux_store::{SharedStore, Tuning};
use nix::sys::stat::{Mode, umask};

use crate::{
    core::{Gateway, GatewayParts},
    http::{self, HttpOptions},
    identities,
};

/// For what nobody waits for any more, after everything was drained.
const TASKS_END_WITHIN: Duration = Duration::from_secs(2);

/// A gateway on a queue that is connected already, with the store it uses (to be closed last).
///
/// # Errors
/// The store or the folder of archives cannot be opened, a pool's name is not valid, or the queue refuses.
pub async fn gateway(
    settings: &Settings,
    certs: Option<Certs>,
    broker: &Arc<dyn Broker>,
    tasks: &Tasks,
) -> anyhow::Result<(Gateway, SharedStore)> {
    let url = settings.store.url.as_deref().context("`store.url` is not set")?;
    // The records are nobody else's.
    let usual = umask(Mode::from_bits_truncate(0o077));
    let opened = flux_store::open(url, &tuning(settings.queue.durability)).await;
    umask(usual);
    let store = opened.context("the store cannot be opened")?;
    let origin = archives(&settings.artifacts).await?;
    let distribution = BlobArtifacts::new(Arc::clone(broker));
    let pools: Result<Vec<_>, _> = settings.gateway.pools.iter().map(|pool| PoolName::parse(pool)).collect();
    let pools = pools.context("`gateway.pools`")?;
    let parts = GatewayParts {
        broker: Arc::clone(broker),
        store: Arc::clone(&store),
        artifacts: Arc::new(Tiered::new(origin, Arc::new(distribution))),
        settings: settings.gateway.clone(),
        history: Duration::from_secs(settings.store.history_hours.saturating_mul(3600)),
        pools: pools.clone(),
        certs: certs.clone(),
        queue_url: settings.queue.url.clone(),
        durability: settings.queue.durability,
        tasks: tasks.clone(),
    };
    let gateway = Gateway::start(parts).await.context("the gateway cannot start")?;
    if let Some(certs) = certs {
        identities::keep(settings, certs, pools, broker, tasks)?;
    }
    Ok((gateway, store))
}

/// Under which names and addresses queue and gateway are reached, as far as the configuration says.
pub fn names(settings: &Settings) -> Vec<String> {
    let listen = &settings.gateway.listen;
    let host = listen.rsplit_once(':').map_or(&**listen, |(host, _)| host).trim_matches(['[', ']']);
    let is_any = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let listens_at = (!is_any && !host.is_empty()).then(|| host.to_owned());
    settings.queue.names.iter().cloned().chain(listens_at).collect()
}

/// Where code archives are kept: the bucket where one is set, else the folder.
///
/// # Errors
/// The folder cannot be made, or the bucket does not answer as one.
pub async fn archives(settings: &ArtifactSettings) -> anyhow::Result<Arc<dyn Origin>> {
    let Some(url) = &settings.url else {
        let folder = settings.dir.clone().context("`artifacts.dir` is not set")?;
        return Ok(Arc::new(Filesystem::open(folder).context("the folder of code archives cannot be opened")?));
    };
    let options = S3Options {
        url: url.clone(),
        endpoint: settings.endpoint.clone(),
        region: settings.region.clone(),
        access_key_id: settings.access_key_id.clone(),
        secret_access_key: settings.secret_access_key.clone(),
        path_style: settings.path_style,
        environment: config::env_of("AWS_"),
    };
    Ok(Arc::new(S3::open(&options).await.context("code archives cannot be kept")?))
}

/// The directory of certificates, with all that a gateway needs; `None` where the queue is talked to without.
///
/// # Errors
/// Something in it is damaged, or nothing can be made there.
pub fn certs(settings: &Settings) -> anyhow::Result<Option<Certs>> {
    if settings.disable_mtls {
        tracing::warn!("`disable_mtls` is set: whoever reaches the queue can run, read and change everything");
        return Ok(None);
    }
    let certs = Certs::at(settings.certs_dir());
    // Where the CA is elsewhere, so are its gateways' identities made.
    let elsewhere = !certs.has_authority() && certs.dir().join("flux/flux.pem").exists();
    if !elsewhere {
        certs.init(&names(settings)).with_context(|| {
            format!("no identities can be made in {}; on a private network, set `disable_mtls`", certs.dir().display())
        })?;
    }
    Ok(Some(certs))
}

/// How a gateway connects.
///
/// # Errors
/// Its certificate cannot be used.
pub fn queue_options(settings: &Settings, certs: Option<&Certs>, name: &str) -> anyhow::Result<ConnectOptions> {
    let mut queue = ConnectOptions::new(&settings.queue.url, name);
    queue.replicas = settings.queue.replicas.into();
    if let Some(certs) = certs {
        let credential = certs.gateway().context("this gateway cannot say who it is")?;
        queue.certificate = Some(Arc::new(credential.queue_client()?));
        // Agents are asked, and may not publish into an inbox.
        queue.answers = Some(subject::answers_of_gateway(rand::random()));
    }
    Ok(queue)
}

/// The store's commits promise what the queue's acks do: an invocation is accepted once both hold it.
pub fn tuning(durability: Durability) -> Tuning {
    let durability = match durability {
        Durability::Process => flux_store::Durability::Process,
        Durability::Fsync => flux_store::Durability::Power,
    };
    Tuning { durability, ..Tuning::default() }
}

/// Says in the log what accepted work survives. `supervised`: the queue's server is configured by Flux itself.
pub fn say_durability(durability: Durability, supervised: bool) {
    let name = durability.as_str();
    match (durability, supervised) {
        (Durability::Process, true) => {
            tracing::info!(durability = name, "accepted work survives kill -9; a power cut may lose its last moments");
        }
        (Durability::Fsync, true) => tracing::info!(durability = name, "accepted work survives a power cut"),
        (Durability::Process, false) => {
            tracing::info!(
                durability = name,
                "records survive kill -9; what the queue survives is its server's configuration"
            );
        }
        // A server tells its setting to its own monitoring alone, not to a client.
        (Durability::Fsync, false) => tracing::warn!(
            durability = name,
            "records survive a power cut; the queue does only if each of its servers has `sync_interval: always` in \
             its `jetstream` block, which a gateway can neither set nor read"
        ),
    }
}

/// Where a gateway that was told nothing keeps its files, below `data_dir`.
pub fn keep_in(settings: &mut Settings, data_dir: &Path) {
    let in_data_dir = |name: &str| -> PathBuf { data_dir.join(name) };
    settings.store_url_or(|| format!("sqlite://{}", in_data_dir("flux.db").display()));
    settings.artifacts.dir.get_or_insert_with(|| in_data_dir("artifacts"));
    settings.gateway.secrets_key.get_or_insert_with(|| in_data_dir("secrets.key"));
    settings.data_dir.get_or_insert_with(|| data_dir.to_owned());
}

/// Runs a gateway by itself until a signal, or until it cannot go on; then drains within `gateway.drain_timeout`.
///
/// # Errors
/// It cannot start, or a part of it ended that it cannot do without.
pub async fn run(settings: Settings, shutdown: Arc<Shutdown>) -> anyhow::Result<()> {
    let listen = &settings.gateway.listen;
    // Bound before anything else is ready: who calls early waits instead of being refused.
    let listener = http::listen(listen).await.with_context(|| format!("{listen} cannot be listened on"))?;
    let tasks = Tasks::new(Arc::clone(&shutdown));
    let certs = certs(&settings)?;
    let options = HttpOptions::from_settings(&settings)?;
    let queue = queue_options(&settings, certs.as_ref(), "flux-gateway")?;
    let broker = flux_broker::connect(queue, tasks.clone()).await.context("the queue cannot be reached")?;
    say_durability(settings.queue.durability, false);
    let (gateway, store) = gateway(&settings, certs, &broker, &tasks).await?;

    let (served, serving) = tokio::sync::oneshot::channel::<()>();
    tasks.spawn_essential("http", {
        let (gateway, shutdown, tasks) = (gateway.clone(), Arc::clone(&shutdown), tasks.clone());
        async move {
            if let Err(error) = http::serve(gateway, listener, options, shutdown, tasks).await {
                tracing::error!(error = &error as &dyn std::error::Error, "HTTP cannot be served");
            }
            drop(served);
        }
    });
    let drained = async {
        // Every answer is written before the gateway stops waiting for any.
        let _ = serving.await;
        gateway.drain().await;
    };
    let patience = Duration::from_secs(settings.gateway.drain_timeout);
    shutdown.on_signals(patience, drained).await.context("signals cannot be listened to")?;
    drop(gateway);
    if tokio::time::timeout(TASKS_END_WITHIN, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "some tasks did not end; the process ends without them");
    }
    broker.close().await;
    store.close().await;
    match shutdown.failed() {
        Some(task) => anyhow::bail!("`{task}` ended, and the gateway cannot go on without it"),
        None => Ok(()),
    }
}
