//! What `flux init` writes works as it is.

use std::{path::Path, process::Command};

use flux_testkit::FluxUp;
use serde_json::{Value, json};

use crate::cluster::{alone, flux};

async fn init(kind: &str, name: &str, dir: &Path) -> String {
    let dir = dir.join(name).to_str().expect("UTF-8").to_owned();
    let said = alone(&["init", kind, name, "--dir", &dir]).await.ok().stdout;
    assert!(said.contains(&format!("flux deploy {dir}")), "{said}");
    dir
}

#[tokio::test]
async fn each_kind_deploys_and_runs() {
    let up = FluxUp::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let expected: [(&str, Value); 3] = [
        ("python", json!({"hello": "Ada", "attempt": 1})),
        ("node", json!({"hello": "Ada", "attempt": 1})),
        ("bash", json!({"bytes": 15, "words": 2})),
    ];
    for (kind, result) in expected {
        let name = format!("my-{kind}");
        let path = init(kind, &name, dir.path()).await;
        flux(&up, &["deploy", &path]).await.ok();
        let ran = flux(&up, &["invoke", &name, r#"{"name": "Ada"}"#]).await.ok();
        assert_eq!(ran.json(), result, "{kind}");
    }
}

#[tokio::test]
async fn rust_builds_without_a_network_and_runs() {
    let up = FluxUp::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = init("rust", "1st", dir.path()).await;
    flux(&up, &["deploy", &path]).await.fails(1, "./build.sh)");
    let built =
        Command::new("./build.sh").current_dir(&path).env("CARGO_NET_OFFLINE", "true").output().expect("a shell");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    flux(&up, &["deploy", &path]).await.ok();
    let ran = flux(&up, &["invoke", "1st", "[1, 2]", "--timeout", "10s"]).await.ok();
    assert_eq!(ran.json(), json!({"bytes": 6, "words": 2, "attempt": 1}));
}

#[tokio::test]
async fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = init("bash", "x", dir.path()).await;
    std::fs::write(Path::new(&path).join("handler.sh"), "mine").expect("a file");
    alone(&["init", "bash", "x", "--dir", &path]).await.fails(1, "is there already, and is not empty");
    assert_eq!(std::fs::read_to_string(Path::new(&path).join("handler.sh")).expect("the file"), "mine");
}
