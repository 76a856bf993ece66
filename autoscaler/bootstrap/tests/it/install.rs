//! Where the agent's program comes from, and who installs it.

use std::path::{Path, PathBuf};

use flux_bootstrap::{Install, Reason, Step};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use flux_testkit::in_own_network;

use crate::{IDLE_AGENT, bootstrap, node::Node, recipe};

/// A package with an agent that does nothing, made by dpkg itself.
fn package(dir: &Path, version: &str) -> PathBuf {
    let root = dir.join(format!("package-{version}"));
    let (control, program) = (root.join("DEBIAN/control"), root.join("usr/bin/flux-agent"));
    for file in [&control, &program] {
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
    }
    let text = format!(
        "Package: flux-agent\nVersion: {version}\nArchitecture: all\nMaintainer: Flux <flux@example.com>\nDescription: a test\n"
    );
    std::fs::write(control, text).expect("written");
    std::fs::write(&program, format!("#!/bin/sh\necho {version} >>/run/started\n")).expect("written");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    let deb = dir.join(format!("agent-{version}.deb"));
    let mut build = std::process::Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "--build"]).arg(root).arg(&deb);
    assert!(build.output().expect("dpkg-deb").status.success());
    deb
}

/// Serves one file to whoever asks, until it is dropped.
async fn serve(bytes: Vec<u8>) -> (String, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/flux-agent.deb", listener.local_addr().expect("an address"));
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&bytes).await;
        }
    });
    (url, serving)
}

#[test]
fn an_image_without_an_agent_is_found_out() {
    in_own_network(async {
        let node = Node::start().await;
        let failed = bootstrap(&node, &node.pinned(), &recipe(&node)).await.expect_err("there is no agent");
        assert_eq!((failed.step, failed.output.as_str()), (Step::Install, "there is no flux-agent on this image"));
    });
}

#[test]
fn a_package_of_our_disk_is_installed_and_upgraded() {
    in_own_network(async {
        let node = Node::start().await;
        let mut recipe = recipe(&node);
        for version in ["1.0", "1.1"] {
            recipe.install = Install::Upload(package(&node.path(""), version));
            bootstrap(&node, &node.pinned(), &recipe).await.expect(version);
        }
        assert_eq!(node.read("/run/started").as_deref(), Some("1.0\n1.1\n"));
        recipe.install = Install::Upload(node.path("nothing.deb"));
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("no such file");
        assert!(matches!(&failed.reason, Reason::Ours { why } if why.contains("nothing.deb")), "{failed}");
        assert_eq!(failed.tries, 1);
    });
}

#[test]
fn a_package_of_a_url_is_what_its_digest_says() {
    in_own_network(async {
        let node = Node::start().await;
        let bytes = std::fs::read(package(&node.path(""), "2.0")).expect("a package");
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let (url, _serving) = serve(bytes).await;
        let mut recipe = recipe(&node);
        recipe.install = Install::Url { url: url.clone(), sha256: None };
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("plain HTTP");
        assert!(matches!(failed.reason, Reason::Ours { .. }), "{failed}");
        recipe.install = Install::Url { url: url.clone(), sha256: Some("0".repeat(64)) };
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("another digest");
        assert_eq!(failed.step, Step::Install);
        assert!(failed.output.contains("Hash Sum mismatch"), "{}", failed.output);
        assert!(!node.exists("/usr/bin/flux-agent"));
        recipe.install = Install::Url { url, sha256: Some(sha256) };
        bootstrap(&node, &node.pinned(), &recipe).await.expect("the right digest");
        assert_eq!(node.read("/run/started").as_deref(), Some("2.0\n"));
    });
}

#[test]
fn a_package_that_no_repository_has_is_named() {
    in_own_network(async {
        // A repository that has nothing.
        let node = Node::start_with("rm -rf etc/apt/sources.list etc/apt/sources.list.d/*\n").await;
        let mut recipe = recipe(&node);
        recipe.timing.tries = 1;
        recipe.install = Install::Package("flux-agent=9.9".to_owned());
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("no such package");
        assert!(failed.output.contains("flux-agent"), "{failed}: {}", failed.output);
        recipe.install = Install::Package("--allow-downgrades".to_owned());
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("no package's name");
        assert!(matches!(failed.reason, Reason::Ours { .. }), "{failed}");
    });
}

/// `admin` as Debian's images have it.
const ADMIN: &str = "useradd --root \"$PWD\" --create-home --shell /bin/bash --password '*' admin\n\
    mkdir -p home/admin/.ssh etc/sudoers.d\ncp \"$dir/authorized_keys\" home/admin/.ssh/\n: >root/.ssh/authorized_keys\n";

#[test]
fn who_has_sudo_sets_up_as_root_and_who_has_not_is_told_so() {
    in_own_network(async {
        let admin = ADMIN.replace("$dir/authorized_keys", "../../authorized_keys");
        let sudo = "echo 'admin ALL=(ALL) NOPASSWD: ALL' >etc/sudoers.d/admin\n";
        let node = Node::start_with(&format!("{IDLE_AGENT}{admin}{sudo}")).await;
        let mut recipe = recipe(&node);
        recipe.user = "admin".to_owned();
        recipe.setup_commands = vec!["id -u >/run/who".to_owned()];
        bootstrap(&node, &node.pinned(), &recipe).await.expect("set up with sudo");
        assert_eq!(node.read("/run/who").as_deref(), Some("0\n"));
        assert_eq!(node.mode("/etc/flux/flux.yaml"), (0o640, 0));
        drop(node);
        let node = Node::start_with(&format!("{IDLE_AGENT}{admin}")).await;
        recipe = crate::recipe(&node);
        recipe.user = "admin".to_owned();
        let failed = bootstrap(&node, &node.pinned(), &recipe).await.expect_err("no sudo");
        assert_eq!((failed.step, failed.reason), (Step::Connect, Reason::NotRoot { user: "admin".to_owned() }));
    });
}
