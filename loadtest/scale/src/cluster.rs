//! The processes of a run, apart from each other so that each can be measured.

use std::{path::Path, time::Duration};

use flux_protocol::{agent::ControlRequest, subject};
use flux_testkit::{
    Api, FluxCommand, FluxProcess, NatsServer, eventually, eventually_some, free_port, passable_dir, start_gateway,
};
use tempfile::TempDir;

use crate::{meter::Measured, simulated::STARTS, size::Size};

const KEY: &str = "scale";
const REAL: &str = "real";
/// Everybody's start, with all the functions to be read.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
const REAL_TASKS: u32 = 16;

pub(crate) struct Cluster {
    pub(crate) api: Api,
    pub(crate) client: async_nats::Client,
    // Dropped in this order: agents before what they talk to.
    real: Option<FluxProcess>,
    simulated: FluxProcess,
    gateway: FluxProcess,
    nats: NatsServer,
    dir: TempDir,
}

impl Cluster {
    /// A queue, a gateway and simulated agents, which `program` is.
    pub(crate) async fn start(size: &Size, program: &Path) -> Self {
        let nats = NatsServer::start().await;
        let dir = passable_dir("flux-scale-");
        let listen = format!("127.0.0.1:{}", free_port());
        let gateway = start_gateway(&nats.url(), dir.path(), &listen, KEY);
        let api = Api::new(format!("http://{listen}"), KEY);
        api.ready(STARTED_WITHIN).await;
        let simulated = FluxCommand::of_program(program)
            .args(["agents", "--queue-url", &nats.url()])
            .args(["--count", &size.agents.to_string(), "--tasks", &size.tasks.to_string()])
            .spawn();
        let client = nats.client().await;
        let cluster = Self { api, client, real: None, simulated, gateway, nats, dir };
        cluster.until_agents("online", size.agents).await;
        cluster
    }

    /// An agent with a launcher, beside the simulated ones.
    pub(crate) async fn start_real(&mut self, online: usize) {
        let agent = FluxCommand::new("flux-agent")
            .env("FLUX_DISABLE_MTLS", "true")
            .args(["--queue-url", &self.nats.url(), "--id", REAL, "--tasks", &REAL_TASKS.to_string()])
            .arg("--work-dir")
            .arg(self.dir.path().join(REAL))
            .spawn();
        self.real = Some(agent);
        self.until_agents("online", online + 1).await;
    }

    /// The processes that are there now.
    pub(crate) fn measured(&self) -> Vec<Measured> {
        let mut all = vec![
            Measured { name: "gateway", pid: self.gateway.pid() },
            Measured { name: "nats-server", pid: self.nats.pid() },
            Measured { name: "simulated agents", pid: self.simulated.pid() },
        ];
        if let Some(real) = &self.real {
            // The tree root starts the agent, then the launcher when the agent asks for one.
            let agent = real.descendants().into_iter().find(|process| !process.command.contains("__launcher"));
            all.extend(agent.map(|agent| Measured { name: "agent", pid: agent.pid }));
            all.push(Measured { name: "launcher", pid: real.descendant("__launcher").pid });
        }
        all
    }

    /// Waits until the gateway lists so many agents with that status.
    pub(crate) async fn until_agents(&self, status: &str, count: usize) {
        eventually(STARTED_WITHIN, format!("{count} agents to be {status}"), || async {
            let agents = self.api.get("/agents").await.json;
            agents.as_array().is_some_and(|all| all.iter().filter(|one| one["status"] == status).count() == count)
        })
        .await;
    }

    /// No agent takes anything from now on.
    pub(crate) async fn drain_agents(&self, count: usize) {
        self.tell_agents(&ControlRequest::Drain).await;
        self.until_agents("draining", count).await;
    }

    pub(crate) async fn undrain_agents(&self) {
        self.tell_agents(&ControlRequest::Undrain).await;
    }

    async fn tell_agents(&self, what: &ControlRequest) {
        let body = serde_json::to_vec(what).expect("JSON");
        self.client.publish(subject::control_all(), body.into()).await.expect("published");
        self.client.flush().await.expect("sent");
    }

    /// Executions that the simulated agents started so far.
    pub(crate) async fn simulated_starts(&self) -> u64 {
        eventually_some(STARTED_WITHIN, "the simulated agents to say how much they started", || async {
            let answer = self.client.request(STARTS, "".into()).await.ok()?;
            std::str::from_utf8(&answer.payload).ok()?.parse().ok()
        })
        .await
    }

    pub(crate) async fn ended(&self) -> Ended {
        ended(&self.api).await
    }

    /// Where the gateway keeps its records, in bytes.
    pub(crate) fn store_bytes(&self) -> u64 {
        ["flux.db", "flux.db-wal"]
            .iter()
            .filter_map(|name| std::fs::metadata(self.dir.path().join(name)).ok())
            .map(|of| of.len())
            .sum()
    }
}

/// Executions whose end was recorded, by outcome, as the gateway counts them.
pub(crate) async fn ended(api: &Api) -> Ended {
    let metrics = api.get("/metrics").await.expect(200).text();
    let mut ended = Ended::default();
    for line in metrics.lines().filter(|line| line.starts_with("flux_executions_total{")) {
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        if line.contains("outcome=\"success\"") {
            ended.successes += count;
        } else {
            ended.others += count;
        }
    }
    ended
}

/// Recorded ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    pub successes: u64,
    pub others: u64,
}

impl Ended {
    pub fn all(self) -> u64 {
        self.successes + self.others
    }
}
