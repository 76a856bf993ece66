//! What a slot holds a function in. Needs root.

use std::fs;

use crate::harness::{Launched, RUNNER, root_or_skip};
use flux_launcher::wire::Network;
use flux_launcher::{Layer, UidRange};

#[test]
fn everything_is_there_and_said() {
    if !root_or_skip() {
        return;
    }
    let launcher = Launched::start();
    let capabilities = &launcher.capabilities;
    assert!(capabilities.root && capabilities.pid_namespace && capabilities.mount_namespace, "{capabilities:?}");
    assert!(capabilities.no_new_privs && capabilities.net_namespace, "{capabilities:?}");
    assert_eq!((capabilities.runner_uid, capabilities.runner_gid), (RUNNER.uid, RUNNER.gid));
    // Whatever is missing on this machine is named with its reason.
    for (there, layer) in [
        (capabilities.network_guard, "network guard"),
        (capabilities.seccomp, "seccomp"),
        (capabilities.landlock_scopes, "landlock scopes"),
        (capabilities.own_uids, "uid of its own"),
        (capabilities.cgroup.memory, "cgroup memory"),
        (capabilities.cgroup.cpu, "cgroup cpu"),
        (capabilities.cgroup.pids, "cgroup pids"),
    ] {
        assert_eq!(!there, capabilities.missing.iter().any(|m| m.layer == layer && !m.reason.is_empty()));
    }
    let launcher = Launched::with(|config| config.runner = None);
    assert!(launcher.capabilities.missing.iter().any(|m| m.layer == "user" && m.reason.contains("nobody")));
}

#[test]
fn where_isolation_is_required_a_missing_layer_refuses_what_needs_it() {
    if !root_or_skip() {
        return;
    }
    let run = |without: Vec<Layer>, network: Network| {
        let mut launcher = Launched::with(|config| {
            config.isolation_required = true;
            config.runner_uids = Some(UidRange { first: 1_879_048_192, count: 64 });
            config.without = without;
        });
        let others: Vec<_> =
            launcher.capabilities.missing.iter().filter(|m| !m.reason.contains("switched off")).collect();
        if !others.is_empty() {
            eprintln!("SKIPPED: this machine lacks layers of its own: {others:?}");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have every layer");
            return None;
        }
        let mut request = launcher.sh("echo ran");
        request.network = network;
        Some(launcher.start_one(&request, b"").map(|process| launcher.finish(process).stdout).map_err(|r| r.step))
    };
    let ran = Some(Ok("ran\n".to_owned()));
    let refused = Some(Err("isolation".to_owned()));
    for (without, network, expected) in [
        (vec![], Network::Host, &ran),
        (vec![Layer::Seccomp], Network::Host, &refused),
        (vec![Layer::Seccomp], Network::None, &refused),
        (vec![Layer::NetworkGuard], Network::Host, &refused),
        (vec![Layer::NetworkGuard, Layer::Landlock], Network::None, &ran),
    ] {
        let done = run(without.clone(), network);
        assert!(done.is_none() || done == *expected, "{without:?} {network:?}: {done:?}");
    }
}

#[test]
fn it_runs_as_its_own_user_without_rights() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    let done =
        launcher.run_sh("id -u; id -g; id -G; id -un; grep -E '^(Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status");
    let lines: Vec<_> = done.stdout.lines().collect();
    assert_eq!(lines[..4], ["54321", "54322", "54322", "flux-runner"], "{}", done.stdout);
    for line in &lines[4..8] {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert!(lines[8].ends_with('1'));
}

#[test]
fn its_code_is_its_working_directory_and_read_only() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    launcher.file("data", "42", 0o666);
    let done = launcher.run_sh("pwd; cat data; echo 1 > data || echo refused; touch new || echo refused");
    assert_eq!(done.stdout, "/var/task\n42refused\nrefused\n", "{}", done.stderr);
    assert_eq!(fs::read_to_string(launcher.code_dir().join("data")).unwrap(), "42");
}

#[test]
fn tmp_is_private_and_empty_at_the_next_run() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::with(|config| config.tmp_bytes = 1 << 20);
    for _ in 0..5 {
        let done = launcher
            .run_sh("ls -A /tmp /dev/shm | wc -l; echo mine > /tmp/x; mkdir /tmp/d; echo > /dev/shm/y; cat /tmp/x");
        // Two headings and an empty line between them.
        assert_eq!(done.stdout, "3\nmine\n");
    }
    let done = launcher.run_sh("dd if=/dev/zero of=/tmp/big bs=64k count=64 2>&1 | grep -c 'No space'");
    assert_eq!(done.stdout, "1\n");
}

#[test]
fn tmp_is_empty_also_where_the_first_run_in_a_slot_wrote_there_at_once() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::with(|config| config.tasks = 1);
    for round in 0..40 {
        for expected in ["0", "0"] {
            let mut request = launcher.sh("ls -A /tmp | wc -l; echo > /tmp/x");
            request.slot_key = format!("f{round}@1");
            assert_eq!(launcher.run_one(&request).stdout.trim(), expected);
        }
    }
}

