//! A real launcher process and a blocking client of it.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flux_launcher::wire::{
    Control, ControlReply, EndedReport, INLINE_REQUEST, Limits, MAX_REPLY, Network, RefusedReport, Reply, SpawnRequest,
    memfd_stub,
};
use flux_launcher::{Capabilities, LauncherConfig, Runner, socket, start_launcher};

pub(crate) const PROBE: &str = env!("CARGO_BIN_EXE_flux-launcher-probe");

/// The probe, or where an ordinary user can reach a copy of it.
pub(crate) fn probe() -> PathBuf {
    std::env::var_os("FLUX_PROBE").map_or_else(|| PathBuf::from(PROBE), PathBuf::from)
}

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that is removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("flux-launcher-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What came of one execution.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ended: EndedReport,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Launched {
    pub(crate) scratch: Scratch,
    spawn: OwnedFd,
    control: Option<OwnedFd>,
    pub(crate) child: Child,
    pub(crate) capabilities: Capabilities,
    next_id: u64,
    replies: HashMap<u64, Vec<Reply>>,
}

/// Whether root's rights are there; says so aloud where they are not, and fails where they must be.
pub(crate) fn root_or_skip() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    eprintln!("SKIPPED: this test makes namespaces and cgroups, and needs to be run as root");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must run this test as root");
    false
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
}

fn timeout(fd: &OwnedFd) {
    let time = nix::sys::time::TimeVal::new(20, 0);
    nix::sys::socket::setsockopt(fd, nix::sys::socket::sockopt::ReceiveTimeout, &time).unwrap();
}

/// The uid that functions run as in these tests.
pub(crate) const RUNNER: Runner = Runner { uid: 54321, gid: 54322 };

