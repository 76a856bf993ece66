//! What `deploy/compose.yml` starts, without Docker: its own scripts and configuration files, real servers, two gateways and two
//! agents, each with an identity of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flux_testkit::{Api, File, FluxCommand, FluxProcess, eventually, free_port, passable_dir, path_of_programs};
use serde_json::{Value, json};

use crate::cluster::Ran;

const KEY: &str = "of the deployment";
const ENDS: Duration = Duration::from_secs(60);

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// Where everything of one deployment is, as the volumes of the file have it.
struct Deployment {
    dir: tempfile::TempDir,
    queue: String,
}

impl Deployment {
    fn new() -> Self {
        let dir = passable_dir("flux-deploy-");
        for name in ["certs", "agents", "state", "nats", "run"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        // As root, identities belong to the user that gateways and agents are, as in the images.
        if nix::unistd::Uid::effective().is_root() {
            let user = nix::unistd::User::from_name("flux").expect("users").expect("the user flux: `make setup`");
            let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            std::os::unix::fs::chown(dir.path().join("certs"), uid, gid).expect("chown");
        }
        Self { dir, queue: format!("127.0.0.1:{}", free_port()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str) -> FluxCommand {
        FluxCommand::of_program("/bin/bash").arg(deployed(name)).env("PATH", path_of_programs())
    }

    /// Makes everybody's identity, as the service of that name does.
    async fn identities(&self) {
        let script = self.script("gateway/identities.sh");
        let ran = script.args([self.path("certs"), self.path("agents")]).args(["agent-1", "agent-2"]);
        Ran::of(&ran.output(ENDS).await).ok();
    }

    fn nats(&self) -> FluxProcess {
        let port = self.queue.rsplit_once(':').expect("a port").1;
        self.script("nats/run.sh")
            .args(["nats", "nats-2", "nats-3"])
            .env("CERTS", self.path("certs"))
            .env("DATA", self.path("nats"))
            .env("RUN", self.path("run"))
            .env("PORT", port)
            .env("MONITOR", free_port().to_string())
            .spawn()
    }

    fn gateway(&self) -> (FluxProcess, Api) {
        let listen = format!("127.0.0.1:{}", free_port());
        let process = self
            .script("gateway/start.sh")
            .env("FLUX_CONFIG", deployed("gateway/flux.yaml"))
            .env("FLUX_CERTS_DIR", self.path("certs"))
            .env("FLUX_DATA_DIR", self.path("state"))
            .env("FLUX_QUEUE__URL", format!("nats://{}", self.queue))
            .env("FLUX_QUEUE__ACCOUNTS_FILE", self.path("certs/nats/accounts.conf"))
            .env("FLUX_STORE__URL", format!("sqlite://{}", self.path("state/flux.db").display()))
            .env("FLUX_GATEWAY__LISTEN", &listen)
            .env("FLUX_GATEWAY__API_KEY", KEY)
            .spawn();
        (process, Api::new(format!("http://{listen}"), KEY))
    }

    fn agent(&self, id: &str) -> FluxProcess {
        FluxCommand::new("flux-agent")
            .arg("--config")
            .arg(deployed("agent/flux.yaml"))
            .env("FLUX_CERTS_DIR", self.path("agents").join(id))
            .env("FLUX_QUEUE__URL", format!("nats://{}", self.queue))
            .env("FLUX_AGENT__WORK_DIR", self.path(id))
            .env("FLUX_AGENT__ID", id)
            .spawn()
    }
}

async fn is_online(api: &Api, ids: &[&str]) -> bool {
    let agents = api.get("/agents").await.json;
    let online = |id: &&str| {
        agents.as_array().is_some_and(|all| all.iter().any(|agent| agent["id"] == **id && agent["status"] == "online"))
    };
    ids.iter().all(online)
}

#[tokio::test]
async fn what_compose_starts_runs_functions() {
    let deployment = Deployment::new();
    deployment.identities().await;
    // The service runs at every start of the whole: nobody gets another identity.
    let key = || std::fs::read(deployment.path("agents/agent-1/agents/agent-1/agent-key.pem")).expect("a key");
    let first = key();
    deployment.identities().await;
    assert_eq!(first, key());
    let _nats = deployment.nats();
    let (_first, a) = deployment.gateway();
    a.ready(ENDS).await;
    let (_second, b) = deployment.gateway();
    b.ready(ENDS).await;
    let _agents = ["agent-1", "agent-2"].map(|id| deployment.agent(id));
    for api in [&a, &b] {
        eventually(ENDS, "both agents", || async { is_online(api, &["agent-1", "agent-2"]).await }).await;
    }
    let files = [File::executable("run.sh", "#!/bin/sh\necho here\n")];
    a.deploy("here", "name: here\nhandler: run.sh\n", &files).await;
    for api in [&a, &b] {
        let answer = api.execute("here", &Value::Null).await.expect(200).json;
        assert_eq!(answer["output"], "here\n", "{answer}");
    }
    // Somebody who is let in later: the gateway writes it, and the script has the server read it.
    let token = a.post("/agents/tokens", &json!({ "url": a.base() })).await.expect(201).json;
    let certs = deployment.path("joined");
    let join = FluxCommand::new("flux")
        .args(["agent", "join", token["token"].as_str().expect("a token"), "--id", "agent-3", "--certs-dir"])
        .arg(&certs);
    Ran::of(&join.output(ENDS).await).ok();
    std::fs::rename(&certs, deployment.path("agents/agent-3")).expect("renamed");
    let _late = deployment.agent("agent-3");
    eventually(ENDS, "the third agent", || async { is_online(&b, &["agent-3"]).await }).await;
}
