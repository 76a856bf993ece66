//! What a hostile function tries, as a real function of a real launcher. Needs root, and Python.
//!
//! The attacks are in `tests/attacks/attack.py`, which says of each thing that it tries whether it was held or reached it.
//! Where a layer can be left out by itself, the same attack must reach something without it: else the test proves nothing.

mod apart;
mod files;
mod kernel;
mod network;
mod resources;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use flux_launcher::wire::{Limits, SpawnRequest};
use flux_launcher::{LauncherConfig, UidRange};

use crate::harness::{Finished, Launched, Process, root_or_skip};

const PYTHON: &str = "/usr/bin/python3";
const ATTACKS: &str = include_str!("../../attacks/attack.py");
/// No user of any machine that runs these tests.
const RUNNERS: UidRange = UidRange { first: 1_879_048_192, count: 64 };

/// A launcher, and a victim's code beside the attacker's.
struct Arena {
    launcher: Launched,
}

impl Arena {
    /// With every layer that this machine gives.
    fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut LauncherConfig)) -> Option<Self> {
        if !root_or_skip() {
            return None;
        }
        assert!(std::path::Path::new(PYTHON).exists(), "the attacks need {PYTHON}");
        let launcher = Launched::with(|config| {
            config.runner_uids = Some(RUNNERS);
            change(config);
        });
        launcher.file("attack.py", ATTACKS, 0o644);
        let victim = launcher.scratch.0.join("victim");
        fs::create_dir_all(&victim).unwrap();
        Some(Arena { launcher })
    }

    /// The attacker's request.
    fn attack(&mut self, name: &str, arguments: &[&str]) -> SpawnRequest {
        let mut all = vec!["-I", "attack.py", name];
        all.extend(arguments);
        let mut request = self.launcher.request(PYTHON, &all);
        request.slot_key = "attacker@1".to_owned();
        request.limits = Limits { pids_max: 64, memory_bytes: 256 << 20, open_files: 256, ..Limits::default() };
        request
    }

    /// Starts the victim: a shell with this marker in its code, its files, its environment and its output, which runs
    /// until its input ends.
    fn victim(&mut self, marker: &str) -> (Process, PathBuf) {
        let code = self.launcher.scratch.0.join("victim");
        let file = code.join("handler");
        let script =
            format!("#!/bin/sh\n# {marker}\necho {marker} | tee /tmp/secret /dev/shm/secret\nexec sleep 600\n");
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let mut request = self.launcher.request("handler", &[]);
        request.slot_key = "victim@1".to_owned();
        request.code_dir = code;
        request.env.push(("SECRET".to_owned(), marker.to_owned()));
        let process = self.launcher.start_one(&request, b"").unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!(process.line(), marker);
        (process, file)
    }

    /// Runs an attack; everything that it tried must have been held. How much that was.
    fn is_held(&mut self, name: &str, arguments: &[&str]) -> usize {
        let request = self.attack(name, arguments);
        self.request_is_held(&request)
    }

    fn request_is_held(&mut self, request: &SpawnRequest) -> usize {
        let done = self.launcher.run_one(request);
        let (held, reached) = tally(&done);
        assert_eq!(reached, [""; 0], "{}", done.stdout);
        assert!(held > 0, "nothing was tried: {done:?}");
        held
    }

    /// Runs an attack that must reach something: without the layer that holds it.
    fn reaches(&mut self, name: &str, arguments: &[&str]) -> Vec<String> {
        let request = self.attack(name, arguments);
        let done = self.launcher.run_one(&request);
        let (_, reached) = tally(&done);
        eprintln!("{}", done.stdout);
        assert!(!reached.is_empty(), "nothing was reached: {done:?}");
        reached
    }
}

/// How many things were held, and what was reached.
fn tally(done: &Finished) -> (usize, Vec<String>) {
    let lines = || done.stdout.lines();
    let reached = lines().filter_map(|l| l.strip_prefix("REACHED ")).map(str::to_owned).collect();
    assert_eq!(done.stderr, "", "{}", done.stdout);
    (lines().filter(|l| l.starts_with("HELD ")).count(), reached)
}

fn owned_by_root(path: &std::path::Path, mode: u32) {
    chown(path, Some(0), Some(0)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
