//! Which interpreters functions can have here: found by running them, as a function would, not by looking for files.
//!
//! A path that exists says little: it may be a version manager's shim that needs the home directory of a user whom functions
//! are not, or lie where the sandbox does not look. So each candidate is started by the launcher in a slot, and asked for its version.

use std::{os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use flux_launcher::{
    Capabilities,
    wire::{Limits, Network, SpawnRequest},
};
use flux_protocol::{agent::RuntimeGiven, function::Runtime};
use nix::fcntl::OFlag;
use tokio::sync::watch;

use crate::{
    executor::Executor,
    lambda,
    launch::{Ended, ExitStatus},
};

/// Where distributions and people put them. What only a search path leads to is not what every user finds.
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];
/// An interpreter that does not start in this time is of no use for calls either.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Before one that did not answer is tried again; doubling. Each try starts a process.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Of a version's text.
const VERSION_BYTES: usize = 64;
/// What is tried runs with this as its code: a folder that is on every machine, and everyone's to read.
const FOLDER: &str = "/usr";

/// An interpreter that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interpreter {
    pub(crate) runtime: Runtime,
    pub(crate) program: String,
    pub(crate) version: String,
}

/// The runtimes that this agent gives, beside native ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runtimes(Vec<Interpreter>);

impl Runtimes {
    /// Tries everything that may be there, at once.
    pub async fn find(executor: Arc<dyn Executor>) -> Self {
        Search::new(executor).next().await.1
    }

    /// The interpreter of a runtime; `None` also for native functions, which need none.
    pub(crate) fn of(&self, runtime: Runtime) -> Option<&Interpreter> {
        self.0.iter().find(|interpreter| interpreter.runtime == runtime)
    }

    /// Whether functions of this runtime can run here.
    pub(crate) fn gives(&self, runtime: Runtime) -> bool {
        runtime == Runtime::Native || self.of(runtime).is_some()
    }

    /// For the heartbeat.
    pub(crate) fn given(&self) -> Vec<RuntimeGiven> {
        let given = |of: &Interpreter| RuntimeGiven { name: of.runtime.to_string(), version: of.version.clone() };
        self.0.iter().map(given).collect()
    }
}

/// Looks for interpreters, and again for those that are there and did not answer: the launcher may have ended meanwhile, or
/// the machine been too busy. What is not there is not looked for again.
pub(crate) struct Search {
    executor: Arc<dyn Executor>,
    launchers: watch::Receiver<Option<Arc<Capabilities>>>,
    found: Runtimes,
    open: Vec<Runtime>,
    looks: u32,
}

impl Search {
    pub(crate) fn new(executor: Arc<dyn Executor>) -> Self {
        let launchers = executor.capabilities();
        let open = vec![Runtime::Python, Runtime::Node, Runtime::Bash];
        // Their packages bring all that they need, and the agent what they speak to.
        let (runtime, program) = (Runtime::Lambda, "bootstrap".to_owned());
        let lambda = Interpreter { runtime, program, version: lambda::VERSION.to_owned() };
        Self { executor, launchers, found: Runtimes(vec![lambda]), open, looks: 0 }
    }

    /// What the first look finds; later, all that is found once that is more. Never ends when nothing more can be.
    pub(crate) async fn next(mut self) -> (Self, Runtimes) {
        loop {
            let is_first = self.looks == 0;
            if !is_first {
                self.until_worth_it().await;
            }
            let more = self.look().await;
            if is_first || more {
                let found = self.found.clone();
                return (self, found);
            }
        }
    }

