//! Programs that end with us, however we end: each below a `yardstick guard`, which notices when its standard input is
//! closed.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::yardstick::NAME;
use crate::error::CliError;

const LISTENS_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// A program that runs until this is dropped.
#[derive(Debug)]
pub(super) struct Guarded {
    child: Child,
    log: PathBuf,
    what: String,
}

impl Guarded {
    /// Starts `command` below `guard`; what it prints goes to `log`.
    pub(super) fn start(guard: &Path, command: &Command, log: PathBuf) -> Result<Self, CliError> {
        let program = command.get_program().to_owned();
        let what = Path::new(&program).file_name().unwrap_or(&program).to_string_lossy().into_owned();
        let cannot = |source| CliError::local(format!("{what} cannot be started"), source);
        let output = File::create(&log).map_err(cannot)?;
        let mut guarded = Command::new(guard);
        guarded.args([OsString::from("guard"), "--".into(), program]).args(command.get_args());
        guarded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(directory) = command.get_current_dir() {
            guarded.current_dir(directory);
        }
        guarded.stdin(Stdio::piped()).stdout(output.try_clone().map_err(cannot)?).stderr(output);
        let child = guarded.spawn().map_err(cannot)?;
        Ok(Self { child, log, what })
    }

    /// The guard's; the program is its only child.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// It did not do what it was started for.
    pub(super) fn failed(&self) -> CliError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        CliError::Problem { what: format!("{} did not come up:\n{}", self.what, log.trim_end()), remedy: None }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A yardstick that serves: it ends by itself when its standard input is closed.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) url: String,
    child: Child,
}

impl Server {
    pub(super) fn start(program: &Path, args: &[&str]) -> Result<Self, CliError> {
        #[derive(serde::Deserialize)]
        struct Listening {
            listening: String,
        }
        let cannot = |source| CliError::local(format!("{NAME} {} cannot be started", args[0]), source);
        let mut command = Command::new(program);
        command.args(args).arg("--until-eof").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(cannot)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(cannot)?;
        }
        match serde_json::from_str::<Listening>(&line) {
            Ok(Listening { listening }) => Ok(Self { url: format!("http://{listening}/"), child }),
            Err(error) => Err(cannot(error.into())),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// `127.0.0.1:PORT` that nobody listens on now.
pub(super) fn free_address() -> Result<String, CliError> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    address.map(|address| address.to_string()).map_err(|source| CliError::local("no port is free", source))
}

/// Until something listens on `address`, which is what `process` was started for.
pub(super) async fn until_listening(process: &mut Guarded, address: &str) -> Result<(), CliError> {
    let begun = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        if process.has_ended() || begun.elapsed() > LISTENS_WITHIN {
            return Err(process.failed());
        }
        sleep(POLL).await;
    }
    Ok(())
}
