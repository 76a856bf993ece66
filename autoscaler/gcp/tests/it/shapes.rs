//! Requests as they go out: a changed one is a decision.

use axum::http::Method;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flux_provider::{Provider as _, ProviderError, Zone};
use serde_json::{Value, json};

use crate::{Google, compute::ZONES, request};

fn item<'a>(body: &'a Value, key: &str) -> Option<&'a str> {
    let items = body["metadata"]["items"].as_array().expect("items");
    items.iter().find(|item| item["key"] == key).map(|item| item["value"].as_str().expect("text"))
}

#[tokio::test]
async fn the_least_that_is_configured_makes_a_whole_machine() {
    let google = Google::start().await;
    google.provider("here").await.launch(&request("here-1")).await.expect("launched");
    let [insert] = &google.compute.inserts()[..] else { panic!("one insert") };
    assert_eq!(insert.path, "/compute/v1/projects/crew-1/zones/europe-west3-a/instances");
    let labels = json!({ "flux-cluster": "here", "flux-client-token": "here-1", "flux-pool": "workers" });
    assert_eq!(
        insert.body,
        json!({
            "name": "here-1",
            "machineType": "zones/europe-west3-a/machineTypes/e2-small",
            "labels": labels,
            "disks": [{
                "boot": true, "autoDelete": true,
                "initializeParams": { "sourceImage": "projects/debian-cloud/global/images/family/debian-12", "labels": labels },
            }],
            "networkInterfaces": [{
                "network": "global/networks/default",
                "accessConfigs": [{ "name": "External NAT", "type": "ONE_TO_ONE_NAT" }],
            }],
            "metadata": { "items": [
                { "key": "enable-oslogin", "value": "FALSE" },
                { "key": "enable-guest-attributes", "value": "TRUE" },
                { "key": "block-project-ssh-keys", "value": "TRUE" },
            ] },
        })
    );
}

#[tokio::test]
async fn all_that_is_configured_is_asked_for() {
    let google = Google::start().await;
    let mut settings = google.settings();
    settings.image = Some("debian-12-bookworm-v20261110".to_owned());
    settings.network = Some("projects/host/global/networks/shared".to_owned());
    settings.subnetwork = Some("nodes".to_owned());
    settings.internal_only = true;
    settings.network_tags = vec!["flux-node".to_owned()];
    settings.labels.insert("cost-center".to_owned(), "42".to_owned());
    settings.labels.insert("team".to_owned(), "settings".to_owned());
    settings.service_account = Some("node@crew-1.iam.gserviceaccount.com".to_owned());
    settings.spot = true;
    settings.disk_gb = Some(20);
    settings.disk_type = Some("pd-balanced".to_owned());
    settings.ssh_user = Some("crew".to_owned());
    settings.ssh_public_key = Some("ssh-ed25519 AAAA flux\n".to_owned());
    let mut asked = request("here-1");
    asked.zone = Some(Zone::parse(ZONES[1]).expect("a zone"));
    asked.tags.insert("team".to_owned(), "crew".to_owned());
    asked.user_data = Some("#!/bin/sh\ntrue\n".to_owned());
    let node = google.provider_with("here", settings).await.launch(&asked).await.expect("launched");
    assert!(node.spot && node.public_address.is_none() && node.private_address.is_some(), "{node:?}");
    let [insert] = &google.compute.inserts()[..] else { panic!("one insert") };
    let labels = json!({
        "flux-cluster": "here", "flux-client-token": "here-1", "flux-pool": "workers", "cost-center": "42", "team": "crew",
    });
    assert_eq!(
        insert.body,
        json!({
            "name": "here-1",
            "machineType": "zones/europe-west3-b/machineTypes/e2-small",
            "labels": labels,
            "disks": [{
                "boot": true, "autoDelete": true,
                "initializeParams": {
                    "sourceImage": "projects/debian-cloud/global/images/debian-12-bookworm-v20261110", "labels": labels,
                    "diskSizeGb": "20", "diskType": "zones/europe-west3-b/diskTypes/pd-balanced",
                },
            }],
            "networkInterfaces": [{
                "network": "projects/host/global/networks/shared",
                "subnetwork": "regions/europe-west3/subnetworks/nodes",
            }],
            "metadata": { "items": [
                { "key": "enable-oslogin", "value": "FALSE" },
                { "key": "enable-guest-attributes", "value": "TRUE" },
                { "key": "block-project-ssh-keys", "value": "TRUE" },
                { "key": "ssh-keys", "value": "crew:ssh-ed25519 AAAA flux" },
                { "key": "startup-script", "value": "#!/bin/sh\ntrue\n" },
            ] },
            "tags": { "items": ["flux-node"] },
            "serviceAccounts": [{
                "email": "node@crew-1.iam.gserviceaccount.com", "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
            }],
            "scheduling": {
                "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE",
                "automaticRestart": false,
            },
        })
    );
}

