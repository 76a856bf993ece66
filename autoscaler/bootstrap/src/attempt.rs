//! The steps in their order, each until it is done or given up.

use std::{io, path::Path, sync::Arc};

use flux_protocol::limits;
use flux_secrets::Patterns;
use russh::keys::PrivateKey;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    AgentFiles, BootstrapError, Finished, Heartbeats, Machine, Reason, Recipe, Step, StepReport, script,
    ssh::{Door, Failed, Session},
};

/// Makes an agent of a machine.
///
/// May be called again for the same machine, after any error or none: what was done is found done. Dropped, it leaves the machine
/// as it is then.
///
/// # Errors
/// A step was given up. The machine is of no use, and terminating it is the caller's.
pub async fn bootstrap(
    recipe: &Recipe,
    machine: &Machine,
    files: &AgentFiles,
    heartbeats: &dyn Heartbeats,
) -> Result<Finished, BootstrapError> {
    let mut attempt = Attempt { recipe, files, heartbeats, door: None, session: None, done: Vec::new() };
    attempt.learn_host_key(machine).await?;
    attempt.step(Step::Connect).await?;
    let of = recipe.setup_commands.len();
    for number in 1..=of {
        attempt.step(Step::Setup { number, of }).await?;
    }
    for step in [Step::Install, Step::Identity, Step::Start, Step::Heartbeat] {
        attempt.step(step).await?;
    }
    attempt.finish().await
}

struct Attempt<'a> {
    recipe: &'a Recipe,
    files: &'a AgentFiles,
    heartbeats: &'a dyn Heartbeats,
    door: Option<Door<'a>>,
    session: Option<Session>,
    done: Vec<StepReport>,
}

impl<'a> Attempt<'a> {
    fn given_up(&mut self, step: Step, tries: u32, failed: Failed) -> BootstrapError {
        let Failed { reason, output } = failed;
        tracing::warn!(agent = %self.files.agent, %step, tries, %reason, "a machine could not be set up");
        BootstrapError { step, tries, reason, output, done: std::mem::take(&mut self.done) }
    }

    fn finished(&mut self, step: Step, tries: u32, began: Instant) {
        let took = began.elapsed();
        tracing::info!(agent = %self.files.agent, %step, tries, took_ms = took.as_millis(), "done");
        self.done.push(StepReport { step, tries, took });
    }

    /// What needs no machine: the recipe, our key, and what the host's key must be.
    async fn learn_host_key(&mut self, machine: &Machine) -> Result<(), BootstrapError> {
        let (step, began) = (Step::HostKey, Instant::now());
        let ours = |why: String| Failed::from(Reason::Ours { why });
        if let Err(why) = self.recipe.check() {
            return Err(self.given_up(step, 1, ours(why)));
        }
        let key = match russh::keys::load_secret_key(&self.recipe.key, None) {
            Ok(key) => key,
            Err(error) => {
                let why = format!("{}: {error}", self.recipe.key.display());
                return Err(self.given_up(step, 1, ours(why)));
            }
        };
        let expected = match machine.host_keys.expected(self.recipe.timing.host_key).await {
            Ok(expected) => expected,
            Err(reason) => return Err(self.given_up(step, 1, reason.into())),
        };
        self.door = Some(Door {
            address: machine.address,
            user: &self.recipe.user,
            hidden: hidden(self.files, self.recipe, &key),
            key: Arc::new(key),
            expected,
        });
        self.finished(step, 1, began);
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), BootstrapError> {
        let began = Instant::now();
        let deadline = began + self.recipe.timing.ssh;
        let mut pause = self.recipe.timing.pause;
        for tries in 1.. {
            let Err(failed) = self.once(step).await else {
                self.finished(step, tries, began);
                return Ok(());
            };
            // Whatever it was, a new connection knows no more of it.
            self.session = None;
            let more = match step {
                Step::Connect => Instant::now() + pause < deadline,
                // A heartbeat that did not come in its time comes no sooner for being waited for again.
                Step::Heartbeat => false,
                _ => tries < self.recipe.timing.tries,
            };
            if !failed.reason.is_retryable() || !more {
                return Err(self.given_up(step, tries, failed));
            }
            tracing::debug!(agent = %self.files.agent, %step, tries, reason = %failed.reason, "trying again");
            sleep(pause).await;
            pause = (pause * 2).min(limits::BOOTSTRAP_PAUSE_MOST);
        }
        unreachable!("a step ends or is given up")
    }

