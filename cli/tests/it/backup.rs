//! `flux backup` and `flux restore`, with real servers: what comes back, from any engine into any other.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Output,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use flux_store::{Entry, SealedSecret, Tuning};
use flux_testkit::{
    Api, Disk, File, FluxCommand, FluxProcess, FluxUp, NatsServer, PostgresServer, RedisServer, eventually, free_port,
    passable_dir,
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

const KEY: &str = "backup";
const ENDS: Duration = Duration::from_secs(60);
const YAML: &str = "name: say\nhandler: run.sh\nresources: { cpu: 10, memory: 16 }\nmax_concurrency_behavior: wait\n\
                    resource_pressure_behavior: wait\ntimeout: 30\nsecrets: [TOKEN]\n";

fn code(answer: &str) -> [File; 1] {
    [File::executable("run.sh", format!("#!/bin/sh\necho {answer} $(echo $TOKEN | tr a-z A-Z)\n"))]
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn flux(args: &[&str]) -> Output {
    FluxCommand::new("flux").args(args).output(ENDS).await
}

async fn succeeds(args: &[&str]) -> String {
    let output = flux(args).await;
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// What it says when it refuses.
async fn refuses(args: &[&str]) -> String {
    let output = flux(args).await;
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output));
    text(&output)
}

/// A gateway with its queue, in a directory and on a store of its own; and an agent, when there is to be one.
struct Site {
    api: Api,
    gateway: FluxProcess,
    agents: Vec<FluxProcess>,
    config: String,
    nats: NatsServer,
    dir: TempDir,
}

impl Site {
    fn config(dir: &Path, store: &str, nats: &str, listen: &str, secrets_key: &Path) -> String {
        let config = dir.join("gateway.yaml");
        let text = format!(
            "disable_mtls: true\nqueue: {{ url: \"{nats}\" }}\nstore: {{ url: \"{store}\" }}\nartifacts: {{ dir: {:?} }}\n\
             gateway: {{ listen: \"{listen}\", api_key: {KEY}, pools: [late], secrets_key: {secrets_key:?} }}\n",
            dir.join("artifacts"),
        );
        std::fs::write(&config, text).expect("a file");
        config.display().to_string()
    }

    /// With what `prepare` puts there before the gateway starts; it is given the configuration.
    async fn start(store: Option<String>, secrets_key: &Path, prepare: impl AsyncFnOnce(&str)) -> Self {
        let (dir, nats) = (passable_dir("flux-backup-"), NatsServer::start().await);
        let store = store.unwrap_or_else(|| format!("sqlite://{}", dir.path().join("flux.db").display()));
        let listen = format!("127.0.0.1:{}", free_port());
        let config = Self::config(dir.path(), &store, &nats.url(), &listen, secrets_key);
        prepare(&config).await;
        let gateway = FluxCommand::new("flux-gateway").args(["--config", &config]).spawn();
        let api = Api::new(format!("http://{listen}"), KEY);
        api.ready(ENDS).await;
        Self { api, gateway, agents: Vec::new(), config, nats, dir }
    }

    /// Of this pool, and by its name.
    async fn add_agent(&mut self, pool: &str) {
        let agent = FluxCommand::new("flux-agent").env("FLUX_DISABLE_MTLS", "true").env("FLUX_AGENT__POOL", pool);
        let agent = agent.args(["--queue-url", &self.nats.url(), "--id", pool, "--tasks", "8"]).arg("--work-dir");
        self.agents.push(agent.arg(self.dir.path().join(pool)).spawn());
        eventually(ENDS, "the agent", || async {
            let agents = self.api.get("/agents").await.json;
            agents.as_array().is_some_and(|all| all.iter().any(|one| one["id"] == pool && one["status"] == "online"))
        })
        .await;
    }

    async fn stop_gateway(&mut self) {
        self.gateway.terminate();
        let status = self.gateway.wait_exit(ENDS).await;
        assert_eq!(status.code(), Some(0), "{}", self.gateway.log());
    }

    /// What is listed, but when keys were used and what is heard of agents.
    async fn lists(&self) -> Value {
        let api = &self.api;
        let keys = api.get("/keys").await.expect(200).text();
        let mut keys: Value = serde_json::from_str(&keys).expect("JSON");
        without(&mut keys, "last_used_at");
        let mut function = api.get("/functions/say").await.expect(200).json;
        without(&mut function, "agents");
        without(&mut function, "stats");
        json!({
            "function": function,
            "names": names(&api.get("/functions").await.expect(200).json),
            "keys": keys,
            "secrets": api.get("/secrets").await.expect(200).json,
        })
    }
}

fn without(value: &mut Value, field: &str) {
    match value {
        Value::Object(fields) => {
            fields.remove(field);
            fields.values_mut().for_each(|value| without(value, field));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| without(value, field)),
        _ => {}
    }
}

fn names(functions: &Value) -> Vec<String> {
    let all = functions.as_array().or_else(|| functions["functions"].as_array()).expect("a list");
    all.iter().map(|function| function["name"].as_str().expect("a name").to_owned()).collect()
}

/// Asynchronously, of the function that nobody runs yet.
async fn accept_once(api: &Api, hop: usize) -> String {
    let request = api.request(Method::POST, "/execute/late/async").header("Idempotency-Key", format!("once-{hop}"));
    let accepted = Api::try_send(request.json(&json!({ "payload": hop }))).await.expect("sent").expect(202).json;
    accepted["execution_id"].as_str().expect("an id").to_owned()
}

/// SQLite, PostgreSQL, SQLite, Redis: what was deployed, set, run and accepted is there each time, and goes on.
#[tokio::test]
async fn a_flux_moves_from_engine_to_engine() {
    let keys = passable_dir("flux-backup-keys-");
    let secrets_key = keys.path().join("secrets.key");
    let mut site = Site::start(None, &secrets_key, async |_| {}).await;
    let api = &site.api;
    api.put("/secrets/TOKEN", "text/plain", "hidden").await;
    api.deploy("say", YAML, &code("one")).await;
    let second = flux_testkit::archive(&code("two"));
    api.put("/deploy/say", "application/zip", second).await.expect(201);
    api.post("/functions/say/rollback", &json!({ "version": 1 })).await.expect(200);
    let bare = "name: bare\nhandler: run\nresources: { cpu: 10, memory: 16 }\n";
    api.put("/functions", "application/yaml", bare).await.expect(201);
    api.put("/functions", "application/yaml", bare.replace("bare", "gone")).await.expect(201);
    api.delete("/functions/gone").await.expect(200);
    let made = api.post("/keys", &json!({ "name": "ci", "scopes": ["read"] })).await.expect(201).json;
    let key = made["key"].as_str().expect("a key").to_owned();
    // Nobody runs this one until the end.
    api.deploy("late", &YAML.replace("name: say", "name: late\npool: late"), &code("late")).await;

    let postgres = PostgresServer::start().await;
    let redis = RedisServer::start().await;
    let (mut ended, mut open): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for (hop, store) in [Some(postgres.url()), None, Some(redis.url())].into_iter().enumerate() {
        site.add_agent("default").await;
        let said = site.api.execute("say", &json!(hop)).await.expect(200).json;
        assert_eq!(said["output"], "one HIDDEN\n", "{said:#}");
        ended.push(site.api.outcome(said["execution_id"].as_str().expect("an id"), ENDS).await);
        open.push(accept_once(&site.api, hop).await);
        let before = site.lists().await;
        site.stop_gateway().await;

        let file = site.dir.path().join("flux.backup").display().to_string();
        let told = succeeds(&["backup", &file, "--config", &site.config]).await;
        let without_outcome = format!("({} without an outcome)", open.len());
        assert!(told.contains("3 functions") && told.contains(&without_outcome), "{told}");
        let restore = async |config: &str| {
            let told = succeeds(&["restore", &file, "--config", config]).await;
            assert!(told.contains(&format!("{} executions had no outcome", open.len())), "{told}");
        };
        site = Site::start(store, &secrets_key, restore).await;

        assert_eq!(site.lists().await, before, "hop {hop}");
        assert_eq!(site.api.with_key(&key).get("/functions").await.status, 200, "a key goes on opening");
        assert_eq!(&accept_once(&site.api, hop).await, open.last().expect("one"), "it stands for the same execution");
    }
    site.add_agent("default").await;
    site.add_agent("late").await;
    for id in &open {
        let record = site.api.outcome(id, ENDS).await;
        assert_eq!((&record["status"], &record["output"]), (&json!("success"), &json!("late HIDDEN\n")), "{record:#}");
    }
    // What had ended is what it was: nothing of it ran again.
    for record in &ended {
        let id = record["execution_id"].as_str().expect("an id");
        assert_eq!(&site.api.get(&format!("/executions/{id}")).await.expect(200).json, record);
    }
    // The old versions are there too, and numbers go on.
    site.api.post("/functions/say/rollback", &json!({ "version": 2 })).await.expect(200);
    eventually(ENDS, "version 2", || async {
        site.api.execute("say", &Value::Null).await.json["output"] == "two HIDDEN\n"
    })
    .await;
    let again = site.api.put("/functions", "application/yaml", bare.replace("bare", "gone")).await.expect(201).json;
    assert_eq!(again["version"], 2, "{again:#}");
}

/// Backups that are looked at, and deployments that there are beside all of them at least.
const KEPT: usize = 4;
const DEPLOYED: usize = 12;

/// While functions are deployed and executions are accepted: each backup is of one moment.
#[tokio::test]
async fn a_backup_under_load_is_consistent_and_a_flux_up_comes_back_from_it() {
    let mut up = FluxUp::start().await;
    let yaml = YAML.replace("secrets: [TOKEN]\n", "");
    up.api.deploy("say", &yaml, &code("0")).await;
    up.api.put("/secrets/TOKEN", "text/plain", "hidden").await;
    let scratch = passable_dir("flux-backup-load-");
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let data = up.marker();
    let (over, deployed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async {
        while !over.load(Ordering::Relaxed) {
            let n = deployed.fetch_add(1, Ordering::Relaxed);
            let archive = flux_testkit::archive(&code(&n.to_string()));
            up.api.put("/deploy/say", "application/zip", archive).await.expect(201);
            for _ in 0..3 {
                up.api.execute_async("say", &json!(n)).await;
            }
        }
    };
    let backups = async {
        let mut made = 0;
        while made < KEPT || deployed.load(Ordering::Relaxed) < DEPLOYED {
            succeeds(&["backup", &path(&format!("{}.backup", made % KEPT)), "--data-dir", &data]).await;
            made += 1;
        }
        // Until there is something in it that has no outcome.
        loop {
            for _ in 0..10 {
                up.api.execute_async("say", &Value::Null).await;
            }
            let told = succeeds(&["backup", &path("keys.backup"), "--data-dir", &data, "--with-keys"]).await;
            if !told.contains("(0 without an outcome)") {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        made
    };
    let ((), made) = tokio::join!(load, backups);
    println!("{} deployments beside {made} backups", deployed.into_inner());
    for n in 0..KEPT {
        let dir = scratch.path().join(format!("restored-{n}"));
        std::fs::create_dir(&dir).expect("a folder");
        let store = format!("sqlite://{}", dir.join("flux.db").display());
        let config = Site::config(&dir, &store, "nats://127.0.0.1:1", "127.0.0.1:1", &dir.join("secrets.key"));
        succeeds(&["restore", &path(&format!("{n}.backup")), "--config", &config]).await;
        assert_consistent(&store, &dir.join("artifacts")).await;
    }

    // Into a directory where nothing was, with the identities of before.
    let fresh = tempfile::Builder::new().prefix("flux-backup-up-").tempdir().expect("a folder");
    let fresh_dir = fresh.path().display().to_string();
    let before = std::fs::read(up.path("certs/ca/ca-key.pem")).expect("the CA's key");
    assert!(refuses(&["restore", &path("keys.backup"), "--data-dir", &data]).await.contains("another `flux up`"));
    up.stop().await;
    succeeds(&["restore", &path("keys.backup"), "--data-dir", &fresh_dir]).await;
    let restored = std::fs::read(fresh.path().join("certs/ca/ca-key.pem")).expect("the CA's key");
    assert_eq!(restored, before);
    let open = open_in(&format!("sqlite://{fresh_dir}/db/flux.db")).await;
    assert!(!open.is_empty(), "the backup has some");
    let listen = format!("127.0.0.1:{}", free_port());
    let args = ["up", "--data-dir", &fresh_dir, "--listen", &listen, "--api-key", KEY];
    let mut again = FluxCommand::new("flux").args(args).spawn();
    let api = Api::new(format!("http://{listen}"), KEY);
    api.ready(ENDS).await;
    eventually(ENDS, "a call", || async { api.execute("say", &Value::Null).await.status == 200 }).await;
    // What was accepted before the backup runs, as it would have.
    for id in &open {
        let record = api.outcome(id, ENDS).await;
        assert_eq!(record["status"], "success", "{record:#}");
    }
    again.terminate();
    again.wait_exit(ENDS).await;
}

/// What has no outcome.
async fn open_in(store: &str) -> Vec<String> {
    let store = flux_store::open(store, &Tuning::default()).await.expect("the store");
    let later = flux_protocol::time::now().plus(Duration::from_secs(3600));
    let open = store.open_executions(later, None, 1000).await.expect("a list");
    store.close().await;
    open.iter().map(|record| record.execution_id.to_string()).collect()
}

/// Every record's version is there, and every archive that a version names.
async fn assert_consistent(store: &str, artifacts: &Path) {
    let store = flux_store::open(store, &Tuning::default()).await.expect("the store");
    let (into, mut entries) = tokio::sync::mpsc::channel(16);
    let collect = async {
        let (mut versions, mut wanted, mut archives) = (HashSet::new(), HashSet::new(), HashSet::new());
        while let Some(entry) = entries.recv().await {
            match entry {
                Entry::Version(version) => {
                    archives.extend(version.digest);
                    versions.insert((version.name().clone(), version.version));
                }
                Entry::Execution(record) if record.version > 0 => {
                    wanted.insert((record.function.clone(), record.version));
                }
                Entry::Function(head) => wanted.extend(head.current.map(|current| (head.name.clone(), current))),
                _ => {}
            }
        }
        (versions, wanted, archives)
    };
    let (exported, (versions, wanted, archives)) = tokio::join!(store.export(into), collect);
    exported.expect("read");
    // Versions beyond the history go, with executions of theirs still there.
    let newest = versions.iter().map(|(_, version)| *version).max().unwrap_or(0);
    let kept = |version: u32| version + flux_protocol::limits::VERSION_HISTORY > newest;
    let lacking: Vec<_> = wanted.iter().filter(|named| kept(named.1) && !versions.contains(named)).collect();
    assert!(lacking.is_empty() && !wanted.is_empty(), "{lacking:?} of {}", wanted.len());
    for digest in &archives {
        assert!(artifacts.join("sha256").join(digest.hex()).is_file(), "{digest} of {}", archives.len());
    }
    store.close().await;
}

/// What is wrong is said, and nothing is changed by it.
#[tokio::test]
async fn what_cannot_be_done_is_said_and_changes_nothing() {
    let dir = passable_dir("flux-backup-bad-");
    let path = |name: &str| dir.path().join(name);
    let config_of = |name: &str, store: &str| {
        let below = path(name);
        std::fs::create_dir(&below).expect("a folder");
        Site::config(&below, store, "nats://127.0.0.1:1", "127.0.0.1:1", &below.join("secrets.key"))
    };
    let sqlite = |name: &str| format!("sqlite://{}", path(name).join("flux.db").display());
    let (full, empty) = (config_of("full", &sqlite("full")), config_of("empty", &sqlite("empty")));
    let there = flux_store::open(&sqlite("full"), &Tuning::default()).await.expect("a store");
    let spec = flux_protocol::function::parse_yaml("name: f\nhandler: run\n").expect("YAML");
    there.register(&spec, flux_protocol::time::now()).await.expect("registered");
    there.close().await;
    let good = path("good").display().to_string();
    succeeds(&["backup", &good, "--config", &full]).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&good).expect("it is there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    // To standard output it is the same.
    let piped = flux(&["backup", "-", "--config", &full]).await;
    assert!(
        piped.status.success() && piped.stdout.len() == std::fs::read(&good).expect("it").len(),
        "{}",
        text(&piped)
    );

    let bytes = std::fs::read(&good).expect("a backup");
    let bad = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        std::fs::write(path(name), bytes).expect("a file");
        path(name).display().to_string()
    };
    for (file, said) in [
        (bad("cut", &|bytes| bytes.truncate(bytes.len() / 2)), "cut off"),
        (bad("flipped", &|bytes| bytes[1600] ^= 1), "damaged"),
        (bad("text", &|bytes| *bytes = b"a letter".to_vec()), "no backup of Flux's"),
        (path("absent").display().to_string(), "cannot be read"),
        (dir.path().display().to_string(), "is no file"),
    ] {
        let told = refuses(&["restore", &file, "--config", &empty]).await;
        assert!(told.contains(said), "{file}: {told}");
        assert!(!path("empty/flux.db").exists(), "{file} was refused, and something was made");
    }
    let told = refuses(&["backup", &path("no/dir").display().to_string(), "--config", &full]).await;
    assert!(told.contains("cannot be written"), "{told}");
    let told = refuses(&["backup", &path("x").display().to_string(), "--config", &empty]).await;
    assert!(told.contains("there is no store") && !path("empty/flux.db").exists(), "{told}");
    if let Some(disk) = Disk::mount(1) {
        disk.fill();
        let file = disk.path().join("backup").display().to_string();
        let told = refuses(&["backup", &file, "--config", &full]).await;
        assert!(told.contains("make room"), "{told}");
        let left: Vec<PathBuf> =
            std::fs::read_dir(disk.path()).expect("it").map(|entry| entry.expect("one").path()).collect();
        assert!(left.iter().all(|path| !path.display().to_string().contains("backup")), "{left:?}");
    }

    let told = refuses(&["restore", &good, "--config", &full]).await;
    assert!(told.contains("is not empty: it has 1 functions") && told.contains("--force"), "{told}");
    succeeds(&["restore", &good, "--config", &full, "--force"]).await;
    succeeds(&["restore", &good, "--config", &empty]).await;

    // A Redis that a restore left half filled is nobody's store.
    let redis = RedisServer::start().await;
    let config = config_of("redis", &redis.url());
    redis.cli(&["HSET", "flux:meta", "filling", "1"]);
    let refused = flux_store::open(&redis.url(), &Tuning::default()).await.err().expect("it is half filled");
    assert!(refused.to_string().contains("broke off"), "{refused}");
    succeeds(&["restore", &good, "--config", &config]).await;
    let store = flux_store::open(&redis.url(), &Tuning::default()).await.expect("it is whole");
    assert_eq!(store.census().await.expect("census").functions, 1);
}

/// With keys, it has those that open its secrets; or it is not made.
#[tokio::test]
async fn a_backup_with_keys_opens_its_secrets() {
    let dir = passable_dir("flux-backup-with-");
    let path = |name: &str| dir.path().join(name);
    let url = format!("sqlite://{}", path("flux.db").display());
    let config = Site::config(dir.path(), &url, "nats://127.0.0.1:1", "127.0.0.1:1", &path("secrets.key"));
    let text = std::fs::read_to_string(&config).expect("it");
    std::fs::write(&config, format!("{text}data_dir: {:?}\ncerts_dir: {:?}\n", dir.path(), path("certs")))
        .expect("a file");
    let out = path("out").display().to_string();
    let args = ["backup", &out, "--config", &config, "--with-keys"];

    let store = flux_store::open(&url, &Tuning::default()).await.expect("a store");
    succeeds(&args).await; // nothing is encrypted yet
    let (name, at) = (flux_protocol::SecretName::parse("TOKEN").expect("a name"), flux_protocol::time::now());
    let (key, sealed) = ("0a0b0c0d".to_owned(), vec![1]);
    let secret = SealedSecret { name, key, sealed, version: 0, created_at: at, updated_at: at };
    store.put_secret(&secret).await.expect("put").expect("room");
    store.close().await;
    std::fs::remove_file(&out).expect("it was made");
    let told = refuses(&args).await;
    assert!(told.contains("secrets.key cannot be read"), "{told}");
    std::fs::write(path("secrets.key"), "# keys\n01020304 AAAA\n").expect("a file");
    let told = refuses(&args).await;
    assert!(told.contains("the key 0a0b0c0d, which") && told.contains("secrets.key does not have"), "{told}");
    std::fs::write(path("secrets.key"), "# keys\n01020304 AAAA\n0a0b0c0d AAAA\n").expect("a file");
    std::fs::create_dir(path("certs")).expect("a folder");
    std::os::unix::fs::symlink(path("secrets.key"), path("certs/ca.pem")).expect("a link");
    let told = refuses(&args).await;
    assert!(told.contains("certs/ca.pem is a link"), "{told}");
    assert!(!path("out").exists(), "nothing is left");
    std::fs::remove_file(path("certs/ca.pem")).expect("it was there");
    succeeds(&args).await;
    let json = FluxCommand::new("flux").args(args).arg("--json").output(ENDS).await;
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["counts"]["key_files"], 1, "{json:#}");
}
