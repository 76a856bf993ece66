//! `kill -9` of each process of a `flux up`, with work queued and running: nothing accepted is lost, each execution
//! ends with one outcome, no process is left over, and work runs again. How long that took is printed.

use std::time::{Duration, Instant};

use flux_testkit::{Api, FluxUp, Process, assert_no_processes_left, eventually, eventually_some, processes_matching};
use serde_json::{Value, json};

use crate::cluster::deploy_script;

/// More executions than run at once (`max_concurrency`), so that some are queued when the blow falls.
const NAPS: usize = 12;
const AT_ONCE: usize = 6;
const ENDS: Duration = Duration::from_secs(60);
/// The promise is 3 s; the rest is for a machine that does other things.
const AGAIN_WITHIN: Duration = Duration::from_secs(20);
/// The kernel kills at once; looking takes a moment.
const GONE_WITHIN: Duration = Duration::from_secs(5);

struct Scene {
    up: FluxUp,
    ids: Vec<String>,
    /// The functions' own processes at the moment before.
    running: Vec<Process>,
    /// In the arguments of every nap, and of nothing else.
    mark: String,
}

impl Scene {
    async fn set() -> Self {
        let up = FluxUp::start().await;
        let mark = format!("1.5{}", up.api.base().rsplit(':').next().expect("a port").repeat(2));
        let more = format!("max_concurrency: {AT_ONCE}\nmax_concurrency_behavior: wait\ntimeout: 60");
        deploy_script(&up, "nap", &format!("sleep {mark}; echo rested"), &more).await;
        deploy_script(&up, "quick", "echo ok", "").await;
        up.api.execute("quick", &Value::Null).await.expect(200);
        let mut ids = Vec::new();
        for n in 0..NAPS {
            ids.push(up.api.execute_async("nap", &json!({"n": n})).await);
        }
        let running = eventually_some(ENDS, "naps to run", || async {
            let running: Vec<_> = processes_matching(&mark).into_iter().filter(|p| p.name == "sleep").collect();
            (running.len() == AT_ONCE).then_some(running)
        })
        .await;
        Self { up, ids, running, mark }
    }

    /// From the blow until a call succeeds, and until all has ended; then everything that must hold.
    async fn recovers(mut self, victim: &str, functions_die: bool, blow: impl AsyncFnOnce(&mut FluxUp)) {
        let begun = Instant::now();
        blow(&mut self.up).await;
        if functions_die {
            eventually(GONE_WITHIN, "the functions to be gone", || async {
                self.running.iter().all(|process| !process.is_alive())
            })
            .await;
            println!("{victim}: its functions were gone after {:?}", begun.elapsed());
        }
        let api = &self.up.api;
        eventually(AGAIN_WITHIN, "a call to succeed", || async {
            let request = api.request(reqwest::Method::POST, "/execute/quick").json(&json!({}));
            Api::try_send(request).await.is_ok_and(|reply| reply.status == 200)
        })
        .await;
        println!("{victim}: a call succeeded after {:?}", begun.elapsed());
        if functions_die {
            let first = &self.ids[0];
            eventually(AGAIN_WITHIN, "what ran to run again", || async {
                let path = format!("/executions/{first}");
                let reply = Api::try_send(api.request(reqwest::Method::GET, &path)).await;
                reply.is_ok_and(|reply| reply.json["attempt"].as_u64() >= Some(2) && reply.json["phase"] != "queued")
            })
            .await;
            println!("{victim}: what ran was seen running again after {:?}", begun.elapsed());
        }
        let mut records = Vec::new();
        for id in &self.ids {
            records.push(api.outcome(id, ENDS).await);
        }
        println!("{victim}: everything had ended after {:?}", begun.elapsed());
        for record in &records {
            assert_eq!(record["status"], "success", "{record:#}");
            assert_eq!(record["output"], "rested\n", "{record:#}");
            assert!(record["attempt"].as_u64() <= Some(2), "one blow is at most one more attempt: {record:#}");
        }
        let list = api.get("/executions?function=nap&limit=100").await.expect(200).json;
        assert_eq!(list["executions"].as_array().map(Vec::len), Some(NAPS), "none twice: {list:#}");
        // Late messages of the first attempts have come by now, if any were to come.
        for (id, before) in self.ids.iter().zip(&records) {
            let now = api.get(&format!("/executions/{id}")).await.json;
            assert_eq!(&now, before, "an outcome does not change");
        }
        assert_no_processes_left(&self.mark).await;
        assert_eq!(self.up.stop().await.code(), Some(0), "{}", self.up.process.log());
        assert_no_processes_left(&self.up.marker()).await;
    }
}

#[tokio::test]
async fn the_worker() {
    let scene = Scene::set().await;
    scene.recovers("worker", true, async |up| up.process.descendant("__serve").kill9()).await;
}

#[tokio::test]
async fn the_launcher() {
    let scene = Scene::set().await;
    scene.recovers("launcher", true, async |up| up.process.descendant("__launcher").kill9()).await;
}

#[tokio::test]
async fn the_nats_server() {
    let scene = Scene::set().await;
    scene.recovers("nats-server", false, async |up| up.process.descendant("nats-server").kill9()).await;
}

#[tokio::test]
async fn the_root_of_the_tree() {
    let scene = Scene::set().await;
    scene
        .recovers("root", true, async |up| {
            up.process.kill9();
            assert_no_processes_left(&up.marker()).await;
            up.restart().await;
        })
        .await;
}
