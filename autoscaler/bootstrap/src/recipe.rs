//! How every machine of a configuration is set up.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flux_protocol::limits;

/// Where the agent's program comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Install {
    /// It is on the machine's image.
    Present,
    /// A Debian package behind a URL that the machine reaches, of this SHA-256 if it is given.
    Url { url: String, sha256: Option<String> },
    /// A package of a repository that the machine knows (`flux-agent`, `flux-agent=1.2.3`).
    Package(String),
    /// A file of the autoscaler's own disk: a `.deb`, or else the program itself.
    Upload(PathBuf),
}

/// How long, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// Until the console shows the host key.
    pub host_key: Duration,
    /// Until SSH lets us in for the first time.
    pub ssh: Duration,
    /// One try of each further step.
    pub step: Duration,
    pub heartbeat: Duration,
    /// Tries of each step after the first connection.
    pub tries: u32,
    /// Between two tries: twice as long each time, up to [`limits::BOOTSTRAP_PAUSE_MOST`].
    pub pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            host_key: limits::BOOTSTRAP_HOST_KEY,
            ssh: limits::BOOTSTRAP_SSH,
            step: limits::BOOTSTRAP_STEP,
            heartbeat: limits::BOOTSTRAP_HEARTBEAT,
            tries: limits::BOOTSTRAP_TRIES,
            pause: limits::BOOTSTRAP_PAUSE,
        }
    }
}

/// What is done to each machine.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// `root`, or who has sudo without a password (`admin` on Debian's images).
    pub user: String,
    /// The private key in OpenSSH's format: [`flux_pki::Certs::ssh_files`].
    pub key: PathBuf,
    /// `agent_setup_commands`: each is run as root by `sh -e`, once on each machine.
    pub setup_commands: Vec<String>,
    pub install: Install,
    /// Where systemd does not run: what starts the agent and returns. [`Recipe::start_detached`] unless it is set.
    pub start_command: Option<String>,
    /// Where certificates and configuration go.
    pub config_dir: String,
    /// Further values that no output may show.
    pub secrets: Vec<String>,
    pub timing: Timing,
}

impl Recipe {
    pub fn new(user: impl Into<String>, key: PathBuf, install: Install) -> Self {
        Self {
            user: user.into(),
            key,
            setup_commands: Vec::new(),
            install,
            start_command: None,
            config_dir: "/etc/flux".to_owned(),
            secrets: Vec::new(),
            timing: Timing::default(),
        }
    }

    pub(crate) fn config_file(&self) -> String {
        format!("{}/flux.yaml", self.config_dir)
    }

    /// Starts the agent in the background, in the place of the one that was started so before.
    pub fn start_detached(&self) -> String {
        let config = crate::script::quoted(&self.config_file());
        format!(
            "mkdir -p /run/flux\n\
             old=$(cat /run/flux/agent.pid 2>/dev/null || true)\n\
             if [ -n \"$old\" ] && kill \"$old\" 2>/dev/null; then\n\
             \x20 while kill -0 \"$old\" 2>/dev/null; do sleep 0.1; done\n\
             fi\n\
             setsid flux-agent --config {config} </dev/null >>/var/log/flux-agent.log 2>&1 &\n\
             echo $! >/run/flux/agent.pid\n"
        )
    }

    /// Whether machines can be reached with that key.
    ///
    /// # Errors
    /// Why not.
    pub fn check_key(key: &Path) -> Result<(), String> {
        russh::keys::load_secret_key(key, None).map(|_| ()).map_err(|error| format!("{}: {error}", key.display()))
    }

    /// Whether it can be followed at all.
    ///
    /// # Errors
    /// What cannot, and what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if self.setup_commands.len() > limits::SETUP_COMMANDS {
            return Err(format!("`agent_setup_commands` has more than {} commands", limits::SETUP_COMMANDS));
        }
        if self.setup_commands.iter().any(|command| command.len() > limits::SETUP_COMMAND_BYTES) {
            return Err(format!("one of `agent_setup_commands` has more than {} bytes", limits::SETUP_COMMAND_BYTES));
        }
        match &self.install {
            Install::Url { url, .. } if !url.starts_with("https://") && !url.starts_with("http://") => {
                Err(format!("`{url}` is not a URL that apt can fetch from"))
            }
            Install::Url { sha256: None, url } if url.starts_with("http://") => {
                Err(format!("`{url}` is fetched over plain HTTP: give the package's sha256"))
            }
            Install::Url { sha256: Some(sha256), .. }
                if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) =>
            {
                Err("the package's sha256 is not 64 hexadecimal digits".to_owned())
            }
            // It becomes an argument of apt: nothing that could be an option, or two.
            Install::Package(name)
                if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
                    || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.=~:/".contains(&b)) =>
            {
                Err(format!("`{name}` is not the name of a package"))
            }
            _ => Ok(()),
        }
    }
}
