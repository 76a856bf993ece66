//! From the configuration file to a policy, and to how machines are set up.

mod ssh;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, bail, ensure};
use flux_pki::Certs;
use flux_plan::{NodeType, Policy, ProviderPolicy, ScheduledMinimum};
use flux_protocol::limits;
use flux_provider_aws::AwsSettings;
use flux_provider_gcp::GcpSettings;
use flux_runtime::{
    Settings,
    autoscaler_settings::{AutoscalerSettings, ProviderSettings},
};

pub use ssh::ssh;

/// Who may have machines.
pub(crate) const KINDS: [&str; 3] = ["local", "aws", "gcp"];

/// # Errors
/// A field is out of range, or two contradict each other; it is named.
pub fn policy(settings: &AutoscalerSettings) -> anyhow::Result<Policy> {
    let s = settings;
    ensure!(!s.providers.is_empty(), "`autoscaler.providers` is empty: there is nobody to buy machines from");
    let providers = s.providers.iter().map(provider).collect::<anyhow::Result<Vec<_>>>()?;
    let names: BTreeSet<&str> = providers.iter().map(|provider| provider.name.as_str()).collect();
    ensure!(names.len() == providers.len(), "`autoscaler.providers`: each kind once");
    let most: u64 = providers.iter().map(|provider| u64::from(provider.max_nodes)).sum();
    ensure!(
        most <= u64::from(limits::AUTOSCALER_NODES),
        "`autoscaler.providers`: {most} nodes are more than {}",
        limits::AUTOSCALER_NODES
    );
    let schedules = s.schedules.iter().map(|schedule| {
        let lasts = seconds("schedules.lasts_sec", schedule.lasts_sec)?;
        ScheduledMinimum::try_new(&schedule.cron, lasts, schedule.min_nodes).context("`autoscaler.schedules`")
    });
    for (name, lower, upper) in
        [("cpu", s.cpu_lower_threshold, s.cpu_upper_threshold), ("mem", s.mem_lower_threshold, s.mem_upper_threshold)]
    {
        ensure!(
            (0.0..=100.0).contains(&lower) && lower < upper && upper <= 100.0,
            "`autoscaler.{name}_lower_threshold` and `{name}_upper_threshold` are percents, the lower one below the other"
        );
    }
    ensure!(s.panic_threshold > 1.0, "`autoscaler.panic_threshold` is more than 1");
    ensure!((0.0..=10.0).contains(&s.headroom), "`autoscaler.headroom` is from 0 to 10");
    ensure!(s.poll_interval_sec >= 0.1, "`autoscaler.poll_interval_sec` is at least 0.1");
    if let Some(cap) = s.max_cost_per_hour {
        ensure!(cap >= 0.0, "`autoscaler.max_cost_per_hour` is not negative");
        let least: f64 = providers
            .iter()
            .map(|of| {
                f64::from(of.min_nodes) * of.node_types.iter().map(|of| of.price_per_hour).fold(f64::MAX, f64::min)
            })
            .sum();
        ensure!(least <= cap, "`autoscaler.max_cost_per_hour` is {cap}, and `min_nodes` cost {least} at least");
        let free = providers.iter().any(|of| of.node_types.iter().any(|of| of.price_per_hour == 0.0));
        ensure!(!free, "`autoscaler.max_cost_per_hour` needs `price_per_hour` for every node type");
    }
    Ok(Policy {
        cpu_upper_threshold: s.cpu_upper_threshold,
        cpu_lower_threshold: s.cpu_lower_threshold,
        mem_upper_threshold: s.mem_upper_threshold,
        mem_lower_threshold: s.mem_lower_threshold,
        evaluation_window: seconds("evaluation_window_sec", s.evaluation_window_sec)?,
        cooldown: seconds("cooldown_sec", s.cooldown_sec)?,
        target_queue: seconds("target_queue_seconds", s.target_queue_seconds)?,
        load_window: seconds("load_window_sec", s.load_window_sec)?,
        panic_window: seconds("panic_window_sec", s.panic_window_sec)?,
        panic_threshold: s.panic_threshold,
        headroom: s.headroom,
        assumed_service: seconds("assumed_service_sec", s.assumed_service_sec)?,
        expected_boot: seconds("expected_boot_sec", s.expected_boot_sec)?,
        scale_down_delay: seconds("scale_down_delay_sec", s.scale_down_delay_sec)?,
        recurring_gap: seconds("recurring_gap_sec", s.recurring_gap_sec)?,
        drain_timeout: seconds("drain_timeout_sec", s.drain_timeout_sec)?,
        boot_timeout: seconds("boot_timeout_sec", s.boot_timeout_sec)?,
        silent_timeout: seconds("silent_timeout_sec", s.silent_timeout_sec)?,
        max_cost_per_hour: s.max_cost_per_hour,
        schedules: schedules.collect::<anyhow::Result<_>>()?,
        providers,
    })
}

