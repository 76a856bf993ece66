//! The slots that exist, and which of them is given to an execution.

use std::ffi::CString;
use std::io;
use std::net::TcpListener;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Makers, Slot, SlotError, SlotKey};
use crate::cgroup::Cgroups;
use crate::config::Runner;
use crate::guard::worker_address;
use crate::wire::{Limits, Network, SpawnRequest};

/// Mount options of a slot's `/tmp`. Inodes are bounded too: each takes kernel memory, also where no memory limit is.
pub(super) fn tmp_options(bytes: u64) -> CString {
    CString::new(format!("size={bytes},nr_inodes=65536,mode=1777")).unwrap_or_default()
}

/// The launcher's own PID namespace.
pub(super) fn own_namespace() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/self/ns/pid")?.into())
}

#[derive(Debug, Default)]
struct Shelf {
    /// Least recently used first.
    idle: Vec<Slot>,
    /// Idle ones and those in use.
    total: usize,
    closed: bool,
    /// Numbers that no slot has; empty where all share one.
    free_uids: Vec<u32>,
}

/// Whom functions run as.
#[derive(Debug, Clone)]
pub(crate) enum Runners {
    /// All as the same user.
    One(Runner),
    /// Each slot's as one of these; there are as many as slots can exist.
    Each { uids: Range<u32>, gid: u32 },
}

impl Runners {
    /// The first of those that each slot has one of.
    pub(crate) fn first_of_each(&self) -> Option<u32> {
        match self {
            Runners::One(_) => None,
            Runners::Each { uids, .. } => Some(uids.start),
        }
    }
}

fn ready(slot: &mut Slot, request: &SpawnRequest) -> Result<(), SlotError> {
    slot.set_limits(&request.limits)?;
    slot.enter()
}

/// Makes slots, keeps idle ones for their function, and gives up the least recently used above its ceiling.
#[derive(Debug)]
pub(crate) struct SlotPool {
    makers: Makers,
    cgroups: Option<Cgroups>,
    ceiling: usize,
    runners: Runners,
    next_cgroup: AtomicU32,
    shelf: Mutex<Shelf>,
}

impl SlotPool {
    pub(crate) fn new(makers: Makers, cgroups: Option<Cgroups>, ceiling: usize, runners: Runners) -> Self {
        let free_uids = match &runners {
            Runners::One(_) => Vec::new(),
            Runners::Each { uids, .. } => uids.clone().rev().collect(),
        };
        let shelf = Mutex::new(Shelf { free_uids, ..Shelf::default() });
        SlotPool { makers, cgroups, ceiling, runners, next_cgroup: AtomicU32::new(0), shelf }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for the request, with its limits set and entered by the calling thread: an idle one of its function, or
    /// a new one.
    pub(crate) fn acquire(&self, request: &SpawnRequest) -> Result<Slot, SlotError> {
        loop {
            let idle = {
                let mut shelf = self.shelf();
                // The most recently used one: its pages are warm.
                let position = shelf.idle.iter().rposition(|s| s.key.matches(request));
                position.map(|p| shelf.idle.remove(p))
            };
            let Some(mut slot) = idle else {
                break;
            };
            match ready(&mut slot, request) {
                Ok(()) => return Ok(slot),
                // Its holder died, or its limit is now below what is still charged: a new one has no past.
                Err(_) => self.discard(slot),
            }
        }
        self.make_room();
        let mut slot = match self.make(SlotKey::of(request)) {
            Ok(slot) => slot,
            Err(error) => {
                self.shelf().total -= 1;
                return Err(error);
            }
        };
        match ready(&mut slot, request) {
            Ok(()) => Ok(slot),
            Err(error) => {
                self.discard(slot);
                Err(error)
            }
        }
    }

    /// Counts one more slot, and destroys the least recently used idle one if that is one too many.
    fn make_room(&self) {
        let evicted = {
            let mut shelf = self.shelf();
            shelf.total += 1;
            let over = shelf.total > self.ceiling && !shelf.idle.is_empty();
            over.then(|| shelf.idle.remove(0))
        };
        if let Some(slot) = evicted {
            self.discard(slot);
        }
    }

    fn make(&self, key: SlotKey) -> Result<Slot, SlotError> {
        let number = self.next_cgroup.fetch_add(1, Ordering::Relaxed);
        let cgroup = self.cgroups.as_ref().map(|c| c.make(number)).transpose()?;
        let user = self.take_user()?;
        match self.makers.make(&key, user) {
            Ok(holder) => Ok(Slot { key, user, holder: Arc::new(holder), cgroup }),
            Err(error) => {
                self.give_back(user);
                Err(error)
            }
        }
    }

    /// A socket that listens for the worker in `slot`, where that sees it and, as far as users tell them apart, no other does.
    pub(crate) fn listen(&self, slot: &Slot) -> io::Result<TcpListener> {
        if slot.key.network == Network::None {
            return self.makers.listen(Arc::clone(&slot.holder));
        }
        let offset = match self.runners.first_of_each() {
            Some(first) => slot.user.uid.saturating_sub(first),
            None => slot.holder.pid().cast_unsigned(),
        };
        TcpListener::bind((worker_address(offset), 0))
    }

    fn take_user(&self) -> Result<Runner, SlotError> {
        match &self.runners {
            Runners::One(runner) => Ok(*runner),
            Runners::Each { gid, .. } => {
                let uid = self.shelf().free_uids.pop().ok_or(SlotError::NoUid)?;
                Ok(Runner { uid, gid: *gid })
            }
        }
    }

    /// Of a slot in which nothing runs any more.
    fn give_back(&self, user: Runner) {
        if matches!(self.runners, Runners::Each { .. }) {
            self.shelf().free_uids.push(user.uid);
        }
    }

    /// Resets a slot after its execution and keeps it for the next, or destroys it.
    pub(crate) fn release(&self, mut slot: Slot) {
        if !slot.reset() {
            return self.discard(slot);
        }
        let kept = {
            let mut shelf = self.shelf();
            if shelf.closed || shelf.total > self.ceiling {
                Some(slot)
            } else {
                shelf.idle.push(slot);
                None
            }
        };
        if let Some(slot) = kept {
            self.discard(slot);
        }
    }

    /// Destroys a slot: its holder first, so that its cgroup is empty when it is removed.
    pub(crate) fn discard(&self, slot: Slot) {
        let Slot { holder, mut cgroup, user, .. } = slot;
        // Dying takes CPU time too, which a small quota would hand out over seconds.
        if let Some(cgroup) = &mut cgroup {
            let _ = cgroup.set_limits(&Limits::default());
        }
        holder.end();
        drop(holder);
        drop(cgroup);
        self.give_back(user);
        self.shelf().total -= 1;
    }

    /// Destroys the idle slots, and every other one as it comes back.
    pub(crate) fn close(&self) {
        let idle = {
            let mut shelf = self.shelf();
            shelf.closed = true;
            std::mem::take(&mut shelf.idle)
        };
        // All at once first: ending one takes longer than telling it to.
        for slot in &idle {
            slot.holder.end();
        }
        for slot in idle {
            self.discard(slot);
        }
    }

    /// How many slots there are.
    pub(crate) fn total(&self) -> usize {
        self.shelf().total
    }

    /// Removes what the slots' cgroups lay in.
    pub(crate) fn remove_cgroups(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove();
        }
    }
}
