//! Identities, before anything starts: made by a process of the user to whom they belong, so that root writes nothing where
//! that user may.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use flux_pki::Certs;
use flux_protocol::{PoolName, identity::GATEWAYS_ACCOUNT};
use flux_runtime::{Settings, settings::TlsSettings};

use super::{IDENTITIES, data_dir::WrittenSettings, identity::Identity};
use crate::error::CliError;

/// Where streams were before identities had accounts.
const FORMER_ACCOUNT: &str = "$G";

#[derive(Debug, clap::Args)]
pub(crate) struct PkiArgs {
    #[arg(long)]
    settings: PathBuf,
}

/// Makes what is missing, as the platform's user. The CA's certificate as PEM, where there is one: told by that process, so
/// that root opens nothing where that user may write.
pub(super) fn prepare(file: &WrittenSettings, identity: &Identity) -> Result<Option<String>, CliError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(IDENTITIES).arg("--settings").arg(&file.path).stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(user) = identity.platform {
        // The standard library drops supplementary groups with it.
        command.uid(user.uid).gid(user.gid);
    }
    let ended = command.output().map_err(|source| CliError::local("identities cannot be made", source))?;
    if ended.status.success() {
        return Ok(String::from_utf8(ended.stdout).ok().filter(|pem| !pem.is_empty()));
    }
    Err(CliError::problem("identities cannot be made", "the line above says why"))
}

/// Lets the user's own `flux` commands trust the gateway of this address, where its certificate is of Flux's own CA.
/// Returns what to say where there is no place for it.
pub(super) fn remember(settings: &Settings, ca: Option<&str>, authority: &str) -> Option<String> {
    settings.gateway.tls.as_ref().filter(|tls| matches!(tls, TlsSettings::Own(_)))?;
    let error = crate::keys::write_ca(authority, ca?).err()?;
    let ca = settings.certs_dir().join("ca/ca.pem");
    Some(format!("`flux` commands have to be told --ca {}: it cannot be kept for them ({error})", ca.display()))
}

/// What that process does.
pub(crate) fn make(args: &PkiArgs) -> Result<(), CliError> {
    let failed = |error: anyhow::Error| CliError::Problem { what: format!("{error:#}"), remedy: None };
    let text = fs::read(&args.settings).map_err(|source| CliError::local("the settings cannot be read", source))?;
    let settings: Settings = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    make_all(&settings).map_err(failed)?;
    if settings.disable_mtls {
        return Ok(());
    }
    let ca = Certs::at(settings.certs_dir()).trust().map_err(|error| failed(error.into()))?;
    io::stdout()
        .write_all(ca.pem().as_bytes())
        .map_err(|source| CliError::local("the CA's certificate cannot be told", source))
}

fn make_all(settings: &Settings) -> anyhow::Result<()> {
    let certs = Certs::at(settings.certs_dir());
    if !settings.disable_mtls {
        let mut names = flux_gateway::compose::names(settings);
        let host = nix::sys::utsname::uname().ok().and_then(|name| name.nodename().to_str().map(str::to_owned));
        names.extend(host.filter(|name| is_name(name)));
        certs.init(&names)?;
        // The agent in the same process goes by the gateway's connection; its own identity is what it signs with.
        let pool = PoolName::parse(&settings.agent.pool).context("`agent.pool`")?;
        certs.mint_agent(&flux_agent::agent_id(settings)?, vec![pool])?;
    }
    let pools: Result<Vec<_>, _> = settings.gateway.pools.iter().map(|pool| PoolName::parse(pool)).collect();
    // Functions are not known before the queue is there; producers of some by their beginning wait for them.
    let accounts = flux_gateway::accounts(&certs, &pools.context("`gateway.pools`")?, &[])?;
    let file = settings.queue.accounts_file.as_deref().context("`queue.accounts_file` is not set")?;
    crate::keys::replace(file, &accounts, crate::keys::SECRET, None)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    let data = settings.data_dir.as_deref().context("`data_dir` is not set")?;
    move_streams(&data.join("nats/jetstream")).context("the queue's streams cannot be moved to their account")
}

/// Streams of an earlier release become those of the gateways' account.
fn move_streams(jetstream: &Path) -> io::Result<()> {
    let (former, account) = (jetstream.join(FORMER_ACCOUNT), jetstream.join(GATEWAYS_ACCOUNT));
    if former.exists() && !account.exists() {
        fs::rename(&former, &account)?;
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}
