//! Who has machines: what `providers` of the configuration names, checked before anything is bought.
//!
//! A cloud is an arm in `of_kind`, a struct of settings in a crate of its own, and a feature that compiles its SDK.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use flux_provider::{Advice, ClusterName, NodeType, SharedProvider};
use flux_runtime::{Settings, autoscaler_settings::ProviderSettings};

use crate::{
    configured,
    join::Gateway,
    local::{LocalOptions, LocalProvider, LocalType},
    over_ssh::Ssh,
};

/// Machines of one provider.
#[derive(Clone)]
pub struct Machines {
    pub provider: SharedProvider,
    /// How each becomes an agent, where it does not by itself.
    pub ssh: Option<Ssh>,
    /// Which machines its list has, for people. Who changes that finds those elsewhere no more.
    pub place: String,
}

/// What is configured, by kind.
///
/// # Errors
/// A setting is missing or wrong; it is named, with what to write.
pub async fn configured(
    settings: &Settings,
    cluster: &ClusterName,
    gateway: &Gateway,
    agent_program: &Path,
) -> anyhow::Result<BTreeMap<String, Machines>> {
    let mut all = BTreeMap::new();
    for provider in &settings.autoscaler.providers {
        let machines = of_kind(settings, provider, cluster, gateway, agent_program).await;
        let machines = machines.with_context(|| format!("`autoscaler.providers`, kind {}", provider.kind))?;
        all.insert(provider.kind.clone(), machines);
    }
    Ok(all)
}

async fn of_kind(
    settings: &Settings,
    of: &ProviderSettings,
    cluster: &ClusterName,
    gateway: &Gateway,
    agent_program: &Path,
) -> anyhow::Result<Machines> {
    match of.kind.as_str() {
        "local" => {
            let here = local(settings, of, cluster, gateway, agent_program)?;
            Ok(Machines { provider: Arc::new(here), ssh: None, place: place(settings, of, cluster) })
        }
        "aws" => cloud(settings, of, aws(of, cluster).await?, cluster).await,
        "gcp" => cloud(settings, of, gcp(settings, of, cluster).await?, cluster).await,
        other => bail!("`{other}` is not one of: {}", configured::KINDS.join(", ")),
    }
}

/// As its settings say, which were checked. Another account is not told by it.
fn place(settings: &Settings, of: &ProviderSettings, cluster: &ClusterName) -> String {
    let written = |of: &Option<serde_json::Value>, field: &str| -> String {
        of.as_ref().and_then(|of| of[field].as_str()).unwrap_or_default().to_owned()
    };
    let place = match of.kind.as_str() {
        "aws" => format!("region {}", written(&of.aws, "region")),
        "gcp" => format!("project {}", written(&of.gcp, "project")),
        _ => {
            let dir = dir(settings);
            // However it is written.
            let dir: PathBuf = std::path::absolute(&dir).unwrap_or(dir).components().collect();
            format!("directory {}", dir.display())
        }
    };
    format!("{place}, cluster {cluster}")
}

/// Machines that are set up over SSH, of types that there are.
async fn cloud(
    settings: &Settings,
    of: &ProviderSettings,
    provider: SharedProvider,
    cluster: &ClusterName,
) -> anyhow::Result<Machines> {
    let ssh = configured::ssh(settings, of, provider.capabilities().console)?;
    let names = of.node_types.iter().map(|of| NodeType::parse(&of.name).context("`node_types`"));
    let names = names.collect::<anyhow::Result<Vec<_>>>()?;
    match provider.describe_types(&names).await {
        Ok(known) => {
            let unknown = names.iter().filter(|name| known.iter().all(|details| details.node_type != **name));
            let unknown: Vec<String> = unknown.map(|name| format!("`{name}`")).collect();
            ensure!(
                unknown.is_empty(),
                "`node_types`: {} has no {}: write a `name` as the provider has it",
                of.kind,
                unknown.join(", ")
            );
        }
        // It may answer when there is something to buy.
        Err(error) if error.advice() == Advice::Again => {
            tracing::warn!(provider = %of.kind, error = &error as &dyn std::error::Error, "whether there are such `node_types` is not known yet");
        }
        Err(error) => return Err(error).context("the provider was asked for its types, and refuses"),
    }
    Ok(Machines { provider, ssh: Some(ssh), place: place(settings, of, cluster) })
}

#[cfg(feature = "aws")]
async fn aws(of: &ProviderSettings, cluster: &ClusterName) -> anyhow::Result<SharedProvider> {
    let provider = flux_provider_aws::AwsProvider::connect(configured::aws(of)?, cluster.clone()).await;
    Ok(Arc::new(provider.context("`aws`")?))
}

#[cfg(not(feature = "aws"))]
async fn aws(of: &ProviderSettings, _: &ClusterName) -> anyhow::Result<SharedProvider> {
    // What is wrong with them is said first: they need no SDK.
    configured::aws(of)?;
    bail!(
        "this flux-autoscaler was built without AWS; the Debian package has it, and so has `cargo build --release -p flux-autoscaler --features aws`"
    )
}

