//! `flux deploy --watch`.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use flux_testkit::{FluxUp, eventually};

use crate::cluster::{command, flux};

const ENDS: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_saved_file_is_deployed_and_a_mistake_is_said() {
    let up = FluxUp::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let save = |text: &str| {
        std::fs::write(dir.path().join("run.sh"), text).expect("a file");
        std::fs::set_permissions(dir.path().join("run.sh"), std::fs::Permissions::from_mode(0o755)).expect("its mode");
    };
    std::fs::write(dir.path().join("flux.yaml"), "name: live\nhandler: run.sh\n").expect("a file");
    save("#!/bin/sh\necho 1\n");
    let process = command(&up, &["deploy", dir.path().to_str().expect("UTF-8"), "--watch"]).spawn();
    eventually(ENDS, "the watch", || async { process.log().contains("watching ") }).await;
    assert!(process.log().contains("live version 1 deployed"), "{}", process.log());

    save("#!/bin/sh\necho 2\n");
    eventually(ENDS, "version 2", || async { process.log().contains("live version 2 deployed") }).await;
    assert_eq!(flux(&up, &["invoke", "live"]).await.ok().stdout, "2\n");

    std::fs::write(dir.path().join("flux.yaml"), "name: live\nhandlr: run.sh\n").expect("a file");
    eventually(ENDS, "the mistake", || async { process.log().contains("did you mean `handler`?") }).await;
    std::fs::write(dir.path().join("flux.yaml"), "name: live\nhandler: run.sh\ntimeout: 5\n").expect("a file");
    eventually(ENDS, "its configuration", || async { process.log().contains("live version 4") }).await;
}
