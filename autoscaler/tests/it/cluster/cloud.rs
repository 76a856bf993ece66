//! A provider whose machines are bare, with Debian's sshd alone: launched, set up by the autoscaler's own loop, used, given back.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc, time::Duration};

use async_trait::async_trait;
use flux_autoscaler::{configured, machines::Machines, run::run_on};
use flux_pki::Certs;
use flux_protocol::{Timestamp, limits};
use flux_provider::{
    Capabilities, ClusterName, ConsoleOutput, LaunchRequest, MemoryProvider, Node, NodeId, NodeState, NodeType,
    Provider, ProviderError, TypeDetails, Zone, memory::MemoryOptions,
};
use flux_runtime::{Settings, Shutdown};
use flux_testkit::{Api, BareMachine, File, FluxBin, FluxCommand, FluxUp, eventually, eventually_some, in_own_network};
use serde_json::{Value, json};
use tokio::sync::Mutex;

const WITHIN: Duration = Duration::from_secs(120);

/// One machine at most: there is one address.
struct Cloud {
    memory: MemoryProvider,
    public_key: PathBuf,
    machine: Mutex<Option<(NodeId, BareMachine)>>,
}

impl Cloud {
    fn new(certs: &Certs) -> Arc<Self> {
        let [_, public_key] = certs.ssh_files();
        let memory = MemoryProvider::new(MemoryOptions::new(ClusterName::parse("flux").expect("a name")));
        Arc::new(Self { memory, public_key, machine: Mutex::default() })
    }

    /// A file of the machine, if there is one.
    async fn path(&self, name: &str) -> Option<PathBuf> {
        self.machine.lock().await.as_ref().map(|(_, machine)| machine.root().join(name))
    }
}

fn with_address(node: Node) -> Node {
    let public_address = (node.state == NodeState::Running).then_some([127, 0, 0, 1].into());
    Node { public_address, private_address: None, ..node }
}

#[async_trait]
impl Provider for Cloud {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { needs_bootstrap: true, ..self.memory.capabilities() }
    }

    fn zones(&self) -> &[Zone] {
        self.memory.zones()
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Node, ProviderError> {
        let node = self.memory.launch(request).await?;
        let mut machine = self.machine.lock().await;
        if machine.as_ref().is_none_or(|(id, _)| *id != node.id) {
            *machine = Some((node.id.clone(), BareMachine::start(&self.public_key, "").await));
        }
        Ok(with_address(node))
    }

    async fn list(&self) -> Result<Vec<Node>, ProviderError> {
        Ok(self.memory.list().await?.into_iter().map(with_address).collect())
    }

    async fn terminate(&self, id: &NodeId) -> Result<(), ProviderError> {
        self.machine.lock().await.take_if(|(of, _)| of == id);
        self.memory.terminate(id).await
    }

    async fn console_output(&self, id: &NodeId) -> Result<ConsoleOutput, ProviderError> {
        let machine = self.machine.lock().await;
        let (_, machine) = machine
            .as_ref()
            .filter(|(of, _)| of == id)
            .ok_or_else(|| ProviderError::NotFound { what: format!("a console of {id}") })?;
        let key = machine.host_key();
        Ok(ConsoleOutput::parse(format!(
            "[ 1.0] Linux\n-----BEGIN SSH HOST KEY KEYS-----\n{key}-----END SSH HOST KEY KEYS-----\n"
        )))
    }

    async fn describe_types(&self, types: &[NodeType]) -> Result<Vec<TypeDetails>, ProviderError> {
        self.memory.describe_types(types).await
    }
}

/// A whole Flux with the pool `cloud`, which no agent of its own is in, and a cloud that has its public key.
struct Story {
    up: FluxUp,
    cloud: Arc<Cloud>,
    settings: Settings,
    dir: tempfile::TempDir,
}

