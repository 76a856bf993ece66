//! More than there is room for: what is accepted succeeds, the rest is told when to come again, and then all is as before.
//! How fast is `make overload`'s to measure.

use std::collections::BTreeMap;

use flux_testkit::{FluxUp, eventually};
use futures::future::join_all;
use serde_json::json;

use crate::cluster::{COMMAND, deploy_script};

const CALLS: usize = 300;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_refused_and_what_is_not_succeeds() {
    let up = FluxUp::start_with(&["--tasks", "4"]).await;
    deploy_script(&up, "brief", "cat", "timeout: 20").await;
    // Synchronous calls beside asynchronous ones, all at once.
    let one = |n: usize| {
        let up = &up;
        async move {
            let kind = if n.is_multiple_of(3) { "/async" } else { "" };
            let reply = up.api.post(&format!("/execute/brief{kind}"), &json!({"payload": {"n": n}})).await;
            match reply.status {
                200 => assert_eq!(reply.json["result"]["n"], n, "{reply:?}"),
                202 => {}
                429 | 503 => {
                    let after =
                        reply.headers.get("retry-after").and_then(|after| after.to_str().ok()?.parse::<u32>().ok());
                    assert!(after.is_some_and(|after| after > 0), "{reply:?}");
                }
                _ => panic!("{reply:?}"),
            }
            (reply.status, reply.json["execution_id"].as_str().map(str::to_owned))
        }
    };
    let answers = join_all((0..CALLS).map(one)).await;
    let mut counts = BTreeMap::<u16, usize>::new();
    for (status, _) in &answers {
        *counts.entry(*status).or_default() += 1;
    }
    assert!(counts.contains_key(&200) && counts.contains_key(&202), "{counts:?}");
    assert!(counts.contains_key(&429) || counts.contains_key(&503), "nothing was refused: {counts:?}");
    // What was accepted is kept.
    for id in answers.iter().filter(|(status, _)| *status == 202).filter_map(|(_, id)| id.as_ref()) {
        let record = up.api.get(&format!("/executions/{id}?wait=60s")).await;
        assert_eq!(record.json["status"], "success", "{record:?}");
    }
    // It recovers: one after the other, all are answered.
    eventually(COMMAND, "room again", || async {
        up.api.post("/execute/brief", &json!({"payload": {"n": 1}})).await.status == 200
    })
    .await;
    for n in 0..20 {
        let reply = up.api.post("/execute/brief", &json!({"payload": {"n": n}})).await;
        assert_eq!(reply.expect(200).json["result"]["n"], n);
    }
}
