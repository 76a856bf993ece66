//! The driver's process: requests in, one task for each container, reports out.

use std::{collections::HashMap, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use flux_driver_link::Packets;
use flux_runtime::{Shutdown, Tasks};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{DRIVER_ARGUMENT, DriverConfig},
    container,
    daemon::{self, Daemon},
    files::Files,
    network::Networks,
    wire::{Container, Report, Request},
};

/// After the agent's end, for containers to be removed; a little less than the tree waits for its helpers. What is left then ends
/// with its stream, and Docker removes it.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// Turns this process into a driver if it was started as one; call it first in `main`, before any thread exists.
pub fn run_if_driver() {
    flux_driver_link::run_if_driver(DRIVER_ARGUMENT, "flux containers", drive);
}

pub(crate) struct Driver {
    pub(crate) config: DriverConfig,
    pub(crate) files: Files,
    pub(crate) networks: Networks,
    pub(crate) daemon: watch::Sender<Daemon>,
    pub(crate) pulling: container::Pulling,
    agent: Packets,
    /// Of this process alone, so that names never meet those of an earlier one.
    generation: i64,
    running: Mutex<HashMap<u64, Running>>,
}

struct Running {
    name: String,
    end: CancellationToken,
}

impl Driver {
    pub(crate) fn name_of(&self, asked: &Container) -> String {
        format!("flux-{}-{}-{}-{}", asked.function, asked.version, self.generation, asked.id)
    }

    /// An agent that does not listen any more needs to hear nothing.
    pub(crate) async fn tell(&self, report: &Report, stream: Option<OwnedFd>) {
        let _ = self.agent.send(report, stream.as_ref()).await;
    }

    pub(crate) async fn tell_ended(&self, id: u64, code: Option<i32>) {
        self.tell(&Report::Ended { id, code }, None).await;
    }

    pub(crate) fn forget(&self, id: u64) {
        self.running.lock().remove(&id);
    }

    fn runs(&self, name: &str) -> bool {
        self.running.lock().values().any(|running| running.name == name)
    }

    fn end_all(&self) {
        for running in self.running.lock().values() {
            running.end.cancel();
        }
    }
}

fn drive(config: DriverConfig, socket: OwnedFd) -> io::Result<()> {
    let files = Files::prepare(&config.work_dir)?;
    let networks = Networks::prepare(&config, &files.owner);
    // Waiting for others is all it does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let driver = Arc::new(Driver {
            config,
            files,
            networks,
            daemon: watch::Sender::new(Daemon::Absent("Docker was not looked for yet".to_owned())),
            pulling: container::Pulling::default(),
            agent: Packets::try_new(socket)?,
            generation: flux_protocol::time::now().as_micros(),
            running: Mutex::default(),
        });
        let tasks = Tasks::new(Shutdown::new());
        let (follower, teller) = (Arc::clone(&driver), Arc::clone(&driver));
        let follow = async move {
            daemon::follow(&follower, |name| follower.runs(name)).await;
        };
        let served = tokio::select! {
            served = serve(&driver, &tasks) => served,
            () = follow => Ok(()),
            () = tell_changes(&teller) => Ok(()),
        };
        driver.end_all();
        let _ = tokio::time::timeout(END_DEADLINE, async {
            while !driver.running.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        served
    })
}

/// Until the agent's end is closed.
async fn serve(driver: &Arc<Driver>, tasks: &Tasks) -> io::Result<()> {
    while let Some((request, _)) = driver.agent.receive().await? {
        match request {
            Request::Start(asked) => {
                let end = CancellationToken::new();
                let running = Running { name: driver.name_of(&asked), end: end.clone() };
                driver.running.lock().insert(asked.id, running);
                tasks.spawn("container", container::see_through(Arc::clone(driver), *asked, end));
            }
            Request::End { id } => {
                if let Some(running) = driver.running.lock().get(&id) {
                    running.end.cancel();
                }
            }
        }
    }
    Ok(())
}

async fn tell_changes(driver: &Driver) {
    let mut daemon = driver.daemon.subscribe();
    while daemon.changed().await.is_ok() {
        let report = match &*daemon.borrow_and_update() {
            Daemon::There(_, found) => Report::Ready(found.offer.clone()),
            Daemon::Absent(reason) => Report::Absent { reason: reason.clone() },
        };
        driver.tell(&report, None).await;
    }
}
