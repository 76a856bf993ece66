//! What every tier of isolation must do: one suite, run on each. (Of microVMs in two parts: how a process behaves, with a stand-in for
//! Firecracker, in `microvms.rs`; what holds it in, in a real guest, in `agent/guest-image`.)

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flux_agent::{
    ContainerSource, Containers, Executor, LauncherExecutor, Offer, Process, Sandbox, Start, Tier,
    launch::{Ended, EndedReport, ExitStatus, LaunchError, LauncherPool, Source},
};
use flux_containers::DriverConfig;
use flux_launcher::{
    LauncherConfig,
    wire::{Limits, Network, SpawnRequest},
};
use flux_protocol::FunctionName;
use flux_runtime::{Shutdown, Tasks, settings::Pull};
use flux_testkit::{Dockerd, eventually};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_flux-agent");
const SOON: Duration = Duration::from_secs(20);
/// Says what it can do.
const HELD_IN: &str = include_str!("held_in.sh");

/// A sandbox of one tier.
pub(crate) struct Engine {
    sandbox: Arc<dyn Sandbox>,
    /// Where it takes code from.
    pub(crate) code: PathBuf,
    image: Option<String>,
    tasks: Tasks,
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.tasks.shutdown().start_kill();
    }
}

/// A directory of code, and one for whoever starts processes.
fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, work) = (dir.path().join("code/f"), dir.path().join("work"));
    for folder in [&code, &work] {
        std::fs::create_dir_all(folder).expect("made");
    }
    std::fs::write(code.join("run"), "#!/bin/sh\nexec cat\n").expect("written");
    for path in [dir.path(), &dir.path().join("code"), &code, &code.join("run")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("readable");
    }
    (dir, code, work)
}

impl Engine {
    async fn process() -> Self {
        Self::process_with(|_| {}).await
    }

    pub(crate) async fn process_with(change: impl FnOnce(&mut LauncherConfig)) -> Self {
        let (dir, code, work) = folders();
        let mut config = LauncherConfig::new(work, 8);
        change(&mut config);
        let source = Source::Direct { program: PROGRAM.into(), config };
        let (pool, driver) = LauncherPool::connect(source).await.expect("a launcher");
        let (executor, follow) = LauncherExecutor::new(pool);
        let tasks = Tasks::new(Shutdown::new());
        for (name, work) in [("launcher", driver), ("capabilities", Box::pin(follow) as _)] {
            let kill = tasks.shutdown().kill_token();
            tasks.spawn(name, async move {
                tokio::select! {
                    () = work => {}
                    () = kill.cancelled() => {}
                }
            });
        }
        let executor: Arc<dyn Executor> = Arc::new(executor);
        Self { sandbox: Arc::new(executor), code, image: None, tasks, _dir: Some(dir) }
    }

    async fn container(docker: &Dockerd) -> Self {
        Self::container_with(docker, |_| {}).await.0
    }

    /// And what is offered.
    pub(crate) async fn container_with(docker: &Dockerd, change: impl FnOnce(&mut DriverConfig)) -> (Self, Arc<Offer>) {
        Self::container_by(PROGRAM.as_ref(), docker, change).await
    }

    /// With this driver.
    pub(crate) async fn container_by(
        program: &Path,
        docker: &Dockerd,
        change: impl FnOnce(&mut DriverConfig),
    ) -> (Self, Arc<Offer>) {
        let (dir, code, work) = folders();
        let tasks = Tasks::new(Shutdown::new());
        let mut config = driver_config(docker, &work, code.parent().expect("a parent"));
        change(&mut config);
        let containers = containers_by(program, config, &tasks);
        let offer = until_offered(&containers).await;
        let image = Some(Dockerd::IMAGE.to_owned());
        (Self { sandbox: Arc::new(containers), code, image, tasks, _dir: Some(dir) }, offer)
    }

    /// One that is kept elsewhere.
    pub(crate) fn of(sandbox: Arc<dyn Sandbox>, code: PathBuf) -> Self {
        Self { sandbox, code, image: None, tasks: Tasks::new(Shutdown::new()), _dir: None }
    }

