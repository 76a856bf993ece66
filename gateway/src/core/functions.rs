//! Functions and their versions. The store is the truth and is written first; the queue's tables are what agents
//! sync from. A table entry is written only over the entry that was read before the store was, so the later of two
//! writers cannot put back what the earlier one knew ([`Inner::publish_function`]).

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use flux_artifacts::{ArchiveSummary, ArtifactError, ArtifactStore as _, archive};
use flux_broker::{BrokerError, Table};
use flux_protocol::{
    Digest, ErrorCode, FunctionName, FunctionSpec, FunctionVersion,
    function::{Runtime, parse_yaml},
    limits,
    time::now,
};
use flux_store::{Deployed, Function, StoreError};

use super::{
    Gateway, Inner, Published,
    admission::{Mine, Shortage, Summary, Told, explain},
    function_cache::{Runnable, version_not_found},
};
use crate::refusal::Refusal;

/// The configuration inside an archive.
const CONFIGURATION: [&str; 2] = ["flux.yaml", "flux.yml"];
/// Writers of one function's entry that may be in each other's way before one gives up.
const CONTENDED: usize = 20;

impl Gateway {
    /// Registers a configuration, or another one for a function that is known.
    ///
    /// # Errors
    /// The pool is not served, or the store or the queue is out of reach.
    pub async fn register(&self, spec: FunctionSpec) -> Result<Published, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        inner.require_pool(&spec)?;
        let deployed = inner.store.register(&spec, now()).await?;
        inner.published(deployed).await
    }

    /// Deploys a zip. A function that is not registered yet takes the `flux.yaml` in it.
    ///
    /// # Errors
    /// The archive is not valid or lacks the handler, or the function is unknown and the archive does not configure it.
    pub async fn deploy(&self, name: &FunctionName, archive: Bytes) -> Result<Published, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        if archive.len() > limits::ARCHIVE {
            return Err(Refusal::new(
                ErrorCode::PayloadTooLarge,
                format!("the archive has {} bytes; at most {} are taken", archive.len(), limits::ARCHIVE),
            ));
        }
        let registered = inner.store.function(name).await?.map(|function| function.current.spec);
        let known = registered.is_some();
        let wanted = name.clone();
        let content = archive.clone();
        // Reading a zip is work for a while: off the async threads.
        let spec = tokio::task::spawn_blocking(move || check_archive(&wanted, registered, &content))
            .await
            .map_err(|error| Refusal::new(ErrorCode::Internal, "the archive could not be read").caused_by(error))??;
        inner.require_pool(&spec)?;
        // Agents must find the code before they learn of the version.
        let digest = inner.put_archive(archive.clone()).await?;
        let deployed = match inner.store.deploy(name, digest, Some(&spec).filter(|_| !known), now()).await {
            Ok(deployed) => deployed,
            Err(StoreError::NotFound { .. }) => return Err(inner.functions.not_found(name)),
            Err(error) => return Err(error.into()),
        };
        // The third step of a deployment beside a collection (`flux_artifacts::collect`): it may have gone before it had a name.
        if !inner.artifacts.has(digest).await.map_err(artifact_refusal)? {
            inner.put_archive(archive).await?;
        }
        inner.published(deployed).await
    }

    /// Makes an old version current again.
    ///
    /// # Errors
    /// No such function or version.
    pub async fn rollback(&self, name: &FunctionName, version: u32) -> Result<Published, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let Some(function) = inner.store.function(name).await? else { return Err(inner.functions.not_found(name)) };
        let changed = function.current.version != version;
        match inner.store.rollback(name, version).await? {
            Some(version) => {
                // A queue that was wiped may not have it back yet.
                if let Some(digest) = version.digest {
                    inner.restore_archive(digest).await?;
                }
                inner.published(Deployed { version, changed }).await
            }
            None => Err(version_not_found(name, version)),
        }
    }

    /// # Errors
    /// It is unknown.
    pub async fn function(&self, name: &FunctionName) -> Result<Function, Refusal> {
        let inner = &self.inner;
        inner.store.function(name).await?.ok_or_else(|| inner.functions.not_found(name))
    }

    /// Current versions in the order of their names, after `cursor`.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn functions(
        &self,
        prefix: &str,
        cursor: Option<&FunctionName>,
        limit: usize,
    ) -> Result<Vec<FunctionVersion>, Refusal> {
        Ok(self.inner.store.functions(prefix, cursor, limit.clamp(1, limits::PAGE)).await?)
    }

    /// Removes a function; its executions stay. What is still queued for it ends as `invalid_function`.
    ///
    /// # Errors
    /// It is unknown.
    pub async fn delete_function(&self, name: &FunctionName) -> Result<(), Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let Some(function) = inner.store.function(name).await? else { return Err(inner.functions.not_found(name)) };
        inner.store.delete_function(name).await?;
        inner.functions.forget(name);
        inner.publish_function(name).await?;
        for version in &function.versions {
            inner.broker.delete(Table::Versions, &version_key(name, version.version)).await?;
        }
        tracing::info!(function = %name, "function deleted");
        Ok(())
    }
}

