//! Starting, ending, and what a function's process gets.

use crate::harness::{Launched, alive, wait_until};
use flux_launcher::wire::ExitStatus;

#[test]
fn exit_codes_and_output_come_back() {
    let mut launcher = Launched::start();
    let done = launcher.run_sh("echo out; echo err >&2; exit 7");
    assert_eq!(done.ended.status, ExitStatus::Exited(7));
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    assert!(!done.ended.oom_killed);
    assert!(done.ended.memory_peak_bytes > 0);
    assert!(launcher.ping());
}

#[test]
fn a_signal_is_reported_as_one() {
    let mut launcher = Launched::start();
    let done = launcher.run_sh("kill -SEGV $$");
    assert_eq!(done.ended.status, ExitStatus::Signaled(libc::SIGSEGV));
    // abort() of PID 1 would lie: a function never is.
    let done = launcher.run_sh("kill -ABRT $$");
    assert_eq!(done.ended.status, ExitStatus::Signaled(libc::SIGABRT));
}

#[test]
fn stdin_args_and_env_are_exact() {
    let mut launcher = Launched::start();
    launcher.file("show", "#!/bin/sh\ncat\nfor a in \"$@\"; do printf '<%s>' \"$a\"; done\nprintf '\\n'\n", 0o755);
    let request = launcher.request("./show", &["", "a b", "ü*", "-x"]);
    let process = launcher.start_one(&request, b"payload\n").unwrap();
    let done = launcher.finish(process);
    assert_eq!(done.stdout, "payload\n<><a b><ü*><-x>\n");

    let mut request = launcher.request("/usr/bin/env", &[]);
    request.env = vec![("A".to_owned(), "1=2".to_owned()), ("B".to_owned(), String::new())];
    let done = launcher.run_one(&request);
    let expected = "A=1=2\nB=\n";
    assert!(done.stdout.starts_with(expected), "{}", done.stdout);
    if launcher.capabilities.mount_namespace {
        assert_eq!(done.stdout, expected);
    }
}

#[test]
fn a_request_larger_than_a_packet_arrives_whole() {
    let mut launcher = Launched::start();
    let big = "x".repeat(100_000);
    let mut request = launcher.request("/bin/sh", &["-c", "printf %s \"$1$2$3\" | wc -c", "sh", &big, &big, &big]);
    request.env.push(("BIG".to_owned(), big.clone()));
    assert_eq!(launcher.run_one(&request).stdout.trim(), "300000");
}

#[test]
fn nothing_of_the_launchers_descriptors_or_signal_state_leaks() {
    let mut launcher = Launched::start();
    let done = launcher.run_sh("ls /proc/self/fd | tr '\\n' ' '; grep -E '^Sig(Blk|Ign)' /proc/self/status; umask");
    let lines: Vec<_> = done.stdout.lines().collect();
    // ls itself opens 3.
    assert!(lines[0].starts_with("0 1 2 3 SigBlk:"), "{}", done.stdout);
    assert!(lines[0].ends_with("0000000000000000") && lines[1].ends_with("0000000000000000"), "{}", done.stdout);
    assert_eq!(lines[2], "0022");
}

