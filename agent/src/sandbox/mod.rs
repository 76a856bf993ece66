//! The seam to what holds a function in: a slot of the launcher, a container, or a microVM.
//!
//! Whatever the tier, a started process is the same to its caller: three descriptors, a worker's channel, signals, an end
//! ([`Process`]). So one warm pool, one way to time out, to cancel and to record serves all of them. What every tier must do is its
//! conformance suite (`tests/it/sandboxes.rs`).

mod containers;
mod loaded;
mod microvms;
mod remote;

use std::{collections::BTreeMap, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use flux_launcher::{Missing, wire::Network, wire::SpawnRequest};
use flux_protocol::{FunctionName, function::Isolation};
use tokio::sync::watch;

pub use containers::{ContainerSource, Containers};
pub use microvms::{MicrovmSource, Microvms};

use crate::{
    executor::{Executor, Process},
    launch::LaunchError,
};

/// A process to start.
#[derive(Debug, Clone)]
pub struct Start {
    pub function: FunctionName,
    pub version: u32,
    /// With the program, its arguments and all of its environment as the tier's functions see them.
    pub request: SpawnRequest,
    /// Of a container.
    pub image: Option<String>,
    /// Where the unpacked code is on this machine; none for an image that is a function by itself.
    pub code: Option<PathBuf>,
    /// Of a worker: what it will be told first, and be the same after having heard it. A tier may tell it earlier, and once for many.
    pub loads: Vec<u8>,
    /// Its environment has secrets: nothing of it may be kept.
    pub has_secrets: bool,
}

/// Starts processes that are held in.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// Starts a process with these as its stdin, stdout and stderr, and a worker with `channel` as its descriptor 3. It runs its
    /// program when this returns. Dropping the call ends what it may have started.
    ///
    /// # Errors
    /// Nothing runs. [`LaunchError`] says whether that is the function's fault, or may be otherwise later.
    async fn start(
        &self,
        start: Start,
        stdio: [OwnedFd; 3],
        channel: Option<OwnedFd>,
    ) -> Result<Box<dyn Process>, LaunchError>;
}

/// Of a tier that is not always there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// Layers that it lacks here.
    pub missing: Vec<Missing>,
    /// Networks whose functions it does not run.
    pub refuses: Vec<Network>,
}

/// A sandbox beside the launcher's, and whether it is there: the offer, or why there is none.
pub trait Tier: Sandbox {
    fn offer(&self) -> watch::Receiver<Result<Arc<Offer>, String>>;
}

/// The tiers beside processes that an agent may have.
#[derive(Clone, Default)]
pub struct Tiers(BTreeMap<Isolation, Arc<dyn Tier>>);

impl Tiers {
    #[must_use]
    pub fn with(mut self, isolation: Isolation, tier: Arc<dyn Tier>) -> Self {
        self.0.insert(isolation, tier);
        self
    }

    pub(crate) fn get(&self, isolation: Isolation) -> Option<&Arc<dyn Tier>> {
        self.0.get(&isolation)
    }

    /// What each offers now.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (Isolation, Result<Arc<Offer>, String>)> {
        self.0.iter().map(|(isolation, tier)| (*isolation, tier.offer().borrow().clone()))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Isolation, &Arc<dyn Tier>)> {
        self.0.iter().map(|(isolation, tier)| (*isolation, tier))
    }
}

#[async_trait]
impl Sandbox for Arc<dyn Executor> {
    async fn start(
        &self,
        start: Start,
        stdio: [OwnedFd; 3],
        channel: Option<OwnedFd>,
    ) -> Result<Box<dyn Process>, LaunchError> {
        match channel {
            Some(channel) => self.spawn_worker(start.request, stdio, channel).await,
            None => self.spawn(start.request, stdio).await,
        }
    }
}