/// The configuration that an archive is deployed with; the file that its handler names must be in it, and runnable where
/// it is run by itself.
fn check_archive(
    name: &FunctionName,
    registered: Option<FunctionSpec>,
    content: &[u8],
) -> Result<FunctionSpec, Refusal> {
    let summary = archive::inspect(content).map_err(archive_refusal)?;
    let spec = match registered {
        Some(spec) => spec,
        None => {
            let Some(found) = CONFIGURATION.iter().find(|file| summary.has_file(file)) else {
                return Err(Refusal::new(
                    ErrorCode::FunctionNotFound,
                    format!(
                        "there is no function `{name}`, and the archive has no flux.yaml to make it from: register it with PUT /functions, or put a flux.yaml into the archive"
                    ),
                ));
            };
            let text = archive::read_entry(content, found, limits::FUNCTION_YAML)
                .map_err(archive_refusal)?
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| {
                    Refusal::new(ErrorCode::InvalidArchive, format!("`{found}` in the archive is not text"))
                })?;
            let spec = parse_yaml(&text)?;
            if spec.name != *name {
                return Err(Refusal::new(
                    ErrorCode::InvalidFunction,
                    format!(
                        "`{found}` in the archive is for `{}`; deploy it under that name, or change `name`",
                        spec.name
                    ),
                )
                .with_field("name"));
            }
            spec
        }
    };
    if !spec.command.is_empty() {
        return Ok(spec);
    }
    let entry = spec.entry();
    let Some(handler) = entry.files.iter().find(|file| summary.has_file(file)) else {
        let handler = entry.files.first().map_or(spec.handler.as_str(), String::as_str);
        let near = flux_protocol::suggest::nearest(handler, summary.files());
        let what = if spec.runtime == Runtime::Lambda { "the Lambda program" } else { "the handler" };
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        return Err(Refusal::new(
            ErrorCode::InvalidArchive,
            format!("the archive has no file `{handler}`, which is {what} of `{name}`{hint}"),
        )
        .with_field("handler"));
    };
    if spec.runtime.executes_file() && !summary.is_executable(handler) {
        return Err(Refusal::new(
            ErrorCode::InvalidArchive,
            format!(
                "`{handler}` cannot be executed: set its executable bit before zipping (`chmod +x {handler}`), or start it with `#!`"
            ),
        )
        .with_field("handler"));
    }
    check_packages(&spec, &summary, content)?;
    Ok(spec)
}

/// Nobody installs anything when a function is called: what its list names is in the archive, or it could not run.
fn check_packages(spec: &FunctionSpec, summary: &ArchiveSummary, content: &[u8]) -> Result<(), Refusal> {
    let Some(list) = spec.runtime.package_list().filter(|list| summary.has_file(list)) else { return Ok(()) };
    if summary.files().any(|file| spec.runtime.is_of_a_package(file)) {
        return Ok(());
    }
    let text = archive::read_entry(content, list, limits::PACKAGE_LIST).map_err(archive_refusal)?.unwrap_or_default();
    if !spec.runtime.asks_for_packages(&String::from_utf8_lossy(&text)) {
        return Ok(());
    }
    let by_hand = spec.runtime.install_by_hand();
    Err(Refusal::new(
        ErrorCode::InvalidArchive,
        format!(
            "`{list}` names packages, and the archive has none: `flux deploy FOLDER` puts them in, or do so before zipping (`{by_hand}`)"
        ),
    ))
}

