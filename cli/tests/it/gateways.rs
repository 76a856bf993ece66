//! Two gateways on one queue and one store: any of them answers for anything, and either may go. The store is one SQLite file, which
//! processes of one machine can share, or PostgreSQL, which gateways of several machines do.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flux_testkit::{
    Api, File, FluxCommand, FluxProcess, NatsServer, PostgresServer, eventually, free_port, passable_dir,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

const KEY: &str = "gateways";
const ENDS: Duration = Duration::from_secs(60);

struct Fleet {
    // In the order in which they are to go; gateways with what each listens on.
    gateways: Vec<(FluxProcess, String)>,
    agents: Vec<FluxProcess>,
    nats: NatsServer,
    _postgres: Option<PostgresServer>,
    store: String,
    dir: tempfile::TempDir,
}

impl Fleet {
    async fn start() -> Self {
        let dir = passable_dir("flux-gateways-");
        let store = format!("sqlite://{}", dir.path().join("flux.db").display());
        Self::start_on(dir, store, None).await
    }

    async fn start_on_postgres() -> Self {
        let postgres = PostgresServer::start().await;
        Self::start_on(passable_dir("flux-gateways-"), postgres.url(), Some(postgres)).await
    }

    async fn start_on(dir: tempfile::TempDir, store: String, postgres: Option<PostgresServer>) -> Self {
        let mut fleet = Self {
            dir,
            nats: NatsServer::start().await,
            store,
            _postgres: postgres,
            gateways: Vec::new(),
            agents: Vec::new(),
        };
        for n in 0..2 {
            let listen = format!("127.0.0.1:{}", free_port());
            let process = start(&fleet.nats, fleet.dir.path(), &fleet.store, n, &listen);
            fleet.gateways.push((process, listen));
            fleet.api(n).ready(ENDS).await;
        }
        fleet
    }

    fn api(&self, n: usize) -> Api {
        Api::new(format!("http://{}", self.gateways[n].1), KEY)
    }

    fn restart(&mut self, n: usize) {
        let listen = self.gateways[n].1.clone();
        self.gateways[n].0 = start(&self.nats, self.dir.path(), &self.store, n, &listen);
    }

    /// An agent, once these gateways know it.
    async fn add_agent(&mut self, known_to: &[usize]) {
        let agent = FluxCommand::new("flux-agent")
            .env("FLUX_DISABLE_MTLS", "true")
            .args(["--queue-url", &self.nats.url(), "--id", "only", "--tasks", "8"])
            .arg("--work-dir")
            .arg(self.dir.path().join("agent"))
            .spawn();
        self.agents.push(agent);
        for n in known_to {
            let api = self.api(*n);
            eventually(ENDS, "the agent", || async { api.get("/agents").await.text().contains("\"online\"") }).await;
        }
    }
}

fn start(nats: &NatsServer, dir: &Path, store: &str, n: usize, listen: &str) -> FluxProcess {
    let config = dir.join(format!("gateway-{n}.yaml"));
    let text = format!(
        "disable_mtls: true\nqueue: {{ url: \"{}\" }}\nstore: {{ url: \"{store}\" }}\nartifacts: {{ dir: {:?} }}\n\
         gateway: {{ listen: \"{listen}\", api_key: {KEY}, secrets_key: {:?} }}\n",
        nats.url(),
        dir.join("artifacts"),
        dir.join("secrets.key"),
    );
    std::fs::write(&config, text).expect("a file");
    FluxCommand::new("flux-gateway").arg("--config").arg(&config).spawn()
}

async fn deploy(api: &Api, name: &str, script: &str) {
    let yaml = format!(
        "name: {name}\nhandler: run.sh\nresources: {{ cpu: 10, memory: 16 }}\nmax_concurrency_behavior: wait\n\
         resource_pressure_behavior: wait\ntimeout: 60\n"
    );
    let known = api.get(&format!("/functions/{name}")).await.status == 200;
    let files = [File::executable("run.sh", format!("#!/bin/sh\n{script}\n"))];
    if known {
        let archive = flux_testkit::archive(&files);
        api.put(&format!("/deploy/{name}"), "application/zip", archive).await.expect(201);
    } else {
        api.deploy(name, &yaml, &files).await;
    }
}

