//! Compute Engine's real client against a stand-in that keeps to the published REST API.
//!
//! No cloud is ever asked: the endpoint is always given, and the service account's key is one that was made just now.

mod clauses;
mod compute;
mod refusals;
mod shapes;

use std::{path::PathBuf, sync::Arc};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flux_protocol::PoolName;
use flux_provider::{ClientToken, ClusterName, LaunchRequest, NodeType};
use flux_provider_gcp::{GcpProvider, GcpSettings};

use crate::compute::{Compute, PROJECT, ZONES};

/// A service account that nobody has.
struct KeyFile(tempfile::TempDir);

impl KeyFile {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der: Pkcs8V1Der = pair.as_der().expect("PKCS #8");
        let encoded = BASE64_STANDARD.encode(der.as_ref());
        let lines: Vec<&str> =
            encoded.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64")).collect();
        let key = serde_json::json!({
            "type": "service_account", "project_id": PROJECT, "private_key_id": "0123456789abcdef",
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")),
            "client_email": "autoscaler@crew-1.iam.gserviceaccount.com", "client_id": "1",
            "token_uri": "http://127.0.0.1:1/no-token-is-fetched", "universe_domain": "googleapis.com",
        });
        std::fs::write(dir.path().join("key.json"), key.to_string()).expect("written");
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("key.json")
    }
}

/// A stand-in, and who may ask it.
struct Google {
    compute: Compute,
    key: KeyFile,
}

impl Google {
    async fn start() -> Self {
        Self { compute: Compute::start().await, key: KeyFile::new() }
    }

    fn settings(&self) -> GcpSettings {
        GcpSettings {
            project: PROJECT.to_owned(),
            zones: ZONES.map(str::to_owned).to_vec(),
            key_file: Some(self.key.path()),
            endpoint_url: Some(self.compute.url.clone()),
            ..GcpSettings::default()
        }
    }

    async fn provider(&self, cluster: &str) -> Arc<GcpProvider> {
        self.provider_with(cluster, self.settings()).await
    }

    async fn provider_with(&self, cluster: &str, settings: GcpSettings) -> Arc<GcpProvider> {
        Arc::new(GcpProvider::connect(settings, name(cluster)).await.expect("settings that can be"))
    }
}

fn name(cluster: &str) -> ClusterName {
    ClusterName::parse(cluster).expect("a name")
}

fn node_type(name: &str) -> NodeType {
    NodeType::parse(name).expect("a type")
}

fn request(token: &str) -> LaunchRequest {
    let token = ClientToken::parse(token).expect("a token");
    LaunchRequest::new(token, node_type("e2-small"), PoolName::parse("workers").expect("a name"))
}
