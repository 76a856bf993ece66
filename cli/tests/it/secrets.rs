//! Secrets as a user has them: set by the command, found by the function, and seen nowhere else.

use std::{path::Path, time::Duration};

use flux_testkit::{File, FluxUp, eventually};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cluster::{deploy_script, flux, flux_with_input};

const ENDS: Duration = Duration::from_secs(30);
/// For many starts of workers, one after the other.
const LONG: Duration = Duration::from_secs(120);
/// Nothing else has these characters in this order.
const VALUE: &str = "Xq7-zebra-\"quoted\"-Kp3";
const PROVES: &str = "printf %s \"$DB_PASSWORD\" | sha256sum | cut -c1-16\n";

fn digest(value: &str) -> String {
    flux_protocol::Digest::of(value.as_bytes()).hex()[..16].to_owned()
}

/// Every file below, but for the queue's and store's own which may hold what was sent: those too.
fn files_with(dir: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle)) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[tokio::test]
async fn a_secret_reaches_its_function_and_nobody_else() {
    let up = FluxUp::start().await;
    let nats = up.queue().await;
    let mut all = nats.subscribe(">").await.expect("subscribed");
    nats.flush().await.expect("a round trip");

    // A deployment that names one that is not there says so, and an invocation fails with its name.
    deploy_script(&up, "uses", PROVES, "secrets: [DB_PASSWORD]").await;
    let warned =
        up.api.put("/functions", "application/yaml", "name: warn\nhandler: run.sh\nsecrets: [DB_PASSWORD]").await;
    assert_eq!(warned.expect(201).json["missing_secrets"], json!(["DB_PASSWORD"]));
    let failed = up.api.execute("uses", &json!({})).await.expect(500).json;
    assert_eq!(failed["error"]["kind"], "invalid_function");
    assert!(failed["error"]["message"].as_str().is_some_and(|text| text.contains("`DB_PASSWORD`")), "{failed:#}");

    let set = flux_with_input(&up, &["secrets", "set", "DB_PASSWORD"], &format!("{VALUE}\n")).await.ok();
    assert_eq!(set.stdout, "DB_PASSWORD is set, version 1\n");
    let ran = up.api.execute("uses", &json!({})).await.expect(200).json;
    assert_eq!(ran["output"].as_str().map(str::trim), Some(&*digest(VALUE)), "the value is whole: {ran:#}");
    let id = up.api.execute_async("uses", &json!({})).await;
    assert_eq!(up.api.outcome(&id, ENDS).await["output"].as_str().map(str::trim), Some(&*digest(VALUE)));

    // Another function has none, whatever it is called.
    deploy_script(&up, "other", "env | grep -c DB_PASSWORD", "").await;
    assert_eq!(up.api.execute("other", &json!({})).await.json["output"], "0\n");

    // What it prints of it is hidden: at once, byte by byte, on either stream, in JSON, as its result.
    let prints = "printf 'a%sb\\n' \"$DB_PASSWORD\"; printf 'err %s\\n' \"$DB_PASSWORD\" >&2\n\
                  s=\"$DB_PASSWORD\"; while [ -n \"$s\" ]; do r=\"${s#?}\"; printf %s \"${s%\"$r\"}\"; sleep 0.03; s=\"$r\"; done; echo";
    deploy_script(&up, "prints", prints, "secrets: [DB_PASSWORD]\ntimeout: 30").await;
    let printed = up.api.execute("prints", &json!({})).await.expect(200);
    let output = printed.json["output"].as_str().expect("text");
    assert!(output.contains("a***b\n") && output.contains("err ***\n") && output.ends_with("***\n"), "{output}");
    assert!(!printed.text().contains("zebra"), "{}", printed.text());
    let followed = flux(&up, &["invoke", "prints", "{}", "--follow"]).await.ok();
    assert!(followed.stdout.contains("a***b") && !format!("{followed:?}").contains("zebra"), "{followed:?}");
    deploy_script(&up, "shows", "echo \"$DB_PASSWORD\"", "secrets: [DB_PASSWORD]\nredact: false").await;
    let shown = up.api.execute("shows", &json!({})).await.expect(200).json;
    assert_eq!(shown["output"], format!("{VALUE}\n"), "it was asked for");
    up.api.delete("/functions/shows").await.expect(200);

    // Who may read everything reads no value.
    for path in ["/secrets", "/secrets/DB_PASSWORD", "/functions/uses", "/functions", "/audit", "/metrics", "/agents"] {
        let reply = up.api.get(path).await.expect(200);
        assert!(!reply.text().contains("zebra"), "{path}: {}", reply.text());
    }
    let listed = flux(&up, &["secrets", "list"]).await.ok().stdout;
    assert!(listed.contains("DB_PASSWORD") && !listed.contains("zebra"), "{listed}");

    // Nor is it in the log, or in any message but those of the function that was told to show it.
    assert!(!up.process.log().contains("zebra"), "{}", up.process.log());
    let mut seen = 0;
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(300), all.next()).await {
        seen += 1;
        let shows =
            message.payload.windows(7).any(|window| window == b"\"shows\"") || message.subject.contains("shows");
        let text = String::from_utf8_lossy(&message.payload);
        let is_its_output =
            message.subject.starts_with("flux.output.") && message.payload.windows(8).any(|w| w == b"Xq7-zebr");
        assert!(shows || is_its_output || !text.contains("zebra"), "{}: {text}", message.subject);
    }
    assert!(seen > 20, "the queue was listened to");
}

