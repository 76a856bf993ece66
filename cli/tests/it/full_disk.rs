//! A disk that was full: when there is room again, everything goes on by itself.

use std::time::{Duration, Instant};

use flux_testkit::{Api, Disk, FluxUp, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::deploy_script;

const ENDS: Duration = Duration::from_secs(60);
/// Seconds are the promise; the rest is for a machine that does other things.
const AGAIN_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_queue_whose_disk_was_full_takes_messages_again_by_itself() {
    let Some(disk) = Disk::mount(192) else {
        let why = "a disk of its own cannot be mounted here (not root), so a full one cannot be tried";
        assert!(std::env::var_os("CI").is_none(), "{why}");
        println!("{why}");
        return;
    };
    let mut up = FluxUp::start_below(disk.path(), &[]).await;
    deploy_script(&up, "quick", "echo ok", "").await;
    up.api.execute("quick", &Value::Null).await.expect(200);
    let before = up.process.descendant("nats-server");
    let accepted = async |api: &Api| {
        let request = api.request(Method::POST, "/execute/quick/async").json(&json!({}));
        Api::try_send(request).await.ok().filter(|reply| reply.status == 202).map(|reply| reply.json)
    };
    disk.fill();
    eventually(ENDS, "the full disk to be told", || async {
        accepted(&up.api).await;
        up.process.log().contains("the disk is full")
    })
    .await;
    let ready = up.api.get("/ready").await;
    assert_eq!((ready.status, ready.json["error"]["details"]["queue"].as_str()), (503, Some("stores nothing")));
    assert!(before.is_alive(), "starting it again would not help yet");
    disk.free();
    let begun = Instant::now();
    eventually(AGAIN_WITHIN, "an invocation to be accepted", || async { accepted(&up.api).await.is_some() }).await;
    println!("accepted {:?} after there was room", begun.elapsed());
    let last = accepted(&up.api).await.expect("accepted");
    let id = last["execution_id"].as_str().expect("an id");
    assert_eq!(up.api.outcome(id, ENDS).await["status"], "success");
    assert!(!before.is_alive() && up.process.log().contains("so it is started again"), "{}", up.process.log());
    up.api.ready(AGAIN_WITHIN).await;
    assert_eq!(up.stop().await.code(), Some(0), "{}", up.process.log());
}