    async fn connected(&mut self) -> Result<&Session, Failed> {
        if self.session.is_none() {
            let door = self.door.as_ref().ok_or_else(|| Reason::Ours { why: "there is no host key".to_owned() })?;
            self.session = Some(door.open().await?);
        }
        self.session.as_ref().ok_or_else(|| Reason::Cut { why: "there is no connection".to_owned() }.into())
    }

    async fn once(&mut self, step: Step) -> Result<(), Failed> {
        let (recipe, files, heartbeats) = (self.recipe, self.files, self.heartbeats);
        let within = recipe.timing.step;
        let session = self.connected().await?;
        match step {
            Step::HostKey | Step::Connect => {}
            Step::Setup { number, .. } => {
                let command = recipe.setup_commands.get(number - 1).map(String::as_str).unwrap_or_default();
                session.run(&script::setup(number, command), within).await?;
            }
            Step::Install => {
                if let (crate::Install::Upload(file), Some(name)) =
                    (&recipe.install, script::upload_name(&recipe.install))
                {
                    upload(session, file, name, within).await?;
                }
                session.run(&script::install(&recipe.install, &session.work), within).await?;
            }
            Step::Identity => {
                let placed = files.placed();
                let sent: Vec<_> = placed.iter().map(|(name, _, bytes)| (script::flat(name), *bytes)).collect();
                session.put(&sent, within).await?;
                session.run(&script::place(files, recipe, &session.work), within).await?;
            }
            Step::Start => {
                session.run(&script::start(recipe), within).await?;
            }
            Step::Heartbeat => {
                let after = recipe.timing.heartbeat;
                if timeout(after, heartbeats.first_of(&files.agent)).await.is_err() {
                    let output = match session.run(script::LOG, within).await {
                        Ok(log) => log,
                        Err(failed) => format!("its log could not be read: {}", failed.reason),
                    };
                    return Err(Failed { reason: Reason::TimedOut { after }, output });
                }
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Finished, BootstrapError> {
        let Some(session) = self.session.take() else {
            let gone = Reason::Cut { why: "the connection is gone".to_owned() };
            return Err(self.given_up(Step::Heartbeat, 1, gone.into()));
        };
        // It works already; a folder left behind holds nothing that it does not have elsewhere.
        if let Err(failed) = session.run(&script::clean_up(&session.work), self.recipe.timing.step).await {
            tracing::debug!(agent = %self.files.agent, reason = %failed.reason, "our folder is left behind");
        }
        let host_key = session.host_key.clone();
        session.close().await;
        Ok(Finished { host_key, steps: self.done })
    }
}

/// Brings the agent over, unless it is there already.
async fn upload(session: &Session, file: &Path, name: &str, within: std::time::Duration) -> Result<(), Failed> {
    let ours = |error: io::Error| Reason::Ours { why: format!("{}: {error}", file.display()) };
    let of = file.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        io::copy(&mut std::fs::File::open(of)?, &mut hasher)?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    });
    let sha256 = hashed.await.map_err(io::Error::other).flatten().map_err(ours)?;
    let has = script::has_upload(&session.work, name, &sha256);
    match session.run(&has, within).await {
        Ok(_) => Ok(()),
        Err(Failed { reason: Reason::Exit { .. }, .. }) => {
            session.put_file(name, file, within).await?;
            // What came over is what was sent.
            session.run(&has, within).await.map(|_| ())
        }
        Err(failed) => Err(failed),
    }
}

/// What no output may show.
fn hidden(files: &AgentFiles, recipe: &Recipe, key: &PrivateKey) -> Option<Patterns> {
    let own = key.to_openssh(russh::keys::ssh_key::LineEnding::LF).map(|text| text.to_string()).unwrap_or_default();
    let mut values = vec![files.key.as_slice(), own.as_bytes()];
    values.extend(recipe.secrets.iter().map(String::as_bytes));
    // The lines around a key are not secret, and in other things too.
    Patterns::of(values)
}