impl Launched {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut LauncherConfig)) -> Self {
        let scratch = Scratch::new();
        let mut config = LauncherConfig::new(scratch.0.join("work"), 8);
        config.runner = Some(RUNNER);
        change(&mut config);
        Self::run(&probe(), config, scratch)
    }

    pub(crate) fn run(program: &Path, config: LauncherConfig, scratch: Scratch) -> Self {
        let started = start_launcher(program, &config).unwrap();
        timeout(&started.spawn);
        timeout(&started.control);
        let mut buffer = vec![0; MAX_REPLY];
        let packet = socket::recv(started.control.as_fd(), &mut buffer).unwrap();
        let ControlReply::Hello(capabilities) = ControlReply::decode(&buffer[..packet.len]).unwrap() else {
            panic!("no hello");
        };
        fs::create_dir_all(scratch.0.join("code")).unwrap();
        Launched {
            scratch,
            spawn: started.spawn,
            control: Some(started.control),
            child: started.child,
            capabilities: *capabilities,
            next_id: 1,
            replies: HashMap::new(),
        }
    }

    pub(crate) fn code_dir(&self) -> PathBuf {
        self.scratch.0.join("code")
    }

    pub(crate) fn file(&self, name: &str, content: &str, mode: u32) {
        let path = self.code_dir().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn request(&mut self, program: &str, args: &[&str]) -> SpawnRequest {
        self.next_id += 1;
        SpawnRequest {
            id: self.next_id,
            slot_key: "test@1".to_owned(),
            program: program.to_owned(),
            args: args.iter().map(|s| (*s).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            code_dir: self.code_dir(),
            limits: Limits::default(),
            ..SpawnRequest::default()
        }
    }

    pub(crate) fn sh(&mut self, script: &str) -> SpawnRequest {
        self.request("/bin/sh", &["-c", script])
    }

    pub(crate) fn send(&self, request: &SpawnRequest, stdio: [&OwnedFd; 3]) {
        let encoded = request.encode().unwrap();
        let mut fds: Vec<_> = stdio.iter().map(|fd| fd.as_fd()).collect();
        if encoded.len() <= INLINE_REQUEST {
            return socket::send(self.spawn.as_fd(), &encoded, &fds).unwrap();
        }
        let memfd = socket::memfd(&encoded).unwrap();
        fds.push(memfd.as_fd());
        socket::send(self.spawn.as_fd(), &memfd_stub(encoded.len()), &fds).unwrap();
    }

    pub(crate) fn next_reply(&mut self, id: u64) -> Reply {
        loop {
            if let Some(queue) = self.replies.get_mut(&id)
                && !queue.is_empty()
            {
                return queue.remove(0);
            }
            let mut buffer = vec![0; MAX_REPLY];
            let packet = socket::recv(self.spawn.as_fd(), &mut buffer).expect("a reply in time");
            assert!(packet.len > 0, "the launcher is gone");
            let reply = Reply::decode(&buffer[..packet.len]).unwrap();
            let (to, said) = match reply {
                Reply::Started { id, .. } => (id, vec![reply]),
                Reply::Ended(ended) => (ended.id, vec![reply]),
                Reply::Ran { pid, started_at_us, ended } => {
                    let id = ended.id;
                    (id, vec![Reply::Started { id, pid, started_at_us }, Reply::Ended(ended)])
                }
                Reply::Refused(ref refused) => (refused.id, vec![reply]),
            };
            self.replies.entry(to).or_default().extend(said);
        }
    }

    /// Starts it; the pid, and the reading ends of its stdout and stderr.
    pub(crate) fn start_one(&mut self, request: &SpawnRequest, stdin: &[u8]) -> Result<Process, RefusedReport> {
        let (stdin_read, stdin_write) = pipe();
        let (out_read, out_write) = pipe();
        let (err_read, err_write) = pipe();
        self.send(request, [&stdin_read, &out_write, &err_write]);
        drop((stdin_read, out_write, err_write));
        match self.next_reply(request.id) {
            Reply::Started { pid, started_at_us, .. } => {
                assert!(started_at_us > 1_600_000_000_000_000);
                fs::File::from(stdin_write).write_all(stdin).unwrap();
                Ok(Process { id: request.id, pid: pid.cast_signed(), stdout: out_read, stderr: err_read })
            }
            Reply::Refused(refused) => Err(refused),
            Reply::Ended(_) | Reply::Ran { .. } => panic!("ended before it started"),
        }
    }

    /// Starts a worker; our end of its channel, and its cgroup's directory, where it has one.
    pub(crate) fn start_worker(&mut self, script: &str) -> (u64, UnixStream, Option<fs::File>) {
        let request = SpawnRequest { channel: true, ..self.sh(script) };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let null: OwnedFd = fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let fds = [null.as_fd(), null.as_fd(), null.as_fd(), theirs.as_fd()];
        socket::send(self.spawn.as_fd(), &request.encode().unwrap(), &fds).unwrap();
        let mut buffer = vec![0; MAX_REPLY];
        let packet = socket::recv(self.spawn.as_fd(), &mut buffer).unwrap();
        let started = Reply::decode(&buffer[..packet.len]).unwrap();
        assert!(matches!(started, Reply::Started { id, .. } if id == request.id), "{started:?}");
        (request.id, ours, packet.fds.into_iter().next().map(fs::File::from))
    }

    /// Starts a worker that is spoken to over TCP: a Python program, and the socket that listens for it.
    pub(crate) fn start_listening(&mut self, network: Network, program: &str) -> (u64, TcpListener) {
        let args = ["-I", "-c", program].map(str::to_owned).to_vec();
        let request =
            SpawnRequest { listens: true, network, program: "/usr/bin/python3".to_owned(), args, ..self.sh("") };
        let null: OwnedFd = fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
        self.send(&request, [&null, &null, &null]);
        let mut buffer = vec![0; MAX_REPLY];
        let packet = socket::recv(self.spawn.as_fd(), &mut buffer).unwrap();
        let started = Reply::decode(&buffer[..packet.len]).unwrap();
        assert!(matches!(started, Reply::Started { id, .. } if id == request.id), "{started:?}");
        (request.id, packet.fds.into_iter().next().expect("a socket").into())
    }

    /// What the launcher itself finds.
    pub(crate) fn is_alone(&self, id: u64) -> bool {
        match self.answer(Control::IsAlone { id, nonce: 9 }) {
            ControlReply::Alone { nonce: 9, alone } => alone,
            other => panic!("{other:?}"),
        }
    }

    /// Whether nothing is left but the main process.
    pub(crate) fn clear(&self, id: u64) -> bool {
        match self.answer(Control::Clear { id, nonce: 9 }) {
            ControlReply::Cleared { nonce: 9, clean } => clean,
            other => panic!("{other:?}"),
        }
    }

    fn answer(&self, question: Control) -> ControlReply {
        let control = self.control.as_ref().unwrap();
        socket::send(control.as_fd(), &question.encode(), &[]).unwrap();
        let mut buffer = vec![0; MAX_REPLY];
        let packet = socket::recv(control.as_fd(), &mut buffer).unwrap();
        ControlReply::decode(&buffer[..packet.len]).unwrap()
    }

    pub(crate) fn finish(&mut self, process: Process) -> Finished {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        fs::File::from(process.stdout).read_to_string(&mut stdout).unwrap();
        fs::File::from(process.stderr).read_to_string(&mut stderr).unwrap();
        let ended = self.ended(process.id);
        Finished { ended, stdout, stderr }
    }

    pub(crate) fn ended(&mut self, id: u64) -> EndedReport {
        match self.next_reply(id) {
            Reply::Ended(ended) => ended,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn run_one(&mut self, request: &SpawnRequest) -> Finished {
        let process = self.start_one(request, b"").unwrap_or_else(|refused| panic!("{refused:?}"));
        self.finish(process)
    }

    pub(crate) fn run_sh(&mut self, script: &str) -> Finished {
        let request = self.sh(script);
        self.run_one(&request)
    }

    pub(crate) fn refused(&mut self, request: &SpawnRequest) -> RefusedReport {
        match self.start_one(request, b"") {
            Err(refused) => refused,
            Ok(_) => panic!("it started"),
        }
    }

    pub(crate) fn kill(&self, id: u64, signal: i32) {
        let control = self.control.as_ref().unwrap();
        socket::send(control.as_fd(), &Control::Kill { id, signal }.encode(), &[]).unwrap();
    }

    pub(crate) fn ping(&self) -> bool {
        let control = self.control.as_ref().unwrap();
        socket::send(control.as_fd(), &Control::Ping { nonce: 7 }.encode(), &[]).unwrap();
        let mut buffer = vec![0; MAX_REPLY];
        let packet = socket::recv(control.as_fd(), &mut buffer).unwrap();
        ControlReply::decode(&buffer[..packet.len]) == Ok(ControlReply::Pong { nonce: 7 })
    }

    /// Closes the control socket, as the agent's death would, and waits for the launcher's end.
    pub(crate) fn close(&mut self) {
        self.control = None;
        wait_until("the launcher ends", || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.control = None;
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A started function.
pub(crate) struct Process {
    pub(crate) id: u64,
    pub(crate) pid: i32,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Process {
    /// Reads stdout up to the end of a line.
    pub(crate) fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while nix::unistd::read(&self.stdout, &mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

pub(crate) fn alive(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(error) => error.kind() != io::ErrorKind::NotFound && error.raw_os_error() != Some(libc::ESRCH),
    }
}

/// The child processes of `pid`, whichever of its threads started them.
pub(crate) fn children_of(pid: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|c| c.parse::<i32>().ok()));
    }
    found
}

/// Pids of the processes whose command line contains `text`.
pub(crate) fn processes_with(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&cmdline);
        if cmdline.contains(text) && alive(pid) && pid != std::process::id().cast_signed() {
            found.push(pid);
        }
    }
    found
}