/// How long it takes until a gateway knows, which is said and not judged here: this machine does other things.
async fn until<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    let begun = Instant::now();
    eventually(ENDS, what, condition).await;
    println!("{what}: after {:?}", begun.elapsed());
}

async fn says(api: &Api, text: &str) -> bool {
    let reply = api.execute("say", &Value::Null).await;
    reply.status == 200 && reply.json["output"] == text
}

#[tokio::test]
async fn any_gateway_answers_for_any_execution_and_learns_every_change() {
    let mut fleet = Fleet::start().await;
    fleet.add_agent(&[0, 1]).await;
    let (a, b) = (fleet.api(0), fleet.api(1));
    deploy(&a, "say", "echo one").await;
    deploy(&a, "nap", "echo begun; sleep 1; echo rested").await;

    // What a sync call at one of them came to is known to the other.
    let called = a.execute("nap", &Value::Null).await.expect(200).json;
    let record = b.outcome(called["execution_id"].as_str().expect("an id"), ENDS).await;
    assert_eq!(record["output"], "begun\nrested\n", "{record:#}");
    // What one accepted the other waits for, streams, lists and cancels.
    let id = a.execute_async("nap", &Value::Null).await;
    let stream = format!("/executions/{id}/stream");
    let (record, stream) = tokio::join!(b.outcome(&id, ENDS), b.get(&stream));
    assert_eq!(record["status"], "success", "{record:#}");
    let stream = stream.text();
    assert!(stream.contains("begun") && stream.contains("rested"), "{stream}");
    assert!(b.get("/executions?function=nap").await.text().contains(&id));
    let id = b.execute_async("nap", &Value::Null).await;
    a.delete(&format!("/executions/{id}")).await;
    let ended = b.outcome(&id, ENDS).await;
    assert!(ended["status"] == "cancelled" || ended["status"] == "success", "{ended:#}");

    // Both know version 1; each change is made at one and seen at the other.
    assert!(says(&a, "one\n").await && says(&b, "one\n").await);
    deploy(&a, "say", "echo two").await;
    until("a deployment at the other gateway", || says(&b, "two\n")).await;
    b.post("/functions/say/rollback", &json!({"version": 1})).await.expect(200);
    until("a rollback at the other gateway", || says(&a, "one\n")).await;
    let made = a.post("/keys", &json!({"name": "t", "scopes": ["read"]})).await.expect(201).json;
    let with_key = b.with_key(made["key"].as_str().expect("a key"));
    until("a new key at the other gateway", || async { with_key.get("/functions").await.status == 200 }).await;
    b.delete(&format!("/keys/{}", made["id"].as_str().expect("an id"))).await.expect(200);
    let with_key = a.with_key(made["key"].as_str().expect("a key"));
    until("a revoked key at the other gateway", || async { with_key.get("/functions").await.status == 401 }).await;
    a.put("/secrets/TOKEN", "text/plain", "hidden").await;
    until("a secret at the other gateway", || async { b.get("/secrets/TOKEN").await.status == 200 }).await;
    a.delete("/functions/say").await.expect(200);
    until("a deleted function at the other gateway", || async { b.execute("say", &Value::Null).await.status == 404 })
        .await;
}

