//! From `ssh` of a provider to what is done to each of its machines.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use flux_bootstrap::{Install, Recipe};
use flux_pki::Certs;
use flux_runtime::{
    Settings,
    autoscaler_settings::{AgentPackage, HostKeySource, ProviderSettings, SshSettings},
};

use super::seconds;
use crate::{machines, over_ssh::Ssh};

/// `console`: whether the provider can show one.
///
/// # Errors
/// A setting is missing or wrong; it is named, with what to write.
pub fn ssh(settings: &Settings, of: &ProviderSettings, console: bool) -> anyhow::Result<Ssh> {
    ensure!(
        !settings.disable_mtls,
        "`disable_mtls` is for a network that is yours alone: machines of {} would reach the queue without certificates",
        of.kind
    );
    let s = of.ssh.as_ref().context(
        "`ssh` is missing: how its machines become agents, at least `ssh: { agent: { url: https://…/flux-agent.deb } }`",
    )?;
    let key = s.key.clone().unwrap_or_else(|| {
        let [private, _] = Certs::at(settings.certs_dir()).ssh_files();
        private
    });
    Recipe::check_key(&key).map_err(anyhow::Error::msg).context(
        "`ssh.key`: `flux pki init` makes one in `certs_dir`; its public half is what the provider gives to machines",
    )?;
    ensure!(!s.user.is_empty(), "`ssh.user` is empty: `root`, or who has sudo without a password");
    let install = install(&s.agent)?;
    let wait = seconds("providers.ssh.wait_sec", s.wait_sec)?;
    ensure!(wait >= Duration::from_secs(1), "`ssh.wait_sec` is at least 1");
    let first_use = match s.host_key {
        Some(HostKeySource::FirstUse) => true,
        Some(HostKeySource::Console) => {
            ensure!(console, "`ssh.host_key: console`: {} shows no console; write first_use", of.kind);
            false
        }
        None => !console,
    };
    // For the host key on the console, and for SSH.
    let waits = if first_use { wait } else { wait * 2 };
    let boots = seconds("boot_timeout_sec", settings.autoscaler.boot_timeout_sec)?;
    ensure!(
        boots > waits,
        "`autoscaler.boot_timeout_sec` is {}, and `ssh.wait_sec` alone may take {} of it{}: a machine that is slow, and well, would be \
         ended and another bought. Make `boot_timeout_sec` larger than that, with the set-up's own time, or `ssh.wait_sec` smaller",
        boots.as_secs_f64(),
        waits.as_secs_f64(),
        if first_use { "" } else { " (for the host key, and again for SSH)" }
    );
    let mut recipe = Recipe::new(&s.user, key, install);
    recipe.setup_commands.clone_from(&s.agent_setup_commands);
    recipe.secrets.clone_from(&s.secrets);
    (recipe.timing.host_key, recipe.timing.ssh) = (wait, wait);
    recipe.check().map_err(anyhow::Error::msg).context("`ssh`")?;
    Ok(Ssh {
        recipe,
        port: s.port,
        address: s.address,
        first_use: first_use.then(|| machines::dir(settings).join("known_hosts")),
        queue_url: queue_url(settings, s)?,
        tasks: of.node_types.iter().map(|of| (of.name.clone(), of.tasks)).collect(),
    })
}

fn install(agent: &AgentPackage) -> anyhow::Result<Install> {
    let AgentPackage { url, sha256, package, file, present } = agent.clone();
    let named = [url.is_some(), package.is_some(), file.is_some(), present].iter().filter(|named| **named).count();
    ensure!(
        named == 1,
        "`ssh.agent` says where machines have flux-agent from, by one of: url (of a .deb, with sha256), package (of a repository that \
         the machine knows), file (a .deb, or the program, on this machine), present: true (it is on the image)"
    );
    ensure!(sha256.is_none() || url.is_some(), "`ssh.agent.sha256` is of `ssh.agent.url`, which is not there");
    if let Some(file) = file {
        let opened = std::fs::File::open(&file).and_then(|opened| opened.metadata());
        let meta = opened.with_context(|| format!("`ssh.agent.file`: {} cannot be read", file.display()))?;
        ensure!(meta.is_file(), "`ssh.agent.file`: {} is no file", file.display());
        return Ok(Install::Upload(file));
    }
    Ok(match (url, package) {
        (Some(url), _) => Install::Url { url, sha256 },
        (None, Some(package)) => Install::Package(package),
        (None, None) => Install::Present,
    })
}