#[tokio::test]
async fn at_rest_a_secret_is_encrypted_and_its_key_can_be_rotated() {
    let mut up = FluxUp::start().await;
    deploy_script(&up, "uses", PROVES, "secrets: [DB_PASSWORD]").await;
    flux_with_input(&up, &["secrets", "set", "DB_PASSWORD"], VALUE).await.ok();
    let proof = async |up: &FluxUp| {
        up.api.execute("uses", &json!({})).await.expect(200).json["output"].as_str().expect("text").trim().to_owned()
    };
    assert_eq!(proof(&up).await, digest(VALUE));
    assert_eq!(files_with(up.data_dir(), b"zebra"), Vec::<String>::new());
    let keys = up.path("keys/secrets.key");
    let before = std::fs::read_to_string(&keys).expect("the keys");
    let rotated = flux(&up, &["secrets", "rotate"]).await.ok().stdout;
    assert_eq!(rotated, "1 secret encrypted with a new key\n");
    let after = std::fs::read_to_string(&keys).expect("the keys");
    assert_eq!((before.lines().count(), after.lines().count()), (2, 3), "the key before is kept for one rotation");
    assert_ne!(before, after);
    assert_eq!(proof(&up).await, digest(VALUE));
    up.restart().await;
    assert_eq!(proof(&up).await, digest(VALUE));
    assert_eq!(files_with(up.data_dir(), b"zebra"), Vec::<String>::new());

    flux(&up, &["secrets", "remove", "DB_PASSWORD"]).await.ok();
    up.api.execute("uses", &json!({})).await.expect(500);
    let audit = flux(&up, &["audit"]).await.ok().stdout;
    for change in ["PUT /secrets/DB_PASSWORD", "POST /secrets-key/rotate", "DELETE /secrets/DB_PASSWORD", "version 1"] {
        assert!(audit.contains(change), "{change}: {audit}");
    }

    // The old file is put back: what was encrypted since does not open, and nothing is made anew.
    flux_with_input(&up, &["secrets", "set", "DB_PASSWORD"], VALUE).await.ok();
    std::fs::write(&keys, before).expect("written");
    up.restart().await;
    let refused = up.api.put("/secrets/OTHER", "text/plain", "value").await.expect(503);
    assert_eq!(refused.json["error"]["code"], "secrets_unavailable");
}

#[tokio::test]
async fn a_warm_worker_has_its_secrets_from_its_start() {
    const PYTHON: &str = r#"
import os, hashlib

def handler(payload, context):
    value = os.environ["DB_PASSWORD"]
    if payload.get("what") == "return":
        return {"value": value}
    if payload.get("what") == "raise":
        raise ValueError("cannot log in with " + value)
    print("using", value)
    return hashlib.sha256(value.encode()).hexdigest()[:16]
"#;
    let up = FluxUp::start().await;
    flux_with_input(&up, &["secrets", "set", "DB_PASSWORD"], VALUE).await.ok();
    let yaml = "name: warm\nruntime: python\nhandler: main.handler\nsecrets: [DB_PASSWORD]\n\
                resources: { cpu: 100, memory: 128 }\n";
    up.api.deploy("warm", yaml, &[File::plain("main.py", PYTHON)]).await;
    let call = async |payload: Value| up.api.execute("warm", &payload).await;
    for start in ["cold", "warm"] {
        let ran = call(json!({})).await.expect(200).json;
        assert_eq!((&ran["start"], &ran["result"]), (&json!(start), &json!(digest(VALUE))), "{ran:#}");
        assert_eq!(ran["output"], "using ***\n");
    }
    assert_eq!(call(json!({"what": "return"})).await.expect(200).json["result"], json!({"value": "***"}));
    let raised = call(json!({"what": "raise"})).await.expect(500);
    assert_eq!(raised.json["error"]["message"], "cannot log in with ***");
    assert!(!raised.text().contains("zebra"), "{}", raised.text());
}

