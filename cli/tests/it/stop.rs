//! Going away: what runs finishes, nobody gets a 5xx, and nothing is left.

use std::time::Duration;

use flux_testkit::{Api, FluxUp, assert_no_processes_left, eventually};

use crate::cluster::{command, deploy_script, flux};

const ENDS: Duration = Duration::from_secs(40);

#[tokio::test]
async fn ctrl_c_finishes_what_runs_and_leaves_nothing() {
    let mut up = FluxUp::start().await;
    deploy_script(&up, "nap", "echo begun; sleep 1; echo done", "").await;
    let waiting = command(&up, &["invoke", "nap", "--json"]).spawn();
    let id = flux(&up, &["invoke", "nap", "--async"]).await.ok().stdout.trim().to_owned();
    eventually(ENDS, "both to run", || async {
        up.api.get("/executions?status=running").await.text().matches("\"phase\":\"running\"").count() == 2
    })
    .await;
    up.process.interrupt();
    // Whoever asks meanwhile is served or not connected, but never told of an error.
    let mut served = 0;
    while let Ok(reply) = Api::try_send(up.api.request(reqwest::Method::GET, "/functions")).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
        served += 1;
    }
    let status = up.process.wait_exit(ENDS).await;
    assert_eq!(status.code(), Some(0), "{}", up.process.log());
    println!("{served} requests were served while it drained");
    eventually(ENDS, "the caller to have its answer", || async { waiting.log().contains("begun\\ndone\\n") }).await;
    assert_no_processes_left(&up.marker()).await;

    up.restart().await;
    let record = up.api.outcome(&id, ENDS).await;
    assert_eq!(record["output"], "begun\ndone\n", "{record}");
    assert_eq!((record["status"].as_str(), record["attempt"].as_u64()), (Some("success"), Some(1)), "{record}");
}

#[tokio::test]
async fn a_second_ctrl_c_ends_at_once_and_what_ran_runs_again() {
    let mut up = FluxUp::start().await;
    deploy_script(&up, "nap", "echo $FLUX_ATTEMPT; [ $FLUX_ATTEMPT -gt 1 ] || sleep 60", "timeout: 90").await;
    let id = flux(&up, &["invoke", "nap", "--async"]).await.ok().stdout.trim().to_owned();
    eventually(ENDS, "it to run", || async {
        up.api.get("/executions?status=running").await.text().contains("\"phase\":\"running\"")
    })
    .await;
    up.process.interrupt();
    eventually(ENDS, "it to drain", || async { up.process.log().contains("draining") }).await;
    assert!(up.process.is_running(), "it waits for what runs");
    up.process.interrupt();
    let begun = std::time::Instant::now();
    assert_eq!(up.process.wait_exit(ENDS).await.code(), Some(1), "it says that it was not in order");
    assert!(begun.elapsed() < Duration::from_secs(6), "at once: {:?}", begun.elapsed());
    assert_no_processes_left(&up.marker()).await;
    up.restart().await;
    let record = up.api.outcome(&id, ENDS).await;
    assert_eq!((record["status"].as_str(), record["attempt"].as_u64()), (Some("success"), Some(2)), "{record}");
}

#[tokio::test]
async fn the_key_that_was_made_is_found_by_the_user_s_commands() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let listen = format!("127.0.0.1:{}", flux_testkit::free_port());
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).expect("passable");
    let start = || {
        flux_testkit::FluxCommand::new("flux")
            .args(["up", "--data-dir", data.to_str().expect("UTF-8"), "--listen", &listen])
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path().join("config"))
            .spawn()
    };
    let mut up = start();
    eventually(ENDS, "it to be ready", || async { up.log().contains("Flux is ready") }).await;
    let key = std::fs::read_to_string(data.join("api-key")).expect("the key");
    assert!(!up.log().contains(key.trim()), "the key is not printed");
    let ps = |url: String| {
        flux_testkit::FluxCommand::new("flux")
            .args(["ps", "--url", &url])
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path().join("config"))
            .output(ENDS)
    };
    assert!(ps(format!("http://{listen}")).await.status.success());
    assert!(ps(listen.replace("127.0.0.1", "localhost")).await.status.success());
    up.interrupt();
    assert_eq!(up.wait_exit(ENDS).await.code(), Some(0));
    let up = start();
    eventually(ENDS, "it to be ready again", || async { up.log().contains("Flux is ready") }).await;
    assert_eq!(std::fs::read_to_string(data.join("api-key")).expect("the key"), key, "the same key");
}
