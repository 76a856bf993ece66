//! What is said when something is wrong: exactly this, since it is all that a user has to go by.

use std::net::{Ipv4Addr, TcpListener};

use flux_testkit::{FluxCommand, FluxUp, free_port};

use crate::cluster::{COMMAND, alone, flux};

#[tokio::test]
async fn nobody_there() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let ran = alone(&["ps", "--url", &url]).await;
    let expected = format!(
        "error: nothing answers at {url}: Connection refused (os error 111)\n  \
         is `flux up` running at {url}? Another address: --url or FLUX_URL\n"
    );
    assert_eq!((ran.code, ran.stderr), (1, expected));
}

#[tokio::test]
async fn a_wrong_command_line_is_exit_status_2() {
    alone(&["ps", "--url", "ftp://x"]).await.fails(2, "error: `ftp://x` is not a gateway's URL");
    alone(&["invoke", "a b"]).await.fails(2, "use 1 to 64 of A-Z a-z 0-9 _ -");
    alone(&["invoke", "a", "--timeout", "soon"]).await.fails(2, "write 250ms, 10s, 5m or 6h");
    alone(&["init", "perl", "x"]).await.fails(2, "possible values: python, node, bash, rust");
    alone(&["frobnicate"]).await.fails(2, "unrecognized subcommand");
    alone(&["up", "--tasks", "0"]).await.fails(2, "--tasks");
    assert!(alone(&["help", "dlq"]).await.ok().stdout.contains("redrive"));
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    let stderr = |ran: crate::cluster::Ran| ran.stderr.replace(path, "DIR");
    let write = |text: &str| std::fs::write(dir.path().join("flux.yaml"), text).expect("a file");

    let ran = alone(&["deploy", path]).await.fails(1, "");
    assert_eq!(
        stderr(ran),
        "error: DIR has no flux.yaml\n  `flux init python|node|bash|rust NAME` writes a function that works; or write one: \
         name and handler are enough\n"
    );
    write("name: x\nhandler: run.sh\nresources: { cpuu: 1 }\n");
    let ran = alone(&["deploy", path]).await.fails(1, "");
    assert_eq!(
        stderr(ran),
        "error: DIR/flux.yaml: `resources.cpuu`: is not a field of a function; did you mean `resources.cpu`?\n"
    );
    write("name: x\n  handler: [\n");
    alone(&["deploy", path]).await.fails(1, "line 2 column");
    write("name: x\nhandler: run.sh\n");
    let ran = alone(&["deploy", path]).await.fails(1, "");
    assert_eq!(
        stderr(ran),
        "error: the handler `run.sh` of DIR/flux.yaml is not there\n  write it, or correct `handler`\n"
    );
    std::fs::write(dir.path().join("run.sh"), "#!/bin/sh\n").expect("a file");
    let ran = alone(&["deploy", path]).await.fails(1, "");
    assert_eq!(stderr(ran), "error: the handler DIR/run.sh cannot be run\n  chmod +x DIR/run.sh\n");
    let zip = dir.path().join("x.zip");
    std::fs::write(&zip, "not a zip").expect("a file");
    alone(&["deploy", zip.to_str().expect("UTF-8")]).await.fails(1, "is not a zip");
}

#[tokio::test]
async fn a_wrong_key_says_where_the_right_one_is() {
    let up = FluxUp::start().await;
    let ran = FluxCommand::new("flux").args(["ps", "--url", up.api.base(), "--key", "wrong"]).output(COMMAND).await;
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1));
    assert!(stderr.starts_with("error: unauthorized: ") && stderr.contains("the file api-key"), "{stderr}");
    flux(&up, &["logs", "nothing"]).await.fails(1, "error: nothing has not been run");
    flux(&up, &["logs", "exc-nonsense"]).await.fails(1, "error: execution_not_found: ");
}

#[tokio::test]
async fn flux_up_that_cannot_start_says_why_before_anything_does() {
    let up = FluxUp::start().await;
    let data = up.marker();
    let elsewhere = format!("127.0.0.1:{}", free_port());
    alone(&["up", "--data-dir", &data, "--listen", &elsewhere])
        .await
        .fails(1, &format!("error: another `flux up` (pid {}) uses {data}", up.process.pid()));

    let dir = tempfile::tempdir().expect("a directory");
    let other = dir.path().join("data");
    let other = other.to_str().expect("UTF-8");
    let taken = up.api.base().trim_start_matches("http://");
    alone(&["up", "--data-dir", other, "--listen", taken]).await.fails(1, "is in use by another program");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = listener.local_addr().expect("its address").to_string();
    alone(&["up", "--data-dir", other, "--listen", &elsewhere, "--queue-listen", &taken])
        .await
        .fails(1, "is in use by another program");
    alone(&["up", "--data-dir", other, "--listen", "nowhere"]).await.fails(2, "is not HOST:PORT");

    let config = dir.path().join("flux.yaml");
    std::fs::write(&config, "gateway: { lissten: x }\n").expect("a file");
    let config = config.to_str().expect("UTF-8");
    alone(&["up", "--data-dir", other, "--config", config])
        .await
        .fails(1, "error: configuration: `gateway.lissten` is not a field; did you mean `listen`?");
    std::fs::write(config, "queue: { nats_server: /bin/true }\n").expect("a file");
    alone(&["up", "--data-dir", other, "--listen", &elsewhere, "--config", config])
        .await
        .fails(1, "/bin/true does not say which version it is");
    std::fs::write(config, "store: { url: \"mysql://x\" }\n").expect("a file");
    let ran = alone(&["up", "--data-dir", other, "--listen", &elsewhere, "--config", config]).await;
    let ran = ran.fails(1, "error: Flux could not start");
    assert!(ran.stderr.contains("`mysql` is not a kind of store"), "{ran:?}");
    flux_testkit::assert_no_processes_left(other).await;
}