fn provider(settings: &ProviderSettings) -> anyhow::Result<ProviderPolicy> {
    let s = settings;
    if !KINDS.contains(&s.kind.as_str()) {
        bail!("`autoscaler.providers.kind`: `{}` is not one of: {}", s.kind, KINDS.join(", "));
    }
    if s.kind == "local" {
        ensure!(
            s.ssh.is_none(),
            "`autoscaler.providers`: `ssh` is for machines of a cloud; those of local are agents by themselves"
        );
    }
    for (cloud, of) in [("aws", &s.aws), ("gcp", &s.gcp)] {
        ensure!(
            s.kind == cloud || of.is_none(),
            "`autoscaler.providers`: `{cloud}` is of the kind {cloud}, and this is {}",
            s.kind
        );
    }
    ensure!(s.min_nodes <= s.max_nodes, "`autoscaler.providers`: `min_nodes` of {} is above its `max_nodes`", s.kind);
    ensure!(s.share > 0.0, "`autoscaler.providers`: `share` of {} is more than 0", s.kind);
    ensure!(!s.node_types.is_empty(), "`autoscaler.providers`: {} has no `node_types`", s.kind);
    let node_types = s.node_types.iter().map(|of| {
        ensure!(
            of.tasks > 0 && of.price_per_hour >= 0.0,
            "`node_types`: `tasks` of {} is at least 1, its price not negative",
            of.name
        );
        Ok(NodeType { name: of.name.clone(), price_per_hour: of.price_per_hour, slots: of.tasks })
    });
    Ok(ProviderPolicy {
        name: s.kind.clone(),
        min_nodes: s.min_nodes,
        max_nodes: s.max_nodes,
        node_types: node_types.collect::<anyhow::Result<_>>()?,
        share: s.share,
    })
}

/// # Errors
/// A setting is missing or wrong; it is named, with what to write.
pub(crate) fn aws(of: &ProviderSettings) -> anyhow::Result<AwsSettings> {
    let written = of.aws.clone().context("`aws` is missing: at least `aws: { region: …, ami: …, key_pair: … }`")?;
    let settings: AwsSettings = serde_json::from_value(written).context("`aws`")?;
    settings.check().map_err(anyhow::Error::msg).context("`aws`")?;
    if settings.key_pair.is_none() {
        tracing::warn!(
            "`aws.key_pair` is not set: only an image that has the key of `ssh.key` already lets the autoscaler in"
        );
    }
    Ok(settings)
}

/// Who logs in, and with which key, is what `ssh` says unless it is written.
///
/// # Errors
/// As of [`aws`].
pub(crate) fn gcp(all: &Settings, of: &ProviderSettings) -> anyhow::Result<GcpSettings> {
    let written =
        of.gcp.clone().context("`gcp` is missing: at least `gcp: { project: …, zones: [europe-west3-a] }`")?;
    let mut settings: GcpSettings = serde_json::from_value(written).context("`gcp`")?;
    if let Some(ssh) = &of.ssh {
        let user = settings.ssh_user.get_or_insert_with(|| ssh.user.clone());
        ensure!(
            *user == ssh.user,
            "`gcp.ssh_user` is {user}, and `ssh.user` is {}: whom machines let in is whom the autoscaler logs in as",
            ssh.user
        );
    }
    if settings.ssh_public_key.is_none() {
        let [_, public] = Certs::at(all.certs_dir()).ssh_files();
        let own = of.ssh.as_ref().and_then(|ssh| ssh.key.as_ref());
        let file = own.map_or(public, |key| key.with_extension("pub"));
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!(
                "`gcp.ssh_public_key` is not set, and {} cannot be read: `flux pki init` makes a pair in `certs_dir`",
                file.display()
            )
        })?;
        settings.ssh_public_key = Some(text.trim().to_owned());
    }
    settings.validate().context("`gcp`")?;
    Ok(settings)
}

