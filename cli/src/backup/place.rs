//! Where a Flux keeps what it knows: as `flux up` or `flux-gateway` would say, without being one.

use std::path::{Path, PathBuf};

use flux_gateway::compose;
use flux_runtime::{Settings, config};

use super::Which;
use crate::{error::CliError, up};

/// The settings with store, archives and keys in them. Nothing is made.
pub(super) fn settings(which: &Which) -> Result<Settings, CliError> {
    if which.data_dir.is_some() || which.config.is_none() {
        return up::settings_at(which.data_dir.clone(), which.config.as_deref());
    }
    let failed = |error: config::ConfigError| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        CliError::problem(format!("{error}{cause}"), "docs/operating.md lists every field and its default")
    };
    let file = config::file(which.config.as_deref()).map_err(failed)?;
    let mut settings: Settings = config::load(file.as_deref(), serde_json::json!({})).map_err(failed)?;
    let data_dir = settings.data_dir.clone().map_or_else(default_dir, Ok)?;
    compose::keep_in(&mut settings, &data_dir);
    Ok(settings)
}

/// As `flux-gateway` has it.
fn default_dir() -> Result<PathBuf, CliError> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(PathBuf::from("/var/lib/flux/gateway"));
    }
    let home = config::env("HOME").ok_or_else(|| {
        CliError::problem("there is no HOME that a gateway's files would be in", "set `data_dir` in the configuration")
    })?;
    Ok(Path::new(&home).join(".local/share/flux/gateway"))
}

/// The database's file, where it is one.
pub(super) fn database(settings: &Settings) -> Option<&Path> {
    settings.store.url.as_deref()?.strip_prefix("sqlite://").map(Path::new)
}

/// As the URL says it, without who and how.
pub(super) fn engine(settings: &Settings) -> String {
    let url = settings.store.url.as_deref().unwrap_or_default();
    let scheme = url.split([':', '+']).next().unwrap_or_default();
    match scheme {
        "postgresql" => "postgres",
        "rediss" => "redis",
        other => other,
    }
    .to_owned()
}
