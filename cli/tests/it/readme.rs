//! What the README promises, in its order: start, deploy, call, look, roll back, cancel.

use std::time::Duration;

use flux_testkit::{File, FluxUp, eventually};
use serde_json::json;

use crate::cluster::{command, deploy_script, flux, flux_with_input};

const ENDS: Duration = Duration::from_secs(30);

fn write(dir: &std::path::Path, files: &[(&str, u32, &str)]) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(dir).expect("a directory");
    for (path, mode, text) in files {
        let path = dir.join(path);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).expect("its mode");
    }
}

#[tokio::test]
async fn deploy_invoke_logs_ps_rollback_cancel() {
    let up = FluxUp::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let at = |version: u32| {
        let script =
            format!("#!/bin/sh\nread line\necho \"{{\\\"v\\\": {version}, \\\"got\\\": $line}}\"\necho note >&2\n");
        write(dir.path(), &[("flux.yaml", 0o644, "name: greet\nhandler: run.sh\n"), ("run.sh", 0o755, &script)]);
        dir.path().to_str().expect("UTF-8").to_owned()
    };

    let said = flux(&up, &["deploy", &at(1)]).await.ok().stdout;
    assert!(said.starts_with("greet version 1 deployed (sha256:"), "{said}");
    assert!(said.trim_end().ends_with("on 1 agent"), "{said}");
    let said = flux(&up, &["deploy", &at(1)]).await.ok().stdout;
    assert!(said.starts_with("greet is unchanged: version 1"), "{said}");

    let answer = flux(&up, &["invoke", "greet", r#"{"n": 1.50}"#]).await.ok();
    assert_eq!(answer.stdout, "{\"v\": 1, \"got\": {\"n\": 1.50}}\n", "as the function wrote it");
    let piped = flux_with_input(&up, &["invoke", "greet"], "[1]").await.ok();
    assert_eq!(piped.json(), json!({"v": 1, "got": [1]}));
    let text = flux(&up, &["invoke", "greet", "plain text"]).await.ok();
    assert_eq!(text.json()["got"], "plain text");
    let raw = flux(&up, &["invoke", "greet", "7", "--raw"]).await.ok();
    assert!(raw.stdout.contains("note\n"), "both streams, byte for byte: {raw:?}");

    flux(&up, &["deploy", &at(2)]).await.ok();
    assert_eq!(flux(&up, &["invoke", "greet", "0"]).await.ok().json()["v"], 2);
    assert_eq!(flux(&up, &["rollback", "greet", "1"]).await.ok().stdout, "greet is at version 1\n");
    assert_eq!(flux(&up, &["invoke", "greet", "0"]).await.ok().json()["v"], 1);
    flux(&up, &["rollback", "greet", "9"]).await.fails(1, "error: version_not_found: ");

    eventually(ENDS, "six executions in the list", || async {
        flux(&up, &["ps", "--function", "greet", "--status", "success"]).await.stdout.lines().count() == 7
    })
    .await;
    let logs = flux(&up, &["logs", "greet"]).await.ok();
    assert!(logs.stdout.contains("\"v\": 1") && logs.stdout.contains("note\n"), "{logs:?}");
    let shown = flux(&up, &["functions", "greet"]).await.ok().stdout;
    assert!(shown.contains("handler                     run.sh") && shown.contains("current"), "{shown}");
    assert!(flux(&up, &["functions"]).await.ok().stdout.contains("greet"));
    let agents = flux(&up, &["agents", "--json"]).await.ok().json();
    assert_eq!(agents[0]["status"], "online", "{agents}");
    assert!(flux(&up, &["top"]).await.ok().stdout.contains("nothing runs and nothing is queued"));

    deploy_script(&up, "long", "sleep 60", "timeout: 90").await;
    let id = flux(&up, &["invoke", "long", "--async"]).await.ok().stdout.trim().to_owned();
    eventually(ENDS, "it to run", || async {
        flux(&up, &["ps", "--function", "long"]).await.stdout.contains("running")
    })
    .await;
    assert!(flux(&up, &["top", "--once"]).await.ok().stdout.contains("long"));
    assert_eq!(flux(&up, &["cancel", &id]).await.ok().stdout, format!("{id} cancelled\n"));
    let logs = flux(&up, &["logs", &id]).await.ok();
    assert!(logs.stderr.contains("cancelled"), "{logs:?}");
    flux(&up, &["cancel", &id]).await.fails(1, "error: already_terminal: ");

    assert!(flux(&up, &["delete", "greet"]).await.ok().stdout.starts_with("greet removed"));
    flux(&up, &["invoke", "greet"]).await.fails(1, "error: function_not_found: ");
}

#[tokio::test]
async fn bytes_that_are_no_text_come_out_as_they_went_in() {
    let up = FluxUp::start().await;
    deploy_script(&up, "echo", "cat", "").await;
    let file = up.path("bytes");
    let bytes: Vec<u8> = (0..=255).chain(b"caf\xe9\n".iter().copied()).collect();
    std::fs::write(&file, &bytes).expect("a file");
    let path = file.to_str().expect("UTF-8");
    let raw = command(&up, &["invoke", "echo", "--file", path, "--raw"]).output(ENDS).await;
    assert_eq!(raw.stdout, bytes);
    let logged = command(&up, &["logs", "echo"]).output(ENDS).await;
    assert_eq!(logged.stdout, bytes);
}

#[tokio::test]
async fn a_failing_function_is_exit_status_1_and_says_its_kind() {
    let up = FluxUp::start().await;
    deploy_script(&up, "fails", "echo out; echo why >&2; exit 3", "").await;
    let ran = flux(&up, &["invoke", "fails"]).await.fails(1, "error: exit: ");
    assert!(ran.stderr.contains("code 3"), "{ran:?}");
    assert!(ran.stdout.contains("out\n"), "{ran:?}");
    deploy_script(&up, "hangs", "sleep 60", "timeout: 0.3").await;
    flux(&up, &["invoke", "hangs"]).await.fails(1, "error: timeout: ");
    deploy_script(&up, "dies", "kill -SEGV $$", "").await;
    flux(&up, &["invoke", "dies"]).await.fails(1, "error: signal: ");
    flux(&up, &["invoke", "hangs", "--follow"]).await.fails(1, "error: timeout: ");
    let ran = flux(&up, &["--json", "invoke", "fails"]).await;
    assert_eq!((ran.code, ran.json()["error"]["exit_code"].clone()), (1, json!(3)));
}

#[tokio::test]
async fn dead_letters_are_listed_shown_redriven_and_purged() {
    let up = FluxUp::start().await;
    deploy_script(&up, "picky", "echo no >&2; exit 1", "retry: { max_attempts: 2, backoff: 50ms }").await;
    let id = flux(&up, &["invoke", "picky", "{\"n\": 7}", "--async"]).await.ok().stdout.trim().to_owned();
    let ended = up.api.outcome(&id, ENDS).await;
    assert_eq!((ended["status"].as_str(), ended["attempt"].as_u64()), (Some("failed"), Some(2)), "{ended}");
    eventually(ENDS, "a dead letter", || async {
        flux(&up, &["dlq", "list"]).await.stdout.contains("picky          1")
            || flux(&up, &["dlq", "list"]).await.stdout.contains("picky")
    })
    .await;
    flux(&up, &["dlq", "list", "nosuch"]).await.fails(1, "nosuch");
    let list = flux(&up, &["dlq", "list", "picky", "--json"]).await.ok().json();
    let letter = list["letters"][0]["sequence"].to_string();
    let shown = flux(&up, &["dlq", "show", "picky", &letter, "--json"]).await.ok().json();
    assert_eq!((&shown["execution_id"], &shown["payload"]), (&json!(id), &json!("{\"n\": 7}")), "{shown}");

    let dry = flux(&up, &["dlq", "redrive", "picky", "--dry-run"]).await.ok();
    assert_eq!(dry.stdout.trim(), id);
    up.api.deploy("picky", "name: picky\nhandler: run.sh\n", &[File::executable("run.sh", "#!/bin/sh\ncat\n")]).await;
    let redriven = flux(&up, &["dlq", "redrive", "picky", &letter]).await.ok().stdout;
    let new = redriven.trim().rsplit(" -> ").next().expect("old -> new").to_owned();
    let ended = up.api.outcome(&new, ENDS).await;
    assert_eq!((ended["status"].as_str(), &ended["redrive_of"]), (Some("success"), &json!(id)), "{ended}");
    assert_eq!(ended["result"], json!({"n": 7}));
    flux(&up, &["dlq", "purge", "picky"]).await.fails(2, "--all");
    assert_eq!(flux(&up, &["dlq", "purge", "picky", "--all"]).await.ok().stdout, "0 letters removed\n");
}