    pub(crate) fn start(&self, args: &[&str]) -> Start {
        let request = SpawnRequest {
            slot_key: "f@1".to_owned(),
            program: "/bin/sh".to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![("OWN".to_owned(), "value".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            code_dir: self.code.clone(),
            limits: Limits { memory_bytes: 64 << 20, pids_max: 64, open_files: 256, ..Limits::default() },
            network: Network::None,
            ..SpawnRequest::default()
        };
        let function = FunctionName::parse("f").expect("a name");
        let code = Some(self.code.clone());
        Start { function, version: 1, request, image: self.image.clone(), code, loads: Vec::new(), has_secrets: false }
    }

    async fn run(&self, script: &str, input: &[u8]) -> Ran {
        self.run_as(self.start(&["-c", script]), input).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    pub(crate) async fn run_as(&self, start: Start, input: &[u8]) -> Result<Ran, LaunchError> {
        let running = self.running(start, input, false).await?;
        Ok(running.end().await)
    }

    pub(crate) async fn running(&self, start: Start, input: &[u8], worker: bool) -> Result<Running, LaunchError> {
        let (stdin, mut feed) = std::io::pipe().expect("a pipe");
        feed.write_all(input).expect("small");
        drop(feed);
        let (stdout, their_stdout) = std::io::pipe().expect("a pipe");
        let (stderr, their_stderr) = std::io::pipe().expect("a pipe");
        let (channel, theirs) = UnixStream::pair().expect("a pair");
        channel.set_read_timeout(Some(SOON)).expect("a timeout");
        let theirs = worker.then(|| OwnedFd::from(theirs));
        let stdio = [OwnedFd::from(stdin), their_stdout.into(), their_stderr.into()];
        for pipe in &stdio[1..] {
            // As the agent's own: the function has another user, and may open them by their path.
            nix::sys::stat::fchmod(pipe, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("changed");
        }
        let process = self.sandbox.start(start, stdio, theirs).await?;
        Ok(Running { process, stdout: OwnedFd::from(stdout).into(), stderr: OwnedFd::from(stderr).into(), channel })
    }
}

pub(crate) struct Running {
    process: Box<dyn Process>,
    stdout: File,
    stderr: File,
    channel: UnixStream,
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    report: EndedReport,
}

impl Running {
    async fn end(mut self) -> Ran {
        let ended = tokio::time::timeout(SOON, self.process.wait()).await.expect("an end in time");
        let Ended::Finished(report) = ended else { panic!("{ended:?}") };
        // Its end was told: everything it wrote is there, and its ends are closed.
        drop(self.process);
        let read = |mut file: File| {
            let mut text = String::new();
            file.read_to_string(&mut text).expect("text");
            text
        };
        let (stdout, stderr) =
            tokio::task::spawn_blocking(move || (read(self.stdout), read(self.stderr))).await.expect("read");
        Ran { stdout, stderr, report }
    }

    /// A line that it prints, while it runs.
    pub(crate) async fn line(&self) -> String {
        let mut file = self.stdout.try_clone().expect("a copy");
        tokio::task::spawn_blocking(move || {
            let (mut line, mut byte) = (Vec::new(), [0]);
            while file.read(&mut byte).expect("read") == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            String::from_utf8(line).expect("text")
        })
        .await
        .expect("read")
    }
}

pub(crate) fn driver_config(docker: &Dockerd, work: &Path, code: &Path) -> DriverConfig {
    DriverConfig {
        work_dir: work.to_owned(),
        socket: docker.socket(),
        pull: Pull::Never,
        code_dir: code.to_owned(),
        user: None,
        tmp_bytes: 1 << 20,
        servers: Vec::new(),
        unknown_servers: Vec::new(),
        isolation_required: false,
    }
}

/// The tier, with a driver of its own.
pub(crate) fn containers(config: DriverConfig, tasks: &Tasks) -> Containers {
    containers_by(PROGRAM.as_ref(), config, tasks)
}

fn containers_by(program: &Path, config: DriverConfig, tasks: &Tasks) -> Containers {
    let source = ContainerSource::Direct { program: program.to_owned(), config };
    let (containers, follow) = Containers::new(source, tasks.clone());
    let kill = tasks.shutdown().kill_token();
    tasks.spawn("container driver", async move {
        tokio::select! {
            () = follow => {}
            () = kill.cancelled() => {}
        }
    });
    containers
}

pub(crate) async fn until_offered(containers: &Containers) -> Arc<Offer> {
    let mut offer = containers.offer();
    match tokio::time::timeout(SOON, offer.wait_for(Result::is_ok)).await {
        Ok(Ok(offer)) => offer.clone().expect("it is offered"),
        _ => panic!("Docker is not offered: {:?}", containers.offer().borrow()),
    }
}

async fn conforms(engine: &Engine) {
    behaves(engine).await;
    it_is_held_in(engine).await;
    its_memory_and_processes_are_limited(engine).await;
}

/// As a process does wherever it runs.
pub(crate) async fn behaves(engine: &Engine) {
    it_is_fed_and_heard(engine).await;
    it_ends_as_it_does(engine).await;
    what_is_not_there_is_the_functions_fault(engine).await;
    a_worker_has_its_channel_and_is_alone_or_not(engine).await;
    a_signal_reaches_its_group_and_a_kill_all_of_it(engine).await;
    dropped_it_is_gone(engine).await;
}

async fn it_is_fed_and_heard(engine: &Engine) {
    let script = "cat; echo wrong >&2; echo $OWN $#; echo again > /dev/stdout; ls";
    let ran = engine.run(script, b"in\n").await;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("in\nvalue 0\nagain\nrun\n", "wrong\n"), "{ran:?}");
    assert!(ran.report.ended_at_us > 0 && ran.report.memory_peak_bytes > 0, "{ran:?}");
    // A program of the code, relative to it.
    let mut start = engine.start(&[]);
    start.request.program = "./run".to_owned();
    let much = "x".repeat(60_000);
    let ran = engine.run_as(start, much.as_bytes()).await.expect("it runs");
    assert_eq!(ran.stdout.len(), much.len());
}

async fn it_ends_as_it_does(engine: &Engine) {
    for (script, status) in [
        ("exit 0", ExitStatus::Exited(0)),
        ("exit 7", ExitStatus::Exited(7)),
        ("kill -SEGV $$", ExitStatus::Signaled(11)),
        ("kill -9 $$", ExitStatus::Signaled(9)),
    ] {
        let ran = engine.run(script, b"").await;
        assert_eq!((ran.report.status, ran.report.oom_killed), (status, false), "{script}: {ran:?}");
    }
    // What it leaves behind holds its pipes, and is waited for by nobody.
    let ran = engine.run("(setsid sleep 300 &) ; echo done", b"").await;
    assert_eq!((ran.stdout.as_str(), ran.report.status), ("done\n", ExitStatus::Exited(0)));
}

async fn what_is_not_there_is_the_functions_fault(engine: &Engine) {
    let mut start = engine.start(&[]);
    start.request.program = "./nowhere".to_owned();
    match engine.run_as(start, b"").await {
        Err(LaunchError::Refused(refused)) if refused.is_functions_fault() => {
            assert!(refused.message.contains("nowhere"), "{}", refused.message);
        }
        other => panic!("{other:?}"),
    }
}

async fn it_is_held_in(engine: &Engine) {
    let mut start = engine.start(&["-c", HELD_IN]);
    // Files in memory count as memory.
    start.request.limits.memory_bytes = 256 << 20;
    let ran = engine.run_as(start, b"").await.expect("it runs");
    let said: Vec<&str> = ran.stdout.lines().collect();
    assert!(said.iter().all(|line| !line.starts_with("wrote")), "{ran:?}");
    assert!(said.contains(&"privileges 1 1") && said.contains(&"tmp") && said.contains(&"full"), "{ran:?}");
    assert!(!said.contains(&"user 0") && said.iter().any(|line| line.starts_with("user ")), "{ran:?}");
    let others: usize = said.iter().find_map(|line| line.strip_prefix("processes ")?.parse().ok()).expect("counted");
    assert!(others <= 6, "it sees processes that are not its own: {ran:?}");
    let devices = said.last().expect("devices");
    assert!(devices.contains("lo") && !devices.contains("eth"), "{ran:?}");
    // What one wrote the next one does not see.
    let ran = engine.run("ls -A /tmp", b"").await;
    assert_eq!(ran.stdout, "", "{ran:?}");
}

async fn its_memory_and_processes_are_limited(engine: &Engine) {
    let mut start = engine.start(&["-c", "x='s = b\"x\" * (512 << 20)'; exec /usr/bin/python3 -I -c \"$x\""]);
    start.request.limits.memory_bytes = 48 << 20;
    let ran = engine.run_as(start, b"").await.expect("it runs");
    assert!(ran.report.oom_killed, "{ran:?}");
    assert_eq!(ran.report.status, ExitStatus::Signaled(9), "{ran:?}");
    let script = "n=0; while [ $n -lt 200 ]; do sleep 300 & n=$((n+1)); done; echo all";
    let ran = engine.run(&format!("( {script} ) 2>/dev/null; echo through"), b"").await;
    assert!(!ran.stdout.contains("all"), "{ran:?}");
}

async fn a_worker_has_its_channel_and_is_alone_or_not(engine: &Engine) {
    let script = r#"
        while read line <&3; do
            echo "printed $line"
            [ "$line" = leave ] && (setsid sleep 300 >/dev/null 2>&1 </dev/null &)
            echo "said $line" >&3
        done
    "#;
    let mut worker = engine.running(engine.start(&["-c", script]), b"", true).await.expect("it runs");
    let mut channel = worker.channel.try_clone().expect("a copy");
    let mut ask = move |line: &str| {
        channel.write_all(format!("{line}\n").as_bytes()).expect("written");
        let mut said = vec![0; line.len() + "said \n".len()];
        channel.read_exact(&mut said).expect("an answer");
        String::from_utf8(said).expect("text")
    };
    for n in 0..20 {
        let said = tokio::task::block_in_place(|| ask(&n.to_string()));
        assert_eq!(said, format!("said {n}\n"));
        // It was printed before it was said: it is there.
        assert_eq!(worker.line().await, format!("printed {n}"));
        assert!(worker.process.is_alone().await, "{n}");
        assert!(worker.process.resident_bytes().is_some_and(|bytes| bytes > 0));
    }
    tokio::task::block_in_place(|| ask("leave"));
    assert!(!worker.process.is_alone().await);
    // Its channel is closed: it ends by itself, and what it left with it.
    worker.channel.shutdown(std::net::Shutdown::Both).expect("closed");
    let ended = tokio::time::timeout(SOON, worker.process.wait()).await.expect("an end in time");
    assert!(matches!(ended, Ended::Finished(report) if report.status == ExitStatus::Exited(0)), "{ended:?}");
}

async fn a_signal_reaches_its_group_and_a_kill_all_of_it(engine: &Engine) {
    let asked = engine.start(&["-c", "trap 'echo asked; exit 5' TERM; echo ready; sleep 300 & wait"]);
    let running = engine.running(asked, b"", false).await.expect("it runs");
    assert_eq!(running.line().await, "ready");
    running.process.kill(15);
    let ran = running.end().await;
    assert_eq!((ran.stdout.as_str(), ran.report.status), ("asked\n", ExitStatus::Exited(5)), "{ran:?}");
    let mark = mark();
    let stubborn = engine.start(&["-c", &format!("trap '' TERM; setsid sleep {mark} & echo ready; sleep {mark}")]);
    let running = engine.running(stubborn, b"", false).await.expect("it runs");
    assert_eq!(running.line().await, "ready");
    running.process.kill(15);
    running.process.kill(9);
    assert_eq!(running.end().await.report.status, ExitStatus::Signaled(9));
    nothing_of(&mark).await;
}

async fn dropped_it_is_gone(engine: &Engine) {
    let mark = mark();
    let start = || engine.start(&["-c", &format!("setsid sleep {mark} & echo ready; sleep {mark}")]);
    let running = engine.running(start(), b"", false).await.expect("it runs");
    assert_eq!(running.line().await, "ready");
    drop(running);
    nothing_of(&mark).await;
    // While it is being started, too.
    let starting = tokio::time::timeout(Duration::from_millis(60), engine.running(start(), b"", false)).await;
    drop(starting);
    nothing_of(&mark).await;
}

/// An argument for `sleep` that nobody else has.
fn mark() -> String {
    format!("86400.{:012}", flux_protocol::time::now().as_micros().unsigned_abs() % 1_000_000_000_000)
}

async fn nothing_of(mark: &str) {
    eventually(SOON, "nothing of it to be left", || {
        std::future::ready(flux_testkit::processes_matching(mark).is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_conform() {
    conforms(&Engine::process().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_conform() {
    let docker = Dockerd::start().await;
    let engine = Engine::container(&docker).await;
    conforms(&engine).await;
    docker.until_empty().await;
}
