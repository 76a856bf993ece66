//! Two gateways on one store, a real one: what one is told the other knows, whatever it holds in memory.

use std::time::Duration;

use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, NatsServer, PostgresServer, RedisServer, eventually, free_port, passable_dir,
    start_gateway_on,
};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "two-gateways";
const ENDS: Duration = Duration::from_secs(60);

const YAML: &str = "name: echo\nhandler: run.sh\nresources: { cpu: 10, memory: 16 }\nmax_concurrency: 8\ntimeout: 30\n";

fn code(answer: &str) -> [File; 1] {
    [File::executable("run.sh", format!("#!/bin/sh\necho {answer}\n"))]
}

/// Two gateways, an agent, and the queue between them.
struct Two {
    one: Api,
    other: Api,
    _processes: Vec<FluxProcess>,
    _dirs: Vec<TempDir>,
    _nats: NatsServer,
}

impl Two {
    async fn start(store: &str) -> Self {
        let nats = NatsServer::start().await;
        let (mut processes, mut dirs, mut apis) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2 {
            let dir = passable_dir("flux-two-");
            let listen = format!("127.0.0.1:{}", free_port());
            processes.push(start_gateway_on(store, &nats.url(), dir.path(), &listen, KEY));
            apis.push(Api::new(format!("http://{listen}"), KEY));
            dirs.push(dir);
        }
        let dir = passable_dir("flux-two-agent-");
        let agent = FluxCommand::new("flux-agent").env("FLUX_DISABLE_MTLS", "true");
        let agent = agent.args(["--queue-url", &nats.url(), "--id", "agent", "--tasks", "8", "--work-dir"]);
        processes.push(agent.arg(dir.path()).spawn());
        dirs.push(dir);
        let [one, other] = <[Api; 2]>::try_from(apis).unwrap_or_else(|_| panic!("two"));
        for api in [&one, &other] {
            api.ready(ENDS).await;
            eventually(ENDS, "the agent", || async {
                let agents = api.get("/agents").await.json;
                agents.as_array().is_some_and(|all| all.iter().any(|agent| agent["status"] == "online"))
            })
            .await;
        }
        Self { one, other, _processes: processes, _dirs: dirs, _nats: nats }
    }

    /// Until a gateway answers a call with this.
    async fn answers(&self, api: &Api, said: &str) {
        eventually(ENDS, format!("{said} from {}", api.base()), || async {
            let reply = api.execute("echo", &json!(1)).await;
            reply.json["output"].as_str().is_some_and(|output| output.trim() == said)
        })
        .await;
    }

    async fn know_of_each_other(&self) {
        let (one, other) = (&self.one, &self.other);
        one.deploy("echo", YAML, &code("first")).await;
        self.answers(one, "first").await;
        self.answers(other, "first").await;
        other.deploy("echo", YAML, &code("second")).await;
        self.answers(one, "second").await;
        one.post("/functions/echo/rollback", &json!({"version": 1})).await.expect(200);
        self.answers(other, "first").await;

        // Accepted here, asked for there, listed on both.
        let mut ids = Vec::new();
        for n in 0..20 {
            ids.push([one, other][n % 2].execute_async("echo", &json!(n)).await);
        }
        for (n, id) in ids.iter().enumerate() {
            let asked = [other, one][n % 2];
            assert_eq!(asked.outcome(id, ENDS).await["status"], "success");
            for api in [one, other] {
                let listed = api.get("/executions?function=echo&status=success&limit=1000").await.text();
                assert!(listed.contains(id), "{id} is not in the list of {}", api.base());
            }
        }

        // One key, one execution, whichever gateway is asked.
        let twice = [one, other].map(|api| {
            let request = api.request(reqwest::Method::POST, "/execute/echo/async");
            Api::try_send(request.header("Idempotency-Key", "once").json(&json!({"payload": 1})))
        });
        let ids = futures::future::join_all(twice).await.into_iter();
        let ids: Vec<String> =
            ids.map(|reply| reply.expect("sent").expect(202).json["execution_id"].to_string()).collect();
        assert_eq!(ids[0], ids[1]);

        // A key opens both, and neither once it is deleted.
        let made = one.post("/keys", &json!({"name": "ci", "scopes": ["read"]})).await.expect(201).json;
        let (id, key) = (made["id"].as_str().expect("an id"), made["key"].as_str().expect("a key"));
        let opens = async |api: &Api| api.with_key(key).get("/functions").await.status == 200;
        eventually(ENDS, "the key to open the other", || opens(other)).await;
        other.delete(&format!("/keys/{id}")).await.expect(200);
        eventually(ENDS, "the key to open none", || async { !opens(one).await && !opens(other).await }).await;
    }

    /// The store is away: nothing is accepted that it does not have; what runs goes on, and is recorded when it is back.
    async fn refuse(&self) {
        eventually(ENDS, "both to say that they are not ready", || async {
            let (one, other) = (self.one.get("/ready").await, self.other.get("/ready").await);
            one.status == 503 && other.status == 503
        })
        .await;
        let refused = self.one.post("/execute/echo/async", &json!({"payload": 1})).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
    }

    async fn come_back(&self) {
        self.one.ready(ENDS).await;
        self.other.ready(ENDS).await;
        let id = self.one.execute_async("echo", &json!(1)).await;
        assert_eq!(self.other.outcome(&id, ENDS).await["status"], "success");
    }
}

#[tokio::test]
async fn two_gateways_on_postgres() {
    let mut server = PostgresServer::start().await;
    let two = Two::start(&server.url()).await;
    two.know_of_each_other().await;
    server.kill9();
    two.refuse().await;
    server.restart().await;
    two.come_back().await;
}

#[tokio::test]
async fn two_gateways_on_redis() {
    let mut server = RedisServer::start().await;
    let two = Two::start(&server.url()).await;
    two.know_of_each_other().await;
    server.kill9();
    two.refuse().await;
    server.restart().await;
    two.come_back().await;
}