#[test]
fn it_sees_its_own_processes_only() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    let done = launcher.run_sh("for p in /proc/[0-9]*; do cat $p/comm; done | sort | uniq | tr '\\n' ' '; tr '\\0' ' ' < /proc/1/cmdline; echo $$");
    let text = done.stdout.trim();
    assert!(text.starts_with("cat flux-slot sh") || text.starts_with("flux-slot sh"), "{text}");
    assert!(!text.contains("work_dir") && !text.contains("launcher"), "{text}");
    let done = launcher.run_sh("kill -9 1; echo $?; cat /proc/1/environ; ls /proc/1/root");
    assert!(done.stdout.starts_with("1\n"), "{}", done.stdout);
    assert_eq!(done.stdout.lines().count(), 1, "{}", done.stdout);
}

#[test]
fn it_sees_an_allow_list_of_the_file_system() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    let done = launcher.run_sh("ls / | tr '\\n' ' '; echo; ls /etc | tr '\\n' ' '; echo; ls /dev | tr '\\n' ' '; echo; hostname; cat /proc/mounts | grep -c ' / '");
    let lines: Vec<_> = done.stdout.lines().collect();
    for hidden in ["run", "root", "home", "sys", "boot", "srv", "mnt"] {
        assert!(!lines[0].split(' ').any(|name| name == hidden), "{hidden} in {}", lines[0]);
    }
    for hidden in ["shadow", "gshadow", "ssh", "sudoers"] {
        assert!(!lines[1].split(' ').any(|name| name == hidden), "{hidden} in {}", lines[1]);
    }
    assert_eq!(lines[2].trim(), "fd full null random shm stderr stdin stdout urandom zero");
    assert_eq!(lines[3], "flux");
    assert_eq!(lines[4], "1", "the old root is gone");
    let done = launcher.run_sh("for f in / /etc /usr /dev /var /etc/passwd; do test -w $f && echo $f; done; echo x > /dev/null && head -c 3 /dev/zero | wc -c; ls /etc/ssl");
    assert!(done.stdout.starts_with("3\n"), "{} {}", done.stdout, done.stderr);
    assert!(!done.stdout.contains("private"), "{}", done.stdout);
}

#[test]
fn no_network_is_none_but_lo() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    let mut request = launcher.sh("tail -n +3 /proc/net/dev | tr -d ' ' | cut -d: -f1; cat /sys/class/net/lo/flags 2>/dev/null; perl -MSocket -e 'socket(S,PF_INET,SOCK_STREAM,0); bind(S,sockaddr_in(0,INADDR_LOOPBACK)) or die; listen(S,1); my ($p)=sockaddr_in(getsockname(S)); socket(C,PF_INET,SOCK_STREAM,0); connect(C,sockaddr_in($p,INADDR_LOOPBACK)) or die $!; print \"lo is up\\n\"'");
    request.network = Network::None;
    let done = launcher.run_one(&request);
    let mut lines: Vec<_> = done.stdout.lines().collect();
    assert_eq!(lines.pop(), Some("lo is up"), "{} {}", done.stdout, done.stderr);
    assert!(lines.contains(&"lo") && !lines.iter().any(|l| l.starts_with("eth") || l.starts_with("ens")), "{lines:?}");
    let own = |launcher: &mut Launched, network| {
        let mut request = launcher.sh("readlink /proc/self/ns/net");
        request.network = network;
        launcher.run_one(&request).stdout.trim().to_owned()
    };
    let ours = fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
    assert_eq!(own(&mut launcher, Network::Host), ours);
    assert_ne!(own(&mut launcher, Network::None), ours);
}

#[test]
fn functions_and_versions_do_not_share_slots() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::with(|config| {
        // One task beside one worker, and two threads to spare: there are never fewer slots than these four.
        config.tasks = 1;
        config.max_slots = 4;
    });
    let namespace = |launcher: &mut Launched, key: &str| {
        let mut request = launcher.sh("readlink /proc/self/ns/pid");
        request.slot_key = key.to_owned();
        launcher.run_one(&request).stdout
    };
    let first = namespace(&mut launcher, "a@1");
    let others = [namespace(&mut launcher, "a@2"), namespace(&mut launcher, "b@1")];
    assert!(!others.contains(&first));
    // Past the ceiling the least recently used slot goes, and everything goes on working.
    for i in 0..8 {
        assert_ne!(namespace(&mut launcher, &format!("c{i}@1")), "");
    }
    let holders = || crate::harness::children_of(launcher.child.id()).len();
    crate::harness::wait_until("the slots are at their ceiling", || (1..=4).contains(&holders()));
}

#[test]
fn what_an_execution_leaves_in_ipc_is_not_there_for_the_next() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    let leave =
        "perl -MIPC::SysV=IPC_PRIVATE,IPC_CREAT,S_IRUSR -e 'defined shmget(77, 4096, IPC_CREAT|0600) or die $!'";
    for _ in 0..3 {
        let done = launcher.run_sh(&format!("tail -n +2 /proc/sysvipc/shm | wc -l; {leave}"));
        assert_eq!(done.stdout.trim(), "0", "{}", done.stderr);
        assert_eq!(done.stderr, "");
    }
}
