//! A whole Flux on one machine: `flux up` with a directory, a port and a key of its own.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    api::Api,
    port::free_port,
    process::{FluxCommand, FluxProcess},
    process_tree::processes_matching,
};

const READY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// `flux up`, ready to be called. Dropping it kills it, all that it started, and its data.
#[derive(Debug)]
pub struct FluxUp {
    /// The process; killed and started again by the words below, or by hand.
    pub process: FluxProcess,
    /// A client with the key of the one who may do everything.
    pub api: Api,
    args: Vec<String>,
    dir: TempDir,
}

impl FluxUp {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments, such as `["--config", "…"]`.
    pub async fn start_with(further: &[&str]) -> Self {
        Self::start_below(&std::env::temp_dir(), further).await
    }

    /// With its data below this directory, which the user `flux` can enter where the test is root.
    pub async fn start_below(parent: &Path, further: &[&str]) -> Self {
        let dir =
            tempfile::Builder::new().prefix("flux-up-").tempdir_in(parent).expect("cannot make a temporary directory");
        let listen = format!("127.0.0.1:{}", free_port());
        let key = format!("key-{}", uuid::Uuid::new_v4().simple());
        let data = dir.path().to_string_lossy().into_owned();
        let mut args: Vec<String> =
            ["up", "--data-dir", &data, "--listen", &listen, "--api-key", &key].map(str::to_owned).into();
        args.extend(further.iter().map(|arg| (*arg).to_owned()));
        let process = FluxCommand::new("flux").args(&args).spawn();
        let mut up = Self { process, api: Api::new(format!("http://{listen}"), key), args, dir };
        up.until_ready().await;
        up
    }

    /// The data directory: in the arguments of what it starts, and so a marker for
    /// [`assert_no_processes_left`](crate::assert_no_processes_left).
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The same as text.
    pub fn marker(&self) -> String {
        self.data_dir().to_string_lossy().into_owned()
    }

    /// A path inside the data directory.
    pub fn path(&self, within: &str) -> PathBuf {
        self.data_dir().join(within)
    }

    /// A client of its queue, as a gateway: one that may do everything.
    pub async fn queue(&self) -> async_nats::Client {
        self.queue_options().connect(self.queue_url()).await.expect("a connection to the queue")
    }

    /// Where its queue listens.
    pub fn queue_url(&self) -> String {
        let text = std::fs::read_to_string(self.path("run/settings.json")).expect("what `flux up` wrote");
        let settings: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        settings["queue"]["url"].as_str().expect("the queue's URL").to_owned()
    }

    /// How to connect there as a gateway.
    pub fn queue_options(&self) -> async_nats::ConnectOptions {
        async_nats::ConnectOptions::new()
            .add_root_certificates(self.path("certs/ca/ca.pem"))
            .add_client_certificate(self.path("certs/flux/flux.pem"), self.path("certs/flux/flux-key.pem"))
            .require_tls(true)
    }

    /// Asks it to drain and go, and waits for its end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait_exit(STOPPED_WITHIN).await
    }

    /// Starts it again on the same data and port, killing it first if it still runs. What an earlier kill left behind
    /// is left to the product to clear up. Ready when this returns.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process = FluxCommand::new("flux").args(&self.args).spawn();
        self.until_ready().await;
    }

    async fn until_ready(&mut self) {
        let ready = self.api.ready(READY_WITHIN);
        tokio::select! {
            () = ready => {}
            status = self.process.wait_exit(READY_WITHIN * 2) => panic!("flux up ended: {status}\n{}", self.process.log()),
        }
    }
}

impl Drop for FluxUp {
    fn drop(&mut self) {
        self.process.kill9();
        for process in processes_matching(&self.marker()) {
            process.kill9();
        }
    }
}
