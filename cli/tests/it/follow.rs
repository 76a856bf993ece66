//! Asynchronous invocations and live output.

use std::time::Duration;

use flux_testkit::{FluxUp, eventually};

use crate::cluster::{command, deploy_script, flux};

const ENDS: Duration = Duration::from_secs(30);

#[tokio::test]
async fn output_comes_while_it_runs_with_its_streams_apart() {
    let up = FluxUp::start().await;
    // The second line is written only once the first was seen: a file is the sign.
    let sign = up.path("sign");
    let script =
        format!("echo one; while [ ! -e \"$1\" ]; do sleep 0.02; done; echo two >&2; echo three; # {}", sign.display());
    deploy_script(&up, "steps", &script, "timeout: 60").await;
    let ran = flux(&up, &["invoke", "steps", "--async", "--arg", "/dev/null"]).await.ok();
    let id = ran.stdout.trim().to_owned();
    assert!(id.starts_with("exc-"), "{id}");
    let followed = flux(&up, &["logs", &id, "-f"]).await.ok();
    assert_eq!((followed.stdout.as_str(), followed.stderr.as_str()), ("one\nthree\n", "two\n"));

    deploy_script(&up, "drip", "echo one; sleep 3; echo two", "").await;
    let process = command(&up, &["invoke", "drip", "--follow"]).spawn();
    eventually(ENDS, "the first line", || async { process.log().contains("one\n") }).await;
    assert!(!process.log().contains("two"), "it is live: {}", process.log());
    eventually(ENDS, "the last line", || async { process.log().contains("two\n") }).await;
}

#[tokio::test]
async fn ctrl_c_stops_following_and_not_the_execution() {
    let up = FluxUp::start().await;
    deploy_script(&up, "drip", "echo one; sleep 2; echo two", "").await;
    let mut process = command(&up, &["invoke", "drip", "--follow"]).spawn();
    eventually(ENDS, "the first line", || async { process.log().contains("one\n") }).await;
    process.interrupt();
    assert_eq!(process.wait_exit(ENDS).await.code(), Some(130));
    let log = process.log();
    let id = log.split_whitespace().find(|word| word.starts_with("exc-")).expect("it says how to go on");
    let record = up.api.outcome(id, ENDS).await;
    assert_eq!((record["status"].as_str(), record["output"].as_str()), (Some("success"), Some("one\ntwo\n")));
}

#[tokio::test]
async fn following_survives_the_death_of_the_worker() {
    let mut up = FluxUp::start().await;
    deploy_script(&up, "drip", "for n in 1 2 3 4; do echo $FLUX_ATTEMPT.$n; sleep 0.5; done", "").await;
    let mut process = command(&up, &["invoke", "drip", "--follow"]).spawn();
    eventually(ENDS, "the first line", || async { process.log().contains("1.1\n") }).await;
    assert!(up.process.is_running());
    up.process.descendant("__serve").kill9();
    assert_eq!(process.wait_exit(ENDS).await.code(), Some(0), "{}", process.log());
    assert!(process.log().ends_with("2.1\n2.2\n2.3\n2.4\n"), "{}", process.log());
}

#[tokio::test]
async fn an_idempotency_key_is_one_execution() {
    let up = FluxUp::start().await;
    deploy_script(&up, "once", "echo $FLUX_EXECUTION_ID", "").await;
    let args = ["invoke", "once", "{}", "--idempotency-key", "k1"];
    let first = flux(&up, &args).await.ok().stdout;
    assert_eq!(flux(&up, &args).await.ok().stdout, first);
    flux(&up, &["invoke", "once", "{\"other\":1}", "--idempotency-key", "k1"]).await.fails(1, "idempotency_mismatch");
}
