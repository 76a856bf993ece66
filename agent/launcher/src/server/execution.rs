//! One execution from its packet to its last reply.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::allowed_files::AllowedFiles;
use super::command::{Command, explain, refusal};
use super::crew::Crew;
use super::listening::Listening;
use super::others;
use super::plain::{MARKER, Plain};
use super::registry::{Active, Registry};
use crate::cgroup::{SharedCgroup, SlotCgroup};
use crate::config::Runner;
use crate::guard::worker_address;
use crate::slot::{CODE_DIR, HolderLink, SlotError, SlotPool};
use crate::sys::process::OpenFiles;
use crate::sys::vfork::{ChildPlan, ChildStack};
use crate::sys::{process, socket, vfork};
use crate::wire::{EndedReport, ExitStatus, INLINE_REQUEST, Network, RefusedReport, Reply, SpawnRequest, memfd_size};

/// That a process has started is said after this long, unless its end can be said with it. Static programs are over
/// sooner; what an interpreter does takes longer than the agent could notice the delay.
const SHORT: Duration = Duration::from_millis(1);
/// How many slots are tried for one execution.
const ATTEMPTS: u32 = 2;

/// What every thread of the launcher shares.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) spawn: OwnedFd,
    /// Where this machine has one; all functions are in it.
    pub(crate) shared_cgroup: Option<SharedCgroup>,
    pub(crate) registry: Registry,
    pub(crate) crew: Crew,
    /// `None`: this launcher cannot make slots, and `plain` serves instead.
    pub(crate) slots: Option<SlotPool>,
    pub(crate) plain: Plain,
    /// Networks whose functions a missing layer does not hold in, where all are required.
    pub(crate) refuses: Vec<Network>,
    pub(crate) user: Option<Runner>,
    /// What keeps each execution's signals and abstract sockets to itself, where the kernel can.
    pub(crate) scopes: Option<OwnedFd>,
    /// What functions without a slot may open, where the kernel can hold them to it.
    pub(crate) files: Option<AllowedFiles>,
    pub(crate) reset_oom_score: bool,
    pub(crate) open_files: OpenFiles,
}

/// What an execution is started in.
struct Place<'a> {
    /// Where the function sees its code.
    code: &'a Path,
    extra_env: &'a [(&'a str, &'a str)],
    holder: Option<(&'a Arc<HolderLink>, libc::c_int)>,
    user: Option<Runner>,
    /// A Landlock ruleset of this execution's own, with files.
    files: Option<OwnedFd>,
    listening: Option<Listening>,
    /// The launcher's pid where the function's process can see it.
    parent: i32,
}

impl Server {
    /// Serves one execution after another until the spawn socket closes.
    pub(crate) fn serve_executions(&self) {
        let mut buffer = vec![0; INLINE_REQUEST + 64];
        let mut stack = ChildStack::new();
        loop {
            match socket::recv(self.spawn.as_fd(), &mut buffer) {
                Ok(packet) if packet.len == 0 => return,
                Ok(packet) => {
                    let bytes = buffer.get(..packet.len).unwrap_or_default();
                    self.serve_one(bytes, packet.fds, &mut stack);
                }
                Err(error) => {
                    if error.raw_os_error() == Some(libc::EMSGSIZE) {
                        eprintln!("flux launcher: dropped a packet larger than the protocol allows");
                        continue;
                    }
                    return;
                }
            }
        }
    }

    fn reply(&self, reply: &Reply) {
        self.reply_with(reply, &[]);
    }

    fn reply_with(&self, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        // The agent's end is closed: the main thread sees it too and ends everything.
        let _ = socket::send(self.spawn.as_fd(), &reply.encode(), fds);
    }

    fn serve_one(&self, packet: &[u8], mut fds: Vec<OwnedFd>, stack: &mut ChildStack) {
        let request = match decode(packet, &mut fds) {
            Ok(request) => request,
            Err(refused) => return self.reply(&Reply::Refused(refused)),
        };
        if self.refuses.contains(&request.network) {
            let message =
                "`isolation_required` is set and this agent lacks a layer of isolation; `flux agents` says which";
            return self.reply(&Reply::Refused(refusal(request.id, "isolation", libc::EPERM, message.to_owned())));
        }
        if request.is_worker() {
            self.crew.worker_begins();
        }
        let done = match &self.slots {
            Some(slots) => self.run_in_slot(slots, &request, fds, stack),
            None => self.run_plain(&request, fds, stack),
        };
        if request.is_worker() {
            self.crew.worker_ended();
        }
        if let Err(refused) = done {
            self.reply(&Reply::Refused(refused));
        }
    }

