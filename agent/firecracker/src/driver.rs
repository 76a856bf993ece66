//! Guests, from a wish to a connection.
//!
//! ```text
//!            no snapshot of this key                        answered            loaded
//!   start ────────────────────────────► boot, connect, wake ────────► (serves) ───────► snapshot: pause, write, resume,
//!     │                                                                   ▲             connect again, wake
//!     │ there is one                                                      │                        │
//!     └──────────────────────────► load, resume, connect, wake ───────────┴────────────────────────┘
//! ```
//!
//! *Wake* is what every connection begins with: the time and random bytes. A clone, and the guest that the snapshot was taken of,
//! would otherwise have each other's.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_driver_link::OpenCode;
use flux_shim::{ToShim, frame::SEED, guest::PORT};
use rand::{TryRngCore as _, rngs::OsRng};
use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use crate::{
    code::Images,
    error::DriverError,
    facts::Facts,
    jail::Size,
    machine::Machine,
    numbers::{Number, Numbers},
    owner,
    settings::Settings,
    snapshots::{Parts, Snapshots},
};

/// What a guest is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Names a function's version with its configuration: clones are shared by those who say the same.
    pub function: &'a str,
    /// A folder with the function's code, and its digest.
    pub code: &'a OpenCode,
    pub code_digest: &'a str,
    pub size: Size,
    /// It may come from a snapshot, and become one: it has no secrets.
    pub snapshot: bool,
}

/// Boots and restores guests. Cheap to share.
#[derive(Debug)]
pub struct Driver {
    settings: Settings,
    facts: Facts,
    numbers: Option<Numbers>,
    snapshots: Snapshots,
    images: Images,
    next: AtomicU64,
}

/// A guest that runs. Dropped, it is ended.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    number: Option<Arc<Number>>,
    key: Option<String>,
    restored: bool,
}

impl Driver {
    /// Ends what a predecessor left, and looks at what guests are made of.
    ///
    /// # Errors
    /// Firecracker, the kernel, the initramfs or the root file system is not there, or the driver's folder cannot be used.
    pub async fn try_new(settings: Settings) -> Result<Self, DriverError> {
        let folder = |source| DriverError::Folder { what: "the driver's folder", source };
        let left = owner::end_leftovers(&settings).map_err(folder)?;
        if left > 0 {
            tracing::info!(left, "guests of an earlier driver were removed");
        }
        let numbers = settings.jailer.as_ref().map(|jailer| Numbers::new(jailer.first_uid, jailer.uids));
        let snapshots = settings.directory.join("snapshots");
        let snapshots = Snapshots::open(snapshots, settings.snapshots, numbers.as_ref()).map_err(folder)?;
        let images = Images::open(settings.directory.join("images")).map_err(folder)?;
        let facts = Facts::find(&settings).await?;
        Ok(Self { settings, facts, numbers, snapshots, images, next: AtomicU64::new(1) })
    }

    /// What was found about the machine and the guests' files.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn snapshot_count(&self) -> usize {
        self.snapshots.count()
    }

    /// A guest: restored where there is a snapshot that fits, else booted. A snapshot that cannot be loaded is removed.
    ///
    /// # Errors
    /// No guest could be made; nothing of it is left.
    pub async fn start(&self, wish: &Wish<'_>) -> Result<Guest, DriverError> {
        let key = self.key(wish);
        let code = self.images.of(wish.code, wish.code_digest).await?;
        if wish.snapshot {
            match self.restore(&key, wish, &code).await {
                Ok(Some(guest)) => return Ok(guest),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        function = wish.function,
                        "a snapshot cannot be used"
                    );
                    self.snapshots.remove(&key);
                }
            }
        }
        let number = self.number(&key)?;
        let machine = self.machine(number.as_deref(), wish.size).await?;
        machine.boot(&self.settings, &code, wish.size).await?;
        Ok(Guest { machine, number, key: wish.snapshot.then_some(key), restored: false })
    }

    /// `None`: there is no snapshot.
    async fn restore(&self, key: &str, wish: &Wish<'_>, code: &Path) -> Result<Option<Guest>, DriverError> {
        let Some(files) = self.snapshots.find(key) else { return Ok(None) };
        let number = self.number(key)?;
        let machine = self.machine(number.as_deref(), wish.size).await?;
        machine.restore(&self.settings, &files, code).await?;
        Ok(Some(Guest { machine, number, key: None, restored: true }))
    }

    async fn machine(&self, number: Option<&Number>, size: Size) -> Result<Machine, DriverError> {
        let id = format!("{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        Machine::start(&self.settings, &id, number.map(|number| number.uid), size).await
    }

    fn number(&self, key: &str) -> Result<Option<Arc<Number>>, DriverError> {
        let Some(numbers) = &self.numbers else { return Ok(None) };
        let all = self.settings.jailer.as_ref().map_or(0, |jailer| jailer.uids);
        numbers.take(key).map(Some).ok_or(DriverError::NoNumber(all))
    }

    fn key(&self, wish: &Wish<'_>) -> String {
        let Facts { cpu, host_kernel, firecracker, guest_kernel, initramfs, rootfs } = &self.facts;
        let (function, code) = (wish.function, wish.code_digest);
        let Size { vcpus, memory_mib, cpu_millicores: _ } = wish.size;
        let parts =
            Parts { cpu, host_kernel, firecracker, guest_kernel, initramfs, rootfs, function, code, vcpus, memory_mib };
        parts.key()
    }

    /// Takes a snapshot of a guest whose handler is loaded. Connections to it end; the guest goes on.
    ///
    /// # Errors
    /// There is no snapshot. The guest can still be connected to, unless Firecracker itself does not answer.
    pub async fn snapshot(&self, guest: &mut Guest) -> Result<(), DriverError> {
        let Some(key) = guest.key.take() else { return Ok(()) };
        let files = guest.machine.snapshot().await?;
        let added = self.snapshots.add(&key, &files, guest.number.clone());
        added.map_err(|source| DriverError::Folder { what: "a snapshot cannot be kept", source })
    }

    /// How long a guest may take until it listens.
    pub fn boots_within(&self) -> Duration {
        self.settings.boots_within
    }
}

impl Guest {
    /// A connection to the guest's agent, woken.
    ///
    /// # Errors
    /// The guest does not listen within the time, or has ended.
    pub async fn connect(&mut self, within: Duration) -> Result<UnixStream, DriverError> {
        let mut stream = self.machine.connect(PORT, within).await?;
        let mut seed = Box::new([0; SEED]);
        OsRng.try_fill_bytes(&mut seed[..]).map_err(|error| DriverError::Wake(std::io::Error::other(error)))?;
        let now_us = flux_protocol::time::now().as_micros().unsigned_abs();
        let mut frame = Vec::new();
        ToShim::Wake { now_us, seed }.encode(&mut frame);
        stream.write_all(&frame).await.map_err(DriverError::Wake)?;
        Ok(stream)
    }

    /// It comes from a snapshot: its handler is loaded.
    pub fn is_restored(&self) -> bool {
        self.restored
    }

    /// A snapshot can be taken of it.
    pub fn may_become_snapshot(&self) -> bool {
        self.key.is_some()
    }

    /// Whom it runs as, where it is jailed.
    pub fn uid(&self) -> Option<u32> {
        self.machine.uid()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The kernel does not say.
    pub async fn ended(&mut self) -> std::io::Result<std::process::ExitStatus> {
        self.machine.wait().await
    }

    /// Ends it, and waits until it has.
    pub async fn end(self) {
        self.machine.end().await;
    }
}