/// This machine's own loopback is another one's own.
fn queue_url(settings: &Settings, s: &SshSettings) -> anyhow::Result<String> {
    if let Some(url) = &s.queue_url {
        ensure!(url.starts_with("nats://") || url.starts_with("tls://"), "`ssh.queue_url` is nats://HOST:PORT");
        return Ok(url.clone());
    }
    let url = &settings.queue.url;
    let own = ["127.", "localhost", "[::1]"].iter().any(|own| url.contains(&format!("//{own}")));
    ensure!(
        !own,
        "`queue.url` is {url}, which machines elsewhere do not reach: write `ssh.queue_url`, the queue as they reach it"
    );
    Ok(url.clone())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// All that is needed, with a key that is there.
    fn settings(certs: &Path) -> (Settings, ProviderSettings) {
        Certs::at(certs).init(&[]).expect("a key");
        let mut settings = Settings { certs_dir: Some(certs.to_owned()), ..Settings::default() };
        settings.queue.url = "nats://10.0.0.1:4222".to_owned();
        let agent = AgentPackage { present: true, ..AgentPackage::default() };
        let ssh = SshSettings { agent, ..SshSettings::default() };
        (settings, ProviderSettings { kind: "aws".to_owned(), ssh: Some(ssh), ..ProviderSettings::default() })
    }

    #[test]
    fn what_is_not_written_is_what_is_usual() {
        let dir = tempfile::tempdir().expect("a directory");
        let (settings, provider) = settings(dir.path());
        let usual = ssh(&settings, &provider, true).expect("a recipe");
        assert_eq!((usual.recipe.user.as_str(), usual.port, usual.first_use), ("admin", 22, None));
        assert_eq!(usual.queue_url, "nats://10.0.0.1:4222");
        let without_console = ssh(&settings, &provider, false).expect("a recipe");
        assert!(without_console.first_use.is_some_and(|dir| dir.ends_with("known_hosts")));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_what_to_write() {
        type Change = fn(&mut Settings, &mut ProviderSettings);
        fn of(provider: &mut ProviderSettings) -> &mut SshSettings {
            provider.ssh.as_mut().expect("it is there")
        }
        let changes: [(&str, Change); 14] = [
            ("`ssh` is missing", |_, p| p.ssh = None),
            ("`disable_mtls`", |s, _| s.disable_mtls = true),
            ("`ssh.key`: `flux pki init`", |_, p| of(p).key = Some("/nowhere/key".into())),
            ("`ssh.user`", |_, p| of(p).user.clear()),
            ("`ssh.agent` says", |_, p| of(p).agent.present = false),
            ("by one of", |_, p| of(p).agent.package = Some("flux-agent".to_owned())),
            ("`ssh.agent.sha256`", |_, p| of(p).agent.sha256 = Some("0".repeat(64))),
            ("`ssh.agent.file`: /nowhere.deb", |_, p| {
                of(p).agent = AgentPackage { file: Some("/nowhere.deb".into()), ..AgentPackage::default() };
            }),
            ("give the package's sha256", |_, p| {
                of(p).agent = AgentPackage { url: Some("http://h/a.deb".to_owned()), ..AgentPackage::default() };
            }),
            ("`ssh.wait_sec`", |_, p| of(p).wait_sec = 0.0),
            ("`autoscaler.boot_timeout_sec` is 600, and `ssh.wait_sec` alone may take 600", |s, _| {
                s.autoscaler.boot_timeout_sec = 600.0;
            }),
            ("`ssh.wait_sec` alone may take 900 of it: ", |_, p| {
                of(p).wait_sec = 900.0;
                of(p).host_key = Some(HostKeySource::FirstUse);
            }),
            ("write `ssh.queue_url`", |s, _| s.queue.url = "nats://localhost:4222".to_owned()),
            ("`ssh.queue_url` is", |_, p| of(p).queue_url = Some("redis://h".to_owned())),
        ];
        let dir = tempfile::tempdir().expect("a directory");
        for (named, change) in changes {
            let (mut settings, mut provider) = settings(dir.path());
            change(&mut settings, &mut provider);
            let error = format!("{:#}", ssh(&settings, &provider, true).expect_err(named));
            assert!(error.contains(named), "{named}: {error}");
        }
        let (settings, mut provider) = settings(dir.path());
        of(&mut provider).host_key = Some(HostKeySource::Console);
        let error = format!("{:#}", ssh(&settings, &provider, false).expect_err("no console"));
        assert!(error.contains("`ssh.host_key: console`"), "{error}");
    }
}