fn archive_refusal(error: archive::ArchiveError) -> Refusal {
    Refusal::new(ErrorCode::InvalidArchive, error.to_string())
}

pub(super) fn artifact_refusal(error: ArtifactError) -> Refusal {
    if let ArtifactError::NeedsForce { going, of, named } = error {
        let message = format!(
            "{error}: if this is the store of these archives, and the archives are not shared with another installation, use \
             `force` (`flux gc --force`)"
        );
        let details = serde_json::json!({ "would_remove": going, "of": of, "named": named });
        return Refusal::new(ErrorCode::NeedsForce, message).with_details(details);
    }
    let code = if error.is_retryable() { ErrorCode::StoreUnavailable } else { ErrorCode::Internal };
    Refusal::new(code, "the code archive cannot be kept now; try again").caused_by(error)
}

pub(super) fn version_key(name: &FunctionName, version: u32) -> String {
    format!("{name}.{version}")
}

impl Inner {
    fn require_pool(&self, spec: &FunctionSpec) -> Result<(), Refusal> {
        if self.pools.contains(&spec.pool) {
            return Ok(());
        }
        let pools: Vec<_> = self.pools.iter().map(flux_protocol::PoolName::as_str).collect();
        Err(Refusal::new(
            ErrorCode::InvalidFunction,
            format!("pool `{}` is not served here; `gateway.pools` names: {}", spec.pool, pools.join(", ")),
        )
        .with_field("pool"))
    }

    async fn published(&self, deployed: Deployed) -> Result<Published, Refusal> {
        let Deployed { version, changed } = deployed;
        let name = version.name().clone();
        self.functions.forget(&name);
        self.publish_function(&name).await?;
        if changed {
            tracing::info!(function = %name, version = version.version, "function published");
        }
        // Said and not refused: the secret may be set after.
        let missing_secrets = self.missing_secrets(&version.spec).await?;
        let warning = self.nobody_runs(&version.spec);
        Ok(Published { version, changed, agents: self.agents_online(), warning, missing_secrets })
    }

    /// Why no agent that is online runs such a function; `None` where one does, or where none is online.
    fn nobody_runs(&self, spec: &FunctionSpec) -> Option<String> {
        let (_, fleet) = self.fleet.summary(spec);
        let shortage = match fleet {
            Summary { online: 0, .. } => return None,
            Summary { with_tier: 0, .. } => Shortage::NoCapability,
            Summary { capable: 0, .. } => Shortage::NoRuntime,
            _ => return None,
        };
        Some(explain(&spec.name, spec, &fleet, &Mine::default(), shortage, Told::Waiting))
    }

    /// Where the origin keeps it and agents fetch it.
    async fn put_archive(&self, archive: Bytes) -> Result<Digest, Refusal> {
        let digest = self.artifacts.origin.put(archive.clone()).await.map_err(artifact_refusal)?;
        self.artifacts.distribution.put(archive).await.map_err(artifact_refusal)?;
        Ok(digest)
    }

