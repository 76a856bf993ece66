//! The driver's process: requests in, one task for each guest, reports out.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flux_driver_link::{OpenCode, Packets};
use flux_launcher::tree::DriverSpec;
use flux_runtime::{Shutdown, Tasks};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{net::UnixStream, sync::mpsc};

use crate::{
    Driver, DriverError, Guest, Settings, Size, Wish,
    wire::{Report, Request, Wanted},
};

/// What the agent asks the tree for.
pub const DRIVER: &str = "microvms";
/// The hidden first argument that turns any Flux binary into a driver.
pub const DRIVER_ARGUMENT: &str = "__microvms";
/// Of a guest's memory, what its kernel, its agent and the interpreter's own files take.
const OVERHEAD_MB: u32 = 96;
/// After the agent's end, for guests to be ended; a little less than the tree waits for its helpers.
const END_DEADLINE: Duration = Duration::from_secs(3);
/// To a guest that answered before.
const RECONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// Firecracker takes no more.
const VCPUS: u32 = 32;

/// What a driver's process is told at its start, by whoever holds the privileges already: the tree, never the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverConfig {
    pub settings: Settings,
    /// Code comes from below this directory, and from nowhere else.
    pub code_dir: PathBuf,
}

impl DriverConfig {
    /// For the tree.
    pub fn spec(&self) -> DriverSpec {
        DriverSpec {
            name: DRIVER.to_owned(),
            argument: DRIVER_ARGUMENT.to_owned(),
            // Paths that are no text are refused by the driver, which then cannot read this.
            config: serde_json::to_string(self).unwrap_or_default(),
        }
    }
}

/// Turns this process into a driver if it was started as one; call it first in `main`, before any thread exists.
pub fn run_if_driver() {
    flux_driver_link::run_if_driver(DRIVER_ARGUMENT, "flux microvms", drive);
}

/// What a guest's task is asked.
enum Asked {
    Snapshot,
    End,
}

struct Process {
    agent: Packets,
    code_dir: PathBuf,
    /// Absent until a guest was booted.
    driver: tokio::sync::OnceCell<Driver>,
    guests: Mutex<HashMap<u64, mpsc::Sender<Asked>>>,
}

fn drive(config: DriverConfig, socket: OwnedFd) -> io::Result<()> {
    // Waiting for others is all it does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let process = Arc::new(Process {
            agent: Packets::try_new(socket)?,
            code_dir: config.code_dir,
            driver: tokio::sync::OnceCell::new(),
            guests: Mutex::default(),
        });
        let tasks = Tasks::new(Shutdown::new());
        let beginning = Arc::clone(&process);
        tasks.spawn("first guest", async move {
            let report = match begin(config.settings).await {
                Ok((driver, jailed)) => {
                    let release = driver.facts().firecracker.clone();
                    // Nobody else sets it.
                    let _ = beginning.driver.set(driver);
                    Report::Ready { release, jailed }
                }
                Err(error) => Report::Absent { reason: chain(&error) },
            };
            beginning.tell(&report, None).await;
        });
        let served = process.serve(&tasks).await;
        let guests: Vec<_> = process.guests.lock().values().cloned().collect();
        for guest in guests {
            let _ = guest.try_send(Asked::End);
        }
        let _ = tokio::time::timeout(END_DEADLINE, async {
            while !process.guests.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        served
    })
}

/// Whether guests run here is found out by running one.
async fn begin(settings: Settings) -> Result<(Driver, bool), DriverError> {
    let jailed = settings.jailer.is_some();
    let folder = settings.directory.join("first");
    let made = std::fs::create_dir_all(&folder).and_then(|()| give_to_nobody(&folder));
    let code = made.and_then(|()| OpenCode::known(&folder));
    let code = code.map_err(|source| DriverError::Folder { what: "the first guest's folder", source })?;
    let driver = Driver::try_new(settings).await?;
    let size = Size { vcpus: 1, memory_mib: 128 + OVERHEAD_MB, cpu_millicores: 0 };
    let wish = Wish { function: "", code: &code, code_digest: "first", size, snapshot: false };
    let mut guest = driver.start(&wish).await?;
    let answered = guest.connect(driver.boots_within()).await;
    guest.end().await;
    answered?;
    Ok((driver, jailed))
}