    /// Whether something was found.
    async fn look(&mut self) -> bool {
        self.looks = self.looks.saturating_add(1);
        self.launchers.mark_unchanged();
        let tried = self.open.drain(..).map(|runtime| {
            let executor = &*self.executor;
            async move { (runtime, first_that_answers(executor, runtime).await) }
        });
        let mut more = false;
        for (runtime, tried) in futures::future::join_all(tried.collect::<Vec<_>>()).await {
            match tried {
                Tried::Answered(interpreter) => {
                    let Interpreter { runtime, program, version } = &interpreter;
                    tracing::info!(%runtime, program, version, "a runtime was found");
                    self.found.0.push(interpreter);
                    more = true;
                }
                Tried::Failed => self.open.push(runtime),
                Tried::Absent => {}
            }
        }
        more
    }

    /// There is a launcher that was not there at the last look, or some time went by.
    async fn until_worth_it(&mut self) {
        if self.open.is_empty() {
            return std::future::pending().await;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.looks.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = async {
                loop {
                    self.launchers.changed().await?;
                    if self.launchers.borrow_and_update().is_some() {
                        return Ok::<(), watch::error::RecvError>(());
                    }
                }
            } => {}
        }
    }
}

/// What came of trying every place where an interpreter may be.
enum Tried {
    Answered(Interpreter),
    /// One is there, and it did not answer.
    Failed,
    Absent,
}

