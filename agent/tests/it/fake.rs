//! A programmable executor: what a function does is a Rust closure, and everything that can fail is made to.

use std::{
    collections::HashMap,
    fs::File,
    future::Future,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use flux_agent::{
    Code, CodeError, CodeFolder, Executor, Process,
    launch::{Ended, EndedReport, ExitStatus, LaunchError},
};
use flux_launcher::{Capabilities, wire::RefusedReport, wire::SpawnRequest};
use flux_protocol::{Digest, time};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

/// A process as the closure sees it.
pub(crate) struct Call {
    pub(crate) request: SpawnRequest,
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    /// Signals that it was sent; it ends at SIGKILL by itself.
    pub(crate) signals: watch::Receiver<Vec<i32>>,
}

impl Call {
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        self.request.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// How a process ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
    OutOfMemory,
    LauncherLost,
}

/// What the launcher does with a request.
pub(crate) enum Launch {
    Run(BoxFuture<'static, End>),
    Refuse {
        step: &'static str,
        message: &'static str,
    },
    /// There is no launcher.
    Unavailable,
    Lost,
}

type Program = Arc<dyn Fn(Call) -> Launch + Send + Sync>;

#[derive(Default)]
pub(crate) struct FakeExecutor {
    programs: Mutex<HashMap<String, Program>>,
    running: Arc<AtomicU32>,
    most_running: AtomicU32,
    started: AtomicU64,
    capabilities: Option<watch::Sender<Option<Arc<Capabilities>>>>,
}

impl FakeExecutor {
    pub(crate) fn new() -> Arc<Self> {
        let capabilities = Capabilities { net_namespace: true, ..Capabilities::default() };
        Arc::new(Self { capabilities: Some(watch::Sender::new(Some(Arc::new(capabilities)))), ..Self::default() })
    }

    /// What `function` does.
    pub(crate) fn program<F, Fut>(&self, function: &str, run: F)
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = End> + Send + 'static,
    {
        self.launch(function, move |call| Launch::Run(Box::pin(run(call))));
    }

    pub(crate) fn launch(&self, function: &str, launch: impl Fn(Call) -> Launch + Send + Sync + 'static) {
        self.programs.lock().insert(function.to_owned(), Arc::new(launch));
    }

    /// Processes started so far.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Ordering::SeqCst)
    }

    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    pub(crate) fn most_running(&self) -> u32 {
        self.most_running.load(Ordering::SeqCst)
    }

    /// The launcher is gone, or there again.
    pub(crate) fn set_available(&self, available: bool) {
        let capabilities = available.then(|| Arc::new(Capabilities::default()));
        self.capabilities.as_ref().expect("made by new").send_replace(capabilities);
    }
}

#[async_trait]
impl Executor for FakeExecutor {
    async fn spawn(&self, request: SpawnRequest, stdio: [OwnedFd; 3]) -> Result<Box<dyn Process>, LaunchError> {
        let function = request.slot_key.split('@').next().unwrap_or_default().to_owned();
        let program = self.programs.lock().get(&function).cloned();
        let program = program.unwrap_or_else(|| panic!("no program for {function}"));
        let [stdin, stdout, stderr] = stdio.map(File::from);
        let (kills, signals) = watch::channel(Vec::new());
        let work = match program(Call { request, stdin, stdout, stderr, signals }) {
            Launch::Run(work) => work,
            Launch::Lost => return Err(LaunchError::LauncherLost),
            Launch::Unavailable => return Err(LaunchError::Unavailable { waited_ms: 0 }),
            Launch::Refuse { step, message } => {
                let refused = RefusedReport { id: 0, step: step.to_owned(), errno: 2, message: message.to_owned() };
                return Err(LaunchError::Refused(refused));
            }
        };
        self.started.fetch_add(1, Ordering::SeqCst);
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(now, Ordering::SeqCst);
        Ok(Box::new(FakeProcess {
            _counted: Counted(Arc::clone(&self.running)),
            started_at_us: micros(),
            kills,
            work: Some(work),
            ended: None,
        }))
    }

    async fn spawn_worker(
        &self,
        request: SpawnRequest,
        stdio: [OwnedFd; 3],
        _channel: OwnedFd,
    ) -> Result<Box<dyn Process>, LaunchError> {
        self.spawn(request, stdio).await
    }

    fn capabilities(&self) -> watch::Receiver<Option<Arc<Capabilities>>> {
        self.capabilities.as_ref().expect("made by new").subscribe()
    }
}

struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct FakeProcess {
    _counted: Counted,
    started_at_us: u64,
    kills: watch::Sender<Vec<i32>>,
    work: Option<BoxFuture<'static, End>>,
    ended: Option<Ended>,
}

#[async_trait]
impl Process for FakeProcess {
    fn pid(&self) -> u32 {
        1
    }

    fn started_at_us(&self) -> u64 {
        self.started_at_us
    }

    fn kill(&self, signal: i32) {
        self.kills.send_modify(|signals| signals.push(signal));
    }

    async fn is_alone(&mut self) -> bool {
        true
    }

    async fn wait(&mut self) -> Ended {
        if let Some(ended) = self.ended {
            return ended;
        }
        let mut signals = self.kills.subscribe();
        let end = match self.work.as_mut() {
            Some(work) => tokio::select! {
                end = work => end,
                _ = signals.wait_for(|sent| sent.contains(&nix::libc::SIGKILL)) => End::Signal(nix::libc::SIGKILL),
            },
            None => End::LauncherLost,
        };
        self.work = None;
        let report = |status, oom_killed| {
            Ended::Finished(EndedReport {
                id: 0,
                status,
                oom_killed,
                cpu_us: 1_000,
                memory_peak_bytes: 1 << 20,
                ended_at_us: micros(),
            })
        };
        let ended = match end {
            End::Exit(code) => report(ExitStatus::Exited(code), false),
            End::Signal(signal) => report(ExitStatus::Signaled(signal), false),
            End::OutOfMemory => report(ExitStatus::Signaled(nix::libc::SIGKILL), true),
            End::LauncherLost => Ended::LauncherLost,
        };
        self.ended = Some(ended);
        ended
    }
}

fn micros() -> u64 {
    u64::try_from(time::now().as_micros()).expect("after 1970")
}

/// Code that is always there, or never.
pub(crate) struct FakeCode {
    pub(crate) folder: PathBuf,
    pub(crate) error: Option<fn() -> CodeError>,
}

#[async_trait]
impl Code for FakeCode {
    async fn ensure(&self, _digest: &Digest) -> Result<CodeFolder, CodeError> {
        match self.error {
            Some(error) => Err(error()),
            None => Ok(CodeFolder { path: self.folder.clone(), hold: Arc::new(()) }),
        }
    }

    fn cached(&self) -> u32 {
        1
    }
}
