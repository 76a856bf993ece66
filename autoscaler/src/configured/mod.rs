//! From the configuration file to a policy, and to how machines are set up.

mod ssh;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, bail, ensure};
use flux_plan::{NodeType, Policy, ProviderPolicy, ScheduledMinimum};
use flux_protocol::limits;
use flux_provider_aws::AwsSettings;
use flux_runtime::autoscaler_settings::{AutoscalerSettings, ProviderSettings};

pub use ssh::ssh;

/// Who may have machines.
pub(crate) const KINDS: [&str; 2] = ["local", "aws"];

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
    if s.kind != "aws" {
        ensure!(s.aws.is_none(), "`autoscaler.providers`: `aws` is of the kind aws, and this is {}", s.kind);
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

fn seconds(field: &str, value: f64) -> anyhow::Result<Duration> {
    // A year.
    ensure!((0.0..=31_536_000.0).contains(&value), "`autoscaler.{field}` is a time in seconds, and not negative");
    Ok(Duration::from_secs_f64(value))
}

#[cfg(test)]
mod tests {
    use flux_runtime::autoscaler_settings::NodeTypeSettings;

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
        let mut settings = local();
        settings.providers[0].aws = Some(serde_json::json!({}));
        let error = format!("{:#}", policy(&settings).expect_err("of another kind"));
        assert!(error.contains("`aws` is of the kind aws"), "{error}");
    }
}