#[cfg(feature = "gcp")]
async fn gcp(settings: &Settings, of: &ProviderSettings, cluster: &ClusterName) -> anyhow::Result<SharedProvider> {
    let provider = flux_provider_gcp::GcpProvider::connect(configured::gcp(settings, of)?, cluster.clone()).await;
    Ok(Arc::new(provider.context("`gcp`")?))
}

#[cfg(not(feature = "gcp"))]
async fn gcp(settings: &Settings, of: &ProviderSettings, _: &ClusterName) -> anyhow::Result<SharedProvider> {
    configured::gcp(settings, of)?;
    bail!(
        "this flux-autoscaler was built without GCP; the Debian package has it, and so has `cargo build --release -p flux-autoscaler --features gcp`"
    )
}

fn local(
    settings: &Settings,
    of: &ProviderSettings,
    cluster: &ClusterName,
    gateway: &Gateway,
    agent_program: &Path,
) -> anyhow::Result<LocalProvider> {
    let types = of
        .node_types
        .iter()
        .map(|of| (of.name.clone(), LocalType { tasks: of.tasks, price_per_hour: of.price_per_hour }));
    let options = LocalOptions {
        cluster: cluster.clone(),
        dir: dir(settings),
        agent: agent_program.to_owned(),
        types: types.collect(),
        gateway: gateway.clone(),
        queue_without_certificates: settings.disable_mtls.then(|| settings.queue.url.clone()),
    };
    LocalProvider::try_new(options).context("the directory of local nodes cannot be made")
}

/// Where the autoscaler keeps what is of this machine.
pub(crate) fn dir(settings: &Settings) -> PathBuf {
    let dir = settings.autoscaler.dir.clone();
    let dir = dir.or_else(|| settings.data_dir.clone().map(|dir| dir.join("autoscaler")));
    dir.unwrap_or_else(|| PathBuf::from("/var/lib/flux/autoscaler"))
}

#[cfg(test)]
mod places {
    use flux_runtime::autoscaler_settings::AutoscalerSettings;

    use super::*;

    #[test]
    fn a_place_is_what_a_list_covers() {
        let dir = Some("/nodes/".into());
        let settings =
            Settings { autoscaler: AutoscalerSettings { dir, ..AutoscalerSettings::default() }, ..Settings::default() };
        let of = |kind: &str, aws: serde_json::Value, gcp: serde_json::Value| {
            let kind = kind.to_owned();
            let of = ProviderSettings { kind, aws: Some(aws), gcp: Some(gcp), ..ProviderSettings::default() };
            place(&settings, &of, &ClusterName::parse("prod").expect("a name"))
        };
        let (aws, gcp) =
            (serde_json::json!({ "region": "here", "ami": "a" }), serde_json::json!({ "project": "ours" }));
        let places = ["aws", "gcp", "local"].map(|kind| of(kind, aws.clone(), gcp.clone()));
        assert_eq!(
            places,
            ["region here, cluster prod", "project ours, cluster prod", "directory /nodes, cluster prod"]
        );
        assert_eq!(of("aws", serde_json::json!({ "region": "here", "ami": "b" }), gcp), places[0]);
    }
}

#[cfg(all(test, not(feature = "aws"), not(feature = "gcp")))]
mod tests {
    use flux_runtime::autoscaler_settings::AutoscalerSettings;

    use super::*;

    #[tokio::test]
    async fn a_cloud_that_is_not_built_in_is_refused_by_saying_how() {
        let aws = Some(serde_json::json!({ "region": "here", "ami": "ami-0" }));
        told(ProviderSettings { kind: "aws".to_owned(), aws, ..ProviderSettings::default() }, "aws").await;
        let gcp = Some(
            serde_json::json!({ "project": "here", "zones": ["europe-west3-a"], "ssh_public_key": "ssh-ed25519 AAAA" }),
        );
        told(ProviderSettings { kind: "gcp".to_owned(), gcp, ..ProviderSettings::default() }, "gcp").await;
    }

    async fn told(provider: ProviderSettings, kind: &str) {
        let autoscaler = AutoscalerSettings { providers: vec![provider], ..AutoscalerSettings::default() };
        let settings = Settings { autoscaler, ..Settings::default() };
        let (cluster, nowhere) = (ClusterName::parse("here").expect("a name"), Path::new("/nowhere"));
        let gateway = Gateway::new("http://127.0.0.1:1", None, nowhere).expect("a gateway");
        let refused = configured(&settings, &cluster, &gateway, nowhere).await.err().expect("it has none");
        let told = format!("{refused:#}");
        assert!(told.contains(&format!("kind {kind}")) && told.contains(&format!("--features {kind}")), "{told}");
    }
}
