//! Identities: machines that join, are registered, cordoned and shut out; producers; a data directory from before.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flux_protocol::AgentId;
use flux_testkit::{FluxCommand, FluxProcess, FluxUp, eventually, free_port, passable_dir};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cluster::{deploy_script, flux};

const ENDS: Duration = Duration::from_secs(40);
/// For three servers that choose leaders, and again after one died.
const LONG: Duration = Duration::from_secs(120);

/// An agent on this machine as on another: with a token, a directory of its own and its own key.
pub(crate) async fn joined(up: &FluxUp, dir: &Path, id: &str) -> FluxProcess {
    let (config, _) = join(up, dir, id).await;
    FluxCommand::new("flux-agent").arg("--config").arg(config).arg("--work-dir").arg(dir.join(id)).spawn()
}

/// Where its configuration is, and its probe port.
async fn join(up: &FluxUp, dir: &Path, id: &str) -> (PathBuf, u16) {
    let made = flux(up, &["agent", "token", "create", "--json"]).await.ok();
    let token: Value = serde_json::from_str(&made.stdout).expect("JSON");
    let certs = dir.join(format!("{id}-certs"));
    let join = FluxCommand::new("flux")
        .args(["agent", "join", token["token"].as_str().expect("a token"), "--id", id, "--certs-dir"])
        .arg(&certs);
    let ran = join.output(ENDS).await;
    assert!(ran.status.success(), "{ran:?}");
    let config = certs.join("agents").join(id).join("agent.yaml");
    // All of them are on one machine here.
    let port = free_port();
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(&config, text.replace("0.0.0.0:50052", &format!("127.0.0.1:{port}"))).expect("written");
    (config, port)
}

async fn agents(up: &FluxUp) -> BTreeMap<String, Value> {
    let all = up.api.get("/agents").await.json;
    let by_id = |agent: &Value| (agent["id"].as_str().unwrap_or_default().to_owned(), agent.clone());
    all.as_array().expect("a list").iter().map(by_id).collect()
}

async fn has_status(up: &FluxUp, id: &str, status: &str) -> bool {
    agents(up).await.get(id).is_some_and(|agent| agent["status"] == status)
}

#[tokio::test]
async fn a_machine_joins_is_registered_and_is_shut_out() {
    let up = FluxUp::start().await;
    let dir = passable_dir("flux-join-");
    let (config, port) = join(&up, dir.path(), "far").await;
    let start =
        || FluxCommand::new("flux-agent").arg("--config").arg(&config).arg("--work-dir").arg(dir.path().join("far"));
    let mut far = start().spawn();
    eventually(ENDS, "it to be online", || has_status(&up, "far", "online")).await;
    let listed = agents(&up).await["far"].clone();
    assert_eq!(listed["identity"], "spiffe://flux/agent/far/1", "{listed}");
    assert!(listed["identity_expires"].is_string() && listed["last_heartbeat"].is_string(), "{listed}");

    // A new certificate over the queue for its own key, once a minute, and nobody else's.
    let own = config.parent().expect("a directory");
    let options = async_nats::ConnectOptions::new()
        .add_root_certificates(dir.path().join("far-certs/ca/ca.pem"))
        .add_client_certificate(own.join("agent.pem"), own.join("agent-key.pem"))
        .require_tls(true);
    let client = options.connect(up.queue_url()).await.expect("its identity");
    let mut answers = client.subscribe("flux.reply.agent-far.1").await.expect("subscribed");
    let credential = flux_pki::Certs::at(dir.path().join("far-certs")).agent(&AgentId::parse("far").expect("an id"));
    let request = credential.and_then(|credential| credential.renewal_request()).expect("a request");
    for (subject, answered) in [
        ("flux.ask.other.renewal", None),
        ("flux.ask.far.renewal", Some("renewed")),
        ("flux.ask.far.renewal", Some("refused")),
    ] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Flux-Answer-To", "flux.reply.agent-far.1");
        client.publish_with_headers(subject, headers, request.clone().into()).await.expect("published");
        if let Some(answered) = answered {
            let answer = tokio::time::timeout(ENDS, answers.next()).await.expect("in time").expect("an answer");
            let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
            assert_eq!(answer["status"], answered, "{answer}");
            let Some(renewed) = answer["certificate"].as_str() else { continue };
            let renewed = flux_pki::Certificate::from_pem(renewed).expect("one");
            assert_eq!(renewed.identity().to_string(), "agent far");
        }
    }

    // Registered by its probe port, once and at one address; nobody else is an agent.
    let address = format!("127.0.0.1:{port}");
    let registered = up.api.post("/agents/register", &json!({ "address": address })).await.expect(201).json;
    assert_eq!((&registered["status"], &registered["id"]), (&json!("registered"), &json!("far")), "{registered}");
    assert!(registered["node"]["memory_total_mb"].as_u64().is_some_and(|mb| mb > 0), "{registered}");
    up.api.post("/agents/register", &json!({ "address": address })).await.expect(201);
    let again =
        up.api.post("/agents/register", &json!({ "address": format!("localhost:{port}") })).await.expect(409).json;
    assert_eq!(again["error"]["code"], "agent_exists", "{again}");
    for nobody in [format!("127.0.0.1:{}", free_port()), up.api.base().trim_start_matches("http://").to_owned()] {
        let refused = up.api.post("/agents/register", &json!({ "address": nobody })).await.expect(502).json;
        assert_eq!(refused["error"]["code"], "agent_unreachable", "{refused}");
    }
    assert_eq!(agents(&up).await["far"]["provider"], "manual");

    // Cordoned, drained and taken back.
    flux(&up, &["agent", "drain", "far"]).await.ok();
    assert!(has_status(&up, "far", "draining").await);
    flux(&up, &["agent", "uncordon", "far"]).await.ok();
    eventually(ENDS, "it to be online again", || has_status(&up, "far", "online")).await;

    // Shut out: at once where it is connected, and when it comes again.
    let begun = Instant::now();
    flux(&up, &["agent", "remove", "far"]).await.ok();
    eventually(ENDS, "it to be cut off", || async { far.log().contains("the connection to the queue was lost") }).await;
    let within = begun.elapsed();
    println!("cut off {within:?} after it was removed");
    assert!(within < Duration::from_secs(5), "{within:?}");
    eventually(ENDS, "it to be silent", || async { !has_status(&up, "far", "online").await }).await;
    far.kill9();
    let mut again = start().spawn();
    eventually(ENDS, "it to be refused", || async { again.log().contains("flux-agent: ") }).await;
    assert!(!has_status(&up, "far", "online").await);
    again.kill9();
    up.api.post("/agents/register", &json!({ "address": address })).await.expect(502);
    let nobody = flux(&up, &["agent", "remove", "nobody"]).await;
    assert!(nobody.stderr.contains("agent_not_found"), "{nobody:?}");
}