impl Story {
    /// `ssh` is what that section has further.
    async fn begin(ssh: Value) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let gateway = dir.path().join("gateway.yaml");
        std::fs::write(&gateway, "gateway: { pools: [cloud] }\n").expect("written");
        let up = FluxUp::start_with(&["--config", &gateway.to_string_lossy()]).await;
        let program = dir.path().join("flux-agent");
        std::fs::copy(FluxBin::locate("flux-agent"), &program).expect("copied");
        // Without symbols it is a fifth.
        assert!(Command::new("strip").arg(&program).status().expect("strip").success());
        let (queue, mut of_ssh) = (up.queue_url(), ssh);
        for (name, value) in
            [("user", json!("root")), ("agent", json!({ "file": program })), ("queue_url", json!(queue))]
        {
            of_ssh[name] = value;
        }
        // Not by `config::load`, which reads the environment, and what nextest is told there.
        let settings = json!({
            "certs_dir": up.path("certs"),
            "queue": { "url": queue },
            "autoscaler": {
                "pool": "cloud", "gateway_url": up.api.base(), "api_key": up.api.key(), "dir": dir.path().join("autoscaler"),
                "poll_interval_sec": 0.5, "evaluation_window_sec": 3600, "cooldown_sec": 2, "target_queue_seconds": 4,
                "load_window_sec": 4, "panic_window_sec": 1, "scale_down_delay_sec": 2, "recurring_gap_sec": 0, "expected_boot_sec": 2,
                "providers": [{
                    "kind": "aws", "max_nodes": 1, "node_types": [{ "name": "small", "tasks": 2 }],
                    "aws": { "region": "here", "ami": "ami-0" }, "ssh": of_ssh,
                }],
            },
        });
        let settings: Settings = serde_json::from_value(settings).expect("a configuration");
        let cloud = Cloud::new(&Certs::at(up.path("certs")));
        Self { up, cloud, settings, dir }
    }

    /// The autoscaler runs while that goes on, and then ends in order.
    async fn while_it_scales<T>(&self, story: impl Future<Output = T>) -> T {
        let ssh = configured::ssh(&self.settings, &self.settings.autoscaler.providers[0], true).expect("a recipe");
        let machines = Machines { provider: Arc::clone(&self.cloud) as _, ssh: Some(ssh), place: "here".to_owned() };
        let shutdown = Shutdown::new();
        let machines = BTreeMap::from([("aws".to_owned(), machines)]);
        let running = run_on(self.settings.clone(), machines, Arc::clone(&shutdown));
        let (mut running, story) = (Box::pin(running), Box::pin(story));
        let told = tokio::select! {
            ended = &mut running => panic!("the autoscaler ended: {ended:?}"),
            told = story => told,
        };
        shutdown.start_drain();
        running.await.expect("an end in order");
        told
    }

    async fn waits_for_a_node(&self) -> String {
        let yaml = "name: far\nhandler: run.sh\npool: cloud\nresources: { cpu: 10, memory: 16 }\ntimeout: 60\n";
        let handler = File::executable("run.sh", "#!/bin/sh\necho \"hello from $FLUX_AGENT_ID\"\n");
        self.up.api.deploy("far", yaml, &[handler]).await;
        self.up.api.execute_async("far", &json!({})).await
    }

    fn revoked(&self, agent: &str) -> bool {
        let grant = self.up.path("certs/agents").join(agent).join("grant.json");
        let grant: Value = serde_json::from_slice(&std::fs::read(grant).expect("a grant")).expect("JSON");
        grant["revoked"] == true
    }
}

