//! Which interpreters functions can have here: found by running them, as a function would, not by looking for files.
//!
//! A path that exists says little: it may be a version manager's shim that needs the home directory of a user whom functions
//! are not, or lie where the sandbox does not look. So each candidate is started by the launcher in a slot, and asked for its version.

use std::{os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use flux_launcher::wire::{Limits, Network, SpawnRequest};
use flux_protocol::{agent::RuntimeGiven, function::Runtime};
use nix::fcntl::OFlag;

use crate::{
    executor::Executor,
    launch::{Ended, ExitStatus},
};

/// Where distributions and people put them. What only a search path leads to is not what every user finds.
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];
/// An interpreter that does not start in this time is of no use for calls either.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
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
        let tried =
            [Runtime::Python, Runtime::Node, Runtime::Bash].map(|runtime| first_that_answers(&*executor, runtime));
        let found = Self(futures::future::join_all(tried).await.into_iter().flatten().collect());
        for interpreter in &found.0 {
            let Interpreter { runtime, program, version } = interpreter;
            tracing::info!(%runtime, program, version, "a runtime was found");
        }
        found
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

async fn first_that_answers(executor: &dyn Executor, runtime: Runtime) -> Option<Interpreter> {
    let (name, args): (_, &[&str]) = match runtime {
        Runtime::Python => ("python3", &["-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]),
        Runtime::Node => ("node", &["-p", "process.versions.node"]),
        Runtime::Bash => ("bash", &["-c", "echo ${BASH_VERSINFO[0]}.${BASH_VERSINFO[1]}.${BASH_VERSINFO[2]}"]),
        Runtime::Native => return None,
    };
    for directory in DIRECTORIES {
        let path = Path::new(directory).join(name);
        if !path.exists() {
            continue;
        }
        let program = path.to_string_lossy().into_owned();
        match tokio::time::timeout(ANSWERS_WITHIN, version_of(executor, &program, args)).await {
            Ok(Ok(version)) => return Some(Interpreter { runtime, program, version }),
            Ok(Err(problem)) => tracing::warn!(%runtime, program, problem, "an interpreter that functions cannot use"),
            Err(_) => tracing::warn!(%runtime, program, "an interpreter that did not answer in time"),
        }
    }
    None
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