    /// Brings the queue's tables to what the store says of a function now: its version first, then that it is current.
    pub(super) async fn publish_function(&self, name: &FunctionName) -> Result<(), Refusal> {
        for _ in 0..CONTENDED {
            // The entry first, the store second: whatever the store says is newer than the entry, and an entry
            // that changed in between refuses this one.
            let entry = self.broker.get(Table::Functions, name.as_str()).await?;
            let Some(function) = self.store.function(name).await? else {
                if entry.is_some() {
                    self.broker.delete(Table::Functions, name.as_str()).await?;
                }
                return Ok(());
            };
            let value = encode(&function.current)?;
            let version_key = version_key(name, function.current.version);
            if self.broker.get(Table::Versions, &version_key).await?.is_none_or(|kept| kept.value != value) {
                self.broker.put(Table::Versions, &version_key, value.clone()).await?;
            }
            let revision = entry.as_ref().map_or(0, |entry| entry.revision);
            if entry.is_some_and(|entry| entry.value == value) {
                return Ok(());
            }
            match self.broker.update(Table::Functions, name.as_str(), value, revision).await {
                Ok(_) => return Ok(()),
                Err(BrokerError::Conflict { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::new(
            ErrorCode::QueueUnavailable,
            format!(
                "`{name}` is being changed by too many at once; it is stored, and agents learn it with the next change"
            ),
        ))
    }

    /// A version that an invocation may name: agents find it. What was stored while the queue was away, and nobody said since,
    /// is said here.
    pub(super) async fn invocable(&self, name: &FunctionName, version: Option<u32>) -> Result<Arc<Runnable>, Refusal> {
        let function = self.functions.require_version(name, version).await?;
        if function.is_published() {
            return Ok(function);
        }
        let is_said = match version {
            Some(version) => self.version_is_said(name, version).await?,
            None => {
                let entry = self.broker.get(Table::Functions, name.as_str()).await?;
                let value = encode(&function.version)?;
                entry.is_some_and(|entry| entry.value == value)
            }
        };
        if !is_said {
            self.publish_function(name).await?;
            self.say_version(name, function.version.version).await?;
            tracing::info!(function = %name, version = function.version.version, "a version that agents could not know was published");
        }
        function.set_published();
        Ok(function)
    }

    async fn version_is_said(&self, name: &FunctionName, version: u32) -> Result<bool, BrokerError> {
        Ok(self.broker.get(Table::Versions, &version_key(name, version)).await?.is_some())
    }

    /// Brings one version, current or not, to where agents find it. One that the store has not is left to them to refuse.
    pub(super) async fn say_version(&self, name: &FunctionName, version: u32) -> Result<(), Refusal> {
        if self.version_is_said(name, version).await? {
            return Ok(());
        }
        if let Some(kept) = self.store.function_version(name, version).await? {
            self.broker.put(Table::Versions, &version_key(name, version), encode(&kept)?).await?;
        }
        Ok(())
    }

    /// Puts back every kept version of a function that the queue lost, and its code.
    pub(super) async fn restore_function(
        self: &Arc<Self>,
        current: &FunctionVersion,
        versions_there: &HashSet<String>,
        digests_there: &mut HashSet<Digest>,
    ) -> Result<(), Refusal> {
        let name = current.name();
        let Some(function) = self.store.function(name).await? else { return Ok(()) };
        for summary in &function.versions {
            if let Some(digest) = summary.digest
                && digests_there.insert(digest)
            {
                self.restore_archive(digest).await?;
            }
            let key = version_key(name, summary.version);
            if versions_there.contains(&key) {
                continue;
            }
            if let Some(version) = self.store.function_version(name, summary.version).await? {
                self.broker.put(Table::Versions, &key, encode(&version)?).await?;
            }
        }
        self.publish_function(name).await
    }

    /// Whether the queue has this version as the current one, and its code.
    pub(super) async fn is_published(
        &self,
        current: &FunctionVersion,
        digests_there: &mut HashSet<Digest>,
    ) -> Result<bool, Refusal> {
        if let Some(digest) = current.digest
            && digests_there.insert(digest)
        {
            self.restore_archive(digest).await?;
        }
        let entry = self.broker.get(Table::Functions, current.name().as_str()).await?;
        Ok(match entry {
            Some(entry) => entry.value == encode(current)?,
            None => false,
        })
    }

    async fn restore_archive(&self, digest: Digest) -> Result<(), Refusal> {
        let artifacts = &self.artifacts;
        if artifacts.distribution.has(digest).await.map_err(artifact_refusal)? {
            return Ok(());
        }
        match artifacts.origin.get(digest, limits::ARCHIVE).await.map_err(artifact_refusal)? {
            Some(archive) => {
                artifacts.distribution.put(archive).await.map_err(artifact_refusal)?;
                tracing::info!(%digest, "a code archive that the queue had lost was put back");
            }
            None => tracing::error!(%digest, "a code archive is in no place any more; deploy the function again"),
        }
        Ok(())
    }
}

fn encode(version: &FunctionVersion) -> Result<Bytes, Refusal> {
    serde_json::to_vec(version).map(Bytes::from).map_err(|error| {
        Refusal::new(ErrorCode::Internal, "a function's version cannot be written as JSON").caused_by(error)
    })
}
