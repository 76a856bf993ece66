//! Programs that know nothing of Flux run unharmed in all that holds them in.

use std::path::Path;

use flux_launcher::wire::{ExitStatus, Network};

use crate::harness::{Launched, root_or_skip};

/// The interpreter, where functions see it; says so aloud where it is not, and fails where it must be.
fn interpreter(path: &'static str) -> Option<&'static str> {
    if Path::new(path).exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: there is no {path} on this machine");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must have {path}");
    None
}

fn runs_whole(program: &'static str, script: &str, content: &str, lines: usize) {
    let Some(program) = interpreter(program) else { return };
    let mut launcher = Launched::start();
    launcher.file(script, content, 0o644);
    for network in [Network::Host, Network::None] {
        if network == Network::None && !root_or_skip() {
            return;
        }
        let mut request = launcher.request(program, &[script]);
        request.network = network;
        let done = launcher.run_one(&request);
        assert_eq!(done.ended.status, ExitStatus::Exited(0), "{network:?}: {}\n{}", done.stdout, done.stderr);
        assert_eq!(done.stdout.lines().count(), lines, "{}", done.stdout);
    }
}

#[test]
fn python() {
    runs_whole("/usr/bin/python3", "everyday.py", include_str!("../programs/everyday.py"), 9);
}

#[test]
fn node() {
    runs_whole("/usr/bin/node", "everyday.js", include_str!("../programs/everyday.js"), 6);
}