#[tokio::test]
async fn a_token_lets_one_machine_in() {
    let up = FluxUp::start().await;
    let dir = passable_dir("flux-token-");
    let made = flux(&up, &["agent", "token", "create", "--json"]).await.ok();
    let token: Value = serde_json::from_str(&made.stdout).expect("JSON");
    let token = token["token"].as_str().expect("a token");
    let join = async |id: &str| {
        let certs = dir.path().join(id);
        let command = FluxCommand::new("flux").args(["agent", "join", token, "--id", id, "--certs-dir"]).arg(&certs);
        command.output(ENDS).await
    };
    assert!(join("first").await.status.success());
    let second = join("second").await;
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("join_refused"), "{second:?}");
    // Who joined needed no key, and is in the audit log all the same.
    let audit = up.api.get("/audit").await.expect(200).json;
    let joined = audit["entries"].as_array().expect("entries").iter().filter(|entry| entry["path"] == "/agents/join");
    let [joined] = joined.collect::<Vec<_>>()[..] else { panic!("one machine joined: {audit}") };
    let what = joined["what"].as_str().expect("what");
    assert!(what.starts_with("agent first joined by the token "), "{joined}");
    assert!(joined["who"].as_str().is_some_and(|who| who.starts_with("join token ")), "{joined}");
    assert!(joined["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{joined}");
    // Without a key nobody makes one.
    up.api.with_key("").post("/agents/tokens", &json!({ "url": "http://x" })).await.expect(401);
}

