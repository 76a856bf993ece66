//! The queue's directory is lost under load: the store still has every invocation that was accepted over HTTP, and each ends.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flux_testkit::{Api, FluxUp, eventually};
use reqwest::Method;
use serde_json::json;

use crate::cluster::deploy_script;

const CLIENTS: usize = 4;
/// So many that some are queued, some run, some wait for their retry and some have ended when the blow falls.
const BEFORE: usize = 120;
const AFTER: usize = 60;
const AT_ONCE: usize = 8;
const ENDS: Duration = Duration::from_secs(120);
const AGAIN_WITHIN: Duration = Duration::from_secs(30);
/// The second attempt of `flaky` succeeds.
const FLAKY: &str = "sleep 0.1; [ \"$FLUX_ATTEMPT\" -ge 2 ] && echo second";
const SECONDS: Duration = Duration::from_millis(200);

struct Load<'a> {
    api: &'a Api,
    accepted: Mutex<Vec<(String, &'static str)>>,
    refused: AtomicUsize,
    over: AtomicBool,
}

impl Load<'_> {
    async fn client(&self, n: usize) {
        let function = if n.is_multiple_of(2) { "nap" } else { "flaky" };
        let path = format!("/execute/{function}/async");
        while !self.over.load(Ordering::Relaxed) {
            let request = self.api.request(Method::POST, &path).json(&json!({ "payload": n })).timeout(ENDS);
            match Api::try_send(request).await.ok().filter(|reply| reply.status == 202) {
                Some(reply) => {
                    let id = reply.json["execution_id"].as_str().expect("an id").to_owned();
                    self.accepted.lock().expect("no panic").push((id, function));
                }
                None => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    // A client's own pause; what it waits for is the gateway's to say.
                    tokio::time::sleep(SECONDS).await;
                }
            }
            tokio::time::sleep(SECONDS / 10).await;
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.lock().expect("no panic").len()
    }

    async fn until(&self, accepted: usize) {
        eventually(ENDS, format!("{accepted} accepted"), || async { self.accepted() >= accepted }).await;
    }
}

#[tokio::test]
async fn everything_that_was_accepted_ends_though_the_queue_lost_all_that_it_had() {
    let mut up = FluxUp::start().await;
    let limits = format!("max_concurrency: {AT_ONCE}\nmax_concurrency_behavior: wait");
    deploy_script(&up, "nap", "sleep 0.4; echo rested", &limits).await;
    deploy_script(&up, "flaky", FLAKY, &format!("{limits}\nretry: {{ max_attempts: 6, backoff: 500ms }}")).await;
    let api = up.api.clone();
    let load =
        Load { api: &api, accepted: Mutex::default(), refused: AtomicUsize::new(0), over: AtomicBool::new(false) };
    let clients = futures::future::join_all((0..CLIENTS).map(|n| load.client(n)));
    let harm = async {
        load.until(BEFORE).await;
        let begun = Instant::now();
        wipe(&mut up).await;
        let before = load.accepted();
        load.until(before + AFTER).await;
        println!("{AFTER} more were accepted {:?} after the blow", begun.elapsed());
        load.over.store(true, Ordering::Relaxed);
        (before, begun)
    };
    let (_, (before, begun)) = tokio::join!(clients, harm);
    let accepted = load.accepted.into_inner().expect("no panic");
    let mut again = 0;
    for (id, function) in &accepted {
        let record = api.outcome(id, ENDS).await;
        assert_eq!(record["status"], "success", "{record:#}");
        assert_eq!(record["output"], if *function == "nap" { "rested\n" } else { "second\n" }, "{record:#}");
        again += usize::from(record["attempt"].as_u64() > Some(if *function == "nap" { 1 } else { 2 }));
    }
    println!(
        "{} accepted, {before} of them before the wipe, {} refused; all had ended {:?} after it, {again} of them in a later attempt",
        accepted.len(),
        load.refused.into_inner(),
        begun.elapsed()
    );
    assert!(again > 0, "the blow fell on nothing");
    let open = api.get("/executions?status=running&limit=10").await.expect(200).json;
    assert_eq!(open["executions"].as_array().map(Vec::len), Some(0), "{open:#}");
    assert_eq!(up.stop().await.code(), Some(0), "{}", up.process.log());
}

/// Kills the server, and removes all that it stored before the root of the tree can start the next.
async fn wipe(up: &mut FluxUp) {
    up.process.pause();
    let server = up.process.descendant("nats-server");
    server.kill9();
    eventually(AGAIN_WITHIN, "nats-server to be dead", || async { !server.is_alive() }).await;
    remove_within(&up.path("nats"));
    up.process.resume();
    eventually(AGAIN_WITHIN, "a call to succeed", || async {
        let request = up.api.request(Method::POST, "/execute/nap").json(&json!({}));
        Api::try_send(request).await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
}

fn remove_within(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("the queue's directory") {
        std::fs::remove_dir_all(entry.expect("an entry").path()).expect("removed");
    }
}
