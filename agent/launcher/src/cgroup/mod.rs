//! Control groups: what an execution may use, enforced over all its processes together.
//!
//! A cgroup belongs to a slot and is made with it, since making one costs as much as starting a process; an execution
//! only joins it, by writing itself into a file that is open already. They lie below the launcher's *own* cgroup
//! (`<own>/flux-<launcher's pid>/<slot>`), never at the root of the machine's, so that whatever limits Flux as a whole
//! goes on holding. A directory whose launcher is dead is removed by the next launcher.
//!
//! A controller that the machine does not give is a missing capability, not a failure. What version 1 and 2 do
//! differently is in their folders, one controller a file.

mod adopted;
mod directory;
mod hierarchy;
mod shared;
mod v1;
mod v2;

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::capabilities::{Capabilities, CgroupSupport};
use crate::wire::Limits;
pub(crate) use adopted::{Adopted, Adopter, sees};
pub(crate) use directory::CgroupError;
use directory::Directory;
use hierarchy::Place;
pub(crate) use shared::SharedCgroup;

/// How long the removal of a cgroup waits for killed processes to leave it.
const REMOVE_DEADLINE: Duration = Duration::from_secs(1);
/// What the directories of one launcher start with.
const PREFIX: &str = "flux-";

/// The limit on memory, and what the kernel tells about it.
trait Memory: Debug + Send {
    /// 0 is none.
    fn set(&mut self, bytes: u64) -> Result<(), CgroupError>;
    /// Whether the kernel killed a process for the limit since the last call.
    fn take_oom_kill(&mut self) -> bool;
    /// The most that was used since the last reset; `None` where the kernel does not tell.
    fn peak(&self) -> Option<u64>;
    fn reset_peak(&mut self);
    /// Whether at the limit one process ends, and not all. On version 1 that is always so.
    fn spare_others(&mut self, _spares: bool) -> Result<(), CgroupError> {
        Ok(())
    }
}

/// A limit that is one number, 0 for none.
trait Limit: Debug + Send {
    fn set(&mut self, value: u32) -> Result<(), CgroupError>;
}

/// Where this launcher may make cgroups, and with which controllers.
#[derive(Debug)]
pub(crate) struct Cgroups {
    version: u8,
    memory: Option<Directory>,
    cpu: Option<Directory>,
    pids: Option<Directory>,
}

/// The cgroup (on version 1: the cgroups) of one slot; removed when dropped.
#[derive(Debug)]
pub(crate) struct SlotCgroup {
    memory: Option<Box<dyn Memory>>,
    cpu: Option<Box<dyn Limit>>,
    pids: Option<Box<dyn Limit>>,
    /// What a child writes itself into.
    joins: Vec<File>,
    raw_joins: Vec<RawFd>,
    directories: Vec<Directory>,
}

impl Cgroups {
    /// Finds out what there is by making a directory in each hierarchy; removes what dead launchers left there.
    pub(crate) fn discover(capabilities: &mut Capabilities) -> Option<Self> {
        let places = match hierarchy::of_this_process() {
            Ok(places) => places,
            Err(error) => {
                capabilities.lacks("cgroup", format!("cannot read this process's cgroups: {error}"));
                return None;
            }
        };
        let name = format!("{PREFIX}{}", std::process::id());
        // A controller lives in one hierarchy, of one version; a hybrid machine gives all of them to version 1.
        let unified = places.iter().find(|p| p.version == 2);
        let mut cgroups = Cgroups { version: 0, memory: None, cpu: None, pids: None };
        let mut found = |controller: &'static str| -> Option<Directory> {
            let v1 = places.iter().find(|p| p.version == 1 && p.has(controller));
            let made = match (v1, unified) {
                (Some(place), _) => make_base(place, &name).map(|d| (1, d)),
                (None, Some(place)) => v2::enable(place, &name, controller).map(|d| (2, d)),
                (None, None) => Err(CgroupError::NoController { controller }),
            };
            match made {
                Ok((version, directory)) => {
                    cgroups.version = version;
                    Some(directory)
                }
                Err(error) => {
                    let reason = format!("{error}; run Flux as root, or under systemd with Delegate=yes");
                    capabilities.lacks(&format!("cgroup {controller}"), reason);
                    None
                }
            }
        };
        let (memory, cpu, pids) = (found("memory"), found("cpu"), found("pids"));
        let cgroups = Cgroups { memory, cpu, pids, ..cgroups };
        capabilities.cgroup = CgroupSupport {
            version: cgroups.version,
            memory: cgroups.memory.is_some(),
            cpu: cgroups.cpu.is_some(),
            pids: cgroups.pids.is_some(),
        };
        (cgroups.version != 0).then_some(cgroups)
    }

    /// Makes the cgroup of slot `number`, without limits yet.
    pub(crate) fn make(&self, number: u32) -> Result<SlotCgroup, CgroupError> {
        let mut made = SlotCgroup {
            memory: None,
            cpu: None,
            pids: None,
            joins: Vec::new(),
            raw_joins: Vec::new(),
            directories: Vec::new(),
        };
        let name = number.to_string();
        if self.version == 2 {
            let any = [&self.memory, &self.cpu, &self.pids].into_iter().flatten().next();
            if let Some(base) = any {
                let directory = made.add(base.child(&name), v2::JOIN)?;
                if self.memory.is_some() {
                    made.memory = Some(Box::new(v2::Memory::open(directory.clone())?));
                }
                if self.cpu.is_some() {
                    made.cpu = Some(Box::new(v2::Cpu::open(directory.clone())));
                }
                if self.pids.is_some() {
                    made.pids = Some(Box::new(v2::Pids::open(directory)));
                }
            }
        } else {
            if let Some(base) = &self.memory {
                let directory = made.add(base.child(&name), v1::JOIN)?;
                made.memory = Some(Box::new(v1::Memory::open(directory)?));
            }
            if let Some(base) = &self.cpu {
                made.cpu = Some(Box::new(v1::Cpu::open(made.add(base.child(&name), v1::JOIN)?)));
            }
            if let Some(base) = &self.pids {
                made.pids = Some(Box::new(v1::Pids::open(made.add(base.child(&name), v1::JOIN)?)));
            }
        }
        Ok(made)
    }

    /// Removes the directories that the slots' lay in.
    pub(crate) fn remove(&self) {
        for base in self.bases() {
            remove_tree(base);
        }
    }

    fn bases(&self) -> impl Iterator<Item = &Directory> {
        [&self.memory, &self.cpu, &self.pids].into_iter().flatten()
    }
}

