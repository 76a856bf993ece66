//! A launcher, or a small process tree, and nothing else: what the tests start.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flux_launcher::tree::{self, ChildSpec, RestartPolicy};
use flux_launcher::wire::{LauncherAnswer, LauncherWish, MAX_REPLY, TREE_FD};
use flux_launcher::{LauncherConfig, Runner, socket};

fn main() {
    flux_launcher::run_if_launcher();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["tree", directory] => run_tree(Path::new(directory)),
        ["ask", directory] => match ask(Path::new(directory)) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("probe: asking for a launcher: {error}");
                std::process::exit(1);
            }
        },
        _ => {
            eprintln!("this is the launcher's probe: tests start it as a launcher, as `tree` or as `ask`");
            std::process::exit(2);
        }
    }
}

/// Two scripts of the test's and a child that asks for a launcher.
fn run_tree(directory: &Path) {
    let script = |name: &str, stop_order: u32| {
        let mut spec = ChildSpec::new(name, "/bin/sh");
        spec.args = vec![directory.join(name).into()];
        spec.stop_order = stop_order;
        spec.stop_timeout = Duration::from_millis(500);
        spec
    };
    let mut worker = script("worker", 0);
    worker.user = Some(Runner { uid: 54321, gid: 54322 });
    let mut children = vec![script("server", 1), worker];
    if directory.join("once").exists() {
        let mut once = script("once", 0);
        once.restart = RestartPolicy::Never;
        children.push(once);
    }
    let mut asking = ChildSpec::new("asking", "/proc/self/exe");
    asking.args = vec!["ask".into(), directory.into()];
    asking.launcher = Some(LauncherConfig::new(directory.join("work"), 2));
    children.push(asking);
    match tree::run(children, &mut tree::log_to_stderr) {
        Ok(end) => std::process::exit(end.exit_code()),
        Err(error) => {
            eprintln!("probe: {error}");
            std::process::exit(3);
        }
    }
}

/// Asks for launchers for ever, one after another, each as the last one ends; leaves the pid of each in a file.
fn ask(directory: &Path) -> io::Result<()> {
    let number = std::env::vars_os().find(|(name, _)| name == TREE_FD).and_then(|(_, value)| value.into_string().ok());
    let number = number.and_then(|n| n.parse().ok()).ok_or(io::ErrorKind::NotFound)?;
    let link = socket::inherited(number)?;
    let mut buffer = vec![0; MAX_REPLY];
    loop {
        socket::send(link.as_fd(), &serde_json::to_vec(&LauncherWish::default())?, &[])?;
        let packet = socket::recv(link.as_fd(), &mut buffer)?;
        let LauncherAnswer::Started { pid } = serde_json::from_slice(buffer.get(..packet.len).unwrap_or_default())?
        else {
            return Err(io::Error::other("refused"));
        };
        let control = packet.fds.get(1).ok_or(io::ErrorKind::InvalidData)?;
        // The hello first: then it serves.
        while socket::recv(control.as_fd(), &mut buffer).is_ok_and(|p| p.len > 0) {
            write_whole(&directory.join("launcher-pid"), &pid.to_string())?;
        }
    }
}

fn write_whole(path: &Path, content: &str) -> io::Result<()> {
    let new: PathBuf = path.with_extension("new");
    std::fs::write(&new, content)?;
    std::fs::rename(&new, path)
}
