//! The tier of microVMs, with a stand-in for Firecracker: its guest is this machine's kernel, in namespaces of its own with the
//! function's disk. Its agent is the real one. (What only a kernel of one's own shows is tested in one: `agent/guest-image`.)

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flux_agent::{
    MicrovmSource, Microvms, Process, Sandbox as _, Start, Tier as _,
    launch::{Ended, EndedReport, ExitStatus, LaunchError},
};
use flux_firecracker::{DriverConfig, Settings};
use flux_launcher::wire::{Limits, Network, SpawnRequest};
use flux_protocol::{FunctionName, function::Runtime};
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::{
    eventually,
    firecracker::{Fault, StandIn},
};
use flux_worker::{Call, Decoder, FromWorker, Load, ToWorker, bootstrap};

use crate::sandboxes::{self, PROGRAM};

const SOON: Duration = Duration::from_secs(20);

/// A guest of the stand-in: the machine's own programs, the code from the guest's disk, processes of its own.
const GUEST: &str = r#"#!/bin/sh
exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child /bin/sh -c '
set -e
mount --make-rprivate /
jail=$PWD root=$PWD/guest
mkdir -p $root && mount -t tmpfs guest $root && cd $root
mkdir code dev jail proc tmp usr etc && chmod 1777 tmp
for place in usr etc dev; do mount --rbind /$place $place; done
for link in bin lib lib64 sbin; do ln -s usr/$link $link; done
mount --bind $jail jail && mount -t proc proc proc
debugfs -R "rdump / code" jail/code 2>/dev/null && chmod 755 code
cp SHIM shim
exec chroot . /shim --stay listen /jail/$1
' guest "$1"
"#;

const RUN: &str = "#!/bin/sh\nexec cat\n";
const HANDLER: &str = r#"
import os, random, time
print("loading")
time.sleep(0.5)
loaded = [time.monotonic_ns(), 0]

def handler(payload, context):
    loaded[1] += 1
    print("call", loaded[1])
    return {"loaded": loaded[0], "calls": loaded[1], "random": random.random(), "payload": payload,
            "secret": os.environ.get("TOKEN")}
"#;

struct Engine {
    microvms: Arc<Microvms>,
    code: PathBuf,
    guests: PathBuf,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.shutdown().start_kill();
    }
}