fn make_base(place: &Place, name: &str) -> Result<Directory, CgroupError> {
    let own = Directory::new(place.path.clone());
    remove_leftovers(&own);
    let base = own.child(name);
    base.make()?;
    Ok(base)
}

/// Removes the directories of launchers that are dead, and kills what still runs in them first.
fn remove_leftovers(own: &Directory) {
    for name in own.children() {
        let owner = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !is_launcher(pid)) {
            remove_tree(&own.child(&name));
        }
    }
}

/// Whether `pid` is a live launcher; a reused number is something else.
fn is_launcher(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "flux-launcher")
}

/// Removes a launcher's directory with its slots', within a deadline.
fn remove_tree(base: &Directory) {
    let deadline = Instant::now() + REMOVE_DEADLINE;
    for name in base.children() {
        remove_with_tasks(&base.child(&name), deadline);
    }
    remove_with_tasks(base, deadline);
}

fn remove_with_tasks(directory: &Directory, deadline: Instant) {
    // A killed process leaves its cgroup a little after the signal, when it has ended.
    while !directory.remove() && Instant::now() < deadline {
        directory.kill_processes();
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl SlotCgroup {
    /// Makes the directory and opens the file by which children join it.
    fn add(&mut self, directory: Directory, join: &str) -> Result<Directory, CgroupError> {
        directory.make()?;
        self.directories.push(directory.clone());
        let file = directory.open_for_writing(join)?;
        self.raw_joins.push(file.as_raw_fd());
        self.joins.push(file);
        Ok(directory)
    }

    /// Writes the limits that differ from those set.
    pub(crate) fn set_limits(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(memory) = &mut self.memory {
            memory.set(limits.memory_bytes)?;
            memory.spare_others(limits.spares_others)?;
        }
        if let Some(cpu) = &mut self.cpu {
            cpu.set(limits.cpu_millicores)?;
        }
        if let Some(pids) = &mut self.pids {
            pids.set(limits.pids_max)?;
        }
        Ok(())
    }

    /// The open files into which a child writes itself.
    pub(crate) fn joins(&self) -> &[RawFd] {
        &self.raw_joins
    }

    /// Its directory, to be given away: `cgroup.procs` in it lists the pids of the processes.
    pub(crate) fn directory(&self) -> Option<File> {
        File::open(self.directories.first()?.path()).ok()
    }

    /// Sends `SIGKILL` to everything in it; `true` if there was something.
    pub(crate) fn kill_all(&self) -> bool {
        self.directories.iter().map(Directory::kill_processes).fold(false, |any, more| any | more)
    }

    pub(crate) fn take_oom_kill(&mut self) -> bool {
        self.memory.as_mut().is_some_and(|m| m.take_oom_kill())
    }

    pub(crate) fn peak(&self) -> Option<u64> {
        self.memory.as_ref().and_then(|m| m.peak())
    }

    /// What stays charged between executions is the page cache of the function's own files and is reclaimed before
    /// anything is killed for it. So it is not thrown out here (`memory.force_empty`): that takes milliseconds, and the
    /// next execution would read its program from the disk again.
    pub(crate) fn reset_peak(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.reset_peak();
        }
    }
}

impl Drop for SlotCgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + REMOVE_DEADLINE;
        for directory in &self.directories {
            remove_with_tasks(directory, deadline);
        }
    }
}

/// The path of a hierarchy's mount and of a cgroup in it, joined.
fn join(mount: &str, relative: &str) -> PathBuf {
    PathBuf::from(mount).join(relative.trim_start_matches('/'))
}