#[test]
fn what_cannot_be_executed_says_why() {
    let mut launcher = Launched::start();
    let refused = |launcher: &mut Launched, program: &str| {
        let request = launcher.request(program, &[]);
        let refused = launcher.refused(&request);
        assert_eq!(refused.step, "exec");
        assert!(refused.is_functions_fault());
        refused.message
    };
    let message = refused(&mut launcher, "missing");
    assert!(message.contains("`missing` is not in the archive"), "{message}");
    launcher.file("plain", "#!/bin/sh\n", 0o644);
    let message = refused(&mut launcher, "plain");
    assert!(message.contains("not executable") && message.contains("chmod +x"), "{message}");
    launcher.file("alien", "#!/opt/none/ruby -w\n", 0o755);
    let message = refused(&mut launcher, "alien");
    assert!(message.contains("no interpreter") && message.contains("`/opt/none/ruby`"), "{message}");
    launcher.file("dos", "#!/bin/sh\r\nexit 0\r\n", 0o755);
    let message = refused(&mut launcher, "dos");
    assert!(message.contains("`/bin/sh`") && message.contains("LF line ends"), "{message}");
    launcher.file("noise", "\u{1}\u{2}\u{3}", 0o755);
    let message = refused(&mut launcher, "noise");
    assert!(message.contains("neither a program"), "{message}");
    let message = refused(&mut launcher, "/usr/bin/no-such-program");
    assert!(message.contains("/usr/bin/no-such-program"), "{message}");
    // And the launcher is as good as before.
    assert_eq!(launcher.run_sh("exit 3").ended.status, ExitStatus::Exited(3));
}

#[test]
fn a_request_that_is_nonsense_is_refused() {
    let mut launcher = Launched::start();
    let request = launcher.request("/bin/echo", &["a\0b"]);
    let refused = launcher.refused(&request);
    assert!(refused.message.contains("NUL"), "{}", refused.message);
    let mut request = launcher.request("/bin/true", &[]);
    request.code_dir = "/no/such/directory".into();
    assert!(!launcher.refused(&request).message.is_empty());
}

#[test]
fn kill_reaches_what_ignores_sigterm() {
    let mut launcher = Launched::start();
    let request = launcher.sh("trap 'echo got it' TERM; echo ready; while :; do sleep 0.05; done");
    let process = launcher.start_one(&request, b"").unwrap();
    assert_eq!(process.line(), "ready");
    launcher.kill(process.id, libc::SIGTERM);
    assert_eq!(process.line(), "got it");
    assert!(alive(process.pid));
    launcher.kill(process.id, libc::SIGKILL);
    let done = launcher.finish(process);
    assert_eq!(done.ended.status, ExitStatus::Signaled(libc::SIGKILL));
    assert!(!done.ended.oom_killed);
    // An unknown id is no error.
    launcher.kill(4711, libc::SIGKILL);
    assert!(launcher.ping());
}

#[test]
fn a_daemon_left_behind_is_gone_after_the_end() {
    let mut launcher = Launched::start();
    let done = launcher.run_sh("setsid sh -c '(sleep 7531 & echo started) ' >/dev/null 2>&1 </dev/null & exit 0");
    assert_eq!(done.ended.status, ExitStatus::Exited(0));
    wait_until("the daemon is gone", || crate::harness::processes_with("7531").is_empty());
}

#[test]
fn thirty_two_at_a_time_keep_their_replies_apart() {
    let mut launcher = Launched::with(|config| config.tasks = 32);
    let mut running = Vec::new();
    for i in 0..96 {
        let mut request = match i % 4 {
            0 => launcher.sh(&format!("echo {i}; exit {}", i % 7)),
            1 => launcher.sh(&format!("sleep 0.02; echo {i}; exit {}", i % 7)),
            2 => launcher.sh(&format!("echo {i}; sleep 900")),
            _ => launcher.request("missing", &[]),
        };
        request.slot_key = format!("f{}@1", i % 5);
        if i % 4 == 3 {
            launcher.refused(&request);
            continue;
        }
        let process = launcher.start_one(&request, b"").unwrap();
        if i % 4 == 2 {
            assert_eq!(process.line(), i.to_string());
            launcher.kill(process.id, libc::SIGKILL);
            let status = launcher.finish(process).ended.status;
            assert_eq!(status, ExitStatus::Signaled(libc::SIGKILL));
        } else {
            running.push((i, process));
        }
        if running.len() == 30 {
            for (i, process) in running.drain(..) {
                let done = launcher.finish(process);
                assert_eq!(done.stdout, format!("{i}\n"));
                assert_eq!(done.ended.status, ExitStatus::Exited(i % 7));
            }
        }
    }
}
