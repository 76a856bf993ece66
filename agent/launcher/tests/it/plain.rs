//! Without root: no slots, and yet nothing is left.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use flux_launcher::wire::{ExitStatus, Limits, Network};
use flux_launcher::{LauncherConfig, Layer};

use crate::harness::{Launched, PROBE, Scratch, processes_with, wait_until};

/// The whole suite again as `nobody`, where it is root that runs it: in a child, since tests share one process.
#[test]
fn the_same_holds_for_an_ordinary_user() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // The build directory may not be open to others.
    let scratch = Scratch::new();
    let copy = |from: &Path, name: &str| {
        let to = scratch.0.join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let tests = copy(&std::env::current_exe().unwrap(), "tests");
    let probe = copy(Path::new(PROBE), "probe");
    let output = Command::new(tests)
        // A guest has users of its own.
        .args(["--test-threads=4", "--skip", "guest::on_version_2"])
        .env_remove("CI")
        .env("FLUX_PROBE", probe)
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn plain() -> Launched {
    Launched::with(|config| config.slots = false)
}

/// It has no mark, and as an ordinary user's it is in no cgroup.
#[test]
fn what_hides_whose_it_is_spoils_nothing_for_younger_workers_and_ends_with_the_older_ones() {
    const WORKER: &str = "exec </dev/null; read -r line <&3; exit 3";
    let mut launcher = plain();
    let (old, channel, _) = launcher.start_worker(WORKER);
    launcher.run_sh("env -i setsid sh -c 'sleep 60017 </dev/null >/dev/null 2>&1 &'");
    let began = std::time::Instant::now();
    wait_until("the kernel's clock to go on", || began.elapsed().as_millis() > 50);
    let (young, _open, _) = launcher.start_worker(WORKER);
    assert!(launcher.is_alone(young), "it is older than this one");
    let left = || !processes_with("sleep 60017").is_empty();
    assert!(!left() || !launcher.is_alone(old), "it may be this one's");
    (&channel).write_all(b"exit\n").unwrap();
    assert_eq!(launcher.ended(old).status, ExitStatus::Exited(3));
    // By the clock: not only when nobody asks anything.
    wait_until("nothing to be left", || {
        assert!(launcher.is_alone(young));
        !left()
    });
}

#[test]
fn missing_layers_are_said() {
    let launcher = plain();
    assert!(!launcher.capabilities.pid_namespace && !launcher.capabilities.mount_namespace);
    assert!(launcher.capabilities.missing.iter().any(|m| m.layer.contains("namespaces")));
    // Run as root and as nobody: what is not there has its name and a reason.
    let capabilities = &launcher.capabilities;
    for (there, layer) in [
        (capabilities.root, "user"),
        (capabilities.mount_namespace, "pid and mount namespaces"),
        (capabilities.net_namespace, "network namespace"),
        (capabilities.network_guard, "network guard"),
        (capabilities.seccomp, "seccomp"),
        (capabilities.landlock_scopes, "landlock scopes"),
        (capabilities.landlock_files, "landlock files"),
        (capabilities.cgroup.memory, "cgroup memory"),
        (capabilities.cgroup.cpu, "cgroup cpu"),
        (capabilities.cgroup.pids, "cgroup pids"),
    ] {
        let said = capabilities.missing.iter().any(|m| m.layer == layer && !m.reason.is_empty());
        assert_eq!(said, !there, "{layer}: {:?}", capabilities.missing);
    }
}

#[test]
fn what_its_user_could_open_is_closed_but_for_an_allow_list() {
    let mut launcher = plain();
    if !launcher.capabilities.landlock_files {
        eprintln!("SKIPPED: this kernel has no Landlock: {:?}", launcher.capabilities.missing);
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have Landlock");
        return;
    }
    // As the agent's data lies: readable, beside the code.
    let data = launcher.scratch.0.join("api-key");
    fs::write(&data, "secret").unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(launcher.code_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    launcher.file("mine", "code\n", 0o644);
    let data = data.to_str().unwrap();
    let script = format!(
        "cat mine; echo own > $HOME/x && cat $TMPDIR/x; id -u > /dev/null && echo names; ls / > /dev/null || echo no list; \
         cat {data} || echo no key; echo > {data} || echo no write; touch new || echo no new; ls /home || echo no home; \
         echo > /tmp/flux-plain || echo no tmp; cat /proc/1/environ || echo no environ; ls /sys/fs/cgroup || echo no sys"
    );
    let done = launcher.run_sh(&script);
    let said: Vec<_> = done.stdout.lines().collect();
    let expected = [
        "code",
        "own",
        "names",
        "no list",
        "no key",
        "no write",
        "no new",
        "no home",
        "no tmp",
        "no environ",
        "no sys",
    ];
    assert_eq!(said, expected, "{}", done.stderr);
    let mut open = Launched::with(|config| {
        config.slots = false;
        config.without = vec![Layer::Landlock];
    });
    assert!(open.capabilities.missing.iter().any(|missing| missing.layer == "landlock files"));
    assert_eq!(open.run_sh(&format!("cat {data}")).stdout, "secret");
}

#[test]
fn an_ordinary_users_functions_are_filtered_too() {
    let mut launcher = plain();
    assert!(launcher.capabilities.seccomp, "{:?}", launcher.capabilities.missing);
    let done = launcher.run_sh(
        "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t\\n'; unshare -U true 2>&1 | tail -c 24",
    );
    assert_eq!(done.stdout, "NoNewPrivs:1Seccomp:2Operation not permitted\n", "{}", done.stderr);
}

#[test]
fn tmpdir_is_private_and_removed() {
    let mut launcher = plain();
    let done = launcher.run_sh("pwd; echo $TMPDIR; ls -A $TMPDIR; echo x > $TMPDIR/x; env | grep -c FLUX_LAUNCHER");
    let lines: Vec<_> = done.stdout.lines().collect();
    assert_eq!(Path::new(lines[0]), launcher.code_dir());
    assert!(lines[1].starts_with(launcher.scratch.0.to_str().unwrap()));
    assert_eq!(lines[2], "1");
    wait_until("it is removed", || !Path::new(lines[1]).exists());
}

#[test]
fn daemons_are_found_by_their_mark_and_orphans_by_their_parent() {
    let mut launcher = plain();
    let done = launcher.run_sh("setsid sleep 75391.5 >/dev/null 2>&1 & env -i setsid sleep 75391.6 >/dev/null 2>&1 &");
    assert_eq!(done.ended.status, ExitStatus::Exited(0));
    wait_until("both are gone", || processes_with("75391.5").is_empty() && processes_with("75391.6").is_empty());
}

#[test]
fn the_next_launcher_ends_what_a_killed_one_left() {
    let mut launcher = plain();
    let request = launcher.sh("setsid sleep 75392.5 >/dev/null 2>&1 & echo ready; sleep 75392.5");
    let process = launcher.start_one(&request, b"").unwrap();
    assert_eq!(process.line(), "ready");
    wait_until("both run", || processes_with("75392.5").len() >= 2);
    launcher.child.kill().unwrap();
    launcher.child.wait().unwrap();
    let mut config = LauncherConfig::new(launcher.scratch.0.join("work"), 2);
    config.slots = false;
    let next = Launched::run(&crate::harness::probe(), config, Scratch::new());
    wait_until("nothing is left", || processes_with("75392.5").is_empty());
    drop(next);
}

#[test]
fn no_network_is_refused_rather_than_ignored() {
    let mut launcher = plain();
    let mut request = launcher.sh("true");
    request.network = Network::None;
    let refused = launcher.refused(&request);
    assert_eq!(refused.step, "network");
    assert!(refused.message.contains("run Flux as root"));
}

#[test]
fn memory_is_limited_by_what_there_is() {
    let mut launcher = plain();
    let mut request = launcher.request("/usr/bin/perl", &["-e", "$x = 'a' x 200_000_000; print length $x"]);
    request.limits = Limits { memory_bytes: 64 << 20, ..Limits::default() };
    let done = launcher.run_one(&request);
    assert_ne!(done.stdout, "200000000");
}