#[tokio::test]
async fn a_producer_has_what_it_was_given() {
    let up = FluxUp::start().await;
    deploy_script(&up, "resize-small", "cat", "").await;
    deploy_script(&up, "other", "cat", "").await;
    let data = up.data_dir().display().to_string();
    let minted = flux(&up, &["pki", "mint", "producer", "shop", "--invoke", "resize*", "--data-dir", &data, "--json"])
        .await
        .ok();
    let files: Value = serde_json::from_str(&minted.stdout).expect("JSON");
    let path = |name: &str| PathBuf::from(files[name].as_str().expect("a path"));
    let options = || {
        async_nats::ConnectOptions::new()
            .add_root_certificates(path("ca"))
            .add_client_certificate(path("certificate"), path("key"))
            .require_tls(true)
    };
    // The gateway tells the server within moments.
    let url = up.queue_url();
    let client = flux_testkit::eventually_some(ENDS, "the producer to be let in", || async {
        let client = options().connect(&url).await.ok()?;
        client.request("flux.invoke.resize-small", "{}".into()).await.ok().map(|_| client)
    })
    .await;
    client.request("flux.invoke.other", "{}".into()).await.expect_err("not its function");
    eventually(ENDS, "its invocation to end", || async {
        let list = up.api.get("/executions?function=resize-small&status=success").await;
        !list.json["executions"].as_array().is_none_or(Vec::is_empty)
    })
    .await;
    // What comes later and matches is its as well.
    deploy_script(&up, "resize-big", "cat", "").await;
    eventually(ENDS, "the new function", || async {
        client.request("flux.invoke.resize-big", "{}".into()).await.is_ok()
    })
    .await;
    flux(&up, &["pki", "revoke", "producer", "shop", "--data-dir", &data]).await.ok();
    eventually(ENDS, "it to be shut out", || async { options().connect(&url).await.is_err() }).await;
    let listed = flux(&up, &["pki", "list", "--data-dir", &data]).await.ok();
    assert!(listed.stdout.lines().any(|line| line.contains("producer shop") && line.contains("revoked")), "{listed:?}");
}

#[tokio::test]
async fn a_cluster_of_other_servers_takes_what_is_exported() {
    let dir = passable_dir("flux-export-");
    let certs = dir.path().join("certs");
    std::fs::create_dir(&certs).expect("a directory");
    // As root the agent and the gateway are the user `flux`, and what is in the directory is its owner's.
    if nix::unistd::Uid::effective().is_root() {
        let user = nix::unistd::User::from_name("flux").expect("looked up").expect("the user flux");
        std::os::unix::fs::chown(&certs, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("given");
    }
    let pki = async |args: &[&str]| {
        let command = FluxCommand::new("flux").arg("pki").args(args).arg("--certs-dir").arg(&certs);
        let ran = command.output(LONG).await;
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).expect("text")
    };
    pki(&["init"]).await;
    pki(&["mint", "agent", "far"]).await;
    pki(&["mint", "producer", "shop", "--invoke", "hel*"]).await;
    let exported = pki(&["export-nats-conf", "--function", "hello"]).await;
    let of_gateways = flux_pki::Certs::at(&certs).gateway().and_then(|gateway| gateway.queue_client());
    let mut servers =
        flux_testkit::NatsServer::start_secure_cluster(3, &exported, of_gateways.expect("a gateway's")).await;
    let urls: Vec<String> = servers.iter().map(flux_testkit::NatsServer::url).collect();

    let listen = format!("127.0.0.1:{}", free_port());
    let api = flux_testkit::Api::new(format!("http://{listen}"), "export".to_owned());
    let own = |name: &str| dir.path().join(name);
    let config = |name: &str, further: String| {
        let text = format!("certs_dir: {certs:?}\nqueue: {{ url: {:?}, replicas: 3 }}\n{further}", urls.join(","));
        std::fs::write(own(name), text).expect("written");
        own(name)
    };
    let gateway = config(
        "gateway.yaml",
        format!(
            "store: {{ url: \"sqlite://{}\" }}\nartifacts: {{ dir: {:?} }}\n\
             gateway: {{ listen: \"{listen}\", api_key: export, secrets_key: {:?} }}\n",
            own("flux.db").display(),
            own("artifacts"),
            own("secrets.key"),
        ),
    );
    let agent = config("agent.yaml", format!("agent: {{ id: far, work_dir: {:?} }}\n", own("agent")));
    let _gateway = FluxCommand::new("flux-gateway").arg("--config").arg(&gateway).spawn();
    api.ready(LONG).await;
    let agent = FluxCommand::new("flux-agent").arg("--config").arg(&agent).spawn();
    let is_online = async || {
        let agents = api.get("/agents").await.json;
        agents.as_array().is_some_and(|all| all.iter().any(|one| one["id"] == "far" && one["status"] == "online"))
    };
    eventually(LONG, "the agent to be online", &is_online).await;

    let yaml = "name: hello\nhandler: run.sh\nresources: { cpu: 10, memory: 16 }\nsecrets: [WORD]\n";
    api.put("/secrets/WORD", "text/plain", "open sesame").await.expect(200);
    let script = "#!/bin/sh\ncat; test \"$WORD\" = 'open sesame' && echo opened\n";
    api.deploy("hello", yaml, &[flux_testkit::File::executable("run.sh", script)]).await;
    let called = api.execute("hello", &json!({})).await.expect(200);
    assert_eq!(called.json["output"], "{}opened\n", "{}", called.json);

    // Nobody without a certificate; a producer what it was given, at whichever server.
    let options = |name: &str| {
        let own = certs.join("producers").join(name);
        async_nats::ConnectOptions::new()
            .add_root_certificates(certs.join("ca/ca.pem"))
            .add_client_certificate(own.join("producer.pem"), own.join("producer-key.pem"))
            .require_tls(true)
    };
    for url in &urls {
        async_nats::connect(url).await.expect_err("no certificate");
        let client = options("shop").connect(url).await.expect("a producer");
        client.request("flux.invoke.hello", "{}".into()).await.expect("its function");
        client.request("flux.invoke.other", "{}".into()).await.expect_err("not its function");
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        client.publish_with_headers("$KV.flux_functions.hello", headers, "".into()).await.expect("sent");
        client.flush().await.expect("a round trip");
    }
    eventually(LONG, "its three invocations to end", || async {
        let list = api.get("/executions?function=hello&status=success").await;
        list.json["executions"].as_array().is_some_and(|all| all.len() == 4)
    })
    .await;

    // A server dies; who was there is let in by the others.
    servers[0].kill9();
    eventually(LONG, "the others to go on", || async { api.execute("hello", &json!({})).await.status == 200 }).await;
    // Exported again without the agent.
    pki(&["revoke", "agent", "far"]).await;
    let exported = pki(&["export-nats-conf", "--function", "hello"]).await;
    servers[1..].iter().for_each(|server| server.reload(&exported));
    eventually(LONG, "the agent to be cut off", || async {
        agent.log().contains("the connection to the queue was lost")
    })
    .await;
    eventually(LONG, "it to be silent", || async { !is_online().await }).await;
}

