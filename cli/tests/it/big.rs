//! Large payloads and outputs: 64 MiB go through, more is said.

use std::time::Duration;

use flux_testkit::FluxUp;
use serde_json::Value;

use crate::cluster::{deploy_script, flux};

/// It takes a while in a debug build on a machine that does other things.
const ENDS: Duration = Duration::from_secs(120);
const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn sixty_four_mebibytes_go_in_and_come_out() {
    let up = FluxUp::start().await;
    deploy_script(&up, "echo", "cat", "resources: { cpu: 100, memory: 256 }").await;
    let file = up.path("payload");
    let payload = format!("\"{}\"", "x".repeat(64 * MIB - 2));
    std::fs::write(&file, &payload).expect("a file");
    let path = file.to_str().expect("UTF-8");

    let ran = flux(&up, &["invoke", "echo", "--file", path, "--raw"]).await.ok();
    assert!(ran.stdout == payload, "{} bytes came back", ran.stdout.len());

    let id = flux(&up, &["invoke", "echo", "--file", path, "--async"]).await.ok().stdout.trim().to_owned();
    assert_eq!(up.api.outcome(&id, ENDS).await["status"], "success");
    let kept = flux(&up, &["logs", &id]).await.ok();
    assert!(kept.stdout == payload, "{} bytes were kept", kept.stdout.len());

    std::fs::write(&file, format!("{payload} ")).expect("a file");
    flux(&up, &["invoke", "echo", "--file", path]).await.fails(1, "is larger than 64 MiB");
    let refused = up.api.post("/execute/echo", &serde_json::json!({"payload": "x".repeat(64 * MIB)})).await;
    refused.clone().expect(413);
    assert_eq!(refused.json["error"]["code"], "payload_too_large");
}

#[tokio::test]
async fn more_output_loses_its_middle_and_says_how_much() {
    let up = FluxUp::start().await;
    let script = "echo begin; head -c 73400320 /dev/zero | tr '\\0' x; echo end";
    deploy_script(&up, "floods", script, "resources: { cpu: 100, memory: 64 }").await;
    let said = flux(&up, &["invoke", "floods", "--raw"]).await.ok();
    assert!(said.stderr.contains("bytes of the middle of the output were not kept"), "{}", said.stderr);
    let url = up.api.get("/fn/floods").await.expect(500);
    assert!(url.json["error"]["message"].as_str().is_some_and(|text| text.contains("bytes of it are gone")), "{url:?}");
    let ran = flux(&up, &["invoke", "floods", "--json"]).await.ok();
    let record: Value = ran.json();
    let output = record["output"].as_str().expect("output");
    assert!(output.len() <= 64 * MIB && output.len() > 32 * MIB, "{} bytes", output.len());
    assert!(output.starts_with("begin\n") && output.ends_with("end\n"));
    let dropped = record["output_dropped_bytes"].as_u64().expect("a count");
    assert_eq!(usize::try_from(dropped).expect("it fits") + output.len(), 73_400_320 + "begin\nend\n".len());
}
