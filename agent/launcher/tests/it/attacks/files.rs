//! Other people's files, processes and memory.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use flux_launcher::{LauncherConfig, Layer};

use super::{Arena, owned_by_root};
use crate::harness::{RUNNER, alive};

const MARKER: &str = "the-others-secret-86431";

/// A process of the machine, as the agent is one, but of the functions' own user, so that nothing but layers is between.
struct Outsider(Child);

fn outsider() -> Outsider {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new("/bin/sleep");
    command.arg("600").env_clear().env("KEY", MARKER).stdin(Stdio::null()).stdout(Stdio::null());
    Outsider(command.uid(RUNNER.uid).gid(RUNNER.gid).spawn().unwrap())
}

impl Outsider {
    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What stands between a function and the machine's processes, left out.
fn in_the_open(config: &mut LauncherConfig) {
    config.slots = false;
    config.without = vec![Layer::Seccomp, Layer::Landlock];
}

#[test]
fn another_functions_code_files_environment_and_output_stay_its_own() {
    let Some(mut arena) = Arena::new() else { return };
    let (victim, code) = arena.victim(MARKER);
    assert!(arena.is_held("search", &[MARKER, code.to_str().unwrap(), "/tmp/secret", "/dev/shm/secret"]) > 10);
    assert!(alive(victim.pid));
    arena.launcher.kill(victim.id, libc::SIGKILL);
}

#[test]
fn the_agents_keys_and_environment_stay_its_own() {
    let Some(mut arena) = Arena::new() else { return };
    // Open to all: so it is the view that hides it.
    let key = arena.launcher.scratch.0.join("agent.key");
    fs::write(&key, MARKER).unwrap();
    owned_by_root(&key, 0o644);
    let agent = outsider();
    let others = ["/etc/shadow", "/root/.ssh/id_rsa", "/etc/ssh/ssh_host_rsa_key"];
    let paths: Vec<&str> = [MARKER, key.to_str().unwrap()].into_iter().chain(others).collect();
    arena.is_held("search", &paths);
    let pid = agent.pid().to_string();
    let environ = format!("/proc/{pid}/environ");
    arena.is_held("search", &[MARKER, &environ]);

    // The same without slots: the files and the environment are there to be read.
    let mut open = Arena::with(in_the_open).unwrap();
    let reached = open.reaches("look", &[MARKER, key.to_str().unwrap(), &environ]);
    assert!(reached.iter().any(|what| what.starts_with(key.to_str().unwrap())), "{reached:?}");
    assert!(reached.iter().any(|what| what.starts_with(&environ)), "{reached:?}");
}

#[test]
fn nobody_else_is_signalled_or_traced() {
    let Some(mut arena) = Arena::new() else { return };
    let (victim, _) = arena.victim(MARKER);
    let agent = outsider();
    let pids = [agent.pid().to_string(), victim.pid.to_string(), arena.launcher.child.id().to_string()];
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    assert_eq!(arena.is_held("signals", &pids), 6 * 3 + 1);
    assert!(alive(victim.pid) && alive(agent.pid()) && arena.launcher.ping());

    let mut open = Arena::with(in_the_open).unwrap();
    let reached = open.reaches("signals", &pids[..1]);
    assert!(reached.iter().any(|what| what.contains("SIGKILL")), "{reached:?}");
    arena.launcher.kill(victim.id, libc::SIGKILL);
}

#[test]
fn links_devices_and_setuid_programs_in_the_code_lead_nowhere() {
    let Some(mut arena) = Arena::new() else { return };
    let secret = arena.launcher.scratch.0.join("secret");
    fs::write(&secret, MARKER).unwrap();
    owned_by_root(&secret, 0o644);
    let code = arena.launcher.code_dir();
    // Archives with these are refused whole (flux-artifacts, `hostile.rs`); here they are there all the same.
    symlink(&secret, code.join("to-secret")).unwrap();
    symlink("../../../../../../../..".to_owned() + secret.to_str().unwrap(), code.join("up")).unwrap();
    symlink("/etc/shadow", code.join("absolute")).unwrap();
    fs::copy("/usr/bin/id", code.join("rooted")).unwrap();
    owned_by_root(&code.join("rooted"), 0o6755);
    let zero = nix::sys::stat::makedev(1, 5);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&code.join("device"), nix::sys::stat::SFlag::S_IFCHR, mode, zero).unwrap();
    let held = arena.is_held("tricks", &[secret.to_str().unwrap(), "device", "rooted"]);
    assert_eq!(held, 12);
}

#[test]
fn shared_memory_and_temporary_files_are_nobody_elses() {
    let Some(mut arena) = Arena::new() else { return };
    let (victim, _) = arena.victim(MARKER);
    let leave = "defined shmget(77, 4096, IPC_CREAT|0666) && defined semget(77, 1, IPC_CREAT|0666) \
                 && defined msgget(77, IPC_CREAT|0666) or die $!; $| = 1; print \"left\\n\"; sleep 600";
    let modules = "-MIPC::SysV=IPC_CREAT";
    let mut request = arena.launcher.request("/usr/bin/perl", &[modules, "-e", leave]);
    request.slot_key = "leaver@1".to_owned();
    let leaver = arena.launcher.start_one(&request, b"").unwrap();
    assert_eq!(leaver.line(), "left");
    arena.is_held("ipc", &["        77"]);
    for process in [victim.id, leaver.id] {
        arena.launcher.kill(process, libc::SIGKILL);
    }
}
