//! AWS's APIs as moto imitates them, for what speaks S3: buckets in memory, and credentials that are checked where a test asks for it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{log::Log, port::free_port, process::Running, wait::eventually_some};

const SOON: Duration = Duration::from_secs(60);

/// A running `moto_server`, which forgets everything when it is dropped.
#[derive(Debug)]
pub struct Moto {
    running: Running,
    port: u16,
    log: Log,
    _dir: TempDir,
}

impl Moto {
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("flux-moto-").tempdir().expect("cannot make a directory");
        let log = Log::new("moto_server", dir.path().join("log"));
        let port = free_port();
        let program = program();
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.writer()).stderr(log.writer());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let mut moto = Self { running: Running::new(child), port, log, _dir: dir };
        let url = format!("{}/moto-api/", moto.url());
        let (running, log, client) = (&mut moto.running, &moto.log, client());
        eventually_some(SOON, "moto_server to answer", || {
            let ended = running.exited();
            let asked = client.get(url.clone()).send();
            async move {
                if let Some(status) = ended {
                    panic!("moto_server ended with {status}:\n{}", log.tail());
                }
                asked.await.ok().filter(|answer| answer.status().is_success())
            }
        })
        .await;
        moto
    }

    /// Where every service is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket, while credentials are not checked yet.
    pub async fn make_bucket(&self, name: &str) {
        self.ask(client().put(format!("{}/{name}", self.url()))).await;
    }

    /// From now on every request needs a key that IAM gave out, which is none.
    pub async fn check_credentials(&self) {
        self.ask(client().post(format!("{}/moto-api/reset-auth", self.url())).body("0")).await;
    }

    /// Replaces what a bucket has under a key, as an accident would.
    pub async fn overwrite(&self, bucket: &str, key: &str, content: &'static [u8]) {
        // Whose it is, which moto wants to know and does not check.
        let who = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";
        let put = client().put(format!("{}/{bucket}/{key}", self.url())).body(content);
        self.ask(put.header("authorization", who)).await;
    }

    /// What EC2's API answers to an action without parameters, as XML.
    pub async fn ec2(&self, action: &str) -> String {
        let who =
            "AWS4-HMAC-SHA256 Credential=x/20260101/eu-central-1/ec2/aws4_request, SignedHeaders=host, Signature=x";
        let request = client().post(self.url()).header("authorization", who);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer =
            request.body(format!("Action={action}&Version=2016-11-15")).send().await.expect("moto_server answers");
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        assert!(status.is_success(), "{status}: {text}");
        text
    }

    async fn ask(&self, request: reqwest::RequestBuilder) {
        let answer = request.send().await.expect("moto_server answers");
        assert!(answer.status().is_success(), "{}: {}", answer.status(), answer.text().await.unwrap_or_default());
    }

    /// It lives and answers nobody.
    pub fn pause(&self) {
        crate::process_tree::pause(self.running.pid());
    }

    pub fn resume(&self) {
        self.running.signal(Signal::SIGCONT);
    }

    /// Kills it; what it had is gone.
    pub fn kill9(&mut self) {
        self.running.kill9();
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.running.kill9();
        self.log.show_if_panicking();
    }
}

/// Past the proxy that a machine may have: where that refuses loopback, nobody would ever answer.
fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

fn program() -> PathBuf {
    let checkout =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join(".tools/moto/bin/moto_server"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        checkout.chain(std::env::split_paths(&path).map(|dir| dir.join("moto_server"))).find(|path| path.exists());
    found.expect("there is no moto_server: `scripts/setup.sh test` installs it into .tools/moto; a test of S3 does not pass without one")
}
