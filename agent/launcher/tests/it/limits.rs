//! Limits, held by cgroups. Needs root.

use flux_launcher::wire::{ExitStatus, Limits};

use crate::harness::{Launched, root_or_skip, wait_until};

const MEGABYTE: u64 = 1 << 20;

fn with_cgroups() -> Option<Launched> {
    if !root_or_skip() {
        return None;
    }
    let launcher = Launched::start();
    let support = launcher.capabilities.cgroup;
    if support.memory && support.cpu && support.pids {
        return Some(launcher);
    }
    eprintln!("SKIPPED: this machine does not give all of its cgroup controllers: {support:?}");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have cgroup controllers");
    None
}

#[test]
fn more_memory_than_allowed_is_an_oom_kill() {
    let Some(mut launcher) = with_cgroups() else { return };
    let mut request = launcher.request("/usr/bin/perl", &["-e", "$x = 'a' x 200_000_000; print length $x"]);
    request.limits = Limits { memory_bytes: 64 * MEGABYTE, ..Limits::default() };
    let done = launcher.run_one(&request);
    assert!(done.ended.oom_killed, "{done:?}");
    assert_eq!(done.ended.status, ExitStatus::Signaled(libc::SIGKILL));
    // Before kernel 6.12, version 2 has no peak that can be reset: then it is the process's, with what it shares with others.
    assert!(done.ended.memory_peak_bytes > 32 * MEGABYTE && done.ended.memory_peak_bytes <= 72 * MEGABYTE, "{done:?}");
    // The next one in the same slot starts with a clean sheet, also with another limit.
    let done = launcher.run_sh("echo fine");
    assert!(!done.ended.oom_killed && done.ended.memory_peak_bytes < 32 * MEGABYTE, "{done:?}");
    let mut request = launcher.request("/usr/bin/perl", &["-e", "$x = 'a' x 200_000_000; print length $x"]);
    request.limits = Limits { memory_bytes: 1024 * MEGABYTE, ..Limits::default() };
    let done = launcher.run_one(&request);
    assert_eq!(done.stdout, "200000000");
    assert!(done.ended.memory_peak_bytes > 190 * MEGABYTE, "{done:?}");
}

#[test]
fn a_limit_too_small_to_start_harms_nobody_else() {
    let Some(mut launcher) = with_cgroups() else { return };
    for _ in 0..5 {
        let mut request = launcher.request("/bin/sh", &["-c", "true", &"x".repeat(100_000), &"x".repeat(100_000)]);
        request.limits = Limits { memory_bytes: 8192, ..Limits::default() };
        match launcher.start_one(&request, b"") {
            Ok(process) => assert_ne!(launcher.finish(process).ended.status, ExitStatus::Exited(0)),
            Err(refused) => assert!(!refused.message.is_empty()),
        }
    }
    assert_eq!(launcher.run_sh("exit 4").ended.status, ExitStatus::Exited(4));
}

#[test]
fn a_fork_bomb_stops_at_its_limit_and_is_gone_after_a_kill() {
    let Some(mut launcher) = with_cgroups() else { return };
    let mut request =
        launcher.sh("echo ready; bomb() { bomb 2>/dev/null | bomb 2>/dev/null & }; bomb; sleep 97531 & sleep 97531");
    request.limits = Limits { pids_max: 20, memory_bytes: 256 * MEGABYTE, ..Limits::default() };
    let process = launcher.start_one(&request, b"").unwrap();
    assert_eq!(process.line(), "ready");
    launcher.kill(process.id, libc::SIGKILL);
    launcher.ended(process.id);
    wait_until("the bomb is gone", || crate::harness::processes_with("97531").is_empty());
    let mut request = launcher.sh("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo started all");
    request.limits = Limits { pids_max: 4, ..Limits::default() };
    let done = launcher.run_one(&request);
    assert!(!done.stdout.contains("started all"), "{done:?}");
}

#[test]
fn half_a_core_takes_twice_as_long() {
    let Some(mut launcher) = with_cgroups() else { return };
    let mut request = launcher.request(
        "/usr/bin/perl",
        &[
            "-MTime::HiRes=time,clock",
            "-e",
            "my ($t, $c) = (time, clock()); 1 while clock() - $c < 0.4; printf '%.3f', time - $t",
        ],
    );
    request.limits = Limits { cpu_millicores: 500, ..Limits::default() };
    let done = launcher.run_one(&request);
    let took: f64 = done.stdout.parse().unwrap();
    assert!(took > 0.6, "0.4 s of CPU at half a core took {took} s");
    assert!(done.ended.cpu_us > 350_000, "{done:?}");
}

#[test]
fn files_and_descriptors_are_limited() {
    let Some(mut launcher) = with_cgroups() else { return };
    let mut request =
        launcher.sh("ulimit -n; ulimit -c; trap '' XFSZ; head -c 100000 /dev/zero > /tmp/f; wc -c < /tmp/f");
    request.limits = Limits { open_files: 64, file_size_bytes: 65536, ..Limits::default() };
    let done = launcher.run_one(&request);
    assert_eq!(done.stdout, "64\n0\n65536\n", "{}", done.stderr);
}