/// Images are not made of what is root's.
fn give_to_nobody(folder: &Path) -> io::Result<()> {
    const NOBODY: u32 = 65534;
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What keeps a guest from running.
struct Failed {
    message: String,
    retryable: bool,
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        Self { message: chain(&error), retryable: error.is_retryable() }
    }
}

impl Process {
    /// An agent that does not listen any more needs to hear nothing.
    async fn tell(&self, report: &Report, stream: Option<OwnedFd>) {
        let _ = self.agent.send(report, stream.as_ref()).await;
    }

    /// Until the agent's end is closed.
    async fn serve(self: &Arc<Self>, tasks: &Tasks) -> io::Result<()> {
        while let Some((request, _)) = self.agent.receive().await? {
            match request {
                Request::Start(wanted) => {
                    // A snapshot and an end: nobody asks for more.
                    let (sender, asked) = mpsc::channel(2);
                    self.guests.lock().insert(wanted.id, sender);
                    let process = Arc::clone(self);
                    tasks.spawn("guest", async move { process.see_through(*wanted, asked).await });
                }
                Request::Snapshot { id } => self.ask(id, Asked::Snapshot),
                Request::End { id } => self.ask(id, Asked::End),
            }
        }
        Ok(())
    }

    fn ask(&self, id: u64, asked: Asked) {
        if let Some(guest) = self.guests.lock().get(&id) {
            let _ = guest.try_send(asked);
        }
    }

    async fn see_through(&self, wanted: Wanted, asked: mpsc::Receiver<Asked>) {
        let id = wanted.id;
        let report = match self.run(&wanted, asked).await {
            Ok(()) => Report::Ended { id },
            Err(Failed { message, retryable }) => Report::Failed { id, message, retryable },
        };
        self.guests.lock().remove(&id);
        self.tell(&report, None).await;
    }

    async fn run(&self, wanted: &Wanted, mut asked: mpsc::Receiver<Asked>) -> Result<(), Failed> {
        let refused = |message: String, retryable| Failed { message, retryable };
        let driver = self.driver.get().ok_or_else(|| refused("no guest has been booted yet".to_owned(), true))?;
        let code = OpenCode::below(&self.code_dir, &wanted.code).map_err(|message| refused(message, false))?;
        let size = Size {
            vcpus: u8::try_from(wanted.cpu_millicores.div_ceil(1000).clamp(1, VCPUS)).unwrap_or(1),
            memory_mib: wanted.memory_mb.saturating_add(OVERHEAD_MB),
            cpu_millicores: wanted.cpu_millicores,
        };
        let wish =
            Wish { function: &wanted.function, code: &code, code_digest: code.name(), size, snapshot: wanted.snapshot };
        let starting = async {
            let mut guest = driver.start(&wish).await?;
            let stream = guest.connect(driver.boots_within()).await?;
            Ok::<_, DriverError>((guest, stream))
        };
        tokio::pin!(starting);
        let (mut guest, stream) = loop {
            tokio::select! {
                biased;
                // Dropping what was begun ends it.
                question = asked.recv() => if !matches!(question, Some(Asked::Snapshot)) { return Ok(()) },
                started = &mut starting => break started?,
            }
        };
        let started =
            Report::Started { id: wanted.id, restored: guest.is_restored(), snapshot: guest.may_become_snapshot() };
        self.tell(&started, Some(descriptor(stream)?)).await;
        loop {
            tokio::select! {
                question = asked.recv() => match question {
                    Some(Asked::Snapshot) => self.snapshot(driver, &mut guest, wanted.id).await?,
                    Some(Asked::End) | None => break,
                },
                _ = guest.ended() => break,
            }
        }
        guest.end().await;
        Ok(())
    }

    async fn snapshot(&self, driver: &Driver, guest: &mut Guest, id: u64) -> Result<(), Failed> {
        let problem = driver.snapshot(guest).await.err().map(|error| chain(&error));
        let stream = guest.connect(RECONNECTS_WITHIN).await?;
        self.tell(&Report::Snapshotted { id, problem }, Some(descriptor(stream)?)).await;
        Ok(())
    }
}

fn descriptor(stream: UnixStream) -> Result<OwnedFd, DriverError> {
    stream.into_std().map(OwnedFd::from).map_err(DriverError::Wake)
}