fn readable(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

impl Engine {
    fn new(faults: &[Fault]) -> Self {
        Self::with(faults, &[("run", RUN), ("main.py", HANDLER)])
    }

    fn with(faults: &[Fault], files: &[(&str, &str)]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the stand-in's guests need root's namespaces");
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let code = path("code/0123/code");
        fs::create_dir_all(&code).expect("made");
        for (name, content) in files {
            fs::write(code.join(name), content).expect("written");
            readable(&code.join(name), 0o755);
        }
        for name in ["", "code", "code/0123", "code/0123/code"] {
            readable(&path(name), 0o755);
        }
        for path in [path("code"), code.clone()] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("given");
        }
        for name in ["kernel", "initramfs", "rootfs"] {
            fs::write(path(name), name).expect("written");
        }
        fs::write(path("shim"), flux_shim_binary::SHIM).expect("written");
        readable(&path("shim"), 0o755);
        fs::write(path("guest"), GUEST.replace("SHIM", &path("shim").to_string_lossy())).expect("written");
        readable(&path("guest"), 0o755);
        let guest = path("guest");
        let program = StandIn::make(dir.path(), faults, guest.to_str()).program;
        let mut settings = Settings::new(program, path("kernel"), path("initramfs"), path("rootfs"), path("work"));
        settings.boots_within = Duration::from_secs(if faults.is_empty() { 20 } else { 1 });
        let guests = settings.directory.join("guests/firecracker");
        let config = Box::new(DriverConfig { settings, code_dir: path("code") });
        let tasks = Tasks::new(Shutdown::new());
        let (microvms, follow) =
            Microvms::new(MicrovmSource::Direct { program: PROGRAM.into(), config }, tasks.clone());
        let kill = tasks.shutdown().kill_token();
        tasks.spawn("driver", async move {
            tokio::select! {
                () = follow => {}
                () = kill.cancelled() => {}
            }
        });
        Self { microvms: Arc::new(microvms), code, guests, tasks, _dir: dir }
    }

    async fn offered() -> Self {
        Self::new(&[]).until_offered().await
    }

    async fn until_offered(self) -> Self {
        let engine = self;
        let mut offer = engine.microvms.offer();
        let offered = tokio::time::timeout(SOON, offer.wait_for(Result::is_ok)).await;
        assert!(offered.is_ok(), "not offered: {:?}", engine.microvms.offer().borrow());
        engine
    }

    fn start(&self, program: &str, args: &[&str]) -> Start {
        let request = SpawnRequest {
            program: program.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("OWN".to_owned(), "value".to_owned())],
            code_dir: self.code.clone(),
            limits: Limits { memory_bytes: 64 << 20, open_files: 256, cpu_millicores: 500, ..Limits::default() },
            network: Network::None,
            ..SpawnRequest::default()
        };
        let function = FunctionName::parse("f").expect("a name");
        let code = Some(self.code.clone());
        Start { function, version: 1, request, image: None, code, loads: Vec::new(), has_secrets: false }
    }

    async fn running(&self, start: Start, input: &[u8], is_worker: bool) -> Result<Running, LaunchError> {
        let (stdin, mut feed) = std::io::pipe().expect("a pipe");
        feed.write_all(input).expect("small");
        drop(feed);
        let (stdout, their_stdout) = std::io::pipe().expect("a pipe");
        let (stderr, their_stderr) = std::io::pipe().expect("a pipe");
        let (channel, theirs) = UnixStream::pair().expect("a pair");
        channel.set_read_timeout(Some(SOON)).expect("a timeout");
        let stdio = [OwnedFd::from(stdin), their_stdout.into(), their_stderr.into()];
        let process = self.microvms.start(start, stdio, is_worker.then(|| theirs.into())).await?;
        Ok(Running { process, stdout: OwnedFd::from(stdout).into(), stderr: OwnedFd::from(stderr).into(), channel })
    }

    async fn run(&self, start: Start, input: &[u8]) -> Ran {
        self.running(start, input, false).await.unwrap_or_else(|error| panic!("{error}")).end().await
    }

    /// A Python worker as the warm pool starts one, with what it is told first written to its channel.
    async fn python(&self) -> Running {
        self.python_with(|_| {}).await
    }

    async fn python_with(&self, change: impl FnOnce(&mut Start)) -> Running {
        let python = bootstrap::of(Runtime::Python).expect("it has workers");
        let mut start = self.start("python3", python.arguments);
        let load = Load { files: vec!["main.py".to_owned()], function: Some("handler".to_owned()), fresh: false };
        for said in [ToWorker::Program(python.program), ToWorker::Load(&load)] {
            said.encode_head(&mut start.loads);
        }
        change(&mut start);
        let loads = start.loads.clone();
        let mut running = self.running(start, b"", true).await.unwrap_or_else(|error| panic!("{error}"));
        running.channel.write_all(&loads).expect("it listens");
        running
    }

    async fn nothing_is_left(&self) {
        eventually(SOON, "no guest to be left", || async {
            fs::read_dir(&self.guests).is_ok_and(|mut guests| guests.next().is_none())
        })
        .await;
    }
}

struct Running {
    process: Box<dyn Process>,
    stdout: fs::File,
    stderr: fs::File,
    channel: UnixStream,
}

#[derive(Debug)]
struct Ran {
    stdout: String,
    stderr: String,
    report: EndedReport,
}

fn field<'a>(json: &'a str, name: &str) -> &'a str {
    let (_, rest) = json.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {json}"));
    rest.trim_start().split([',', '}']).next().unwrap_or_default().trim_matches('"')
}

impl Running {
    async fn end(mut self) -> Ran {
        let ended = tokio::time::timeout(SOON, self.process.wait()).await.expect("an end in time");
        let Ended::Finished(report) = ended else { panic!("{ended:?}") };
        let read = |mut file: fs::File| {
            let mut text = String::new();
            file.read_to_string(&mut text).expect("text");
            text
        };
        Ran { stdout: read(self.stdout), stderr: read(self.stderr), report }
    }

    /// Calls its handler; what it said, up to the answer.
    fn call(&mut self, payload: &str) -> String {
        let call = Call {
            execution_id: "exc-1".to_owned(),
            function: "f".to_owned(),
            version: 1,
            attempt: 1,
            deadline_ms: None,
            args: Vec::new(),
            traceparent: String::new(),
        };
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let mut bytes = Vec::new();
        ToWorker::Invoke(&call, &payload).encode_head(&mut bytes);
        bytes.extend_from_slice(&payload);
        self.channel.write_all(&bytes).expect("it listens");
        let mut decoder = Decoder::default();
        loop {
            match decoder.next_frame().expect("a frame") {
                Some(FromWorker::Result(_, json)) => return String::from_utf8_lossy(&json).into_owned(),
                Some(FromWorker::Hello { .. } | FromWorker::Ready { .. }) => {}
                Some(other) => panic!("{other:?}"),
                None => {
                    let mut piece = [0; 4096];
                    let count = self.channel.read(&mut piece).expect("an answer in time");
                    assert!(count > 0, "it ended");
                    decoder.buffer().extend_from_slice(&piece[..count]);
                }
            }
        }
    }

