//! A bare vfork + exec against the launcher's whole path, in turns, on the same program.
//!
//! `cargo run --release -p flux-launcher --example spawn_bench [program] [rounds] [tasks] [layers left out]`; as root to measure slots.
//! The target (docs: performance, P5) is a median within twice the bare one's.
#![allow(unsafe_code, clippy::print_stdout, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use flux_launcher::wire::{Limits, MAX_REPLY, Reply, SpawnRequest};
use flux_launcher::{LauncherConfig, socket, start_launcher};

fn main() {
    flux_launcher::run_if_launcher();
    let mut args = std::env::args().skip(1);
    let program = args.next().map_or_else(|| PathBuf::from("/bin/true"), PathBuf::from);
    let rounds: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(2000);

    let work = std::env::temp_dir().join(format!("flux-bench-{}", std::process::id()));
    let code = work.join("code");
    std::fs::create_dir_all(&code).unwrap();
    std::fs::copy(&program, code.join("program")).unwrap();
    let here = CString::new(code.join("program").to_str().unwrap()).unwrap();

    let tasks = args.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    let mut config = LauncherConfig::new(work.join("launcher"), tasks);
    config.without = args.map(|layer| serde_json::from_value(layer.into()).unwrap()).collect();
    let started = start_launcher(&std::env::current_exe().unwrap(), &config).unwrap();
    let mut buffer = vec![0; MAX_REPLY];
    socket::recv(started.control.as_fd(), &mut buffer).unwrap();
    let null: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();

    let mut request = SpawnRequest {
        slot_key: "bench@1".to_owned(),
        program: "program".to_owned(),
        env: (0..12).map(|i| (format!("VARIABLE_{i}"), "a value of usual length".to_owned())).collect(),
        code_dir: code.clone(),
        limits: Limits {
            memory_bytes: 128 << 20,
            cpu_millicores: 2000,
            pids_max: 64,
            open_files: 1024,
            file_size_bytes: 1 << 30,
            spares_others: false,
        },
        ..SpawnRequest::default()
    };
    let (mut bare, mut full, mut to_started, mut cold) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // Request to `Started`, request to `Ended`.
    let mut execute = |request: &SpawnRequest| {
        let at = Instant::now();
        let us = || at.elapsed().as_nanos() as f64 / 1000.0;
        let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
        socket::send(started.spawn.as_fd(), &request.encode().unwrap(), &fds).unwrap();
        let mut started_us = 0.0;
        loop {
            let packet = socket::recv(started.spawn.as_fd(), &mut buffer).unwrap();
            match Reply::decode(&buffer[..packet.len]).unwrap() {
                Reply::Started { .. } => started_us = us(),
                Reply::Ended(_) => return (started_us, us()),
                // Said with its end.
                Reply::Ran { .. } => return (us(), us()),
                Reply::Refused(refused) => panic!("{refused:?}"),
            }
        }
    };
    for round in 0..rounds + 20 {
        let at = Instant::now();
        bare_vfork(&here);
        let bare_us = at.elapsed().as_nanos() as f64 / 1000.0;
        request.id += 1;
        let (started_us, full_us) = execute(&request);
        if round >= 20 {
            bare.push(bare_us);
            full.push(full_us);
            to_started.push(started_us);
        }
    }
    for round in 0..50 {
        request.id += 1;
        request.slot_key = format!("cold-{round}@1");
        cold.push(execute(&request).1);
    }
    let line = |name: &str, times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        let at = |p: f64| times[((times.len() - 1) as f64 * p) as usize];
        println!("{name:<32} p50 {:>7.0}  p90 {:>7.0}  p99 {:>7.0} us", at(0.5), at(0.9), at(0.99));
        at(0.5)
    };
    let bare = line("bare vfork + exec + wait", &mut bare);
    let full = line("launcher, request to Ended", &mut full);
    line("launcher, request to Started", &mut to_started);
    line("the same in a slot made for it", &mut cold);
    println!("ratio of medians {:.2}", full / bare);

    drop((started.spawn, started.control));
    let mut child = started.child;
    child.wait().unwrap();
    let _ = Command::new("rm").arg("-rf").arg(&work).status();
}

fn bare_vfork(program: &CString) {
    extern "C" fn child(program: *mut libc::c_void) -> libc::c_int {
        let argv = [program.cast_const().cast::<libc::c_char>(), std::ptr::null()];
        let envp = [std::ptr::null()];
        // SAFETY: in the vfork child: null-terminated arrays on its own stack.
        unsafe {
            libc::execve(argv[0], argv.as_ptr(), envp.as_ptr());
            libc::_exit(127)
        }
    }
    let mut stack = vec![0u128; 2048];
    let mut status = 0;
    // SAFETY: the stack and the path outlive the child's use of them, since CLONE_VFORK holds this thread.
    unsafe {
        let top = stack.as_mut_ptr_range().end.cast();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(child, top, flags, program.as_ptr().cast_mut().cast());
        assert!(pid > 0);
        libc::waitpid(pid, &raw mut status, 0);
    }
    assert_eq!(status, 0);
}
