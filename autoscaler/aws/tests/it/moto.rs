//! The seam's clauses, and what is special to EC2, at moto's server.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flux_protocol::PoolName;
use flux_provider::{
    ClientToken, ClusterName, ErrorKind, LaunchRequest, NodeId, NodeType, Provider as _, ProviderError,
    conformance::Subject,
};
use flux_provider_aws::{AwsProvider, AwsSettings};
use flux_testkit::{FluxCommand, FluxProcess, eventually_some};

const SOON: Duration = Duration::from_secs(90);

/// moto's server, on a port that the kernel gave it.
struct Moto {
    _process: FluxProcess,
    url: String,
}

impl Moto {
    async fn start() -> Self {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a checkout");
        let server: PathBuf = checkout.join(".tools/moto/bin/moto_server");
        assert!(server.exists(), "no {}: run `scripts/setup.sh clouds`, or `make test-clouds`", server.display());
        let checks = ["MOTO_ENABLE_AMI_VALIDATION", "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"];
        let server = checks.iter().fold(FluxCommand::of_program(server), |server, check| server.env(check, "true"));
        let process = server.args(["-H", "127.0.0.1", "-p", "0"]).spawn();
        let url = eventually_some(SOON, "moto to listen", || async {
            let log = process.log();
            let url = log.lines().find_map(|line| line.split_once("Running on "))?.1.trim().to_owned();
            Some(url)
        })
        .await;
        Self { _process: process, url }
    }

    /// Settings with an image and a subnet that are there.
    async fn settings(&self) -> AwsSettings {
        let mut settings = crate::settings(&self.url);
        // Images that moto knows by itself.
        settings.ami = "ami-12c6146b".to_owned();
        settings
    }

    async fn provider(&self, cluster: &str, settings: AwsSettings) -> Arc<AwsProvider> {
        Arc::new(AwsProvider::connect(settings, name(cluster)).await.expect("names"))
    }
}

fn name(cluster: &str) -> ClusterName {
    ClusterName::parse(cluster).expect("a name")
}

fn request(cluster: &str) -> LaunchRequest {
    let small = NodeType::parse("t3.small").expect("a type");
    LaunchRequest::new(ClientToken::fresh(&name(cluster)), small, PoolName::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_clause_holds() {
    let moto = Moto::start().await;
    let mut number = 0;
    let mut subject = async || {
        number += 1;
        let (here, there) = (format!("here-{number}"), format!("there-{number}"));
        Subject {
            provider: moto.provider(&here, moto.settings().await).await,
            other_cluster: moto.provider(&there, moto.settings().await).await,
            cluster: name(&here),
            small: NodeType::parse("t3.small").expect("a type"),
            large: NodeType::parse("m5.xlarge").expect("a type"),
            no_such_node: NodeId::parse("i-0123456789abcdef0").expect("an id"),
            guard: Box::new(()),
        }
    };
    flux_provider::hold_every_clause!(subject().await);
}

#[tokio::test]
async fn a_launch_whose_answer_was_lost_is_found_by_another_process() {
    let moto = Moto::start().await;
    let asked = request("lost");
    let before = moto.provider("lost", moto.settings().await).await.launch(&asked).await.expect("launched");
    // moto takes no notice of EC2's ClientToken: it is the tag that finds it.
    let after = moto.provider("lost", moto.settings().await).await.launch(&asked).await.expect("found");
    assert_eq!(before.id, after.id);
}

#[tokio::test]
async fn what_is_configured_is_on_the_node_and_what_is_not_there_is_named() {
    let moto = Moto::start().await;
    let mut settings = moto.settings().await;
    settings.tags.insert("cost-center".to_owned(), "42".to_owned());
    settings.spot = true;
    let provider = moto.provider("configured", settings.clone()).await;
    let node = provider.launch(&request("configured")).await.expect("launched");
    assert_eq!(node.tags.get("cost-center").map(String::as_str), Some("42"));
    assert!(node.spot, "{node:?}");
    for (field, change) in [
        (
            "ami",
            (|settings: &mut AwsSettings| settings.ami = "ami-0123456789abcdef0".to_owned()) as fn(&mut AwsSettings),
        ),
        ("subnets", |settings| settings.subnets = vec!["subnet-0123456789abcdef0".to_owned()]),
        ("security_groups", |settings| settings.security_groups = vec!["sg-0123456789abcdef0".to_owned()]),
    ] {
        let mut wrong = settings.clone();
        wrong.spot = false;
        change(&mut wrong);
        let refused = moto.provider("configured", wrong).await.launch(&request("configured")).await;
        let error = refused.expect_err(field);
        let ProviderError::Invalid { field: named, .. } = error else { panic!("{field}: {error:?}") };
        assert_eq!(named, field);
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