async fn nodes(api: &Api) -> Vec<Value> {
    api.get("/autoscaler").await.json["nodes"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_machine_is_launched_set_up_used_and_given_back_though_the_autoscaler_ends_meanwhile() {
    in_own_network(async {
        // It is begun by one autoscaler, and goes on when the next has come.
        let slow = "echo x >>/run/begun; while [ ! -e /run/go ]; do sleep 0.1; done";
        let story = Story::begin(json!({ "agent_setup_commands": [slow] })).await;
        let (api, cloud) = (&story.up.api, &story.cloud);
        let execution = story.waits_for_a_node().await;
        let begun = async || match cloud.path("run/begun").await {
            Some(path) => path.exists(),
            None => false,
        };
        story.while_it_scales(eventually(WITHIN, "a machine to be set up", begun)).await;
        assert_eq!(cloud.memory.alive().len(), 1, "it stays");
        let go = cloud.path("run/go").await.expect("a machine");
        let goes_on = async {
            eventually(WITHIN, "another autoscaler", || async { nodes(api).await.len() == 1 }).await;
            std::fs::write(go, "").expect("written");
            let record = api.outcome(&execution, WITHIN).await;
            assert_eq!(record["status"], "success", "{record:#}");
            let agent = cloud.memory.alive().first().expect("a machine").client_token.to_string();
            assert!(record.to_string().contains(&agent), "{agent} ran it: {record:#}");
            eventually(WITHIN, "no machine", || async {
                nodes(api).await.is_empty() && cloud.memory.alive().is_empty()
            })
            .await;
            eventually(WITHIN, "its identity to be revoked", || async { story.revoked(&agent) }).await;
        };
        story.while_it_scales(goes_on).await;
        assert_eq!(cloud.memory.bought().len(), 1, "there was one machine all the time");
        assert!(cloud.machine.lock().await.is_none());
    });
}

#[test]
fn a_machine_that_cannot_be_set_up_is_terminated_and_its_reason_is_shown() {
    in_own_network(async {
        let fails = "echo with token-4711; echo no such mirror >&2; exit 7";
        let fails = json!({ "agent_setup_commands": [fails], "secrets": ["token-4711"] });
        let story = Story::begin(fails).await;
        let (api, cloud) = (&story.up.api, &story.cloud);
        story.waits_for_a_node().await;
        let ends = async {
            let (failed_at, failed) = eventually_some(WITHIN, "a reason", || async {
                let said = api.get("/autoscaler").await.json;
                said["decisions"].as_array()?.iter().find_map(|decision| {
                    let mut actions = decision["actions"].as_array()?.iter();
                    let failed = actions.find(|action| action["reason"]["rule"] == "set_up")?;
                    Some((decision["at"].clone(), failed.clone()))
                })
            })
            .await;
            assert_eq!(failed["action"], "terminate", "{failed:#}");
            let why = "setup command 1 of 1 failed at try 3: it ended with status 7";
            assert_eq!(
                (&failed["reason"]["said"], &failed["output"]),
                (&json!(why), &json!("with ***\nno such mirror"))
            );
            let agent = cloud.memory.bought()[0].client_token.to_string();
            assert!(failed["what"].as_str().is_some_and(|what| what.contains(&agent)), "{failed:#}");
            eventually(WITHIN, "no machine", || async { cloud.memory.alive().is_empty() }).await;
            eventually(WITHIN, "its identity to be revoked", || async { story.revoked(&agent) }).await;
            for what in ["explain", "status"] {
                let told = FluxCommand::new("flux")
                    .args(["autoscaler", what, "--url", api.base(), "--key", api.key()])
                    .output(WITHIN)
                    .await;
                let told = String::from_utf8_lossy(&told.stdout).into_owned();
                assert!(told.contains(why), "{what}: {told}");
                assert_eq!(told.contains("    | no such mirror"), what == "explain", "{told}");
                assert!(!told.contains("4711"), "{told}");
            }
            failed_at
        };
        let failed_at = story.while_it_scales(ends).await;
        // It is tried again when the pause is over, which it may be by now.
        let failed_at: Timestamp = serde_json::from_value(failed_at).expect("a time");
        for later in &cloud.memory.bought()[1..] {
            let waited = later.launched_at.since(failed_at);
            assert!(waited >= limits::SET_UP_FAILED, "the next was bought {waited:?} after the failure");
        }
        drop(story.dir);
    });
}
