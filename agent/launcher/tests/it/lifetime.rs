//! No orphans, and nothing left on the machine.

use std::fs;
use std::path::PathBuf;

use crate::harness::{Launched, Process, alive, children_of, processes_with, root_or_skip, wait_until};

/// Starts a function with a daemon beside it; `mark` is in the command lines of both.
fn with_daemon(launcher: &mut Launched, mark: &str) -> Process {
    let request = launcher.sh(&format!("setsid sleep {mark} & echo ready; trap '' TERM HUP; sleep {mark}"));
    let process = launcher.start_one(&request, b"").unwrap();
    assert_eq!(process.line(), "ready");
    wait_until("both run", || processes_with(mark).len() >= 2);
    process
}

fn cgroups_of(launcher: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let name = format!("flux-{launcher}");
    let mut look = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = look.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_str() == Some(&name) {
                    found.push(entry.path());
                }
                look.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_killed_launcher_takes_its_functions_along() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    with_daemon(&mut launcher, "86421.5");
    let pid = launcher.child.id();
    let cgroups = cgroups_of(pid);
    assert!(!cgroups.is_empty() || launcher.capabilities.cgroup.version == 0);
    launcher.child.kill().unwrap();
    launcher.child.wait().unwrap();
    wait_until("nothing of it runs", || processes_with("86421.5").is_empty());
    // What it could not remove itself, the next launcher does.
    let next = Launched::start();
    assert!(cgroups_of(pid).is_empty());
    drop(next);
}

#[test]
fn the_agents_end_takes_its_functions_along_and_leaves_nothing() {
    let mut launcher = Launched::start();
    let process = with_daemon(&mut launcher, "86422.5");
    let pid = launcher.child.id();
    let slots = children_of(pid);
    assert!(!slots.is_empty());
    launcher.close();
    assert!(!alive(process.pid));
    assert!(slots.iter().all(|&slot| !alive(slot)));
    wait_until("nothing of it runs", || processes_with("86422.5").is_empty());
    assert_eq!(cgroups_of(pid), Vec::<PathBuf>::new());
}

#[test]
fn a_killed_execution_takes_its_daemons_along() {
    let mut launcher = Launched::start();
    let process = with_daemon(&mut launcher, "86423.5");
    launcher.kill(process.id, libc::SIGKILL);
    launcher.ended(process.id);
    wait_until("nothing of it runs", || processes_with("86423.5").is_empty());
}

#[test]
fn a_signal_to_the_launcher_itself_is_the_agents_business() {
    let mut launcher = Launched::start();
    let pid = nix::unistd::Pid::from_raw(launcher.child.id().cast_signed());
    for signal in [nix::sys::signal::SIGTERM, nix::sys::signal::SIGINT, nix::sys::signal::SIGHUP] {
        nix::sys::signal::kill(pid, signal).unwrap();
    }
    assert_eq!(launcher.run_sh("echo still here").stdout, "still here\n");
}

#[test]
fn a_dead_slot_is_replaced() {
    if !root_or_skip() {
        return;
    }
    let mut launcher = Launched::start();
    launcher.run_sh("true");
    for _ in 0..3 {
        // Meanwhile the first slot is reset and idle: else it would be the reset that notices.
        let mut other = launcher.sh("true");
        other.slot_key = "other@1".to_owned();
        launcher.run_one(&other);
        let holders = children_of(launcher.child.id());
        for &holder in &holders {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder), nix::sys::signal::SIGKILL).unwrap();
        }
        wait_until("they are dead", || holders.iter().all(|&holder| !alive(holder)));
        let request = launcher.sh("echo here");
        match launcher.start_one(&request, b"") {
            Ok(process) => assert_eq!(launcher.finish(process).stdout, "here\n"),
            Err(refused) => panic!("a dead slot was given out: {refused:?}"),
        }
    }
}
