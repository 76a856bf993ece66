//! Who runs what. Started as root, the platform drops to the user `flux` and functions run as another; otherwise
//! everything is the user who started it.

use flux_launcher::Runner;
use flux_runtime::Settings;
use nix::unistd::{Uid, User};

use crate::error::CliError;

const PLATFORM_USER: &str = "flux";

#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// Whom the worker and `nats-server` run as; `None` is the user who started us.
    pub(super) platform: Option<Runner>,
    /// Whom functions run as; `None` where nobody was made for them, or we are not root.
    pub(super) runner: Option<Runner>,
}

impl Identity {
    pub(super) fn find(settings: &Settings) -> Result<Self, CliError> {
        if !Uid::effective().is_root() {
            return Ok(Self { platform: None, runner: None });
        }
        let platform = user(PLATFORM_USER)?.ok_or_else(|| {
            CliError::problem(
                format!("there is no user `{PLATFORM_USER}`: as root, Flux drops to it"),
                "`make setup` adds the users flux and flux-runner; or run `flux up` as an ordinary user",
            )
        })?;
        Ok(Self { platform: Some(platform), runner: user(&settings.agent.runner_user)? })
    }

    pub(super) fn is_root(&self) -> bool {
        self.platform.is_some()
    }
}

fn user(name: &str) -> Result<Option<Runner>, CliError> {
    let found = User::from_name(name)
        .map_err(|error| CliError::local(format!("the user `{name}` cannot be looked up"), error.into()))?;
    Ok(found.map(|user| Runner { uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
}