#[tokio::test]
async fn a_request_is_named_by_its_token_and_its_place() {
    let google = Google::start().await;
    let mut asked = request("here-1");
    asked.user_data = Some("#cloud-config\n".to_owned());
    google.provider("here").await.launch(&asked).await.expect("launched");
    let [insert] = &google.compute.inserts()[..] else { panic!("one insert") };
    // Of SHA-256 of `here-1/europe-west3-a/e2-small/0`: another version of Flux asks again with the same.
    assert_eq!(insert.query["requestId"], "b499be46-ea09-4277-a2df-ce9c301fdf75");
    assert_eq!(item(&insert.body, "user-data"), Some("#cloud-config\n"));
    assert_eq!(item(&insert.body, "startup-script"), None);
}

#[tokio::test]
async fn what_is_asked_for_is_signed_by_the_service_account_and_asks_for_this_cluster() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    provider.list().await.expect("listed");
    let seen = google.compute.world(|world| world.seen.clone());
    let [list] = &seen[..] else { panic!("one request: {seen:?}") };
    assert_eq!((&list.method, list.path.as_str()), (&Method::GET, "/compute/v1/projects/crew-1/aggregated/instances"));
    assert_eq!(list.query["filter"], "labels.flux-cluster = \"here\"");
    let claims = claims(&list.authorization);
    assert_eq!(claims["iss"], "autoscaler@crew-1.iam.gserviceaccount.com");
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/compute");
}

/// What the token says of itself.
fn claims(authorization: &str) -> Value {
    let token = authorization.strip_prefix("Bearer ").expect("a token");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a JWT")).expect("base64");
    serde_json::from_slice(&claims).expect("JSON")
}

/// Run by the test below, in an environment that names a key.
#[tokio::test]
#[ignore = "needs GOOGLE_APPLICATION_CREDENTIALS"]
async fn asks_by_application_default_credentials() {
    let google = Google::start().await;
    let mut settings = google.settings();
    settings.key_file = None;
    google.provider_with("here", settings).await.list().await.expect("listed");
    let seen = google.compute.world(|world| world.seen.clone());
    assert_eq!(claims(&seen[0].authorization)["iss"], "autoscaler@crew-1.iam.gserviceaccount.com");
}

#[test]
fn without_a_key_file_the_environment_names_the_credentials() {
    let key = crate::KeyFile::new();
    let this = std::env::current_exe().expect("a program");
    let ran = std::process::Command::new(this)
        .args(["--ignored", "--exact", "shapes::asks_by_application_default_credentials"])
        .env("GOOGLE_APPLICATION_CREDENTIALS", key.path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn what_is_no_label_at_google_is_refused_before_it_is_asked_for() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    let (mut tags, mut pool) = (request("here-1"), request("here-1"));
    tags.tags.insert("Team".to_owned(), "crew".to_owned());
    pool.pool = flux_protocol::PoolName::parse("Workers").expect("a name");
    for (field, asked) in [("tags", tags), ("pool", pool)] {
        let error = provider.launch(&asked).await.expect_err(field);
        let ProviderError::Invalid { field: named, .. } = error else { panic!("{error:?}") };
        assert_eq!(named, field);
    }
    assert!(google.compute.inserts().is_empty());
}
