//! What was used: by the cgroup's counters in a container, by the kernel's in a guest.

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

use crate::Place;

/// The field of a line of numbers.
pub(crate) fn number_at(text: &str, field: usize) -> u64 {
    text.split_ascii_whitespace().nth(field).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn named(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Processes that the kernel ended for want of memory, so far.
pub(crate) fn oom_kills(place: Place) -> u64 {
    let counted = match place {
        Place::Container => named("/sys/fs/cgroup/memory.events", "oom_kill")
            .or_else(|| named("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill")),
        Place::Guest => named("/proc/vmstat", "oom_kill"),
    };
    counted.unwrap_or(0)
}

/// The most memory in use at once: of the cgroup where it says, else of the largest process.
pub(crate) fn memory_peak_bytes(place: Place) -> u64 {
    let peaks = ["/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes"];
    let read = |path: &&str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    let of_cgroup = if place == Place::Container { peaks.iter().find_map(read) } else { None };
    of_cgroup.unwrap_or_else(|| {
        getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0) * 1024)
    })
}

/// Of all processes that were waited for.
pub(crate) fn cpu_us() -> u64 {
    let micros = |time: TimeVal| u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0);
    getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_or(0, |usage| micros(usage.user_time()).saturating_add(micros(usage.system_time())))
}

/// Microseconds since the epoch.
pub(crate) fn now_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME);
    now.map_or(0, |now| u64::try_from(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000).unwrap_or(0))
}