    fn run_in_slot(
        &self,
        slots: &SlotPool,
        request: &SpawnRequest,
        mut stdio: Vec<OwnedFd>,
        stack: &mut ChildStack,
    ) -> Result<(), RefusedReport> {
        let mut attempt = 1;
        loop {
            let mut slot = slots.acquire(request).map_err(|error| explain_slot(request, &error))?;
            let holder = Arc::clone(&slot.holder);
            let listening = listening(request, Path::new(CODE_DIR), || slots.listen(&slot));
            let done = listening.and_then(|listening| {
                let place = Place {
                    code: Path::new(CODE_DIR),
                    extra_env: &[],
                    holder: Some((&holder, slot.namespaces())),
                    user: Some(slot.user),
                    files: None,
                    listening,
                    parent: 0,
                };
                self.run(request, &mut stdio, stack, place, slot.cgroup.as_mut())
            });
            // Off the reply path: the agent has the end of the execution already.
            drop(holder);
            match done {
                // Nothing ran, and the slot itself may be why: its holder can die between two executions.
                Err(refused) if !refused.is_functions_fault() => {
                    slots.discard(slot);
                    if attempt == ATTEMPTS {
                        return Err(refused);
                    }
                    attempt += 1;
                }
                done => {
                    slots.release(slot);
                    return done.map(|_pid| ());
                }
            }
        }
    }

    fn run_plain(
        &self,
        request: &SpawnRequest,
        mut stdio: Vec<OwnedFd>,
        stack: &mut ChildStack,
    ) -> Result<(), RefusedReport> {
        if request.network == Network::None {
            let message = "`network: none` needs a network namespace, which this agent cannot make; run Flux as root";
            return Err(refusal(request.id, "network", libc::ENOSYS, message.to_owned()));
        }
        let failed =
            |step: &str, errno: Option<i32>, message: String| refusal(request.id, step, errno.unwrap_or(0), message);
        let scratch = self.plain.scratch(request.id).map_err(|e| {
            let message = format!("could not make a private TMPDIR: {e}; is the data directory's disk full?");
            failed("tmp", e.raw_os_error(), message)
        })?;
        let own = scratch.directory.as_str();
        let allowed = self.files.as_ref().map(|files| files.ruleset(&request.code_dir, Path::new(own))).transpose();
        let files = allowed.map_err(|e| {
            self.plain.clean(&scratch, None, None, &self.registry);
            failed("landlock", e.raw_os_error(), explain_allowing(request, &e))
        })?;
        let extra = [("TMPDIR", own), ("HOME", own), (MARKER, scratch.marker.as_str())];
        let id = u32::try_from(request.id).unwrap_or(0);
        let listening = listening(request, &request.code_dir, || std::net::TcpListener::bind((worker_address(id), 0)));
        let place = listening.map(|listening| Place {
            code: &request.code_dir,
            extra_env: &extra,
            holder: None,
            user: self.user,
            files,
            listening,
            parent: self.plain.own_pid(),
        });
        let cgroup = self.plain.cgroup(&request.limits);
        let (done, cgroup) = match (place, cgroup) {
            (Ok(place), Ok(mut cgroup)) => (self.run(request, &mut stdio, stack, place, cgroup.as_mut()), cgroup),
            (Err(refused), cgroup) => (Err(refused), cgroup.ok().flatten()),
            (_, Err(e)) => (Err(failed("cgroup", e.errno(), e.to_string())), None),
        };
        self.plain.clean(&scratch, done.as_ref().ok().copied(), cgroup, &self.registry);
        done.map(|_pid| ())
    }