#[tokio::test]
async fn a_data_directory_from_before_identities_goes_on() {
    let mut up = FluxUp::start().await;
    deploy_script(&up, "hello", "echo hello", "").await;
    let id = up.api.execute_async("hello", &json!({})).await;
    up.api.outcome(&id, ENDS).await;
    up.stop().await;
    // As an earlier release left it: streams in the account without a name, and no certificates.
    let streams = up.path("nats/jetstream");
    std::fs::rename(streams.join("FLUX"), streams.join("$G")).expect("renamed");
    std::fs::remove_dir_all(up.path("certs")).expect("removed");
    std::fs::remove_file(up.path("run/worker/accounts.conf")).expect("removed");
    up.restart().await;
    up.api.execute("hello", &Value::Null).await.expect(200);
    assert_eq!(up.api.get(&format!("/executions/{id}")).await.json["status"], "success");

    // A further start changes nothing.
    let all = |dir: PathBuf| -> BTreeMap<PathBuf, Vec<u8>> {
        let files = ["ca/ca.pem", "ca/ca-key.pem", "flux/flux.pem", "queue/queue.pem", "ssh/flux-agent.pem", "changed"];
        files.iter().map(|file| (file.into(), std::fs::read(dir.join(file)).expect(file))).collect()
    };
    let before = all(up.path("certs"));
    up.restart().await;
    assert_eq!(all(up.path("certs")), before);

    // A damaged file is an error, and no new CA.
    up.stop().await;
    std::fs::write(up.path("certs/ca/ca.pem"), "nonsense").expect("written");
    let data = up.data_dir().display().to_string();
    let refused =
        FluxCommand::new("flux").args(["up", "--data-dir", &data, "--listen", "127.0.0.1:0"]).output(ENDS).await;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ca.pem is damaged"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(up.path("certs/ca/ca.pem")).expect("a file"), "nonsense");
}

#[tokio::test]
async fn without_certificates_only_on_loopback_or_when_told_so() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    let config = dir.path().join("flux.yaml");
    std::fs::write(&config, "disable_mtls: true\n").expect("a file");
    let config = config.display().to_string();
    let data = dir.path().join("data").display().to_string();
    let up = ["up", "--config", &config, "--data-dir", &data, "--listen", "127.0.0.1:0", "--queue-listen", "0.0.0.0:0"];
    let refused = FluxCommand::new("flux").args(up).output(ENDS).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--insecure"), "{refused:?}");
    let up = FluxUp::start_with(&["--config", &config]).await;
    assert!(up.process.log().contains("`disable_mtls` is set"), "{}", up.process.log());
    deploy_script(&up, "hello", "echo hello", "").await;
    up.api.execute("hello", &Value::Null).await.expect(200);
    async_nats::connect(up.queue_url()).await.expect("whoever reaches it");
}