async fn first_that_answers(executor: &dyn Executor, runtime: Runtime) -> Tried {
    let (name, args): (_, &[&str]) = match runtime {
        Runtime::Python => ("python3", &["-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]),
        Runtime::Node => ("node", &["-p", "process.versions.node"]),
        Runtime::Bash => ("bash", &["-c", "echo ${BASH_VERSINFO[0]}.${BASH_VERSINFO[1]}.${BASH_VERSINFO[2]}"]),
        Runtime::Native | Runtime::Lambda => return Tried::Absent,
    };
    let mut tried = Tried::Absent;
    for directory in DIRECTORIES {
        let path = Path::new(directory).join(name);
        if !path.exists() {
            continue;
        }
        let program = path.to_string_lossy().into_owned();
        match tokio::time::timeout(ANSWERS_WITHIN, version_of(executor, &program, args)).await {
            Ok(Ok(version)) => return Tried::Answered(Interpreter { runtime, program, version }),
            Ok(Err(problem)) => tracing::warn!(%runtime, program, problem, "an interpreter that functions cannot use"),
            Err(_) => tracing::warn!(%runtime, program, "an interpreter that did not answer in time"),
        }
        tried = Tried::Failed;
    }
    tried
}

async fn version_of(executor: &dyn Executor, program: &str, args: &[&str]) -> Result<String, String> {
    let failed = |error: &dyn std::error::Error| crate::error_chain(error);
    let null = || std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(&error))?;
    let stdio = [null().map_err(|error| failed(&error))?, write, null().map_err(|error| failed(&error))?];
    // Where isolation is required, one network may be refused and the other not.
    let capabilities = executor.capabilities();
    let refuses_host = capabilities.borrow().as_ref().is_some_and(|c| c.refuses.contains(&Network::Host));
    let request = SpawnRequest {
        network: if refuses_host { Network::None } else { Network::Host },
        slot_key: "flux runtimes".to_owned(),
        program: program.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("PATH".to_owned(), DIRECTORIES.join(":")), ("LANG".to_owned(), "C.UTF-8".to_owned())],
        code_dir: FOLDER.into(),
        limits: Limits { pids_max: 64, ..Limits::default() },
        ..SpawnRequest::default()
    };
    let mut process = executor.spawn(request, stdio).await.map_err(|error| failed(&error))?;
    match process.wait().await {
        Ended::Finished(report) if report.status == ExitStatus::Exited(0) => {}
        ended => return Err(format!("it ended otherwise than it should: {ended:?}")),
    }
    // Its end of the pipe is closed: what it said is there, or nothing is.
    let mut said = [0; VERSION_BYTES];
    let count = nix::unistd::read(&read, &mut said).map_err(|error| failed(&error))?;
    let version = String::from_utf8_lossy(&said[..count]).trim().to_owned();
    if version.starts_with(|c: char| c.is_ascii_digit()) { Ok(version) } else { Err(format!("it said `{version}`")) }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, fs::File, io::Write as _};

    use async_trait::async_trait;
    use futures::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;
    use crate::{
        executor::Process,
        launch::{EndedReport, LaunchError},
    };

    /// Says yes or no to one try of bash after another, and yes to everything else.
    struct Answers {
        of_bash: Mutex<VecDeque<bool>>,
        capabilities: watch::Sender<Option<Arc<Capabilities>>>,
    }

    struct Over;

    #[async_trait]
    impl Process for Over {
        fn pid(&self) -> u32 {
            0
        }

        fn started_at_us(&self) -> u64 {
            0
        }

        fn kill(&self, _signal: i32) {}

        async fn is_alone(&mut self) -> bool {
            true
        }

        async fn wait(&mut self) -> Ended {
            let status = ExitStatus::Exited(0);
            let (oom_killed, cpu_us, memory_peak_bytes, ended_at_us) = (false, 0, 0, 0);
            Ended::Finished(EndedReport { id: 1, status, oom_killed, cpu_us, memory_peak_bytes, ended_at_us })
        }
    }

    #[async_trait]
    impl Executor for Answers {
        async fn spawn(&self, request: SpawnRequest, stdio: [OwnedFd; 3]) -> Result<Box<dyn Process>, LaunchError> {
            if request.program.ends_with("/bash") && !self.of_bash.lock().pop_front().unwrap_or(true) {
                return Err(LaunchError::LauncherLost);
            }
            let [_, stdout, _] = stdio;
            File::from(stdout).write_all(b"5.2.0\n").expect("written");
            Ok(Box::new(Over))
        }

        async fn spawn_worker(
            &self,
            _request: SpawnRequest,
            _stdio: [OwnedFd; 3],
            _channel: OwnedFd,
        ) -> Result<Box<dyn Process>, LaunchError> {
            Err(LaunchError::LauncherLost)
        }

        fn capabilities(&self) -> watch::Receiver<Option<Arc<Capabilities>>> {
            self.capabilities.subscribe()
        }
    }

    /// Each look tries every place where bash is.
    fn looks_that_fail(count: usize) -> Arc<Answers> {
        let places = DIRECTORIES.iter().filter(|directory| Path::new(directory).join("bash").exists()).count();
        assert!(places > 0, "this machine has bash");
        Arc::new(Answers {
            of_bash: Mutex::new(vec![false; places * count].into()),
            capabilities: watch::Sender::new(Some(Arc::default())),
        })
    }

    #[tokio::test]
    async fn one_that_did_not_answer_is_found_with_the_next_launcher() {
        let answers = looks_that_fail(2);
        let (search, found) = Search::new(Arc::clone(&answers) as Arc<dyn Executor>).next().await;
        assert_eq!(found.of(Runtime::Bash), None);
        let mut later = Box::pin(search.next());
        assert!((&mut later).now_or_never().is_none(), "it waits");
        for (launcher, left) in [(None, true), (Some(Arc::default()), false)] {
            answers.capabilities.send_replace(launcher);
            assert!((&mut later).now_or_never().is_none(), "not yet");
            assert_eq!(!answers.of_bash.lock().is_empty(), left, "looked only where there was a launcher");
        }
        answers.capabilities.send_replace(Some(Arc::default()));
        let (search, found) = later.await;
        assert_eq!(found.of(Runtime::Bash).map(|of| of.version.as_str()), Some("5.2.0"));
        answers.capabilities.send_replace(Some(Arc::default()));
        assert!(search.next().now_or_never().is_none(), "nothing more can be found");
    }

    #[tokio::test]
    async fn one_that_did_not_answer_is_tried_again_after_a_while() {
        let (search, found) = Search::new(looks_that_fail(1)).next().await;
        assert_eq!(found.of(Runtime::Bash), None);
        let (_, found) = search.next().await;
        assert!(found.of(Runtime::Bash).is_some());
    }
}
