//! A package made for AWS Lambda, as a user has it: a folder that is deployed, called by the command line and by its URL.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use flux_testkit::FluxUp;
use serde_json::json;

use crate::cluster::flux;

const HANDLER: &str = r#"
def handler(event, context):
    if event.get("path") == "/teapot":
        return {"statusCode": 418, "headers": {"x-tea": "pot"}, "body": "short and stout"}
    print("asked by", context.aws_request_id)
    return {"hello": event["name"]}
"#;

#[tokio::test]
async fn a_folder_with_a_bootstrap_is_deployed_and_called() {
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/lambda/python");
    assert!(client.is_dir(), "awslambdaric is missing: `scripts/setup.sh test` installs it");
    let up = FluxUp::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let copied = Command::new("cp").arg("-r").arg(client.join(".")).arg(dir.path()).status().expect("cp");
    assert!(copied.success());
    let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).expect("written");
    write("flux.yaml", "name: greet\nruntime: lambda\nhandler: app.handler\nresources: { cpu: 1000 }\n");
    write("app.py", HANDLER);
    write("bootstrap", "#!/bin/sh\nexec /usr/bin/python3 -m awslambdaric \"$_HANDLER\"\n");
    let path = dir.path().to_str().expect("UTF-8");
    flux(&up, &["deploy", path]).await.fails(1, "chmod +x");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path().join("bootstrap"), executable).expect("executable");
    flux(&up, &["deploy", path]).await.ok();

    let called = flux(&up, &["invoke", "greet", r#"{"name": "Ada"}"#]).await.ok();
    assert_eq!(called.json(), json!({"hello": "Ada"}));
    let record = up.api.execute("greet", &json!({"name": "Bob"})).await.expect(200).json;
    assert_eq!((&record["start"], &record["result"]), (&json!("warm"), &json!({"hello": "Bob"})), "{record:#}");
    let id = record["execution_id"].as_str().and_then(|id| id.strip_prefix("exc-")).expect("an id");
    assert!(record["output"].as_str().is_some_and(|output| output.contains(&format!("asked by {id}"))), "{record:#}");
    let tea = up.api.get("/fn/greet/teapot").await.expect(418);
    assert_eq!(tea.text(), "short and stout");
    let agents = flux(&up, &["agents"]).await.ok().stdout;
    assert!(agents.contains("lambda 2018-06-01"), "{agents}");
}
