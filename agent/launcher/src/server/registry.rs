//! Who runs now: what `Kill` looks up, and what the launcher's end must not leave behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::slot::HolderLink;
use crate::sys::process;

/// One running execution. Its pid is not reaped while it is listed, so the number cannot mean another process.
#[derive(Debug, Clone)]
pub(crate) struct Active {
    pub(crate) pid: i32,
    /// The slot's holder, where there is one: it can end everything in the slot.
    pub(crate) slot: Option<Arc<HolderLink>>,
}

impl Active {
    fn signal(&self, signal: i32) {
        // A group that is gone already is what was asked for.
        let _ = process::kill_group(self.pid, signal);
        if signal == libc::SIGKILL {
            let _ = process::kill(self.pid, signal);
            if let Some(slot) = &self.slot {
                slot.kill_all();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    active: HashMap<u64, Active>,
    closing: bool,
}

/// All running executions by request id.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<Table>);

impl Registry {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a started process; kills it at once when the launcher is ending.
    pub(crate) fn insert(&self, id: u64, active: Active) {
        let mut table = self.table();
        if table.closing {
            active.signal(libc::SIGKILL);
        }
        table.active.insert(id, active);
    }

    /// Takes a process off the list; after this no signal of ours reaches it.
    pub(crate) fn remove(&self, id: u64) {
        self.table().active.remove(&id);
    }

    /// Signals one execution, if it still runs.
    pub(crate) fn signal(&self, id: u64, signal: i32) {
        if let Some(active) = self.table().active.get(&id) {
            active.signal(signal);
        }
    }

    /// What `look` finds at an execution, if it still runs. Without the lock: looking may take a while.
    pub(crate) fn with<T>(&self, id: u64, look: impl FnOnce(&Active) -> T) -> Option<T> {
        let active = self.table().active.get(&id).cloned();
        active.as_ref().map(look)
    }

    /// Kills everything now and whatever is listed from now on.
    pub(crate) fn close(&self) {
        let mut table = self.table();
        table.closing = true;
        for active in table.active.values() {
            active.signal(libc::SIGKILL);
        }
    }

    /// Whether `pid` is an execution's main process, which only its own thread may reap.
    pub(crate) fn has_pid(&self, pid: i32) -> bool {
        self.table().active.values().any(|a| a.pid == pid)
    }

    /// The main processes of all that run.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.table().active.values().map(|active| active.pid).collect()
    }

    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.table().active.contains_key(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table().active.is_empty()
    }
}
