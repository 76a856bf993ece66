//! The kernel: its rarely used calls, mounts, namespaces, and the cgroup.

use std::fs;

use flux_launcher::Layer;

use super::Arena;
use crate::harness::{children_of, wait_until};

fn numbered(calls: &[(&str, libc::c_long)]) -> Vec<String> {
    calls.iter().map(|(name, number)| format!("{name}={number}")).collect()
}

#[test]
fn rarely_used_calls_are_refused_before_their_code_runs() {
    let calls = numbered(&[
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("delete_module", libc::SYS_delete_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("io_uring_enter", libc::SYS_io_uring_enter),
        ("io_uring_register", libc::SYS_io_uring_register),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("kcmp", libc::SYS_kcmp),
        ("clone3", libc::SYS_clone3),
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("quotactl", libc::SYS_quotactl),
        ("swapon", libc::SYS_swapon),
        ("acct", libc::SYS_acct),
        ("syslog", libc::SYS_syslog),
        ("move_pages", libc::SYS_move_pages),
        ("clock_settime", libc::SYS_clock_settime),
        ("of the year after next", 500),
    ]);
    let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
    let Some(mut arena) = Arena::new() else { return };
    assert_eq!(arena.is_held("calls", &calls), calls.len());
    let mut open = Arena::with(|config| config.without = vec![Layer::Seccomp]).unwrap();
    assert!(open.launcher.capabilities.missing.iter().any(|missing| missing.layer == "seccomp"));
    let reached = open.reaches("calls", &calls);
    assert!(reached.iter().any(|what| what.starts_with("io_uring_setup")), "{reached:?}");
}

#[test]
fn no_namespace_is_made_or_joined() {
    let numbers = [libc::SYS_clone, libc::SYS_unshare, libc::SYS_setns].map(|number| number.to_string());
    let numbers = [numbers[0].as_str(), &numbers[1], &numbers[2]];
    let Some(mut arena) = Arena::new() else { return };
    assert_eq!(arena.is_held("namespaces", &numbers), 17);
    let user_namespaces = fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|most| most.trim() != "0");
    if user_namespaces {
        let mut open = Arena::with(|config| config.without = vec![Layer::Seccomp]).unwrap();
        let reached = open.reaches("namespaces", &numbers);
        assert!(reached.iter().any(|what| what.starts_with("unshare user")), "{reached:?}");
    }
}

#[test]
fn nothing_is_mounted_and_no_root_is_changed() {
    let Some(mut arena) = Arena::new() else { return };
    assert_eq!(arena.is_held("mounts", &[]), 15);
}

#[test]
fn the_kernels_own_files_are_closed() {
    let Some(mut arena) = Arena::new() else { return };
    assert_eq!(arena.is_held("kernel_files", &[]), 14);
}

#[test]
fn sockets_of_rare_families_are_not_made() {
    let Some(mut arena) = Arena::new() else { return };
    assert_eq!(arena.is_held("sockets", &[]), 14);
    let mut open = Arena::with(|config| config.without = vec![Layer::Seccomp]).unwrap();
    open.reaches("sockets", &[]);
}

#[test]
fn a_process_stays_in_its_executions_cgroup() {
    let Some(mut arena) = Arena::new() else { return };
    if arena.launcher.capabilities.cgroup.version == 0 {
        eprintln!("SKIPPED: this machine gives no cgroups");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have cgroups");
        return;
    }
    let request = arena.attack("cgroups", &[]);
    let process = arena.launcher.start_one(&request, b"").unwrap();
    let mut held = 0;
    loop {
        let line = process.line();
        if line == "waiting" {
            break;
        }
        assert!(line.starts_with("HELD "), "{line}");
        held += 1;
    }
    assert!(held >= 3, "{held}");
    let own = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().filter(|line| line.contains("/flux-")).map(str::to_owned).collect::<Vec<_>>()
    };
    // Its daemon is the holder's child by now.
    let holders = children_of(arena.launcher.child.id());
    let daemons = || holders.iter().flat_map(|&pid| children_of(pid.cast_unsigned())).collect::<Vec<_>>();
    wait_until("the daemon is the slot's", || !daemons().is_empty());
    let expected = own(process.pid);
    assert!(!expected.is_empty());
    for daemon in daemons() {
        assert_eq!(own(daemon), expected);
    }
    arena.launcher.kill(process.id, libc::SIGKILL);
}
