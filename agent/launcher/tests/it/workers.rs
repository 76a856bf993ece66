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