    /// What it printed so far: it is there once an answer is.
    fn printed(&self) -> String {
        let mut file = &self.stdout;
        let mut piece = [0; 4096];
        let count = file.read(&mut piece).expect("read");
        String::from_utf8_lossy(&piece[..count]).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_in_a_guest_is_as_any_other() {
    let engine = Engine::offered().await;
    let ran = engine
        .run(engine.start("/bin/sh", &["-c", "cat; echo wrong >&2; echo $OWN; pwd; id -u; exit 7"]), b"in\n")
        .await;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("in\nvalue\n/code\n1000\n", "wrong\n"), "{ran:?}");
    assert_eq!(ran.report.status, ExitStatus::Exited(7));
    let ran = engine.run(engine.start("./run", &[]), b"through").await;
    assert_eq!((ran.stdout.as_str(), ran.report.status), ("through", ExitStatus::Exited(0)));
    match engine.running(engine.start("./nowhere", &[]), b"", false).await {
        Err(LaunchError::Refused(refused)) => assert!(refused.message.contains("nowhere"), "{}", refused.message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it runs"),
    }
    let stubborn = engine.start("/bin/sh", &["-c", "trap '' TERM; setsid sleep 300 & echo ready; sleep 300"]);
    let running = engine.running(stubborn, b"", false).await.expect("it runs");
    assert_eq!(running.printed(), "ready\n");
    running.process.kill(15);
    running.process.kill(9);
    assert_eq!(running.end().await.report.status, ExitStatus::Signaled(9));
    let dropped = engine.running(engine.start("/bin/sh", &["-c", "sleep 300"]), b"", false).await.expect("it runs");
    drop(dropped);
    engine.nothing_is_left().await;
}

/// Of the suite of all tiers, what is not the guest's kernel's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn microvms_behave_as_other_tiers_do() {
    let engine = Engine::with(&[], &[("run", RUN)]).until_offered().await;
    sandboxes::behaves(&sandboxes::Engine::of(engine.microvms.clone(), engine.code.clone())).await;
    engine.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_snapshot_and_in_no_file() {
    const SECRET: &str = "hush-2f1d9c";
    let engine = Engine::offered().await;
    let work = engine.guests.ancestors().nth(2).expect("above").to_owned();
    let with_secret = |start: &mut Start| {
        start.request.env.push(("TOKEN".to_owned(), SECRET.to_owned()));
        start.has_secrets = true;
    };
    let (mut first, mut second) = (engine.python_with(with_secret).await, engine.python_with(with_secret).await);
    for worker in [&mut first, &mut second] {
        assert_eq!(field(&worker.call("1"), "secret"), SECRET);
        assert_eq!(worker.printed(), "loading\ncall 1\n", "each has loaded its handler itself");
    }
    let snapshots = |work: &Path| fs::read_dir(work.join("snapshots")).map_or(0, Iterator::count);
    assert_eq!(snapshots(&work), 0);
    assert_eq!(files_with(&work, SECRET.as_bytes()), [""; 0].map(PathBuf::from));
    // One without is a snapshot: it would have been seen.
    let mut third = engine.python().await;
    assert_eq!(field(&third.call("1"), "secret"), "null");
    assert!(snapshots(&work) > 0, "{}", work.display());
}

/// Files below a folder that have these bytes in them.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file() && fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|at| at == bytes)) {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_functions_code_is_another_image() {
    let engine = Engine::offered().await;
    // As the agent's cache has it: the digest, and in it a folder that is always called `code`.
    let other = engine.code.ancestors().nth(2).expect("above").join("4567/code");
    fs::create_dir_all(&other).expect("made");
    fs::write(other.join("run"), "#!/bin/sh\necho other\n").expect("written");
    readable(&other.join("run"), 0o755);
    std::os::unix::fs::chown(&other, Some(65534), Some(65534)).expect("given");
    assert_eq!(engine.run(engine.start("./run", &[]), b"mine").await.stdout, "mine");
    let start = Start { code: Some(other), ..engine.start("./run", &[]) };
    assert_eq!(engine.run(start, b"").await.stdout, "other\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_loaded_once_and_cloned() {
    let engine = Engine::offered().await;
    let mut first = engine.python().await;
    let answer = first.call("1");
    assert_eq!((field(&answer, "calls"), field(&answer, "payload")), ("1", "1"));
    assert_eq!(first.printed(), "loading\ncall 1\n", "what is printed while it is loaded is not lost");
    assert_eq!(field(&first.call("2"), "calls"), "2");
    assert!(first.process.is_alone().await);

    // The stand-in brings its guests to where the snapshot was by telling them the same again.
    let (mut second, mut third) = (engine.python().await, engine.python().await);
    let answers = [second.call("{}"), third.call("{}")];
    for answer in &answers {
        assert_eq!(field(answer, "calls"), "1", "no clone has served before: {answer}");
    }
    assert_eq!(second.printed(), "call 1\n", "it was loaded before it was cloned");
    let randoms = [field(&answers[0], "random"), field(&answers[1], "random"), field(&answer, "random")];
    assert!(randoms[0] != randoms[1] && randoms[1] != randoms[2] && randoms[0] != randoms[2], "{randoms:?}");
    // A closed channel ends it, as any worker.
    second.channel.shutdown(std::net::Shutdown::Both).expect("closed");
    assert_eq!(second.end().await.report.status, ExitStatus::Exited(0));
    // The channel's end comes as a warm worker's does. A guest that is killed takes nothing else along.
    drop((first, third));
    engine.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_a_guest_that_answers_does_not_offer_it_and_says_why() {
    let engine = Engine::new(&[Fault::Deaf]);
    let mut offer = engine.microvms.offer();
    let why =
        tokio::time::timeout(SOON, offer.wait_for(|offer| offer.as_ref().is_err_and(|why| why.contains("listened"))));
    let why = why.await.expect("it is said in time").expect("there is a tier").clone().map(drop);
    let why = why.expect_err("it is not offered");
    assert!(why.starts_with("nothing listened at port 7227 of the guest within 1s: "), "{why}");
    let refused = engine.running(engine.start("./run", &[]), b"", false).await.err().map(|error| error.to_string());
    assert_eq!(refused.as_deref(), Some("no guest has been booted yet"));
    engine.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firecracker_that_is_killed_while_it_serves_loses_its_process_alone() {
    let engine = Engine::offered().await;
    let started = engine.running(engine.start("/bin/sh", &["-c", "echo ready; sleep 300"]), b"", false).await;
    let mut lost = started.expect("it runs");
    assert_eq!(lost.printed(), "ready\n");
    let guest = fs::read_dir(&engine.guests).expect("read").next().expect("a guest").expect("read").path();
    let owner = fs::read_to_string(guest.join("owner")).expect("noted");
    let pid: i32 = owner.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a number");
    let mut other = engine.python().await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
    let ended = tokio::time::timeout(SOON, lost.process.wait()).await.expect("an end in time");
    assert!(matches!(ended, Ended::LauncherLost), "it is lost, and begins again elsewhere: {ended:?}");
    assert_eq!(field(&other.call("1"), "calls"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_is_killed_is_followed_by_another_that_cleans_up() {
    let engine = Engine::offered().await;
    let mut lost = engine.running(engine.start("/bin/sh", &["-c", "sleep 300"]), b"", false).await.expect("it runs");
    let mark = engine.guests.to_string_lossy().into_owned();
    let work = mark.trim_end_matches("/guests/firecracker").to_owned();
    let drivers: Vec<_> = flux_testkit::processes_matching("__microvms");
    let driver = drivers.into_iter().find(|process| process.command.contains(&work)).expect("a driver");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(driver.pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
    let mut offer = engine.microvms.offer();
    let gone = tokio::time::timeout(SOON, offer.wait_for(Result::is_err)).await.is_ok();
    assert!(gone, "its end is noticed");
    let ended = tokio::time::timeout(SOON, lost.process.wait()).await.expect("an end in time");
    assert!(matches!(ended, Ended::LauncherLost), "{ended:?}");
    let back = tokio::time::timeout(SOON, offer.wait_for(Result::is_ok)).await.is_ok();
    assert!(back, "there is another one");
    engine.nothing_is_left().await;
    let ran = engine.run(engine.start("./run", &[]), b"again").await;
    assert_eq!(ran.stdout, "again");
}