fn seconds(field: &str, value: f64) -> anyhow::Result<Duration> {
    // A year.
    ensure!((0.0..=31_536_000.0).contains(&value), "`autoscaler.{field}` is a time in seconds, and not negative");
    Ok(Duration::from_secs_f64(value))
}

#[cfg(test)]
mod tests {
    use flux_runtime::autoscaler_settings::{NodeTypeSettings, SshSettings};

    use super::*;

    fn local() -> AutoscalerSettings {
        let small = NodeTypeSettings { name: "small".to_owned(), price_per_hour: 0.1, tasks: 4 };
        let provider = ProviderSettings { node_types: vec![small], min_nodes: 1, ..ProviderSettings::default() };
        AutoscalerSettings { providers: vec![provider], ..AutoscalerSettings::default() }
    }

    #[test]
    fn the_defaults_are_those_that_simulation_found() {
        let policy = policy(&local()).expect("a policy");
        let found = Policy::new(policy.providers.clone());
        assert_eq!(format!("{policy:?}"), format!("{found:?}"));
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        type Change = (&'static str, fn(&mut AutoscalerSettings));
        let changes: [Change; 6] = [
            ("providers", |s| s.providers.clear()),
            ("cpu_lower", |s| s.cpu_lower_threshold = 90.0),
            ("max_cost_per_hour", |s| s.max_cost_per_hour = Some(0.01)),
            ("schedules", |s| s.schedules.push(Default::default())),
            ("kind", |s| s.providers[0].kind = "moon".to_owned()),
            ("cooldown_sec", |s| s.cooldown_sec = -1.0),
        ];
        for (named, change) in changes {
            let mut settings = local();
            change(&mut settings);
            let error = format!("{:#}", policy(&settings).expect_err(named));
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_of_a_cloud_is_named() {
        let of = |aws: serde_json::Value| ProviderSettings {
            kind: "aws".to_owned(),
            aws: (!aws.is_null()).then_some(aws),
            ..ProviderSettings::default()
        };
        for (named, written) in [
            ("`aws` is missing", serde_json::json!(null)),
            ("`region` is missing", serde_json::json!({ "ami": "ami-0" })),
            ("`ami` is missing", serde_json::json!({ "region": "here" })),
            ("`regoin`", serde_json::json!({ "regoin": "here" })),
        ] {
            let error = format!("{:#}", aws(&of(written)).expect_err(named));
            assert!(error.contains(named), "{named}: {error}");
        }
        aws(&of(serde_json::json!({ "region": "here", "ami": "ami-0" }))).expect("all that is needed");
        let certs = tempfile::tempdir().expect("a directory");
        let all = Settings { certs_dir: Some(certs.path().to_owned()), ..Settings::default() };
        let gcp = |written: serde_json::Value, ssh: Option<&str>| {
            let ssh = ssh.map(|user| SshSettings { user: user.to_owned(), ..SshSettings::default() });
            let of =
                ProviderSettings { kind: "gcp".to_owned(), gcp: Some(written), ssh, ..ProviderSettings::default() };
            gcp(&all, &of)
        };
        let key = "ssh-ed25519 AAAA";
        for (named, written, user) in [
            ("`project`", serde_json::json!({ "ssh_public_key": key, "zones": ["europe-west3-a"] }), None),
            ("`zones`", serde_json::json!({ "ssh_public_key": key, "project": "here" }), None),
            ("`gcp.ssh_user` is ops", serde_json::json!({ "ssh_user": "ops" }), Some("admin")),
            ("`gcp.ssh_public_key` is not set", serde_json::json!({ "project": "here" }), None),
        ] {
            let error = format!("{:#}", gcp(written, user).expect_err(named));
            assert!(error.contains(named), "{named}: {error}");
        }
        std::fs::create_dir(certs.path().join("ssh")).expect("a directory");
        std::fs::write(certs.path().join("ssh/flux-agent.pub"), format!("{key}\n")).expect("written");
        let read = gcp(serde_json::json!({ "project": "here", "zones": ["europe-west3-a"] }), Some("ops"))
            .expect("all that is needed");
        assert_eq!((read.ssh_user.as_deref(), read.ssh_public_key.as_deref()), (Some("ops"), Some(key)));
        let mut settings = local();
        settings.providers[0].aws = Some(serde_json::json!({}));
        let error = format!("{:#}", policy(&settings).expect_err("of another kind"));
        assert!(error.contains("`aws` is of the kind aws"), "{error}");
    }
}