#[tokio::test]
async fn a_changed_secret_replaces_warm_workers() {
    const PYTHON: &str = "import os, hashlib\n\ndef handler(payload, context):\n    \
                          return hashlib.sha256(os.environ[\"DB_PASSWORD\"].encode()).hexdigest()[:16]\n";
    let up = FluxUp::start().await;
    let set = async |value: &str| flux_with_input(&up, &["secrets", "set", "DB_PASSWORD"], value).await.ok();
    set("the first value").await;
    let yaml = "name: warm\nruntime: python\nhandler: main.handler\nsecrets: [DB_PASSWORD]\nkeep_warm: 3600\n\
                resources: { cpu: 100, memory: 128 }\n";
    up.api.deploy("warm", yaml, &[File::plain("main.py", PYTHON)]).await;
    let call = async || up.api.execute("warm", &json!({})).await;
    // A machine that is slow may refuse one or another.
    let has = async |value: &str| {
        let ran = call().await;
        ran.status == 200 && ran.json["result"] == digest(value)
    };
    eventually(LONG, "the first value", || has("the first value")).await;

    // Workers that wait.
    set("the second value").await;
    eventually(LONG, "the second value", || has("the second value")).await;
    // Workers that hardly ever do: with more calls than workers, one that has answered serves whoever waits.
    set("the third value").await;
    let calls = |_| async {
        let last = std::cell::Cell::new(0);
        eventually(LONG, "the third value, five times in a row", || async {
            last.set(if has("the third value").await { last.get() + 1 } else { 0 });
            last.get() == 5
        })
        .await;
    };
    futures::future::join_all((0..4).map(calls)).await;
    // Removed and set again is another value, whatever its number; removed is none.
    flux(&up, &["secrets", "remove", "DB_PASSWORD"]).await.ok();
    set("the fourth value").await;
    eventually(LONG, "the fourth value", || has("the fourth value")).await;
    flux(&up, &["secrets", "remove", "DB_PASSWORD"]).await.ok();
    eventually(LONG, "none to be given", || async { call().await.status == 500 }).await;
    // Where nothing is changed workers stay.
    set("the fifth value").await;
    eventually(LONG, "the fifth value", || has("the fifth value")).await;
    let listed = up.api.get("/functions/warm").await.expect(200).json;
    assert!(listed["warm"].as_u64().is_none_or(|warm| warm > 0), "{listed}");
}

#[tokio::test]
async fn a_changed_secret_replaces_what_calls_are_forked_from() {
    const PYTHON: &str = "import os\n\nBORN_WITH = os.environ[\"DB_PASSWORD\"]\n\ndef handler(payload, context):\n    \
                          return BORN_WITH == os.environ[\"DB_PASSWORD\"] == payload\n";
    let up = FluxUp::start().await;
    let set = async |value: &str| flux_with_input(&up, &["secrets", "set", "DB_PASSWORD"], value).await.ok();
    set("the first value").await;
    let yaml = "name: forks\nruntime: python\nhandler: main.handler\nsecrets: [DB_PASSWORD]\nfresh: true\nkeep_warm: 3600\n\
                resources: { cpu: 100, memory: 128 }\n";
    up.api.deploy("forks", yaml, &[File::plain("main.py", PYTHON)]).await;
    let starts_with = async |value: &str| {
        let ran = up.api.execute("forks", &json!(value)).await;
        // A machine that is slow may refuse one or another.
        (ran.status == 200 && ran.json["result"] == true).then(|| ran.json["start"].clone())
    };
    for value in ["the first value", "the second value"] {
        set(value).await;
        eventually(LONG, value, || async { starts_with(value).await.is_some() }).await;
        eventually(LONG, "a call that was forked from one that waited", || async {
            starts_with(value).await == Some(json!("warm"))
        })
        .await;
    }
}

#[tokio::test]
async fn keys_by_the_command() {
    let up = FluxUp::start().await;
    deploy_script(&up, "echo", "cat", "").await;
    let made = flux(&up, &["keys", "create", "ci", "--scope", "invoke:ec*", "--expires-in", "1h"]).await.ok();
    let key = made.stdout.trim().to_owned();
    assert!(key.starts_with("flux_") && made.stderr.contains("cannot be shown again"), "{made:?}");
    let id = key.split('_').nth(1).expect("an id").to_owned();
    let invoke = async |key: &str| flux(&up, &["--key", key, "invoke", "echo", "{\"n\":1}"]).await;
    assert_eq!(invoke(&key).await.ok().stdout.trim(), "{\"n\":1}");
    flux(&up, &["--key", &key, "functions"]).await.fails(1, "forbidden");
    let rotated = flux(&up, &["keys", "rotate", &id, "--overlap", "0s"]).await.ok().stdout.trim().to_owned();
    invoke(&key).await.fails(1, "unauthorized");
    invoke(&rotated).await.ok();
    let listed = flux(&up, &["keys", "list"]).await.ok().stdout;
    assert!(listed.contains(&id) && listed.contains("invoke:ec*") && !listed.contains(&rotated), "{listed}");
    flux(&up, &["keys", "revoke", &id]).await.ok();
    invoke(&rotated).await.fails(1, "unauthorized");
    flux(&up, &["keys", "create", "x", "--scope", "rear"]).await.fails(2, "not a scope");
    assert!(!up.process.log().contains(&rotated[18..]), "a key is in the log");
}