    /// Starts the process, says so, waits for its end, says that. What is left of the execution is the caller's.
    fn run(
        &self,
        request: &SpawnRequest,
        stdio: &mut Vec<OwnedFd>,
        stack: &mut ChildStack,
        mut place: Place<'_>,
        mut cgroup: Option<&mut SlotCgroup>,
    ) -> Result<i32, RefusedReport> {
        let listening = place.listening.take();
        let command = Command::new(request, place.code, &Listening::added_to(listening.as_ref(), place.extra_env))?;
        let directory = c_path(request.id, place.code)?;
        let rlimits = self.rlimits(request, place.holder.is_some(), cgroup.is_some());
        let raw: Vec<RawFd> = stdio.iter().map(AsRawFd::as_raw_fd).collect();
        let plan = ChildPlan {
            cgroups: cgroup.as_ref().map_or(&[], |c| c.joins()),
            join: place.holder.map(|(holder, namespaces)| (holder.pidfd().as_raw_fd(), namespaces)),
            // Of the two, the one with files has scopes as well.
            scopes: self.scopes.as_ref().filter(|_| place.files.is_none()).map(AsRawFd::as_raw_fd),
            files: place.files.as_ref().map(AsRawFd::as_raw_fd),
            reset_oom_score: self.reset_oom_score,
            rlimits: &rlimits,
            stdio: &raw,
            user: place.user.map(|u| (u.uid, u.gid)),
            parent: place.parent,
            directory: &directory,
            program: &command.program,
            argv: &command.argv,
            envp: &command.envp,
        };
        let starting = self.plain.starting();
        let pid = vfork::spawn(&plan, stack).map_err(|failure| explain(request, failure))?;
        let slot = place.holder.map(|(holder, _)| Arc::clone(holder));
        self.registry.insert(request.id, Active { pid, slot });
        drop(starting);
        // The function's copies are the only ones from here on: its end is the end of its output.
        stdio.clear();
        let (id, started_at_us) = (request.id, process::now_us());
        let number = pid.cast_unsigned();
        let started = Reply::Started { id, pid: number, started_at_us };
        let is_over = if request.is_worker() {
            // A worker is there to stay, and its agent is told at once how to see who lives with it.
            let directory = cgroup.as_ref().and_then(|c| c.directory());
            let socket = listening.as_ref().map(|listening| listening.socket.as_fd());
            let fds: Vec<_> = socket.into_iter().chain(directory.as_ref().map(AsFd::as_fd)).collect();
            self.reply_with(&started, &fds);
            false
        } else {
            process::ends_within(pid, SHORT).unwrap_or(false)
        };
        if !is_over && !request.is_worker() {
            self.reply(&started);
        }
        drop(listening);
        let waited = self.wait(id, pid);
        let oom_killed = cgroup.as_mut().is_some_and(|c| c.take_oom_kill());
        let peak = cgroup.and_then(|c| c.peak()).unwrap_or(waited.max_rss_bytes);
        let ended = EndedReport {
            id,
            status: waited.status,
            oom_killed,
            cpu_us: waited.cpu_us,
            memory_peak_bytes: peak,
            ended_at_us: process::now_us(),
        };
        self.reply(&if is_over { Reply::Ran { pid: number, started_at_us, ended } } else { Reply::Ended(ended) });
        Ok(pid)
    }

    /// A launcher with many slots raises its own limit on open files, so functions are always given one.
    fn rlimits(&self, request: &SpawnRequest, in_slot: bool, in_cgroup: bool) -> Vec<(u32, u64)> {
        let limits = &request.limits;
        let files = if limits.open_files > 0 { limits.open_files } else { self.open_files.soft };
        // Above the hard limit even root cannot go everywhere (a container may lack CAP_SYS_RESOURCE).
        let files = files.min(self.open_files.hard);
        let mut list = vec![(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, files)];
        if limits.file_size_bytes > 0 {
            list.push((libc::RLIMIT_FSIZE, limits.file_size_bytes));
        }
        if in_slot {
            // POSIX message queues would outlive their execution in the slot's IPC namespace.
            list.push((libc::RLIMIT_MSGQUEUE, 0));
        }
        if !in_cgroup && limits.memory_bytes > 0 {
            // For each process by itself, and of its data only: less than a cgroup, and said as missing.
            list.push((libc::RLIMIT_DATA, limits.memory_bytes));
        }
        list
    }

    /// Waits for the main process, and takes it off the list before its number can mean another.
    fn wait(&self, id: u64, pid: i32) -> process::Waited {
        let _ = process::wait_without_reaping(pid);
        self.registry.remove(id);
        process::reap(pid).unwrap_or(process::Waited {
            // Only if somebody else reaped it, which nothing in this process does.
            status: ExitStatus::Signaled(libc::SIGKILL),
            cpu_us: 0,
            max_rss_bytes: 0,
        })
    }