#[tokio::test]
async fn the_other_gateway_looks_after_what_is_lost_once_the_first_is_dead() {
    let mut fleet = Fleet::start().await;
    let b = fleet.api(1);
    deploy(&b, "say", "echo one").await;
    // The first to start reconciles; it gives nothing back.
    fleet.gateways[0].0.kill9();
    let begun = Instant::now();
    let id = b.execute_async("say", &Value::Null).await;
    let jetstream = async_nats::jetstream::new(fleet.nats.client().await);
    let stream = jetstream.get_stream("FLUX_INVOKE").await.expect("the stream");
    eventually(ENDS, "the message to be lost", || async {
        stream.purge().await.is_ok_and(|purged| purged.purged > 0)
            || b.get(&format!("/executions/{id}")).await.json["attempt"].as_u64() > Some(1)
    })
    .await;
    fleet.add_agent(&[1]).await;
    let record = b.outcome(&id, ENDS).await;
    assert_eq!(record["status"], "success", "{record:#}");
    println!("what the queue lost had run {:?} after the gateway that reconciled had died", begun.elapsed());
}

/// Hands each connection to the gateways in turn, and to the other where one refuses it: what every load balancer does.
async fn balance(listener: TcpListener, to: Vec<SocketAddr>) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let (to, next) = (to.clone(), Arc::clone(&next));
        connections.spawn(async move {
            let first = next.fetch_add(1, Ordering::Relaxed);
            for n in 0..to.len() {
                if let Ok(mut gateway) = TcpStream::connect(to[(first + n) % to.len()]).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn a_rolling_restart_fails_no_request() {
    let mut fleet = Fleet::start_on_postgres().await;
    fleet.add_agent(&[0, 1]).await;
    deploy(&fleet.api(0), "brief", "sleep 0.05; echo done").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}/execute/brief", listener.local_addr().expect("bound"));
    let to = fleet.gateways.iter().map(|(_, listen)| listen.parse().expect("an address")).collect();
    let mut balancer = tokio::task::JoinSet::new();
    balancer.spawn(balance(listener, to));
    // A connection for each request, as load balancers have them unless they are told otherwise.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy().timeout(ENDS).build().expect("a client");
    let (over, wrong) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (answered, accepted) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let client = async |asynchronous: bool| {
        let url = if asynchronous { format!("{base}/async") } else { base.clone() };
        while !over.load(Ordering::Relaxed) {
            let request = http.request(Method::POST, &url).header("X-API-Key", KEY).json(&json!({}));
            match Api::try_send(request).await {
                Ok(reply) if reply.status == 202 => {
                    accepted
                        .lock()
                        .expect("no panic")
                        .push(reply.json["execution_id"].as_str().expect("an id").to_owned());
                    // A client's own pause, so that what it asks for does not pile up.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(reply) if reply.status == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                Ok(reply) => wrong.lock().expect("no panic").push(format!("{}: {}", reply.status, reply.text())),
                Err(error) => wrong.lock().expect("no panic").push(format!("{error:?}")),
            }
        }
    };
    let done = || answered.load(Ordering::Relaxed) + accepted.lock().expect("no panic").len();
    let restarts = async {
        for n in [0, 1, 0] {
            let before = done();
            eventually(ENDS, "the load to go on", || async { done() >= before + 20 }).await;
            fleet.gateways[n].0.terminate();
            let status = fleet.gateways[n].0.wait_exit(ENDS).await;
            assert_eq!(status.code(), Some(0), "{}", fleet.gateways[n].0.log());
            let before = done();
            eventually(ENDS, "the load to go on without it", || async { done() >= before + 20 }).await;
            fleet.restart(n);
            fleet.api(n).ready(ENDS).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(client(false), client(false), client(false), client(true), restarts);
    drop(balancer);
    let wrong = wrong.into_inner().expect("no panic");
    println!(
        "{} answered, {} accepted, {} failed",
        answered.into_inner(),
        accepted.lock().expect("no panic").len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    let api = fleet.api(1);
    for id in accepted.into_inner().expect("no panic") {
        let record = api.outcome(&id, ENDS).await;
        assert_eq!(record["status"], "success", "{record:#}");
        // An acknowledgement that a slow machine was late with is delivered again.
        assert!(record["attempt"].as_u64().is_some_and(|attempt| attempt <= 2), "{record:#}");
    }
}
