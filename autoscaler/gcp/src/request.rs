//! The body of an insert.

use flux_provider::{ClusterName, LaunchRequest, ProviderError, Zone, tag};
use google_cloud_compute_v1::model::{
    AccessConfig, AttachedDisk, AttachedDiskInitializeParams, Instance, Metadata, NetworkInterface, Scheduling,
    ServiceAccount, Tags, access_config,
    metadata::Items,
    scheduling::{InstanceTerminationAction, OnHostMaintenance, ProvisioningModel},
};

use crate::{GcpSettings, labels, settings::region_of};

const IMAGE_PROJECT: &str = "debian-cloud";
const IMAGE_FAMILY: &str = "debian-12";
/// As on Debian's images at AWS.
const SSH_USER: &str = "admin";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// # Errors
/// A tag or the pool's name is no label.
pub(crate) fn instance(
    settings: &GcpSettings,
    cluster: &ClusterName,
    request: &LaunchRequest,
    zone: &Zone,
    attempted: &str,
) -> Result<Instance, ProviderError> {
    let labels = labels_of(settings, cluster, request, attempted)?;
    let mut disk = AttachedDiskInitializeParams::new().set_source_image(image(settings)).set_labels(labels.clone());
    if let Some(size) = settings.disk_gb {
        disk = disk.set_disk_size_gb(size);
    }
    if let Some(kind) = &settings.disk_type {
        disk = disk.set_disk_type(format!("zones/{zone}/diskTypes/{kind}"));
    }
    let mut instance = Instance::new()
        .set_name(request.client_token.as_str())
        .set_machine_type(format!("zones/{zone}/machineTypes/{}", request.node_type))
        .set_labels(labels)
        .set_disks([AttachedDisk::new().set_boot(true).set_auto_delete(true).set_initialize_params(disk)])
        .set_network_interfaces([network(settings, zone)])
        .set_metadata(Metadata::new().set_items(metadata(settings, request)));
    if !settings.network_tags.is_empty() {
        instance = instance.set_tags(Tags::new().set_items(settings.network_tags.clone()));
    }
    if let Some(email) = &settings.service_account {
        let scopes = if settings.scopes.is_empty() { vec![SCOPE.to_owned()] } else { settings.scopes.clone() };
        instance = instance.set_service_accounts([ServiceAccount::new().set_email(email).set_scopes(scopes)]);
    }
    if request.spot || settings.spot {
        let spot = Scheduling::new()
            .set_provisioning_model(ProvisioningModel::Spot)
            // One that was taken back is not paid for any more.
            .set_instance_termination_action(InstanceTerminationAction::Delete)
            .set_on_host_maintenance(OnHostMaintenance::Terminate)
            .set_automatic_restart(false);
        instance = instance.set_scheduling(spot);
    }
    Ok(instance)
}

fn labels_of(
    settings: &GcpSettings,
    cluster: &ClusterName,
    request: &LaunchRequest,
    attempted: &str,
) -> Result<std::collections::BTreeMap<String, String>, ProviderError> {
    if let Some(why) = labels::against(tag::POOL, request.pool.as_str()) {
        return Err(ProviderError::invalid("pool", attempted, format!("at Google its name is a label: {why}")));
    }
    if let Some(why) = request.tags.iter().find_map(|(key, value)| labels::against(key, value)) {
        return Err(ProviderError::invalid("tags", attempted, format!("at Google they are labels: {why}")));
    }
    let mut labels = settings.labels.clone();
    labels.extend(request.tags.clone());
    labels.insert(tag::CLUSTER.to_owned(), cluster.to_string());
    labels.insert(tag::CLIENT_TOKEN.to_owned(), request.client_token.to_string());
    labels.insert(tag::POOL.to_owned(), request.pool.to_string());
    Ok(labels)
}

fn image(settings: &GcpSettings) -> String {
    let project = settings.image_project.as_deref().unwrap_or(IMAGE_PROJECT);
    match &settings.image {
        Some(image) => format!("projects/{project}/global/images/{image}"),
        None => {
            let family = settings.image_family.as_deref().unwrap_or(IMAGE_FAMILY);
            format!("projects/{project}/global/images/family/{family}")
        }
    }
}

fn network(settings: &GcpSettings, zone: &Zone) -> NetworkInterface {
    let path = |name: &str, folder: &str| {
        if name.starts_with("projects/") { name.to_owned() } else { format!("{folder}/{name}") }
    };
    let mut interface = NetworkInterface::new();
    // A subnetwork's network follows from it.
    if let Some(name) = settings.network.as_deref().or_else(|| settings.subnetwork.is_none().then_some("default")) {
        interface = interface.set_network(path(name, "global/networks"));
    }
    if let (Some(name), Some(region)) = (&settings.subnetwork, region_of(zone.as_str())) {
        interface = interface.set_subnetwork(path(name, &format!("regions/{region}/subnetworks")));
    }
    if !settings.internal_only {
        let outside = AccessConfig::new().set_name("External NAT").set_type(access_config::Type::OneToOneNat);
        interface = interface.set_access_configs([outside]);
    }
    interface
}

fn metadata(settings: &GcpSettings, request: &LaunchRequest) -> Vec<Items> {
    let item = |key: &str, value: &str| Items::new().set_key(key).set_value(value);
    let mut items = vec![
        // A project may say otherwise of all its machines: then keys in the metadata would not be looked at.
        item("enable-oslogin", "FALSE"),
        // Google's images put their host keys there, and not all of them on the console.
        item("enable-guest-attributes", "TRUE"),
        item("block-project-ssh-keys", "TRUE"),
    ];
    if let Some(key) = &settings.ssh_public_key {
        let user = settings.ssh_user.as_deref().unwrap_or(SSH_USER);
        items.push(item("ssh-keys", &format!("{user}:{}", key.trim())));
    }
    if let Some(text) = &request.user_data {
        // A script is Google's own agent's, which is in all of Google's images; anything else only cloud-init reads.
        items.push(item(if text.starts_with("#!") { "startup-script" } else { "user-data" }, text));
    }
    items
}