    /// Whether nothing of an execution lives but its main process. One that ended has nothing.
    pub(crate) fn is_alone(&self, id: u64) -> bool {
        self.registry
            .with(id, |active| match &active.slot {
                Some(holder) => others::in_namespace(holder.pid(), active.pid) == 0,
                None => !self.plain.has_others(id, active.pid, &self.registry),
            })
            .unwrap_or(true)
    }

    /// Ends everything of an execution but its main process, and empties its directories; whether nothing is left.
    pub(crate) fn clear(&self, id: u64) -> bool {
        let clear = |active: &Active| match &active.slot {
            // An execution gives its slot back after it went off the list.
            Some(holder) => holder
                .clear(|| self.registry.is_running(id).then(|| others::number_in_namespace(active.pid)).flatten())
                .unwrap_or(false),
            None => self.plain.clear(id, active.pid, &self.registry),
        };
        self.registry.with(id, clear).unwrap_or(false)
    }

    /// Kills everything and removes what was made, within a deadline.
    pub(crate) fn end(&self) {
        let deadline = Instant::now() + super::END_DEADLINE;
        self.registry.close();
        if let Some(slots) = &self.slots {
            slots.close();
        }
        let left = || self.slots.as_ref().map_or(0, SlotPool::total);
        while (!self.registry.is_empty() || left() > 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        if let Some(slots) = &self.slots {
            slots.remove_cgroups();
        }
        self.plain.end();
        if let Some(shared) = &self.shared_cgroup {
            shared.leave();
        }
    }
}

fn decode(packet: &[u8], fds: &mut Vec<OwnedFd>) -> Result<SpawnRequest, RefusedReport> {
    let id = SpawnRequest::peek_id(packet).unwrap_or(0);
    let bad = |message: String| refusal(id, "request", libc::EBADMSG, message);
    let request = match memfd_size(packet).map_err(|e| bad(e.to_string()))? {
        None => SpawnRequest::decode(packet),
        Some(size) => {
            // Behind the others, however many there are.
            let memfd = (fds.len() > 3)
                .then(|| fds.pop())
                .flatten()
                .ok_or_else(|| bad("a large request came without its memfd".to_owned()))?;
            let bytes = read_memfd(&memfd, size).map_err(|e| bad(format!("memfd: {e}")))?;
            SpawnRequest::decode(&bytes)
        }
    };
    let request = request.map_err(|e| bad(e.to_string()))?;
    if fds.len() != 3 + usize::from(request.channel) {
        return Err(refusal(
            request.id,
            "request",
            libc::EBADMSG,
            format!("{} descriptors came instead of stdin, stdout, stderr and a worker's channel", fds.len()),
        ));
    }
    Ok(request)
}

/// Of a worker that listens, its socket.
fn listening(
    request: &SpawnRequest,
    code: &Path,
    listen: impl FnOnce() -> io::Result<std::net::TcpListener>,
) -> Result<Option<Listening>, RefusedReport> {
    if !request.listens {
        return Ok(None);
    }
    listen().and_then(|socket| Listening::new(socket, code, request)).map(Some).map_err(|error| {
        let message = format!("could not listen for the worker on a loopback address: {error}");
        refusal(request.id, "listen", error.raw_os_error().unwrap_or(0), message)
    })
}

fn read_memfd(memfd: &OwnedFd, size: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(memfd.try_clone()?);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A slot that could not be made, as a sentence for whoever runs the agent.
fn explain_slot(request: &SpawnRequest, error: &SlotError) -> RefusedReport {
    let message = if request.code_dir.is_dir() {
        error.to_string()
    } else {
        format!("the code directory {} does not exist", request.code_dir.display())
    };
    refusal(request.id, error.step(), error.errno(), message)
}

/// A ruleset of files that could not be made.
fn explain_allowing(request: &SpawnRequest, error: &io::Error) -> String {
    if request.code_dir.is_dir() {
        format!("could not say what the function may open: {error}")
    } else {
        format!("the code directory {} does not exist", request.code_dir.display())
    }
}

fn c_path(id: u64, path: &Path) -> Result<std::ffi::CString, RefusedReport> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| refusal(id, "request", libc::EINVAL, "the code directory's path contains a NUL byte".to_owned()))
}
