//! What a worker gets beside a function's process: a channel, and somebody who sees whether it is alone.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;

use flux_launcher::wire::ExitStatus;

use crate::harness::{Launched, wait_until};

/// Answers each line with a line; `fork` leaves a process behind that has its own session, `end` kills it again.
const WORKER: &str = "exec </dev/null; while read -r line <&3; do case $line in \
    fork) setsid sleep 600 </dev/null >/dev/null 2>&1 3>&- & ;; end) kill $! ; wait 2>/dev/null ;; exit) exit 3 ;; esac; echo \"$line\" >&3; done";

fn members(directory: &std::fs::File) -> usize {
    std::fs::read_to_string(format!("/proc/self/fd/{}/cgroup.procs", directory.as_raw_fd())).unwrap().lines().count()
}

fn serves_and_is_seen(mut launcher: Launched) {
    let (id, channel, list) = launcher.start_worker(WORKER);
    let mut answers = BufReader::new(channel.try_clone().unwrap());
    let mut ask = |line: &str| {
        (&channel).write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), line);
    };
    ask("hello");
    ask("again");
    assert_eq!(list.is_some(), launcher.capabilities.cgroup.version != 0);
    let alone = |launcher: &Launched, expected: bool| {
        if let Some(list) = &list {
            wait_until("the cgroup to tell", || (members(list) == 1) == expected);
        }
        wait_until("the launcher to tell", || launcher.is_alone(id) == expected);
    };
    alone(&launcher, true);
    ask("fork");
    alone(&launcher, false);
    ask("end");
    alone(&launcher, true);
    // Not heard of any more: nothing lives there.
    (&channel).write_all(b"exit\n").unwrap();
    assert_eq!(launcher.ended(id).status, ExitStatus::Exited(3));
    assert!(launcher.is_alone(id));
}

#[test]
fn a_worker_has_a_channel_and_its_company_is_seen() {
    serves_and_is_seen(Launched::start());
}

#[test]
fn the_same_without_slots() {
    serves_and_is_seen(Launched::with(|config| config.slots = false));
}

/// Leaves a process in a session of its own and a file behind, and waits for those that it is told to.
const FORKS: &str = "exec </dev/null; while read -r line <&3; do case $line in \
    leave) echo x >${TMPDIR:-/tmp}/left; setsid sleep 600 </dev/null >/dev/null 2>&1 3>&- & ;; reap) wait; echo reap >&3; continue ;; \
    storm) setsid sh -c 'while :; do sleep 600 3>&- & sleep 600 3>&- & sleep 0.01; done' </dev/null >/dev/null 2>&1 3>&- & ;; \
    esac; echo \"$line $(ls ${TMPDIR:-/tmp})\" >&3; done";

fn is_cleared_around_its_main_process(mut launcher: Launched) {
    let (id, channel, _) = launcher.start_worker(FORKS);
    let mut answers = BufReader::new(channel.try_clone().unwrap());
    let ask = |answers: &mut BufReader<_>, line: &str| {
        (&channel).write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    };
    for what in ["leave", "storm", "leave"] {
        let left = if what == "leave" { "leave left" } else { what };
        assert_eq!(ask(&mut answers, what), left);
        wait_until("something to be left", || !launcher.is_alone(id));
        // It waits for those that are killed.
        (&channel).write_all(b"reap\n").unwrap();
        assert!(launcher.clear(id), "{what}");
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim(), "reap");
        assert!(launcher.is_alone(id), "{what}");
        assert_eq!(ask(&mut answers, "look"), "look", "{what}: its directory is empty");
    }
    assert!(!launcher.clear(id + 1), "nobody of this id");
    launcher.kill(id, 9);
    assert_eq!(launcher.ended(id).status, ExitStatus::Signaled(9));
    assert!(!launcher.clear(id), "it ended");
}

#[test]
fn a_slot_is_reset_around_a_worker_that_stays() {
    is_cleared_around_its_main_process(Launched::start());
}

/// Whoever asked may not hear of it, and what it was to end has to end.
#[test]
fn what_cannot_be_cleared_is_ended_with_its_worker() {
    let mut launcher = Launched::start();
    if !launcher.capabilities.pid_namespace {
        return;
    }
    let (id, channel, _) = launcher.start_worker(FORKS);
    (&channel).write_all(b"leave\n").unwrap();
    let mut answer = String::new();
    BufReader::new(channel.try_clone().unwrap()).read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), "leave left");
    // It waits for nobody: what was killed stays in the list.
    assert!(!launcher.clear(id));
    assert_eq!(launcher.ended(id).status, ExitStatus::Signaled(9));
}

#[test]
fn what_a_worker_left_is_cleared_without_slots() {
    is_cleared_around_its_main_process(Launched::with(|config| config.slots = false));
}

/// Else what the launcher opens for a worker's start could be number 3, and be overwritten by its channel.
#[test]
fn nothing_is_opened_where_a_channel_goes() {
    for slots in [true, false] {
        let launcher = Launched::with(|config| config.slots = slots);
        for number in 0..=3 {
            let held = std::fs::read_link(format!("/proc/{}/fd/{number}", launcher.child.id()));
            assert!(held.is_ok(), "{number} is free, slots: {slots}");
        }
    }
}

#[test]
fn workers_that_wait_leave_room_for_executions() {
    let mut launcher = Launched::start();
    let workers: Vec<_> = (0..8).map(|_| launcher.start_worker(WORKER)).collect();
    let others: Vec<_> = (0..8)
        .map(|_| {
            let request = launcher.sh("read line; echo done");
            launcher.start_one(&request, b"").unwrap()
        })
        .collect();
    for process in others {
        assert_eq!(launcher.finish(process).stdout, "done\n");
    }
    drop(workers);
}
