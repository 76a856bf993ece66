//! One execution from its packet to its last reply.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use super::command::{Command, explain, refusal};
use super::plain::{MARKER, Plain};
use super::registry::{Active, Registry};
use crate::config::Runner;
use crate::sys::vfork::{ChildPlan, ChildStack};
use crate::sys::{process, socket, vfork};
use crate::wire::{EndedReport, ExitStatus, INLINE_REQUEST, RefusedReport, Reply, SpawnRequest, memfd_size};

/// What every thread of the launcher shares.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) spawn: OwnedFd,
    pub(crate) registry: Registry,
    pub(crate) plain: Plain,
    pub(crate) user: Option<Runner>,
    pub(crate) reset_oom_score: bool,
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
        // The agent's end is closed: the main thread sees it too and ends everything.
        let _ = socket::send(self.spawn.as_fd(), &reply.encode(), &[]);
    }

    fn serve_one(&self, packet: &[u8], mut fds: Vec<OwnedFd>, stack: &mut ChildStack) {
        let request = match decode(packet, &mut fds) {
            Ok(request) => request,
            Err(refused) => return self.reply(&Reply::Refused(refused)),
        };
        if let Err(refused) = self.run_plain(&request, fds, stack) {
            self.reply(&Reply::Refused(refused));
        }
    }

    fn run_plain(
        &self,
        request: &SpawnRequest,
        stdio: Vec<OwnedFd>,
        stack: &mut ChildStack,
    ) -> Result<(), RefusedReport> {
        let scratch = self.plain.scratch(request.id).map_err(|e| {
            refusal(
                request.id,
                "tmp",
                e.raw_os_error().unwrap_or(0),
                format!("could not make a private TMPDIR: {e}; is the data directory's disk full?"),
            )
        })?;
        let extra = [("TMPDIR", scratch.directory.as_str()), (MARKER, scratch.marker.as_str())];
        let command = Command::new(request, &request.code_dir, &extra)?;
        let directory = c_path(request.id, &request.code_dir)?;
        let mut rlimits = rlimits(request);
        if request.limits.memory_bytes > 0 {
            rlimits.push((libc::RLIMIT_DATA, request.limits.memory_bytes));
        }
        let plan = ChildPlan {
            cgroups: &[],
            join: None,
            reset_oom_score: self.reset_oom_score,
            rlimits: &rlimits,
            stdio: raw_stdio(&stdio),
            user: self.user.map(|u| (u.uid, u.gid)),
            parent: self.plain.own_pid(),
            directory: &directory,
            program: &command.program,
            argv: &command.argv,
            envp: &command.envp,
        };
        let starting = self.plain.starting();
        let started = vfork::spawn(&plan, stack);
        let pid = match started {
            Ok(pid) => pid,
            Err(failure) => {
                drop(starting);
                let _ = std::fs::remove_dir_all(&scratch.directory);
                return Err(explain(request, failure));
            }
        };
        self.registry.insert(request.id, Active { pid, slot: None });
        drop(starting);
        drop(stdio);
        self.started(request.id, pid);
        let waited = self.wait(request.id, pid);
        self.reply(&Reply::Ended(EndedReport {
            id: request.id,
            status: waited.status,
            oom_killed: false,
            cpu_us: waited.cpu_us,
            memory_peak_bytes: waited.max_rss_bytes,
            ended_at_us: process::now_us(),
        }));
        self.plain.clean(&scratch, pid, &self.registry);
        Ok(())
    }

    fn started(&self, id: u64, pid: i32) {
        self.reply(&Reply::Started { id, pid: pid.cast_unsigned(), started_at_us: process::now_us() });
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

    /// Kills everything and removes what was made, within a deadline.
    pub(crate) fn end(&self) {
        self.registry.close();
        let deadline = Instant::now() + super::END_DEADLINE;
        while !self.registry.is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        self.plain.kill_leftovers();
        self.plain.remove();
    }
}

fn decode(packet: &[u8], fds: &mut Vec<OwnedFd>) -> Result<SpawnRequest, RefusedReport> {
    let id = SpawnRequest::peek_id(packet).unwrap_or(0);
    let bad = |message: String| refusal(id, "request", libc::EBADMSG, message);
    let request = match memfd_size(packet).map_err(|e| bad(e.to_string()))? {
        None => SpawnRequest::decode(packet),
        Some(size) => {
            let memfd = (fds.len() == 4)
                .then(|| fds.pop())
                .flatten()
                .ok_or_else(|| bad("a large request came without its memfd".to_owned()))?;
            let bytes = read_memfd(&memfd, size).map_err(|e| bad(format!("memfd: {e}")))?;
            SpawnRequest::decode(&bytes)
        }
    };
    let request = request.map_err(|e| bad(e.to_string()))?;
    if fds.len() != 3 {
        return Err(refusal(
            request.id,
            "request",
            libc::EBADMSG,
            format!("{} descriptors came instead of stdin, stdout and stderr", fds.len()),
        ));
    }
    Ok(request)
}

fn read_memfd(memfd: &OwnedFd, size: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(memfd.try_clone()?);
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

pub(super) fn raw_stdio(fds: &[OwnedFd]) -> [i32; 3] {
    let mut raw = [-1; 3];
    for (slot, fd) in raw.iter_mut().zip(fds) {
        *slot = fd.as_raw_fd();
    }
    raw
}

pub(super) fn rlimits(request: &SpawnRequest) -> Vec<(u32, u64)> {
    let mut limits = vec![(libc::RLIMIT_CORE, 0)];
    if request.limits.open_files > 0 {
        limits.push((libc::RLIMIT_NOFILE, request.limits.open_files));
    }
    if request.limits.file_size_bytes > 0 {
        limits.push((libc::RLIMIT_FSIZE, request.limits.file_size_bytes));
    }
    limits
}

pub(super) fn c_path(id: u64, path: &Path) -> Result<std::ffi::CString, RefusedReport> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| refusal(id, "request", libc::EINVAL, "the code directory's path contains a NUL byte".to_owned()))
}
