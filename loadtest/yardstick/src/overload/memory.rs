//! Resident memory of a process and all that it started, second by second.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use parking_lot::Mutex;

const EVERY: Duration = Duration::from_secs(1);

/// MiB by process name.
pub(super) type Rss = BTreeMap<String, f64>;

/// Looks once a second until it is dropped.
pub(super) struct Watch {
    seen: Arc<Mutex<Vec<Rss>>>,
    over: Arc<AtomicBool>,
}

impl Watch {
    pub(super) fn start(pid: u32) -> Self {
        let (seen, over) = (Arc::new(Mutex::new(vec![look(pid)])), Arc::new(AtomicBool::new(false)));
        let (into, until) = (Arc::clone(&seen), Arc::clone(&over));
        // A thread: what it reads is not to wait for the generator.
        std::thread::spawn(move || {
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(EVERY);
                into.lock().push(look(pid));
            }
        });
        Self { seen, over }
    }

    pub(super) fn so_far(&self) -> Vec<Rss> {
        self.seen.lock().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// What each of its processes holds now, functions apart.
pub(super) fn look(pid: u32) -> Rss {
    let mut found = Rss::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let command = read("cmdline");
        let role = command.split('\0').find_map(|word| match word {
            "up" => Some("flux up"),
            "__serve" => Some("gateway and agent"),
            word if word.ends_with("nats-server") => Some("nats-server"),
            _ => None,
        });
        if let Some(role) = role {
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
            let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
            *found.entry(role.to_owned()).or_default() += kib / 1024.0;
        }
        // Whatever the launcher starts comes and goes.
        if role.is_some() {
            next.extend(children(pid));
        }
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}
