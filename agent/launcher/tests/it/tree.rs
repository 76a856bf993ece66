//! The root of the process tree, with shell scripts for children.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Scratch, alive, wait_until};

/// Writes its pid, and at SIGTERM its name, then ends.
const POLITE: &str = "trap 'echo NAME >> DIR/order; exit 0' TERM
trap 'echo NAME >> DIR/hup' HUP
echo $$ > DIR/NAME.new; mv DIR/NAME.new DIR/NAME.pid
while :; do sleep 0.02; done";
/// Writes its pid and cannot be asked to end.
const STUBBORN: &str = "trap '' TERM; echo $$ > DIR/NAME.new; mv DIR/NAME.new DIR/NAME.pid
while :; do sleep 0.02; done";

struct Tree {
    scratch: Scratch,
    process: Child,
}

impl Tree {
    fn start(worker: &str, server: &str, once: Option<&str>) -> Self {
        let scratch = Scratch::new();
        for (name, script) in [("worker", Some(worker)), ("server", Some(server)), ("once", once)] {
            if let Some(script) = script {
                let script = script.replace("DIR", scratch.0.to_str().unwrap()).replace("NAME", name);
                fs::write(scratch.0.join(name), script).unwrap();
            }
        }
        for shared in ["order", "hup"] {
            fs::write(scratch.0.join(shared), "").unwrap();
            fs::set_permissions(scratch.0.join(shared), fs::Permissions::from_mode(0o666)).unwrap();
        }
        let process =
            Command::new(crate::harness::probe()).arg("tree").arg(&scratch.0).stderr(Stdio::null()).spawn().unwrap();
        Tree { scratch, process }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    fn pid(&self, name: &str) -> i32 {
        let mut pid = 0;
        wait_until(&format!("{name} has a pid"), || {
            pid = fs::read_to_string(self.path(name)).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0);
            pid > 0 && alive(pid)
        });
        pid
    }

    fn all(&self) -> Vec<i32> {
        ["worker.pid", "server.pid", "launcher-pid"].iter().map(|name| self.pid(name)).collect()
    }

    fn signal(&self, pid: i32, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    fn signal_tree(&self, signal: nix::sys::signal::Signal) {
        self.signal(self.process.id().cast_signed(), signal);
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the tree ends", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

use nix::sys::signal::Signal::{SIGHUP, SIGKILL, SIGTERM};

#[test]
fn children_stop_in_their_order_and_nothing_is_left() {
    let mut tree = Tree::start(POLITE, POLITE, None);
    let pids = tree.all();
    tree.signal_tree(SIGTERM);
    assert_eq!(tree.end().code(), Some(0));
    assert_eq!(fs::read_to_string(tree.path("order")).unwrap(), "worker\nserver\n");
    assert!(pids.iter().all(|&pid| !alive(pid)));
}

#[test]
fn a_killed_child_is_back_in_well_under_a_second() {
    let tree = Tree::start(POLITE, POLITE, None);
    tree.all();
    for name in ["worker.pid", "server.pid", "launcher-pid"] {
        let old = tree.pid(name);
        let at = Instant::now();
        tree.signal(old, SIGKILL);
        wait_until("it is back", || {
            let new = fs::read_to_string(tree.path(name)).unwrap_or_default().trim().parse().unwrap_or(old);
            new != old && alive(new)
        });
        assert!(at.elapsed() < Duration::from_millis(900), "{name} took {:?}", at.elapsed());
    }
}

#[test]
fn the_trees_own_death_takes_everything_along() {
    let mut tree = Tree::start(STUBBORN, STUBBORN, None);
    let pids = tree.all();
    tree.process.kill().unwrap();
    tree.process.wait().unwrap();
    wait_until("all are gone", || pids.iter().all(|&pid| !alive(pid)));
}

#[test]
fn a_child_that_does_not_stop_is_killed_at_its_deadline() {
    let mut tree = Tree::start(STUBBORN, POLITE, None);
    let pids = tree.all();
    tree.signal_tree(SIGTERM);
    assert_eq!(tree.end().code(), Some(1));
    assert_eq!(fs::read_to_string(tree.path("order")).unwrap(), "server\n");
    assert!(pids.iter().all(|&pid| !alive(pid)));
}

#[test]
fn a_second_signal_kills_at_once() {
    let mut tree = Tree::start(STUBBORN, STUBBORN, None);
    tree.all();
    let at = Instant::now();
    tree.signal_tree(SIGTERM);
    tree.signal_tree(nix::sys::signal::Signal::SIGINT);
    assert_eq!(tree.end().code(), Some(1));
    assert!(at.elapsed() < Duration::from_millis(450), "{:?}", at.elapsed());
}

#[test]
fn a_child_that_is_not_restarted_ends_the_tree_with_its_code() {
    let mut tree = Tree::start(POLITE, POLITE, Some("exit 9"));
    assert_eq!(tree.end().code(), Some(9));
}

#[test]
fn hangups_are_forwarded() {
    let tree = Tree::start(POLITE, POLITE, None);
    tree.all();
    tree.signal_tree(SIGHUP);
    wait_until("both heard it", || {
        let heard = fs::read_to_string(tree.path("hup")).unwrap_or_default();
        heard.contains("worker") && heard.contains("server")
    });
}

#[test]
fn a_child_with_a_user_has_its_rights_and_no_more() {
    if !crate::harness::root_or_skip() {
        return;
    }
    let tree = Tree::start(POLITE, POLITE, None);
    let status = fs::read_to_string(format!("/proc/{}/status", tree.pid("worker.pid"))).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "54321 54321 54321 54321");
    assert_eq!(field("Gid:"), "54322 54322 54322 54322");
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("CapEff:"), "0000000000000000");
    let server = tree.pid("server.pid");
    assert_eq!(nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(server))).unwrap().as_raw(), server);
}
