//! Bringing the queue back after its disk was full.
//!
//! A `nats-server` that could not write a message refuses all later ones, without a word and also when there is room, until
//! it is started again. So the worker looks whether the queue stores what it is sent. If not, and it answers otherwise, and
//! there is room, the worker ends it, and the root of the tree starts it again.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flux_broker::Broker;
use flux_protocol::{Lane, PoolName, limits};
use flux_runtime::Tasks;
use nix::{
    sys::{
        signal::{Signal, kill},
        statvfs::statvfs,
    },
    unistd::{Pid, getppid},
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Less is as good as none: the first messages would fill it again.
const ROOM_BYTES: u64 = 16 * 1024 * 1024;
/// A server that is well but for its storage answers at once.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// In order it writes down what was delivered; where it cannot, it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Until the next time: the new one needs a moment to be found.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Runs for as long as the worker does.
pub(super) async fn watch(data_dir: PathBuf, broker: Arc<dyn Broker>, tasks: Tasks) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut said_full, mut ended_at) = (false, None::<Instant>);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = tasks.shutdown().draining() => return,
        }
        let Some(since) = broker.stores_nothing_for().filter(|since| *since >= limits::STORES_NOTHING) else {
            said_full = false;
            continue;
        };
        if ended_at.is_some_and(|at| at.elapsed() < AGAIN_AFTER) || !answers(&*broker).await {
            continue;
        }
        if !has_room(&data_dir) {
            if !said_full {
                tracing::error!(dir = %data_dir.display(), "the disk is full: the queue stores nothing until there is room");
                said_full = true;
            }
            continue;
        }
        tracing::warn!(
            for_ms = since.as_millis(),
            "the queue answers and stores nothing, as a nats-server does once its disk was full; there is room, so it is started again"
        );
        end(&data_dir.join("run/worker/nats.pid")).await;
        ended_at = Some(Instant::now());
    }
}

/// One that hangs as a whole is another trouble, and not mended by this.
async fn answers(broker: &dyn Broker) -> bool {
    matches!(timeout(ANSWERS_WITHIN, broker.epoch(Lane::Invoke, &PoolName::default())).await, Ok(Ok(_)))
}

fn has_room(dir: &Path) -> bool {
    // What cannot be asked does not hold it up.
    statvfs(dir).map_or(true, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()) >= ROOM_BYTES)
}

/// Ends the `nats-server` of this tree: the child of the worker's own parent that the file names.
async fn end(pid_file: &Path) {
    let named = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    let Some(server) = named.filter(|pid| parent_of(*pid) == Some(getppid().as_raw())).map(Pid::from_raw) else {
        tracing::warn!(file = %pid_file.display(), "it does not name a nats-server of this tree; kill that by hand");
        return;
    };
    let _ = kill(server, Signal::SIGTERM);
    let until = Instant::now() + ENDS_WITHIN;
    while parent_of(server.as_raw()) == Some(getppid().as_raw()) {
        if Instant::now() >= until {
            let _ = kill(server, Signal::SIGKILL);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state parent …`, and the name may hold anything.
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}
