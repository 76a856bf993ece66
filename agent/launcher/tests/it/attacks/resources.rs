//! More than its share, and for longer than its time.

use std::time::{Duration, Instant};

use flux_launcher::wire::{ExitStatus, Limits};
use flux_launcher::{Runner, UidRange};

use super::{Arena, RUNNERS, tally};
use crate::harness::{RUNNER, processes_with, wait_until};

const MEGABYTE: u64 = 1 << 20;

fn has_cgroups(arena: &Arena) -> bool {
    let support = arena.launcher.capabilities.cgroup;
    let there = support.memory && support.pids;
    if !there {
        eprintln!("SKIPPED: this machine does not give all of its cgroup controllers: {support:?}");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have cgroup controllers");
    }
    there
}

#[test]
fn a_fork_bomb_stops_at_its_limit_and_others_go_on() {
    let Some(mut arena) = Arena::new() else { return };
    if !has_cgroups(&arena) {
        return;
    }
    let mut request = arena.attack("fork_bomb", &["20"]);
    request.limits.pids_max = 20;
    let process = arena.launcher.start_one(&request, b"").unwrap();
    // While it is at its limit, and after it: another function forks as it likes.
    assert_eq!(arena.launcher.run_sh("for i in 1 2 3 4 5; do /bin/true; done; echo fine").stdout, "fine\n");
    let done = arena.launcher.finish(process);
    assert_eq!(tally(&done), (1, vec![]), "{}", done.stdout);
}

#[test]
fn a_memory_bomb_of_any_kind_ends_alone() {
    let Some(mut arena) = Arena::new() else { return };
    if !has_cgroups(&arena) {
        return;
    }
    for how in ["heap", "memfd", "shared", "children"] {
        let mut request = arena.attack("memory_bomb", &[how]);
        request.limits.memory_bytes = 96 * MEGABYTE;
        let process = arena.launcher.start_one(&request, b"").unwrap();
        let done = arena.launcher.finish(process);
        assert!(done.ended.oom_killed, "{how}: {done:?}");
        assert!(done.ended.memory_peak_bytes <= 96 * MEGABYTE, "{how}: {done:?}");
        // Where children are the bomb, version 1 kills one after another of them and may spare their parent.
        assert!(how == "children" || done.ended.status == ExitStatus::Signaled(libc::SIGKILL), "{how}: {done:?}");
        assert!(!done.stdout.contains("REACHED"), "{how}: {}", done.stdout);
        assert_eq!(arena.launcher.run_sh("echo fine").stdout, "fine\n");
    }
}

#[test]
fn a_disk_is_filled_up_to_its_size_only() {
    let Some(mut arena) = Arena::with(|config| config.tmp_bytes = 4 * MEGABYTE) else { return };
    let most = (4 * MEGABYTE).to_string();
    assert_eq!(arena.is_held("disk", &[&most]), 5);
}

#[test]
fn descriptors_run_out_for_nobody_else() {
    let Some(mut arena) = Arena::new() else { return };
    assert_eq!(arena.is_held("descriptors", &["256"]), 4);
}

#[test]
fn what_the_kernel_counts_by_user_runs_out_for_nobody_else() {
    // Users that no other test has: it would find nothing left.
    const HOARDERS: UidRange = UidRange { first: RUNNERS.first + RUNNERS.count, count: 64 };
    let Some(mut arena) = Arena::with(|config| config.runner_uids = Some(HOARDERS)) else { return };
    assert!(arena.launcher.capabilities.own_uids, "{:?}", arena.launcher.capabilities.missing);
    let took_beside_a_hoarder = |arena: &mut Arena| {
        let hoard = |arena: &mut Arena, how: &str, key: &str| {
            let mut request = arena.attack("inotify", &[how]);
            request.slot_key = key.to_owned();
            request.limits = Limits { open_files: 8192, ..Limits::default() };
            request
        };
        let request = hoard(arena, "hold", "hoarder@1");
        let (read, write) = nix::unistd::pipe().unwrap();
        let (out, out_write) = nix::unistd::pipe().unwrap();
        arena.launcher.send(&request, [&read, &out_write, &out_write]);
        drop((read, out_write));
        let mut first = String::new();
        let mut out = std::io::BufReader::new(std::fs::File::from(out));
        std::io::BufRead::read_line(&mut out, &mut first).unwrap();
        assert!(first.starts_with("took ") && first.trim() != "took 0", "{first}");
        let request = hoard(arena, "try", "other@1");
        let done = arena.launcher.run_one(&request);
        drop(write);
        done.stdout
    };
    assert_ne!(took_beside_a_hoarder(&mut arena), "took 0\n");
    let mut shared = Arena::with(|config| {
        config.runner_uids = None;
        config.runner = Some(Runner { uid: HOARDERS.first + HOARDERS.count, gid: RUNNER.gid });
    })
    .unwrap();
    assert!(shared.launcher.capabilities.missing.iter().any(|missing| missing.layer == "uid of its own"));
    assert_eq!(took_beside_a_hoarder(&mut shared), "took 0\n");
}

#[test]
fn nothing_of_an_execution_lives_on() {
    let Some(mut arena) = Arena::new() else { return };
    for mark in ["86451.5", "86452.5", "86453.5"] {
        let request = arena.attack("linger", &[mark]);
        let process = arena.launcher.start_one(&request, b"").unwrap();
        let ended = arena.launcher.ended(process.id);
        assert_eq!(ended.status, ExitStatus::Exited(0));
        // The daemons held the pipes: their end is the daemons'.
        let began = Instant::now();
        let rest = std::io::read_to_string(std::fs::File::from(process.stdout)).unwrap();
        assert!(rest.contains("HELD the daemons"), "{rest}");
        assert!(began.elapsed() < Duration::from_secs(2), "the pipes were held for {:?}", began.elapsed());
        wait_until("no daemon is left", || processes_with(mark).is_empty());
    }
}
